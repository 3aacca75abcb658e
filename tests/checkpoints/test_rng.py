"""Numpy generators as JSON: they continue, and damaged states never reach numpy."""

import json
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from sb3_diffbc.checkpoints import CheckpointError, numpy_rng_from_json, numpy_rng_to_json

BIT_GENERATORS = {
    cls.__name__: cls
    for cls in (
        np.random.PCG64,
        np.random.PCG64DXSM,
        np.random.MT19937,
        np.random.Philox,
        np.random.SFC64,
    )
}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(BIT_GENERATORS)),
    seed=st.integers(0, 2**64),
    draws=st.integers(0, 9),
)
def test_generators_continue_identically(name: str, seed: int, draws: int) -> None:
    rng = np.random.Generator(BIT_GENERATORS[name](seed))
    # Single 32-bit draws leave half a word and part of a buffer behind.
    rng.integers(2**31, size=draws, dtype=np.uint32)
    restored = numpy_rng_from_json(json.loads(json.dumps(numpy_rng_to_json(rng))))
    assert type(restored.bit_generator) is type(rng.bit_generator)
    for draw in (
        lambda r: r.integers(2**31, size=3, dtype=np.uint32),
        lambda r: r.permutation(1000),
        lambda r: r.normal(size=700),
    ):
        np.testing.assert_array_equal(draw(restored), draw(rng))


def test_other_generators_are_named() -> None:
    legacy: Any = np.random.RandomState(0)
    with pytest.raises(TypeError, match="RandomState"):
        numpy_rng_to_json(legacy)


def state_of(name: str, *path_and_value: Any) -> dict[str, Any]:
    state = numpy_rng_to_json(np.random.Generator(BIT_GENERATORS[name](1)))
    *path, last, value = path_and_value
    inner = state
    for key in path:
        inner = inner[key]
    inner[last] = value
    return state


@pytest.mark.parametrize(
    "obj",
    [
        None,
        [],
        {},
        {"bit_generator": "os.system"},
        {"bit_generator": ["PCG64"]},
        {"bit_generator": "PCG64"},
        state_of("PCG64", "extra", 1),
        state_of("PCG64", "state", 1),
        state_of("PCG64", "state", "state", -1),
        state_of("PCG64", "state", "inc", 2**128),
        state_of("PCG64", "state", "inc", 1.5),
        state_of("PCG64", "has_uint32", True),
        state_of("PCG64", "has_uint32", 2),
        state_of("PCG64", "uinteger", 2**32),
        # Positions beyond the buffer: numpy would read what lies behind it.
        state_of("MT19937", "state", "pos", 10**6),
        state_of("MT19937", "state", "pos", -1),
        state_of("Philox", "buffer_pos", 5),
        state_of("Philox", "buffer_pos", -1),
        state_of("MT19937", "state", "key", [0] * 623),
        state_of("MT19937", "state", "key", [2**32] + [0] * 623),
        state_of("MT19937", "state", "key", "key"),
        state_of("SFC64", "state", "state", [0, 0, 0]),
        state_of("SFC64", "state", "state", [0, 0, 0, "0"]),
    ],
)
def test_damaged_states_are_refused(obj: Any) -> None:
    with pytest.raises(CheckpointError, match="random generator"):
        numpy_rng_from_json(obj)
