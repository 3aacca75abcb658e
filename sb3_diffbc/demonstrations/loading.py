"""``load_demonstrations``: from a file, a bundled set or objects in memory to Transitions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
from imitation.data.types import (
    DictObs,
    Trajectory,
    Transitions,
    TransitionsMinimal,
)

from sb3_diffbc.demonstrations.formats import (
    READERS,
    Arrays,
    map_npy_directory,
    read_directory,
    read_npz,
    refuse_pickle,
)
from sb3_diffbc.demonstrations.trajectories import NO_INFO, flatten_trajectories
from sb3_diffbc.demonstrations.validation import Array, by_key, checked_columns, warn
from sb3_diffbc.schema import nearest

T = TypeVar("T")

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
    source: str | os.PathLike[str] | TransitionsMinimal | Trajectory | Iterable[Trajectory],
    *,
    in_memory: Literal[True] = True,
) -> Transitions: ...


@overload
def load_demonstrations(
    source: str | os.PathLike[str], *, in_memory: Literal[False]
) -> TransitionsMinimal: ...


def load_demonstrations(source: Any, *, in_memory: bool = True) -> TransitionsMinimal:
    """Loads demonstrations from a file, a directory, a bundled set or objects in memory.

    Nothing that is read can run code: pickled content is refused, and Python objects inside the
    infos of a dataset directory are left out.

    Known faults are repaired, and every repair and oddity gives one ``DemonstrationWarning`` with
    its counts. The commonest: a ``next_obs`` that is missing, or equal to ``obs`` in every row, is
    rebuilt from the next row's ``obs`` within a trajectory (so rows must be in order); the last
    row of a trajectory has no known successor and keeps its own ``obs``. Where a file says it in
    ``final_obs``, what is rebuilt is exact and no fault.

    Args:
        source: one of

            - the name of a bundled set (see ``bundled_names``), such as ``"maze"``. It takes
              precedence over a file of the same name, which ``"./maze"`` or a ``Path`` reaches;
            - a path to ``.npz`` (named arrays), ``.pt`` or ``.pth`` (a dictionary of tensors, as
              the paper's authors publish), ``.hdf5`` or ``.h5`` (D4RL's layout), to a directory
              saved by imitation's ``serialize.save``, or to a directory of ``.npy`` files, each
              named as its array (``obs.npy``, ...). The arrays of a file are called ``obs`` or
              ``observations``, ``acts`` or ``actions``, and optionally ``next_obs`` or
              ``next_observations``, ``dones`` or ``done`` (episode ended, for whatever reason),
              ``terminals`` or ``terminations`` (ended in a terminal state), ``timeouts`` or
              ``truncations`` (cut short). In place of ``next_obs``, which repeats almost all of
              ``obs``, a file may hold ``final_obs`` or ``final_observations``, shape
              ``(n_episodes, *observation_shape)``: the observation after the last action of each
              episode, in order. An episode ends at each row that one of the flags marks, and at
              the last row. Other arrays, such as rewards, are ignored;
            - imitation's ``Transitions``, which come back as they are if there is nothing to
              repair, or ``TransitionsMinimal``;
            - one ``Trajectory`` of imitation, or an iterable of them.
        in_memory: whether to read everything now. If False, ``source`` must be a directory of
            ``.npy`` files. Observations and actions are memory-mapped, everything else is ignored,
            and the files must not change while the demonstrations are in use. Training is as fast
            as in memory while the operating system's page cache holds the files; beyond that, it
            waits for random reads from the disk.

    Returns:
        Transitions with ``obs`` of shape ``(n, *observation_shape)`` and ``acts`` of shape
        ``(n, *action_shape)`` in the source's units, float32 where the source has floats and its
        own dtype where it has integers; ``next_obs`` like ``obs``; ``dones`` of shape ``(n,)``,
        True at the last row of an episode, both terminal and cut short; ``infos`` of shape
        ``(n,)``, where a cut-short end has ``{"TimeLimit.truncated": True}`` as in
        Stable-Baselines3. With ``in_memory=False``, ``TransitionsMinimal`` of memory-mapped
        ``obs`` and ``acts``, read-only and in the dtype of the file, and empty ``infos``.

    Raises:
        FileNotFoundError: there is no file at the path.
        ValueError: an unknown name or suffix, a damaged or refused file, missing arrays, arrays
            whose lengths differ, no rows, non-numeric dtypes, NaN or infinite values,
            ``final_obs`` beside ``next_obs`` or not one observation per episode; with
            ``in_memory=False``, a source that is no directory of ``.npy`` files, or a byte order
            other than this machine's.
        TypeError: ``source`` is none of the above.
        ImportError: the format needs a package that is not installed.
    """
    if not in_memory:
        return _map(source)
    name, arrays = _read(source)
    try:
        fields = _assemble(name, arrays)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{name}: {error}") from error
    if not isinstance(source, Transitions):
        return Transitions(**fields)
    changed = {name: value for name, value in fields.items() if value is not getattr(source, name)}
    return dataclasses.replace(source, **changed) if changed else source


def no_infos(n: int) -> Array:
    """Returns ``n`` times one empty dictionary, shape ``(n,)``, without memory for each row."""
    return np.broadcast_to(np.full(1, NO_INFO, dtype=object), n)


def _map(source: Any) -> TransitionsMinimal:
    """Loads demonstrations that stay in the ``.npy`` files of a directory."""
    path = _existing(source) if isinstance(source, (str, os.PathLike)) else None
    if path is None or not path.is_dir():
        raise ValueError(_HOW_TO_MAP.format(found=path or type(source).__name__))
    return _read_path(path, _mapped_transitions)


def _mapped_transitions(path: Path) -> TransitionsMinimal:
    arrays = map_npy_directory(path)
    obs, acts = arrays["obs"], arrays["acts"]
    checked_columns(obs, acts)
    if not (obs.dtype.isnative and acts.dtype.isnative):
        raise ValueError(
            "`obs` and `acts` must be in this machine's byte order to stay on disk, found "
            f"dtypes {obs.dtype.str} and {acts.dtype.str}."
        )
    return TransitionsMinimal(obs=obs, acts=acts, infos=no_infos(len(acts)))


def _read(source: Any) -> tuple[str, Arrays]:
    """Returns how messages call the source, and its arrays by field."""
    if isinstance(source, TransitionsMinimal):
        fields = ("obs", "acts", "next_obs", "dones", "infos")
        found = {field: getattr(source, field) for field in fields if hasattr(source, field)}
        return type(source).__name__, found
    if isinstance(source, str) and _is_plain_name(source):
        if source not in bundled_names():
            raise ValueError(
                f"`source` {source!r} must be the name of a bundled set, one of "
                f"{list(bundled_names())}, or a path to an existing file or directory."
                f"{nearest(source, {name: name for name in bundled_names()})}"
            )
        return f"bundled set {source!r}", _read_path(bundled_path(source), read_npz)
    if isinstance(source, (str, os.PathLike)):
        path = _existing(source)
        reader = read_directory if path.is_dir() else READERS.get(path.suffix.lower())
        if reader is None:
            readable = [suffix for suffix, read in READERS.items() if read is not refuse_pickle]
            raise ValueError(
                f"{path} must be a file with one of the suffixes {', '.join(readable)}, or a "
                "directory saved by imitation's serialize.save or of .npy files; found the suffix "
                f"{path.suffix!r}."
            )
        return str(path), _read_path(path, reader)
    if isinstance(source, Trajectory):
        source = [source]
    if isinstance(source, Iterable):
        trajectories = list(source)
        if all(isinstance(trajectory, Trajectory) for trajectory in trajectories):
            return "trajectories", flatten_trajectories(trajectories)
    raise TypeError(
        "`source` must be Transitions, trajectories, a path or a bundled set's name, "
        f"found {type(source).__name__}."
    )


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


def _read_path(path: Path, reader: Callable[[Path], T]) -> T:
    """Turns whatever a reader raises on a damaged file into a ValueError that names the file."""
    try:
        return reader(path)
    except ImportError:
        raise
    except Exception as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _assemble(name: str, arrays: Arrays) -> dict[str, Any]:
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
    next_obs = _successors(name, arrays, obs, dones)
    if not flags:
        warn(f"{name}: nothing marks where episodes end; `dones` is False in every row.")
    infos = arrays.get("infos", no_infos(n))
    truncated = flags.get("truncations", np.zeros(n, dtype=bool))
    if truncated.any():
        infos = infos.copy()
        for row in np.flatnonzero(truncated & ~flags.get("terminals", np.zeros(n, dtype=bool))):
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


def _successors(name: str, arrays: Arrays, obs: Any, dones: Array) -> Any:
    """Returns ``next_obs``, rebuilt from ``obs`` where the source does not say it row by row."""
    next_obs = _single_precision(arrays.get("next_obs"))
    if next_obs is not None and "final_obs" in arrays:
        raise ValueError(
            "it has `next_obs` and `final_obs`, which both say what follows the last action of an "
            "episode; keep one."
        )
    if next_obs is not None and _form(next_obs) != _form(obs):
        raise ValueError(f"`next_obs` must be as `obs`, {_form(obs)}, found {_form(next_obs)}.")
    if next_obs is not None and not _equal(next_obs, obs):
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
    if next_obs is not None and _equal(rebuilt, next_obs):
        return next_obs  # observations never change, so the source may well be right
    n_unknown = int(last.sum())
    fault = "is missing" if next_obs is None else f"equals `obs` in all {len(last)} rows"
    warn(
        f"{name}: `next_obs` {fault}; rebuilt from the `obs` of the next row in "
        f"{len(last) - n_unknown} rows. The last row of each trajectory ({n_unknown} in all) has "
        "no known successor, `next_obs` is `obs` there."
    )
    return rebuilt


def _form(array: Any) -> str:
    return f"{type(array).__name__} of shape {array.shape} and dtype {array.dtype}"


def _equal(first: Any, second: Any) -> bool:
    others = by_key(second)
    return all(np.array_equal(array, others[key]) for key, array in by_key(first).items())
