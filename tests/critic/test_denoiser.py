"""The denoisers: the release's forward pass, the shared state half, what the networks see."""

from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from sb3_diffbc.critic.denoiser import (
    DENOISERS,
    Denoiser,
    FrozenLosses,
    ReleaseDenoiser,
    ResidualDenoiser,
    convert_release_state_dict,
    sinusoidal_table,
)

StateDict = dict[str, th.Tensor]

N_LEVELS = 7
dims = st.integers(1, 4)
seeds = st.integers(0, 2**32)


def release_state_dict(
    state_dim: int, action_dim: int, output_dim: int, width: int, depth: int, seed: int
) -> StateDict:
    """Random weights under the release's names, with the hidden layer that it skips."""
    generator = th.Generator().manual_seed(seed)
    sizes = [state_dim + action_dim] + [width] * (depth + 1) + [output_dim]
    weights: StateDict = {}
    for i, (size_in, size_out) in enumerate(pairwise(sizes)):
        weights[f"linears.{2 * i}.weight"] = th.randn(size_out, size_in, generator=generator)
        weights[f"linears.{2 * i}.bias"] = th.randn(size_out, generator=generator)
    for i in range(depth):
        weights[f"step_embeddings.{i}.weight"] = th.randn(N_LEVELS, width, generator=generator)
    return weights


def release_forward(weights: StateDict, pair: np.ndarray, level: int) -> np.ndarray:
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


def residual_forward(
    network: ResidualDenoiser, state: np.ndarray, action: np.ndarray, level: int
) -> np.ndarray:
    """The residual network for one pair, written out with a first layer on the whole pair."""
    values = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return values[f"{name}.weight"] @ x + values[f"{name}.bias"]

    first_layer = np.hstack([values["state_in.weight"], values["action_in.weight"]])
    hidden = first_layer @ np.concatenate([state, action]) + values["state_in.bias"]
    shifts = linear("time_in", network.time_features[level].double().numpy())
    for i in range(len(network.first)):
        shift = shifts[i * len(hidden) : (i + 1) * len(hidden)]
        inner = silu(linear(f"first.{i}", silu(hidden)) + shift)
        hidden = hidden + linear(f"second.{i}", inner)
    return linear("out", silu(hidden))


def make_denoiser(
    kind: str,
    state_dim: int = 3,
    action_dim: int = 2,
    width: int = 8,
    depth: int = 2,
    seed: int = 0,
) -> Denoiser:
    """A denoiser with random weights everywhere, the output layer too."""
    network = DENOISERS[kind](
        state_dim,
        action_dim,
        state_dim + action_dim,
        num_train_timesteps=N_LEVELS,
        width=width,
        depth=depth,
    )
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5, generator=generator)
    return network


def random_input(network: Denoiser, batch: int, seed: int) -> tuple[th.Tensor, ...]:
    generator = th.Generator().manual_seed(seed)
    state_dim, action_dim = dims_of(network)
    return (
        th.randn(batch, state_dim, generator=generator),
        th.randn(batch, action_dim, generator=generator),
        th.randint(N_LEVELS, (batch,), generator=generator),
    )


def dims_of(network: Denoiser) -> tuple[int, int]:
    if isinstance(network, ResidualDenoiser):
        return network.state_in.in_features, network.action_in.in_features
    total = network.hidden[0].get_parameter("weight").shape[1]
    return network.state_dim, total - network.state_dim


both_kinds = pytest.mark.parametrize("kind", sorted(DENOISERS))


# --- the release's network ----------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    state_dim=dims,
    action_dim=dims,
    output_dim=dims,
    width=st.integers(1, 6),
    depth=st.integers(1, 4),
    batch=st.integers(1, 5),
    seed=seeds,
)
def test_the_release_network_equals_the_releases_forward_pass(
    state_dim: int,
    action_dim: int,
    output_dim: int,
    width: int,
    depth: int,
    batch: int,
    seed: int,
) -> None:
    weights = release_state_dict(state_dim, action_dim, output_dim, width, depth, seed)
    network = ReleaseDenoiser(
        state_dim,
        action_dim,
        output_dim,
        num_train_timesteps=N_LEVELS,
        width=width,
        depth=depth,
    )
    network.load_state_dict(convert_release_state_dict(weights), strict=True)
    state, action, levels = random_input(network, batch, seed)
    found = network(network.embed_state(state), action, levels).detach()
    for i in range(batch):
        pair = np.concatenate([state[i], action[i]])
        expected = release_forward(weights, pair, int(levels[i]))
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)


def test_the_authors_maze_weights_give_the_releases_predictions(paper_data: Path) -> None:
    weights = th.load(paper_data / "maze_ddpm.pt", map_location="cpu", weights_only=True)
    converted = convert_release_state_dict(weights)
    network = ReleaseDenoiser(6, 2, 8, num_train_timesteps=1000, width=128, depth=3)
    network.load_state_dict(converted, strict=True)
    generator = th.Generator().manual_seed(0)
    state = th.randn(20, 6, generator=generator)
    action = th.randn(20, 2, generator=generator)
    levels = th.arange(20) * 52
    found = network(network.embed_state(state), action, levels).detach()
    for i in range(20):
        pair = np.concatenate([state[i], action[i]])
        expected = release_forward(weights, pair, int(levels[i]))
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)


def test_the_hidden_layer_that_the_release_never_applies_is_left_out() -> None:
    weights = release_state_dict(6, 2, 8, width=5, depth=3, seed=0)
    skipped = ("linears.6.weight", "linears.6.bias")
    changed = {**weights, **{name: weights[name] + 100 for name in skipped}}
    converted, from_changed = (convert_release_state_dict(w) for w in (weights, changed))
    assert converted.keys() == from_changed.keys()
    assert all(th.equal(converted[name], from_changed[name]) for name in converted)


def test_converted_names_do_not_depend_on_the_order_of_the_file() -> None:
    weights = release_state_dict(2, 1, 3, width=4, depth=5, seed=0)  # linears.10 and linears.12
    reversed_order = dict(reversed(weights.items()))
    converted, again = (convert_release_state_dict(w) for w in (weights, reversed_order))
    assert all(th.equal(converted[name], again[name]) for name in converted)
    assert th.equal(converted["out.weight"], weights["linears.12.weight"])


@pytest.mark.parametrize(
    "state_dict",
    [
        pytest.param({}, id="empty"),
        pytest.param({"weight": th.zeros(2, 2), "bias": th.zeros(2)}, id="another network"),
        pytest.param({"linears.0.weight": th.zeros(2, 2)}, id="no embeddings"),
        pytest.param({"step_embeddings.0.weight": th.zeros(9, 2)}, id="no layers"),
    ],
)
def test_weights_of_other_networks_are_refused(state_dict: StateDict) -> None:
    with pytest.raises(ValueError, match="state_dict does not look like the release's"):
        convert_release_state_dict(state_dict)


@pytest.mark.parametrize(
    "missing", ["linears.0.weight", "linears.2.bias", "linears.8.bias", "step_embeddings.1.weight"]
)
def test_weights_of_the_release_that_lack_one_are_refused(missing: str) -> None:
    weights = release_state_dict(6, 2, 8, width=5, depth=3, seed=0)
    del weights[missing]
    with pytest.raises(ValueError, match="state_dict"):
        convert_release_state_dict(weights)


# --- the residual network -----------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    state_dim=dims,
    action_dim=dims,
    width=st.integers(1, 6),
    depth=st.integers(1, 3),
    batch=st.integers(1, 5),
    seed=seeds,
)
def test_the_residual_network_equals_its_description(
    state_dim: int, action_dim: int, width: int, depth: int, batch: int, seed: int
) -> None:
    network = make_denoiser("residual", state_dim, action_dim, width, depth, seed)
    assert isinstance(network, ResidualDenoiser)
    state, action, levels = random_input(network, batch, seed)
    found = network(network.embed_state(state), action, levels).detach()
    for i in range(batch):
        expected = residual_forward(network, state[i].numpy(), action[i].numpy(), int(levels[i]))
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-4)


def test_an_untrained_residual_network_predicts_no_noise() -> None:
    network = ResidualDenoiser(3, 2, 5, num_train_timesteps=N_LEVELS, width=8, depth=3)
    state, action, levels = random_input(network, batch=6, seed=0)
    predicted = network(network.embed_state(100 * state), action, levels)
    assert th.equal(predicted, th.zeros(6, 5))


def test_an_untrained_residual_network_can_leave_its_start() -> None:
    # Zero weights in the last layer stop all other gradients once, but not for good.
    network = ResidualDenoiser(3, 2, 5, num_train_timesteps=N_LEVELS, width=8, depth=2)
    state, action, levels = random_input(network, batch=16, seed=0)
    optimizer = th.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (network(network.embed_state(state), action, levels) - 1).square().mean().backward()
        optimizer.step()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients.values()), gradients


# --- both ---------------------------------------------------------------------------------------


@both_kinds
@settings(deadline=None, max_examples=15)
@given(batch=st.integers(1, 6), seed=seeds)
def test_one_state_embedding_serves_several_actions(kind: str, batch: int, seed: int) -> None:
    network = make_denoiser(kind, seed=seed)
    state, action, levels = random_input(network, batch, seed)
    embedding = network.embed_state(state)
    kept = embedding.clone()
    first = network(embedding, action, levels)
    network(embedding, action + 1, levels)
    assert th.equal(network(embedding, action, levels), first)
    assert th.equal(embedding, kept)


@both_kinds
def test_rows_do_not_see_each_other(kind: str) -> None:
    network = make_denoiser(kind)
    state, action, levels = random_input(network, batch=6, seed=1)
    together = network(network.embed_state(state), action, levels)
    order = th.tensor([4, 2, 0, 5])
    apart = network(network.embed_state(state[order]), action[order], levels[order])
    th.testing.assert_close(together[order], apart)


@both_kinds
@pytest.mark.parametrize("part", ["state", "action", "level"])
def test_the_prediction_depends_on_state_action_and_level(kind: str, part: str) -> None:
    network = make_denoiser(kind, width=16)
    state, action, levels = random_input(network, batch=8, seed=2)
    before = network(network.embed_state(state), action, levels)
    state = state + 1 if part == "state" else state
    action = action + 1 if part == "action" else action
    levels = (levels + 1) % N_LEVELS if part == "level" else levels
    after = network(network.embed_state(state), action, levels)
    assert ((before - after).abs().sum(dim=-1) > 1e-3).all()


@both_kinds
def test_the_gradient_reaches_the_action(kind: str) -> None:
    network = make_denoiser(kind).double()
    generator = th.Generator().manual_seed(3)
    state = th.randn(4, 3, dtype=th.float64, generator=generator)
    action = th.randn(4, 2, dtype=th.float64, generator=generator).requires_grad_()
    levels = th.tensor([0, 2, 4, 6])
    embedding = network.embed_state(state).detach()
    assert th.autograd.gradcheck(lambda a: network(embedding, a, levels), action)


# --- noise levels as features -------------------------------------------------------------------


@settings(deadline=None, max_examples=20)
@given(n_levels=st.integers(1, 400), half=st.integers(8, 40))
def test_every_level_has_features_of_its_own(n_levels: int, half: int) -> None:
    table = sinusoidal_table(n_levels, 2 * half)
    assert table.shape == (n_levels, 2 * half)
    assert table.dtype == th.float32
    # sin² + cos² of each frequency.
    np.testing.assert_allclose(table.square().sum(dim=-1), np.full(n_levels, half), rtol=1e-5)
    distances = th.cdist(table, table) + 10 * th.eye(n_levels)
    assert distances.min() > 0.05


def test_features_depend_on_the_share_of_the_way_not_on_the_number_of_levels() -> None:
    coarse, fine = sinusoidal_table(50, 64), sinusoidal_table(1000, 64)
    th.testing.assert_close(coarse, fine[::20])


def test_features_are_not_part_of_a_checkpoint() -> None:
    assert "time_features" not in make_denoiser("residual").state_dict()


def made(name: str, seed: int) -> Denoiser:
    """A frozen network of arbitrary weights, the output layer's included, in double precision."""
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        network = DENOISERS[name](3, 2, 5, num_train_timesteps=N_LEVELS, width=6, depth=2)
        for parameter in network.parameters():
            th.nn.init.normal_(parameter, std=0.7)
    return network.double().requires_grad_(False)


@pytest.mark.parametrize("name", DENOISERS)
@given(batch=st.integers(1, 5), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_way_back_by_hand_is_autograds(name: str, batch: int, seed: int) -> None:
    network = made(name, seed)
    generator = th.Generator().manual_seed(seed)

    def normal(*shape: int) -> th.Tensor:
        return th.randn(*shape, generator=generator, dtype=th.float64)

    agent, expert = normal(batch, 2).requires_grad_(), normal(batch, 2)
    timesteps = th.randint(N_LEVELS, (batch,), generator=generator)
    epsilon, weights = normal(batch, 5), normal(batch)
    embedding = network.embed_state(normal(batch, 3))

    def plain(action: th.Tensor) -> th.Tensor:
        return (network(embedding, action, timesteps) - epsilon).square().mean(dim=-1)

    expected = plain(agent)
    (expected_gradient,) = th.autograd.grad(expected @ weights, agent)
    agent_loss, expert_loss = FrozenLosses.apply(
        agent, expert, network, embedding, timesteps, epsilon
    )
    (gradient,) = th.autograd.grad(agent_loss @ weights, agent)
    th.testing.assert_close(agent_loss, expected)
    th.testing.assert_close(expert_loss, plain(expert))
    th.testing.assert_close(gradient, expected_gradient)
    assert not expert_loss.requires_grad


def test_changed_weights_change_the_tabulated_shifts() -> None:
    network = made("residual", 0)
    zeros = [th.zeros(*shape, dtype=th.float64) for shape in ((1, 6), (1, 1, 2))]
    arguments = (*zeros, th.tensor([3]))
    before, _ = network.forward_frozen(*arguments)
    network.load_state_dict(made("residual", 1).state_dict())
    after, _ = network.forward_frozen(*arguments)
    assert not th.allclose(before, after)
    th.testing.assert_close(after, network(*arguments))
