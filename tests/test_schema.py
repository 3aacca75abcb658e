"""Checks of arguments and JSON: what passes, and what the messages say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest

from sb3_diffbc.schema import (
    NonNegativeFloat,
    PositiveInt,
    Share,
    checked_arguments,
)


def function(
    *,
    size: PositiveInt | None = None,
    weight: NonNegativeFloat = 1.0,
    share: Share = 0.5,
    kind: Literal["one", "other"] = "one",
    options: Mapping[str, Any] | None = None,
) -> None:
    """Declares what is checked."""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"size": np.int64(3)}, {"size": 3}),
        ({"weight": np.float32(0.5), "share": 0}, {"weight": 0.5, "share": 0.0}),
        ({"unknown": None}, {}),
    ],
    ids=str,
)
def test_arguments_of_their_types_pass(given: dict[str, Any], expected: dict[str, Any]) -> None:
    checked = checked_arguments(function, given)
    assert checked == expected
    assert not any(isinstance(value, np.generic) for value in checked.values())
