"""``DiffusionBC`` set as the authors' release, with the authors' φ where they published it.

Elsewhere one critic, fitted for as long as theirs, serves all seeds; it stays beside the records.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import filelock
import gymnasium as gym
import torch as th
from stable_baselines3.common import utils
from torch import nn

from benchmarks import record
from benchmarks.methods.base import Method, Setup, optimizer_config, policy_config
from benchmarks.methods.diffusion_bc import SETTINGS, DiffusionBCMethod
from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy
from sb3_diffbc.critic.encoder import resolve_device


@dataclasses.dataclass(frozen=True)
class PaperSettings:
    """What the authors' release sets per task (λ_BC is 1).

    Attributes:
        critic_width: hidden units of the critic.
        critic_learning_rate: of its fit.
        critic_steps: of its fit.
        net_arch: hidden layers of the policy.
        learning_rate: at the start of the policy's training, with L_DM.
        dm_coef: λ_DM.
        n_updates: of the policy.
        bc_learning_rate: the learning rate without L_DM, where it is another.
    """

    critic_width: int
    critic_learning_rate: float
    critic_steps: int
    net_arch: tuple[int, ...]
    learning_rate: float
    dm_coef: float
    n_updates: int
    bc_learning_rate: float | None = None


PAPER_SETTINGS: Mapping[str, PaperSettings] = MappingProxyType(
    {
        "maze": PaperSettings(128, 1e-4, 1_160_000, (256,) * 3, 5e-5, 30.0, 288_000),
        "fetch_pick": PaperSettings(1024, 1e-3, 790_000, (750,) * 2, 5e-6, 0.5, 390_000),
        "hand_rotate": PaperSettings(2048, 3e-5, 790_000, (512,) * 2, 1e-4, 10.0, 390_000),
        "cheetah": PaperSettings(1024, 2e-4, 320_000, (256,) * 2, 2e-4, 0.2, 39_000, 1e-4),
        "walker": PaperSettings(1024, 2e-4, 320_000, (1024,) * 2, 1e-4, 0.2, 39_000),
        "ant_reach": PaperSettings(1024, 2e-4, 1_580_000, (1024,) * 2, 6e-3, 1.0, 780_000),
    }
)
"""By task."""
AUTHORS_CRITICS = {"maze": "maze_ddpm.pt"}
"""The authors' φ by task, beside their demonstrations."""

_DEVIATIONS = (
    "the critic's learning rate falls along a half cosine, its averaged weights with the least "
    "held-out loss are kept, and its gradient's norm is not clipped",
    "pairs are standardised in AntReach too",
)
_CRITIC_SEED = 0
_MAX_GRADIENT_NORM = 0.5


class PaperDiffusionBC(DiffusionBCMethod):
    """``DiffusionBC`` set as the authors' release. As there, all seeds have the same critic.

    Args:
        setup: demonstrations, spaces, seed and task.
        n_updates: gradient updates of the policy; the release's if None.
        critic_steps: steps of the critic's fit at most; the release's if None.
        dm_coef: λ_DM; the release's if None. With 0 it is the release's BC.
        dm_clamp: as in ``DiffusionBC``; the release clamps batch means.
        patience: as in ``DiffusionBC.train``; the release does not stop early.
        **arguments: further ones of ``DiffusionBC``, for remedies that the release does not have.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        n_updates: int | None = None,
        critic_steps: int | None = None,
        dm_coef: float | None = None,
        dm_clamp: Literal["sample", "batch", "none"] = "batch",
        patience: int | None = None,
        **arguments: Any,
    ) -> None:
        Method.__init__(self, setup)
        settings = self._settings = PAPER_SETTINGS[setup.task]
        self._dm_coef = settings.dm_coef if dm_coef is None else dm_coef
        self._patience = patience
        self._arguments = {"bc_loss": "mse", "dm_clamp": dm_clamp, **arguments}
        # Critics of 1024 units are slow without a GPU.
        self._device = resolve_device("auto" if self._dm_coef else "cpu")
        self.length = n_updates or settings.n_updates
        critic_steps = critic_steps or settings.critic_steps
        self.critic = DiffusionCritic(
            **setup.spaces,
            models="state_action",
            denoiser="release",
            width=settings.critic_width,
            depth=3,
            learning_rate=settings.critic_learning_rate,
            batch_size=128,
            n_steps=critic_steps,
            # Only the number of steps ends the fit, however few the demonstrations are.
            max_epochs=critic_steps,
            seed=_CRITIC_SEED,
            device=self._device,
        )
        # Without a critic yet: everything else is checked and known before it is fitted.
        self.trainer = self._make_trainer(None)
        self.config = {
            "n_batches": self.length,
            "recipe": "learning rate falls linearly to 0",
            **{name: getattr(self.trainer, name) for name in SETTINGS},
            "dm_coef": self._dm_coef,
            "patience": patience,
            "optimizer": optimizer_config(self.trainer.optimizer),
            "max_gradient_norm": _MAX_GRADIENT_NORM,
            "policy": policy_config(self.trainer.policy),
        }
        if self._dm_coef:
            self.config["critic"] = {
                **self.critic.config,
                "shared": "by all seeds; each counts its fit",
            }
            self.config["deviations from the release"] = list(_DEVIATIONS)

    def _make_trainer(self, critic: DiffusionCritic | None) -> DiffusionBC:
        setup, settings = self.setup, self._settings
        rate = settings.learning_rate
        if not self._dm_coef:
            rate = settings.bc_learning_rate or rate
        utils.set_random_seed(setup.seed)
        policy = StandardizedActorPolicy.from_demonstrations(
            setup.demonstrations,
            **setup.spaces,
            net_arch={"pi": list(settings.net_arch), "vf": []},
            activation_fn=nn.Tanh,
        )
        # The release's policy is deterministic; a spread would count in the gradient's norm.
        if isinstance(setup.action_space, gym.spaces.Box):
            policy.log_std.requires_grad_(False)
        trainer = DiffusionBC(
            demonstrations=setup.demonstrations,
            **setup.spaces,
            policy=policy,
            critic=critic,
            # The release takes L_DM per dimension of the pair, the library per one of the action.
            dm_coef=self._dm_coef * self.critic.encoder.act_dim / self.critic.noise_dim,
            batch_size=128,
            ent_weight=0.0,
            learning_rate=lambda remaining: rate * remaining,
            seed=setup.seed,
            device=self._device,
            verbose=0,
            **self._arguments,
        )
        trainer.DEFAULT_N_BATCHES = self.length
        return trainer

    def fitted_critic(self) -> DiffusionCritic:
        """Takes the authors' φ, or the critic that the first of all cells fits."""
        setup = self.setup
        published = Path(setup.source).parent / AUTHORS_CRITICS.get(setup.task, "-")
        if published.is_file():
            return DiffusionCritic.from_release(
                published, setup.demonstrations, **setup.spaces, device=self._device
            )
        steps = self.critic.config["n_steps"]
        path = record.RUNS / "paper" / f"{setup.task}-critic-{steps}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if not path.exists():
                self.critic.fit(setup.demonstrations, progress_bar=False)
                self.critic.save(path)
        return DiffusionCritic.load(path, device=self._device)

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""
        critic = None
        if self._dm_coef:
            self.clock.switch("critic")
            critic = self.fitted_critic()
        self.trainer = self._make_trainer(critic)
        self.trainer.optimizer.register_step_pre_hook(_clip_gradients)
        super().train(on_progress)


def _clip_gradients(optimizer: th.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], _MAX_GRADIENT_NORM)
