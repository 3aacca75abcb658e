"""Arrow tables: imitation's saved trajectories, LeRobot's Parquet files, Hugging Face datasets.

Infos are not read: imitation encodes them with ``jsonpickle``, which can run code.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffbc.demonstrations.fields import (
    Arrays,
    Choice,
    Named,
    SizeLimit,
    named_arrays,
    regular_file,
)
from sb3_diffbc.demonstrations.trajectories import ends_of
from sb3_diffbc.demonstrations.validation import Array, warn

_FIRST_SAFE_PYARROW = (14, 0, 1)
_TRAJECTORY_COLUMNS = ["obs", "acts", "terminal"]
_BYTES_PER_VALUE = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8}


def read_dataset(dataset: Any, choice: Choice) -> Arrays:
    """Reads a Hugging Face ``Dataset``: imitation's trajectories, or a row per transition."""
    return _read_table(dataset.with_format("arrow")[:], choice, {})


def read_dataset_directory(path: Path, choice: Choice) -> Arrays:
    """Reads a folder that ``Dataset.save_to_disk`` wrote, as imitation's ``serialize.save`` does.

    The files are mapped into memory, so that nothing is larger than they are.
    """
    pa = _pyarrow(path)
    state = json.loads(regular_file(path / "state.json", path).read_bytes())
    tables = []
    for entry in state["_data_files"]:
        file = regular_file(path / entry["filename"], path)
        with pa.memory_map(str(file)) as stream:
            for message in pa.ipc.MessageReader.open_stream(stream):
                if message.type != "schema" and _is_packed(message):
                    raise ValueError(f"{file.name} is compressed; save it without compression.")
            stream.seek(0)
            tables.append(pa.ipc.open_stream(stream).read_all())
        if tables[-1].num_rows > file.stat().st_size:
            raise ValueError(f"{file.name} says that it has more rows than bytes.")
    return _read_table(pa.concat_tables(tables), choice, {})


def read_lerobot(path: Path, choice: Choice) -> Arrays:
    """Reads the Parquet files of a LeRobot dataset, version 3. Images and videos are not read."""
    pa = _pyarrow(path)
    import pyarrow.parquet as pq

    features = json.loads(regular_file(path / "meta" / "info.json", path).read_bytes())["features"]
    files = [regular_file(file, path) for file in path.glob("data/*/*.parquet")]
    files.sort(key=lambda file: [int(n) for n in re.findall(r"\d+", f"{file.parent.name} {file}")])
    limit = SizeLimit(*files)
    tables = []
    for file in files:
        with pq.ParquetFile(file) as parquet:
            names = [field.name for field in parquet.schema_arrow if _is_numeric(field.type)]
            for group in range(parquet.metadata.num_row_groups):
                columns = parquet.metadata.row_group(group)
                for column in map(columns.column, range(columns.num_columns)):
                    size = column.num_values * _BYTES_PER_VALUE.get(column.physical_type, 0)
                    limit.take(column.path_in_schema, max(size, column.total_uncompressed_size))
            tables.append(parquet.read(names, use_threads=False))
    if not tables:
        raise ValueError("it must have files data/*/*.parquet, found none.")
    pictures = {
        name for name, feature in features.items() if feature["dtype"] in ("image", "video")
    }
    if pictures and choice.obs_keys is None:
        warn(f"{path}: images and videos are not read, here {sorted(pictures)}.")
    shapes = {name: tuple(map(int, feature["shape"])) for name, feature in features.items()}
    return _read_table(pa.concat_tables(tables), choice, shapes)


def _pyarrow(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.ipc

    if tuple(int(part) for part in pa.__version__.split(".")[:3]) < _FIRST_SAFE_PYARROW:
        raise ImportError(
            f"Reading {path} needs pyarrow 14.0.1 or newer, found {pa.__version__}: older "
            "versions unpickle what a file names as its types."
        )
    return pa


def _is_packed(message: Any) -> bool:
    """Tells whether a message of Arrow's stream format is more than plain buffers.

    The message is a FlatBuffer of Arrow's Message.fbs, whose types are public: field 2 of a Message
    is the RecordBatch, and field 3 of this is how its buffers are compressed.
    """
    if message.type != "record batch":
        return True  # a dictionary
    data = memoryview(message.metadata)

    def field(table: int, index: int) -> int | None:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        (size,) = struct.unpack_from("<H", data, vtable)
        place = 4 + 2 * index
        offset = struct.unpack_from("<H", data, vtable + place)[0] if place < size else 0
        return table + offset if offset else None

    header = field(struct.unpack_from("<I", data)[0], 2)
    if header is None:
        return True
    return field(header + struct.unpack_from("<I", data, header)[0], 3) is not None


def _read_table(table: Any, choice: Choice, shapes: dict[str, tuple[int, ...]]) -> Arrays:
    """Reads a table by its columns; ``shapes`` says what one row of a column is reshaped to."""
    if set(_TRAJECTORY_COLUMNS) <= set(table.column_names) and choice == Choice():
        return _trajectories(table.select(_TRAJECTORY_COLUMNS))

    def read(name: str) -> Array:
        rows, _ = _rows_of_column(table.select([name]), nested=False)
        if name in shapes:
            return rows.reshape(len(rows), *shapes[name])
        return rows[:, None] if rows.ndim == 1 and rows.dtype.kind == "f" else rows

    names = list(table.column_names)
    observations = [
        name
        for name in names
        if name.startswith("observation.") and _is_numeric(table.schema.field(name).type)
    ]
    found = Named(names, read)
    if observations:
        visible = observations if choice.obs_keys is None else names
        if choice.obs_keys is None and len(observations) == 1:
            choice = Choice(observations[0], choice.action_key)
        found = Named(
            [*names, "obs"], lambda name: Named(visible, read) if name == "obs" else read(name)
        )
    if "episode_index" not in names:
        return named_arrays(found, choice)
    episode = read("episode_index").reshape(-1)
    found = Named([name for name in found if name != "next.done"], found.__getitem__)
    return named_arrays(found, choice) | {"dones": np.append(episode[1:] != episode[:-1], True)}


def _trajectories(table: Any) -> Arrays:
    """Reads a table that has a trajectory in each row."""
    all_obs, obs_lengths = _rows_of_column(table.select(["obs"]), nested=True)
    acts, lengths = _rows_of_column(table.select(["acts"]), nested=True)
    if lengths.min() < 1 or not np.array_equal(obs_lengths, lengths + 1):
        raise ValueError(
            "it must hold trajectories of at least one action, each with one observation more than "
            f"actions; found {len(lengths)} trajectories with {len(acts)} actions and "
            f"{len(all_obs)} observations."
        )
    # Row i of trajectory k is observation i + k of all: every trajectory has one more of those.
    here = np.arange(len(acts)) + np.repeat(np.arange(len(lengths)), lengths)
    return {
        "obs": all_obs[here],
        "acts": acts,
        "next_obs": all_obs[here + 1],
        "terminals": ends_of(lengths, table["terminal"].to_pylist()),
        "truncations": ends_of(lengths, True),
    }


def _is_numeric(kind: Any) -> bool:
    """Tells whether an Arrow type is of real numbers or of nested lists of them."""
    import pyarrow.types as kinds

    kind = getattr(kind, "storage_type", kind)
    while kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind):
        kind = kind.value_type
    return kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind)


def _rows_of_column(table: Any, *, nested: bool) -> tuple[Array, Array]:
    """Flattens the only column of a table, whose entries are rows or (nested) lists of rows.

    Returns:
        All rows, shape ``(n, *shape)``, and the number of rows in each entry.
    """
    column, name = table.column(0), table.column_names[0]
    if not _is_numeric(column.type):
        raise ValueError(
            f"column {name!r} must hold numbers or lists of them, found {column.type}."
        )
    table.validate(full=True)  # offsets of a damaged file may point anywhere
    # Each chunk by itself, since Arrow's 32-bit offsets limit how much one array can hold.
    chunks = [_rows_of_chunk(chunk, nested) for chunk in column.chunks if len(chunk)]
    if not chunks:
        raise ValueError(f"column {name!r} must have at least one row, found none.")
    rows, lengths = zip(*chunks, strict=True)
    return np.concatenate(rows), np.concatenate(lengths)


def _rows_of_chunk(array: Any, nested: bool) -> tuple[Array, Array]:
    """Does the work of ``_rows_of_column`` for one Arrow array."""
    import pyarrow as pa
    import pyarrow.compute as pc

    array = array.storage if isinstance(array, pa.ExtensionArray) else array
    lengths = np.ones(len(array), dtype=np.int64)
    if nested:
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
