"""The comparison's result files: one JSON document for each task, method and training seed.

The runner writes them, and the runner and the report read them, through this module alone. A file
lies at ``<results>/<task>/<method>/<seed>.json`` and says in which task, with which method and
which seed it was made, so that a copy in the wrong place is noticed.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from benchmarks.json_files import write_json

FORMAT = 1
"""Version of the documents."""

METHOD_TITLES: Mapping[str, str] = MappingProxyType(
    {
        "bc": "BC (imitation's defaults)",
        "bc_paired": "BC (DiffusionBC's network)",
        "diffusion_bc": "DiffusionBC",
        "diffusion_bc_paper": "DiffusionBC (paper's settings)",
        "implicit_bc": "Implicit BC",
        "diffusion_policy": "Diffusion Policy (DDPM)",
        "diffusion_policy_ddim": "Diffusion Policy (DDIM)",
        "gail": "GAIL",
        "airl": "AIRL",
    }
)
"""The methods' names in tables and figures, in their order there."""

Record: TypeAlias = dict[str, Any]
"""The content of a result file."""


class RecordError(ValueError):
    """A result file is damaged, or is none."""


def record_path(results: Path, task: str, method: str, seed: int) -> Path:
    """Gives where a result is kept.

    Args:
        results: Folder of all results.
        task: Name of the task: letters, digits and ``_ . + -``.
        method: A key of `METHOD_TITLES`.
        seed: Training seed.

    Returns:
        The path, whether or not there is a file.

    Raises:
        ValueError: If an argument is not as described.
    """
    for name, value in {"task": task, "method": method, "seed": seed}.items():
        _check_field({name: value}, name, *_FIELDS[name])
    return results / task / method / f"{seed}.json"


def write_record(path: Path, record: Record) -> None:
    """Writes a result in one piece.

    Args:
        path: Its place, as `record_path` gives it.
        record: What to write.

    Raises:
        RecordError: If `read_record` would refuse it; nothing is written then.
    """
    check_record(record, path)
    write_json(path, record, indent=1)


def read_record(path: Path) -> Record:
    """Reads a result.

    Args:
        path: Its place, as `record_path` gives it.

    Returns:
        What was written.

    Raises:
        RecordError: If the file cannot be read, is no JSON or no result, or is another cell's. The
            message names the file, what was found and what was expected.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecordError(f"{path}: cannot be read as JSON: {error}") from error
    check_record(record, path)
    return record


def check_record(record: Any, path: Path) -> None:
    """Checks that a document is a complete result and at its place.

    Args:
        record: The document.
        path: Where it is, or is going to be.

    Raises:
        RecordError: If it is not. The message names the file and what was expected.
    """
    try:
        if not isinstance(record, dict):
            raise ValueError(f"found a {type(record).__name__}, expected an object")
        for name, (expected, is_right) in _FIELDS.items():
            _check_field(record, name, expected, is_right)
        _check_scores(record["scores"], record["metric"], "scores")
        for place, checkpoint in enumerate(record["curve"]):
            _check_checkpoint(checkpoint, record["metric"], f"curve[{place}]")
        found = Path(path.parent.parent.name, path.parent.name, path.name)
        expected_place = record_path(Path(), record["task"], record["method"], record["seed"])
        if found != expected_place:
            raise ValueError(f"found the result of {expected_place}, expected that of {found}")
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None


def _check_field(
    record: Mapping[str, Any], name: str, expected: str, is_right: Callable[[Any], bool]
) -> None:
    if name not in record:
        raise ValueError(f"{name}: not there, expected {expected}")
    if not is_right(record[name]):
        raise ValueError(f"{name}: found {_short(record[name])}, expected {expected}")


def _check_checkpoint(checkpoint: Any, metric: str, name: str) -> None:
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{name}: found {_short(checkpoint)}, expected an object")
    for field in ("updates", "env_steps"):
        if not _is_count(checkpoint.get(field)):
            found = _short(checkpoint.get(field))
            raise ValueError(f"{name}.{field}: found {found}, expected a count")
    _check_scores(checkpoint.get("scores"), metric, f"{name}.scores")


def _check_scores(scores: Any, metric: str, name: str) -> None:
    if not (isinstance(scores, list) and scores and all(map(_is_number, scores))):
        raise ValueError(f"{name}: found {_short(scores)}, expected one number for each episode")
    if metric == "success" and not set(scores) <= {0, 1}:
        raise ValueError(f"{name}: found {_short(scores)}, expected 0 or 1 for each episode")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_amount(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_phases(value: Any) -> bool:
    return isinstance(value, dict) and "training" in value and all(map(_is_amount, value.values()))


def _is_demonstrations(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_text(value.get(name)) for name in ("source", "sha256"))
        and all(_is_count(value.get(name)) for name in ("transitions", "episodes"))
    )


def _is_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


# Field: what to tell who gave something else, and what is right.
_FIELDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "format": (f"{FORMAT}", lambda value: value == FORMAT and _is_count(value)),
    "task": (
        "a name of letters, digits and _ . + -",
        lambda value: isinstance(value, str) and bool(re.fullmatch(r"\w[\w.+-]*", value)),
    ),
    "method": (
        f"one of {', '.join(METHOD_TITLES)}",
        lambda value: isinstance(value, str) and value in METHOD_TITLES,
    ),
    "seed": ("a count", _is_count),
    "title": ("text", _is_text),
    "env": ("text", _is_text),
    "noise_ratio": ("a number of 0 or more", _is_amount),
    "metric": ("'success' or 'return'", lambda value: value in ("success", "return")),
    "demonstrations": (
        "an object with source and sha256 as text, transitions and episodes as counts",
        _is_demonstrations,
    ),
    "config": ("an object", _is_object),
    "scores": ("a list", _is_list),
    "first_episode_seed": ("a count", _is_count),
    "curve": ("a list", _is_list),
    "first_curve_episode_seed": ("a count", _is_count),
    "last_checkpoints": ("a count", _is_count),
    "seconds": ("an object of phases with seconds, 'training' among them", _is_phases),
    "cpu_seconds": ("an object of phases with seconds, 'training' among them", _is_phases),
    "env_steps": ("a count", _is_count),
    "updates": ("a count", _is_count),
    "n_parameters": ("a count", _is_count),
    "peak_memory_mb": ("a number of 0 or more", _is_amount),
    "inference_ms": ("a number of 0 or more", _is_amount),
    "versions": ("an object of names with versions", _is_versions),
    "git_revision": ("text or null", lambda value: value is None or _is_text(value)),
    "git_dirty": ("true, false or null", lambda value: value is None or value in (True, False)),
    "machine": ("an object", _is_object),
    "command": ("text", _is_text),
}
