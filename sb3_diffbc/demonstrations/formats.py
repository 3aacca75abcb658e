"""Readers: one function per file format, each giving the same plain arrays.

No reader runs anything that a file names: there is no unpickling, no `jsonpickle`, and no import
on a file's behalf. What a format can only give by doing so is refused or left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch
from imitation.data.types import DictObs, Trajectory, concatenate_maybe_dictobs

from sb3_diffbc.demonstrations.on_disk import Array

Observations: TypeAlias = Array | DictObs

TRUNCATED = "TimeLimit.truncated"
"""Stable-Baselines3's key in `infos` for an episode that a limit ended, not a terminal state."""

NO_INFO: dict[str, Any] = {}
"""The one empty dictionary that all rows without information share (a row costs 8 bytes)."""

_ALIASES: dict[str, tuple[str, ...]] = {
    "obs": ("obs", "observations"),
    "acts": ("acts", "actions"),
    "next_obs": ("next_obs", "next_observations"),
    "final_obs": ("final_obs", "final_observations"),
    "dones": ("dones", "done"),
    "terminals": ("terminals", "terminations"),
    "truncations": ("timeouts", "truncations"),
}
_KNOWN_NAMES = frozenset(name for aliases in _ALIASES.values() for name in aliases)
_PAIR_NAMES = frozenset(name for field in ("obs", "acts") for name in _ALIASES[field])

_HDF5_TO_FOLDER = """\
    import os, h5py, numpy as np
    os.mkdir("demonstrations")
    with h5py.File({path!r}) as file:
        for name in {names}:
            data, path = file[name], f"demonstrations/{{name}}.npy"
            array = np.lib.format.open_memmap(path, "w+", data.dtype, data.shape)
            for row in range(0, len(data), 10_000):
                array[row : row + 10_000] = data[row : row + 10_000]"""

_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"
_FIRST_SAFE_PYARROW = (14, 0, 1)


@dataclasses.dataclass(frozen=True)
class RawDemonstrations:
    """What a source says, before checks and repairs.

    All arrays but `final_obs` have one row per transition.

    Attributes:
        source: How messages call the source.
        obs: Observations, shape `(n, *observation_shape)`.
        acts: Actions, shape `(n, *action_shape)`.
        next_obs: Observations after the action, shaped as `obs`; None if absent.
        final_obs: Observations after the last action of each episode, in order, shape
            `(n_episodes, *observation_shape)`; None if absent.
        dones: Whether the row is the last of an episode, for whatever reason; None if absent.
        terminals: Whether the row leads to a terminal state; None if absent.
        truncations: Whether a time limit (or another cut) follows the row; None if absent.
        infos: Dictionaries, dtype object; None if absent.
        notes: What the reader left out or changed, one sentence per finding.
    """

    source: str
    obs: Observations
    acts: Array
    next_obs: Observations | None = None
    final_obs: Array | None = None
    dones: Array | None = None
    terminals: Array | None = None
    truncations: Array | None = None
    infos: Array | None = None
    notes: tuple[str, ...] = ()


def empty_infos(n: int) -> Array:
    """Returns `n` references to one empty dictionary, shape `(n,)`, dtype object."""
    return np.full(n, NO_INFO, dtype=object)


def shared_infos(n: int) -> Array:
    """Returns `n` times one empty dictionary, as `empty_infos` but without memory for each row."""
    return np.broadcast_to(empty_infos(1), n)


def _from_names(
    source: str, arrays: Mapping[str, Array], found: Collection[Any]
) -> RawDemonstrations:
    """Sorts named arrays into fields; `found` is every name in the file, for the messages."""
    fields: dict[str, Any] = {}
    for field, aliases in _ALIASES.items():
        present = [name for name in aliases if name in arrays]
        if len(present) > 1:
            raise ValueError(
                f"{source} has {' and '.join(present)}, which mean the same; keep one."
            )
        if present:
            fields[field] = arrays[present[0]]
    for field in ("obs", "acts"):
        if field not in fields:
            raise ValueError(
                f"{source} must have an array named {' or '.join(_ALIASES[field])}, "
                f"found {sorted(map(str, found))}."
            )
    return RawDemonstrations(source=source, **fields)


@contextlib.contextmanager
def _parsing(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a parser raises on a damaged file into a ValueError that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error


def _refuse_pickle(path: Path) -> NoReturn:
    raise ValueError(
        f"{path} holds pickled Python objects, as older versions of imitation write them. It is "
        "refused, because unpickling can run any code. If you trust where it comes from, convert "
        "it once in an environment that may be exposed to it, and load the new directory here:\n"
        "    from imitation.data import serialize\n"
        f"    serialize.save('demonstrations', serialize.load({str(path)!r}))"
    )


def read_pickle(path: Path) -> RawDemonstrations:
    """Refuses a pickle file and says how to convert it."""
    _refuse_pickle(path)


def read_npz(path: Path) -> RawDemonstrations:
    """Reads a NumPy archive with named arrays, such as `np.savez(path, obs=..., acts=...)`."""
    arrays, found = npz_arrays(path, _KNOWN_NAMES)
    if {"indices", "terminal"} <= set(found):  # imitation's archives before version 1.0
        _refuse_pickle(path)
    return _from_names(str(path), arrays, found)


def npz_arrays(
    path: Path, wanted: Collection[str] | None = None
) -> tuple[dict[str, Array], list[str]]:
    """Reads arrays of a NumPy archive by name.

    Args:
        path: The archive.
        wanted: The names to read, where the archive has them; None reads all.

    Returns:
        The arrays that were read, and the names of all that are there.

    Raises:
        ValueError: The archive is damaged, or what was to be read holds pickled objects or is no
            array.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_PICKLE_MAGIC):
        _refuse_pickle(path)
    if start != _ZIP_MAGIC:
        raise ValueError(f"{path} cannot be read as a NumPy archive: it is no zip file.")
    try:
        with _parsing(path, "a NumPy archive"), np.load(path, allow_pickle=False) as archive:
            found = archive.files
            arrays = {name: archive[name] for name in found if wanted is None or name in wanted}
    except ValueError as error:
        if "allow_pickle" in str(error):  # NumPy's wording for an array of Python objects
            _refuse_pickle(path)
        raise
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives a file of another kind as bytes
            raise ValueError(f"{path} must hold arrays only, found that {name!r} is none.")
    return arrays, found


def read_torch(path: Path) -> RawDemonstrations:
    """Reads a dictionary of tensors written by `torch.save`, the format of the paper's files."""
    # Only the zip format of torch 1.6 and newer: the older one is a bare pickle, and its restricted
    # loading had a hole before torch 2.6.
    with path.open("rb") as file:
        if file.read(4) != _ZIP_MAGIC:
            raise ValueError(
                f"{path} is refused: it is not in torch's zip file format, and reading older "
                "formats can run code that the file brings along."
            )
    with _parsing(path, "a torch file"), zipfile.ZipFile(path) as archive:
        is_program = any(name.endswith("constants.pkl") for name in archive.namelist())
    if is_program:  # torch before 2.6 would load it as such, whatever `weights_only` says
        raise ValueError(f"{path} is refused: it is a TorchScript program, not data.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            f"{path} is damaged, or holds more than a dictionary of tensors; the latter is "
            "refused, because loading other objects can run code that the file brings along."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} must hold a dictionary of tensors, found {type(content).__name__}."
        )
    with _parsing(path, "a dictionary of tensors"):
        arrays = {
            name: value.detach().numpy()
            for name, value in content.items()
            if name in _KNOWN_NAMES and isinstance(value, torch.Tensor)
        }
    return _from_names(str(path), arrays, list(content))


def read_hdf5(path: Path) -> RawDemonstrations:
    """Reads D4RL's layout: `observations`, `actions`, `terminals`, `timeouts` at the top level."""
    h5py = _import_h5py(path)
    with _parsing(path, "an HDF5 file"), h5py.File(path, "r") as file:
        found = list(file)
        arrays = {
            name: np.asarray(file[name][()])
            for name in found
            if name in _KNOWN_NAMES and isinstance(file[name], h5py.Dataset)
        }
    return _from_names(str(path), arrays, found)


def _import_h5py(path: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f'Reading {path} needs h5py: pip install "sb3-diffbc[hdf5]"') from error
    return h5py


def map_hdf5(path: Path) -> RawDemonstrations:
    """Maps observations and actions of D4RL's layout, which then stay on disk."""
    h5py = _import_h5py(path)
    with _parsing(path, "an HDF5 file"), h5py.File(path, "r") as file:
        found = list(file)
        places = {
            name: _place(file[name])
            for name in found
            if name in _PAIR_NAMES and isinstance(file[name], h5py.Dataset)
        }
    if None in places.values():
        raise ValueError(
            f"{path} must hold {' and '.join(places)} as numbers in one uncompressed piece each, "
            "to stay on disk; found an array that is chunked, compressed, empty or of another "
            "kind. Write them to a folder of .npy files once, and load that folder:\n"
            + _HDF5_TO_FOLDER.format(path=str(path), names=tuple(places))
        )
    with _parsing(path, "an HDF5 file"):
        arrays = {name: np.memmap(**place) for name, place in places.items() if place}
    return _from_names(str(path), arrays, found)


def _place(dataset: Any) -> dict[str, Any] | None:
    """Where an HDF5 dataset's bytes are as an array's, as arguments of `np.memmap`, or None."""
    offset, dtype = dataset.id.get_offset(), dataset.dtype
    # Mapped objects would be pointers. The sizes differ where h5py converts, or nothing is stored.
    is_plain = dtype.kind in "fiub" and dataset.id.get_storage_size() == dataset.nbytes > 0
    if offset is None or not is_plain:
        return None
    return {
        "filename": dataset.file.filename,  # a link may lead to another file
        "dtype": dtype,
        "mode": "r",
        "offset": offset,
        "shape": dataset.shape,
    }


def read_npy_directory(path: Path) -> RawDemonstrations:
    """Reads a directory of `.npy` files, each named as its array: `obs.npy`, `acts.npy`, ..."""
    arrays, found = _map_npy_files(path, _KNOWN_NAMES)
    in_memory = {name: np.array(array) for name, array in arrays.items()}
    return _from_names(str(path), in_memory, found)


def map_npy_directory(path: Path) -> RawDemonstrations:
    """Maps observations and actions of a directory of `.npy` files, which then stay on disk."""
    arrays, found = _map_npy_files(path, _PAIR_NAMES)
    for name, array in arrays.items():
        if not array.flags.c_contiguous:
            raise ValueError(
                f"{path / name}.npy must hold row after row to stay on disk, found column after "
                "column (Fortran order). Save a copy made by np.ascontiguousarray."
            )
    return _from_names(str(path), arrays, found)


def _map_npy_files(path: Path, wanted: Collection[str]) -> tuple[dict[str, Array], list[str]]:
    """Maps the wanted `.npy` files of a directory; names all that are there."""
    files = {file.stem: file for file in sorted(path.glob("*.npy"))}
    arrays = {}
    for name, file in files.items():
        if name in wanted:
            with _parsing(file, "a NumPy array"):
                arrays[name] = np.load(file, mmap_mode="r", allow_pickle=False)
                if not isinstance(arrays[name], np.ndarray):
                    raise TypeError(f"it is an archive, {type(arrays[name]).__name__}")
    return arrays, list(files)


def read_dataset_directory(path: Path) -> RawDemonstrations:
    """Reads a directory that imitation's `serialize.save` wrote (a Hugging Face dataset).

    The Arrow files are read as plain columns, which is quicker than through `datasets` and follows
    none of the paths and types that the directory's descriptions may name.
    """
    table = _read_arrow_table(path)
    missing = {"obs", "acts", "terminal"} - set(table.column_names)
    if missing:
        raise ValueError(
            f"{path} must have the columns obs, acts and terminal, as imitation's serialize.save "
            f"writes them; found {table.column_names}."
        )
    if table.num_rows == 0:
        raise ValueError(f"{path} must hold at least one trajectory, found none.")
    with _parsing(path, "a dataset of trajectories"):
        all_obs, obs_lengths = _column_to_rows(table["obs"])
        acts, lengths = _column_to_rows(table["acts"])
        terminal = np.asarray(table["terminal"].to_pylist(), dtype=bool)
    if lengths.min() < 1 or not np.array_equal(obs_lengths, lengths + 1):
        raise ValueError(
            f"{path} must hold trajectories of at least one action, each with one observation "
            f"more than actions; found {len(lengths)} trajectories with {len(acts)} actions and "
            f"{len(all_obs)} observations."
        )
    ends = np.cumsum(lengths) - 1
    dones = np.zeros(len(acts), dtype=bool)
    dones[ends] = terminal
    # Row i of trajectory k is observation i + k of all: every trajectory has one more of those.
    here = np.arange(len(acts)) + np.repeat(np.arange(len(lengths)), lengths)
    infos, notes = _plain_infos(table, len(acts))
    return RawDemonstrations(
        source=str(path),
        obs=all_obs[here],
        acts=acts,
        next_obs=all_obs[here + 1],
        dones=dones,
        infos=infos,
        notes=notes,
    )


def _read_arrow_table(path: Path) -> Any:
    """Reads and validates the Arrow files that a dataset directory lists."""
    import pyarrow as pa

    if tuple(int(part) for part in pa.__version__.split(".")[:3]) < _FIRST_SAFE_PYARROW:
        raise ImportError(
            f"Reading {path} needs pyarrow 14.0.1 or newer, found {pa.__version__}: older "
            "versions unpickle what a file names as its types."
        )
    listing = path / "state.json"
    if not listing.is_file():
        raise ValueError(
            f"{path} is not a dataset directory as imitation's serialize.save writes it: "
            "it has no state.json. Nor does it hold .npy files."
        )
    tables = []
    with _parsing(path, "a dataset directory"):
        names = [str(entry["filename"]) for entry in json.loads(listing.read_text())["_data_files"]]
        for name in names:
            if os.path.basename(name) != name:
                raise ValueError(f"state.json names a file outside of the directory, {name!r}")
            with pa.memory_map(str(path / name)) as file:
                tables.append(pa.ipc.open_stream(file).read_all())
        table = pa.concat_tables(tables)
        table.validate(full=True)  # offsets of a damaged file may point anywhere
    return table


def _column_to_rows(column: Any) -> tuple[Array, Array]:
    """Flattens a column of trajectories.

    Args:
        column: Arrow chunked array; each entry is a nested list of shape `(length, *shape)`.

    Returns:
        All rows, shape `(sum of lengths, *shape)`, and the lengths, shape `(trajectories,)`.
    """
    chunks = [_chunk_to_rows(chunk) for chunk in column.chunks if len(chunk)]
    return (
        np.concatenate([rows for rows, _ in chunks]),
        np.concatenate([lengths for _, lengths in chunks]),
    )


def _chunk_to_rows(array: Any) -> tuple[Array, Array]:
    """Does the work of `_column_to_rows` for one Arrow array."""
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


def _plain_infos(table: Any, n: int) -> tuple[Array, tuple[str, ...]]:
    """Decodes infos as JSON and leaves out what only `jsonpickle` could bring back."""
    infos, left_out = empty_infos(n), 0
    column = table["infos"].to_pylist() if "infos" in table.column_names else []
    texts = [text for row in column for text in row or ()]
    if len(texts) != n:
        return infos, ()
    for index, text in enumerate(texts):
        if text != "{}":
            infos[index], complete = _plain_info(text)
            left_out += not complete
    if not left_out:
        return infos, ()
    return infos, (
        f"`infos` of {left_out} rows hold Python objects, which are not restored because doing so "
        "can run code; their numbers, texts and lists are kept.",
    )


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


def from_trajectories(trajectories: Iterable[Trajectory]) -> RawDemonstrations:
    """Flattens trajectories that are already in memory."""
    trajectories = list(trajectories)
    for index, trajectory in enumerate(trajectories):
        if not isinstance(trajectory, Trajectory):
            raise TypeError(
                "`source` must be Transitions, trajectories, a path or a bundled set's name; "
                f"found an iterable whose item {index} is of type {type(trajectory).__name__}."
            )
    if not trajectories:
        raise ValueError("`source` must hold at least one trajectory, found none.")
    dones = np.zeros(sum(map(len, trajectories)), dtype=bool)
    dones[np.cumsum([len(trajectory) for trajectory in trajectories]) - 1] = [
        trajectory.terminal for trajectory in trajectories
    ]
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
    infos = np.concatenate([_infos_in_memory(trajectory) for trajectory in trajectories])
    return RawDemonstrations(
        source="trajectories", obs=obs, acts=acts, next_obs=next_obs, dones=dones, infos=infos
    )


def _infos_in_memory(trajectory: Trajectory) -> Array:
    """Returns a trajectory's infos, shape `(len(trajectory),)`.

    What imitation's `serialize.load` returns decodes infos only when they are touched, with
    `jsonpickle`; such ones are left untouched and replaced by empty dictionaries.
    """
    infos = empty_infos(len(trajectory))
    if isinstance(trajectory.infos, (np.ndarray, list, tuple)):
        infos[:] = trajectory.infos
    return infos


def read_directory(path: Path) -> RawDemonstrations:
    """Reads a directory that imitation's `serialize.save` wrote, or one of `.npy` files."""
    is_dataset = (path / "state.json").exists() or not any(path.glob("*.npy"))
    return read_dataset_directory(path) if is_dataset else read_npy_directory(path)


READERS: dict[str, Callable[[Path], RawDemonstrations]] = {
    ".npz": read_npz,
    ".pt": read_torch,
    ".pth": read_torch,
    ".hdf5": read_hdf5,
    ".h5": read_hdf5,
    ".pkl": read_pickle,
    ".pickle": read_pickle,
}
"""The reader of each file suffix."""

MAPPERS: dict[str, Callable[[Path], RawDemonstrations]] = {
    ".hdf5": map_hdf5,
    ".h5": map_hdf5,
}
"""What leaves the arrays of a file on disk, for each suffix of which that is possible."""
