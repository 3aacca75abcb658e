"""NumPy's generators as JSON: they continue, and other generators are refused."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from sb3_diffbc.checkpoints import CheckpointError, RngRecord
from sb3_diffbc.schema import parse_json


@given(seed=st.integers(0, 2**128), draws=st.integers(0, 9))
def test_generators_continue_identically(seed: int, draws: int) -> None:
    rng = np.random.default_rng(seed)
    # An odd number of single 32-bit draws leaves half a word behind.
    rng.integers(2**31, size=draws, dtype=np.uint32)
    restored = parse_json(RngRecord, RngRecord.of(rng).model_dump_json(), "rng").build()
    for draw in (
        lambda r: r.integers(2**31, size=3, dtype=np.uint32),
        lambda r: r.permutation(1000),
    ):
        np.testing.assert_array_equal(draw(restored), draw(rng))


@pytest.mark.parametrize(
    "rng",
    [0, np.random.RandomState(0), np.random.Generator(np.random.MT19937(0))],
    ids=["number", "RandomState", "MT19937"],
)
def test_other_generators_are_named(rng: Any) -> None:
    with pytest.raises(TypeError, match=r"rng (is a int|is a RandomState|draws from MT19937)"):
        RngRecord.of(rng)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"PCG64"', '"MT19937"'),
        ('"state":{', '"state":{"extra":1,'),
        ('"inc":', '"inc":-'),
        ('"has_uint32":0', '"has_uint32":2'),
        ('"uinteger":0', '"uinteger":4294967296'),
    ],
)
def test_damaged_states_are_refused(old: str, new: str) -> None:
    text = RngRecord.of(np.random.default_rng(1)).model_dump_json()
    assert old in text
    with pytest.raises(CheckpointError, match="rng"):
        parse_json(RngRecord, text.replace(old, new, 1), "rng", CheckpointError)
