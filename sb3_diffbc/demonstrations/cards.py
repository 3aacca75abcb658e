"""Cards: the JSON document beside a demonstration set that says what it is and where it is from.

Nothing here runs anything that a card or a set names: commands, modules and environments in a card
are texts, and arrays are read without unpickling.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffbc.demonstrations import formats, loading
from sb3_diffbc.demonstrations.validation import Array, DemonstrationWarning

METRICS = ("success", "return")
"""What a score may be the mean of: success is a share from 0 to 1."""

_FIELDS: dict[str, Any] = {
    "name": str,
    "task": str,
    "env_id": str,
    "env_kwargs": dict,
    "expert": str,
    "expert_score": dict,
    "score": {"metric": str, "mean": float},
    "kept": str,
    "seed": int,
    "episodes": int,
    "episodes_tried": int,
    "transitions": int,
    "episode_length": {"mean": float, "min": int, "max": int},
    "arrays": dict,
    "command": str,
    "versions": dict,
    "licence": str,
    "file": str,
    "sha256": str,
}
_ARRAY_FIELDS: dict[str, Any] = {"shape": list, "dtype": str, "meaning": str}
_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
}
_ROUNDING = 0.01
"""Cards round the mean length of an episode to two decimals."""


def locate(source: str | os.PathLike[str]) -> Path:
    """Finds the `.npz` of a demonstration set; its card has the same stem and the suffix `.json`.

    Args:
        source: The name of a bundled set, or a path to the `.npz` or to the card. What a path
            leads to need not exist.

    Returns:
        The path of the `.npz`.

    Raises:
        ValueError: `source` is neither a bundled set's name nor a path with one of these suffixes.
        TypeError: `source` is no text and no path.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"`source` must be the name of a bundled set or a path, found {type(source).__name__}."
        )
    path = Path(os.path.expanduser(source))
    if path.suffix.lower() in (".npz", ".json"):
        return path if path.suffix.lower() == ".npz" else path.with_suffix(".npz")
    name, known = str(source), loading.bundled_names()
    if name not in known:
        raise ValueError(
            f"`source` {name!r} must be the name of a bundled set, one of {list(known)}, or a path "
            "that ends in .npz or .json."
        )
    return loading.bundled_path(name)


def read_card(source: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads the card of a demonstration set and checks its fields, though not the set.

    Args:
        source: The name of a bundled set, or a path to its `.npz` or its card.

    Returns:
        The card's content. It has at least the texts `name`, `task`, `env_id`, `expert`, `kept`
        (which episodes), `command`, `licence`, `file` and `sha256`; the whole numbers `seed`,
        `episodes`, `episodes_tried` and `transitions`; and the dictionaries `env_kwargs`,
        `expert_score`, `score` (with `metric`, one of `METRICS`, and `mean`), `episode_length`
        (`mean`, `min` and `max`, in steps), `arrays` (by name, each with `shape`, `dtype` and
        `meaning`) and `versions`.

    Raises:
        FileNotFoundError: There is no card.
        ValueError: `source` is unknown, the card is not JSON, or fields are missing or of the
            wrong type.
        TypeError: `source` is no text and no path.
    """
    path = locate(source).with_suffix(".json")
    if not path.is_file():
        raise FileNotFoundError(f"There is no card at {path}.")
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    misfits = list(_misfits(card, _FIELDS, "")) or list(_impossible(card))
    if misfits:
        raise ValueError(f"{path} is not a card of demonstrations: {'; '.join(misfits)}.")
    return card


def check_card(source: str | os.PathLike[str]) -> list[str]:
    """Checks a demonstration set against its card.

    The card has to be sound (see `read_card`), and the set the file that it describes: hash,
    names, shapes and dtypes of all arrays, numbers and lengths of episodes. Floats have to be
    float32, pickled objects are refused, and `load_demonstrations` must have nothing to warn
    about.

    Args:
        source: The name of a bundled set, or a path to its `.npz` or its card.

    Returns:
        What is wrong, one text per finding; empty if nothing is.

    Raises:
        ValueError: `source` is neither a bundled set's name nor a path to a set or a card. What
            is wrong with files is no error but a finding.
        TypeError: `source` is no text and no path.
    """
    path = locate(source)
    findings: list[str] = []
    try:
        for finding in _findings(path):
            findings.append(finding)  # one by one: those before an error count as well
    except (OSError, TypeError, ValueError) as error:
        findings.append(str(error))
    return findings


def _findings(path: Path) -> Iterator[str]:
    """Yields what is wrong, until something is wrong enough to raise."""
    card = read_card(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no demonstration file at {path}.")
    for field, actual in {
        "name": path.stem,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }.items():
        if card[field] != actual:
            yield _contradiction(field, card[field], actual)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DemonstrationWarning)
        transitions = loading.load_demonstrations(path)
    with formats.open_npz(path) as archive:
        arrays = {name: np.asarray(archive[name]) for name in archive.files}
    yield from _array_findings(card["arrays"], arrays)
    yield from (str(w.message) for w in caught if issubclass(w.category, DemonstrationWarning))
    yield from _count_findings(card, transitions.dones)


def _contradiction(field: str, stated: Any, actual: Any) -> str:
    return f"the card says `{field}` {reprlib.repr(stated)}, the file has {actual!r}"


def _misfits(value: Any, wanted: Any, where: str) -> Iterator[str]:
    """Compares JSON with a type, or with a dictionary of what its keys must hold."""
    kind = dict if isinstance(wanted, Mapping) else wanted
    if not _is_a(value, kind):
        yield f"`{where or 'card'}` must be {_KINDS[kind]}, found {reprlib.repr(value)}"
    elif isinstance(wanted, Mapping):
        for key, part in wanted.items():
            field = f"{where}.{key}" if where else key
            if key in value:
                yield from _misfits(value[key], part, field)
            else:
                yield f"`{field}` is missing"


def _is_a(value: Any, kind: type) -> bool:
    if kind is float:  # NaN fails the comparison, as do infinities and integers beyond a float
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind  # to Python, True is a whole number


def _impossible(card: Mapping[str, Any]) -> Iterator[str]:
    """Yields what cannot be, in a card whose fields are of the right types."""
    metric, mean = card["score"]["metric"], card["score"]["mean"]
    if metric not in METRICS:
        yield f"`score.metric` must be one of {list(METRICS)}, found {reprlib.repr(metric)}"
    if metric == "success" and not 0 <= mean <= 1:
        yield f"`score.mean` must be a share from 0 to 1, found {mean!r}"
    if card["episodes_tried"] < card["episodes"]:
        yield (
            f"`episodes_tried` must be at least `episodes`, found {card['episodes_tried']} and "
            f"{card['episodes']}"
        )
    for name, array in card["arrays"].items():
        yield from _misfits(array, _ARRAY_FIELDS, f"arrays[{name!r}]")


def _array_findings(stated: Mapping[str, Any], arrays: Mapping[str, Array]) -> Iterator[str]:
    """Compares the card's arrays with those of the file."""
    if set(stated) != set(arrays):
        yield _contradiction("arrays", sorted(stated), sorted(arrays))
    for name in sorted(set(stated) & set(arrays)):
        array = arrays[name]
        for field, actual in {"shape": list(array.shape), "dtype": str(array.dtype)}.items():
            if stated[name][field] != actual:
                yield _contradiction(f"arrays[{name!r}].{field}", stated[name][field], actual)
    for name, array in arrays.items():
        if array.dtype.kind not in "iub" and array.dtype != np.float32:
            yield f"array {name!r} must be of dtype float32, int or bool, found {array.dtype}"


def _count_findings(card: Mapping[str, Any], dones: Array) -> Iterator[str]:
    """Compares the card's numbers with the episodes in the file."""
    ends = dones.copy()
    ends[-1] = True
    lengths = np.diff(np.flatnonzero(ends), prepend=-1)
    stated = card["episode_length"]
    for field, said, actual in (
        ("transitions", card["transitions"], len(dones)),
        ("episodes", card["episodes"], len(lengths)),
        ("episode_length.min", stated["min"], int(lengths.min())),
        ("episode_length.max", stated["max"], int(lengths.max())),
    ):
        if said != actual:
            yield _contradiction(field, said, actual)
    mean = float(lengths.mean())
    if abs(stated["mean"] - mean) > _ROUNDING:
        yield _contradiction("episode_length.mean", stated["mean"], round(mean, 2))
