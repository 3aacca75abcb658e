"""Options of a command line from the signature of a function, and from settings."""

from __future__ import annotations

import collections.abc
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import docstring_parser
import gymnasium as gym
import tyro
import yaml

from sb3_diffbc.demonstrations.recording import HDF5_SUFFIXES
from sb3_diffbc.schema import argument_types


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML's, to which 1e-4 is text, with YAML 1.2's exponents."""


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Its inverse, which quotes text like that."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\.\d+|\d+(\.\d*)?)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def read_yaml(text: str | bytes) -> Any:
    """Reads a YAML document of plain values.

    Raises:
        ValueError: if it is none.
    """
    try:
        return yaml.load(text, _Loader)  # which derives from the safe one
    except yaml.YAMLError as error:
        raise ValueError(f"found no YAML: {error}") from None


def write_yaml(content: Any) -> str:
    """Writes a YAML document of plain values, which :func:`read_yaml` reads."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def _read_mapping(texts: list[str]) -> dict[str, Any] | None:
    value = read_yaml(texts[0])
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"found {value!r}, expected a mapping such as '{{width: 256}}'")
    return value


_MARKUP = re.compile(r":\w+:(?=`)|`")
"""Roles and quotes of docstrings."""

YAML = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="YAML",
    instance_from_str=_read_mapping,
    is_instance=lambda value: value is None or isinstance(value, Mapping),
    str_from_instance=lambda value: [json.dumps(value)],
)
"""How a mapping is written on a line."""

KEYS = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="YAML",
    instance_from_str=lambda texts: read_yaml(texts[0]),
    is_instance=lambda _: True,
    str_from_instance=lambda value: [json.dumps(value)],
)
"""How ``obs_keys`` of ``load_demonstrations`` is written on a line, which checks it."""


def options(
    function: Callable[..., Any], documentation: str | None, *left_out: str
) -> list[tuple[str, Any, Any]]:
    """Returns the arguments of a function that can be written on a line, as a dataclass's fields.

    Args:
        function: whose signature is read.
        documentation: its docstring in Google style, for the options' help.
        *left_out: names of arguments to pass over.

    Returns:
        Name, type and default of each.
    """
    helps = {p.arg_name: p.description for p in docstring_parser.parse(documentation or "").params}
    parameters = inspect.signature(function).parameters
    fields = []
    for name, hint in argument_types(function).items():
        kind = None if name in left_out else _on_a_line(hint)
        if kind is not None:
            text = " ".join(_MARKUP.sub("", helps[name] or "").split())
            kind = Annotated[kind, tyro.conf.arg(help=text)]
            fields.append((name, kind, parameters[name].default))
    return fields


def _on_a_line(hint: Any) -> Any:
    """Returns the part of a type that can be written on a line, None where there is none."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:  # its bounds are checked where it is used
        return _on_a_line(parts[0])
    if origin in (typing.Union, types.UnionType):
        found = [kind for kind in map(_on_a_line, parts) if kind is not None]
        if int in found and bool in found:  # a flag and a level at once: the level
            found.remove(bool)
        if all(kind is types.NoneType for kind in found):
            return None
        return typing.Union[tuple(found)]  # noqa: UP007
    if origin is collections.abc.Mapping:
        return Annotated[dict[str, Any] | None, YAML]
    return hint if origin is Literal or hint in (bool, int, float, str, types.NoneType) else None


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Writes settings as the options that say the same; None is a default, and left out."""
    arguments = []
    for name, value in settings.items():
        if value is None:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            arguments.append(f"--{option}={text}")
    return arguments


def check_output(option: str, path: Path, observation_space: gym.Space) -> None:
    """Checks, before there is anything to write, that demonstrations can be written to a file.

    Args:
        option: that names the file.
        path: the file.
        observation_space: of the demonstrations.

    Raises:
        ValueError: if there is such a file, or it cannot hold such observations.
    """
    if path.exists():
        raise ValueError(f"{option}: {path} exists already.")
    if isinstance(observation_space, gym.spaces.Dict) and path.suffix not in HDF5_SUFFIXES:
        raise ValueError(
            f"{option}: found {path}, expected the suffix .hdf5 for observations by key."
        )
