"""Implicit Behavioral Cloning (Florence et al., 2021, https://arxiv.org/abs/2109.00137).

The policy is the minimum of a learnt energy, â = argmin_a E(s, a) (equation 1). This is the
paper's variant without gradients in the search (its "derivative-free optimiser"): uniform
counter-examples while training, sampling with shrinking noise at inference.

As in the paper and its release: the InfoNCE loss at temperature 1, standardised observations,
actions scaled to [-1, 1], counter-examples and candidates in the demonstrated range widened by
5 % on either side (not beyond the action space), Adam at 1e-3, three iterations with noise of
0.33 that halves.

What deviates, to compare with BC: a plain ReLU MLP of BC's size (the paper tunes width and depth
per task, and mostly uses residual networks of eight or more layers), fewer candidates by default
than 2^14, a learning rate that falls to 0 (the paper: by 1 % every 100 updates), weights
initialised as torch does, no stack of past observations.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from benchmarks.methods.base import Setup, Variant
from benchmarks.methods.sampling import SamplingMethod

_MARGIN = 0.05
"""What candidates may leave the demonstrated range by on either side, as a share of it."""
_NOISE_STD, _NOISE_SHRINK = 0.33, 0.5
"""Standard deviation of the search's first move in codes, and the factor on it after each."""
_CANDIDATES_AT_ONCE = 2**13
"""Candidates that are searched together: their activations still fit a processor's cache."""


class EnergyNetwork(nn.Module):
    """E(s, a) as a ReLU MLP of the concatenated codes, with ``depth`` hidden layers."""

    def __init__(self, obs_dim: int, act_dim: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.obs_dim = obs_dim
        sizes = [obs_dim + act_dim] + [width] * depth
        self.hidden = nn.ModuleList(
            nn.Linear(size_in, size_out) for size_in, size_out in pairwise(sizes)
        )
        self.out = nn.Linear(width, 1)

    def forward(self, obs: th.Tensor, acts: th.Tensor) -> th.Tensor:
        """Energies ``(batch, n)`` of codes ``(batch, obs_dim)`` and ``(batch, n, act_dim)``."""
        # The first layer's observation half is computed once for all n actions.
        weight, bias = self.hidden[0].get_parameter("weight"), self.hidden[0].get_parameter("bias")
        obs_weight, act_weight = weight.tensor_split([self.obs_dim], dim=1)
        from_obs = F.linear(obs, obs_weight, bias).unsqueeze(1)
        hidden = F.relu_(F.linear(acts, act_weight) + from_obs)
        for layer in self.hidden[1:]:
            hidden = F.relu_(layer(hidden))
        return self.out(hidden).squeeze(-1)


def info_nce_loss(energies: th.Tensor) -> th.Tensor:
    """Mean InfoNCE loss, -log softmax(-E) of the expert among its counter-examples (section 2).

    Energies have the shape ``(batch, 1 + n_counter_examples)``, the expert's in column 0.
    """
    return (energies[:, 0] + th.logsumexp(-energies, dim=1)).mean()


def uniform_actions(
    shape: tuple[int, int], low: th.Tensor, high: th.Tensor, generator: th.Generator
) -> th.Tensor:
    """Draws action codes uniformly between limits ``(act_dim,)``; ``(*shape, act_dim)``."""
    return th.lerp(low, high, th.rand(*shape, len(low), generator=generator))


class SearchNoise(NamedTuple):
    """Random numbers of one derivative-free search.

    Attributes:
        candidates: first candidates, ``(batch, n_samples, act_dim)``.
        picks: uniform in [0, 1), one per resampled candidate,
            ``(n_iterations - 1, batch, n_samples)``.
        jitter: standard normal, ``(n_iterations - 1, batch, n_samples, act_dim)``.
    """

    candidates: th.Tensor
    picks: th.Tensor
    jitter: th.Tensor


def derivative_free_search(
    energy: Callable[[th.Tensor], th.Tensor],
    noise: SearchNoise,
    *,
    low: th.Tensor,
    high: th.Tensor,
) -> tuple[th.Tensor, th.Tensor]:
    """The paper's derivative-free optimiser (its algorithm 1).

    Each iteration draws candidates anew with probabilities softmax(-E), moves them by Gaussian
    noise, clips them, and shrinks the noise. The last one only weighs them.

    Args:
        energy: maps candidates ``(batch, n_samples, act_dim)`` to energies
            ``(batch, n_samples)``.
        noise: random numbers; their shapes say how many candidates and iterations.
        low: smallest codes, ``(act_dim,)``.
        high: largest codes.

    Returns:
        The last candidates and their energies, in the shapes above.
    """
    candidates = noise.candidates
    energies, noise_std = energy(candidates), _NOISE_STD
    for picks, jitter in zip(noise.picks, noise.jitter, strict=True):
        cumulative = th.softmax(-energies, dim=1).cumsum(dim=1)
        # Rounding may leave the last sum a little below or above 1.
        chosen = th.searchsorted(cumulative, picks * cumulative[:, -1:])
        chosen = chosen.clamp_(max=candidates.shape[1] - 1).unsqueeze(-1).expand_as(candidates)
        moved = candidates.gather(1, chosen).add_(jitter, alpha=noise_std)
        candidates = th.minimum(th.maximum(moved, low), high)
        energies = energy(candidates)
        noise_std *= _NOISE_SHRINK
    return candidates, energies


class ImplicitBC(SamplingMethod):
    """Implicit BC with uniform counter-examples and the derivative-free optimiser.

    ``deterministic=True`` takes the best candidate of the search; otherwise one is drawn with
    probabilities softmax(-E).

    Args:
        setup: see :class:`SamplingMethod`.
        width: hidden units per layer.
        depth: number of hidden layers.
        n_counter_examples: uniform actions that each expert action is told from.
        n_samples: candidates of the search; the paper takes 2^14.
        n_iterations: of the search.
        **shared: further arguments of :class:`SamplingMethod`.

    Raises:
        TypeError: if the action space is not a Box.
        ValueError: if the demonstrations do not fit the spaces or are fewer than a batch.
    """

    network: EnergyNetwork

    def __init__(
        self,
        setup: Setup,
        *,
        width: int = 128,
        depth: int = 3,
        n_counter_examples: int = 256,
        n_samples: int = 1024,
        n_iterations: int = 3,
        **shared: Any,
    ) -> None:
        super().__init__(setup, width=width, depth=depth, **shared)
        self.n_counter_examples = n_counter_examples
        self.n_samples, self.n_iterations = n_samples, n_iterations
        self.config |= {
            "n_counter_examples": n_counter_examples,
            "margin": _MARGIN,
            "n_samples": n_samples,
            "n_iterations": n_iterations,
            "noise_std": _NOISE_STD,
            "noise_shrink": _NOISE_SHRINK,
        }
        with th.random.fork_rng(devices=[]):
            th.default_generator.manual_seed(self._weights_seed)
            self.network = EnergyNetwork(
                self.encoder.obs_dim, self.action_range.dim, width=width, depth=depth
            )

    def _loss(self, obs: th.Tensor, acts: th.Tensor, generator: th.Generator) -> th.Tensor:
        counter_examples = uniform_actions(
            (len(obs), self.n_counter_examples),
            *self.action_range.code_limits(_MARGIN),
            generator,
        )
        energies = self.network(obs, th.cat([acts.unsqueeze(1), counter_examples], dim=1))
        return info_nce_loss(energies)

    def _sample(self, obs: th.Tensor, deterministic: bool, generator: th.Generator) -> th.Tensor:
        rows_at_once = max(1, _CANDIDATES_AT_ONCE // self.n_samples)
        parts = [self._search(rows, deterministic, generator) for rows in obs.split(rows_at_once)]
        return th.cat(parts)

    def _search(self, obs: th.Tensor, deterministic: bool, generator: th.Generator) -> th.Tensor:
        low, high = self.action_range.code_limits(_MARGIN)
        shape = (len(obs), self.n_samples)
        moves = (self.n_iterations - 1, *shape)
        candidates, energies = derivative_free_search(
            lambda acts: self.network(obs, acts),
            SearchNoise(
                uniform_actions(shape, low, high, generator),
                th.rand(*moves, generator=generator),
                th.randn(*moves, self.action_range.dim, generator=generator),
            ),
            low=low,
            high=high,
        )
        if deterministic:
            best = energies.argmin(dim=1)
        else:
            # The Gumbel trick: a draw from softmax(-E).
            uniform = th.rand(energies.shape, generator=generator)
            best = (energies + (-uniform.log()).log()).argmin(dim=1)
        return candidates[th.arange(len(best)), best]


VARIANTS = (
    Variant(
        "implicit_bc",
        ImplicitBC,
        # Smaller than the paper's, so that training costs about three times DiffusionBC's.
        {"batch_size": 32, "n_counter_examples": 48, "n_samples": 256, "n_iterations": 3},
        "Implicit BC",
    ),
)
