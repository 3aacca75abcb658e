"""The diffusion critic: a model of the expert's (observation, action) pairs."""

import copy
import dataclasses
import logging
import math
import os
import pathlib
import pickle
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch as th
import tqdm
from imitation.data import types
from imitation.util import logger as imit_logger
from stable_baselines3.common import utils
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sb3_diffbc import checkpoints
from sb3_diffbc.checkpoints import CheckpointError
from sb3_diffbc.checkpoints.values import (
    is_count,
    is_flag,
    is_number,
    is_numbers,
    is_object,
    optional,
    require_fields,
    require_int,
)
from sb3_diffbc.critic.denoiser import (
    DENOISERS,
    Denoiser,
    convert_release_state_dict,
    frozen_losses,
)
from sb3_diffbc.critic.encoder import (
    CODE_LIMIT,
    Observations,
    PairEncoder,
    to_tensor_obs,
)
from sb3_diffbc.critic.schedule import NoiseSchedule
from sb3_diffbc.demonstrations import validate_demonstrations
from sb3_diffbc.demonstrations.batches import as_transitions, to_tensor

MODELS = ("state_action", "action")

_logger = logging.getLogger("sb3_diffbc")

_EVALUATIONS_PER_FIT = 25
# What a checkpoint may ask for, so that a damaged one cannot exhaust the memory.
_LIMITS = {"width": 2**14, "depth": 2**6, "num_train_timesteps": 2**17}
_CONFIG = {
    *("models", "denoiser", "width", "depth", "beta_schedule", "num_train_timesteps"),
    *("learning_rate", "batch_size", "n_steps", "max_epochs", "validation_fraction"),
    *("patience", "ema_decay", "seed"),
}
_CONTENT = {
    "observation_space": is_object,
    "action_space": is_object,
    "config": is_object,
    "is_fitted": is_flag,
    "fit_seed": is_count,
    "history": optional(is_object),
}
_HISTORY = {
    "steps": is_numbers,
    "train_loss": is_numbers,
    "validation_loss": is_numbers,
    "best_step": is_count,
    "seconds": is_number,
}
# Of demonstrations that stay on disk: more pairs than a fit by default draws.
# Enough pairs and draws for a held-out loss that is stable in its third digit.
_MAX_VALIDATION_PAIRS = 2048
_VALIDATION_DRAWS = 4


class Guidance(NamedTuple):
    """Denoising losses of the agent's and the expert's pairs under the same noise.

    Attributes:
        agent: L_diff(s, â) per sample, shape ``(batch,)``; differentiable in â.
        expert: L_diff(s, a) per sample, shape ``(batch,)``; a constant.
    """

    agent: th.Tensor
    expert: th.Tensor


class Noise(NamedTuple):
    """One draw of the diffusion process for a batch.

    Attributes:
        timesteps: noise levels, int64 of shape ``(batch,)``.
        epsilon: standard normal noise, shape ``(batch, noise_dim)``.
    """

    timesteps: th.Tensor
    epsilon: th.Tensor


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

    steps: tuple[int, ...]
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_step: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Some of the demonstrations' pairs; coded when asked for, so that no copy of all is made.

    Attributes:
        encoder: gives the codes.
        obs: all observations, or a mapping of such.
        acts: all actions.
        order: the rows that belong here, int64.
    """

    encoder: PairEncoder
    obs: th.Tensor | dict[str, th.Tensor]
    acts: th.Tensor
    order: th.Tensor

    def __len__(self) -> int:
        return len(self.order)

    def codes(self, index: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Codes of observations and actions in the places ``index`` of the order."""
        rows = self.order[index]
        if isinstance(self.obs, dict):
            obs: Any = {key: values[rows] for key, values in self.obs.items()}
        else:
            obs = self.obs[rows]
        return self.encoder.encode_obs(obs), self.encoder.encode_acts(self.acts[rows])


def _averaging(decay: float) -> Callable[[Any, Any, Any], None]:
    """Exponential averaging whose decay grows to its value, so that short fits do not lag."""

    def average(averaged: Any, current: Any, n_averaged: Any) -> None:
        n = int(n_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + n) / (10 + n)))(averaged, current, n_averaged)

    return average


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
        if loss is not None and not math.isfinite(loss):
            raise RuntimeError(
                f"The critic's held-out loss became {loss} at step {step}: "
                "fit it with a smaller learning_rate."
            )
        is_best = loss is None or not self.losses or loss < min(self.losses)
        if loss is not None:
            self.losses.append(loss)
        self._evaluations_since_best = 0 if is_best else self._evaluations_since_best + 1
        if is_best:
            self.best_step = step
            self.best_state = copy.deepcopy(module.state_dict())


def _report(
    progress: tqdm.tqdm,
    logger: imit_logger.HierarchicalLogger | None,
    step: int,
    train_loss: float,
    monitor: _EarlyStopping,
) -> None:
    record = {"loss": train_loss, "best_step": monitor.best_step}
    if monitor.losses:
        record["validation_loss"] = monitor.losses[-1]
    progress.set_postfix({name: f"{value:.4g}" for name, value in record.items()})
    if logger is not None:
        for name, value in record.items():
            logger.record(f"critic/{name}", value)
        logger.dump(step)


def _read_weights(path: str | os.PathLike[str]) -> Mapping[str, th.Tensor]:
    try:
        weights = th.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a file of plain weights: {error}") from error
    if not isinstance(weights, Mapping):
        raise ValueError(
            f"{os.fspath(path)} is not a file of named weights: found {type(weights).__name__}."
        )
    return weights


def check_size(config: Mapping[str, Any]) -> None:
    """Refuses a network that no file of a sensible size can hold, before it is allocated.

    Args:
        config: arguments of a critic that a file asks for.

    Raises:
        CheckpointError: if a size is none or beyond its limit.
    """
    for name in _LIMITS.keys() & config.keys():
        require_int(config[name], f"critic {name}", low=1, high=_LIMITS[name])


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Refuses an argument that is none of its named choices, with a ``ValueError``."""
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: expected one of {sorted(choices)}.")


class DiffusionCritic(nn.Module):
    """Denoising diffusion model φ of expert pairs (Chen et al., 2024, section 4.2).

    Pairs are standardised and concatenated; the model learns to predict the noise that was
    added to them: L_diff(s, a) = E ‖ε̂_φ(s, a, n) − ε‖² / dim. Once fitted it is frozen, and
    :meth:`guidance` compares what a policy would do with what the expert did.

    Args:
        observation_space: observations of the demonstrations; any space that SB3 preprocesses.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        models: ``"state_action"`` models p(s, a), noise on both, as in the paper;
            ``"action"`` models p(a | s), noise on the action only.
        denoiser: ``"residual"`` (default) or ``"release"``, the authors' network.
        width: hidden units per layer.
        depth: residual blocks, or hidden layers of the release's network.
        beta_schedule: see :class:`NoiseSchedule`.
        num_train_timesteps: number of noise levels T.
        learning_rate: Adam's peak learning rate, decayed to 0 along a half cosine.
        batch_size: pairs per step; at most the number of training pairs.
        n_steps: optimiser steps at most.
        max_epochs: passes through the training pairs at most, which ends the fit of a small
            set before ``n_steps``.
        validation_fraction: share of the pairs held out for early stopping, in [0, 1).
        patience: evaluations (there are 25 in ``n_steps``) without a better held-out loss
            before the fit stops.
        ema_decay: decay per step of the averaged weights that are evaluated and kept; 0 keeps
            the raw weights.
        seed: makes the initial weights and the fit reproducible and leaves torch's global
            random state as it was; with None, both are drawn from that state.
        device: where the critic lives; ``"auto"`` takes a GPU where there is one.

    Raises:
        ValueError: for an argument outside its range.
        TypeError: for an unsupported action space.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        models: str = "state_action",
        denoiser: str = "residual",
        width: int = 96,
        depth: int = 2,
        beta_schedule: str = "sigmoid",
        num_train_timesteps: int = 1000,
        learning_rate: float = 2e-3,
        batch_size: int = 128,
        n_steps: int = 6000,
        max_epochs: int = 200,
        validation_fraction: float = 0.1,
        patience: int = 5,
        ema_decay: float = 0.995,
        seed: int | None = None,
        device: th.device | str = "auto",
    ) -> None:
        super().__init__()
        check_choice("models", models, MODELS)
        check_choice("denoiser", denoiser, DENOISERS)
        for name, value in {
            "width": width,
            "depth": depth,
            "batch_size": batch_size,
            "n_steps": n_steps,
            "max_epochs": max_epochs,
            "patience": patience,
        }.items():
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate={learning_rate} must be positive.")
        for name, share in {
            "validation_fraction": validation_fraction,
            "ema_decay": ema_decay,
        }.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name}={share} must be in [0, 1).")
        self.config: dict[str, Any] = {
            "models": models,
            "denoiser": denoiser,
            "width": int(width),
            "depth": int(depth),
            "beta_schedule": beta_schedule,
            "num_train_timesteps": int(num_train_timesteps),
            "learning_rate": float(learning_rate),
            "batch_size": int(batch_size),
            "n_steps": int(n_steps),
            "max_epochs": int(max_epochs),
            "validation_fraction": float(validation_fraction),
            "patience": int(patience),
            "ema_decay": float(ema_decay),
            "seed": None if seed is None else int(seed),
        }
        self.observation_space = observation_space
        self.action_space = action_space
        self.models = models
        self.is_fitted = False
        self.history: CriticHistory | None = None
        self.schedule = NoiseSchedule(beta_schedule, num_train_timesteps)
        self.encoder = PairEncoder(observation_space, action_space)
        # Dimensions that get noise, and hence are predicted.
        self.noise_dim = self.encoder.act_dim + (
            self.encoder.obs_dim if models == "state_action" else 0
        )
        # Only a seed of its own is set aside afterwards: without one, the next critic differs.
        with th.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                th.default_generator.manual_seed(seed)  # unlike th.manual_seed, leaves GPUs alone
            self.denoiser = DENOISERS[denoiser](
                self.encoder.obs_dim,
                self.encoder.act_dim,
                self.noise_dim,
                num_train_timesteps=num_train_timesteps,
                width=width,
                depth=depth,
            )
            self._fit_seed = int(th.randint(2**31, ()))
        self.to(utils.get_device(device))
        self._freeze()

    @property
    def device(self) -> th.device:
        """Where the critic's tensors live."""
        return self.schedule.betas.device

    def _freeze(self) -> None:
        # Frozen weights spare guidance the gradients that nobody would use.
        self.requires_grad_(False)
        self.eval()

    def draw_noise(self, batch_size: int, generator: th.Generator | None = None) -> Noise:
        """Draws antithetic noise levels and the noise for a batch, on the critic's device."""
        return Noise(
            self.schedule.draw_timesteps(batch_size, generator, self.device),
            th.randn(batch_size, self.noise_dim, generator=generator, device=self.device),
        )

    def denoising_loss(
        self,
        obs: Observations,
        acts: th.Tensor | np.ndarray,
        *,
        noise: Noise | None = None,
        generator: th.Generator | None = None,
    ) -> th.Tensor:
        """One-draw estimate of L_diff(s, a; φ) = E ‖ε̂_φ(s, a, n) − ε‖² / dim per sample.

        Args:
            obs: observations, ``(batch, *obs_shape)``, or a mapping of such.
            acts: actions, ``(batch, *act_shape)``, or relaxed ones (see ``relaxed_action``).
            noise: levels and noise to use; drawn if None.
            generator: source of randomness for the draw, on the critic's device; torch's
                global one if None.

        Returns:
            Losses of shape ``(batch,)``, differentiable in floating-point ``acts``.

        Raises:
            ValueError: if the numbers of rows differ.
        """
        state = self.encoder.encode_obs(to_tensor_obs(obs, self.device))
        action = self.encoder.encode_acts(to_tensor(acts, self.device))
        if len(state) != len(action):
            raise ValueError(
                f"obs and acts have {len(state)} and {len(action)} rows: expected the same number."
            )
        noise = noise or self.draw_noise(len(action), generator)
        state_embedding, action_noise = self._embed(self.denoiser, state, noise)
        return self._loss(self.denoiser, state_embedding, action, action_noise, noise)

    def guidance(
        self,
        obs: Observations,
        agent_acts: th.Tensor,
        expert_acts: th.Tensor | np.ndarray,
        *,
        noise: Noise | None = None,
        generator: th.Generator | None = None,
    ) -> Guidance:
        """Compares the agent's pairs with the expert's under the same levels and noise.

        The two terms of L_DM = E[max(L_diff(s, â) − L_diff(s, a), 0)]; how they are clamped is
        the caller's choice.

        Args:
            obs: observations, ``(batch, *obs_shape)``, or a mapping of such.
            agent_acts: the policy's actions â, or relaxed ones; may require gradients.
            expert_acts: the demonstrations' actions a.
            noise: levels and noise to use; drawn if None.
            generator: source of randomness for the draw, on the critic's device; torch's
                global one if None.

        Returns:
            Both losses per sample. Only the agent's carries a graph.

        Raises:
            ValueError: if the numbers of rows differ.
        """
        state = self.encoder.encode_obs(to_tensor_obs(obs, self.device))
        agent = self.encoder.encode_acts(agent_acts)
        noise = noise or self.draw_noise(len(agent), generator)
        with th.no_grad():
            expert = self.encoder.encode_acts(to_tensor(expert_acts, self.device))
            if not len(state) == len(agent) == len(expert):
                raise ValueError(
                    f"obs, agent_acts and expert_acts have {len(state)}, {len(agent)} and "
                    f"{len(expert)} rows: expected the same number."
                )
            # Both passes see the same noisy state, so its half of the first layer is shared.
            state_embedding, action_noise = self._embed(self.denoiser, state, noise)
            noisy_expert = self.schedule.add_noise(expert, action_noise, noise.timesteps)
        noisy_agent = self.schedule.add_noise(agent, action_noise, noise.timesteps)
        losses = frozen_losses(
            noisy_agent,
            noisy_expert,
            self.denoiser,
            state_embedding,
            noise.timesteps,
            noise.epsilon,
        )
        return Guidance(*losses)

    def _embed(
        self, denoiser: Denoiser, state: th.Tensor, noise: Noise
    ) -> tuple[th.Tensor, th.Tensor]:
        """State half of the first layer, and the part of the noise that is the action's."""
        if self.models == "action":
            return denoiser.embed_state(state), noise.epsilon
        state_noise, action_noise = noise.epsilon.split(
            [self.encoder.obs_dim, self.encoder.act_dim], dim=-1
        )
        noisy_state = self.schedule.add_noise(state, state_noise, noise.timesteps)
        return denoiser.embed_state(noisy_state), action_noise

    def _loss(
        self,
        denoiser: Denoiser,
        state_embedding: th.Tensor,
        action: th.Tensor,
        action_noise: th.Tensor,
        noise: Noise,
    ) -> th.Tensor:
        noisy_action = self.schedule.add_noise(action, action_noise, noise.timesteps)
        predicted = denoiser(state_embedding, noisy_action, noise.timesteps)
        return (predicted - noise.epsilon).square().mean(dim=-1)

    def fit(
        self,
        demonstrations: Any,
        *,
        progress_bar: bool = True,
        logger: imit_logger.HierarchicalLogger | None = None,
    ) -> CriticHistory:
        """Fits the critic by noise prediction (Ho et al., 2020, algorithm 1).

        Calling it again starts anew from the present weights with new statistics.

        Args:
            demonstrations: imitation transitions, or whatever ``load_demonstrations`` takes.
            progress_bar: whether to show steps and losses.
            logger: gets ``critic/...`` records at each evaluation.

        Returns:
            The curves, also kept as ``history``.

        Raises:
            ValueError: if the demonstrations do not fit the spaces, hold NaN, or are empty.
            RuntimeError: if the loss diverges.
        """
        started = time.perf_counter()
        transitions = as_transitions(demonstrations)
        validate_demonstrations(
            transitions,
            observation_space=self.observation_space,
            action_space=self.action_space,
        )
        self.encoder.fit(transitions.obs, transitions.acts)
        generator = th.Generator(self.device).manual_seed(self._fit_seed)
        train, validation = self._encode_and_split(transitions, generator)
        self.requires_grad_(True)
        self.train()
        try:
            curves = self._optimise(train, validation, generator, progress_bar, logger)
        finally:
            self._freeze()
        self.is_fitted = True
        self.history = dataclasses.replace(curves, seconds=time.perf_counter() - started)
        return self.history

    def _encode_and_split(
        self, transitions: types.TransitionsMinimal, generator: th.Generator
    ) -> tuple[_Pairs, _Pairs | None]:
        """All pairs in a random order, the held-out ones apart."""
        n = len(transitions)
        pairs = _Pairs(
            self.encoder,
            to_tensor_obs(transitions.obs, self.device),
            to_tensor(transitions.acts, self.device),
            th.randperm(n, generator=generator, device=self.device),
        )
        n_held_out = int(n * self.config["validation_fraction"])
        if n_held_out == 0:
            return dataclasses.replace(pairs, order=th.arange(n, device=self.device)), None
        return (
            dataclasses.replace(pairs, order=pairs.order[n_held_out:]),
            dataclasses.replace(pairs, order=pairs.order[:n_held_out]),
        )

    def _optimise(
        self,
        train: _Pairs,
        validation: _Pairs | None,
        generator: th.Generator,
        progress_bar: bool,
        logger: imit_logger.HierarchicalLogger | None,
    ) -> CriticHistory:
        batch_size = min(self.config["batch_size"], len(train))
        steps_per_epoch = math.ceil(len(train) / batch_size)
        n_steps = min(self.config["n_steps"], self.config["max_epochs"] * steps_per_epoch)
        # Fused, since a step this small is mostly the start of kernels.
        optimizer = th.optim.Adam(
            self.denoiser.parameters(), lr=self.config["learning_rate"], fused=True
        )
        lr_schedule = self._lr_schedule(optimizer, n_steps)
        averaged = AveragedModel(self.denoiser, multi_avg_fn=_averaging(self.config["ema_decay"]))
        monitor = _EarlyStopping(self.config["patience"])
        evaluation_interval = max(1, n_steps // _EVALUATIONS_PER_FIT)
        loss_sum = th.zeros((), device=self.device)
        steps: list[int] = []
        train_losses: list[float] = []
        with tqdm.trange(
            1, n_steps + 1, desc="critic", unit="step", disable=not progress_bar
        ) as progress:
            for step in progress:
                places = th.randint(
                    len(train), (batch_size,), generator=generator, device=self.device
                )
                # Inside th.autocast, the last step's weights would stay in use.
                th.clear_autocast_cache()
                state, action = train.codes(places)
                noise = self.draw_noise(batch_size, generator)
                state_embedding, action_noise = self._embed(self.denoiser, state, noise)
                loss = self._loss(self.denoiser, state_embedding, action, action_noise, noise)
                loss = loss.mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                lr_schedule.step()
                averaged.update_parameters(self.denoiser)
                loss_sum += loss.detach()
                if step % evaluation_interval and step != n_steps:
                    continue
                steps.append(step)
                train_losses.append(float(loss_sum) / (step - (steps[-2] if steps[1:] else 0)))
                loss_sum.zero_()
                monitor.update(
                    step,
                    averaged.module,
                    self._validation_loss(cast(Denoiser, averaged.module), validation),
                )
                _report(progress, logger, step, train_losses[-1], monitor)
                if monitor.should_stop:
                    break
        self.denoiser.load_state_dict(monitor.best_state)
        return CriticHistory(
            tuple(steps), tuple(train_losses), tuple(monitor.losses), monitor.best_step, 0.0
        )

    def _lr_schedule(
        self, optimizer: th.optim.Optimizer, n_steps: int
    ) -> th.optim.lr_scheduler.LRScheduler:
        return th.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)

    @th.no_grad()
    def _validation_loss(self, denoiser: Denoiser, held_out: _Pairs | None) -> float | None:
        """Mean loss on held-out pairs under noise that is the same at every call."""
        if held_out is None:
            return None
        generator = th.Generator(self.device).manual_seed(self._fit_seed)
        places = th.arange(min(len(held_out), _MAX_VALIDATION_PAIRS), device=self.device)
        places = places.repeat(_VALIDATION_DRAWS)
        state, action = held_out.codes(places)
        noise = self.draw_noise(len(places), generator)
        state_embedding, action_noise = self._embed(denoiser, state, noise)
        return float(self._loss(denoiser, state_embedding, action, action_noise, noise).mean())

    @th.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        obs: Observations | None = None,
        generator: th.Generator | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """Draws pairs from the model by ancestral sampling (Ho et al., 2020, algorithm 2).

        Args:
            n: number of pairs, for a model of p(s, a).
            obs: observations to draw one action for each, for a model of p(a | s).
            generator: source of randomness, on the critic's device.

        Returns:
            Flattened observations ``(n, obs_dim)`` and actions of the action space.

        Raises:
            ValueError: if ``n`` is missing or below 1, or ``obs`` is given, for p(s, a); if
                ``obs`` is missing or ``n`` is given, for p(a | s).
        """
        if self.models == "action":
            if obs is None or n is not None:
                raise ValueError(
                    "A critic of p(a | s) samples one action for each row of obs: "
                    f"found n={n}{' and no obs' if obs is None else ''}."
                )
            state = self.encoder.encode_obs(to_tensor_obs(obs, self.device))
            action = self._denoise_from_scratch(len(state), state, generator)
            return self.encoder.decode_obs(state), self.encoder.decode_acts(action)
        if obs is not None or n is None or n < 1:
            raise ValueError(
                "A critic of p(s, a) samples n >= 1 pairs: "
                f"found n={n}{'' if obs is None else ' and obs'}."
            )
        pair = self._denoise_from_scratch(n, None, generator)
        state, action = pair.split([self.encoder.obs_dim, self.encoder.act_dim], dim=-1)
        return self.encoder.decode_obs(state), self.encoder.decode_acts(action)

    def _denoise_from_scratch(
        self, n: int, state: th.Tensor | None, generator: th.Generator | None
    ) -> th.Tensor:
        x = th.randn(n, self.noise_dim, generator=generator, device=self.device)
        for level in reversed(range(self.schedule.num_train_timesteps)):
            x = self._reverse_step(x, state, level, generator)
        return x

    def _reverse_step(
        self, x: th.Tensor, state: th.Tensor | None, level: int, generator: th.Generator | None
    ) -> th.Tensor:
        """One step of p(x_{n-1} | x_n), the posterior mean with a clipped x_0."""
        schedule = self.schedule
        timesteps = th.full((len(x),), level, device=self.device)
        if state is None:
            noisy_state, noisy_action = x.split([self.encoder.obs_dim, self.encoder.act_dim], -1)
        else:
            noisy_state, noisy_action = state, x
        epsilon = self.denoiser(self.denoiser.embed_state(noisy_state), noisy_action, timesteps)
        signal = schedule.sqrt_alphas_cumprod[level]
        sigma = schedule.sqrt_one_minus_alphas_cumprod[level]
        # Codes are limited to +-10 by the encoder; a wrong x_0 at high noise must not run away.
        x_0 = ((x - sigma * epsilon) / signal).clamp(-CODE_LIMIT, CODE_LIMIT)
        if level == 0:
            return x_0
        beta, before = schedule.betas[level], schedule.alphas_cumprod[level - 1]
        variance = sigma.square()
        mean = (before.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - before) * x) / variance
        posterior_std = (beta * (1 - before) / variance).sqrt()
        return mean + posterior_std * th.randn(x.shape, generator=generator, device=self.device)

    def checkpoint_content(self) -> tuple[dict[str, th.Tensor], dict[str, Any]]:
        """What a checkpoint holds of a critic: named tensors and JSON."""
        return checkpoints.module_state(self, ""), {
            "observation_space": checkpoints.space_to_json(self.observation_space),
            "action_space": checkpoints.space_to_json(self.action_space),
            "config": self.config,
            "is_fitted": self.is_fitted,
            "fit_seed": self._fit_seed,
            "history": None if self.history is None else dataclasses.asdict(self.history),
        }

    @classmethod
    def from_checkpoint_content(
        cls,
        tensors: Mapping[str, th.Tensor],
        content: Mapping[str, Any],
        device: th.device | str = "auto",
    ) -> "DiffusionCritic":
        """Inverse of :meth:`checkpoint_content`."""
        fields = {name: value for name, value in content.items() if name != "versions"}
        require_fields(fields, _CONTENT, "critic")
        if content["config"].keys() != _CONFIG:
            wrong = sorted(content["config"].keys() ^ _CONFIG)
            raise CheckpointError(f"critic config: missing or unexpected {', '.join(wrong)}")
        check_size(content["config"])
        with th.random.fork_rng(devices=[]):  # the first weights are overwritten
            critic = cls(
                checkpoints.space_from_json(content["observation_space"]),
                checkpoints.space_from_json(content["action_space"]),
                device=device,
                **content["config"],
            )
        checkpoints.load_module_state(critic, tensors, "")
        critic.is_fitted = content["is_fitted"]
        critic._fit_seed = content["fit_seed"]
        if content["history"] is not None:
            history = content["history"]
            require_fields(history, _HISTORY, "critic history")
            critic.history = CriticHistory(
                steps=tuple(history["steps"]),
                train_loss=tuple(history["train_loss"]),
                validation_loss=tuple(history["validation_loss"]),
                best_step=history["best_step"],
                seconds=history["seconds"],
            )
        return critic

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the critic to one safetensors file, atomically.

        Args:
            path: where to; ``.safetensors`` is appended if there is no suffix.

        Returns:
            The path written.
        """
        tensors, content = self.checkpoint_content()
        return checkpoints.save_checkpoint(path, kind="critic", tensors=tensors, content=content)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: th.device | str = "auto"
    ) -> "DiffusionCritic":
        """Reads what :meth:`save` wrote. Nothing in the file is executed or imported.

        Args:
            path: the file.
            device: where to put the critic.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: a ``ValueError``, if it is not a critic's checkpoint.
        """
        tensors, content = checkpoints.load_checkpoint(path, kind="critic")
        with checkpoints.reading_content(path, "critic"):
            return cls.from_checkpoint_content(tensors, content, device)

    @classmethod
    def from_release(
        cls,
        state_dict: str | os.PathLike[str] | Mapping[str, th.Tensor],
        demonstrations: Any,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        device: th.device | str = "auto",
    ) -> "DiffusionCritic":
        """Takes over a diffusion model that the DBC authors' code trained.

        Args:
            state_dict: the weights, or the path of the file that holds them; the file is read
                without unpickling objects.
            demonstrations: what the model was trained on; the release standardises with their
                statistics, which its file does not hold.
            observation_space: their observations' space.
            action_space: their actions' space.
            device: where to put the critic.

        Returns:
            A fitted critic with the release's network.

        Raises:
            ValueError: if the weights are not those of the release's network, or they or the
                demonstrations do not fit the spaces.
        """
        weights = convert_release_state_dict(
            state_dict if isinstance(state_dict, Mapping) else _read_weights(state_dict)
        )
        num_train_timesteps, width = weights["step_embeddings.0.weight"].shape
        critic = cls(
            observation_space,
            action_space,
            denoiser="release",
            width=width,
            depth=sum(name.startswith("step_embeddings.") for name in weights),
            num_train_timesteps=num_train_timesteps,
            device=device,
        )
        checkpoints.load_module_state(critic.denoiser, weights, "")
        transitions = as_transitions(demonstrations)
        validate_demonstrations(
            transitions, observation_space=observation_space, action_space=action_space
        )
        critic.encoder.fit(transitions.obs, transitions.acts)
        critic.is_fitted = True
        return critic
