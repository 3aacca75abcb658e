"""``load_demonstrations``: from a file, a bundled set or objects in memory to Transitions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
from imitation.data.types import (
    DictObs,
    Trajectory,
    Transitions,
    TransitionsMinimal,
)
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_diffbc.demonstrations.fields import Arrays, Choice, ObsKeys, named_arrays
from sb3_diffbc.demonstrations.formats import map_npy_directory, recognise
from sb3_diffbc.demonstrations.trajectories import NO_INFO
from sb3_diffbc.demonstrations.validation import Array, by_key, checked_columns
from sb3_diffbc.schema import nearest

T = TypeVar("T")

Source: TypeAlias = (
    str | os.PathLike[str] | Trajectory | Iterable[Any] | Mapping[str, Any] | ReplayBuffer
)
"""What demonstrations are loaded from; ``Transitions`` and ``Dataset`` are iterables."""

TRUNCATED = "TimeLimit.truncated"
"""Stable-Baselines3's key in ``infos`` for an episode that a limit ended, not a terminal state."""

_HOW_TO_MAP = """\
in_memory=False needs a directory of .npy files (obs.npy and acts.npy), found {found}.
`python -m zipfile -e FILE.npz DIRECTORY` makes one of an .npz file; for other formats,
fill arrays made by `numpy.lib.format.open_memmap` part by part."""

_bundled = Path(__file__).parent / "bundled"


def bundled_names() -> tuple[str, ...]:
    """Returns the names of the demonstration sets that come with the package."""
    return tuple(sorted(path.stem for path in _bundled.glob("*.npz")))


def bundled_path(name: str) -> Path:
    """Returns the path of the ``.npz`` of a bundled set, which need not exist."""
    return _bundled / f"{name}.npz"


@overload
def load_demonstrations(
    source: Source,
    *,
    obs_keys: ObsKeys = None,
    action_key: str | None = None,
    in_memory: Literal[True] = True,
) -> Transitions: ...


@overload
def load_demonstrations(
    source: str | os.PathLike[str],
    *,
    obs_keys: ObsKeys = None,
    action_key: str | None = None,
    in_memory: Literal[False],
) -> TransitionsMinimal: ...


def load_demonstrations(
    source: Any,
    *,
    obs_keys: ObsKeys = None,
    action_key: str | None = None,
    in_memory: bool = True,
) -> TransitionsMinimal:
    """Loads demonstrations from a file, a directory, a bundled set or objects in memory.

    The format of a file or directory is recognised by its content. Nothing that is read can run
    code or lead to another file. What a file expands to is limited to ten times its size, and to
    100 MB at any rate. No format needs the package that writes it.

    Args:
        source: one of

            - the name of a bundled set (see ``bundled_names``), such as ``"maze"``. It takes
              precedence over a file of the same name, which ``"./maze"`` or a ``Path`` reaches;
            - a path to an ``.npz`` file or a directory of ``.npy`` files (named arrays), a ``.pt``
              file (a dictionary of tensors, as the paper's authors publish), or HDF5 in D4RL's
              layout. Arrays are called ``obs`` or ``observations``, ``acts`` or ``actions``, and
              optionally ``next_obs`` or ``next_observations``, ``dones`` or ``done`` (episode
              ended, for whatever reason), ``terminals`` or ``terminations`` (ended in a terminal
              state), ``timeouts`` or ``truncations`` (cut short). In place of ``next_obs``, which
              repeats almost all of ``obs``, there may be ``final_obs`` or ``final_observations``,
              shape ``(n_episodes, *observation_shape)``: the observation after the last action of
              each episode, in order. An episode ends at each row that one of the flags marks, and
              at the last row. Other arrays, such as rewards, are ignored;
            - a path to a robomimic file (HDF5), a Minari dataset (directory or HDF5 file), a
              LeRobot dataset of version 3 (directory), or a directory written by imitation's
              ``serialize.save`` or ``datasets.Dataset.save_to_disk``;
            - imitation's ``Transitions``, which come back as they are if there is nothing to
              repair, ``TransitionsMinimal``, a ``Trajectory`` or an iterable of them;
            - a dictionary of arrays or tensors, called as above; ``obs`` may be a dictionary;
            - a Hugging Face ``Dataset`` with imitation's columns (a trajectory in each row), or
              with a row per transition in columns called as above or as in LeRobot;
            - a ``ReplayBuffer`` or ``DictReplayBuffer`` of Stable-Baselines3.
        obs_keys: which observations, where the source names several: a name takes one as it is, a
            list joins several to one vector in that order, and a dictionary ``{"name": "key"}``
            makes observations for a ``Dict`` space, whose values may be lists too. By default,
            what is called ``obs``; all that belong to it, as a ``DictObs``, where it has several.
        action_key: the name of the actions, if it is not one of the above.
        in_memory: whether to read everything now. If False, ``source`` must be a directory of
            ``.npy`` files. Observations and actions are memory-mapped, everything else is ignored,
            and the files must not change while the demonstrations are in use. Training is as fast
            as in memory while the operating system's page cache holds the files; beyond that, it
            waits for random reads from the disk.

    Returns:
        Transitions with ``obs`` of shape ``(n, *observation_shape)`` and ``acts`` of shape
        ``(n, *action_shape)`` in the source's units, float32 where the source has floats and its
        own dtype where it has integers; ``dones`` of shape ``(n,)``, True at the last row of an
        episode, both terminal and cut short, where the source says it; ``infos`` of shape
        ``(n,)``, where a cut-short end has ``{"TimeLimit.truncated": True}`` as in
        Stable-Baselines3, and those of files are left out; ``next_obs`` like ``obs``, which
        cloning does not use: where a source has none, or the same as ``obs`` in every row, it is
        the next row's ``obs``, and the last row of an episode keeps its own. With
        ``in_memory=False``, ``TransitionsMinimal`` of memory-mapped ``obs`` and ``acts``,
        read-only and in the dtype of the file, and empty ``infos``.

    Raises:
        FileNotFoundError: there is no file at the path.
        ValueError: an unknown name, a source of no format or of several, a damaged or refused file,
            missing arrays, arrays whose lengths differ, no rows, non-numeric dtypes, NaN, infinite
            or huge values, ``final_obs`` beside ``next_obs`` or not one observation per episode;
            with ``in_memory=False``, a source that is no directory of ``.npy`` files, or a byte
            order other than this machine's.
        TypeError: ``source`` or ``obs_keys`` is none of the above.
        ImportError: the format needs a package that is not installed.
    """
    choice = Choice(obs_keys, action_key)
    if not in_memory:
        return _map(source, choice)
    name, arrays = _read(source, choice)
    try:
        fields = _assemble(arrays)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error
    if not isinstance(source, Transitions):
        return Transitions(**fields)
    changed = {name: value for name, value in fields.items() if value is not getattr(source, name)}
    return dataclasses.replace(source, **changed) if changed else source


def no_infos(n: int) -> Array:
    """Returns ``n`` times one empty dictionary, shape ``(n,)``, without memory for each row."""
    return np.broadcast_to(np.full(1, NO_INFO, dtype=object), n)


def _map(source: Any, choice: Choice) -> TransitionsMinimal:
    """Loads demonstrations that stay in the ``.npy`` files of a directory."""
    path = _existing(source) if isinstance(source, (str, os.PathLike)) else None
    if path is None or not path.is_dir():
        raise ValueError(_HOW_TO_MAP.format(found=path or type(source).__name__))

    def read() -> TransitionsMinimal:
        arrays = map_npy_directory(path, choice)
        obs, acts = arrays["obs"], arrays["acts"]
        checked_columns(obs, acts)
        return TransitionsMinimal(obs=obs, acts=acts, infos=no_infos(len(acts)))

    return _read_path(path, read)


def _read(source: Any, choice: Choice) -> tuple[str, Arrays]:
    """Returns how messages call the source, and its arrays by field."""
    if not isinstance(source, (str, os.PathLike)):
        found = recognise(source)
        arrays = found.read(source, choice)
        if choice != Choice() and found.read is not named_arrays:
            arrays |= named_arrays(arrays, choice)
        return found.name, arrays
    if isinstance(source, str) and _is_plain_name(source):
        if source not in bundled_names():
            raise ValueError(
                f"`source` {source!r} must be the name of a bundled set, one of "
                f"{list(bundled_names())}, or a path to an existing file or directory."
                f"{nearest(source, {name: name for name in bundled_names()})}"
            )
        name, path = f"bundled set {source!r}", bundled_path(source)
    else:
        path = _existing(source)
        name = str(path)
    return name, _read_path(path, lambda: recognise(path).read(path, choice))


def _is_plain_name(source: str) -> bool:
    """Tells a bundled set's name, known or misspelt, from a path."""
    path = Path(source)
    looks_like_name = path.name == source and not path.suffix and not path.exists()
    return looks_like_name or source in bundled_names()


def _existing(source: str | os.PathLike[str]) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no demonstration file or directory at {path}.")
    return path


def _read_path(path: Path, read: Callable[[], T]) -> T:
    """Turns whatever a reader raises on a damaged file into a ValueError that names the file."""
    try:
        return read()
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _assemble(arrays: Arrays) -> dict[str, Any]:
    """Returns the arguments of ``Transitions``: what a reader found, checked and repaired.

    An array that needs no change stays the same object.
    """
    obs, acts = _single_precision(arrays["obs"]), _single_precision(arrays["acts"])
    checked_columns(obs, acts)
    n = len(acts)
    flags = {
        field: _flags(field, arrays[field], n)
        for field in ("dones", "terminals", "truncations")
        if field in arrays
    }
    ends = list(flags.values()) or [np.zeros(n, dtype=bool)]
    dones = ends[0] if len(ends) == 1 else np.logical_or.reduce(ends)
    next_obs = _successors(arrays, obs, dones)
    infos = arrays.get("infos", no_infos(n))
    never = np.zeros(n, dtype=bool)
    cut_short = np.flatnonzero(flags.get("truncations", never) & ~flags.get("terminals", never))
    if len(cut_short):
        infos = infos.copy()
        for row in cut_short:
            infos[row] = {**infos[row], TRUNCATED: True}
    return {"obs": obs, "acts": acts, "next_obs": next_obs, "dones": dones, "infos": infos}


def _single_precision(data: Any) -> Any:
    """Returns floats as float32 and all else in native byte order: the same object if it is so."""
    if isinstance(data, DictObs):
        converted = data.map_arrays(_single_precision)
        same = all(converted.get(key) is array for key, array in data.items())
        return data if same else converted
    if not isinstance(data, np.ndarray):
        return data  # the checks that follow say what it is
    dtype = np.dtype(np.float32) if data.dtype.kind == "f" else data.dtype.newbyteorder("=")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which the checks report
        return data.astype(dtype, copy=False)


def _flags(field: str, flags: Array, n: int) -> Array:
    """Returns a column of zeros and ones as bool of shape ``(n,)``."""
    if flags.shape not in ((n,), (n, 1)) or flags.dtype.kind not in "fiub":
        raise ValueError(
            f"`{field}` must have one flag for each of {n} rows, "
            f"found shape {flags.shape} and dtype {flags.dtype}."
        )
    if not np.isin(flags, (0, 1)).all():
        raise ValueError(f"`{field}` must hold only zeros and ones.")
    # What needs no change stays the same object, which ``reshape`` would not give.
    return (flags if flags.ndim == 1 else flags[:, 0]).astype(bool, copy=False)


def _successors(arrays: Arrays, obs: Any, dones: Array) -> Any:
    """Returns ``next_obs``, rebuilt from ``obs`` where the source does not say it row by row."""
    next_obs = _single_precision(arrays.get("next_obs"))
    if next_obs is not None:
        if "final_obs" in arrays:
            raise ValueError(
                "it has `next_obs` and `final_obs`, which both say what follows the last action of "
                "an episode; keep one."
            )
        if _form(next_obs) != _form(obs):
            raise ValueError(f"`next_obs` must be as `obs`, {_form(obs)}, found {_form(next_obs)}.")
        if not _equal(next_obs, obs):
            return next_obs
    last = dones.copy()
    last[-1] = True
    rebuilt = obs[np.arange(len(last)) + ~last]  # the last row of a trajectory keeps its own
    if "final_obs" in arrays:
        final_obs, like = _single_precision(arrays["final_obs"]), obs[last]
        if _form(final_obs) != _form(like):
            raise ValueError(
                f"`final_obs` must have one observation for each of {len(like)} episodes, "
                f"{_form(like)}, found {_form(final_obs)}. Episodes end where `dones`, `terminals` "
                "or `timeouts` say, and at the last row."
            )
        if not np.isfinite(final_obs).all():
            raise ValueError("`final_obs` must be finite, found NaN or infinite values.")
        rebuilt[last] = final_obs
        return rebuilt
    # Observations may never change, so that the source is right.
    return next_obs if next_obs is not None and _equal(rebuilt, next_obs) else rebuilt


def _form(array: Any) -> str:
    return f"{type(array).__name__} of shape {array.shape} and dtype {array.dtype}"


def _equal(first: Any, second: Any) -> bool:
    others = by_key(second)
    return all(np.array_equal(array, others[key]) for key, array in by_key(first).items())
