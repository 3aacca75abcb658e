"""Methods that learn from the demonstrations alone."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from filelock import FileLock
from imitation.algorithms import bc
from stable_baselines3.common import policies, utils
from torch import nn

from benchmarks.compare.learners import (
    Learner,
    Setup,
    optimizer_config,
    policy_config,
    quiet_logger,
    settings_for,
    settings_of,
)
from benchmarks.compare.phases import Phases, undisturbed_randomness
from benchmarks.json_files import write_json
from benchmarks.methods import DiffusionPolicy, ImplicitBC, Method
from sb3_diffbc import (
    DiffusionBC,
    DiffusionCritic,
    StandardizedActorPolicy,
    validate_demonstrations,
)
from sb3_diffbc.demonstrations.batches import fingerprint


class _CloningLearner(Learner):
    """A trainer of imitation's kind: one policy, one callback after each update."""

    trainer: bc.BC

    @property
    def policy(self) -> policies.ActorCriticPolicy:
        return self.trainer.policy

    def _counted(self, on_progress: Callable[[int], None]) -> Callable[[], None]:
        def on_batch_end() -> None:
            self.updates += 1
            on_progress(self.updates)

        return on_batch_end


class PlainBC(_CloningLearner):
    """imitation's ``BC`` with its own defaults."""

    def __init__(self, setup: Setup) -> None:
        utils.set_random_seed(setup.seed)
        self.length = setup.protocol.updates
        self.trainer = bc.BC(
            observation_space=setup.observation_space,
            action_space=setup.action_space,
            demonstrations=setup.demonstrations,
            rng=np.random.default_rng(setup.seed),
            device="cpu",
            custom_logger=quiet_logger(),
        )
        loss = self.trainer.loss_calculator
        self.config = {
            "n_batches": self.length,
            "batch_size": self.trainer.batch_size,
            "ent_weight": loss.ent_weight,
            "l2_weight": loss.l2_weight,
            "optimizer": optimizer_config(self.trainer.optimizer),
            "policy": policy_config(self.trainer.policy),
        }

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        """As the base class says."""
        self.trainer.train(
            n_batches=self.length, on_batch_end=self._counted(on_progress), progress_bar=False
        )


class _TimedDiffusionBC(DiffusionBC):
    """Charges the critic's fit to a phase of its own."""

    phases: Phases

    def _fit_critic(self, progress_bar: bool) -> None:
        if not self.dm_coef:
            return
        with self.phases("critic"):
            super()._fit_critic(progress_bar)


class WithDefaults(_CloningLearner):
    """``DiffusionBC`` with its defaults and default recipe, but for the arguments given."""

    trainer: _TimedDiffusionBC

    def __init__(self, setup: Setup, **arguments: Any) -> None:
        if setup.protocol.critic_kwargs:
            arguments["critic_kwargs"] = dict(setup.protocol.critic_kwargs)
        self.trainer = _TimedDiffusionBC(
            demonstrations=setup.demonstrations,
            observation_space=setup.observation_space,
            action_space=setup.action_space,
            seed=setup.seed,
            device="cpu",
            verbose=0,
            **arguments,
        )
        self.length = setup.protocol.updates
        # The recipe of this length, its learning rate included.
        self.trainer.DEFAULT_N_BATCHES = self.length
        batch_size = self.trainer.recipe_batch_size
        self.config = {
            "n_batches": self.length,
            "recipe": "train() with its defaults: the learning rate falls linearly to 0",
            **settings_of(self.trainer),
            "batch_size": batch_size,
            "minibatch_size": batch_size,
            "first_learning_rate": self.trainer.DEFAULT_LEARNING_RATE,
            "optimizer": optimizer_config(self.trainer.optimizer),
            "policy": policy_config(self.trainer.policy),
        }
        if self.trainer.dm_coef:
            self.config["critic"] = self._critic_config(setup)

    def _critic_config(self, setup: Setup) -> dict[str, Any]:
        # A critic draws its weights, and the pair of this row must not notice.
        with undisturbed_randomness():
            return DiffusionCritic(
                setup.observation_space,
                setup.action_space,
                models=self.trainer.critic_models,
                device="cpu",
                **self.trainer.critic_kwargs,
            ).config

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        """As the base class says."""
        self.trainer.phases = phases
        self.trainer.train(on_batch_end=self._counted(on_progress), progress_bar=False)


def diffusion_bc(setup: Setup) -> Learner:
    """``DiffusionBC``, nothing but defaults."""
    return WithDefaults(setup)


def bc_paired(setup: Setup) -> Learner:
    """The same without L_DM: it differs from :func:`diffusion_bc` in nothing else.

    Weights, batches and recipe come from the same seed in the same order; with ``dm_coef=0``
    ``DiffusionBC`` is imitation's ``BC`` to the bit.
    """
    return WithDefaults(setup, dm_coef=0.0)


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


class WithPaperSettings(_CloningLearner):
    """``DiffusionBC`` set as the authors' release, with shorter budgets.

    As in the release, one critic serves all seeds of a task. It is kept in the cache; each seed's
    record counts its whole fit.
    """

    trainer: DiffusionBC

    def __init__(self, setup: Setup) -> None:
        settings = PAPER_SETTINGS.get(setup.task.name, PAPER_SETTINGS["walker"])
        self._setup, self._settings = setup, settings
        self.length = setup.protocol.paper_updates
        self._critic = DiffusionCritic(
            setup.observation_space,
            setup.action_space,
            models="state_action",
            denoiser="release",
            width=settings.critic_width,
            depth=3,
            learning_rate=settings.critic_learning_rate,
            batch_size=128,
            n_steps=setup.protocol.paper_critic_steps,
            # Only the number of steps ends the fit, however few the demonstrations are.
            max_epochs=setup.protocol.paper_critic_steps,
            seed=_CRITIC_SEED,
            device="cpu",
        )
        # Without a critic yet: everything else is checked and known before it is fitted.
        self.trainer = self._make_trainer(None)
        self.config = {
            "n_batches": self.length,
            "recipe": "learning rate falls linearly to 0",
            **settings_of(self.trainer),
            "optimizer": optimizer_config(self.trainer.optimizer),
            "max_gradient_norm": _MAX_GRADIENT_NORM,
            "policy": policy_config(self.trainer.policy),
            "critic": {**self._critic.config, "shared": "by all seeds; each counts its fit"},
            "deviations from the release": list(_DEVIATIONS),
        }

    def _make_trainer(self, critic: DiffusionCritic | None) -> DiffusionBC:
        setup, settings = self._setup, self._settings
        utils.set_random_seed(setup.seed)
        policy = StandardizedActorPolicy.from_demonstrations(
            setup.demonstrations,
            setup.observation_space,
            setup.action_space,
            net_arch={"pi": list(settings.net_arch), "vf": []},
            activation_fn=nn.Tanh,
        )
        # The release's policy is deterministic; a spread would count in the gradient's norm.
        if isinstance(setup.action_space, gym.spaces.Box):
            policy.log_std.requires_grad_(False)
        return DiffusionBC(
            demonstrations=setup.demonstrations,
            observation_space=setup.observation_space,
            action_space=setup.action_space,
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

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        """As the base class says."""
        # Networks this wide train two to four times as fast so, where the processor has bfloat16.
        half_precision = th.autocast("cpu", th.bfloat16)
        with half_precision:
            critic = shared_critic(self._critic, self._setup, phases)
        self.trainer = self._make_trainer(critic)
        optimizer = self.trainer.optimizer
        optimizer.register_step_pre_hook(_clip_gradients)
        schedule = th.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=self.length
        )
        counted = self._counted(on_progress)

        def on_batch_end() -> None:
            schedule.step()
            with th.autocast("cpu", enabled=False):
                counted()

        with half_precision:
            self.trainer.train(n_batches=self.length, on_batch_end=on_batch_end, progress_bar=False)


_MAX_GRADIENT_NORM = 0.5


def _clip_gradients(optimizer: th.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], _MAX_GRADIENT_NORM)


def shared_critic(critic: DiffusionCritic, setup: Setup, phases: Phases) -> DiffusionCritic:
    """Fits a critic, or takes the one that was fitted with the same settings to the same data.

    Args:
        critic: the critic to fit; its own seed fixes it.
        setup: demonstrations, and the cache to look in.
        phases: charged with the fit, as "critic", whoever made it; and with waiting and reading,
            as "prepare".

    Returns:
        The critic.
    """
    # The fingerprint covers arrays; the configuration names settings and budget.
    data = fingerprint(setup.demonstrations)
    content = json.dumps([data, critic.config], sort_keys=True).encode()
    name = f"{setup.task.key}-{hashlib.sha256(content).hexdigest()[:16]}"
    path = setup.cache / f"{name}.safetensors"
    times_path = path.with_suffix(".json")
    setup.cache.mkdir(parents=True, exist_ok=True)
    with phases("prepare"), FileLock(path.with_suffix(".lock")):
        # The times are written last: where they are, the critic is whole.
        if not times_path.is_file():
            with phases("critic"):
                critic.fit(setup.demonstrations, progress_bar=False)
            critic.save(path)
            write_json(times_path, [phases.seconds["critic"], phases.cpu_seconds["critic"]])
        else:
            phases.add("critic", *json.loads(times_path.read_text()))
        return DiffusionCritic.load(path, device="cpu")


class WithMethod(Learner):
    """A method of ``benchmarks.methods`` with as many updates as DiffusionBC makes."""

    def __init__(self, setup: Setup, cls: type[Method], **arguments: Any) -> None:
        self.length = setup.protocol.updates
        self._demonstrations = setup.demonstrations
        self.method = cls(
            setup.observation_space,
            setup.action_space,
            seed=setup.seed,
            device="cpu",
            **arguments,
        )
        self.config = {
            "n_batches": self.length,
            **settings_for(cls, arguments),
        }
        validate_demonstrations(
            setup.demonstrations,
            observation_space=setup.observation_space,
            action_space=setup.action_space,
            batch_size=self.method.batch_size,
        )

    @property
    def policy(self) -> policies.BasePolicy:
        return self.method.policy

    @property
    def n_parameters(self) -> int:
        return self.method.n_parameters

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        """As the base class says."""

        def on_batch_end() -> None:
            self.updates += 1
            on_progress(self.updates)

        self.method.fit(self._demonstrations, self.length, on_batch_end)


IMPLICIT_BC: Mapping[str, Any] = MappingProxyType(
    {"batch_size": 32, "n_counter_examples": 48, "n_samples": 256, "n_iterations": 3}
)
"""Smaller than the paper's, so that training costs about three times DiffusionBC's."""

DDIM_STEPS = 10


def implicit_bc(setup: Setup) -> Learner:
    """Implicit BC."""
    return WithMethod(setup, ImplicitBC, **IMPLICIT_BC)


def diffusion_policy(setup: Setup) -> Learner:
    """Diffusion Policy, sampling by DDPM over all levels."""
    return WithMethod(setup, DiffusionPolicy, sampler="ddpm", n_inference_steps=None)


def diffusion_policy_ddim(setup: Setup) -> Learner:
    """Diffusion Policy, sampling by DDIM."""
    return WithMethod(setup, DiffusionPolicy, sampler="ddim", n_inference_steps=DDIM_STEPS)
