"""Whatever is in a file, reading it ends in demonstrations or in an exception that says why not.

`SB3_DIFFBC_FUZZ=100000 python -m pytest tests/demonstrations/test_fuzz.py` tries more files.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch as th
from imitation.data import serialize
from imitation.data.types import TrajectoryWithRew

from sb3_diffbc import load_demonstrations

if sys.platform != "linux":
    pytest.skip("the harness needs Linux", allow_module_level=True)

import fuzzing

FILES = Path(__file__).parent / "files"
N_MUTATIONS = int(os.environ.get("SB3_DIFFBC_FUZZ", "1000"))
ROWS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
ARRAYS = {"obs": ROWS, "next_obs": ROWS + 1, "actions": ROWS[:, :2], "done": np.eye(40)[-1]}
TENSORS = {name: th.from_numpy(array) for name, array in ARRAYS.items()}


def npz() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **ARRAYS)
    return stream.getvalue()


def torch_file(is_zip: bool) -> bytes:
    stream = io.BytesIO()
    th.save(TENSORS, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


def d4rl() -> bytes:
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        for name, array in ARRAYS.items():
            options = {"compression": "gzip", "shuffle": True} if array.ndim == 2 else {}
            file.create_dataset(name, data=array, **options)
    return stream.getvalue()


def failures(
    load: Callable[[Path], object], data: bytes, suffix: str = "", *, zipped: bool = False
) -> list[str]:
    """Fuzzes one file; of a zip file, half of the damage is inside of what is packed."""
    files = list(fuzzing.mutations(data, 0, N_MUTATIONS // (1 + zipped)))
    if zipped:
        files += fuzzing.zip_mutations(data, 1, N_MUTATIONS // 2)
    allowed = (ValueError, TypeError, OSError)
    return fuzzing.survives(load, files, suffix, allowed, memory_bytes=200_000_000, seconds=2)


@pytest.mark.parametrize(
    ("data", "suffix", "zipped"),
    [
        (npz, ".npz", True),
        (lambda: torch_file(True), ".pt", True),
        (lambda: torch_file(False), ".pt", False),
        (d4rl, ".hdf5", False),
        ((FILES / "robomimic.hdf5").read_bytes, ".hdf5", False),
        ((FILES / "minari_dict" / "data" / "main_data.hdf5").read_bytes, ".hdf5", False),
    ],
    ids=["npz", "torch", "torch-legacy", "d4rl", "robomimic", "minari"],
)
def test_damaged_files(data: Callable[[], bytes], suffix: str, zipped: bool) -> None:
    assert not failures(load_demonstrations, data(), suffix, zipped=zipped)


def imitation_folder(folder: Path) -> None:
    trajectory = TrajectoryWithRew(
        ROWS, ROWS[1:, :2], np.array([{"x": 1}] * 39), True, np.zeros(39)
    )
    serialize.save(folder, [trajectory] * 2)


def npy_folder(folder: Path) -> None:
    folder.mkdir()
    for name, array in ARRAYS.items():
        np.save(folder / f"{name}.npy", array)


def copy_of(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(FILES / name, folder) and None


@pytest.mark.parametrize(
    ("make", "victim"),
    [
        (npy_folder, "obs.npy"),
        (imitation_folder, "data-00000-of-00001.arrow"),
        (imitation_folder, "state.json"),
        (copy_of("lerobot_columns"), "data-00000-of-00001.arrow"),
        (copy_of("lerobot"), "data/chunk-000/file-000.parquet"),
        (copy_of("lerobot"), "meta/info.json"),
        (copy_of("minari_array"), "data/main_data.hdf5"),
    ],
)
def test_damaged_folders(make: Callable[[Path], None], victim: str, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    make(folder)

    def load(damaged: Path) -> object:
        shutil.copyfile(damaged, folder / victim)
        return load_demonstrations(folder)

    assert not failures(load, (folder / victim).read_bytes())
