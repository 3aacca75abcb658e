"""Ancestral sampling from a critic (Ho et al., 2020, algorithm 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch as th

from sb3_diffbc.critic.encoder import CODE_LIMIT

if TYPE_CHECKING:
    from sb3_diffbc.critic.critic import DiffusionCritic


def sample_codes(
    critic: DiffusionCritic, n: int, state: th.Tensor | None, generator: th.Generator | None
) -> tuple[th.Tensor, th.Tensor]:
    """Draws codes of pairs, or of actions given the states' codes.

    Args:
        critic: the model.
        n: number of samples.
        state: codes to draw one action for each, ``(n, obs_dim)``, for a model of p(a | s);
            None for a model of p(s, a).
        generator: source of randomness, on the critic's device; torch's global one if None.

    Returns:
        Codes of states ``(n, obs_dim)`` and of actions ``(n, act_dim)``.
    """
    x = th.randn(n, critic.noise_dim, generator=generator, device=critic.device)
    for level in reversed(range(critic.schedule.num_train_timesteps)):
        x = _reverse_step(critic, x, state, level, generator)
    return _split(critic, x, state)


def _split(
    critic: DiffusionCritic, x: th.Tensor, state: th.Tensor | None
) -> tuple[th.Tensor, th.Tensor]:
    if state is not None:
        return state, x
    state, action = x.split([critic.encoder.obs_dim, critic.encoder.act_dim], dim=-1)
    return state, action


def _reverse_step(
    critic: DiffusionCritic,
    x: th.Tensor,
    state: th.Tensor | None,
    level: int,
    generator: th.Generator | None,
) -> th.Tensor:
    """Draws x_{n-1} from p(x_{n-1} | x_n), with the posterior of a clipped x_0 (equation 7)."""
    schedule = critic.schedule
    timesteps = th.full((len(x),), level, device=critic.device)
    epsilon = critic.denoiser(*_split(critic, x, state), timesteps)
    signal = schedule.sqrt_alphas_cumprod[level]
    sigma = schedule.sqrt_one_minus_alphas_cumprod[level]
    # Codes are limited to ±10 by the encoder; a wrong x_0 at high noise must not run away.
    x_0 = ((x - sigma * epsilon) / signal).clamp(-CODE_LIMIT, CODE_LIMIT)
    if level == 0:
        return x_0
    beta, before = schedule.betas[level], schedule.alphas_cumprod[level - 1]
    variance = sigma.square()
    mean = (before.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - before) * x) / variance
    posterior_std = (beta * (1 - before) / variance).sqrt()
    return mean + posterior_std * th.randn(x.shape, generator=generator, device=critic.device)
