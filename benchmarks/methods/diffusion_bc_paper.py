"""``DiffusionBC`` set as the authors' release, with shorter budgets."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import gymnasium as gym
import torch as th
from stable_baselines3.common import policies, utils
from torch import nn

from benchmarks.methods.base import Method, Setup, Variant, optimizer_config, policy_config
from benchmarks.methods.diffusion_bc import SETTINGS, critic_measures
from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy


@dataclasses.dataclass(frozen=True)
class PaperSettings:
    """What the authors' release sets per task (λ_BC is 1)."""

    critic_width: int
    critic_learning_rate: float
    net_arch: tuple[int, ...]
    learning_rate: float
    dm_coef: float


PAPER_SETTINGS: Mapping[str, PaperSettings] = MappingProxyType(
    {
        "maze": PaperSettings(128, 1e-4, (256,) * 3, 5e-5, 30.0),
        "fetch_pick": PaperSettings(1024, 1e-3, (750,) * 2, 5e-6, 0.5),
        "hand_rotate": PaperSettings(2048, 3e-5, (512,) * 2, 1e-4, 10.0),
        "cheetah": PaperSettings(1024, 2e-4, (256,) * 2, 2e-4, 0.2),
        "walker": PaperSettings(1024, 2e-4, (1024,) * 2, 1e-4, 0.2),
        "ant_reach": PaperSettings(1024, 2e-4, (1024,) * 2, 6e-3, 1.0),
    }
)
"""By task; a user's own task has Walker's."""

_DEVIATIONS = (
    "budgets: the release trains the critic for 8,000 to 20,000 epochs and the policy for 1,000 to "
    "10,000 (40,000 to 290,000 updates), at the same learning rates",
    "the critic's learning rate falls along a half cosine, its averaged weights with the least "
    "held-out loss are kept, and its gradient's norm is not clipped",
    "pairs are standardised in AntReach too",
    "matrix products of training are in bfloat16 (torch.autocast), evaluation is not",
)
_CRITIC_SEED = 0
_MAX_GRADIENT_NORM = 0.5


class PaperDiffusionBC(Method):
    """``DiffusionBC`` set as the authors' release. As there, all seeds have the same critic.

    Args:
        setup: demonstrations, spaces, seed and task.
        n_updates: gradient updates of the policy.
        critic_steps: steps of the critic's fit at most.
    """

    quick: ClassVar[Mapping[str, Any]] = {"n_updates": 20, "critic_steps": 25}

    def __init__(self, setup: Setup, *, n_updates: int = 10_000, critic_steps: int = 5_000) -> None:
        super().__init__(setup)
        self._settings = PAPER_SETTINGS.get(setup.task, PAPER_SETTINGS["walker"])
        self.length = n_updates
        self.critic = DiffusionCritic(
            **setup.spaces,
            models="state_action",
            denoiser="release",
            width=self._settings.critic_width,
            depth=3,
            learning_rate=self._settings.critic_learning_rate,
            batch_size=128,
            n_steps=critic_steps,
            # Only the number of steps ends the fit, however few the demonstrations are.
            max_epochs=critic_steps,
            seed=_CRITIC_SEED,
            device="cpu",
        )
        # Without a critic yet: everything else is checked and known before it is fitted.
        self.trainer = self._make_trainer(None)
        self.config = {
            "n_batches": n_updates,
            "recipe": "learning rate falls linearly to 0",
            **{name: getattr(self.trainer, name) for name in SETTINGS},
            "optimizer": optimizer_config(self.trainer.optimizer),
            "max_gradient_norm": _MAX_GRADIENT_NORM,
            "policy": policy_config(self.trainer.policy),
            "critic": {**self.critic.config, "shared": "by all seeds; each counts its fit"},
            "deviations from the release": list(_DEVIATIONS),
        }

    def _make_trainer(self, critic: DiffusionCritic | None) -> DiffusionBC:
        setup, settings = self.setup, self._settings
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
        return DiffusionBC(
            demonstrations=setup.demonstrations,
            **setup.spaces,
            policy=policy,
            critic=critic,
            dm_coef=settings.dm_coef,
            dm_clamp="batch",
            bc_loss="mse",
            batch_size=128,
            ent_weight=0.0,
            optimizer_kwargs={"lr": settings.learning_rate},
            seed=setup.seed,
            device="cpu",
            verbose=0,
        )

    @property
    def policy(self) -> policies.ActorCriticPolicy:
        """As the base class says."""
        return self.trainer.policy

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""
        # Networks this wide train two to four times as fast so, where the processor has bfloat16.
        half_precision = th.autocast("cpu", th.bfloat16)
        self.clock.switch("critic")
        with half_precision:
            self.critic.fit(self.setup.demonstrations, progress_bar=False)
        self.clock.switch("training")
        self.trainer = self._make_trainer(self.critic)
        optimizer = self.trainer.optimizer
        optimizer.register_step_pre_hook(_clip_gradients)
        schedule = th.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=self.length
        )

        def on_batch_end() -> None:
            schedule.step()
            self.updates += 1
            with th.autocast("cpu", enabled=False):
                on_progress()

        with half_precision:
            self.trainer.train(n_batches=self.length, on_batch_end=on_batch_end, progress_bar=False)

    def measures(self) -> dict[str, float]:
        """The critic's least held-out loss, and the step that had it."""
        return critic_measures(self.critic)


def _clip_gradients(optimizer: th.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], _MAX_GRADIENT_NORM)


VARIANTS = (
    Variant(
        "diffusion_bc_paper",
        PaperDiffusionBC,
        title="DiffusionBC (paper's settings)",
        is_default=False,
    ),
)
