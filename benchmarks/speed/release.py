"""Training of the DBC authors' release, rewritten from its description to be timed.

Written as plain research code is: a ``DataLoader`` over a ``TensorDataset``, autograd for
everything, Adam as torch makes it. Nothing is slowed down on purpose; where the release's cost is
not certain, the cheaper way is taken (the critic is frozen while the policy learns).
"""

import itertools
from collections.abc import Iterator

import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)
from torch.utils.data import DataLoader, TensorDataset

NUM_LEVELS = 1000
BATCH_SIZE = 128
LEARNING_RATE = 2e-4
MAX_GRADIENT_NORM = 0.5
POLICY_WIDTHS = (128, 128, 128)


def sigmoid_betas(num_levels: int = NUM_LEVELS) -> th.Tensor:
    """Variance added at each noise level."""
    return th.sigmoid(th.linspace(-6, 6, num_levels)) * (2e-2 - 1e-4) + 1e-4


def antithetic_levels(n: int, num_levels: int = NUM_LEVELS) -> th.Tensor:
    """Levels of which the second half mirrors the first."""
    drawn = th.randint(num_levels, ((n + 1) // 2,))
    return th.cat([drawn, num_levels - 1 - drawn])[:n]


class ReleaseNetwork(nn.Module):
    """ReLU MLP that predicts the noise in a pair, with a learnt vector per layer and level.

    The last hidden layer is there, and has parameters, but the forward pass leaves it out (as in
    the model that the authors publish, it has no level vectors).
    """

    def __init__(
        self, pair_dim: int, *, width: int = 1024, depth: int = 4, num_levels: int = NUM_LEVELS
    ) -> None:
        super().__init__()
        sizes = [pair_dim] + [width] * depth
        self.hidden = nn.ModuleList(itertools.starmap(nn.Linear, itertools.pairwise(sizes)))
        self.levels = nn.ModuleList(nn.Embedding(num_levels, width) for _ in range(depth - 1))
        self.out = nn.Linear(width, pair_dim)

    def forward(self, pairs: th.Tensor, levels: th.Tensor) -> th.Tensor:
        """Predicted noise, shaped as ``pairs``."""
        hidden = pairs
        for layer, level_vectors in zip(self.hidden[:-1], self.levels, strict=True):
            hidden = F.relu(layer(hidden) + level_vectors(levels))
        return self.out(hidden)


class NoisePrediction(nn.Module):
    """The denoising loss of a network under the release's noise."""

    signal: th.Tensor
    sigma: th.Tensor

    def __init__(self, network: ReleaseNetwork) -> None:
        super().__init__()
        self.network = network
        clean_share = th.cumprod(1 - sigmoid_betas(), dim=0)
        self.register_buffer("signal", clean_share.sqrt())
        self.register_buffer("sigma", (1 - clean_share).sqrt())

    def forward(self, pairs: th.Tensor, levels: th.Tensor, noise: th.Tensor) -> th.Tensor:
        """Mean squared error of the predicted noise, per pair."""
        signal, sigma = self.signal[levels].unsqueeze(-1), self.sigma[levels].unsqueeze(-1)
        predicted = self.network(signal * pairs + sigma * noise, levels)
        return (predicted - noise).square().mean(dim=-1)


class CriticTraining:
    """Fits p(s, a) to standardised pairs, for as many steps at a time as one likes."""

    def __init__(self, pairs: th.Tensor, *, width: int = 1024) -> None:
        self.network = ReleaseNetwork(pairs.shape[1], width=width)
        self._loss = NoisePrediction(self.network)
        self._optimizer = th.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        self._batches = _endless(TensorDataset(pairs))

    def run(self, n_steps: int) -> None:
        """Makes optimiser steps."""
        for (pairs,) in itertools.islice(self._batches, n_steps):
            levels, noise = antithetic_levels(len(pairs)), th.randn_like(pairs)
            loss = self._loss(pairs, levels, noise).mean()
            self._optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
            self._optimizer.step()


class PolicyTraining:
    """Clones standardised actions by squared error and L_DM, clamped on batch means.

    The critic is frozen from here on.
    """

    def __init__(self, obs: th.Tensor, acts: th.Tensor, critic: ReleaseNetwork) -> None:
        sizes = [obs.shape[1], *POLICY_WIDTHS]
        layers = [
            part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.Tanh())
        ]
        self.policy = nn.Sequential(*layers, nn.Linear(sizes[-1], acts.shape[1]))
        self._loss = NoisePrediction(critic).requires_grad_(False)
        self._optimizer = th.optim.Adam(self.policy.parameters())
        self._batches = _endless(TensorDataset(obs, acts))

    def run(self, n_steps: int) -> None:
        """Makes updates."""
        for obs, acts in itertools.islice(self._batches, n_steps):
            predicted = self.policy(obs)
            expert_pairs = th.cat([obs, acts], dim=-1)
            levels, noise = antithetic_levels(len(obs)), th.randn_like(expert_pairs)
            agent = self._loss(th.cat([obs, predicted], dim=-1), levels, noise).mean()
            expert = self._loss(expert_pairs, levels, noise).mean()
            loss = F.mse_loss(predicted, acts) + (agent - expert).clamp(min=0)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()


def _endless(dataset: TensorDataset) -> Iterator[list[th.Tensor]]:
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True)
    return itertools.chain.from_iterable(itertools.repeat(loader))
