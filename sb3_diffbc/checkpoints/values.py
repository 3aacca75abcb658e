"""Plain Python values as JSON and back, without losing what JSON cannot say.

JSON has no tuples, no infinities and no classes. Each of them becomes an object with a single
key, the *tag*: ``{"tuple": [...]}``, ``{"float": "inf"}``, ``{"class": "Tanh"}``. A dictionary is
tagged too (``{"dict": {...}}``), so that no user's key can be taken for a tag. Classes are written
and read through tables that the caller passes: a name is looked up, never imported.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sb3_diffbc.checkpoints.file import CheckpointError

_NON_FINITE = ("inf", "-inf", "nan")


def require_object(obj: Any, where: str) -> dict[str, Any]:
    """Return ``obj`` if it is a JSON object, else raise `CheckpointError` naming ``where``."""
    if not isinstance(obj, dict):
        raise CheckpointError(f"{where}: expected a JSON object, found {describe(obj)}")
    return obj


def require_list(obj: Any, where: str) -> list[Any]:
    """Return ``obj`` if it is a JSON array, else raise `CheckpointError` naming ``where``."""
    if not isinstance(obj, list):
        raise CheckpointError(f"{where}: expected a JSON array, found {describe(obj)}")
    return obj


def require_int(obj: Any, where: str, *, low: int, high: int) -> int:
    """Return ``obj`` if it is an integer in ``[low, high]``, else raise `CheckpointError`."""
    if isinstance(obj, bool) or not isinstance(obj, int) or not low <= obj <= high:
        raise CheckpointError(
            f"{where}: expected an integer from {low} to {high}, found {describe(obj)}"
        )
    return obj


def is_count(obj: Any) -> bool:
    """Whether a value is an integer from 0 to 2^63 - 1, what fits into torch's int64."""
    return isinstance(obj, int) and not isinstance(obj, bool) and 0 <= obj < 2**63


def is_number(obj: Any) -> bool:
    """Whether a value is an int or a float."""
    return isinstance(obj, int | float) and not isinstance(obj, bool)


def is_numbers(obj: Any) -> bool:
    """Whether a value is an array of numbers."""
    return isinstance(obj, list) and all(is_number(entry) for entry in obj)


def is_flag(obj: Any) -> bool:
    """Whether a value is true or false."""
    return isinstance(obj, bool)


def is_text(obj: Any) -> bool:
    """Whether a value is a string."""
    return isinstance(obj, str)


def is_object(obj: Any) -> bool:
    """Whether a value is a JSON object."""
    return isinstance(obj, dict)


def optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check that null passes too."""
    return lambda obj: obj is None or check(obj)


def require_fields(obj: Any, fields: Mapping[str, Callable[[Any], bool]], where: str) -> None:
    """Raise `CheckpointError` unless an object has exactly these fields and each passes its check.

    Args:
        obj: what a file holds.
        fields: the check for each field's value.
        where: the object's place, for the error message.
    """
    found = require_object(obj, where)
    if found.keys() != fields.keys():
        wrong = sorted(found.keys() ^ fields.keys())
        raise CheckpointError(f"{where}: missing or unexpected fields {', '.join(wrong)}")
    for name, check in fields.items():
        if not check(found[name]):
            raise CheckpointError(f"{where}: {name} is {describe(found[name])}")


def describe(obj: Any) -> str:
    """Show a value from a file in an error message: short, however long the value is."""
    try:
        text = repr(obj)
    except (RecursionError, ValueError):  # too deep, or an integer of too many digits
        text = "..."
    if len(text) > 60:
        text = text[:57] + "..."
    return text if obj is None else f"{type(obj).__name__} {text}"


def value_to_json(value: Any, where: str, class_names: Mapping[type, str] | None = None) -> Any:
    """Turn a plain value into tagged JSON.

    Args:
        value: None, a bool, an int, a float, a string, a numpy scalar, a class in
            ``class_names``, or a list, tuple or dict (with string keys) of these.
        where: the value's place, for the error message.
        class_names: the classes that may be written, with their names.

    Returns:
        What `value_from_json` turns into an equal value. Numpy scalars become Python ones.

    Raises:
        TypeError: if the value, or one inside it, is none of these; the message says where.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, type) and class_names is not None and value in class_names:
        return {"class": class_names[value]}
    if isinstance(value, (list, tuple)):
        items = [value_to_json(v, f"{where}[{i}]", class_names) for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {
            "dict": {k: value_to_json(v, f"{where}[{k!r}]", class_names) for k, v in value.items()}
        }
    name = value.__qualname__ if isinstance(value, type) else f"a {type(value).__qualname__}"
    raise TypeError(f"{where} is {name}, which a checkpoint cannot hold")


def value_from_json(obj: Any, where: str, classes: Mapping[str, type] | None = None) -> Any:
    """Turn tagged JSON into the value that it stands for.

    Args:
        obj: the JSON, as parsed.
        where: its place, for the error message.
        classes: the classes that may be named.

    Returns:
        The value that was given to `value_to_json`.

    Raises:
        CheckpointError: if it is not tagged JSON, or names a class outside ``classes``.
    """
    if obj is None or isinstance(obj, (bool, int, float, str)):
        return obj
    if isinstance(obj, list):
        return [value_from_json(item, f"{where}[{i}]", classes) for i, item in enumerate(obj)]
    if not isinstance(obj, dict) or len(obj) != 1:
        raise CheckpointError(f"{where}: expected a value with one tag, found {describe(obj)}")
    [(tag, inner)] = obj.items()
    if tag == "tuple":
        return tuple(value_from_json(require_list(inner, where), where, classes))
    if tag == "dict":
        items = require_object(inner, where).items()
        return {key: value_from_json(item, f"{where}[{key!r}]", classes) for key, item in items}
    if tag == "float" and inner in _NON_FINITE:
        return float(inner)
    if tag == "class":
        return class_from_name(inner, where, classes or {})
    raise CheckpointError(f"{where}: expected a value with a known tag, found {describe(obj)}")


def class_from_name(name: Any, where: str, classes: Mapping[str, type]) -> type:
    """Look a class up in a table; `CheckpointError` if it is not there."""
    if not isinstance(name, str) or name not in classes:
        known = ", ".join(sorted(classes)) or "none"
        raise CheckpointError(
            f"{where}: expected one of the classes that a checkpoint may name ({known}), "
            f"found {describe(name)}"
        )
    return classes[name]
