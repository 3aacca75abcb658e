"""Rows of memory-mapped arrays, read from their files so that memory does not fill up.

Pages that are touched through a map count as the process's memory until the system wants them
back. Plain reads of a few rows at a time take no more than those rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

_CHUNK_BYTES = 2**20


def is_on_disk(array: Any) -> bool:
    """Tells whether an array's rows can be read from the file that backs it.

    A copy-on-write map may differ from its file, and the rows of some views (columns, every other
    row) do not lie next to each other there; these are used like arrays in memory.
    """
    return (
        isinstance(array, np.memmap)
        and array.filename is not None
        and array.mode != "c"
        and array.ndim > 0
        and array.flags.c_contiguous
    )


def row_bytes(array: Array) -> int:
    """Returns the size of one row in bytes."""
    return array.dtype.itemsize * math.prod(array.shape[1:])


def plain_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Returns float32 for floats, and everything else in native byte order."""
    return np.dtype(np.float32) if dtype.kind == "f" else dtype.newbyteorder("=")


def in_plain_dtype(array: Array) -> Array:
    """Returns an array in its `plain_dtype`, itself where it has that."""
    with np.errstate(over="ignore"):  # what overflows becomes infinite, which the checks report
        return array.astype(plain_dtype(array.dtype), copy=False)


def read_rows(array: Any, start: int, stop: int) -> Any:
    """Reads consecutive rows.

    Args:
        array: Rows on disk or in memory; tensors will do as well.
        start: The first row.
        stop: The row after the last, or any number beyond the end.

    Returns:
        The rows in memory, shape `(up to stop - start, ...)`: from disk in their `plain_dtype`, and
        as they are otherwise.

    Raises:
        ValueError: The file has become shorter since it was mapped.
    """
    if not is_on_disk(array):
        return array[start:stop]
    shape = (min(stop, len(array)) - start, *array.shape[1:])
    offset = _position(array) + start * row_bytes(array)
    values = np.fromfile(array.filename, array.dtype, math.prod(shape), offset=offset)
    if len(values) < math.prod(shape):
        raise ValueError(
            f"{array.filename} must not change while it is in use: expected {shape[0]} rows from "
            f"byte {offset} on, found its end."
        )
    return in_plain_dtype(values.reshape(shape))


def _position(array: np.memmap[Any, Any]) -> int:
    """Where in its file an array begins, also one that is a view of consecutive rows."""
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    return whole.offset + array.ctypes.data - whole.ctypes.data


def rows_per_chunk(*arrays: Any) -> int:
    """Returns how many rows of arrays of one length to take at once: all, if they are in memory."""
    size = sum(row_bytes(array) for array in arrays if is_on_disk(array))
    return max(1, _CHUNK_BYTES // size if size else len(arrays[0]))


def chunks(array: Array) -> Iterator[tuple[int, Array]]:
    """Goes through an array from disk in parts; one in memory is a single part, itself.

    Yields:
        The number of a part's first row, and its rows.
    """
    step = rows_per_chunk(array)
    for start in range(0, len(array), step):
        yield start, read_rows(array, start, start + step)
