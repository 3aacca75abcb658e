"""Tagged JSON: what JSON cannot say survives, and classes come from tables."""

import json
import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from torch import nn

from sb3_diffbc.checkpoints import CheckpointError
from sb3_diffbc.checkpoints.values import describe, value_from_json, value_to_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.just("tuple"), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(value=VALUES)
def test_values_come_back_with_their_types(value: Any) -> None:
    text = json.dumps(value_to_json(value, "value"), allow_nan=False)
    restored = value_from_json(json.loads(text), "value")
    assert restored == value
    assert repr(restored) == repr(value)  # tells True from 1 and a tuple from a list


def test_nan_and_numpy_scalars_come_back_as_floats() -> None:
    assert math.isnan(value_from_json(value_to_json(math.nan, "x"), "x"))
    assert value_to_json(np.float32(0.1), "x") == float(np.float32(0.1))
    assert type(value_to_json(np.int64(3), "x")) is int


def test_classes_need_a_table() -> None:
    obj = value_to_json({"fn": nn.Tanh}, "x", {nn.Tanh: "Tanh"})
    assert value_from_json(obj, "x", {"Tanh": nn.Tanh}) == {"fn": nn.Tanh}
    with pytest.raises(CheckpointError, match=r"x\['fn'\].*\(none\), found str 'Tanh'"):
        value_from_json(obj, "x")
    with pytest.raises(TypeError, match=r"x\['fn'\] is Tanh, which a checkpoint cannot hold"):
        value_to_json({"fn": nn.Tanh}, "x")


@pytest.mark.parametrize("value", [{1, 2}, {1: 2}, object(), b"bytes", np.zeros(2), len])
def test_other_values_are_named(value: Any) -> None:
    with pytest.raises(TypeError, match=r"x\[0\] is a "):
        value_to_json([value], "x")


@pytest.mark.parametrize(
    "obj",
    [
        {},
        {"tuple": [], "dict": {}},
        {"tuple": {}},
        {"dict": []},
        {"float": "1.5"},
        {"float": ["inf"]},
        {"class": {"a": 1}},
        {"class": "os.system"},
        {"import": "os"},
    ],
)
def test_json_without_a_known_tag_is_refused(obj: Any) -> None:
    with pytest.raises(CheckpointError, match=r"x\[0\]"):
        value_from_json([obj], "x", {"Tanh": nn.Tanh})


def test_descriptions_stay_short() -> None:
    assert describe("x" * 1000) == "str '" + "x" * 56 + "..."
    assert describe(10**10_000) == "int ..."
