"""The encoder: round trips over all spaces, statistics, and differentiable actions."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
import toys
from gymnasium import spaces
from hypothesis import assume, given, settings
from stable_baselines3.common import distributions

from sb3_diffbc.critic.encoder import (
    CODE_LIMIT,
    PairEncoder,
    flatten_obs,
    relaxed_action,
    to_tensor_obs,
)

CPU = th.device("cpu")
# No z-score among n values exceeds sqrt(n - 1), so nothing is limited to ±10 up to here.
MAX_UNLIMITED_ROWS = 100

seeds = st.integers(0, 2**32)
rows = st.integers(1, MAX_UNLIMITED_ROWS)
numbers = st.floats(-1000, 1000, width=32, allow_subnormal=False)


def fitted(
    observation_space: gym.Space, action_space: gym.Space, n: int, seed: int
) -> tuple[PairEncoder, Any, np.ndarray]:
    """An encoder and the demonstrations whose statistics it has."""
    rng = np.random.default_rng(seed)
    obs = toys.sample(observation_space, n, rng)
    acts = toys.sample(action_space, n, rng)
    assert isinstance(acts, np.ndarray)
    return PairEncoder(observation_space, action_space).fit(obs, acts), obs, acts


def vector_encoder(obs: np.ndarray, acts: np.ndarray | None = None) -> PairEncoder:
    """An encoder fitted to matrices of real numbers."""
    acts = np.zeros((len(obs), 1), np.float32) if acts is None else acts
    boxes = (spaces.Box(-np.inf, np.inf, x.shape[1:], np.float32) for x in (obs, acts))
    return PairEncoder(*boxes).fit(obs, acts)


# --- round trips --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(space=toys.observation_spaces(), n=rows, seed=seeds)
def test_observations_come_back_from_their_codes(space: gym.Space, n: int, seed: int) -> None:
    encoder, obs, _ = fitted(space, toys.CONTINUOUS, n, seed)
    tensors = to_tensor_obs(obs, CPU)
    codes = encoder.encode_obs(tensors)
    assert codes.shape == (n, encoder.obs_dim)
    assert codes.dtype == th.float32
    th.testing.assert_close(
        encoder.decode_obs(codes), flatten_obs(tensors, space), rtol=1e-4, atol=1e-4
    )


@settings(deadline=None, max_examples=40)
@given(
    space=st.one_of(
        toys.action_spaces(), st.sampled_from([toys.MATRIX, spaces.MultiBinary([2, 3])])
    ),
    n=rows,
    seed=seeds,
)
def test_actions_come_back_from_their_codes(space: gym.Space, n: int, seed: int) -> None:
    encoder, _, acts = fitted(toys.VECTOR, space, n, seed)
    codes = encoder.encode_acts(th.as_tensor(acts))
    assert codes.shape == (n, encoder.act_dim)
    assert codes.dtype == th.float32
    decoded = encoder.decode_acts(codes).numpy()
    assert decoded.shape == acts.shape
    np.testing.assert_allclose(decoded, acts, rtol=1e-4, atol=1e-4)


def test_images_are_only_divided_by_255_but_other_bytes_standardised() -> None:
    parts = {"bytes": spaces.Box(0, 255, (4,), np.uint8), "camera": toys.IMAGE}
    encoder, obs, _ = fitted(spaces.Dict(parts), toys.CONTINUOUS, n=30, seed=0)
    codes = encoder.encode_obs(to_tensor_obs(obs, CPU))
    images = obs.get("camera").reshape(30, -1)
    np.testing.assert_allclose(codes[:, 4:], images / np.float32(255), rtol=1e-6)
    np.testing.assert_allclose(codes[:, :4].mean(dim=0), np.zeros(4), atol=1e-5)
    np.testing.assert_allclose(codes[:, :4].std(dim=0, unbiased=False), np.ones(4), rtol=1e-5)


def test_a_mapping_is_encoded_part_by_part_whatever_its_order() -> None:
    encoder, obs, _ = fitted(toys.MAPPING, toys.CONTINUOUS, n=20, seed=0)
    tensors = to_tensor_obs(obs, CPU)
    codes = encoder.encode_obs(tensors)
    swapped = dict(reversed(list(tensors.items())))
    assert list(swapped) != list(tensors)
    assert th.equal(encoder.encode_obs(swapped), codes)
    apart = [
        PairEncoder(space, toys.CONTINUOUS)
        .fit(obs.get(key), np.zeros((20, 2), np.float32))
        .encode_obs(tensors[key])
        for key, space in toys.MAPPING.spaces.items()
    ]
    th.testing.assert_close(codes, th.cat(apart, dim=-1))


# --- discrete codes -----------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(2, 5), min_size=1, max_size=4), n=st.integers(1, 10), seed=seeds)
def test_categories_and_their_probabilities_have_a_code_of_one_against_minus_ones(
    sizes: list[int], n: int, seed: int
) -> None:
    encoder, _, acts = fitted(toys.VECTOR, spaces.MultiDiscrete(sizes), n, seed)
    columns = zip(sizes, acts.T, strict=True)
    one_hot = np.hstack([np.eye(size, dtype=np.float32)[column] for size, column in columns])
    np.testing.assert_array_equal(encoder.encode_acts(th.as_tensor(acts)), 2 * one_hot - 1)
    np.testing.assert_array_equal(encoder.encode_acts(th.as_tensor(one_hot)), 2 * one_hot - 1)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.float32])
def test_discrete_actions_may_be_a_column_or_floats(dtype: Any) -> None:
    encoder = PairEncoder(toys.VECTOR, spaces.Discrete(4))
    acts = np.array([3, 0, 2, 1])
    expected = 2 * th.eye(4)[acts] - 1
    for shape in ((4,), (4, 1)):
        given_acts = th.as_tensor(acts.astype(dtype).reshape(shape))
        assert th.equal(encoder.encode_acts(given_acts), expected)
        assert encoder.conform_acts(given_acts).tolist() == acts.tolist()


@settings(deadline=None, max_examples=20)
@given(space=toys.action_spaces().filter(lambda s: not isinstance(s, spaces.Box)), seed=seeds)
def test_decoding_takes_the_nearest_category(space: gym.Space, seed: int) -> None:
    encoder, _, acts = fitted(toys.VECTOR, space, n=8, seed=seed)
    codes = encoder.encode_acts(th.as_tensor(acts))
    # Less than half the distance between -1 and 1.
    disturbed = codes + 0.9 * (
        2 * th.rand(codes.shape, generator=th.Generator().manual_seed(seed)) - 1
    )
    np.testing.assert_array_equal(encoder.decode_acts(disturbed), acts)


# --- statistics ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(values=hnp.arrays(np.float32, st.tuples(rows, st.integers(1, 4)), elements=numbers))
def test_mean_and_standard_deviation_are_numpys(values: np.ndarray) -> None:
    encoder = vector_encoder(values, values)
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    smallest = 1e-6 * (1 + np.abs(mean))
    # Whether a spread at the very edge counts as constant is up to rounding.
    assume(not np.any(np.isclose(std, smallest, rtol=1e-2)))
    expected_std = np.where(std > smallest, std, 1)
    for found_mean, found_std in (
        (encoder.obs_mean, encoder.obs_std),
        (encoder.act_mean, encoder.act_std),
    ):
        np.testing.assert_allclose(found_mean, mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found_std, expected_std, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(value=st.floats(-1e6, 1e6, width=32), n=rows)
def test_a_constant_dimension_becomes_zero_and_comes_back(value: float, n: int) -> None:
    values = np.random.default_rng(0).normal(size=(n, 2)).astype(np.float32)
    values[:, 1] = value
    encoder = vector_encoder(values, values)
    assert encoder.obs_std[1] == encoder.act_std[1] == 1
    for encode, decode in (
        (encoder.encode_obs, encoder.decode_obs),
        (encoder.encode_acts, encoder.decode_acts),
    ):
        codes = encode(th.as_tensor(values))
        np.testing.assert_array_equal(codes[:, 1], np.zeros(n))
        np.testing.assert_allclose(decode(codes)[:, 1], values[:, 1], rtol=1e-6)


def test_a_large_offset_does_not_swallow_a_small_spread() -> None:
    # The one-pass formula E[x²] - E[x]² would lose these, even in double precision.
    values = 1e6 + np.random.default_rng(0).normal(size=(99, 3)) * [1, 4, 16]
    values = values.astype(np.float32)
    encoder = vector_encoder(values)
    np.testing.assert_allclose(encoder.obs_std, values.std(axis=0, dtype=np.float64), rtol=1e-5)


def test_statistics_of_many_rows_are_summed_over_chunks() -> None:
    rng = np.random.default_rng(0)
    obs, acts = (rng.normal(5, 2, size=(150_001, dim)).astype(np.float32) for dim in (3, 2))
    found = vector_encoder(obs, acts).state_dict()
    for name, values in (("obs", obs), ("act", acts)):
        mean, std = (found[f"{name}_{statistic}"] for statistic in ("mean", "std"))
        np.testing.assert_allclose(mean, values.mean(axis=0, dtype=np.float64), rtol=1e-6)
        np.testing.assert_allclose(std, values.std(axis=0, dtype=np.float64), rtol=1e-6)


def test_codes_are_limited_to_ten_standard_deviations() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=(50, 2)).astype(np.float32)
    encoder = vector_encoder(values, values)
    far = encoder.obs_mean + encoder.obs_std * th.tensor([[9.5, -9.5], [11, -11], [1e6, -1e6]])
    expected = th.tensor([[9.5, -9.5], [CODE_LIMIT, -CODE_LIMIT], [CODE_LIMIT, -CODE_LIMIT]])
    th.testing.assert_close(encoder.encode_obs(far), expected)
    th.testing.assert_close(encoder.encode_acts(far), expected)


def test_measuring_a_space_draws_nothing_from_it() -> None:
    for space in toys.OBSERVATION_SPACES:
        watched, twin = copy.deepcopy(space), copy.deepcopy(space)
        watched.seed(3)
        twin.seed(3)
        fitted(watched, toys.CONTINUOUS, n=4, seed=0)
        np.testing.assert_equal(watched.sample(), twin.sample())


# --- differentiable actions ---------------------------------------------------------------------


def gaussian(p: th.Tensor) -> distributions.Distribution:
    return distributions.DiagGaussianDistribution(6).proba_distribution(p, th.full((6,), 0.3))


def squashed(p: th.Tensor) -> distributions.Distribution:
    made = distributions.SquashedDiagGaussianDistribution(6)
    return made.proba_distribution(p, th.full((6,), 0.3))


def state_dependent(p: th.Tensor, squash: bool = False) -> distributions.Distribution:
    made = distributions.StateDependentNoiseDistribution(6, squash_output=squash)
    _, log_std = made.proba_distribution_net(latent_dim=2)
    return made.proba_distribution(p, log_std, th.ones(len(p), 2))


def squashed_state_dependent(p: th.Tensor) -> distributions.Distribution:
    return state_dependent(p, squash=True)


def categorical(p: th.Tensor) -> distributions.Distribution:
    return distributions.CategoricalDistribution(6).proba_distribution(p)


def multi_categorical(p: th.Tensor) -> distributions.Distribution:
    return distributions.MultiCategoricalDistribution([2, 4]).proba_distribution(p)


def bernoulli(p: th.Tensor) -> distributions.Distribution:
    return distributions.BernoulliDistribution(6).proba_distribution(p)


def joined_softmax(p: th.Tensor) -> th.Tensor:
    return th.cat([part.softmax(dim=-1) for part in p.split([2, 4], dim=-1)], dim=-1)


Make = Callable[[th.Tensor], distributions.Distribution]
BOX = spaces.Box(-1, 1, (6,), np.float32)
RELAXATIONS = [
    pytest.param(gaussian, th.clone, BOX, id="gaussian"),
    pytest.param(squashed, th.tanh, BOX, id="squashed"),
    pytest.param(state_dependent, th.clone, BOX, id="state-dependent"),
    pytest.param(squashed_state_dependent, th.tanh, BOX, id="squashed state-dependent"),
    pytest.param(categorical, lambda p: p.softmax(dim=-1), spaces.Discrete(6), id="categorical"),
    pytest.param(
        multi_categorical, joined_softmax, spaces.MultiDiscrete([2, 4]), id="multi-categorical"
    ),
    pytest.param(bernoulli, th.sigmoid, spaces.MultiBinary(6), id="bernoulli"),
]
every_distribution = pytest.mark.parametrize(("make", "expected", "space"), RELAXATIONS)


@every_distribution
def test_the_relaxed_action_is_the_mean_or_the_probabilities_and_so_are_its_gradients(
    make: Make, expected: Callable[[th.Tensor], th.Tensor], space: gym.Space
) -> None:
    encoder, _, _ = fitted(toys.VECTOR, space, n=20, seed=0)
    weights = th.randn(5, 6, generator=th.Generator().manual_seed(1))
    start = th.randn(5, 6, generator=th.Generator().manual_seed(0))
    th.testing.assert_close(relaxed_action(make(start)), expected(start))

    def gradient(action_of: Callable[[th.Tensor], th.Tensor]) -> th.Tensor:
        parameters = start.clone().requires_grad_()
        (encoder.encode_acts(action_of(parameters)) * weights).sum().backward()
        assert parameters.grad is not None
        return parameters.grad

    found = gradient(lambda p: relaxed_action(make(p)))
    assert (found != 0).all()
    # Codes are affine in the relaxed action: standardised, or 2 p - 1.
    scale = 1 / encoder.act_std if isinstance(space, spaces.Box) else 2.0
    slow = start.clone().requires_grad_()
    (expected(slow) * scale * weights).sum().backward()
    assert slow.grad is not None
    th.testing.assert_close(found, slow.grad)


# --- bad arguments ------------------------------------------------------------------------------


def test_a_distribution_without_a_relaxation_is_refused_by_name() -> None:
    class Cauchy(distributions.Distribution):
        pass

    Cauchy.__abstractmethods__ = frozenset()  # spares a body for each abstract method
    with pytest.raises(TypeError, match=r"Cauchy.*Gaussian.*Bernoulli"):
        relaxed_action(Cauchy())


def test_categories_that_are_not_counted_from_0_are_refused_by_name() -> None:
    shifted = spaces.Discrete(3, start=1)
    with pytest.raises(ValueError, match=r"action_space=.*does not start at 0"):
        PairEncoder(toys.VECTOR, shifted)
    with pytest.raises(ValueError, match=r"observation_space=.*does not start at 0"):
        PairEncoder(shifted, toys.CONTINUOUS)


_MEASURE_FIT = """
import sys
from pathlib import Path
import numpy as np
from gymnasium import spaces
from sb3_diffbc.critic import PairEncoder

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

n = 2_000_000
obs, acts = np.ones((n, 17), np.float32), np.ones((n, 6), np.float32)
box = {size: spaces.Box(-np.inf, np.inf, (size,), np.float32) for size in (17, 6)}
encoder = PairEncoder(box[17], box[6]).fit(obs[:1000], acts[:1000])
before = resident("VmRSS")
encoder.fit(obs, acts)
print((resident("VmHWM") - before) / (obs.nbytes + acts.nbytes))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_statistics_take_little_memory_beside_the_arrays() -> None:
    # Small tensors kept between the chunks used to keep the chunks' memory too, in most runs.
    run = subprocess.run([sys.executable, "-c", _MEASURE_FIT], capture_output=True, check=True)
    assert float(run.stdout) < 0.6
