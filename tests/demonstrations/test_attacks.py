"""Files that are made to take all memory or time, or to read other files."""

from __future__ import annotations

import io
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch as th

from sb3_diffbc import load_demonstrations

if sys.platform != "linux":
    pytest.skip("the harness needs Linux", allow_module_level=True)

import fuzzing

FILES = Path(__file__).parent / "files"
HUGE = 10**12


def npy(descr: str, *shape: int) -> bytes:
    """The header of an array, with nothing behind it."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def huge_npz(descr: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "a.npz", "w") as archive:
            archive.writestr("obs.npy", npy(descr, HUGE))
            archive.writestr("acts.npy", npy(descr, HUGE))
        return folder / "a.npz"

    return make


def huge_npy(descr: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for name in ("obs", "acts"):
            (folder / f"{name}.npy").write_bytes(npy(descr, HUGE))
        return folder

    return make


def packed_npz(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("obs.npy", "acts.npy"):
            archive.writestr(name, npy("|u1", 2**29) + bytes(2**29))
    return folder / "a.npz"


def expanded_tensor(is_zip: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = {name: th.zeros(1).expand(HUGE) for name in ("obs", "acts")}
        th.save(content, folder / "a.pt", _use_new_zipfile_serialization=is_zip)
        return folder / "a.pt"

    return make


def packed_tensor(folder: Path) -> Path:
    stream = io.BytesIO()
    th.save({name: th.zeros(2**27) for name in ("obs", "acts")}, stream)
    with (
        zipfile.ZipFile(stream) as plain,
        zipfile.ZipFile(folder / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    return folder / "a.pt"


def hdf5(**options: Any) -> Callable[[Path], Path]:
    """A file whose arrays are declared and never written."""

    def make(folder: Path) -> Path:
        with h5py.File(folder / "a.hdf5", "w") as file:
            for name in ("observations", "actions"):
                file.create_dataset(name, dtype="f4", **options)
        return folder / "a.hdf5"

    return make


def hdf5_chunk(*filters: int, packed: bytes) -> Callable[[Path], Path]:
    """A file with one chunk that unpacks to more than it should have."""

    def make(folder: Path) -> Path:
        with h5py.File(folder / "a.hdf5", "w") as file:
            for name in ("observations", "actions"):
                plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                plist.set_chunk((4,))
                for number in filters:
                    plist.set_filter(number, 0, (9,))
                space = h5py.h5s.create_simple((4,))
                dataset = h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, plist)
                dataset.write_direct_chunk((0,), packed)
        return folder / "a.hdf5"

    return make


def hdf5_link(link: Callable[[str], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with h5py.File(folder / "other.hdf5", "w") as file:
            file["secret"] = np.eye(3)
        with h5py.File(folder / "a.hdf5", "w") as file:
            file["observations"] = link(str(folder / "other.hdf5"))
            file["actions"] = np.eye(3)
        return folder / "a.hdf5"

    return make


def hdf5_external_storage(folder: Path) -> Path:
    (folder / "secret").write_bytes(bytes(36))
    with h5py.File(folder / "a.hdf5", "w") as file:
        stored = [(str(folder / "secret"), 0, 36)]
        file.create_dataset("observations", shape=(3, 3), dtype="f4", external=stored)
        file["actions"] = np.eye(3)
    return folder / "a.hdf5"


def hdf5_virtual(folder: Path) -> Path:
    with h5py.File(folder / "other.hdf5", "w") as file:
        file["secret"] = np.eye(3)
    layout = h5py.VirtualLayout((3, 3), "f8")
    layout[:] = h5py.VirtualSource(folder / "other.hdf5", "secret", (3, 3))
    with h5py.File(folder / "a.hdf5", "w") as file:
        file.create_virtual_dataset("observations", layout)
        file["actions"] = np.eye(3)
    return folder / "a.hdf5"


def hdf5_many_names(folder: Path) -> Path:
    """Many episodes that are one and the same."""
    with h5py.File(folder / "a.hdf5", "w") as file:
        first = file.create_group("episode_0")
        for name in ("observations", "actions"):
            first.create_dataset(name, data=np.zeros((2**16, 8)), compression="gzip")
        for number in range(1, 2000):
            file[f"episode_{number}"] = first
    return folder / "a.hdf5"


def arrow(table: pa.Table, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
        with pa.ipc.new_stream(
            folder / "a.arrow", table.schema, options=pa.ipc.IpcWriteOptions(**options)
        ) as stream:
            stream.write_table(table)
        return folder

    return make


def zeros_table(n: int) -> pa.Table:
    return pa.table({"obs": np.zeros(n), "acts": np.zeros(n)})


def no_values(kind: pa.DataType, n: int) -> pa.Table:
    """A table of many rows without bytes."""
    values = pa.Array.from_buffers(kind, n, [None], children=[pa.array([], kind.value_type)])
    return pa.table({"obs": values, "acts": values})


def lerobot(table: pa.Table, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(FILES / "lerobot", folder / "set")
        pq.write_table(table, folder / "set" / "data" / "chunk-000" / "file-000.parquet", **options)
        return folder / "set"

    return make


def lerobot_table(n: int) -> pa.Table:
    rows = pa.FixedSizeListArray.from_arrays(np.zeros(2 * n, np.float32), 2)
    columns = {"observation.state": rows, "observation.environment_state": np.zeros(n, "f4")}
    return pa.table({**columns, "action": rows, "episode_index": np.zeros(n, int)})


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.npz")
    return folder / "a.npz"


def folder_with(
    name: str, victim: str, replace: Callable[[Path, Path], object]
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        shutil.copytree(FILES / name, folder / "set")
        shutil.move(folder / "set" / victim, folder / "outside")
        replace(folder / "set" / victim, folder / "outside")
        return folder / "set"

    return make


def pickled_tuples(folder: Path) -> Path:
    """A dictionary with a key whose hash takes 2⁶⁰ steps."""
    nested = b")" + b"q\x01h\x01\x86" * 60
    with zipfile.ZipFile(folder / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}(" + nested + b"K\x01u.")
        archive.writestr("a/version", b"3")
    return folder / "a.pt"


def outward(folder: Path) -> Path:
    np.save(folder / "outside.npy", np.eye(2))
    (folder / "set").mkdir()
    for name in ("obs", "acts"):
        (folder / "set" / f"{name}.npy").symlink_to(folder / "outside.npy")
    return folder / "set"


EPISODES = "data-00000-of-00001.arrow"
FRAMES = "data/chunk-000/file-000.parquet"
ZEROS = zlib.compress(bytes(2**28), 9)

ATTACKS = {
    **{
        f"{make.__name__} {kind}": (make(kind), "real numbers|cut off")
        for make in (huge_npz, huge_npy)
        for kind in ("|V0", "|S0", "<f4")
    },
    "packed npz": (packed_npz, "'obs' would take 536,870,912 bytes"),
    "expanded tensor": (expanded_tensor(True), "'obs' says that it has"),
    "expanded tensor, older": (expanded_tensor(False), "'obs' says that it has"),
    "packed tensor": (packed_tensor, "would take 1,07"),
    "pickled tuples": (pickled_tuples, "holds more"),
    "HDF5 never written": (hdf5(shape=(HUGE,), chunks=(1000,)), "'observations' would take"),
    "HDF5 beyond 64 bits": (hdf5(shape=(2**40, 2**40), chunks=(9, 9)), "would take"),
    "HDF5 of a zipped chunk": (hdf5_chunk(1, packed=ZEROS), "larger than it says"),
    "HDF5 zipped twice": (hdf5_chunk(1, 1, packed=zlib.compress(ZEROS)), "other than gzip, once"),
    "HDF5 external link": (
        hdf5_link(lambda other: h5py.ExternalLink(other, "secret")),
        "'observations' is a link",
    ),
    "HDF5 soft link": (hdf5_link(lambda _: h5py.SoftLink("/actions")), "is a link"),
    "HDF5 external storage": (hdf5_external_storage, "values in other files"),
    "HDF5 virtual": (hdf5_virtual, "values in other files"),
    "HDF5 of one episode, often": (hdf5_many_names, "would take"),
    "Arrow, packed": (arrow(zeros_table(10**7), compression="zstd"), "is compressed"),
    "Arrow, nothing": (
        arrow(no_values(pa.list_(pa.float32(), 0), 2**31 - 1)),
        "more rows than bytes",
    ),
    "Parquet, packed": (lerobot(lerobot_table(10**7), compression="zstd"), "would take"),
    "pipe": (pipe, "not a regular file"),
    "pipe in a folder": (
        folder_with("lerobot_columns", EPISODES, lambda path, _: os.mkfifo(path)),
        "not a regular file",
    ),
    "link, npy": (outward, "leads out"),
    "link, Minari": (
        folder_with("minari_array", "data/main_data.hdf5", Path.symlink_to),
        "leads out",
    ),
    "link, LeRobot": (folder_with("lerobot", FRAMES, Path.symlink_to), "leads out"),
    "link, Dataset": (folder_with("lerobot_columns", EPISODES, Path.symlink_to), "leads out"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_refused_at_once(name: str, tmp_path: Path) -> None:
    make, message = ATTACKS[name]
    source = make(tmp_path)

    def load(path: Path) -> object:
        return load_demonstrations(source if path.read_bytes() else FILES / "minari_array")

    limits = {"memory_bytes": 100_000_000, "seconds": 1}
    assert not fuzzing.survives(load, [b"", b"attack"], "", (ValueError,), **limits)
    with pytest.raises(ValueError, match=message) as caught:
        load_demonstrations(source)
    assert str(source) in str(caught.value)


def test_names_in_a_folder_do_not_lead_out(tmp_path: Path) -> None:
    datasets.Dataset(pa.table({"obs": [1.0], "acts": [1.0]})).save_to_disk(str(tmp_path / "data"))
    state = tmp_path / "data" / "state.json"
    (tmp_path / "data" / EPISODES).rename(tmp_path / EPISODES)
    for name in (f"../{EPISODES}", str(tmp_path / EPISODES)):
        state.write_text(f'{{"_data_files": [{{"filename": "{name}"}}]}}')
        with pytest.raises(ValueError, match="leads out"):
            load_demonstrations(tmp_path / "data")


def test_honest_data_may_be_packed_densely(tmp_path: Path) -> None:
    obs = np.zeros((10**6, 3), np.float32)
    obs[::2] = 1
    np.savez_compressed(tmp_path / "a.npz", obs=obs, acts=obs)
    assert len(load_demonstrations(tmp_path / "a.npz")) == 10**6
