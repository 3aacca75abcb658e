"""What `validate_demonstrations` lets pass, warns about and refuses."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import toys
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.data.types import DictObs, TransitionsMinimal

from sb3_diffbc.demonstrations import (
    DemonstrationWarning,
    validate_demonstrations,
    validation,
)

quick = settings(max_examples=40, deadline=None)
rng = np.random.default_rng(0)


def box(*shape: int, low: float = -np.inf, high: float = np.inf) -> spaces.Box:
    return spaces.Box(low, high, shape, np.float32)


def pairs(obs: Any = None, acts: Any = None) -> TransitionsMinimal:
    """Transitions of sound defaults: ten observations of size 3, ten actions of size 2."""
    obs = rng.normal(size=(10, 3)) if obs is None else obs
    acts = rng.uniform(-1, 1, size=(10, 2)) if acts is None else acts
    return TransitionsMinimal(obs, acts, np.full(len(acts), {}))


def is_quiet(transitions: Any, **arguments: Any) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        validate_demonstrations(transitions, **arguments)
    return True


VECTORS = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
SPACES = st.one_of(
    VECTORS.map(lambda shape: box(*shape, low=-3, high=2)),
    VECTORS.map(lambda shape: spaces.Box(0, 255, shape, np.uint8)),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.just(0)),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 9), st.just(-2)),
    st.lists(st.integers(1, 5), min_size=1, max_size=4).map(spaces.MultiDiscrete),
    st.just(spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]))),
    st.one_of(st.integers(1, 5), VECTORS).map(spaces.MultiBinary),
)


class TestSoundDemonstrations:
    @quick
    @given(space=SPACES, other=SPACES, n=st.integers(2, 20), seed=st.integers(0, 2**16))
    def test_samples_of_a_space_fit_it(
        self, space: spaces.Space, other: spaces.Space, n: int, seed: int
    ) -> None:
        keyed = spaces.Dict({"one": space, "two": other})
        for each in (space, other, keyed):
            each.seed(seed)
        obs = DictObs.from_obs_list([keyed.sample() for _ in range(n)])
        acts = np.array([space.sample() for _ in range(n)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*never changes")
            warnings.filterwarnings("error", message=".*leave the bounds")
            validate_demonstrations(
                pairs(obs, acts), observation_space=keyed, action_space=space, batch_size=n
            )
            validate_demonstrations(
                pairs(obs.get("two"), acts), observation_space=other, action_space=space
            )

    @quick
    @given(space=SPACES, shape=VECTORS)
    def test_rows_of_another_shape_do_not_fit(
        self, space: spaces.Space, shape: tuple[int, ...]
    ) -> None:
        wrong = (*(space.shape or ()), *shape, 1)
        acts = np.zeros((4, *wrong), dtype=np.float32)
        with pytest.raises(ValueError, match="must have shape") as caught:
            validate_demonstrations(pairs(np.eye(4), acts), action_space=space)
        for fact in ("`acts`", "action_space", str(wrong)):
            assert fact in str(caught.value)

    @pytest.mark.parametrize("dtype", [np.uint8, np.float64, bool])
    @pytest.mark.parametrize("shape", [(10,), (10, 1)])
    def test_discrete_values_of_any_dtype(self, dtype: type, shape: tuple[int, ...]) -> None:
        acts = (np.arange(10) % 2).astype(dtype).reshape(shape)
        assert is_quiet(pairs(acts=acts), action_space=spaces.Discrete(2))
        assert is_quiet(pairs(acts, acts), observation_space=spaces.Discrete(3))

    def test_images(self) -> None:
        images = rng.integers(0, 256, size=(10, 36, 36, 3), dtype=np.uint8)
        images[:, :9] = 0  # constant pixels are nothing to report
        space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        assert is_quiet(pairs(images), observation_space=space)

    def test_anything_with_obs_and_acts(self) -> None:
        obs = {"a": rng.normal(size=(5, 2))}
        source = SimpleNamespace(obs=obs, acts=np.arange(5))
        assert is_quiet(source, observation_space=spaces.Dict({"a": box(2)}))


class TestUnusableArrays:
    @pytest.mark.parametrize("source", [None, {"obs": 1, "acts": 1}])
    def test_neither_obs_nor_acts(self, source: Any) -> None:
        with pytest.raises(TypeError, match=r"must have `\.obs` and `\.acts`"):
            validate_demonstrations(source)

    @pytest.mark.parametrize(
        ("obs", "acts", "error", "message"),
        [
            ([[1.0]], np.ones((1, 1)), TypeError, "`obs` must be a NumPy array, found list"),
            (np.ones((1, 1)), None, TypeError, "`acts` must be a NumPy array, found NoneType"),
            ({}, np.ones(1), ValueError, "found an empty dictionary"),
            (np.ones((0, 3)), np.ones((0, 2)), ValueError, "at least one transition, found none"),
            ({"a": np.ones(3)}, np.ones(2), ValueError, r"`obs\['a'\]` and `acts`.*3 and 2"),
            (np.ones((3, 1)), np.array(2.0), ValueError, "single number"),
            (np.array([[{}], [{}]]), np.ones(2), ValueError, "found dtype object"),
            (np.ones((2, 1)), np.ones(2, complex), ValueError, "`acts`.*found dtype complex128"),
        ],
    )
    def test_what_no_space_could_take(
        self, obs: Any, acts: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            validate_demonstrations(SimpleNamespace(obs=obs, acts=acts))

    @pytest.mark.parametrize(
        ("array", "error", "message"),
        [
            (np.ma.masked_array(np.eye(2), np.eye(2)), TypeError, "NumPy array, found MaskedArray"),
            (np.matrix(np.eye(2)), TypeError, "NumPy array, found matrix"),
            (np.eye(2, dtype=np.longdouble), ValueError, "of 64 bits at most, found dtype"),
            (np.eye(2, dtype=object), ValueError, "real numbers.*found dtype object"),
            (np.eye(2, dtype=">f8"), ValueError, "machine's byte order, found dtype >f8"),
            (np.ones((2, 0)), ValueError, r"numbers in its rows, found shape \(2, 0\)"),
        ],
    )
    def test_what_torch_could_not_take(
        self, array: Any, error: type[Exception], message: str
    ) -> None:
        for name, source in (("obs", (array, np.eye(2))), ("acts", (np.eye(2), array))):
            with pytest.raises(error, match=rf"`{name}` must .*{message}"):
                validate_demonstrations(SimpleNamespace(obs=source[0], acts=source[1]))

    @pytest.mark.parametrize("value", [1e30, -1e30, 2e15])
    def test_values_too_large_to_be_squared(self, value: float) -> None:
        acts = rng.uniform(-1, 1, size=(10, 2))
        acts[[3, 8], 1] = value, -value
        with pytest.raises(ValueError, match=r"`acts` must be from -1e\+15 to 1e") as caught:
            validate_demonstrations(pairs(acts=acts.astype(np.float32)))
        assert "in 2 of 10 rows, the first in row 3, dimension 1." in str(caught.value)
        acts[[3, 8], 1] = 1e15, -1e15
        validate_demonstrations(pairs(acts=acts))

    def test_values_that_are_not_finite(self) -> None:
        obs = rng.normal(size=(10, 3))
        obs[[4, 7, 7], [1, 1, 2]] = np.inf, -np.inf, np.nan
        with pytest.raises(ValueError, match="`obs` must be finite") as caught:
            validate_demonstrations(pairs(obs))
        assert "in 2 of 10 rows, the first in row 4, dimensions 1, 2." in str(caught.value)

    def test_a_long_list_of_dimensions_is_cut(self) -> None:
        with pytest.raises(ValueError, match=r"\(0, 0\), .*\(1, 2\) and 17 more"):
            validate_demonstrations(pairs(np.full((2, 5, 5), np.nan), np.ones(2)))

    def test_fewer_than_a_batch(self) -> None:
        message = "Number of transitions in `demonstrations` 10 is smaller than batch size 11"
        with pytest.raises(ValueError, match=message):
            validate_demonstrations(pairs(), batch_size=11)


class TestUnfitForTheSpaces:
    @pytest.mark.parametrize(
        ("acts", "space", "message"),
        [
            (np.array([0, 1, 3]), spaces.Discrete(3), "from 0 to 2.*found values from 0 to 3"),
            (np.array([0, 1, 2]), spaces.Discrete(3, start=1), "from 1 to 3.*from 0 to 2"),
            (np.array([0, 0.5, 1]), spaces.Discrete(3), "whole numbers.*found 0.5 in row 1"),
            (
                np.array([[0, 0], [1, 2], [1, 3]]),
                spaces.MultiDiscrete([2, 3]),
                r"from \[0, 0\] to \[1, 2\].*to \[1, 3\] in dimension 1",
            ),
            (np.array([[0, 1], [1, 2]]), spaces.MultiBinary(2), "from 0 to 1.*in dimension 1"),
            (np.ones((2, 2), int), spaces.Discrete(3), r"must have shape \(\).*found \(2,\)"),
        ],
    )
    def test_discrete_actions_that_cannot_be_learnt(
        self, acts: np.ndarray, space: spaces.Space, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            validate_demonstrations(pairs(np.eye(len(acts)), acts), action_space=space)
        assert "`action_space`" in str(caught.value)

    @pytest.mark.parametrize(
        ("obs", "space", "message"),
        [
            (DictObs({"a": np.ones((2, 3))}), box(3), r"must be one array.*keys \['a'\]"),
            (
                DictObs({"a": np.ones((2, 3))}),
                spaces.Dict({"a": box(3), "b": box(1)}),
                r"\['a', 'b'\] to fit .*found .* keys \['a'\]",
            ),
            (
                DictObs({"a": np.ones((2, 3))}),
                spaces.Dict({"a": box(4)}),
                r"`obs\['a'\]` must have shape \(4,\).*observation_space\['a'\]",
            ),
        ],
    )
    def test_dictionaries(self, obs: Any, space: spaces.Space, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            validate_demonstrations(pairs(obs, np.ones((2, 1))), observation_space=space)

    def test_spaces_that_cannot_be_learnt(self) -> None:
        known = "must be one of Box, Discrete, MultiDiscrete, MultiBinary"
        for space in (spaces.Tuple([box(2)]), spaces.Dict({"a": box(2)})):
            with pytest.raises(TypeError, match=f"`action_space` {known}"):
                validate_demonstrations(pairs(), action_space=space)
        nested = spaces.Dict({"a": spaces.Dict({"b": box(2)})})
        with pytest.raises(TypeError, match=rf"`observation_space\['a'\]` {known}"):
            validate_demonstrations(
                pairs(DictObs({"a": np.ones((10, 2))})), observation_space=nested
            )

    def test_truth_values_are_no_continuous_actions(self) -> None:
        acts = np.eye(2, dtype=bool)
        with pytest.raises(ValueError, match=r"`acts` must hold numbers .*Box.*found dtype bool"):
            validate_demonstrations(pairs(np.eye(2), acts), action_space=box(2))

    def test_single_numbers_are_no_observations(self) -> None:
        obs, acts = np.arange(3.0), np.arange(3.0)
        assert is_quiet(pairs(obs, acts), action_space=box())
        with pytest.raises(ValueError, match=r"`observation_space` must have a shape such as"):
            validate_demonstrations(pairs(obs, acts), observation_space=box())


class TestWarnings:
    def test_actions_outside_the_bounds(self) -> None:
        acts = rng.uniform(-1, 1, size=(10, 3))
        acts[2, 1], acts[5, 1], acts[5, 2] = 4.5, -1.5, 2
        acts[:, 0] *= 7
        space = spaces.Box(np.array([-9, -1, -1]), np.array([9, 1, 1]), dtype=np.float64)
        with pytest.warns(DemonstrationWarning) as caught:
            validate_demonstrations(pairs(acts=acts), action_space=space)
        (text,) = [str(warning.message) for warning in caught]
        assert "in 2 of 10 rows (20.0%), in dimensions 1, 2" in text
        assert "from -1.5 to 4.5, bounds from -1 to 1" in text
        assert "clipped" in text
        assert caught[0].filename == __file__

    def test_rounding_is_no_violation(self) -> None:
        acts = np.array([[0.1], [-0.1]])
        float64 = spaces.Box(-0.1, 0.1, (1,), np.float64)
        assert is_quiet(pairs(np.eye(2), acts.astype(np.float32)), action_space=float64)
        float32 = spaces.Box(np.float32(-0.1), np.float32(0.1), (1,), np.float32)
        assert is_quiet(pairs(np.eye(2), acts), action_space=float32)

    def test_observations_may_leave_their_bounds(self) -> None:
        assert is_quiet(pairs(), observation_space=box(3, low=-0.1, high=0.1))

    def test_constant_dimensions(self) -> None:
        obs, acts = rng.normal(size=(10, 4)), rng.normal(size=(10, 2))
        obs[:, [1, 3]] = 2.0
        acts[:, 0] = 0.0
        with pytest.warns(DemonstrationWarning) as caught:
            validate_demonstrations(pairs(obs, acts))
        texts = [str(warning.message) for warning in caught]
        assert len(texts) == 2
        assert "`obs` never changes in dimensions 1, 3 over all 10 rows" in texts[0]
        assert "`acts` never changes in dimension 0 over all 10 rows" in texts[1]

    def test_constant_discrete_actions_are_fine(self) -> None:
        assert is_quiet(pairs(acts=np.ones(10)), action_space=spaces.Discrete(2))
        assert is_quiet(pairs(acts=np.ones(10, dtype=int)))


class TestChunks:
    """The same findings where they are spread over the chunks of a memory-mapped array."""

    @quick
    @given(rows=st.sets(st.integers(0, 102), min_size=1), kind=st.sampled_from(["nan", "bounds"]))
    def test_findings_are_those_of_one_chunk(self, rows: set[int], kind: str) -> None:
        obs = rng.uniform(-1, 1, size=(103, 2)).astype(np.float32)  # the last chunk is a ragged one
        acts = obs.copy()
        acts[list(rows), 1] = {"nan": np.nan, "bounds": 2}[kind]

        def finding(acts: np.ndarray) -> str:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    validate_demonstrations(pairs(obs, acts), action_space=box(2, low=-1, high=1))
                except ValueError as error:
                    return str(error)
            return str(caught[0].message)

        expected = finding(acts)
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation, "_CHUNK_BYTES", 10 * 2 * 4)
            assert finding(toys.on_disk(acts, Path(folder))) == expected
        assert f"in {len(rows)} of 103 rows" in expected
        assert kind == "bounds" or f"the first in row {min(rows)}, dim" in expected
