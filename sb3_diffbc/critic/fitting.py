"""Fits a critic by noise prediction (Ho et al., 2020, algorithm 1), with early stopping."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import torch as th
import tqdm
from imitation.data import types
from imitation.util import logger as imit_logger
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sb3_diffbc.critic.encoder import to_tensor_obs
from sb3_diffbc.demonstrations.batches import to_tensor
from sb3_diffbc.schema import NonNegativeFloat, NonNegativeInt

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


class _Pairs:
    """Some of the demonstrations' pairs, gathered and coded batch by batch.

    Coding all pairs at once would double the memory that demonstrations take.
    """

    def __init__(self, critic: DiffusionCritic, transitions: types.TransitionsMinimal) -> None:
        self._encoder = critic.encoder
        self._device = critic.device
        self._obs = to_tensor_obs(transitions.obs, th.device("cpu"))
        self._acts = to_tensor(transitions.acts)

    def codes(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Returns the codes of the observations and actions of some rows."""
        rows = rows.to(self._acts.device)
        if isinstance(self._obs, dict):
            obs: Any = {key: values[rows] for key, values in self._obs.items()}
        else:
            obs = self._obs[rows]
        obs = to_tensor_obs(obs, self._device)
        acts = self._acts[rows].to(self._device)
        return self._encoder.encode_obs(obs), self._encoder.encode_acts(acts)


class _EarlyStopping:
    """Keeps the weights with the best held-out loss, or the last ones without one."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.losses: list[float] = []
        self.best_step = 0
        self.best_state: dict[str, th.Tensor] = {}
        self._evaluations_since_best = 0

    @property
    def should_stop(self) -> bool:
        return self._evaluations_since_best >= self.patience

    def update(self, step: int, module: nn.Module, loss: float | None) -> None:
        is_best = loss is None or not self.losses or loss < min(self.losses)
        if loss is not None:
            self.losses.append(loss)
        self._evaluations_since_best = 0 if is_best else self._evaluations_since_best + 1
        if is_best:
            self.best_step = step
            self.best_state = copy.deepcopy(module.state_dict())


def fit_denoiser(
    critic: DiffusionCritic,
    transitions: types.TransitionsMinimal,
    seed: int,
    *,
    progress_bar: bool,
    logger: imit_logger.HierarchicalLogger | None,
) -> CriticHistory:
    """Fits a critic's network to demonstrations, whose statistics its encoder already has.

    Args:
        critic: the model; its configuration says how long and how fast.
        transitions: the demonstrations.
        seed: of the split, the batches and the noise.
        progress_bar: whether to show steps and losses.
        logger: gets ``critic/...`` records at each evaluation.

    Returns:
        The curves.

    Raises:
        RuntimeError: if the loss diverges.
    """
    started = time.perf_counter()
    config = critic.config
    device = critic.device
    pairs = _Pairs(critic, transitions)
    n = len(transitions)
    generator = th.Generator(device).manual_seed(seed)
    order = th.randperm(n, generator=generator, device=device)
    n_held_out = int(n * config["validation_fraction"])
    held_out, train = order[:n_held_out], order[n_held_out:]
    if not n_held_out:
        train = th.arange(n, device=device)
    batch_size = min(config["batch_size"], len(train))
    n_steps = min(config["n_steps"], config["max_epochs"] * math.ceil(len(train) / batch_size))
    # Fused, since a step this small is mostly the start of kernels.
    optimizer = th.optim.Adam(critic.denoiser.parameters(), lr=config["learning_rate"], fused=True)
    lr_schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    averaged = AveragedModel(critic.denoiser, multi_avg_fn=_average(config["ema_decay"]))
    monitor = _EarlyStopping(config["patience"])
    interval = max(1, n_steps // _EVALUATIONS_PER_FIT)
    steps: list[int] = []
    train_losses: list[float] = []
    loss_sum = th.zeros((), device=device)
    with tqdm.trange(
        1, n_steps + 1, desc="critic", unit="step", disable=not progress_bar
    ) as progress:
        for step in progress:
            places = th.randint(len(train), (batch_size,), generator=generator, device=device)
            # Inside th.autocast, the last step's weights would stay in use.
            th.clear_autocast_cache()
            codes = pairs.codes(train[places])
            loss = critic.l_diff(*codes, critic.draw_noise(batch_size, generator)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            lr_schedule.step()
            averaged.update_parameters(critic.denoiser)
            loss_sum += loss.detach()
            if step % interval and step != n_steps:
                continue
            train_losses.append(float(loss_sum) / (step - (steps[-1] if steps else 0)))
            steps.append(step)
            loss_sum.zero_()
            validation_loss = _validation_loss(critic, averaged.module, pairs, held_out, seed)
            if not math.isfinite(train_losses[-1] + (validation_loss or 0.0)):
                raise RuntimeError(
                    f"The critic's loss became {train_losses[-1]} at step {step} (on held-out "
                    f"pairs {validation_loss}): fit it with a smaller learning_rate."
                )
            monitor.update(step, averaged.module, validation_loss)
            record = {"loss": train_losses[-1], "best_step": monitor.best_step}
            if validation_loss is not None:
                record["validation_loss"] = validation_loss
            progress.set_postfix({name: f"{value:.4g}" for name, value in record.items()})
            if logger is not None:
                for name, value in record.items():
                    logger.record(f"critic/{name}", value)
                logger.dump(step)
            if monitor.should_stop:
                break
    critic.denoiser.load_state_dict(monitor.best_state)
    return CriticHistory(
        steps=tuple(steps),
        train_loss=tuple(train_losses),
        validation_loss=tuple(monitor.losses),
        best_step=monitor.best_step,
        seconds=time.perf_counter() - started,
    )


def _average(decay: float) -> Any:
    """Averages exponentially; the decay grows to its value, so that short fits do not lag."""

    def average(averaged: Any, current: Any, n_averaged: Any) -> None:
        n = int(n_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n_averaged)

    return average


@th.no_grad()
def _validation_loss(
    critic: DiffusionCritic, denoiser: nn.Module, pairs: _Pairs, held_out: th.Tensor, seed: int
) -> float | None:
    """Returns the mean loss on held-out pairs under noise that is the same at every call."""
    if not len(held_out):
        return None
    rows = held_out[:_MAX_VALIDATION_PAIRS].repeat(_VALIDATION_DRAWS)
    noise = critic.draw_noise(len(rows), th.Generator(critic.device).manual_seed(seed))
    return float(critic.l_diff(*pairs.codes(rows), noise, denoiser).mean())
