"""Checks of arguments and of what files hold: declared as types, done by pydantic.

A wrong value gives one sentence that says where it is, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np
import pydantic
from pydantic import BeforeValidator, Field

T = TypeVar("T")


def _plain(value: Any) -> Any:
    """Turns NumPy's numbers into Python's, which pydantic's strict mode insists on."""
    return value.item() if isinstance(value, np.generic) else value


def _named(value: Any) -> Any:
    """Turns the strings by which JSON documents of :class:`Model` name non-finite numbers back."""
    return float(value) if value in ("Infinity", "-Infinity", "NaN") else _plain(value)


PositiveInt = Annotated[int, BeforeValidator(_plain), Field(ge=1, lt=2**63)]
NonNegativeInt = Annotated[int, BeforeValidator(_plain), Field(ge=0, lt=2**63)]
Number = Annotated[float, BeforeValidator(_plain), Field(allow_inf_nan=False)]
AnyFloat = Annotated[float, BeforeValidator(_named)]
"""A number, infinite or NaN; :class:`Model` writes the latter as strings, which JSON can hold."""
PositiveFloat = Annotated[Number, Field(gt=0)]
NonNegativeFloat = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, lt=1)]
"""A number in [0, 1)."""
Fraction = Annotated[Number, Field(gt=0, lt=1)]
"""A number in (0, 1)."""


class Model(pydantic.BaseModel):
    """A JSON object with exactly the declared fields, each of exactly the declared type."""

    model_config = pydantic.ConfigDict(
        strict=True, extra="forbid", frozen=True, ser_json_inf_nan="strings"
    )


@functools.cache
def _adapter(kind: Any, config: bool = False) -> pydantic.TypeAdapter[Any]:
    # Any class may be the type of an argument; a Model has its configuration already.
    any_class = pydantic.ConfigDict(arbitrary_types_allowed=True)
    return pydantic.TypeAdapter(kind, config=any_class if config else None)


def parse_json(
    kind: type[T],
    text: str | bytes,
    where: str,
    error: type[ValueError] = ValueError,
    context: Any = None,
) -> T:
    """Reads a JSON document of a declared type.

    Args:
        kind: the type, a :class:`Model` for instance.
        text: the document.
        where: the document's name in messages.
        error: what to raise.
        context: what pydantic hands to the type's own validators.

    Returns:
        The value.

    Raises:
        ValueError: (or ``error``) if it is no JSON, or not of this type.
    """
    try:
        return _adapter(kind).validate_json(text, strict=True, context=context)  # type: ignore[arg-type]
    except pydantic.ValidationError as found:
        raise error(describe(found, where)) from None


def checked_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Checks arguments against the annotations of a function's signature.

    Args:
        function: whose signature declares the types.
        arguments: by name; those that the signature does not name are passed over.

    Returns:
        The named arguments, with NumPy's numbers as Python's.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if it is of the type, but none of the values allowed.
    """
    values = {}
    for name, kind in argument_types(function).items():
        if name not in arguments:
            continue
        try:
            adapter = _adapter(kind, config=True)
            values[name] = adapter.validate_python(arguments[name], strict=True)
        except pydantic.ValidationError as found:
            entries = found.errors()
            is_type = all(
                e["type"].endswith(("_type", "instance_of", "subclass_of"))
                # Beside other types, words are a type of their own.
                or (
                    e["type"] == "literal_error" and not isinstance(e["input"], str) and entries[1:]
                )
                for e in entries
            )
            message = describe(found, name)
            if len(entries) > 1 and all(e["input"] is arguments[name] for e in entries):
                # The members of a union, none of which the value is.
                expected = " or ".join(e["msg"].removeprefix("Input should be ") for e in entries)
                message = (
                    f"{name}: input should be {expected}, found {reprlib.repr(arguments[name])}"
                )
            raise (TypeError if is_type else ValueError)(message) from None
    return values


@functools.cache
def argument_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function's keyword arguments by name, metadata included."""
    hints = get_type_hints(function, include_extras=True)
    return {name: hints[name] for name in inspect.signature(function).parameters if name in hints}


def describe(found: pydantic.ValidationError, where: str) -> str:
    """Says in one line what pydantic found: the first misfits, each with its place."""
    entries = found.errors(include_url=False)
    lines = []
    for entry in entries[:4]:
        place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in entry["loc"])
        expected = entry["msg"][:1].lower() + entry["msg"][1:]
        lines.append(f"{where}{place}: {expected}, found {reprlib.repr(entry['input'])}")
    more = len(entries) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def nearest(name: str, known: Mapping[str, str]) -> str:
    """Returns a question that ends a message about an unknown name, empty if nothing is near.

    Args:
        name: the unknown name.
        known: what to suggest for a name like the keys.
    """
    names = {key.lower(): other for key, other in known.items()}
    found = difflib.get_close_matches(name.lower(), names, n=1)
    return f" Did you mean {names[found[0]]!r}?" if found else ""
