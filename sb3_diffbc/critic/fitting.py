"""Fits a critic by noise prediction (Ho et al., 2020, algorithm 1), with early stopping."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch as th
import tqdm
from imitation.data import types
from imitation.util import logger as imit_logger
from torch import nn

from sb3_diffbc import checkpoints
from sb3_diffbc.critic.encoder import Pairs
from sb3_diffbc.critic.score import Calibration, calibrated
from sb3_diffbc.schema import AnyFloat, Model, NonNegativeFloat, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from sb3_diffbc.critic.critic import DiffusionCritic

_EVALUATIONS_PER_FIT = 25
# Enough pairs and draws for a held-out loss that is stable in its third digit.
_MAX_VALIDATION_PAIRS = 2048
_VALIDATION_DRAWS = 4


@dataclasses.dataclass(frozen=True)
class CriticHistory:
    """Curves of :meth:`DiffusionCritic.fit`.

    Losses are mean squared errors per dimension of the predicted noise; 1 is what predicting
    no noise at all scores.

    Attributes:
        steps: optimiser steps at each evaluation.
        train_loss: mean training loss since the previous evaluation.
        validation_loss: loss of the averaged weights on the held-out pairs, always under the
            same noise; empty if nothing was held out.
        best_step: step whose weights were kept.
        seconds: wall-clock time of the fit.
    """

    steps: tuple[NonNegativeInt, ...]
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_step: NonNegativeInt
    seconds: NonNegativeFloat


class StoppingRecord(Model):
    """What :class:`EarlyStopping` remembers beside the weights."""

    losses: tuple[AnyFloat, ...]
    best_step: NonNegativeInt
    evaluations_since_best: NonNegativeInt


class EarlyStopping:
    """Keeps the weights with the best held-out loss, or the last ones without one.

    Args:
        patience: evaluations without a better loss before :attr:`should_stop`.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.losses: list[float] = []
        self.best_step = 0
        self.best_state: dict[str, th.Tensor] = {}
        self._evaluations_since_best = 0

    @property
    def should_stop(self) -> bool:
        """Whether there were ``patience`` evaluations without a better loss."""
        return self._evaluations_since_best >= self.patience

    def update(self, step: int, module: nn.Module, loss: float | None) -> None:
        """Takes note of an evaluation, and of the weights if they are the best so far."""
        is_best = loss is None or not self.losses or loss < min(self.losses)
        if loss is not None:
            self.losses.append(loss)
        self._evaluations_since_best = 0 if is_best else self._evaluations_since_best + 1
        if is_best:
            self.best_step = step
            self.best_state = copy.deepcopy(module.state_dict())

    def to_record(self) -> StoppingRecord:
        """Returns all but the weights, for a checkpoint."""
        return StoppingRecord(
            losses=tuple(self.losses),
            best_step=self.best_step,
            evaluations_since_best=self._evaluations_since_best,
        )

    def load(self, record: StoppingRecord, best_state: dict[str, th.Tensor]) -> None:
        """Goes on from a record and the best weights, which are taken over as they are."""
        self.losses = list(record.losses)
        self.best_step = record.best_step
        self.best_state = best_state
        self._evaluations_since_best = record.evaluations_since_best


class FitRecord(Model):
    """What a checkpoint says of an unfinished fit beside its tensors."""

    step: NonNegativeInt
    max_steps: PositiveInt
    steps: tuple[NonNegativeInt, ...]
    train_losses: tuple[AnyFloat, ...]
    monitor: StoppingRecord
    seconds: NonNegativeFloat
    optimizer: checkpoints.OptimizerRecord


class CriticFit:
    """The fit of a critic's network, which can be left at any step and continued to the bit.

    Args:
        critic: the model; its configuration says how long and how fast.
        max_steps: a limit beside the configuration's.

    Attributes:
        critic: the model, with the latest weights; the best ones once the fit has ended.
        step: optimiser steps done.
        max_steps: the lower of both limits.
        n_steps: optimiser steps at most, known once :meth:`run` has seen the demonstrations.
        last_loss: mean training loss between the latest two evaluations.
    """

    def __init__(self, critic: DiffusionCritic, max_steps: int | None = None) -> None:
        config = critic.config
        self.critic = critic
        self.step = 0
        self.n_steps = self.max_steps = min(config["n_steps"], max_steps or config["n_steps"])
        # Fused, since a step this small is mostly the start of kernels.
        self._optimizer = th.optim.Adam(
            critic.denoiser.parameters(), lr=config["learning_rate"], fused=True
        )
        self._averaged = copy.deepcopy(critic.denoiser).requires_grad_(False)
        self._monitor = EarlyStopping(config["patience"])
        self._generator = th.Generator(critic.device).manual_seed(critic._fit_seed)
        self._steps: list[int] = []
        self._train_losses: list[float] = []
        self._loss_sum = th.zeros((), device=critic.device)
        self._seconds = 0.0

    @property
    def last_loss(self) -> float:
        """Mean training loss between the latest two evaluations; NaN before the first."""
        return self._train_losses[-1] if self._train_losses else math.nan

    def run(
        self,
        transitions: types.TransitionsMinimal,
        *,
        progress_bar: bool = False,
        logger: imit_logger.HierarchicalLogger | None = None,
        on_step: Callable[[], None] | None = None,
    ) -> CriticHistory:
        """Does the remaining steps; if an exception ends it, another call goes on.

        Args:
            transitions: the demonstrations, the same ones at every call.
            progress_bar: whether to show steps and losses.
            logger: gets ``critic/...`` records at each evaluation.
            on_step: called after each step.

        Returns:
            The curves, also kept as the critic's ``history``.

        Raises:
            ValueError: if the demonstrations do not fit the spaces, hold NaN, or are empty.
            RuntimeError: if the loss or the weights diverge.
        """
        critic, config = self.critic, self.critic.config
        if not self.step:
            critic._take_statistics(transitions)
        critic.requires_grad_(True)
        critic.train()
        try:
            self._run(transitions, config, progress_bar, logger, on_step)
        finally:
            critic._freeze()
        critic.denoiser.load_state_dict(self._monitor.best_state)
        critic.calibration = self._calibration(transitions)
        critic.history = CriticHistory(
            steps=tuple(self._steps),
            train_loss=tuple(self._train_losses),
            validation_loss=tuple(self._monitor.losses),
            best_step=self._monitor.best_step,
            seconds=self._seconds,
        )
        critic.is_fitted = True
        return critic.history

    def _run(
        self,
        transitions: types.TransitionsMinimal,
        config: dict[str, Any],
        progress_bar: bool,
        logger: imit_logger.HierarchicalLogger | None,
        on_step: Callable[[], None] | None,
    ) -> None:
        critic, device, seed = self.critic, self.critic.device, self.critic._fit_seed
        pairs = Pairs(critic.encoder, transitions.obs, transitions.acts)
        # The same split in a fit that goes on.
        split = self._generator if not self.step else th.Generator(device).manual_seed(seed)
        held_out, train = self._split(len(transitions), split)
        batch_size = min(config["batch_size"], len(train))
        n_epoch_steps = config["max_epochs"] * math.ceil(len(train) / batch_size)
        self.n_steps = n_steps = min(self.max_steps, n_epoch_steps)
        lr_schedule = th.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, T_max=n_steps)
        if self.step:
            progress_made = {"last_epoch": self.step, "_step_count": self.step + 1}
            lr_schedule.load_state_dict(lr_schedule.state_dict() | progress_made)
        interval = max(1, n_steps // _EVALUATIONS_PER_FIT)
        with tqdm.tqdm(
            initial=self.step,
            total=n_steps,
            desc="critic",
            unit="step",
            disable=not progress_bar,
        ) as progress:
            while self.step < n_steps and not self._monitor.should_stop:
                started = time.perf_counter()
                places = th.randint(
                    len(train), (batch_size,), generator=self._generator, device=device
                )
                # Inside th.autocast, the last step's weights would stay in use.
                th.clear_autocast_cache()
                codes = pairs.codes(train[places])
                noise = critic.draw_noise(batch_size, self._generator)
                loss = critic.l_diff(*codes, noise).mean()
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()
                lr_schedule.step()
                self._update_averaged(config["ema_decay"])
                self._loss_sum += loss.detach()
                self.step += 1
                progress.update()
                if self.step % interval == 0 or self.step == n_steps:
                    validation_loss = _validation_loss(
                        critic, self._averaged, pairs, held_out, seed
                    )
                    record = self._evaluate(validation_loss)
                    progress.set_postfix({name: f"{value:.4g}" for name, value in record.items()})
                    if logger is not None:
                        for name, value in record.items():
                            logger.record(f"critic/{name}", value)
                        logger.dump(self.step)
                self._seconds += time.perf_counter() - started
                if on_step is not None:
                    on_step()

    def _update_averaged(self, ema_decay: float) -> None:
        """Averages exponentially; the decay grows to its value, so that short fits do not lag.

        Nothing here waits for the GPU, as ``AveragedModel`` does twice at each update.
        """
        decay = min(ema_decay, (1 + self.step) / (10 + self.step)) if self.step else 0.0
        weights = [p.detach() for p in self.critic.denoiser.parameters()]
        th._foreach_lerp_(list(self._averaged.parameters()), weights, 1 - decay)

    def _calibration(self, transitions: types.TransitionsMinimal) -> Calibration:
        """Returns what the score is measured against: held-out pairs, where there are any."""
        generator = th.Generator(self.critic.device).manual_seed(self.critic._fit_seed)
        held_out, train = self._split(len(transitions), generator)
        pairs = Pairs(self.critic.encoder, transitions.obs, transitions.acts)
        return calibrated(self.critic, pairs, held_out if len(held_out) else train)

    def _split(self, n: int, generator: th.Generator) -> tuple[th.Tensor, th.Tensor]:
        """Returns the rows that are held out, and those that are fitted to."""
        order = th.randperm(n, generator=generator, device=self.critic.device)
        n_held_out = int(n * self.critic.config["validation_fraction"])
        if not n_held_out:
            return order[:0], th.arange(n, device=self.critic.device)
        return order[:n_held_out], order[n_held_out:]

    def _evaluate(self, validation_loss: float | None) -> dict[str, float]:
        """Takes note of an evaluation; returns what is logged."""
        loss = float(self._loss_sum) / (self.step - (self._steps[-1] if self._steps else 0))
        largest = largest_weight(self._averaged)
        if not math.isfinite(loss + (validation_loss or 0.0) + largest):
            raise RuntimeError(
                f"The critic's loss became {loss} at step {self.step} (on held-out pairs "
                f"{validation_loss}; its largest weight is {largest:.3g}): fit it with a smaller "
                "learning_rate."
            )
        self._train_losses.append(loss)
        self._steps.append(self.step)
        self._loss_sum.zero_()
        self._monitor.update(self.step, self._averaged, validation_loss)
        record = {"loss": loss, "best_step": self._monitor.best_step}
        return record | ({} if validation_loss is None else {"validation_loss": validation_loss})

    def to_state(self, prefix: str) -> tuple[dict[str, th.Tensor], FitRecord]:
        """Takes an unfinished fit apart for a checkpoint; the critic's own tensors are not in it.

        Args:
            prefix: put in front of every tensor's name.

        Returns:
            The tensors by name, and the rest.
        """
        tensors, optimizer = checkpoints.optimizer_to_state(self._optimizer, prefix + "optimizer/")
        tensors |= checkpoints.module_state(self._averaged, prefix + "averaged/")
        tensors |= {f"{prefix}best/{k}": v for k, v in self._monitor.best_state.items()}
        tensors[prefix + "generator"] = self._generator.get_state()
        tensors[prefix + "loss_sum"] = self._loss_sum
        return tensors, FitRecord(
            step=self.step,
            max_steps=self.max_steps,
            steps=tuple(self._steps),
            train_losses=tuple(self._train_losses),
            monitor=self._monitor.to_record(),
            seconds=self._seconds,
            optimizer=optimizer,
        )

    @classmethod
    def from_state(
        cls,
        critic: DiffusionCritic,
        record: FitRecord,
        tensors: Mapping[str, th.Tensor],
        prefix: str,
    ) -> CriticFit:
        """Continues what :meth:`to_state` took apart, with its critic.

        Raises:
            CheckpointError: if the tensors do not belong to this critic.
        """
        fit = cls(critic, record.max_steps)
        fit.step = record.step
        fit._steps, fit._train_losses = list(record.steps), list(record.train_losses)
        fit._seconds = record.seconds
        fit._monitor.load(
            record.monitor,
            checkpoints.matching_state(critic.denoiser, tensors, prefix + "best/")
            if record.steps
            else {},
        )
        checkpoints.load_optimizer_state(
            fit._optimizer, tensors, record.optimizer, prefix + "optimizer/"
        )
        checkpoints.load_module_state(fit._averaged, tensors, prefix + "averaged/")
        fit._generator.set_state(tensors[prefix + "generator"])
        fit._loss_sum.copy_(tensors[prefix + "loss_sum"])
        return fit


def largest_weight(module: nn.Module) -> float:
    """Returns the largest absolute value among a module's parameters; NaN if one is NaN."""
    values = [p.detach().abs().max() for p in module.parameters() if p.numel()]
    return float(th.stack(values).max()) if values else 0.0


@th.no_grad()
def _validation_loss(
    critic: DiffusionCritic, denoiser: nn.Module, pairs: Pairs, held_out: th.Tensor, seed: int
) -> float | None:
    """Returns the mean loss on held-out pairs under noise that is the same at every call."""
    if not len(held_out):
        return None
    rows = held_out[:_MAX_VALIDATION_PAIRS].repeat(_VALIDATION_DRAWS)
    noise = critic.draw_noise(len(rows), th.Generator(critic.device).manual_seed(seed))
    return float(critic.l_diff(*pairs.codes(rows), noise, denoiser).mean())
