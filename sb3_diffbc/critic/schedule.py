"""Noise schedules of the forward diffusion process (Ho et al., 2020).

A schedule is a plain module of buffers without a network in it. Names and values follow
Hugging Face diffusers' ``DDPMScheduler``; where a name is the same, so are the numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import nn

_BETA_START = 1e-4
_BETA_END = 2e-2
_MAX_BETA = 0.999


def _linear(num_train_timesteps: int) -> th.Tensor:
    """Betas of Ho et al. (2020), section 4."""
    return th.linspace(_BETA_START, _BETA_END, num_train_timesteps, dtype=th.float64)


def _scaled_linear(num_train_timesteps: int) -> th.Tensor:
    """Linear in the square root of beta, as in latent diffusion (Rombach et al., 2022)."""
    return th.linspace(_BETA_START**0.5, _BETA_END**0.5, num_train_timesteps, dtype=th.float64) ** 2


def _cosine(num_train_timesteps: int) -> th.Tensor:
    """Squared cosine ``alphas_cumprod`` of Nichol and Dhariwal (2021), equation 17."""
    time = th.linspace(0, 1, num_train_timesteps + 1, dtype=th.float64)
    alphas_cumprod = th.cos((time + 0.008) / 1.008 * th.pi / 2) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=_MAX_BETA)


def _sigmoid(num_train_timesteps: int) -> th.Tensor:
    """Betas of the DBC authors' release: a sigmoid between the linear schedule's ends."""
    steps = th.linspace(-6, 6, num_train_timesteps, dtype=th.float64)
    return th.sigmoid(steps) * (_BETA_END - _BETA_START) + _BETA_START


BETA_SCHEDULES: dict[str, Callable[[int], th.Tensor]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _cosine,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
}


class Noise(NamedTuple):
    """One draw of the diffusion process for a batch.

    Attributes:
        timesteps: noise levels n, int64 of shape ``(batch,)``.
        epsilon: standard normal noise ε, shape ``(batch, noise_dim)``.
    """

    timesteps: th.Tensor
    epsilon: th.Tensor


class NoiseSchedule(nn.Module):
    """Noise levels of the forward process q(x_n | x_0) (Ho et al., 2020, equation 4).

    Attributes:
        betas: variance added at each level, float32 of shape ``(num_train_timesteps,)``.
        alphas_cumprod: share of the clean signal's variance left at each level, same shape.

    Args:
        beta_schedule: one of ``"linear"``, ``"scaled_linear"``, ``"sigmoid"`` and
            ``"squaredcos_cap_v2"`` (alias ``"cosine"``), named as in diffusers.
        num_train_timesteps: number of noise levels.

    Raises:
        ValueError: if the name is unknown or there is less than one level.
    """

    betas: th.Tensor
    alphas_cumprod: th.Tensor
    sqrt_alphas_cumprod: th.Tensor
    sqrt_one_minus_alphas_cumprod: th.Tensor

    def __init__(self, beta_schedule: str = "sigmoid", num_train_timesteps: int = 1000) -> None:
        super().__init__()
        if beta_schedule not in BETA_SCHEDULES:
            raise ValueError(
                f"beta_schedule={beta_schedule!r} is unknown: "
                f"expected one of {sorted(BETA_SCHEDULES)}."
            )
        if num_train_timesteps < 1:
            raise ValueError(f"num_train_timesteps={num_train_timesteps} must be at least 1.")
        self.beta_schedule = beta_schedule
        self.num_train_timesteps = num_train_timesteps
        betas = BETA_SCHEDULES[beta_schedule](num_train_timesteps)
        # The product of a thousand factors is taken in double precision, then rounded once.
        alphas_cumprod = th.cumprod(1 - betas, dim=0)
        for name, values in {
            "betas": betas,
            "alphas_cumprod": alphas_cumprod,
            "sqrt_alphas_cumprod": alphas_cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - alphas_cumprod).sqrt(),
        }.items():
            # Derived from two constructor arguments, so not part of a checkpoint.
            self.register_buffer(name, values.float(), persistent=False)

    def add_noise(self, x: th.Tensor, noise: th.Tensor, timesteps: th.Tensor) -> th.Tensor:
        """Draws x_n from q(x_n | x_0) (Ho et al., 2020, equation 4 and its reparametrisation).

        Args:
            x: clean samples x_0, shape ``(batch, dim)``.
            noise: standard normal noise, same shape.
            timesteps: noise levels in ``[0, num_train_timesteps)``, int64 of shape ``(batch,)``.

        Returns:
            Noisy samples, same shape as ``x``.
        """
        signal = self.sqrt_alphas_cumprod[timesteps].unsqueeze(-1)
        sigma = self.sqrt_one_minus_alphas_cumprod[timesteps].unsqueeze(-1)
        return signal * x + sigma * noise
