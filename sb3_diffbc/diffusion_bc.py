"""Diffusion Model-Augmented Behavioral Cloning on top of imitation's BC."""

import dataclasses
import os
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from imitation.algorithms import bc
from imitation.data import types
from imitation.util import logger as imit_logger
from stable_baselines3.common import policies, utils, vec_env

from sb3_diffbc import checkpoints
from sb3_diffbc.checkpoints.policies import OPTIMIZERS
from sb3_diffbc.checkpoints.values import (
    is_count,
    is_flag,
    is_number,
    is_object,
    is_text,
    optional,
    require_fields,
)
from sb3_diffbc.critic import DiffusionCritic, PairEncoder
from sb3_diffbc.critic.critic import MODELS, check_choice, check_size
from sb3_diffbc.demonstrations import (
    DemonstrationWarning,
    load_demonstrations,
    validate_demonstrations,
)
from sb3_diffbc.demonstrations.batches import (
    PassState,
    PrefetchedBatches,
    TransitionBatches,
    fingerprint,
    make_batches,
)
from sb3_diffbc.evaluation import Env, EvaluationResult, evaluate_episodes
from sb3_diffbc.losses import (
    BC_LOSSES,
    DM_CLAMPS,
    CompiledLoss,
    DiffusionBCLoss,
    DiffusionBCMetrics,
    DiffusionLoss,
    NoiseSource,
    half_squared_norm,
)
from sb3_diffbc.policies import StandardizedActorPolicy, save_policy, unusable_lr_schedule

_BC_BATCH_SIZE = 32  # imitation's default

# An iterable of batches may be endless: this many samples tell its statistics well enough.
_MAX_PEEKED_TRANSITIONS = 200_000

# What a trainer's checkpoint holds beside tensors, with the check of each value.
_ARGUMENTS = {
    "batch_size": optional(is_count),
    "minibatch_size": optional(is_count),
    "ent_weight": is_number,
    "l2_weight": is_number,
    "bc_coef": is_number,
    "dm_coef": is_number,
    "bc_loss": is_text,
    "dm_clamp": is_text,
    "critic_models": is_text,
    "critic_kwargs": is_object,
}
_PASS = {
    "pass_seed": optional(is_count),
    "position": is_count,
    "batch_size": is_count,
    "fingerprint": is_text,
}
_PROGRESS = {
    "n_updates": is_count,
    "recipe_updates": is_count,
    "tensorboard_step": is_count,
    "demonstrations": optional(is_object),
}
_CONTENT = {
    "observation_space": is_object,
    "action_space": is_object,
    "arguments": is_object,
    "seed": optional(is_count),
    "policy": is_object,
    "policy_is_default": is_flag,
    "has_statistics": is_flag,
    "optimizer": is_object,
    "learning_rate_is_default": is_flag,
    "rng": is_object,
    "progress": is_object,
    "critic": optional(is_object),
}
_CRITIC_OWNERSHIP = {"is_own": is_flag, "is_current": is_flag}


@dataclasses.dataclass(frozen=True)
class _InterruptedPass:
    """Where a saved trainer was in its demonstrations."""

    pass_seed: int | None
    position: int
    batch_size: int
    fingerprint: str

    def resume(self, batches: TransitionBatches | PrefetchedBatches) -> bool:
        """Takes the pass up again if these are the same demonstrations; says whether."""
        if not isinstance(batches, TransitionBatches):
            # There is no telling, and an iterable of batches has no place to go back to.
            return True
        if (batches.batch_size, fingerprint(batches.transitions)) != (
            self.batch_size,
            self.fingerprint,
        ):
            return False
        batches.state = PassState(self.pass_seed, self.position)
        return True


class _DefaultRecipe:
    """The learning rate of a default :meth:`DiffusionBC.train`: linear, down to 0.

    Args:
        optimizer: whose rate it sets.
        learning_rate: the first rate; the optimiser's own if None.
        n_updates: length of the recipe.
        done: updates that an interrupted run has already made.
    """

    def __init__(
        self,
        optimizer: th.optim.Optimizer,
        learning_rate: float | None,
        n_updates: int,
        done: int,
    ) -> None:
        self._optimizer = optimizer

        def factor(group: dict[str, Any]) -> Callable[[int], float]:
            own = group.get("initial_lr", group["lr"])
            first = 1.0 if learning_rate is None else learning_rate / own
            # A function of the update's number, so that an interrupted run goes on to the bit.
            return lambda n: first * max(0.0, 1 - n / n_updates)

        self._schedule = th.optim.lr_scheduler.LambdaLR(
            optimizer, [factor(group) for group in optimizer.param_groups], last_epoch=done - 1
        )

    def step(self) -> int:
        """Sets the next rate; returns the number of updates made."""
        self._schedule.step()
        return self._schedule.last_epoch

    def finish(self) -> None:
        """Gives the optimiser its own rate back."""
        for group in self._optimizer.param_groups:
            group["lr"] = group.pop("initial_lr")


class DiffusionBCLogger(bc.BCLogger):
    """imitation's logger, with the terms of L_DM under ``dm/...``."""

    def __init__(
        self, logger: imit_logger.HierarchicalLogger, policy: policies.ActorCriticPolicy
    ) -> None:
        super().__init__(logger)
        self._policy = policy

    def log_batch(
        self,
        batch_num: int,
        batch_size: int,
        num_samples_so_far: int,
        training_metrics: DiffusionBCMetrics,  # type: ignore[override]
        rollout_stats: Mapping[str, float],
    ) -> None:
        """Records a batch as imitation does, filling in what is only computed when logged."""
        l2_norm = training_metrics.l2_norm
        if l2_norm is None:
            with th.no_grad():
                l2_norm = half_squared_norm(self._policy)
        if training_metrics.mse is not None:
            self._logger.record("bc/mse", float(training_metrics.mse.detach()))
        if training_metrics.dm is not None:
            for name in ("loss", "agent", "expert", "active"):
                self._logger.record(
                    f"dm/{name}", float(getattr(training_metrics.dm, name).detach())
                )
        names = [field.name for field in dataclasses.fields(bc.BCTrainingMetrics)]
        values = {name: getattr(training_metrics, name) for name in names} | {"l2_norm": l2_norm}
        plain = bc.BCTrainingMetrics(
            **{k: None if v is None else v.detach() for k, v in values.items()}  # type: ignore[arg-type]
        )
        super().log_batch(batch_num, batch_size, num_samples_so_far, plain, rollout_stats)


class DiffusionBC(bc.BC):
    """Diffusion Model-Augmented Behavioral Cloning (DBC), https://arxiv.org/abs/2302.13335.

    A diffusion critic is fitted to the expert's (observation, action) pairs, then frozen; the
    policy learns by behavioural cloning while the critic pulls its actions towards the expert's
    distribution: ``L = bc_coef · L_BC + dm_coef · L_DM``. Only the policy is needed afterwards.

    It is an ``imitation.algorithms.bc.BC``: all its arguments keep their names and meanings, and
    DAgger, callbacks, rollout logging and gradient accumulation work as with BC. With
    ``dm_coef=0`` it is BC, on batches that are gathered faster.

    Args:
        demonstrations: what imitation's BC takes (transitions, trajectories, any iterable of
            batches), or what :func:`load_demonstrations` takes (a path, a bundled set's name).
        env: environment id, ``gymnasium.Env`` or ``VecEnv``. Gives the two spaces, and is what
            :meth:`evaluate` runs in. Not needed for training.
        observation_space: needed only without ``env``.
        action_space: needed only without ``env``.
        rng: used for rollouts while training, as in BC; made from ``seed`` if None.
        policy: an SB3 actor-critic policy, used as it is. By default a
            :class:`StandardizedActorPolicy`, which keeps the demonstrations' statistics inside.
        critic: a fitted :class:`DiffusionCritic`. Without one, :meth:`train` first fits its own
            to the demonstrations, once; again only after :meth:`set_demonstrations`.
        bc_coef: weight of the cloning loss, the paper's λ_BC.
        dm_coef: weight of the diffusion loss, the paper's λ_DM; 0 turns it off. By default 1 for
            Box actions and 0.1 otherwise, where a policy far from certain scores so badly that a
            larger weight drowns the cloning loss.
        bc_loss: ``"nll"``, imitation's negative log likelihood, or ``"mse"``, the paper's
            squared error of standardised actions, beside which the spread of a Gaussian policy
            learns from the likelihood around its mean.
        dm_clamp: ``"sample"`` clamps L_DM at 0 per sample (the paper's formula), ``"batch"`` on
            batch means (the authors' release), ``"none"`` not at all.
        critic_models: what the trainer's own critic models: ``"action"``, p(a | s), or
            ``"state_action"``, p(s, a), as in the paper. By default p(a | s) for Box actions,
            where it did better (see the README), and p(s, a) otherwise: a sharp p(a | s) over
            one-hot codes holds an untrained policy at even odds for long.
        critic_kwargs: further arguments of the trainer's own :class:`DiffusionCritic`.
        batch_size: samples per update. By default 32, as in BC; the default recipe of
            :meth:`train` then takes :attr:`DEFAULT_BATCH_SIZE`.
        minibatch_size: samples per gradient accumulation step; a factor of ``batch_size``. With
            it, the default recipe keeps to ``batch_size`` too.
        optimizer_cls: optimiser of the policy.
        optimizer_kwargs: its arguments. With Adam and no ``"lr"`` among them, the default recipe
            starts at :attr:`DEFAULT_LEARNING_RATE`, and other trainings have Adam's own rate.
        ent_weight: weight of the entropy bonus (of ``bc_loss="nll"``).
        l2_weight: weight of half the squared norm of the parameters.
        seed: seeds Python, NumPy and torch, as in SB3.
        verbose: 0 prints no logs, 1 what imitation's BC prints. Progress bars are an argument of
            :meth:`train`.
        tensorboard_log: folder for TensorBoard logs.
        compile: whether the loss goes through ``torch.compile``. Results are the same up to
            rounding. The first update takes some ten seconds longer, the others less time. Where
            that fails (it needs a C++ compiler, and observations of a Box), a warning says so
            and training goes on without. Not part of a checkpoint.
        device: where policy and critic live; ``"auto"`` takes a GPU where there is one.
        custom_logger: where to log; excludes ``tensorboard_log``.

    Raises:
        ValueError: for an argument outside its range, spaces that are missing or differ, a
            critic that is not fitted or has other spaces, or demonstrations that do not fit.
        TypeError: for demonstrations or an environment of an unknown kind.
    """

    DEFAULT_N_BATCHES = 20_000
    """Updates of the default recipe: a :meth:`train` call without ``n_epochs`` and
    ``n_batches``."""

    DEFAULT_BATCH_SIZE = 128
    """Samples per update of the default recipe, where neither ``batch_size`` nor
    ``minibatch_size`` was given; all demonstrations if they are fewer."""

    DEFAULT_LEARNING_RATE = 3e-4
    """The default recipe's first learning rate, where no optimiser and no rate were given."""

    def __init__(
        self,
        *,
        demonstrations: Any = None,
        env: str | gym.Env | vec_env.VecEnv | None = None,
        observation_space: gym.Space | None = None,
        action_space: gym.Space | None = None,
        rng: np.random.Generator | None = None,
        policy: policies.ActorCriticPolicy | None = None,
        critic: DiffusionCritic | None = None,
        bc_coef: float = 1.0,
        dm_coef: float | None = None,
        bc_loss: str = "nll",
        dm_clamp: str = "sample",
        critic_models: str | None = None,
        critic_kwargs: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        minibatch_size: int | None = None,
        optimizer_cls: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        ent_weight: float = 1e-3,
        l2_weight: float = 0.0,
        seed: int | None = None,
        verbose: int = 1,
        tensorboard_log: str | os.PathLike[str] | None = None,
        compile: bool = False,
        device: str | th.device = "auto",
        custom_logger: imit_logger.HierarchicalLogger | None = None,
    ) -> None:
        check_choice("bc_loss", bc_loss, BC_LOSSES)
        check_choice("dm_clamp", dm_clamp, DM_CLAMPS)
        if critic_models is not None:
            check_choice("critic_models", critic_models, MODELS)
        for name, value in {"bc_coef": bc_coef, "dm_coef": dm_coef}.items():
            if value is not None and not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value} must be a finite number of at least 0.")
        for name, size in {"batch_size": batch_size, "minibatch_size": minibatch_size}.items():
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1.")
        logger = _make_logger(verbose, tensorboard_log, custom_logger)
        if seed is not None:
            utils.set_random_seed(seed)
        self.seed = seed
        self.compile = compile
        self.env = env
        self.observation_space, self.action_space = _resolve_spaces(
            env, observation_space, action_space
        )
        self.device = utils.get_device(device)
        self.ent_weight, self.l2_weight = ent_weight, l2_weight
        self.bc_loss, self.dm_clamp = bc_loss, dm_clamp
        is_box = isinstance(self.action_space, gym.spaces.Box)
        self.bc_coef = float(bc_coef)
        self.dm_coef = float(dm_coef) if dm_coef is not None else (1.0 if is_box else 0.1)
        self.critic_models = critic_models or ("action" if is_box else "state_action")
        self.critic_kwargs = dict(critic_kwargs or {})
        self.critic = self._check_critic(critic)
        self._critic_is_own = critic is None
        self._critic_is_current = critic is not None
        self._policy_is_default = policy is None
        if policy is not None:
            self._check_spaces("policy", policy)
        self._encoder = PairEncoder(self.observation_space, self.action_space).to(self.device)
        self._has_statistics = False
        self._noise: NoiseSource | None = None
        self._interrupted_pass: _InterruptedPass | None = None
        self._batches: TransitionBatches | PrefetchedBatches | None = None
        self._batch_size_is_default = batch_size is None and minibatch_size is None
        self._learning_rate_is_default = optimizer_cls is th.optim.Adam and "lr" not in (
            optimizer_kwargs or {}
        )
        self.n_updates = 0
        self._recipe_updates = 0
        super().__init__(
            observation_space=self.observation_space,
            action_space=self.action_space,
            rng=np.random.default_rng(seed) if rng is None else rng,
            policy=self._default_policy() if policy is None else policy,
            demonstrations=demonstrations,
            batch_size=_BC_BATCH_SIZE if batch_size is None else batch_size,
            minibatch_size=minibatch_size,
            optimizer_cls=optimizer_cls,
            optimizer_kwargs=optimizer_kwargs,
            ent_weight=ent_weight,
            l2_weight=l2_weight,
            device=device,
            custom_logger=logger,
        )
        self._bc_logger = DiffusionBCLogger(self.logger, self.policy)

    @property
    def logger(self) -> imit_logger.HierarchicalLogger:
        """Where everything is logged; DAgger puts its own here."""
        return self._logger

    @logger.setter
    def logger(self, value: imit_logger.HierarchicalLogger) -> None:
        self._logger = value
        if "_bc_logger" in vars(self):
            self._bc_logger._logger = value

    def _check_critic(self, critic: DiffusionCritic | None) -> DiffusionCritic | None:
        if critic is None:
            # Made only to be thrown away: wrong options are reported now, not in train().
            self._new_critic()
            return None
        if self.critic_kwargs:
            raise ValueError("critic_kwargs are for the trainer's own critic, but critic is given.")
        if not critic.is_fitted:
            raise ValueError("critic is not fitted: call critic.fit(demonstrations) first.")
        self._check_spaces("critic", critic)
        return critic.to(self.device)

    def _check_spaces(self, owner_name: str, owner: Any) -> None:
        for name in ("observation_space", "action_space"):
            found, expected = getattr(owner, name), getattr(self, name)
            if found != expected:
                raise ValueError(f"{owner_name}.{name} is {found}: expected {expected}.")

    def _new_critic(self) -> DiffusionCritic:
        # A fork, so that runs with and without L_DM shuffle their demonstrations alike.
        with th.random.fork_rng(devices=[]):
            return DiffusionCritic(
                self.observation_space,
                self.action_space,
                models=self.critic_models,
                device=self.device,
                **self.critic_kwargs,
            )

    def _default_policy(self) -> StandardizedActorPolicy:
        return StandardizedActorPolicy(
            self.observation_space, self.action_space, unusable_lr_schedule
        )

    def set_demonstrations(self, demonstrations: Any) -> None:
        """Sets the demonstrations; an own critic is fitted to them at the next :meth:`train`.

        Args:
            demonstrations: as in the constructor.

        Raises:
            ValueError: if they do not fit the spaces or are fewer than a batch.
            TypeError: if they are of an unknown kind.
        """
        if isinstance(demonstrations, str | os.PathLike):
            demonstrations = load_demonstrations(demonstrations)
        self._use_own_batch_size()
        batches = make_batches(demonstrations, self.minibatch_size)
        if isinstance(batches, TransitionBatches):
            self._validate(batches.transitions)
        self._set_batches(batches)
        if self._goes_on_in(self._interrupted_pass):
            self._interrupted_pass = None
            return
        self._use_own_batch_size()
        self._critic_is_current = not self._critic_is_own

    def _goes_on_in(self, interrupted: _InterruptedPass | None) -> bool:
        """Takes up the pass in which a saved trainer was, if it was in these demonstrations."""
        if interrupted is None:
            return False
        if interrupted.batch_size != self.batch_size:
            self._use_batch_size(self.recipe_batch_size)
        assert self._batches is not None
        return interrupted.resume(self._batches)

    def _set_batches(self, batches: TransitionBatches | PrefetchedBatches) -> None:
        self._batches = batches
        self._demo_data_loader = batches  # type: ignore[assignment]

    def _use_own_batch_size(self) -> None:
        if self._batch_size_is_default:
            self._use_batch_size(_BC_BATCH_SIZE)

    @property
    def recipe_batch_size(self) -> int:
        """Samples per update of the default recipe, with the present demonstrations."""
        if self._batch_size_is_default and isinstance(self._batches, TransitionBatches):
            return min(self.DEFAULT_BATCH_SIZE, len(self._batches.transitions))
        # The batches of an iterable are as large as they are.
        return self.batch_size

    def _use_batch_size(self, batch_size: int) -> None:
        """Has updates take so many samples; a pass that is under way ends."""
        if batch_size == self.batch_size:
            return
        self.batch_size = self.minibatch_size = batch_size
        if isinstance(self._batches, TransitionBatches):
            self._set_batches(type(self._batches)(self._batches.transitions, batch_size))

    def _validate(self, transitions: types.TransitionsMinimal) -> None:
        validate_demonstrations(
            transitions,
            observation_space=self.observation_space,
            action_space=self.action_space,
            batch_size=self.minibatch_size,
        )

    def train(
        self,
        *,
        n_epochs: int | None = None,
        n_batches: int | None = None,
        on_epoch_end: Callable[[], None] | None = None,
        on_batch_end: Callable[[], None] | None = None,
        log_interval: int = 500,
        log_rollouts_venv: vec_env.VecEnv | None = None,
        log_rollouts_n_episodes: int = 5,
        progress_bar: bool = True,
        reset_tensorboard: bool = False,
    ) -> None:
        """Fits the critic if that is due, then trains the policy by ``BC.train``.

        Arguments are those of imitation's ``BC.train``. Without ``n_epochs`` and ``n_batches``
        the default recipe runs: :attr:`DEFAULT_N_BATCHES` updates of
        :attr:`DEFAULT_BATCH_SIZE` samples, while the learning rate falls linearly from
        :attr:`DEFAULT_LEARNING_RATE` to 0 (where the constructor was given a batch size, or an
        optimiser or rate, it has these); a run of it that was interrupted goes on where it
        stopped. With either of them batches and learning rate are as in BC. A call with
        ``n_batches`` goes on in the pass through the demonstrations where the last one of them
        stopped; a call with ``n_epochs`` starts with a new pass.

        Args:
            n_epochs: complete passes through the demonstrations.
            n_batches: updates.
            on_epoch_end: called after each pass.
            on_batch_end: called after each update.
            log_interval: updates between logs.
            log_rollouts_venv: environments for the logged rollouts.
            log_rollouts_n_episodes: their number.
            progress_bar: whether to show progress of the critic's fit and of training.
            reset_tensorboard: whether the logged steps start at 0 again.

        Raises:
            ValueError: if both ``n_epochs`` and ``n_batches`` are given, one is below 1, or
                there are no demonstrations.
        """
        if n_epochs is not None and n_batches is not None:
            raise ValueError(
                "Must provide exactly one of `n_epochs` and `n_batches` arguments "
                f"(or neither, for {self.DEFAULT_N_BATCHES} batches)."
            )
        for name, value in {"n_epochs": n_epochs, "n_batches": n_batches}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if self._batches is None:
            raise ValueError(
                "demonstrations are missing: give them to the constructor or to "
                "set_demonstrations before train."
            )
        recipe = None
        if n_epochs is None and n_batches is None:
            recipe = _DefaultRecipe(
                self.optimizer,
                self.DEFAULT_LEARNING_RATE if self._learning_rate_is_default else None,
                self.DEFAULT_N_BATCHES,
                self._recipe_updates,
            )
            n_batches = self.DEFAULT_N_BATCHES - self._recipe_updates
            if n_batches <= 0:  # stopped after its last update
                self._finish(recipe)
                return
            self._use_batch_size(self.recipe_batch_size)
        else:
            self._use_own_batch_size()
        self._take_statistics()
        self._fit_critic(progress_bar)
        loss = self._make_loss()
        self.loss_calculator = loss  # type: ignore[assignment]
        if isinstance(self._batches, TransitionBatches) and n_batches is None:
            self._batches.state = PassState()
        self._interrupted_pass = None

        def after_update() -> None:
            self.n_updates += 1
            if recipe is not None:
                self._recipe_updates = recipe.step()
            if on_batch_end is not None:
                on_batch_end()

        super().train(
            n_epochs=n_epochs,
            n_batches=n_batches,
            on_epoch_end=on_epoch_end,
            on_batch_end=after_update,
            log_interval=log_interval,
            log_rollouts_venv=log_rollouts_venv,
            log_rollouts_n_episodes=log_rollouts_n_episodes,
            progress_bar=progress_bar,
            reset_tensorboard=reset_tensorboard,
        )
        if isinstance(loss, CompiledLoss) and loss.has_failed:
            self.compile = False  # it would fail again
        if recipe is not None:
            self._finish(recipe)

    def _finish(self, recipe: _DefaultRecipe) -> None:
        recipe.finish()
        self._recipe_updates = 0
        self._use_own_batch_size()

    def _peek(self) -> types.TransitionsMinimal:
        """Demonstrations to take statistics from and to fit the critic to."""
        assert self._batches is not None  # checked by train
        if isinstance(self._batches, TransitionBatches):
            return self._batches.transitions
        transitions = self._batches.peek(_MAX_PEEKED_TRANSITIONS)
        self._validate(transitions)
        return transitions

    def _take_statistics(self) -> None:
        """Gives the default policy the demonstrations' statistics, once."""
        needed = self._policy_is_default or self.bc_loss == "mse"
        if self._has_statistics or not needed:
            return
        transitions = self._peek()
        self._encoder.fit(transitions.obs, transitions.acts)
        if isinstance(self.policy, StandardizedActorPolicy) and self._policy_is_default:
            self.policy.set_statistics(self._encoder)
        self._has_statistics = True

    def _fit_critic(self, progress_bar: bool) -> None:
        if not self.dm_coef or self._critic_is_current:
            return
        self.critic = self._new_critic()
        with warnings.catch_warnings():
            # The trainer has already said what it found in these demonstrations.
            warnings.simplefilter("ignore", DemonstrationWarning)
            self.critic.fit(self._peek(), progress_bar=progress_bar, logger=self.logger)
        self._critic_is_current = True
        self._noise = None

    def _make_loss(self) -> DiffusionBCLoss | CompiledLoss:
        diffusion = None
        if self.dm_coef and self.critic is not None:
            if self._noise is None:
                with th.random.fork_rng(devices=[]):
                    seed = int(th.randint(2**31, ()))
                self._noise = NoiseSource(self.critic, self.batch_size, seed)
            self._noise.batch_size = self.batch_size
            self._noise.start_batch()
            diffusion = DiffusionLoss(self.critic, self._noise, self.dm_clamp)
        loss = DiffusionBCLoss(
            bc_coef=self.bc_coef,
            ent_weight=self.ent_weight,
            l2_weight=self.l2_weight,
            bc_loss=self.bc_loss,
            encoder=self._encoder,
            dm_coef=self.dm_coef,
            diffusion=diffusion,
        )
        return CompiledLoss(loss) if self.compile else loss

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """The policy's action, as SB3's ``predict``.

        Args:
            observation: one observation or a batch of them.
            state: unused, as for every policy without memory.
            episode_start: likewise.
            deterministic: whether to take the mode rather than a sample.

        Returns:
            Action or batch of actions, and ``state``.
        """
        return self.policy.predict(observation, state, episode_start, deterministic)

    def evaluate(
        self,
        n_episodes: int = 100,
        *,
        env: Env | None = None,
        seed: int = 0,
        deterministic: bool = True,
        progress_bar: bool = False,
    ) -> EvaluationResult:
        """Runs the policy for episodes that are fixed by their seeds.

        Args:
            n_episodes: number of episodes.
            env: where; the constructor's environment if None.
            seed: of the first episode; the following ones count up.
            deterministic: whether to take the policy's mode rather than a sample.
            progress_bar: whether to show finished episodes.

        Returns:
            Returns, lengths and successes per episode.

        Raises:
            ValueError: if there is no environment.
        """
        env = self.env if env is None else env
        if env is None:
            raise ValueError("env is missing: give it to evaluate or to the constructor.")
        return evaluate_episodes(
            self.policy,
            env,
            n_episodes=n_episodes,
            seed=seed,
            deterministic=deterministic,
            progress_bar=progress_bar,
        )

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes policy, critic, optimiser, random states and progress to one safe file.

        The demonstrations are not in it, only their hash. It may be called from a callback in
        the middle of training.

        Args:
            path: where to; ``.safetensors`` is appended if there is no suffix.

        Returns:
            The path written.

        Raises:
            TypeError: if an argument of the trainer cannot be written as JSON.
        """
        optimizer_tensors, optimizer = checkpoints.optimizer_to_state(self.optimizer, "optimizer/")
        tensors = {
            **checkpoints.module_state(self.policy, "policy/"),
            **checkpoints.module_state(self._encoder, "encoder/"),
            **optimizer_tensors,
            "rng/torch": th.get_rng_state(),
        }
        content = {
            "observation_space": checkpoints.space_to_json(self.observation_space),
            "action_space": checkpoints.space_to_json(self.action_space),
            "arguments": self._arguments(),
            "seed": self.seed,
            "policy": checkpoints.policy_to_json(self.policy),
            "policy_is_default": self._policy_is_default,
            "has_statistics": self._has_statistics,
            "optimizer": optimizer,
            "learning_rate_is_default": self._learning_rate_is_default,
            "rng": checkpoints.numpy_rng_to_json(self.rng),
            "progress": {
                "n_updates": self.n_updates,
                "recipe_updates": self._recipe_updates,
                "tensorboard_step": self._bc_logger._tensorboard_step,
                "demonstrations": self._pass_to_json(),
            },
            "critic": None,
        }
        if self.critic is not None:
            critic_tensors, critic = self.critic.checkpoint_content()
            tensors |= {f"critic/{name}": tensor for name, tensor in critic_tensors.items()}
            content["critic"] = {
                **critic,
                "is_own": self._critic_is_own,
                "is_current": self._critic_is_current,
            }
        if self._noise is not None:
            tensors["rng/noise"] = self._noise.state
        return checkpoints.save_checkpoint(path, kind="trainer", tensors=tensors, content=content)

    def _arguments(self) -> dict[str, Any]:
        arguments = {name: getattr(self, name) for name in _ARGUMENTS}
        if self._batch_size_is_default:
            arguments |= {"batch_size": None, "minibatch_size": None}
        return arguments

    def _pass_to_json(self) -> dict[str, Any] | None:
        batches = self._batches
        if batches is None:
            # Loaded without demonstrations, and about to be saved again: they may come later.
            interrupted = self._interrupted_pass
            return None if interrupted is None else dataclasses.asdict(interrupted)
        if not isinstance(batches, TransitionBatches):
            batch_size = self.batch_size
            return {"pass_seed": None, "position": 0, "batch_size": batch_size, "fingerprint": ""}
        return {
            "pass_seed": batches.state.pass_seed,
            "position": batches.state.position,
            "batch_size": batches.batch_size,
            "fingerprint": fingerprint(batches.transitions),
        }

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        demonstrations: Any = None,
        env: str | gym.Env | vec_env.VecEnv | None = None,
        policy: policies.ActorCriticPolicy | None = None,
        optimizer_cls: type[th.optim.Optimizer] | None = None,
        verbose: int = 1,
        tensorboard_log: str | os.PathLike[str] | None = None,
        compile: bool = False,
        device: str | th.device = "auto",
        custom_logger: imit_logger.HierarchicalLogger | None = None,
    ) -> "DiffusionBC":
        """Restores a trainer that goes on where the saved one stood.

        Given the same demonstrations, ``train(n_batches=...)`` on the CPU ends with the same
        parameters as if the trainer had never been saved. For that, torch's global random
        state is set to the saved one. Nothing in the file is executed or imported.

        Args:
            path: the file.
            demonstrations: to go on training with; may be set later.
            env: as in the constructor.
            policy: an instance of the same architecture to load the weights into, for a policy
                whose class this library does not know.
            optimizer_cls: likewise for the optimiser.
            verbose: as in the constructor.
            tensorboard_log: as in the constructor.
            compile: as in the constructor.
            device: as in the constructor.
            custom_logger: as in the constructor.

        Returns:
            The trainer.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: a ``ValueError``, if it is not a trainer's checkpoint, or names a
                policy or optimiser that has to be passed.
            ValueError: if ``env`` or ``demonstrations`` do not fit.
        """
        logger = _make_logger(verbose, tensorboard_log, custom_logger)
        tensors, content = checkpoints.load_checkpoint(path, kind="trainer")
        with checkpoints.reading_content(path, "trainer"):
            _check_content(content)
            spaces: dict[str, Any] = {
                name: checkpoints.space_from_json(content[name])
                for name in ("observation_space", "action_space")
            }
        _resolve_spaces(env, **spaces)
        with checkpoints.reading_content(path, "trainer"):
            trainer = cls(
                **spaces,
                **content["arguments"],
                rng=checkpoints.numpy_rng_from_json(content["rng"]),
                policy=policy or checkpoints.policy_from_json(content["policy"], **spaces),
                optimizer_cls=optimizer_cls or _optimizer_class(content["optimizer"]["class"]),
                compile=compile,
                device=device,
                custom_logger=logger,
            )
            trainer._restore(tensors, content)
            th.Generator().set_state(tensors["rng/torch"])  # raises if it is none
        trainer.env = env
        if demonstrations is not None:
            trainer.set_demonstrations(demonstrations)
        th.set_rng_state(tensors["rng/torch"])
        return trainer

    def _restore(self, tensors: Mapping[str, th.Tensor], content: Mapping[str, Any]) -> None:
        checkpoints.load_module_state(self.policy, tensors, "policy/")
        checkpoints.load_module_state(self._encoder, tensors, "encoder/")
        checkpoints.load_optimizer_state(
            self.optimizer, tensors, content["optimizer"], "optimizer/"
        )
        self.seed = content["seed"]
        self._policy_is_default = content["policy_is_default"]
        self._has_statistics = content["has_statistics"]
        self._learning_rate_is_default = content["learning_rate_is_default"]
        progress = content["progress"]
        self.n_updates = progress["n_updates"]
        self._recipe_updates = progress["recipe_updates"]
        self._bc_logger._tensorboard_step = progress["tensorboard_step"]
        if progress["demonstrations"] is not None:
            self._interrupted_pass = _InterruptedPass(**progress["demonstrations"])
        if content["critic"] is not None:
            critic = dict(content["critic"])
            self._critic_is_own = critic.pop("is_own")
            self._critic_is_current = critic.pop("is_current")
            weights = {
                name.removeprefix("critic/"): tensor
                for name, tensor in tensors.items()
                if name.startswith("critic/")
            }
            self.critic = DiffusionCritic.from_checkpoint_content(weights, critic, self.device)
        if self.critic is not None and "rng/noise" in tensors:
            self._noise = NoiseSource(self.critic, self.batch_size, seed=0)
            self._noise.state = tensors["rng/noise"]

    def save_policy(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the policy alone, to be read by :func:`load_policy`.

        Args:
            path: where to; ``.safetensors`` is appended if there is no suffix.

        Returns:
            The path written.
        """
        return save_policy(self.policy, path)

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling, as DAgger does; an environment object stays behind."""
        state = super().__getstate__()
        if not isinstance(self.env, str):
            state["env"] = None
        return state


def _check_content(content: Mapping[str, Any]) -> None:
    """Refuses a file that lacks something, or asks for more than a trainer saves."""
    fields = {name: value for name, value in content.items() if name != "versions"}
    require_fields(fields, _CONTENT, "trainer")
    require_fields(content["arguments"], _ARGUMENTS, "trainer arguments")
    check_size(content["arguments"]["critic_kwargs"])
    require_fields(content["progress"], _PROGRESS, "trainer progress")
    if content["progress"]["demonstrations"] is not None:
        require_fields(content["progress"]["demonstrations"], _PASS, "trainer demonstrations")
    if content["critic"] is not None:
        ownership = {name: content["critic"].get(name) for name in _CRITIC_OWNERSHIP}
        require_fields(ownership, _CRITIC_OWNERSHIP, "trainer critic")


def _optimizer_class(name: str) -> type[th.optim.Optimizer]:
    classes = {cls.__name__: cls for cls in OPTIMIZERS}
    if name not in classes:
        raise checkpoints.CheckpointError(
            f"the optimiser {name!r} is unknown: pass optimizer_cls= (known: {sorted(classes)})"
        )
    return classes[name]


def _resolve_spaces(
    env: Any, observation_space: gym.Space | None, action_space: gym.Space | None
) -> tuple[gym.Space, gym.Space]:
    """The two spaces, from ``env`` or as given; both must agree where both are there."""
    if env is not None:
        found = _spaces_of(env)
        for name, space in zip(
            ("observation_space", "action_space"), (observation_space, action_space), strict=True
        ):
            if space is not None and space != found[name]:
                raise ValueError(f"{name} is {space}, but env has {found[name]}.")
        return found["observation_space"], found["action_space"]
    if observation_space is None or action_space is None:
        missing = "observation_space" if observation_space is None else "action_space"
        raise ValueError(f"{missing} is missing: give it, or env.")
    return observation_space, action_space


def _spaces_of(env: Any) -> dict[str, gym.Space]:
    if not isinstance(env, str | gym.Env | vec_env.VecEnv):
        raise TypeError(
            f"env is a {type(env).__name__}: expected an environment id, a gymnasium.Env or a "
            "VecEnv."
        )
    made = gym.make(env) if isinstance(env, str) else env
    found = {"observation_space": made.observation_space, "action_space": made.action_space}
    if isinstance(env, str):
        made.close()
    return found


def _make_logger(
    verbose: int,
    tensorboard_log: str | os.PathLike[str] | None,
    custom_logger: imit_logger.HierarchicalLogger | None,
) -> imit_logger.HierarchicalLogger:
    if custom_logger is not None:
        if tensorboard_log is not None:
            raise ValueError("Give custom_logger or tensorboard_log, not both.")
        return custom_logger
    formats = ["stdout"] if verbose else []
    if tensorboard_log is not None:
        formats.append("tensorboard")
    return imit_logger.configure(tensorboard_log, formats)
