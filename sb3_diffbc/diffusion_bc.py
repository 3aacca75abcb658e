"""Diffusion Model-Augmented Behavioral Cloning on top of imitation's BC."""

import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch as th
from imitation.data import types
from imitation.util import logger as imit_logger
from pydantic import JsonValue
from stable_baselines3.common import policies, utils, vec_env

from sb3_diffbc import trainer_state
from sb3_diffbc.after_training import AfterTraining
from sb3_diffbc.critic import DiffusionCritic, PairEncoder
from sb3_diffbc.demonstrations import (
    DemonstrationWarning,
    load_demonstrations,
    validate_demonstrations,
)
from sb3_diffbc.demonstrations.batches import (
    PassState,
    TransitionBatches,
    fingerprint,
    make_batches,
)
from sb3_diffbc.evaluation import resolve_spaces
from sb3_diffbc.logger import DiffusionBCLogger, make_logger
from sb3_diffbc.losses import DiffusionBCLoss, DiffusionLoss
from sb3_diffbc.policies import StandardizedActorPolicy, unusable_lr_schedule
from sb3_diffbc.schema import NonNegativeFloat, Number, PositiveInt, checked_arguments

_BC_BATCH_SIZE = 32  # imitation's default

# An iterable of batches may be endless: this many samples tell its statistics well enough.
_MAX_PEEKED_TRANSITIONS = 200_000


class DiffusionBC(AfterTraining, trainer_state.ResumableBC):
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
            Box actions and 0.1 otherwise, where L_DM of an untrained policy is many times L_BC.
        bc_loss: ``"nll"``, imitation's negative log likelihood, or ``"mse"``, the paper's
            squared error of standardised actions, beside which the spread of a Gaussian policy
            learns from the likelihood around its mean.
        dm_clamp: ``"sample"`` clamps L_DM at 0 per sample (the paper's formula), ``"batch"`` on
            batch means (the authors' release), ``"none"`` not at all.
        critic_models: what the trainer's own critic models: ``"action"``, p(a | s), or
            ``"state_action"``, p(s, a), as in the paper. By default p(a | s) for Box actions and
            p(s, a) otherwise, where L_DM of a sharp p(a | s) over one-hot codes keeps the
            probabilities of an untrained policy equal for long.
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
            rounding. The first update takes some ten seconds longer, the others less time. It
            needs a C++ compiler, and observations of a Box; torch's own errors come through. Not
            part of a checkpoint.
        device: where policy and critic live; ``"auto"`` takes a GPU where there is one.
        custom_logger: where to log; excludes ``tensorboard_log``.

    Raises:
        ValueError: for an argument outside its range, spaces that are missing or differ, a
            critic that is not fitted or has other spaces, or demonstrations that do not fit.
        TypeError: for an argument of another type.
    """

    DEFAULT_N_BATCHES = 20_000
    """Updates of the default recipe: :meth:`train` without ``n_epochs`` and ``n_batches``."""

    DEFAULT_BATCH_SIZE = 128
    """Samples per update of the default recipe, where no size was given; all if they are fewer."""

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
        bc_coef: NonNegativeFloat = 1.0,
        dm_coef: NonNegativeFloat | None = None,
        bc_loss: Literal["nll", "mse"] = "nll",
        dm_clamp: Literal["sample", "batch", "none"] = "sample",
        critic_models: Literal["state_action", "action"] | None = None,
        critic_kwargs: Mapping[str, JsonValue] | None = None,
        batch_size: PositiveInt | None = None,
        minibatch_size: PositiveInt | None = None,
        optimizer_cls: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        ent_weight: Number = 1e-3,
        l2_weight: Number = 0.0,
        seed: int | None = None,
        verbose: int = 1,
        tensorboard_log: str | os.PathLike[str] | None = None,
        compile: bool = False,
        device: str | th.device = "auto",
        custom_logger: imit_logger.HierarchicalLogger | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in self.saved_arguments}
        self.arguments = checked_arguments(DiffusionBC.__init__, given)
        logger = make_logger(verbose, tensorboard_log, custom_logger)
        if seed is not None:
            utils.set_random_seed(seed)
        self.compile = compile
        self.env = env
        self.observation_space, self.action_space = resolve_spaces(
            env, observation_space, action_space
        )
        self.device = utils.get_device(device)
        is_box = isinstance(self.action_space, gym.spaces.Box)
        self.ent_weight, self.l2_weight = ent_weight, l2_weight
        self.bc_loss, self.dm_clamp = bc_loss, dm_clamp
        self.bc_coef = float(bc_coef)
        self.dm_coef = float(dm_coef) if dm_coef is not None else (1.0 if is_box else 0.1)
        self.critic_models = critic_models or ("action" if is_box else "state_action")
        self.critic_kwargs: dict[str, Any] = dict(critic_kwargs or {})
        self.critic = self._check_critic(critic)
        if policy is not None:
            self._check_spaces("policy", policy)
        self.state = trainer_state.TrainerState(
            policy_is_default=policy is None,
            learning_rate_is_default=optimizer_cls is th.optim.Adam
            and "lr" not in (optimizer_kwargs or {}),
            critic_is_own=critic is None,
            critic_is_current=critic is not None,
        )
        self._encoder = PairEncoder(self.observation_space, self.action_space).to(self.device)
        self._noise_generator = None
        self._batches = None
        self._interrupted_pass = None
        if policy is None:
            policy = StandardizedActorPolicy(
                self.observation_space, self.action_space, unusable_lr_schedule
            )
        super().__init__(
            observation_space=self.observation_space,
            action_space=self.action_space,
            rng=np.random.default_rng(seed) if rng is None else rng,
            policy=policy,
            demonstrations=demonstrations,
            batch_size=batch_size or _BC_BATCH_SIZE,
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

    @property
    def n_updates(self) -> int:
        """Updates of the policy so far."""
        return self.state.n_updates

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
        self._use_batch_size(self._own_batch_size)
        batches = make_batches(demonstrations, self.minibatch_size)
        if isinstance(batches, TransitionBatches):
            self._validate(batches.transitions)
        self._batches = batches
        self._demo_data_loader = batches  # type: ignore[assignment]
        interrupted, self._interrupted_pass = self._interrupted_pass, None
        if interrupted is None or not self._continue_pass(interrupted):
            self.state.critic_is_current = not self.state.critic_is_own

    def _continue_pass(self, interrupted: trainer_state.InterruptedPass) -> bool:
        """Continues the pass that a saved trainer was in, if these are its demonstrations."""
        if not isinstance(self._batches, TransitionBatches):
            # There is no telling, and an iterable of batches has no place to go back to.
            return True
        if interrupted.fingerprint != fingerprint(self._batches.transitions):
            return False
        if self._batch_size_is_default:
            self._use_batch_size(interrupted.batch_size)
        self._batches.state = PassState(interrupted.pass_seed, interrupted.position)
        return True

    @property
    def _batch_size_is_default(self) -> bool:
        return self.arguments["batch_size"] is self.arguments["minibatch_size"] is None

    @property
    def _own_batch_size(self) -> int:
        """Samples per update of trainings whose length is given, as in BC."""
        return _BC_BATCH_SIZE if self._batch_size_is_default else self.batch_size

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
            self._batches = TransitionBatches(self._batches.transitions, batch_size)
            self._demo_data_loader = self._batches  # type: ignore[assignment]

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
        n_epochs: PositiveInt | None = None,
        n_batches: PositiveInt | None = None,
        on_epoch_end: Callable[[], None] | None = None,
        on_batch_end: Callable[[], None] | None = None,
        log_interval: PositiveInt = 500,
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
        lengths = {"n_epochs": n_epochs, "n_batches": n_batches, "log_interval": log_interval}
        checked_arguments(DiffusionBC.train, lengths)
        if n_epochs is not None and n_batches is not None:
            raise ValueError(
                "Must provide exactly one of `n_epochs` and `n_batches` arguments "
                f"(or neither, for {self.DEFAULT_N_BATCHES} batches)."
            )
        if self._batches is None:
            raise ValueError(
                "demonstrations are missing: give them to the constructor or to "
                "set_demonstrations before train."
            )
        schedule = None
        if n_epochs is None and n_batches is None:
            self._use_batch_size(self.recipe_batch_size)
            n_batches = self.DEFAULT_N_BATCHES - self.state.recipe_updates
            schedule = self._recipe_schedule()
        else:
            self._use_batch_size(self._own_batch_size)
        self._take_statistics()
        self._fit_critic(progress_bar)
        self.loss_calculator = self._make_loss()  # type: ignore[assignment]
        if n_epochs is not None and isinstance(self._batches, TransitionBatches):
            self._batches.state = PassState()
        self._interrupted_pass = None

        def after_update() -> None:
            self.state.n_updates += 1
            if schedule is not None:
                schedule.step()
                self.state.recipe_updates = schedule.last_epoch
            if on_batch_end is not None:
                on_batch_end()

        if n_batches != 0:  # a recipe that was stopped after its last update
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
        if schedule is not None:
            self.state.recipe_updates = 0
            for group in self.optimizer.param_groups:
                group["lr"] = group.pop("initial_lr")
            self._use_batch_size(self._own_batch_size)

    def _recipe_schedule(self) -> th.optim.lr_scheduler.LambdaLR:
        """Returns the default recipe's learning rate: linear, down to 0."""

        def factor(group: dict[str, Any]) -> Callable[[int], float]:
            own = group.get("initial_lr", group["lr"])
            is_default = self.state.learning_rate_is_default
            first = self.DEFAULT_LEARNING_RATE / own if is_default else 1.0
            # A function of the update's number, so that an interrupted run goes on to the bit.
            return lambda n: first * max(0.0, 1 - n / self.DEFAULT_N_BATCHES)

        return th.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            [factor(group) for group in self.optimizer.param_groups],
            last_epoch=self.state.recipe_updates - 1,
        )

    def _peek(self) -> types.TransitionsMinimal:
        """Returns demonstrations to take statistics from and to fit the critic to."""
        assert self._batches is not None  # checked by train
        if isinstance(self._batches, TransitionBatches):
            return self._batches.transitions
        transitions = self._batches.peek(_MAX_PEEKED_TRANSITIONS)
        self._validate(transitions)
        return transitions

    def _take_statistics(self) -> None:
        """Gives the default policy the demonstrations' statistics, once."""
        needed = self.state.policy_is_default or self.bc_loss == "mse"
        if self.state.has_statistics or not needed:
            return
        transitions = self._peek()
        self._encoder.fit(transitions.obs, transitions.acts)
        if isinstance(self.policy, StandardizedActorPolicy) and self.state.policy_is_default:
            self.policy.set_statistics(self._encoder)
        self.state.has_statistics = True

    def _fit_critic(self, progress_bar: bool) -> None:
        if not self.dm_coef or self.state.critic_is_current:
            return
        self.critic = self._new_critic()
        with warnings.catch_warnings():
            # The trainer has already said what it found in these demonstrations.
            warnings.simplefilter("ignore", DemonstrationWarning)
            self.critic.fit(self._peek(), progress_bar=progress_bar, logger=self.logger)
        self.state.critic_is_current = True
        self._noise_generator = None

    def _make_loss(self) -> DiffusionBCLoss:
        diffusion = None
        if self.dm_coef and self.critic is not None:
            if self._noise_generator is None:
                with th.random.fork_rng(devices=[]):
                    seed = int(th.randint(2**31, ()))
                self._noise_generator = th.Generator(self.critic.device).manual_seed(seed)
            diffusion = DiffusionLoss(self.critic, self._noise_generator, self.dm_clamp)
        return DiffusionBCLoss(
            bc_coef=self.bc_coef,
            ent_weight=self.ent_weight,
            l2_weight=self.l2_weight,
            bc_loss=self.bc_loss,
            encoder=self._encoder,
            dm_coef=self.dm_coef,
            diffusion=diffusion,
            compile=self.compile,
        )


DiffusionBC.saved_arguments = frozenset(
    inspect.signature(DiffusionBC.__init__).parameters.keys() - trainer_state.NOT_SAVED
)
