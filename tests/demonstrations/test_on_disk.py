"""Rows that are read from the files behind memory-mapped arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import on_disk

from sb3_diffbc.demonstrations import on_disk as module
from sb3_diffbc.demonstrations.on_disk import chunks, is_on_disk, read_rows, rows_per_chunk

NUMBERS = np.arange(120, dtype=np.float32).reshape(20, 3, 2)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return on_disk(NUMBERS, tmp_path_factory.mktemp("numbers"))


@settings(max_examples=100, deadline=None)
@given(limits=st.lists(st.integers(0, 20), min_size=4, max_size=4), start=st.integers(0, 5))
def test_rows_of_views_are_theirs(mapped: np.ndarray, limits: list[int], start: int) -> None:
    a, b, c, d = limits
    view = mapped[a:b][c:d]
    expected = NUMBERS[a:b][c:d]
    if start < len(expected):
        found = read_rows(view, start, start + 4)
        np.testing.assert_array_equal(found, expected[start : start + 4])
        assert not isinstance(found, np.memmap)


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array,
        lambda array: array[4],
        lambda array: array.reshape(-1, 2)[5:],
        lambda array: array.view(np.int32)[2:],
    ],
)
def test_views_of_consecutive_rows_are_on_disk(mapped: np.ndarray, view: Any) -> None:
    assert is_on_disk(view(mapped))
    np.testing.assert_array_equal(read_rows(view(mapped), 1, 3), view(NUMBERS)[1:3])


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array[::2],
        lambda array: array[::-1],
        lambda array: array[:, 1:],
        lambda array: array.T,
        lambda array: array[[1, 2, 3]],
        lambda array: array + 1,
        lambda array: array[0, 0, 0],
        np.array,
        list,
    ],
)
def test_whatever_else_is_taken_as_in_memory(mapped: np.ndarray, view: Any) -> None:
    assert not is_on_disk(view(mapped))


def test_a_copy_on_write_map_is_read_as_it_was_changed(tmp_path: Path) -> None:
    on_disk(NUMBERS, tmp_path)
    changed = np.load(tmp_path / "array.npy", mmap_mode="c")
    changed[:] = 0
    assert not is_on_disk(changed)
    assert not read_rows(changed, 0, 20).any()


def test_a_writable_map_is_read_as_it_was_changed(tmp_path: Path) -> None:
    on_disk(NUMBERS, tmp_path)
    changed = np.load(tmp_path / "array.npy", mmap_mode="r+")
    changed[:] = 0
    changed.flush()
    assert is_on_disk(changed)
    assert not read_rows(changed, 0, 20).any()


@pytest.mark.parametrize(
    ("stored", "read"),
    [("f2", "f4"), ("f8", "f4"), (">f4", "f4"), (">f8", "f4"), (">i2", "i2"), ("u1", "u1")],
)
def test_types_are_those_of_demonstrations_in_memory(
    stored: str, read: str, tmp_path: Path
) -> None:
    rows = read_rows(on_disk(NUMBERS.astype(stored), tmp_path), 0, 20)
    assert rows.dtype == np.dtype(read)
    np.testing.assert_array_equal(rows, NUMBERS)


def test_a_file_that_was_cut_short_meanwhile(tmp_path: Path) -> None:
    array = on_disk(NUMBERS, tmp_path)
    path = tmp_path / "array.npy"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 4)
    np.testing.assert_array_equal(read_rows(array, 0, 19), NUMBERS[:19])
    with pytest.raises(ValueError, match=r"array.npy must not change.*expected 2 rows from byte"):
        read_rows(array, 18, 20)


@pytest.mark.parametrize("size", [1, 24, 100, 479, 480, 9999])
def test_chunks_are_all_rows_in_order(
    mapped: np.ndarray, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", size)
    parts = list(chunks(mapped))
    assert [start for start, _ in parts] == list(range(0, 20, max(1, size // 24)))
    assert all(part.nbytes <= max(size, 24) for _, part in parts)
    np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), NUMBERS)


def test_an_array_in_memory_is_one_chunk() -> None:
    ((start, part),) = chunks(NUMBERS)
    assert start == 0
    assert np.shares_memory(part, NUMBERS)
    assert len(part) == 20


def test_several_arrays_share_the_size_of_a_chunk(
    mapped: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", 240)
    assert rows_per_chunk(mapped) == 10
    assert rows_per_chunk(mapped, NUMBERS, mapped) == 5
    assert rows_per_chunk(NUMBERS, NUMBERS) == 20
