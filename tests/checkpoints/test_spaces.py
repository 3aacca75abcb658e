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
from hypothesis import given, settings

from sb3_diffbc.checkpoints import CheckpointError, space_from_json, space_to_json
from sb3_diffbc.checkpoints import spaces as spaces_module

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


SIMPLE = (
    boxes()
    | st.builds(
        lambda n, start: spaces.Discrete(n, start=start),
        st.integers(1, 2**40),
        st.integers(-(2**40), 2**40),
    )
    | st.builds(
        spaces.MultiDiscrete,
        hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=3), elements=st.integers(1, 99)),
        dtype=st.sampled_from([np.int64, np.int32]),
    )
    | st.builds(spaces.MultiBinary, st.integers(1, 9))
    | st.builds(spaces.MultiBinary, st.lists(st.integers(1, 3), min_size=1, max_size=3))
)
SPACES = st.recursive(
    SIMPLE,
    lambda inner: (
        st.dictionaries(st.text(), inner, min_size=1, max_size=3).map(
            lambda members: spaces.Dict(list(members.items()))
        )
        | st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple)
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
    if isinstance(a, spaces.Dict):
        assert list(a.spaces) == list(b.spaces)
        for key in a.spaces:
            assert_same(a[key], b[key])
    if isinstance(a, spaces.Tuple):
        for one, other in zip(a.spaces, b.spaces, strict=True):
            assert_same(one, other)


@settings(max_examples=100, deadline=None)
@given(space=SPACES)
def test_spaces_come_back_exactly(space: gym.Space[Any]) -> None:
    text = json.dumps(space_to_json(space), allow_nan=False)
    assert_same(space_from_json(json.loads(text)), space)


def test_uniform_bounds_take_one_number() -> None:
    obj = space_to_json(spaces.Box(0, 255, (84, 84, 4), np.uint8))
    assert obj == {"type": "Box", "shape": [84, 84, 4], "dtype": "uint8", "low": 0, "high": 255}
    assert space_to_json(spaces.Box(-np.inf, np.inf, (3,)))["low"] == "-inf"


def test_zeros_of_both_signs_are_not_uniform() -> None:
    space = spaces.Box(np.array([0.0, -0.0], np.float32), np.ones(2, np.float32))
    assert_same(space_from_json(space_to_json(space)), space)


def test_an_unbounded_integer_box_stays_unbounded() -> None:
    space = spaces.Box(-np.inf, np.array([3, 4]), (2,), np.int32)
    assert not space.is_bounded("below")
    assert_same(space_from_json(space_to_json(space)), space)


def test_start_of_a_multi_discrete_comes_back() -> None:
    space = spaces.MultiDiscrete([3, 4], start=np.array([-1, 5]))
    restored = space_from_json(space_to_json(space))
    assert_same(restored, space)
    np.testing.assert_array_equal(restored.start, space.start)


def test_a_seeded_space_comes_back_with_a_fresh_generator() -> None:
    space = spaces.Box(-1, 1, (2,), seed=1)
    assert_same(space_from_json(space_to_json(space)), space)


def test_dict_order_is_kept() -> None:
    space = spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Discrete(3))])
    assert list(space_from_json(space_to_json(space)).spaces) == ["z", "a"]


class OwnBox(spaces.Box):
    """A user's own class, which a file could not name."""


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Text(3), "Text"),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), "Sequence"),
        (OwnBox(-1, 1, (2,)), "OwnBox"),
        ("Box", "str 'Box'"),
    ],
)
def test_other_spaces_are_named(space: Any, named: str) -> None:
    with pytest.raises(TypeError, match=f"cannot save {named}"):
        space_to_json(space)


def test_dict_keys_must_be_strings() -> None:
    with pytest.raises(TypeError, match="key 1: expected strings"):
        space_to_json(spaces.Dict([(1, spaces.Discrete(2))]))


BOX = {"type": "Box", "shape": [2], "dtype": "float32", "low": -1.0, "high": 1.0}


def nested(depth: int) -> Any:
    obj: Any = BOX
    for _ in range(depth):
        obj = {"type": "Tuple", "spaces": [obj]}
    return obj


@pytest.mark.parametrize(
    ("obj", "problem"),
    [
        (None, "expected a JSON object"),
        ([BOX], "expected a JSON object"),
        ({}, "expected a space"),
        ({"type": "os.system"}, "expected a space"),
        ({"type": ["Box"]}, "expected a space"),
        ({**BOX, "shape": None}, "shape: expected a JSON array"),
        ({**BOX, "shape": [-1]}, "shape: expected an integer"),
        ({**BOX, "shape": [True]}, "shape: expected an integer"),
        ({**BOX, "shape": [1] * 17}, "17 axes"),
        ({**BOX, "dtype": "object"}, "expected a dtype"),
        ({**BOX, "dtype": "U10"}, "expected a dtype"),
        ({**BOX, "dtype": ["float32"]}, "expected a dtype"),
        ({**BOX, "low": [0.0]}, "expected 2 numbers, found 1"),
        ({**BOX, "low": "nan"}, "low: expected a float32"),
        ({**BOX, "low": None}, "low: expected a float32"),
        ({**BOX, "low": [0.0, [1.0]]}, "low: expected a float32"),
        ({**BOX, "low": 2.0}, "not a valid Box"),
        ({**BOX, "low": 10**400}, "not a valid Box"),
        ({**BOX, "dtype": "uint8", "low": -1}, "low: expected an integer from 0 to 255"),
        ({**BOX, "dtype": "int64", "low": 2**63}, "low: expected an integer"),
        ({**BOX, "bounded_below": 1}, "bounded_below: expected a bool"),
        ({"type": "Discrete", "n": 0, "start": 0, "dtype": "int64"}, "n: expected an integer"),
        ({"type": "Discrete", "n": 2**64, "start": 0, "dtype": "int64"}, "n: expected"),
        ({"type": "Discrete", "n": 2, "start": 0, "dtype": "float32"}, "Discrete|dtype"),
        ({"type": "MultiDiscrete", "shape": [1], "dtype": "int64", "nvec": [0]}, "not a valid"),
        ({"type": "MultiBinary", "n": 0}, "not a valid MultiBinary"),
        ({"type": "MultiBinary", "n": "3"}, "expected an integer"),
        ({"type": "Dict", "spaces": {"a": BOX}}, "expected a JSON array"),
        ({"type": "Dict", "spaces": [["a"]]}, r"expected \[key, space\]"),
        ({"type": "Dict", "spaces": [["a", BOX], ["a", BOX]]}, "'a' appears twice"),
        ({"type": "Dict", "spaces": [["a", {}]]}, r"space\['a'\]: expected a space"),
        (nested(200), "nested more than 32 deep"),
    ],
)
def test_bad_descriptions_are_refused(obj: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        space_from_json(obj)


@pytest.mark.parametrize(
    "obj",
    [
        {**BOX, "shape": [10**12]},
        {**BOX, "shape": [2**62, 2**62]},
        {"type": "MultiDiscrete", "shape": [10**12], "dtype": "int64", "nvec": 2},
        {"type": "MultiBinary", "n": 10**12},
        {"type": "MultiBinary", "n": [10**6, 10**6]},
    ],
)
def test_absurd_shapes_are_refused_without_allocating(obj: Any) -> None:
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="at most"):
        space_from_json(obj)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_limit_counts_all_members_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces_module, "MAX_ELEMENTS", 5)
    two, three = {**BOX, "shape": [2]}, {**BOX, "shape": [3]}
    space_from_json({"type": "Tuple", "spaces": [two, three]})
    space_from_json({"type": "Dict", "spaces": [["a", two], ["b", three]]})
    with pytest.raises(CheckpointError, match="at most 5 elements"):
        space_from_json({"type": "Tuple", "spaces": [three, three]})
    inner = {"type": "Dict", "spaces": [["a", three]]}
    with pytest.raises(CheckpointError, match="at most 5 elements"):
        space_from_json({"type": "Tuple", "spaces": [inner, three]})


def test_a_space_beyond_the_limit_is_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces_module, "MAX_ELEMENTS", 5)
    for space in (spaces.Box(-1, 1, (6,)), spaces.MultiBinary(6)):
        with pytest.raises(ValueError, match=r"6 elements|more than 5 elements"):
            space_to_json(space)
