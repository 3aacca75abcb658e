"""The authors' φ: their network's forward pass, their weights on Maze, and files that are not."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
from critics import (
    assert_same_state,
    generator,
    ignore_demonstration_warnings,
    real_box,
    state_of,
    two_clusters,
)
from hypothesis import given, settings

from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.critic.release import (
    ReleaseDenoiser,
    convert_release_weights,
)
from sb3_diffbc.demonstrations import load_demonstrations

pytestmark = ignore_demonstration_warnings

dims = st.integers(1, 4)


def release_weights(
    pair_dim: int = 4, width: int = 6, depth: int = 3, output_dim: int | None = None, seed: int = 0
) -> dict[str, th.Tensor]:
    """Random weights under the release's names, with the hidden layer that it skips."""
    source = generator(seed)
    sizes = [pair_dim] + [width] * (depth + 1) + [output_dim or pair_dim]
    weights: dict[str, th.Tensor] = {}
    for i, (size_in, size_out) in enumerate(pairwise(sizes)):
        weights[f"linears.{2 * i}.weight"] = th.randn(size_out, size_in, generator=source)
        weights[f"linears.{2 * i}.bias"] = th.randn(size_out, generator=source)
    for i in range(depth):
        weights[f"step_embeddings.{i}.weight"] = th.randn(15, width, generator=source)
    return weights


def release_forward(weights: Mapping[str, th.Tensor], pair: np.ndarray, level: int) -> np.ndarray:
    """The release's forward pass for one pair, written out: its last hidden layer is skipped."""
    values = {name: tensor.double().numpy() for name, tensor in weights.items()}
    depth = sum(name.startswith("step_embeddings.") for name in values)
    last = max(int(name.split(".")[1]) for name in values if name.startswith("linears."))
    hidden = pair.astype(np.float64)
    for i in range(depth):
        hidden = values[f"linears.{2 * i}.weight"] @ hidden + values[f"linears.{2 * i}.bias"]
        hidden = hidden + values[f"step_embeddings.{i}.weight"][level]
        hidden = np.maximum(hidden, 0)
    return values[f"linears.{last}.weight"] @ hidden + values[f"linears.{last}.bias"]


def assert_predicts_as_the_release(
    network: ReleaseDenoiser, weights: Mapping[str, th.Tensor], state_dim: int, levels: th.Tensor
) -> None:
    pairs = th.randn(len(levels), weights["linears.0.weight"].shape[1], generator=generator())
    found = network(pairs[:, :state_dim], pairs[:, state_dim:], levels).detach()
    for row, pair, level in zip(found, pairs.numpy(), levels.tolist(), strict=True):
        expected = release_forward(weights, pair, level)
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=40)
@given(
    state_dim=dims,
    action_dim=dims,
    output_dim=dims,
    width=st.integers(1, 6),
    depth=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_the_network_predicts_as_the_release_does(
    state_dim: int, action_dim: int, output_dim: int, width: int, depth: int, seed: int
) -> None:
    weights = release_weights(state_dim + action_dim, width, depth, output_dim, seed)
    network = ReleaseDenoiser(
        state_dim, action_dim, output_dim, num_train_timesteps=15, width=width, depth=depth
    )
    # The order of a file's names must not matter: "linears.10" sorts before "linears.2".
    network.load_state_dict(convert_release_weights(dict(sorted(weights.items()))), strict=True)
    assert_predicts_as_the_release(network, weights, state_dim, th.tensor([0, 7, 14]))


def test_the_authors_critic_prefers_expert_actions_on_maze(paper_data: Path) -> None:
    data = load_demonstrations(paper_data / "maze.pt")
    critic = DiffusionCritic.from_release(
        paper_data / "maze_ddpm.pt", data, real_box(6), real_box(2), device="cpu"
    )
    rng = np.random.default_rng(0)
    rows = rng.choice(len(data), size=4000, replace=False)
    obs, acts = data.obs[rows], data.acts[rows]
    noise = critic.draw_noise(len(rows), generator())
    agent, expert = (
        critic.denoising_loss(obs, each, noise=noise) for each in (rng.permutation(acts), acts)
    )
    assert agent.mean() > 1.05 * expert.mean()
    assert (agent > expert).float().mean() > 0.53
    # Far below the loss of predicting nothing: statistics and schedule are those of its training.
    assert expert.mean() < 0.5


# --- taking it over -----------------------------------------------------------------------------


def from_release(source: Any, obs_dim: int = 2, act_dim: int = 2) -> DiffusionCritic:
    return DiffusionCritic.from_release(
        source, two_clusters(), real_box(obs_dim), real_box(act_dim), device="cpu"
    )


def test_the_release_is_taken_over_with_its_sizes_and_schedule(tmp_path: Path) -> None:
    weights = release_weights()
    th.save(weights, tmp_path / "phi.pt")
    critic, from_file = from_release(weights), from_release(tmp_path / "phi.pt")
    assert_same_state(state_of(critic), state_of(from_file))
    assert critic.is_fitted
    assert critic.models == "state_action"
    assert critic.schedule.beta_schedule == "sigmoid"
    assert critic.schedule.num_train_timesteps == 15
    assert th.equal(critic.denoiser.out.weight, weights["linears.8.weight"])
    th.testing.assert_close(critic.encoder.act_std, th.as_tensor(two_clusters().acts.std(axis=0)))
    assert not any(p.requires_grad for p in critic.parameters())


def test_the_releases_critic_can_be_saved_and_fitted_on(tmp_path: Path) -> None:
    critic = from_release(release_weights())
    loaded = DiffusionCritic.load(critic.save(tmp_path / "critic"), device="cpu")
    assert_same_state(state_of(loaded), state_of(critic))
    loaded.config["n_steps"] = 50
    history = loaded.fit(two_clusters(), progress_bar=False)
    assert history.train_loss[-1] < history.train_loss[0]


# --- what is refused ----------------------------------------------------------------------------


def without(name: str) -> dict[str, th.Tensor]:
    return {key: value for key, value in release_weights().items() if key != name}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({}, id="empty"),
        pytest.param({0: th.zeros(2)}, id="numbered"),
        pytest.param({**release_weights(), "linears.0.weight": "x"}, id="text for a tensor"),
        pytest.param({**release_weights(), "linears.10.weight": th.zeros(4, 4)}, id="a layer more"),
        *(
            pytest.param(without(name), id=f"no {name}")
            for name in (
                "linears.0.weight",
                "linears.2.bias",
                "step_embeddings.2.weight",
            )
        ),
    ],
)
def test_weights_of_other_networks_are_refused(content: Any) -> None:
    with pytest.raises(ValueError, match="does not look like the release's"):
        from_release(content)


@pytest.mark.parametrize(
    ("name", "odd", "problem"),
    [
        ("linears.2.bias", th.full((6,), np.nan), "NaN or infinite values in 'hidden.1.bias'"),
        ("linears.8.weight", th.full((4, 6), -np.inf), "NaN or infinite values in 'out.weight'"),
        ("linears.2.weight", th.zeros(6, 5), "do not fit"),
        ("linears.2.weight", th.zeros(6, 6).double(), "do not fit"),
        ("linears.2.weight", th.zeros(6, 6).to_sparse(), "dense"),
        ("linears.2.weight", th.zeros(1, 1).expand(6, 6), "(memory of their own|says that it has)"),
        ("step_embeddings.0.weight", th.zeros(6), "expected matrices"),
    ],
)
def test_damaged_weights_are_refused(
    name: str, odd: th.Tensor, problem: str, tmp_path: Path
) -> None:
    weights = {**release_weights(), name: odd}
    th.save(weights, tmp_path / "phi.pt")
    for source in (weights, tmp_path / "phi.pt"):
        with pytest.raises(ValueError, match=f"cannot be taken over: .*{problem}"):
            from_release(source)


@pytest.mark.parametrize("pair_dim", [3, 5])
def test_weights_and_demonstrations_that_do_not_fit_the_spaces_are_refused(pair_dim: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        from_release(release_weights(pair_dim))
    # The pair's size is that of the weights, but the demonstrations split it another way.
    with pytest.raises(ValueError, match=r"obs|acts"):
        from_release(release_weights(), pair_dim - 2, 6 - pair_dim)
