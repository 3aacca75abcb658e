"""How expert-like pairs are: a deterministic score, as a share of what the expert's own pairs get.

L_diff alone is a poor judge. A level of the noise at which it tells good actions from bad ones on
one task says nothing on the next; and where many labels are the same wrong action, zeros for
instance, a model of the density finds this action the likeliest of all. The score is therefore a
difference: how much better the noise is predicted for the pair than for the same action at other
observations. Averaged over levels that are evenly spaced in their log signal-to-noise ratio, L_diff
bounds a negative log likelihood (Kingma et al., 2021, "Variational diffusion models"), and the
difference estimates log p(a | s) − log p(a), the pointwise mutual information.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from torch import nn

from sb3_diffbc.critic.encoder import Pairs
from sb3_diffbc.critic.schedule import Noise
from sb3_diffbc.demonstrations.validation import checked_pairs

if TYPE_CHECKING:
    from sb3_diffbc.critic.critic import DiffusionCritic

N_DRAWS = 12
"""Noise levels, each with a noise and another pair of its own."""
MAX_PAIRS = 2048
"""Pairs that the share is measured against, at most."""

NOISE_STD = (0.2, 0.9)
"""Least and largest std of the levels' noise."""
_N_QUANTILES = 1001
_SEED = 0
_MAX_ROWS = 1024  # what is fastest on CPUs: larger parts leave the cache
_CHUNK_VALUES = 2**20
# Products of matrices with fewer rows are rounded in another way.
_MIN_ROWS = 16
_ROUNDING = 1e-5


class Calibration(nn.Module):
    """What a critic's score is measured with and against; see :meth:`DiffusionCritic.score`.

    Attributes:
        timesteps: noise levels, shape ``(N_DRAWS,)``.
        epsilon: the noise at each, shape ``(N_DRAWS, noise_dim)``; two levels share one, with
            opposite signs.
        state: codes of the observations of other pairs, shape ``(N_DRAWS, obs_dim)``.
        action: codes of their actions, shape ``(N_DRAWS, act_dim)``.
        quantiles: raw scores of expert pairs at evenly spaced shares, ascending.
    """

    timesteps: th.Tensor
    epsilon: th.Tensor
    state: th.Tensor
    action: th.Tensor
    quantiles: th.Tensor

    def __init__(self, critic: DiffusionCritic) -> None:
        super().__init__()
        schedule, encoder, device = critic.schedule, critic.encoder, critic.device
        log_snr = _log_snr(schedule.sqrt_one_minus_alphas_cumprod)
        first, last = _log_snr(th.tensor(NOISE_STD, device=device))
        wanted = first + (last - first) * th.linspace(0, 1, N_DRAWS, device=device)
        levels = (log_snr - wanted.unsqueeze(-1)).abs().argmin(dim=-1)
        # The levels follow from the schedule, so they are not part of a checkpoint.
        self.register_buffer("timesteps", levels, persistent=False)
        sizes = {
            "epsilon": (N_DRAWS, critic.noise_dim),
            "state": (N_DRAWS, encoder.obs_dim),
            "action": (N_DRAWS, encoder.act_dim),
            "quantiles": (_N_QUANTILES,),
        }
        for name, size in sizes.items():
            self.register_buffer(name, th.zeros(size, device=device))

    @th.no_grad()
    def raw(self, critic: DiffusionCritic, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        """Returns the score before it is compared with the expert's.

        For p(a | s) it is the mean over draws of L_diff(s', a) − L_diff(s, a), where s' is another
        observation. p(s, a) does not know how likely other actions are at s, so that the mean of
        L_diff(s', a) + L_diff(s, a') − L_diff(s', a') − L_diff(s, a) takes its place, where a' is
        the action that belongs to s'. Both are 0 where the pair is the other pair itself.

        Args:
            critic: the model.
            state: state codes, shape ``(n, obs_dim)``.
            action: action codes, shape ``(n, act_dim)``.

        Returns:
            Shape ``(n,)``.
        """
        total = th.zeros(len(action), device=action.device)
        draws = zip(self.timesteps, self.epsilon, self.state, self.action, strict=True)
        for level, epsilon, other_state, other_action in draws:
            # One draw for all rows.
            noise = Noise(level.unsqueeze(0), epsilon.unsqueeze(0))
            other_state, other_action = other_state.expand_as(state), other_action.expand_as(action)
            total += critic.l_diff(other_state, action, noise)
            total -= critic.l_diff(state, action, noise)
            if critic.models == "state_action":
                total += critic.l_diff(state, other_action, noise)
                total -= critic.l_diff(other_state[:1], other_action[:1], noise)
        return total / N_DRAWS

    def raw_of(self, critic: DiffusionCritic, pairs: Pairs, rows: th.Tensor) -> th.Tensor:
        """Returns :meth:`raw` of some rows, which are read and coded part by part."""
        dim = max(critic.encoder.obs_dim, critic.noise_dim, critic.config["width"])
        parts = []
        for part in rows.split(max(_MIN_ROWS, min(_MAX_ROWS, _CHUNK_VALUES // dim))):
            n_missing = max(0, _MIN_ROWS - len(part))
            padded = th.cat([part, part[:1].expand(n_missing)])
            parts.append(self.raw(critic, *pairs.codes(padded))[: len(part)])
        return th.cat(parts)


def _log_snr(std: th.Tensor) -> th.Tensor:
    """Returns the log signal-to-noise ratio log(ᾱ / (1 − ᾱ)) of the noise's standard deviation."""
    variance = std.double().square()
    return th.log1p(-variance) - variance.log()


def calibrated(critic: DiffusionCritic, pairs: Pairs, rows: th.Tensor) -> Calibration:
    """Chooses draws and other pairs, and measures expert pairs with them.

    Args:
        critic: the model, with its final weights.
        pairs: demonstrations.
        rows: which of them to measure, at least one; ``MAX_PAIRS`` are drawn of more.

    Returns:
        The calibration, the same at each call.

    Raises:
        ValueError: if a loss is NaN or infinite.
    """
    generator = th.Generator().manual_seed(_SEED)
    calibration = Calibration(critic)
    noise = th.randn((N_DRAWS + 1) // 2, critic.noise_dim, generator=generator)
    calibration.epsilon.copy_(th.stack([noise, -noise], dim=1).flatten(0, 1)[:N_DRAWS])
    rows = rows[th.randperm(len(rows), generator=generator)[:MAX_PAIRS].to(rows.device)]
    others = rows[th.arange(N_DRAWS, device=rows.device) % len(rows)]
    calibration.state, calibration.action = pairs.codes(others)
    raw = calibration.raw_of(critic, pairs, rows)
    if not raw.isfinite().all():
        raise ValueError("the critic's loss is NaN or infinite on demonstrations: it has diverged.")
    calibration.quantiles = quantiles_of(raw)
    return calibration


def score_pairs(critic: DiffusionCritic, obs: Any, acts: Any, raw: bool) -> th.Tensor:
    """Scores pairs; see :meth:`DiffusionCritic.score`."""
    critic._check_fitted()
    pairs = Pairs(critic.encoder, *checked_inputs(critic, obs, acts))
    values = critic.calibration.raw_of(critic, pairs, th.arange(len(acts)))
    return values if raw else share_below(values, critic.calibration.quantiles)


def checked_inputs(owner: Any, obs: Any, acts: Any) -> tuple[Any, Any]:
    """Returns observations and actions as arrays that fit the spaces of a critic or a policy.

    Raises:
        ValueError: if they do not, their lengths differ or are 0, or a value is NaN or infinite.
    """
    obs = {key: _array(part) for key, part in obs.items()} if hasattr(obs, "items") else _array(obs)
    acts = _array(acts)
    checked_pairs(obs, acts, owner.observation_space, owner.action_space)
    return obs, acts


def _array(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, th.Tensor) else np.asanyarray(values)


def quantiles_of(values: th.Tensor) -> th.Tensor:
    """Returns the quantiles of values at evenly spaced shares, ascending."""
    shares = th.linspace(0, 1, _N_QUANTILES, dtype=values.dtype, device=values.device)
    return values.quantile(shares)


def share_below(values: th.Tensor, quantiles: th.Tensor) -> th.Tensor:
    """Returns which share of a distribution lies below values; of what is equal, half counts.

    Args:
        values: any shape.
        quantiles: what :func:`quantiles_of` returned.

    Returns:
        Shares from 0 to 1, linear between the quantiles.
    """
    # What differs by rounding alone is equal.
    margin = _ROUNDING * (1 + quantiles.abs().max())
    return (_share(values - margin, quantiles) + _share(values + margin, quantiles)) / 2


def _share(values: th.Tensor, quantiles: th.Tensor) -> th.Tensor:
    last = len(quantiles) - 1
    above = th.searchsorted(quantiles, values.contiguous(), right=True)
    lower, upper = (above - 1).clamp(min=0), above.clamp(max=last)
    gap = quantiles[upper] - quantiles[lower]
    part = th.where(gap > 0, (values - quantiles[lower]) / gap, 0.0)
    return (lower + part) / last
