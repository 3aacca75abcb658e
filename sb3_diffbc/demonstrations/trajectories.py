"""imitation's trajectories, in memory or in a directory that ``serialize.save`` wrote.

Nothing is decoded with ``jsonpickle``, which can run code: Python objects in infos are left out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from imitation.data.types import Trajectory, concatenate_maybe_dictobs

from sb3_diffbc.demonstrations.validation import Array, warn

NO_INFO: dict[str, Any] = {}
"""The one empty dictionary that all rows without information share (a row costs 8 bytes)."""

_FIRST_SAFE_PYARROW = (14, 0, 1)


def flatten_trajectories(trajectories: list[Trajectory]) -> dict[str, Any]:
    """Joins trajectories that are in memory to arrays with one row per transition."""
    if not trajectories:
        raise ValueError("`source` must hold at least one trajectory, found none.")
    all_obs: list[Any] = [trajectory.obs for trajectory in trajectories]
    try:
        obs = concatenate_maybe_dictobs([obs[:-1] for obs in all_obs])
        next_obs = concatenate_maybe_dictobs([obs[1:] for obs in all_obs])
        acts = np.concatenate([trajectory.acts for trajectory in trajectories])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            "All trajectories in `source` must have observations and actions of the same kind "
            f"and shape: {error}"
        ) from error
    return {
        "obs": obs,
        "acts": acts,
        "next_obs": next_obs,
        "dones": _dones([len(t) for t in trajectories], [t.terminal for t in trajectories]),
        "infos": np.concatenate([_infos_in_memory(trajectory) for trajectory in trajectories]),
    }


def _dones(lengths: Any, terminal: Any) -> Array:
    """Returns whether each row ends a terminal trajectory, shape ``(sum(lengths),)``."""
    dones = np.zeros(sum(lengths), dtype=bool)
    dones[np.cumsum(lengths) - 1] = terminal
    return dones


def _infos_in_memory(trajectory: Trajectory) -> Array:
    """Returns a trajectory's infos, shape ``(len(trajectory),)``.

    What imitation's ``serialize.load`` returns decodes infos only when they are touched, with
    ``jsonpickle``; such ones are left untouched and replaced by empty dictionaries.
    """
    infos = np.full(len(trajectory), NO_INFO, dtype=object)
    if isinstance(trajectory.infos, (np.ndarray, list, tuple)):
        infos[:] = trajectory.infos
    return infos


def read_dataset_directory(path: Path) -> dict[str, Any]:
    """Reads a directory that imitation's ``serialize.save`` wrote (a Hugging Face dataset)."""
    table = _read_table(path)
    missing = {"obs", "acts", "terminal"} - set(table.column_names)
    if missing:
        raise ValueError(
            "it must have the columns obs, acts and terminal, as imitation's serialize.save "
            f"writes them; found {table.column_names}."
        )
    all_obs, obs_lengths = _rows_of_column(table["obs"])
    acts, lengths = _rows_of_column(table["acts"])
    if lengths.min() < 1 or not np.array_equal(obs_lengths, lengths + 1):
        raise ValueError(
            "it must hold trajectories of at least one action, each with one observation more than "
            f"actions; found {len(lengths)} trajectories with {len(acts)} actions and "
            f"{len(all_obs)} observations."
        )
    # Row i of trajectory k is observation i + k of all: every trajectory has one more of those.
    here = np.arange(len(acts)) + np.repeat(np.arange(len(lengths)), lengths)
    infos, n_incomplete = _plain_infos(table, len(acts))
    if n_incomplete:
        warn(
            f"{path}: `infos` of {n_incomplete} rows hold Python objects, which are not restored "
            "because doing so can run code; their numbers, texts and lists are kept."
        )
    return {
        "obs": all_obs[here],
        "acts": acts,
        "next_obs": all_obs[here + 1],
        "dones": _dones(lengths, table["terminal"].to_pylist()),
        "infos": infos,
    }


def _read_table(path: Path) -> Any:
    """Reads and validates the Arrow table of a dataset directory."""
    import datasets  # type: ignore[import-untyped]
    import pyarrow as pa

    if tuple(int(part) for part in pa.__version__.split(".")[:3]) < _FIRST_SAFE_PYARROW:
        raise ImportError(
            f"Reading {path} needs pyarrow 14.0.1 or newer, found {pa.__version__}: older "
            "versions unpickle what a file names as its types."
        )
    if not (path / "state.json").is_file():
        raise ValueError(
            "it is not a dataset directory as imitation's serialize.save writes it (it has no "
            "state.json), nor does it hold .npy files."
        )
    table = datasets.load_from_disk(str(path)).data.table
    table.validate(full=True)  # offsets of a damaged file may point anywhere
    return table


def _rows_of_column(column: Any) -> tuple[Array, Array]:
    """Flattens an Arrow column whose entries are nested lists of shape ``(length, *shape)``.

    Returns:
        All rows, shape ``(sum of lengths, *shape)``, and the lengths, shape ``(trajectories,)``.
    """
    # Each chunk by itself, since Arrow's 32-bit offsets limit how much one array can hold.
    rows, lengths = zip(*map(_rows_of_chunk, filter(len, column.chunks)), strict=True)
    return np.concatenate(rows), np.concatenate(lengths)


def _rows_of_chunk(array: Any) -> tuple[Array, Array]:
    """Does the work of ``_rows_of_column`` for one Arrow array."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    array = array.flatten()
    shape: list[int] = []
    while pa.types.is_nested(array.type):
        sizes = np.unique(pc.list_value_length(array).to_numpy(zero_copy_only=False))
        if len(sizes) != 1:
            raise ValueError(f"rows differ in their sizes, {sizes.tolist()}")
        shape.append(int(sizes[0]))
        array = array.flatten()
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(int(lengths.sum()), *shape), lengths.astype(np.int64)


def _plain_infos(table: Any, n: int) -> tuple[Array, int]:
    """Decodes infos as JSON, without what only ``jsonpickle`` could bring back.

    Returns:
        The infos, shape ``(n,)``, and how many of them lack something.
    """
    infos, n_incomplete = np.full(n, NO_INFO, dtype=object), 0
    column = table["infos"].to_pylist() if "infos" in table.column_names else []
    texts = [text for row in column for text in row or ()]
    for index, text in enumerate(texts if len(texts) == n else ()):
        if text != "{}":
            infos[index], is_complete = _plain_info(text)
            n_incomplete += not is_complete
    return infos, n_incomplete


def _plain_info(text: Any) -> tuple[dict[str, Any], bool]:
    """Returns the entries of one encoded info that are plain JSON, and whether these are all."""
    try:
        info = json.loads(text)
        # `jsonpickle` marks whatever is more than plain JSON with keys such as "py/object".
        plain = {
            key: value for key, value in info.items() if '"py/' not in json.dumps([key, value])
        }
    except (TypeError, ValueError, AttributeError, RecursionError):
        return NO_INFO, False
    return plain or NO_INFO, plain == info
