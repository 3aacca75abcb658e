"""Which of the arrays that a source names are observations, actions and ends of episodes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch as th
from imitation.data.types import DictObs, concatenate_maybe_dictobs

from sb3_diffbc.demonstrations.validation import Array

Arrays: TypeAlias = dict[str, Any]
"""Demonstrations as a reader returns them, before checks and repairs: arrays by field.

The fields are the keys of ``_ALIASES`` and ``infos`` (dictionaries, dtype object). Only ``obs`` and
``acts`` are required.
"""

ObsKeys: TypeAlias = "str | Sequence[ObsKeys] | Mapping[str, ObsKeys] | None"
"""Which observations: one by name, several joined to a vector, or several by new names."""

_ALIASES: dict[str, tuple[str, ...]] = {
    "obs": ("obs", "observations", "observation"),
    "acts": ("acts", "actions", "action"),
    "next_obs": ("next_obs", "next_observations"),
    "final_obs": ("final_obs", "final_observations"),
    "dones": ("dones", "done", "next.done"),
    "terminals": ("terminals", "terminations"),
    "truncations": ("timeouts", "truncations"),
}
KNOWN_NAMES = frozenset(name for aliases in _ALIASES.values() for name in aliases)

ALWAYS_ALLOWED_BYTES = 100_000_000
MAX_EXPANSION = 10


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a caller wants of a source that names more than one observation or action.

    Attributes:
        obs_keys: see ``load_demonstrations``.
        action_key: the name of the actions.
    """

    obs_keys: ObsKeys = None
    action_key: str | None = None

    def __post_init__(self) -> None:
        if self.obs_keys is not None:
            _check_keys(self.obs_keys)
        if not isinstance(self.action_key, str | None):
            raise TypeError(f"`action_key` must be a name, found {self.action_key!r}.")


def _check_keys(keys: Any) -> None:
    if isinstance(keys, str):
        return
    if not isinstance(keys, (Sequence, Mapping)) or not keys:
        raise TypeError(
            "`obs_keys` must be a name, a list of names or a dictionary of these, with at least "
            f"one name; found {keys!r}."
        )
    for part in keys.values() if isinstance(keys, Mapping) else keys:
        _check_keys(part)


class Named(Mapping[str, Any]):
    """Arrays by name, each read when it is asked for."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Any]) -> None:
        self._names = dict.fromkeys(names)
        self._read = read

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class SizeLimit:
    """How many bytes files may expand to: ten times their size, and 100 MB at any rate."""

    def __init__(self, *files: Path) -> None:
        size = sum(file.stat().st_size for file in files)
        self.total = self.left = max(ALWAYS_ALLOWED_BYTES, MAX_EXPANSION * size)

    def take(self, name: str, n_bytes: int) -> None:
        """Counts what is about to be read.

        Raises:
            ValueError: if the files are too small to hold that much.
        """
        self.left -= n_bytes
        if self.left < 0:
            raise ValueError(
                f"{name!r} would take {n_bytes:,} bytes, and all that is read may take "
                f"{self.total:,}: {MAX_EXPANSION} times the size of its files, at least "
                f"{ALWAYS_ALLOWED_BYTES:,}. It is damaged, or packed more densely than "
                "demonstrations are; save it without compression."
            )


def n_bytes(shape: Iterable[int], dtype: np.dtype[Any]) -> int:
    """Returns the size of an array, in numbers that do not overflow."""
    return math.prod(map(int, shape)) * dtype.itemsize


def check_readable(name: str, dtype: np.dtype[Any]) -> None:
    """Raises unless a dtype is one of real numbers, before anything of it is read."""
    if dtype.kind not in "fiub" or dtype.itemsize == 0:
        raise ValueError(
            f"{name!r} must hold real numbers (float, integer or bool dtype), found dtype {dtype}. "
            "Texts, Python objects, and images encoded as JPEG or PNG are not read."
        )


def regular_file(path: Path, folder: Path | None = None) -> Path:
    """Returns a path that is neither a pipe nor a device, nor a link out of its folder.

    Raises:
        ValueError: if it is.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is not a regular file.")
    if folder is not None and not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"{path.name} is a link that leads out of the folder; copy the file there."
        )
    return path


def named_arrays(found: Mapping[str, Any], choice: Choice) -> Arrays:
    """Reads the arrays whose names are known or chosen, by field.

    Args:
        found: arrays by name; the observations may be a mapping of arrays.
        choice: what to take.

    Raises:
        ValueError: there is no array of observations or of actions, two names of one field, or
            something other than an array under a known name.
    """
    arrays = {}
    for field, aliases in _ALIASES.items():
        keys = choice.obs_keys if field in ("obs", "next_obs", "final_obs") else None
        if field == "acts" and choice.action_key is not None:
            aliases = (choice.action_key,)
        names = [name for name in aliases if name in found]
        if len(names) > 1:
            raise ValueError(f"it has {' and '.join(names)}, which mean the same; keep one.")
        content = found[names[0]] if names else None
        if isinstance(content, (Mapping, DictObs)):
            arrays[field] = _chosen(content, keys)
        elif keys is not None:
            if field == "obs":
                arrays[field] = _chosen(found, keys)
        elif content is not None:
            arrays[field] = _array(names[0], content)
        elif field in ("obs", "acts"):
            raise ValueError(
                f"it must have an array named {' or '.join(aliases)}, "
                f"found {_listed(found)}; `obs_keys` and `action_key` choose others."
            )
    return arrays


def _chosen(found: Mapping[str, Any] | DictObs, keys: ObsKeys) -> Any:
    """Reads the chosen observations, all if ``keys`` is None."""
    if keys is None:
        keys = {str(key): key for key in found.keys()}  # noqa: SIM118 (DictObs iterates over rows)
    if isinstance(keys, str):
        if keys not in found.keys():  # noqa: SIM118
            raise ValueError(f"it has no observation {keys!r}, found {_listed(found)}.")
        return _array(keys, found.get(keys))
    if isinstance(keys, Mapping):
        return DictObs({str(name): _chosen(found, key) for name, key in keys.items()})
    parts = [_chosen(found, key) for key in keys]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def _array(name: str, content: Any) -> Array:
    if isinstance(content, th.Tensor):
        content = content.detach().cpu().numpy()
    if not isinstance(content, np.ndarray):
        raise ValueError(f"{name!r} must be an array, found something else.")
    return content


def _listed(names: Any) -> list[str]:
    return sorted(map(str, names.keys()))


def joined_episodes(episodes: Iterable[Mapping[str, Any]], choice: Choice) -> Arrays:
    """Reads episodes, each with arrays of its own, and joins them.

    An episode may have one observation more than actions, the one after its last action.
    """
    parts: dict[str, list[Any]] = {}
    for episode in episodes:
        arrays = named_arrays(episode, choice)
        obs, n = arrays["obs"], len(arrays["acts"])
        if len(obs) == n + 1:
            arrays |= {"obs": obs[:-1], "next_obs": obs[1:]}
        for flags in ("terminals", "truncations"):
            arrays.setdefault(flags, np.zeros(n, dtype=bool))
        arrays["dones"] = np.arange(n) == n - 1
        if n:
            for field, array in arrays.items():
                parts.setdefault(field, []).append(array)
    if not parts:
        raise ValueError("it must hold at least one transition, found none.")
    n_episodes = len(parts["acts"])
    return {
        field: concatenate_maybe_dictobs(arrays)
        for field, arrays in parts.items()
        if len(arrays) == n_episodes
    }
