"""Implicit BC: the loss, the energy, the derivative-free search, and how actions are chosen."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.data.types import TransitionsMinimal
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from benchmarks.methods import implicit_bc
from benchmarks.methods.base import Setup
from benchmarks.methods.implicit_bc import (
    EnergyNetwork,
    ImplicitBC,
    SearchNoise,
    derivative_free_search,
    info_nce_loss,
    uniform_actions,
)
from benchmarks.methods.sampling import SamplingPolicy
from sb3_diffbc.demonstrations import DemonstrationWarning

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
LOW, HIGH = th.full((2,), -1.0), th.full((2,), 1.0)
SEARCH: dict[str, Any] = {"low": LOW, "high": HIGH}


def make(**arguments: Any) -> ImplicitBC:
    data = TransitionsMinimal(
        obs=np.zeros((128, 2), np.float32),
        acts=np.linspace([-1, -1], [1, 1], 128, dtype=np.float32),
        infos=np.full(128, {}),
    )
    with pytest.warns(DemonstrationWarning, match="never changes"):
        return ImplicitBC(Setup(data, OBSERVATIONS, ACTIONS), width=8, **arguments)  # type: ignore[arg-type]


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def search_noise(batch: int, n_samples: int, n_iterations: int = 3, seed: int = 0) -> SearchNoise:
    source = generator(seed)
    return SearchNoise(
        uniform_actions((batch, n_samples), LOW, HIGH, source),
        th.rand(n_iterations - 1, batch, n_samples, generator=source),
        th.randn(n_iterations - 1, batch, n_samples, 2, generator=source),
    )


def quadratic(minima: th.Tensor, scale: float) -> Callable[[th.Tensor], th.Tensor]:
    """Energies |a - minimum|² · scale, one minimum per row."""
    return lambda acts: (acts - minima.unsqueeze(1)).square().sum(dim=-1) * scale


class Bowl(nn.Module):
    """An energy around an action that does not depend on the observation."""

    def __init__(self, minimum: tuple[float, float], scale: float) -> None:
        super().__init__()
        # SB3 finds a policy's device by its parameters.
        self.minimum = nn.Parameter(th.tensor(minimum))
        self.scale = scale

    def forward(self, obs: th.Tensor, acts: th.Tensor) -> th.Tensor:
        return (acts - self.minimum).square().sum(dim=-1) * self.scale


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_expert() -> None:
    energies = th.randn(7, 5, generator=generator()) * 3
    by_hand = [-np.log(np.exp(-row[0]) / np.exp(-row).sum()) for row in energies.double().numpy()]
    np.testing.assert_allclose(info_nce_loss(energies), np.mean(by_hand), rtol=1e-5)
    cross_entropy = F.cross_entropy(-energies, th.zeros(7, dtype=th.int64))
    np.testing.assert_allclose(info_nce_loss(energies), cross_entropy, rtol=1e-5)


# --- the energy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
def test_the_network_is_an_mlp_of_the_concatenated_codes(depth: int) -> None:
    th.manual_seed(0)
    network = EnergyNetwork(3, 2, width=8, depth=depth)
    obs, acts = th.randn(4, 3), th.randn(4, 5, 2)
    hidden = th.cat([obs.unsqueeze(1).expand(-1, 5, -1), acts], dim=-1)
    for layer in network.hidden:
        hidden = layer(hidden).relu()
    expected = network.out(hidden).squeeze(-1)
    np.testing.assert_allclose(network(obs, acts).detach(), expected.detach(), atol=1e-6)
    sizes = [5] + [8] * depth + [1]
    n_parameters = sum((size_in + 1) * size_out for size_in, size_out in pairwise(sizes))
    assert sum(p.numel() for p in network.parameters()) == n_parameters


# --- counter-examples ---------------------------------------------------------------------------


def test_training_draws_fresh_counter_examples_for_every_expert_action(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = make(n_counter_examples=6)
    seen = []

    def watched(obs: th.Tensor, acts: th.Tensor) -> th.Tensor:
        seen.append(acts)
        return acts.sum(dim=-1)

    monkeypatch.setattr(method, "network", watched)
    expert = th.rand(5, 2)
    source = generator()
    for _ in range(2):
        method._loss(th.zeros(5, 2), expert, source)
    assert seen[0].shape == (5, 7, 2)
    assert th.equal(seen[0][:, 0], expert)
    drawn = th.cat([acts[:, 1:].reshape(-1, 2) for acts in seen])
    assert len(drawn.unique(dim=0)) == 2 * 5 * 6


# --- the search ---------------------------------------------------------------------------------


def test_the_search_finds_the_minimum_of_a_quadratic() -> None:
    minima = th.tensor([[0.3, -0.6], [-0.9, 0.1], [0.0, 0.99]])
    energy = quadratic(minima, scale=200.0)
    candidates, energies = derivative_free_search(energy, search_noise(3, 1024), **SEARCH)
    best = candidates[th.arange(3), energies.argmin(dim=1)]
    np.testing.assert_allclose(best, minima, atol=0.03)
    np.testing.assert_allclose(energies, energy(candidates))


def test_a_minimum_outside_the_bounds_is_found_at_the_bound() -> None:
    minima = th.tensor([[2.0, 0.5]])
    noise = search_noise(1, 512)
    candidates, energies = derivative_free_search(quadratic(minima, 50.0), noise, **SEARCH)
    assert ((candidates >= LOW) & (candidates <= HIGH)).all()
    best = candidates[0, energies[0].argmin()]
    np.testing.assert_allclose(best, [1.0, 0.5], atol=0.05)


def test_candidates_are_drawn_anew_by_their_softmax() -> None:
    first = th.tensor([-1.0, 0.0, 0.5, 1.0]).repeat(10_000).reshape(1, -1, 1)
    levels = {-1.0: 0.0, 0.0: 1.0, 0.5: 2.0, 1.0: 30.0}
    values = th.tensor(list(levels))
    noise = SearchNoise(
        first,
        th.rand(1, 1, first.shape[1], generator=generator()),
        th.zeros(1, *first.shape),
    )
    energy_of = th.tensor(list(levels.values()))
    candidates, _ = derivative_free_search(
        lambda acts: energy_of[th.searchsorted(values, acts.squeeze(-1))],
        noise,
        low=th.tensor([-1.0]),
        high=th.tensor([1.0]),
    )
    shares = [float((candidates == value).float().mean()) for value in levels]
    np.testing.assert_allclose(shares, th.softmax(-energy_of, dim=0), atol=0.01)


def test_moves_have_the_given_spread_and_shrink() -> None:
    start = th.zeros(1, 20_000, 1)
    spreads = []
    for n_moves in (1, 2):
        jitter = th.zeros(n_moves, *start.shape)
        # Only the last move, so that its own size shows.
        jitter[-1] = th.randn(start.shape, generator=generator())
        picks = th.rand(n_moves, *start.shape[:2], generator=generator(1))
        candidates, _ = derivative_free_search(
            lambda acts: acts.squeeze(-1) * 0,
            SearchNoise(start, picks, jitter),
            low=th.tensor([-9.0]),
            high=th.tensor([9.0]),
        )
        spreads.append(float(candidates.std()))
    np.testing.assert_allclose(spreads, [0.33, 0.165], rtol=0.03)


# --- the policy ---------------------------------------------------------------------------------


def policy_with(energy: nn.Module, **arguments: Any) -> SamplingPolicy:
    method = make(**arguments)
    method.network = energy  # type: ignore[assignment]
    return method.policy


def test_the_deterministic_action_has_the_least_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    # Several passes, so that large batches stay within their memory.
    monkeypatch.setattr(implicit_bc, "_CANDIDATES_AT_ONCE", 2_000)
    actor = policy_with(Bowl((0.4, -0.2), 100.0), n_samples=500)
    actions, _ = actor.predict(np.zeros((9, 2), np.float32), deterministic=True)
    np.testing.assert_allclose(actions, np.tile([0.4, -0.2], (9, 1)), atol=0.06)


def test_a_stochastic_action_is_drawn_from_the_softmax() -> None:
    std = 0.1
    actor = policy_with(Bowl((0.2, -0.3), 1 / (2 * std**2)), n_samples=2_000, n_iterations=1)
    actions, _ = actor.predict(np.zeros((2_000, 2), np.float32), deterministic=False)
    np.testing.assert_allclose(actions.mean(axis=0), [0.2, -0.3], atol=0.02)
    np.testing.assert_allclose(actions.std(axis=0), [std, std], rtol=0.1)
