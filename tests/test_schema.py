"""Checks of arguments and JSON: what passes, and what the messages say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest

from sb3_diffbc.schema import (
    Model,
    NonNegativeFloat,
    PositiveInt,
    Share,
    checked_arguments,
    parse_json,
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


class Entry(Model):
    name: str
    values: tuple[float, ...]


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


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"size": 0}, ValueError, "size: .*greater than or equal to 1, found 0"),
        ({"size": True}, TypeError, "size: .*integer, found True"),
        ({"weight": float("nan")}, ValueError, "weight: .*finite number, found nan"),
        ({"kind": "third"}, ValueError, "kind: .*'one' or 'other', found 'third'"),
        ({"options": 3}, TypeError, "options: .*found 3"),
    ],
    ids=str,
)
def test_others_are_named_with_what_was_found_and_expected(
    given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        checked_arguments(function, given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a"}', "file.values: .*required"),
        ('{"name": "a", "values": [1, "x"]}', r"file.values\[1\]: .*number, found 'x'"),
        ('{"name": "a", "values": [], "more": 1}', "file.more: .*not permitted"),
        ("[" * 10_000, "file: .*JSON"),
        ("nonsense", "file: .*JSON"),
    ],
)
def test_other_json_is_refused_with_the_place_of_what_is_wrong(text: str, message: str) -> None:
    class DamagedFileError(ValueError):
        pass

    with pytest.raises(DamagedFileError, match=message) as raised:
        parse_json(Entry, text, "file", DamagedFileError)
    assert len(str(raised.value)) < 300, "however long the document is"
