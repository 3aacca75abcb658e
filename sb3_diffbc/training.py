"""Training: when to fit the critic, the default recipe, and imitation's loop."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from imitation.data import types
from stable_baselines3.common import vec_env

from sb3_diffbc.callbacks import AnyCallback, StopTraining
from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.critic.fitting import CriticFit, EarlyStopping
from sb3_diffbc.demonstrations import DemonstrationWarning, validate_demonstrations
from sb3_diffbc.demonstrations.batches import PassState, TransitionBatches
from sb3_diffbc.label_noise import robust_clone
from sb3_diffbc.logger import DiffusionBCLogger, without_stdout
from sb3_diffbc.losses import REGRESSIONS, BCLoss, DiffusionBCLoss, DiffusionLoss
from sb3_diffbc.policies import StandardizedActorPolicy, copy_policy
from sb3_diffbc.schema import PositiveInt, checked_arguments
from sb3_diffbc.trainer_state import ResumableBC
from sb3_diffbc.training_run import Rate, Schedule, TrainingRun, restore_rates

BC_BATCH_SIZE = 32
"""Samples per update of imitation's BC, where none are given."""

_PILOT_SEED = 0

# An iterable of batches may be endless: this many samples tell its statistics well enough.
_MAX_PEEKED_TRANSITIONS = 200_000


class TrainableBC(ResumableBC):
    """The part of :class:`DiffusionBC` that trains."""

    verbose: int
    compile: bool
    ent_weight: float
    l2_weight: float
    bc_loss: BCLoss
    dm_clamp: str
    bc_coef: float
    dm_coef: float
    critic_models: Any
    critic_kwargs: dict[str, Any]
    held_out: types.TransitionsMinimal | None
    learning_rate: float | Schedule | None
    _logger_is_given: bool
    _bc_logger: DiffusionBCLogger

    DEFAULT_N_BATCHES = 20_000
    """Updates of the default recipe: :meth:`train` without ``n_epochs`` and ``n_batches``."""

    DEFAULT_BATCH_SIZE = 128
    """Samples per update of the default recipe, where no size was given; all if they are fewer."""

    DEFAULT_LEARNING_RATE = 3e-4
    """The default recipe's first learning rate, where no optimiser and no rate were given."""

    AUTO_DM_COEF = 3.0
    """What ``dm_coef="auto"`` is where actions look bad; else 0."""

    SHORTEST_LOOKED_AT = 5000
    """Updates of a training from which on a look at the labels comes first."""

    PILOT_UPDATES = 1000, 2000
    """Updates before a look of :meth:`bad_label_share`, at least and at most."""

    def _new_critic(self) -> DiffusionCritic:
        """Returns a critic to fit, with the weights of the own one that it follows."""
        # A fork, so that runs with and without L_DM shuffle their demonstrations alike.
        with th.random.fork_rng(devices=[]):
            critic = DiffusionCritic(
                self.observation_space,
                self.action_space,
                models=self.critic_models,
                device=self.device,
                **self.critic_kwargs,
            )
        if self.critic is not None and self.critic.config == critic.config:
            critic.denoiser.load_state_dict(self.critic.denoiser.state_dict())
        return critic

    @property
    def _batch_size_is_default(self) -> bool:
        return self.arguments["batch_size"] is self.arguments["minibatch_size"] is None

    @property
    def _own_batch_size(self) -> int:
        """Samples per update of trainings whose length is given, as in BC."""
        return BC_BATCH_SIZE if self._batch_size_is_default else self.batch_size

    @property
    def recipe_batch_size(self) -> int:
        """Samples per update of the default recipe, with the present demonstrations."""
        if self._batch_size_is_default and isinstance(self._batches, TransitionBatches):
            return min(self.DEFAULT_BATCH_SIZE, self._batches.n_rows)
        # The batches of an iterable are as large as they are.
        return self.batch_size

    def _use_batch_size(self, batch_size: int) -> None:
        """Has updates take so many samples; a pass that is under way ends."""
        if batch_size == self.batch_size:
            return
        self.batch_size = self.minibatch_size = batch_size
        if isinstance(self._batches, TransitionBatches):
            self._batches.batch_size = batch_size
            self._batches.state = PassState()

    @property
    def left_out(self) -> np.ndarray | None:
        """Which transitions the training leaves out as badly labelled, flags of shape ``(n,)``.

        They are those of the demonstrations that are not held out. None if none is left out.
        """
        return getattr(self._batches, "left_out", None)

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
        callback: AnyCallback = None,
        patience: PositiveInt | None = None,
    ) -> None:
        """Fits the critic if that is due, then trains the policy by ``BC.train``.

        Arguments are those of imitation's ``BC.train``, and two more. Without ``n_epochs`` and
        ``n_batches`` the default recipe runs: :attr:`DEFAULT_N_BATCHES` updates of
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
            log_interval: updates between logs, and between looks at the held-out loss.
            log_rollouts_venv: environments for the logged rollouts.
            log_rollouts_n_episodes: their number.
            progress_bar: whether to show one bar for the critic's fit and the policy's updates;
                never with ``verbose=0``.
            reset_tensorboard: whether the logged steps start at 0 again.
            callback: as in ``learn`` of SB3: a ``BaseCallback``, a list of them, or a function,
                which must return True for training to go on. They count updates of the policy
                as timesteps. A training that one of them stopped can be continued.
            patience: stop after so many looks at the held-out loss without a better one, and at
                the end in any case give the policy, not its optimiser, the weights and buffers
                that had the best. Needs ``validation_fraction``.

        Raises:
            ValueError: if both ``n_epochs`` and ``n_batches`` are given, one is below 1, there
                are no demonstrations, or nothing is held out for ``patience``.
            RuntimeError: if critic or policy diverge.
        """
        arguments = {"self": self} | {k: v for k, v in locals().items() if k != "self"}
        checked_arguments(
            TrainableBC.train,
            {k: arguments[k] for k in ("n_epochs", "n_batches", "log_interval", "patience")},
        )
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
        if patience is not None and self.held_out is None:
            raise ValueError("patience needs a validation_fraction in the constructor.")
        is_recipe = n_epochs is None and n_batches is None
        self._use_batch_size(self.recipe_batch_size if is_recipe else self._own_batch_size)
        restore_rates(self.optimizer)  # after a save in the middle of a schedule
        if is_recipe:
            n_batches = self.DEFAULT_N_BATCHES - self.state.recipe_updates
        if patience is None:
            self.best = None
        else:
            self.best = self.best or EarlyStopping(patience)  # of a training that was cut short
            self.best.patience = patience
        n_updates = n_batches if n_epochs is None else self.updates_of(n_epochs)
        run = TrainingRun(
            self,
            n_updates=n_updates,
            rate=self._rate(self.DEFAULT_N_BATCHES if is_recipe else n_updates, is_recipe),
            counts_recipe=is_recipe,
            log_interval=log_interval,
            callback=callback,
            on_batch_end=on_batch_end,
            progress_bar=progress_bar,
        )
        is_complete = True
        quiet = self.verbose < 2 and not self._logger_is_given
        with contextlib.ExitStack() as stack:
            stack.callback(run.close)
            stack.enter_context(self._own_random_state())
            stack.enter_context(without_stdout(self.logger) if quiet else contextlib.nullcontext())
            run.start(arguments)
            self._look_at_labels(run, n_updates)
            self._take_statistics()
            self._fit_critic(run, n_updates)
            self.loss_calculator = run.watch(self._make_loss())  # type: ignore[assignment]
            if n_epochs is not None and isinstance(self._batches, TransitionBatches):
                self._batches.state = PassState()
                if self.left_out is not None:
                    # As many updates as passes through all of the demonstrations would be.
                    n_epochs, n_batches = None, n_updates
            self._interrupted_pass = self._left_out = None
            self._bc_logger.before_log = run.before_log
            stack.callback(setattr, self._bc_logger, "before_log", None)
            try:
                # Unless a training that was cut short had no update left, or no patience.
                if n_batches != 0 and not (self.best is not None and self.best.should_stop):
                    super().train(
                        n_epochs=n_epochs,
                        n_batches=n_batches,
                        on_epoch_end=on_epoch_end,
                        on_batch_end=run.after_update,
                        log_interval=log_interval,
                        log_rollouts_venv=log_rollouts_venv,
                        log_rollouts_n_episodes=log_rollouts_n_episodes,
                        progress_bar=False,
                        reset_tensorboard=reset_tensorboard,
                    )
            except StopTraining as stop:
                is_complete = stop.is_complete
            run.end(is_complete)
        if is_complete:
            self.best = None
            if is_recipe:
                self.state.recipe_updates = 0
                self._use_batch_size(self._own_batch_size)

    def updates_of(self, n_epochs: int) -> int | None:
        """Returns how many updates so many passes are; None for an iterable of batches.

        Actions that are left out count, so that trainings with and without them are as long.
        """
        if not isinstance(self._batches, TransitionBatches):
            return None
        n_rows = len(self._batches.transitions.acts)
        n_minibatches = n_epochs * (n_rows // self.minibatch_size)
        return -(-n_minibatches * self.minibatch_size // self.batch_size)

    def _rate(self, n_updates: int | None, is_recipe: bool) -> Rate | None:
        """Returns the schedule of the learning rate, None where it stays as it is."""
        if callable(self.learning_rate):
            schedule = self.learning_rate
            if n_updates is None:
                raise ValueError(
                    "a learning_rate that is a function needs a training of known length: give "
                    "n_batches, as an iterable of batches does not tell."
                )
            return lambda _, n: float(schedule(1 - n / n_updates))
        if not is_recipe:
            return None
        first = self.DEFAULT_LEARNING_RATE if self.state.learning_rate_is_default else None

        def linear(own: float, n: int) -> float:
            factor = 1.0 if first is None else first / own
            return own * (factor * max(0.0, 1 - n / self.DEFAULT_N_BATCHES))

        return linear

    def _peek(self) -> types.TransitionsMinimal:
        """Returns demonstrations to take statistics from and to fit the critic to."""
        assert self._batches is not None  # checked by train
        if isinstance(self._batches, TransitionBatches):
            return self._batches.used
        transitions = self._batches.peek(_MAX_PEEKED_TRANSITIONS)
        self._validate(transitions)
        return transitions

    def bad_label_share(
        self,
        n_updates: PositiveInt = PILOT_UPDATES[1],
        *,
        on_update: Callable[[], None] | None = None,
    ) -> float:
        """Estimates the share of the demonstrations' actions that are not the expert's.

        A copy of the policy is cloned with the absolute error, which bad actions pull little. Its
        error for each action is compared with its errors for that action at other observations,
        among which a bad one may have any place (after Storey, 2002,
        https://doi.org/10.1111/1467-9868.00346). Unless all look good, the copy goes on, without
        those that look bad, and is looked at again, twice. It changes neither the
        training that follows nor the global random state.

        Args:
            n_updates: of the copy before a look, with batches and learning rate of the default
                recipe.
            on_update: called after each of them.

        Returns:
            The share, from 0 to 1/2. It is 0 if it seems to be below 2 %, and where the other
            actions are too uncertain to tell. It counts single actions that do not fit their
            observations, not whole trajectories of another policy.
        """
        return float(self._bad_labels(n_updates, on_update).mean())

    def _bad_labels(self, n_updates: int, on_update: Callable[[], None] | None) -> np.ndarray:
        # Of all demonstrations: what a training leaves out is part of the answer.
        batches = self._batches
        transitions = (
            batches.transitions if isinstance(batches, TransitionBatches) else self._peek()
        )
        had_statistics = self.state.has_statistics
        self._take_statistics()
        _, is_bad = robust_clone(
            transitions,
            self.observation_space,
            self.action_space,
            n_updates=n_updates,
            seed=_PILOT_SEED,
            device=self.device,
            policy=copy_policy(self.policy),
            on_update=on_update,
        )
        # Bad labels are in those that the pilot had: the training takes its own.
        self.state.has_statistics = had_statistics
        return is_bad

    def _take_statistics(self) -> None:
        """Gives the default policy the demonstrations' statistics, once."""
        needed = self.state.policy_is_default or self.bc_loss in REGRESSIONS
        if self.state.has_statistics or not needed:
            return
        # By their numbers: a copy of most of the demonstrations might not fit into memory.
        batches = self._batches
        if isinstance(batches, TransitionBatches):
            all_of_them = batches.transitions
            self._encoder.fit(all_of_them.obs, all_of_them.acts, batches.rows)
        else:
            some = self._peek()
            self._encoder.fit(some.obs, some.acts)
        if isinstance(self.policy, StandardizedActorPolicy) and self.state.policy_is_default:
            self.policy.set_statistics(self._encoder)
        self.state.has_statistics = True

    def _loss_for(self, *, is_robust: bool) -> BCLoss:
        """Returns what ``bc_loss="auto"`` is: the paper's, the robust one, or imitation's."""
        if self.dm_coef:
            return "mse"
        return "l1" if is_robust else "nll"

    def _forget_choice(self) -> None:
        """Takes back what earlier demonstrations decided."""
        self.state.bad_label_share = None
        if self.state.dm_coef_is_auto:
            self.dm_coef = 0.0
        if self.state.bc_loss_is_auto:
            self.bc_loss = self._loss_for(is_robust=False)

    @property
    def looks_at_labels(self) -> bool:
        """Whether a training that is long enough leaves out actions that look bad."""
        is_box = isinstance(self.action_space, gym.spaces.Box)
        return is_box and (self.state.dm_coef_is_auto or self.state.bc_loss_is_auto)

    def _look_at_labels(self, run: TrainingRun, n_updates: int | None) -> None:
        """Leaves bad labels out, once, and decides on what is ``"auto"``."""
        state = self.state
        if not self.looks_at_labels or state.bad_label_share is not None:
            return
        if n_updates is None or n_updates < self.SHORTEST_LOOKED_AT:
            return
        n_pilot = int(np.clip(n_updates // 10, *self.PILOT_UPDATES))
        is_bad = self._bad_labels(n_pilot, run.after_pilot_update)
        share = state.bad_label_share = float(is_bad.mean())
        is_enough = np.count_nonzero(~is_bad) >= self.batch_size
        if share and is_enough and isinstance(self._batches, TransitionBatches):
            self._batches.leave_out(is_bad)
        if state.dm_coef_is_auto:
            self.dm_coef = self.AUTO_DM_COEF if share else 0.0
        is_left_out = self.left_out is not None
        if state.bc_loss_is_auto:
            self.bc_loss = self._loss_for(is_robust=share > 0 and not is_left_out)
        self.logger.record("bc/bad_label_share", share)
        self.logger.record("dm/coef", self.dm_coef)
        run.say(
            f"about {share:.0%} of the actions look wrong{' and are left out' * is_left_out}: "
            f"bc_loss = {self.bc_loss!r}, dm_coef = {self.dm_coef:g}"
        )

    def _fit_critic(self, run: TrainingRun, n_updates: int | None) -> None:
        """Fits an own critic for as long as the policy trains, or as ``n_steps`` says."""
        limit = self.state.critic_max_steps
        if not self.dm_coef:
            return
        if not self.state.critic_is_current:
            limit = None if "n_steps" in self.critic_kwargs else n_updates
        elif limit is None or self.n_updates + (n_updates or 0) < 2 * limit:
            return
        else:
            # Many short trainings are a long one: the critic of the first is not enough.
            limit = self.n_updates + (n_updates or 0)
        fit = CriticFit(self._new_critic(), limit)
        if self._fit is not None and self._fit.max_steps == fit.max_steps:
            fit = self._fit  # which was left in the middle
        self._fit = fit
        with warnings.catch_warnings():
            # The trainer has already said what it found in these demonstrations.
            warnings.simplefilter("ignore", DemonstrationWarning)
            try:
                fit.run(
                    self._peek(),
                    logger=self.logger,
                    on_step=lambda: run.after_critic_step(fit),
                )
            except RuntimeError:
                self._fit = None
                raise
        run.after_critic(fit)
        self.critic, self._fit = fit.critic, None
        self.state.critic_is_current = True
        is_whole = fit.n_steps < fit.max_steps or fit.max_steps == fit.critic.config["n_steps"]
        self.state.critic_max_steps = None if is_whole else fit.max_steps
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
