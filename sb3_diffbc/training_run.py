"""One call of ``DiffusionBC.train``: what happens between the steps of imitation's loop."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch as th
import tqdm
from imitation.data import types
from stable_baselines3.common import policies

from sb3_diffbc.callbacks import AnyCallback, StopTraining, as_callback, checkpoint_callbacks
from sb3_diffbc.critic.fitting import CriticFit, largest_weight
from sb3_diffbc.losses import DiffusionBCLoss, DiffusionBCMetrics

if TYPE_CHECKING:
    from sb3_diffbc.training import TrainableBC

_UPDATES_PER_CHECK = 100

# Policies that work stay far below it, and float32 hardly resolves a usual update of it.
_MAX_WEIGHT = 1e4

# Enough for a stable loss, and few enough for less than a tenth of the time of 500 updates.
_MAX_HELD_OUT = 2048
_HELD_OUT_BATCH = 256

Schedule = Callable[[float], float]
"""SB3's: a function of the progress that remains, from 1 to 0."""

Rate = Callable[[float, int], float]
"""The learning rate, given the optimiser's own and the number of updates that were made."""


class TrainingRun:
    """Watches a training, and calls what wants to be called.

    Args:
        trainer: whose training it is.
        n_updates: the policy's updates, if their number is known.
        rate: the learning rate; None leaves it alone.
        counts_recipe: whether the updates are those of the default recipe.
        log_interval: updates between looks at the held-out loss.
        callback: as in SB3.
        on_batch_end: as in imitation.
        progress_bar: whether to show a bar, unless the trainer is quiet.
    """

    def __init__(
        self,
        trainer: TrainableBC,
        *,
        n_updates: int | None,
        rate: Rate | None,
        counts_recipe: bool,
        log_interval: int,
        callback: AnyCallback,
        on_batch_end: Callable[[], None] | None,
        progress_bar: bool,
    ) -> None:
        self._trainer = trainer
        self._rate = rate
        self._counts_recipe = counts_recipe
        self._log_interval = log_interval
        self._callback = as_callback(callback)
        self._checkpoints = list(checkpoint_callbacks(self._callback))
        self._on_batch_end = on_batch_end
        self._n_updates = n_updates
        self._n_done = 0
        self._critic_steps: int | None = None
        self._logged_at = self._judged_at = -1
        self._held_out = -1, math.nan  # the latest loss, and after how many updates it was
        self._loss: WatchedLoss | None = None
        self._progress = _Progress(trainer.verbose, progress_bar, n_updates)

    def start(self, arguments: dict[str, Any]) -> None:
        """Tells the callbacks that training starts, with the arguments of ``train``."""
        self._set_rates()
        if self._callback is None:
            return
        total = None if self._n_updates is None else self._trainer.n_updates + self._n_updates
        self._callback.init_callback(self._trainer)  # type: ignore[arg-type]
        self._callback.on_training_start({**arguments, "total_timesteps": total}, globals())

    def watch(self, loss: DiffusionBCLoss) -> WatchedLoss:
        """Returns the loss for imitation's loop, which adds up what it was."""
        self._loss = WatchedLoss(loss, self._trainer)
        return self._loss

    def after_pilot_update(self) -> None:
        """To be called after each update of the pilot, whose length nobody knows before."""
        self._progress.extend(1)
        self._progress.advance(lambda: "pilot")

    def say(self, text: str) -> None:
        """Prints a line, unless the trainer is quiet."""
        self._progress.say(text)

    def after_critic_step(self, fit: CriticFit) -> None:
        """To be called after each step of the critic's fit."""
        if self._critic_steps is None:
            self._critic_steps = fit.n_steps - fit.step + 1
            self._progress.extend(self._critic_steps)
        self._progress.advance(
            lambda: f"critic, step {fit.step} of {fit.n_steps}, loss {fit.last_loss:.4g}"
        )
        for callback in self._checkpoints:
            callback.on_critic_step(fit.step)

    def after_critic(self, fit: CriticFit) -> None:
        """To be called once the critic is fitted; it may have stopped early."""
        self._progress.extend(fit.step - fit.n_steps)

    def before_log(self) -> None:
        """To be called when an update is logged, after it was made: logs the held-out loss."""
        self._log_held_out_loss(self._trainer.n_updates + 1)

    def _log_held_out_loss(self, n_updates: int) -> None:
        if self._trainer.held_out is not None:
            self._trainer.logger.record("bc/validation_loss", self._held_out_loss(n_updates))
            self._logged_at = n_updates

    def _held_out_loss(self, n_updates: int) -> float:
        trainer, (at, loss) = self._trainer, self._held_out
        if at != n_updates:
            assert self._loss is not None  # set before the first update
            assert trainer.held_out is not None  # the callers' concern
            loss = held_out_loss(self._loss.loss, trainer.policy, trainer.held_out)
            self._held_out = n_updates, loss
        return loss

    def _look_for_best(self, *, counts: bool = True) -> None:
        """Looks at the held-out loss for ``patience``; what does not count can be better alone."""
        trainer, n_updates = self._trainer, self._trainer.n_updates
        if trainer.best is None or self._judged_at == n_updates:
            return
        self._judged_at = n_updates
        loss = self._held_out_loss(n_updates)
        if counts or loss < min(trainer.best.losses, default=math.inf):
            trainer.best.update(n_updates, trainer.policy, loss)

    def after_update(self) -> None:
        """To be called as imitation's ``on_batch_end``.

        Raises:
            RuntimeError: if the training has diverged.
            StopTraining: if it is to stop.
        """
        trainer = self._trainer
        trainer.state.n_updates += 1
        self._n_done += 1
        if self._counts_recipe:
            trainer.state.recipe_updates += 1
        self._set_rates()
        self._check(with_weights=self._n_done % _UPDATES_PER_CHECK == 0)
        # Logs count the updates of a call, this those of all: a training that goes on after a crash
        # looks where it would have looked. Before a callback saves, so that the file has it.
        if trainer.n_updates % self._log_interval == 1 % self._log_interval:
            self._look_for_best()
        if self._on_batch_end is not None:
            self._on_batch_end()
        goes_on = self._callback is None or self._callback.on_step()
        self._progress.advance(self._describe_update)
        if trainer.best is not None and trainer.best.should_stop:
            raise StopTraining(is_complete=True)
        if not goes_on:
            raise StopTraining(is_complete=False)

    def end(self, is_complete: bool) -> None:
        """To be called after the last update.

        Args:
            is_complete: whether the training is over, and not one that a callback stopped.

        Raises:
            RuntimeError: if the training has diverged.
        """
        trainer = self._trainer
        self._check(with_weights=True)
        if trainer.held_out is not None and self._logged_at < trainer.n_updates:
            self._log_held_out_loss(trainer.n_updates)
            trainer.logger.dump(trainer._bc_logger._tensorboard_step)
        self._look_for_best(counts=is_complete)
        if trainer.best is not None and trainer.best.best_state:
            trainer.policy.load_state_dict(trainer.best.best_state)
        if self._callback is not None:
            self._callback.on_training_end()

    def close(self) -> None:
        """To be called in any case: puts the learning rate back, and ends the bar."""
        restore_rates(self._trainer.optimizer)
        self._progress.close()

    def _set_rates(self) -> None:
        if self._rate is None:
            return
        n = self._trainer.state.recipe_updates if self._counts_recipe else self._n_done
        for group in self._trainer.optimizer.param_groups:
            group["lr"] = self._rate(group.setdefault("initial_lr", group["lr"]), n)

    def _check(self, with_weights: bool) -> None:
        assert self._loss is not None  # set before the first update
        # On a GPU, every look at a number waits for the update that computes it.
        if with_weights or self._trainer.device.type == "cpu":
            check_finite(self._trainer, self._loss.total, with_weights)

    def _describe_update(self) -> str:
        assert self._loss is not None
        of = "" if self._n_updates is None else f" of {self._n_updates}"
        return f"policy, update {self._n_done}{of}, loss {self._loss.mean_since_last():.4g}"


def with_learning_rate(
    optimizer_kwargs: Mapping[str, Any] | None, learning_rate: float | Schedule | None
) -> dict[str, Any]:
    """Returns an optimiser's arguments with a learning rate, or the first one of a schedule.

    Raises:
        ValueError: if both have a rate, or it is not a positive number.
        TypeError: if it is neither a number nor a function.
    """
    kwargs = dict(optimizer_kwargs or {})
    if learning_rate is None:
        return kwargs
    if "lr" in kwargs:
        raise ValueError("Give learning_rate or optimizer_kwargs['lr'], not both.")
    first = learning_rate(1.0) if callable(learning_rate) else learning_rate
    if isinstance(first, bool) or not isinstance(first, int | float | np.number):
        raise TypeError(f"learning_rate: expected a number or a function, found {first!r}")
    if not 0 < first < math.inf:
        raise ValueError(f"learning_rate: expected a positive number, found {first!r}")
    return {**kwargs, "lr": float(first)}


def restore_rates(optimizer: th.optim.Optimizer) -> None:
    """Gives an optimiser back the learning rates that it had before a schedule set them."""
    for group in optimizer.param_groups:
        group["lr"] = group.pop("initial_lr", group["lr"])


class WatchedLoss:
    """The loss, which adds up its values; that costs less than looking at each.

    Args:
        loss: what is computed.
        trainer: for whose policy.
    """

    def __init__(self, loss: DiffusionBCLoss, trainer: TrainableBC) -> None:
        self.loss = loss
        self.total = th.zeros((), device=trainer.device)
        self._trainer = trainer
        self._n = self._n_before = 0
        self._total_before = 0.0

    def __call__(
        self, policy: policies.ActorCriticPolicy, obs: Any, acts: Any
    ) -> DiffusionBCMetrics:
        """Computes the loss of a batch."""
        if not policy.training:  # after an evaluation, a rollout or a prediction
            policy.set_training_mode(True)
        try:
            metrics = self.loss(policy, obs, acts)
        except ValueError as error:
            if "Expected parameter" not in str(error):
                raise
            # torch's own check of what the policy computed, a standard deviation for instance.
            _raise_diverged(self._trainer, f"its distribution is none ({str(error)[:100]})")
        self.total += metrics.loss.detach()
        self._n += 1
        return metrics

    def mean_since_last(self) -> float:
        """Returns the mean loss since this was last asked for."""
        total, n = float(self.total), max(1, self._n - self._n_before)
        mean = (total - self._total_before) / n
        self._total_before, self._n_before = total, self._n
        return mean


def check_finite(
    trainer: Any, loss_total: th.Tensor | None = None, with_weights: bool = True
) -> None:
    """Refuses a trainer that has diverged.

    Args:
        trainer: the :class:`DiffusionBC`.
        loss_total: the sum of its losses so far, if it is being trained.
        with_weights: whether to look at the policy's weights too.

    Raises:
        RuntimeError: if the sum is not finite, or a weight is not or is beyond any use.
    """
    total = 0.0 if loss_total is None else float(loss_total)
    if not math.isfinite(total):
        _raise_diverged(trainer, "its loss is not finite")
    largest = largest_weight(trainer.policy) if with_weights else 0.0
    if not largest <= _MAX_WEIGHT:
        _raise_diverged(trainer, f"its largest weight is {largest:.3g}")


def _raise_diverged(trainer: Any, symptom: str) -> NoReturn:
    rates = ", ".join(f"{group['lr']:.3g}" for group in trainer.optimizer.param_groups)
    coefficients = ("bc_coef", "dm_coef", "ent_weight", "l2_weight")
    values = ", ".join(f"{name}={getattr(trainer, name)}" for name in coefficients)
    raise RuntimeError(
        f"The policy diverged by update {trainer.n_updates}: {symptom}. Lower the learning rate "
        f"(now {rates}); if that does not help, look for extreme values in the demonstrations' "
        f"observations and actions, and at {values}. Files that were saved before are intact."
    )


class _Progress:
    """One bar for critic and policy together, and a line for each tenth of the way."""

    def __init__(self, verbose: int, progress_bar: bool, total: int | None) -> None:
        self._verbose = verbose
        self._total, self._done, self._tenths = total, 0, 0
        self._bar = tqdm.tqdm(
            total=total,
            desc="DiffusionBC",
            unit="update",
            disable=not (progress_bar and verbose),
        )

    def extend(self, n: int) -> None:
        """Has the way be longer by ``n`` steps."""
        if self._total is not None:
            self._total += n
            self._bar.total = self._total

    def advance(self, describe: Callable[[], str]) -> None:
        """Notes that a step was made."""
        self._done += 1
        self._bar.update()
        tenths = 10 * self._done // self._total if self._total else 0
        if tenths > self._tenths:
            self._tenths = tenths
            self.say(f"{10 * tenths:3d} %: {describe()}")

    def say(self, text: str) -> None:
        """Prints a line, unless it is to be quiet."""
        if self._verbose:
            self._bar.write(text, file=sys.stdout)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


@th.no_grad()
def held_out_loss(
    loss: DiffusionBCLoss, policy: policies.ActorCriticPolicy, held_out: types.TransitionsMinimal
) -> float:
    """Computes L_BC, as configured and without weights, of demonstrations that are held out.

    Args:
        loss: the training's.
        policy: evaluated in evaluation mode; its mode is put back.
        held_out: the demonstrations; of more than 2048 rows, as many evenly spaced ones count.

    Returns:
        The mean loss per row.
    """
    cloning = dataclasses.replace(loss, diffusion=None, l2_weight=0.0, compile=False)
    obs: Any = held_out.obs
    rows = np.linspace(0, len(held_out) - 1, min(len(held_out), _MAX_HELD_OUT)).astype(int)
    was_training = policy.training
    policy.set_training_mode(False)
    total = 0.0
    for start in range(0, len(rows), _HELD_OUT_BATCH):
        part = rows[start : start + _HELD_OUT_BATCH]
        metrics = cloning(policy, obs[part], held_out.acts[part])
        total += len(part) * float(
            metrics.neglogp if metrics.regression is None else metrics.regression
        )
    policy.set_training_mode(was_training)
    return total / len(rows)
