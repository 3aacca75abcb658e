"""`load_demonstrations`: from a file, a bundled set or objects in memory to Transitions."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from imitation.data.types import (
    DictObs,
    Trajectory,
    Transitions,
    TransitionsMinimal,
)

from sb3_diffbc.demonstrations import formats
from sb3_diffbc.demonstrations.formats import Observations
from sb3_diffbc.demonstrations.on_disk import Array, in_plain_dtype
from sb3_diffbc.demonstrations.validation import (
    DemonstrationWarning,
    by_key,
    checked_columns,
)

_logger = logging.getLogger("sb3_diffbc")
_bundled = Path(__file__).parent / "bundled"


def bundled_names() -> tuple[str, ...]:
    """Returns the names of the demonstration sets that come with the package."""
    return tuple(sorted(path.stem for path in _bundled.glob("*.npz")))


def bundled_path(name: str) -> Path:
    """Returns where the `.npz` of a bundled set is, or would be if there were one of this name."""
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
    """Loads demonstrations from wherever they are into imitation's `Transitions`.

    Nothing that is read can run code: pickled content is refused, and Python objects inside the
    infos of a dataset directory are left out.

    Known faults are repaired, and every repair and oddity gives one `DemonstrationWarning` with
    its counts. The commonest: a `next_obs` that is missing, or equal to `obs` in every row, is
    rebuilt from the next row's `obs` within a trajectory (so rows must be in order); the last row
    of a trajectory has no known successor and keeps its own `obs`. Where a file says it in
    `final_obs`, what is rebuilt is exact and no fault. A summary goes to the logger `sb3_diffbc` at
    level INFO.

    Args:
        source: One of

            - the name of a bundled set (see `bundled_names`), such as `"maze"`. It takes
              precedence over a file of the same name, which `"./maze"` or a `Path` reaches;
            - a path to `.npz` (named arrays), `.pt` or `.pth` (a dictionary of tensors, as the
              paper's authors publish), `.hdf5` or `.h5` (D4RL's layout), to a directory saved
              by imitation's `serialize.save`, or to a directory of `.npy` files, each named as
              its array (`obs.npy`, ...). The arrays of a file are called `obs` or
              `observations`, `acts` or `actions`, and optionally `next_obs` or
              `next_observations`, `dones` or `done` (episode ended, for whatever reason),
              `terminals` or `terminations` (ended in a terminal state), `timeouts` or
              `truncations` (cut short). In place of `next_obs`, which repeats almost all of `obs`,
              a file may hold `final_obs` or `final_observations`, shape
              `(n_episodes, *observation_shape)`: the observation after the last action of each
              episode, in order. An episode ends at each row that one of the flags marks, and at
              the last row. Other arrays, such as rewards, are ignored;
            - imitation's `Transitions`, which come back as they are if there is nothing to
              repair, or `TransitionsMinimal`;
            - one `Trajectory` of imitation, or an iterable of them.
        in_memory: False leaves observations and actions on disk, for demonstrations that are
            larger than memory; everything else that the source holds is ignored. `source` must
            be the path of a directory of `.npy` files or of an `.hdf5` or `.h5` file whose arrays
            are neither chunked nor compressed, and the files must stay as they are while the
            demonstrations are in use. The checks, the statistics and the batches of `DiffusionBC`
            read them in parts; see `BlockBatches` for the order of the batches and
            `DiffusionCritic.fit` for how many pairs the critic sees.

    Returns:
        Transitions with `obs` of shape `(n, *observation_shape)` and `acts` of shape
        `(n, *action_shape)` in the source's units, float32 where the source has floats and its
        own dtype where it has integers; `next_obs` like `obs`; `dones` of shape `(n,)`, True at
        the last row of an episode, both terminal and cut short; `infos` of shape `(n,)`, where a
        cut-short end has `{"TimeLimit.truncated": True}` as in Stable-Baselines3. With
        `in_memory=False`, `TransitionsMinimal` of memory-mapped `obs` and `acts`, read-only and in
        the dtype of the file (batches are float32 all the same), and empty `infos`.

    Raises:
        FileNotFoundError: There is no file at the path.
        ValueError: An unknown name or suffix, a damaged or refused file, missing arrays, arrays
            whose lengths differ, no rows, non-numeric dtypes, NaN or infinite values, `final_obs`
            beside `next_obs` or not one observation per episode; with `in_memory=False`, a source
            that cannot stay on disk.
        TypeError: `source` is none of the above.
        ImportError: The format needs a package that is not installed.
    """
    if not in_memory:
        return _map(source)
    raw = _read(source)
    fields, notes = _assemble(raw)
    if isinstance(source, Transitions):
        changed = {
            name: value for name, value in fields.items() if value is not getattr(source, name)
        }
        transitions = dataclasses.replace(source, **changed) if changed else source
    else:
        transitions = Transitions(**fields)
    for note in notes:
        warnings.warn(f"{raw.source}: {note}", DemonstrationWarning, stacklevel=2)
    if _logger.isEnabledFor(logging.INFO):
        _logger.info(_summary(raw.source, transitions))
    return transitions


def _map(source: Any) -> TransitionsMinimal:
    """Loads demonstrations that stay on disk."""
    wanted = (
        "in_memory=False needs the path of a directory of .npy files (obs.npy and acts.npy), or of "
        f"a file with one of the suffixes {', '.join(formats.MAPPERS)}; found"
    )
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"{wanted} {type(source).__name__}.")
    if isinstance(source, str) and _is_plain_name(source):
        raise ValueError(f"{wanted} the name {source!r}.")
    path = _existing(source)
    if path.is_dir():
        return _on_disk(formats.map_npy_directory(path))
    mapper = formats.MAPPERS.get(path.suffix.lower())
    if mapper is None:
        raise ValueError(
            f"{wanted} {path}. `python -m zipfile -e FILE.npz DIRECTORY` makes such a directory of "
            "an .npz file."
        )
    return _on_disk(mapper(path))


def _on_disk(raw: formats.RawDemonstrations) -> TransitionsMinimal:
    """Checks mapped arrays and makes transitions of them."""
    _check_arrays(raw.source, raw.obs, raw.acts)
    n = len(raw.acts)
    shapes = f"observations {by_key(raw.obs)[None].shape[1:]}, actions {raw.acts.shape[1:]}"
    _logger.info("%s: %d transitions on disk, %s", raw.source, n, shapes)
    return TransitionsMinimal(obs=raw.obs, acts=raw.acts, infos=formats.shared_infos(n))


def _read(source: Any) -> formats.RawDemonstrations:
    """Finds the reader that fits the kind of source."""
    if isinstance(source, TransitionsMinimal):
        names = ("obs", "acts", "next_obs", "dones", "infos")
        found = {name: getattr(source, name) for name in names if hasattr(source, name)}
        return formats.RawDemonstrations(source=type(source).__name__, **found)
    if isinstance(source, Trajectory):
        return formats.from_trajectories([source])
    if isinstance(source, str) and _is_plain_name(source):
        return _read_bundled(source)
    if isinstance(source, (str, os.PathLike)):
        return _read_path(_existing(source))
    if isinstance(source, Iterable) and not isinstance(source, (Mapping, bytes)):
        return formats.from_trajectories(source)
    raise TypeError(
        "`source` must be Transitions, trajectories, a path or a bundled set's name, "
        f"found {type(source).__name__}."
    )


def _is_plain_name(source: str) -> bool:
    """Tells a bundled set's name, known or misspelt, from a path."""
    path = Path(source)
    looks_like_name = path.name == source and not path.suffix and not path.exists()
    return looks_like_name or source in bundled_names()


def _read_bundled(name: str) -> formats.RawDemonstrations:
    known = bundled_names()
    if name not in known:
        raise ValueError(
            f"`source` {name!r} must be the name of a bundled set, one of {list(known)}, or a path "
            "to an existing file or directory."
        )
    raw = formats.read_npz(bundled_path(name))
    return dataclasses.replace(raw, source=f"bundled set {name!r}")


def _existing(source: str | os.PathLike[str]) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"There is no demonstration file or directory at {path}.")
    return path


def _read_path(path: Path) -> formats.RawDemonstrations:
    if path.is_dir():
        return formats.read_directory(path)
    reader = formats.READERS.get(path.suffix.lower())
    if reader is None:
        readable = [s for s, r in formats.READERS.items() if r is not formats.read_pickle]
        raise ValueError(
            f"{path} must be a file with one of the suffixes {', '.join(readable)}, or a directory "
            "saved by imitation's serialize.save or of .npy files; found the suffix "
            f"{path.suffix!r}."
        )
    return reader(path)


def _assemble(raw: formats.RawDemonstrations) -> tuple[dict[str, Any], list[str]]:
    """Checks and repairs what a reader found.

    Returns:
        The arguments of `Transitions` (the very arrays of `raw` where nothing had to change), and
        a note on each finding.
    """
    obs, acts = _single_precision(raw.obs), _single_precision(raw.acts)
    _check_arrays(raw.source, obs, acts)
    dones, truncated = _episode_ends(raw, len(acts))
    next_obs, notes = _successors(raw, obs, dones)
    if raw.dones is None and raw.terminals is None and raw.truncations is None:
        notes.append("nothing marks where episodes end; `dones` is False in every row.")
    infos = formats.empty_infos(len(acts)) if raw.infos is None else raw.infos
    if truncated.any():
        infos = infos.copy()
        for row in np.flatnonzero(truncated):
            infos[row] = {**infos[row], formats.TRUNCATED: True}
    fields = {"obs": obs, "acts": acts, "next_obs": next_obs, "dones": dones, "infos": infos}
    return fields, [*raw.notes, *notes]


def _check_arrays(source: str, obs: Observations, acts: Array) -> None:
    """Checks what can be checked without knowing the spaces, naming the source."""
    try:
        checked_columns(obs, acts)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{source}: {error}") from error


def _each_array(function: Callable[[Array], Array], obs: Observations) -> Observations:
    """Applies `function` to an array or to every array of a `DictObs`."""
    return obs.map_arrays(function) if isinstance(obs, DictObs) else function(obs)


def _single_precision(data: Any) -> Any:
    """Returns floats as float32 and everything else in native byte order, without spare copies."""
    if isinstance(data, DictObs):
        converted = data.map_arrays(_single_precision)
        before, after = by_key(data), by_key(converted)
        same = all(after[key] is before[key] for key in before)
        return data if same else converted
    if not isinstance(data, np.ndarray):
        return data  # the checks that follow name what it is
    return in_plain_dtype(data)


def _episode_ends(raw: formats.RawDemonstrations, n: int) -> tuple[Array, Array]:
    """Returns which rows end an episode and which of them were cut short, both `(n,)` bool."""
    dones, terminals, truncations = (
        _flags(raw, name, n) for name in ("dones", "terminals", "truncations")
    )
    known = [flags for flags in (dones, terminals, truncations) if flags is not None]
    if not known:
        return np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    ends = known[0] if len(known) == 1 else np.logical_or.reduce(known)
    truncated = np.zeros(n, dtype=bool) if truncations is None else truncations
    return ends, truncated if terminals is None else truncated & ~terminals


def _flags(raw: formats.RawDemonstrations, name: str, n: int) -> Array | None:
    """Returns a column of zeros and ones as bool of shape `(n,)`."""
    flags = getattr(raw, name)
    if flags is None:
        return None
    flags = np.asarray(flags)
    if flags.shape not in ((n,), (n, 1)) or flags.dtype.kind not in "fiub":
        raise ValueError(
            f"{raw.source}: `{name}` must have one flag for each of {n} rows, "
            f"found shape {flags.shape} and dtype {flags.dtype}."
        )
    if not np.isin(flags, (0, 1)).all():
        raise ValueError(f"{raw.source}: `{name}` must hold only zeros and ones.")
    return flags.astype(bool, copy=False) if flags.shape == (n,) else flags.reshape(n).astype(bool)


def _successors(
    raw: formats.RawDemonstrations, obs: Observations, dones: Array
) -> tuple[Observations, list[str]]:
    """Returns `next_obs`, rebuilt from `obs` where the source does not say, with a note on it."""
    last = dones.copy()
    last[-1] = True
    if raw.final_obs is not None:
        assert isinstance(obs, np.ndarray)  # only files have final_obs, and no dictionaries
        return _completed(raw, obs, last), []
    next_obs = None if raw.next_obs is None else _checked_next_obs(raw, obs)
    if next_obs is not None and not _equal(next_obs, obs):
        return next_obs, []
    successor = _next_rows(last)
    rebuilt = _each_array(lambda array: array[successor], obs)
    if next_obs is not None and _equal(rebuilt, next_obs):
        return next_obs, []  # observations never change, so the source may well be right
    unknown = int(last.sum())
    fault = "is missing" if next_obs is None else f"equals `obs` in all {len(dones)} rows"
    return rebuilt, [
        f"`next_obs` {fault}; rebuilt from the `obs` of the next row in {len(dones) - unknown} "
        f"rows. The last row of each trajectory ({unknown} in all) has no known successor, "
        "`next_obs` is `obs` there."
    ]


def _next_rows(last: Array) -> Array:
    """Returns the index of each row's next row; the last row of a trajectory keeps its own."""
    return np.arange(len(last)) + ~last


def _completed(raw: formats.RawDemonstrations, obs: Array, last: Array) -> Array:
    """Returns `next_obs`, exactly, where `final_obs` says what follows the rows in `last`."""
    if raw.next_obs is not None:
        raise ValueError(
            f"{raw.source} has `next_obs` and `final_obs`, which both say what follows the last "
            "action of an episode; keep one."
        )
    final_obs: Array = _single_precision(raw.final_obs)
    episodes = int(last.sum())
    wanted = f"shape {(episodes, *obs.shape[1:])} and dtype {obs.dtype}"
    found = f"shape {final_obs.shape} and dtype {final_obs.dtype}"
    if found != wanted:
        raise ValueError(
            f"{raw.source}: `final_obs` must have one observation for each of {episodes} episodes, "
            f"{wanted}, found {found}. Episodes end where `dones`, `terminals` or `timeouts` say, "
            "and at the last row."
        )
    if not np.isfinite(final_obs).all():
        raise ValueError(f"{raw.source}: `final_obs` must be finite, found NaN or infinite values.")
    next_obs: Array = obs[_next_rows(last)]
    next_obs[last] = final_obs
    return next_obs


def _checked_next_obs(raw: formats.RawDemonstrations, obs: Observations) -> Observations:
    """Returns `next_obs` as float32 or integers; raises unless it is shaped as `obs`."""
    next_obs: Observations = _single_precision(raw.next_obs)
    wanted, found = (
        f"{type(array).__name__} of shape {array.shape} and dtype {array.dtype}"
        for array in (obs, next_obs)
    )
    if found != wanted:
        raise ValueError(f"{raw.source}: `next_obs` must be as `obs`, {wanted}, found {found}.")
    return next_obs


def _equal(first: Observations, second: Observations) -> bool:
    others = by_key(second)
    return all(np.array_equal(array, others[key]) for key, array in by_key(first).items())


def _summary(source: str, transitions: Transitions) -> str:
    """Describes transitions in one line for the log."""
    n = len(transitions.acts)
    ends = transitions.dones.copy()
    ends[-1] = True
    obs, next_obs = by_key(transitions.obs), by_key(transitions.next_obs)
    for key, array in obs.items():
        # A row whose successor is not the next row ends a trajectory, marked or not.
        differs = next_obs[key][:-1] != array[1:]
        ends[:-1] |= differs.any(axis=tuple(range(1, array.ndim)))
    shapes = {key: array.shape[1:] for key, array in obs.items()}
    return (
        f"{source}: {n} transitions in {int(ends.sum())} trajectories, observations "
        f"{shapes.get(None, shapes)}, actions {transitions.acts.shape[1:]}"
    )
