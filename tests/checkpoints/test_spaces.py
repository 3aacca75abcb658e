"""Spaces as JSON: exact round trips and refusals."""

import json
import tracemalloc
from typing import Any

import gymnasium as gym
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import example, given, settings

from sb3_diffbc.checkpoints import CheckpointError, SpaceRecord
from sb3_diffbc.checkpoints import spaces as spaces_module
from sb3_diffbc.schema import parse_json

FLOATS = ("float16", "float32", "float64")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


@st.composite
def boxes(draw: Any) -> spaces.Box:
    dtype = np.dtype(draw(st.sampled_from(FLOATS + INTS)))
    shape = draw(SHAPES)
    if dtype.kind == "f":
        limits: Any = {"allow_nan": False, "width": dtype.itemsize * 8}
        # Gymnasium warns of what it takes for an overflow at the very edge of the dtype.
        elements = st.floats(-60000, 60000, **limits)
    else:
        info = np.iinfo(dtype)
        elements = st.integers(int(info.min) // 2, int(info.max) // 2)
    if draw(st.booleans()):
        elements = st.just(draw(elements))
    # As `np.asarray`, because operations on arrays without axes give scalars.
    a, b = (draw(hnp.arrays(dtype, shape, elements=elements)) for _ in range(2))
    low, high = np.asarray(np.minimum(a, b)), np.asarray(np.maximum(a, b))
    if dtype.kind == "f":
        low[draw(hnp.arrays(bool, shape))] = -np.inf
        high[draw(hnp.arrays(bool, shape))] = np.inf
    scalar_type: Any = dtype.type
    return spaces.Box(low, high, shape=shape, dtype=scalar_type)


@st.composite
def multi_discretes(draw: Any) -> spaces.MultiDiscrete:
    shape = draw(hnp.array_shapes(max_dims=3, max_side=3))
    nvec = draw(hnp.arrays(np.int64, shape, elements=st.integers(1, 99)))
    start = draw(hnp.arrays(np.int64, shape, elements=st.integers(-9, 9)))
    dtype = draw(st.sampled_from([np.int64, np.int32]))
    return spaces.MultiDiscrete(nvec, start=start, dtype=dtype)


SIMPLE = (
    boxes()
    | st.builds(
        lambda n, start: spaces.Discrete(n, start=start),
        st.integers(1, 2**40),
        st.integers(-(2**40), 2**40),
    )
    | multi_discretes()
    | st.builds(spaces.MultiBinary, st.integers(1, 9))
    | st.builds(spaces.MultiBinary, st.lists(st.integers(1, 3), min_size=1, max_size=3))
)
SPACES = st.recursive(
    SIMPLE,
    lambda inner: st.dictionaries(st.text(), inner, min_size=1, max_size=3).map(
        lambda members: spaces.Dict(list(members.items()))
    ),
    max_leaves=5,
)


def assert_same(a: gym.Space[Any], b: gym.Space[Any]) -> None:
    """Stricter than gymnasium's own equality, which compares bounds only nearly."""
    assert type(a) is type(b)
    assert a == b
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    if isinstance(a, spaces.Box):
        for name in ("low", "high", "bounded_below", "bounded_above"):
            ours, theirs = getattr(a, name), getattr(b, name)
            assert ours.dtype == theirs.dtype
            assert ours.shape == theirs.shape
            assert ours.tobytes() == theirs.tobytes()
    if isinstance(a, spaces.MultiDiscrete):
        np.testing.assert_array_equal(a.start, b.start)
    if isinstance(a, spaces.Dict):
        assert list(a.spaces) == list(b.spaces)
        for key in a.spaces:
            assert_same(a[key], b[key])


def restored(text: str) -> gym.Space[Any]:
    return parse_json(SpaceRecord, text, "space", CheckpointError).build()


@settings(max_examples=150, deadline=None)
@given(space=SPACES)
@example(spaces.Box(np.array([0.0, -0.0], np.float32), np.ones(2, np.float32)))
@example(spaces.Box(-np.inf, np.array([3, 4]), (2,), np.int32))  # unbounded, in integers
@example(spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3))]))
def test_spaces_come_back_exactly(space: gym.Space[Any]) -> None:
    assert_same(restored(SpaceRecord.of(space).model_dump_json()), space)


def test_uniform_bounds_take_one_number_that_any_json_reader_knows() -> None:
    text = SpaceRecord.of(spaces.Box(0, np.inf, (84, 84, 4))).model_dump_json()
    assert '"low":0.0,"high":"Infinity"' in text


class OwnBox(spaces.Box):
    """A user's own class, which a file could not name."""


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "Sequence"),
        (OwnBox(-1, 1, (2,)), "OwnBox"),
    ],
)
def test_other_spaces_are_named(space: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"cannot save a space of the class {named}: expected Box"):
        SpaceRecord.of(space)


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (spaces.Dict([(1, spaces.Discrete(2))]), r"space\.members.1.*valid string"),
        (spaces.Box(-1, 1, (2,), np.longdouble), r"dtype: .*'bool', .*(longdouble|float128)"),
    ],
)
def test_other_keys_and_dtypes_are_named(space: gym.Space[Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SpaceRecord.of(space)


def described(space: gym.Space[Any]) -> Any:
    return json.loads(SpaceRecord.of(space).model_dump_json())


BOX = described(spaces.Box(-1, 1, (2,), np.float32))
DISCRETE = described(spaces.Discrete(2))
MULTI_DISCRETE = described(spaces.MultiDiscrete([2, 3]))


def nested(depth: int) -> Any:
    obj: Any = BOX
    for _ in range(depth):
        obj = {"type": "Dict", "members": {"a": obj}}
    return obj


@pytest.mark.parametrize(
    ("obj", "problem"),
    [
        ({"type": "os.system"}, "'Box', 'Discrete'"),
        ({**BOX, "shape": [-1]}, r"shape\[0\]"),
        ({**BOX, "shape": [1] * 17}, "at most 16 items"),
        ({**BOX, "dtype": "object"}, "dtype.*'bool', 'int8'"),
        ({**BOX, "low": [0.0]}, "reshape"),
        ({**BOX, "low": 2.0}, "not a valid space"),
        ({**BOX, "low": 10**400}, "not a valid space"),
        ({**BOX, "low": 0.1}, "not exact in float32"),
        ({**BOX, "dtype": "uint8", "low": -1}, "not exact in uint8"),
        ({**DISCRETE, "n": 2**64}, "n: input should be less"),
        ({**DISCRETE, "dtype": "float32"}, "not a valid space"),
        ({"type": "MultiBinary", "n": 0}, "not a valid space"),
        (nested(200), "recursion limit"),
    ],
)
def test_bad_descriptions_are_refused(obj: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        restored(json.dumps(obj))


@pytest.mark.parametrize(
    "obj",
    [
        {**BOX, "shape": [2**62, 2**62]},
        {**MULTI_DISCRETE, "shape": [10**12], "nvec": 2, "start": 0},
        {"type": "MultiBinary", "n": [10**6, 10**6]},
        {"type": "Dict", "members": {key: {**BOX, "shape": [2**24]} for key in "abc"}},
    ],
)
def test_absurd_sizes_are_refused_without_allocating(obj: Any) -> None:
    text = json.dumps(obj)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="at most 33554432 elements"):
        restored(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_space_beyond_the_limit_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces_module, "MAX_ELEMENTS", 5)
    SpaceRecord.of(spaces.MultiBinary(5))
    for space in (spaces.Box(-1, 1, (6,)), spaces.MultiBinary(6)):
        with pytest.raises(ValueError, match="at most 5 elements"):
            SpaceRecord.of(space)


DAMAGES = [None, True, -1, 3, 10**400, 0.5, "Box", "Infinity", "NaN", [], [2], {}, BOX]


@settings(max_examples=150, deadline=None)
@given(space=SPACES, data=st.data())
def test_whatever_is_damaged_gives_a_space_or_a_checkpoint_error(
    space: gym.Space[Any], data: Any
) -> None:
    obj = described(spaces.Dict({"damaged": space}))
    place: Any = obj["members"]
    key: Any = "damaged"
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(st.sampled_from(DAMAGES))
    try:
        found = restored(json.dumps(obj))
    except CheckpointError:
        return
    assert isinstance(found, spaces.Dict)
