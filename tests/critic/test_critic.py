"""The critic: its network, L_diff and its gradient, noise, spaces and arguments."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
import toys
from critics import (
    TINY,
    assert_same_state,
    both_denoisers,
    both_models,
    generator,
    random_critic,
    real_box,
    state_of,
    tiny_critic,
)
from gymnasium import spaces
from hypothesis import given, settings
from imitation.data.types import TransitionsMinimal

from sb3_diffbc.critic import DiffusionCritic, Noise, ResidualDenoiser

dims = st.integers(1, 4)
seeds = st.integers(0, 2**31)


# --- the network --------------------------------------------------------------------------------


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
    angles = level * 1000 / 7 * 10_000.0 ** -(np.arange(32) / 32)
    shifts = linear("time_in", np.concatenate([np.sin(angles), np.cos(angles)]))
    for i in range(len(network.first)):
        shift = shifts[i * len(hidden) : (i + 1) * len(hidden)]
        inner = silu(linear(f"first.{i}", silu(hidden)) + shift)
        hidden = hidden + linear(f"second.{i}", inner)
    return linear("out", silu(hidden))


@settings(deadline=None, max_examples=30)
@given(
    state_dim=dims,
    action_dim=dims,
    width=st.integers(1, 6),
    depth=st.integers(1, 3),
    batch=st.integers(1, 5),
    seed=seeds,
)
def test_the_network_equals_its_formula_written_out(
    state_dim: int, action_dim: int, width: int, depth: int, batch: int, seed: int
) -> None:
    network = ResidualDenoiser(
        state_dim, action_dim, 3, num_train_timesteps=7, width=width, depth=depth
    )
    with th.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.5, generator=generator(seed))
    state = th.randn(batch, state_dim, generator=generator(seed))
    action = th.randn(batch, action_dim, generator=generator(seed + 1))
    levels = th.randint(7, (batch,), generator=generator(seed))
    found = network(state, action, levels).detach()
    for i in range(batch):
        expected = residual_forward(network, state[i].numpy(), action[i].numpy(), int(levels[i]))
        np.testing.assert_allclose(found[i], expected, rtol=1e-3, atol=1e-3)


def test_an_untrained_network_predicts_no_noise() -> None:
    network = ResidualDenoiser(3, 2, 5, num_train_timesteps=7, width=8, depth=2)
    predicted = network(th.ones(4, 3), th.ones(4, 2), th.arange(4))
    assert th.equal(predicted, th.zeros(4, 5))


# --- L_diff -------------------------------------------------------------------------------------


def slow_code(space: Any, values: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The code of one action or observation, written out."""
    if isinstance(space, spaces.Discrete):
        return 2 * np.eye(int(space.n))[int(values)] - 1
    mean, std = data.mean(axis=0, dtype=np.float64), data.std(axis=0, dtype=np.float64)
    return np.clip((values - mean) / std, -10, 10)


def slow_l_diff(
    critic: DiffusionCritic, data: TransitionsMinimal, row: int, level: int, epsilon: np.ndarray
) -> float:
    """‖ε̂_φ(x_n, n) − ε‖² / dim of one pair of the data that the critic's statistics come from.

    Everything but the network's forward pass is written out.
    """
    state = slow_code(critic.observation_space, data.obs[row], data.obs)
    action = slow_code(critic.action_space, data.acts[row], data.acts)
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 20))) * (0.02 - 1e-4) + 1e-4
    alpha_bar = np.prod(1 - betas[: level + 1])
    if critic.models == "state_action":
        clean = np.concatenate([state, action])
        noisy = np.sqrt(alpha_bar) * clean + np.sqrt(1 - alpha_bar) * epsilon
        state, action = noisy[: len(state)], noisy[len(state) :]
    else:
        action = np.sqrt(alpha_bar) * action + np.sqrt(1 - alpha_bar) * epsilon
    rows = [th.as_tensor(x, dtype=th.float32)[None] for x in (state, action)]
    predicted = critic.denoiser(*rows, th.tensor([level]))
    return float(np.mean((predicted.numpy()[0] - epsilon) ** 2))


@both_models
@both_denoisers
@pytest.mark.parametrize("action_space", [real_box(2), spaces.Discrete(3)], ids=toys.space_id)
@settings(deadline=None, max_examples=8)
@given(batch=st.integers(1, 5), seed=seeds)
def test_the_denoising_loss_equals_its_formula_written_out(
    models: str, denoiser: str, action_space: Any, batch: int, seed: int
) -> None:
    critic = random_critic(
        real_box(3), action_space, models=models, denoiser=denoiser, seed=seed % 100
    )
    data = toys.transitions(real_box(3), action_space, seed=seed % 100)
    noise = critic.draw_noise(batch, generator(seed))
    rows = np.random.default_rng(seed).integers(len(data), size=batch)
    found = critic.denoising_loss(data.obs[rows], data.acts[rows], noise=noise)
    assert found.shape == (batch,)
    expected = [
        slow_l_diff(critic, data, int(row), int(noise.timesteps[i]), noise.epsilon[i].numpy())
        for i, row in enumerate(rows)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_l_diff_can_be_taken_of_another_network() -> None:
    one, other = random_critic(seed=0), random_critic(seed=1)
    codes = th.randn(6, 3, generator=generator()), th.randn(6, 2, generator=generator(1))
    noise = one.draw_noise(6, generator())
    assert th.equal(one.l_diff(*codes, noise, other.denoiser), other.l_diff(*codes, noise))
    assert not th.equal(one.l_diff(*codes, noise), other.l_diff(*codes, noise))


@settings(deadline=None, max_examples=30)
@given(
    observation_space=toys.observation_spaces(),
    action_space=toys.action_spaces(),
    models=st.sampled_from(["state_action", "action"]),
    batch=st.integers(1, 6),
    seed=seeds,
)
def test_arrays_and_tensors_of_all_spaces_give_the_same_finite_losses(
    observation_space: Any, action_space: Any, models: str, batch: int, seed: int
) -> None:
    critic = random_critic(observation_space, action_space, models=models, seed=seed % 100)
    data = toys.transitions(observation_space, action_space, n=batch, seed=seed)
    noise = critic.draw_noise(batch, generator(seed))
    from_arrays = critic.denoising_loss(data.obs, data.acts, noise=noise)
    if isinstance(data.obs, np.ndarray):
        obs: Any = th.tensor(data.obs)
    else:
        obs = {key: th.tensor(value) for key, value in data.obs.items()}
    from_tensors = critic.denoising_loss(obs, th.tensor(data.acts), noise=noise)
    assert th.equal(from_arrays, from_tensors)
    assert from_arrays.isfinite().all()
    assert (from_arrays >= 0).all()


@both_models
@both_denoisers
def test_the_gradient_to_the_actions_equals_finite_differences(models: str, denoiser: str) -> None:
    critic = random_critic(models=models, denoiser=denoiser, width=6, depth=2).double()
    data = toys.transitions(n=5)
    # The encoder takes actions in single precision. Multiples of 1/256 and steps of 1/4096 are
    # exact in it, so all the rounding that is left is that of double precision.
    acts = (th.tensor(data.acts) * 256).round().div(256).requires_grad_()
    step = 2.0**-12
    levels, epsilon = critic.draw_noise(5, generator())
    noise = Noise(levels, epsilon.double())
    (gradient,) = th.autograd.grad(critic.denoising_loss(data.obs, acts, noise=noise).sum(), acts)
    for dimension in range(2):
        shift = step * th.eye(2)[dimension]
        above, below = (
            critic.denoising_loss(data.obs, acts.detach() + sign * shift, noise=noise)
            for sign in (1, -1)
        )
        # Each loss depends on its own row only, so one difference serves all rows.
        slope = (above - below) / (2 * step)
        np.testing.assert_allclose(gradient[:, dimension], slope, rtol=1e-4, atol=1e-5)


def test_different_numbers_of_observations_and_actions_are_refused() -> None:
    data = toys.transitions(n=4)
    with pytest.raises(ValueError, match="obs and acts have 3 and 4 rows"):
        random_critic().denoising_loss(data.obs[:3], data.acts)


# --- noise --------------------------------------------------------------------------------------


def test_the_draw_follows_the_generator_or_the_global_state() -> None:
    critic = random_critic()
    data = toys.transitions(n=8)

    def draw(seed: int, use_global: bool) -> th.Tensor:
        if not use_global:
            return critic.denoising_loss(data.obs, data.acts, generator=generator(seed))
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            return critic.denoising_loss(data.obs, data.acts)

    for use_global in (False, True):
        assert th.equal(draw(1, use_global), draw(1, use_global))
        assert not th.equal(draw(1, use_global), draw(2, use_global))


# --- arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("models", "states", "should be 'state_action' or 'action', found 'states'"),
        ("beta_schedule", "quadratic", "'quadratic' is unknown.*'cosine'.*'sigmoid'"),
        ("width", 2**15, "less than or equal to 16384, found 32768"),
        ("learning_rate", float("nan"), "finite number, found nan"),
        ("seed", -1, "greater than or equal to 0, found -1"),
    ],
)
def test_an_argument_outside_its_range_is_refused_by_name(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}.*{message}"):
        tiny_critic(**{name: value})


def test_subclasses_may_have_constructors_of_their_own() -> None:
    class Small(DiffusionCritic):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, width=8, depth=1, num_train_timesteps=20, **kwargs)

    made = Small(real_box(2), real_box(2), seed=3, device="cpu")
    assert_same_state(state_of(made), state_of(tiny_critic(seed=3)))
    with pytest.raises(ValueError, match="patience"):
        Small(real_box(2), real_box(2), patience=0)


def with_levels(size: int) -> DiffusionCritic:
    return DiffusionCritic(toys.VECTOR, toys.CONTINUOUS, **{**TINY, "num_train_timesteps": size})


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 50), batch=st.integers(1, 65), seed=st.integers(0, 2**32))
def test_levels_come_in_pairs_that_mirror_each_other(size: int, batch: int, seed: int) -> None:
    levels = with_levels(size).draw_noise(batch, generator(seed)).timesteps
    assert levels.shape == (batch,)
    assert levels.dtype == th.int64
    assert ((levels >= 0) & (levels < size)).all()
    # With an odd batch, the last draw of the first half stays single.
    first, mirrored = levels[: batch // 2], levels[(batch + 1) // 2 :]
    assert (first + mirrored == size - 1).all()


def test_all_levels_are_equally_likely() -> None:
    size, draws = 10, 40_000
    levels = with_levels(size).draw_noise(2 * draws, generator()).timesteps
    # Only the first half is independent; the other follows from it.
    counts = levels[:draws].bincount(minlength=size)
    chi_squared = float(((counts - draws / size) ** 2 / (draws / size)).sum())
    assert chi_squared < 33.7  # the 99.99 % quantile with nine degrees of freedom


# --- L_diff under noise that never changes ------------------------------------------------------


@both_models
def test_the_mean_loss_is_that_of_sixteen_levels_from_little_to_much_noise(models: str) -> None:
    critic = toys.critic(models=models)
    data = toys.transitions(n=3, seed=5)
    stds = critic.schedule.sqrt_one_minus_alphas_cumprod.numpy()
    levels = [int(np.abs(stds - np.float32(std)).argmin()) for std in np.linspace(0.1, 0.6, 16)]
    epsilon = th.randn(16, critic.noise_dim, generator=th.Generator().manual_seed(0))
    noise = Noise(th.tensor(levels), epsilon)
    for row in range(3):
        obs, acts = data.obs[row : row + 1], data.acts[row : row + 1]
        repeated = np.repeat(obs, 16, axis=0), np.repeat(acts, 16, axis=0)
        expected = critic.denoising_loss(*repeated, noise=noise).double().mean()
        # To the bit: rewards and thresholds depend on it.
        assert critic.mean_denoising_loss(obs, acts).tolist() == [expected.item()]
    many = critic.mean_denoising_loss(np.tile(data.obs, (500, 1)), np.tile(data.acts, (500, 1)))
    np.testing.assert_allclose(
        many.view(500, 3), critic.mean_denoising_loss(data.obs, data.acts).expand(500, 3), rtol=1e-4
    )
