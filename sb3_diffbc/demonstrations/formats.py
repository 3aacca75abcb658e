"""Readers of files with named arrays: one function per format, from a path to a dictionary.

No reader runs anything that a file names: there is no unpickling and no import on a file's behalf.
A reader may raise whatever its library raises on a damaged file; ``load_demonstrations`` adds the
path to the message.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import torch as th
from numpy.lib.npyio import NpzFile

from sb3_diffbc.demonstrations.trajectories import read_dataset_directory
from sb3_diffbc.demonstrations.validation import Array

Arrays: TypeAlias = dict[str, Any]
"""Demonstrations as a reader returns them, before checks and repairs: arrays by field.

The fields are the keys of ``_ALIASES``, described in ``load_demonstrations``, and ``infos``
(dictionaries, dtype object). Only ``obs`` and ``acts`` are required.
"""

_ALIASES: dict[str, tuple[str, ...]] = {
    "obs": ("obs", "observations"),
    "acts": ("acts", "actions"),
    "next_obs": ("next_obs", "next_observations"),
    "final_obs": ("final_obs", "final_observations"),
    "dones": ("dones", "done"),
    "terminals": ("terminals", "terminations"),
    "truncations": ("timeouts", "truncations"),
}


def named_arrays(found: Collection[Any], read: Callable[[str], Any]) -> Arrays:
    """Reads the arrays whose names are known, out of the names found in a file, by field.

    Raises:
        ValueError: there is no array of observations or of actions, two names of one field, or
            something other than an array under a known name.
    """
    arrays = {}
    for field, aliases in _ALIASES.items():
        names = [name for name in aliases if name in found]
        if len(names) > 1:
            raise ValueError(f"it has {' and '.join(names)}, which mean the same; keep one.")
        if names:
            arrays[field] = read(names[0])
            if not isinstance(arrays[field], np.ndarray):
                raise ValueError(f"{names[0]!r} must be an array, found something else.")
        elif field in ("obs", "acts"):
            raise ValueError(
                f"it must have an array named {' or '.join(aliases)}, "
                f"found {sorted(map(str, found))}."
            )
    return arrays


@contextlib.contextmanager
def open_npz(path: Path) -> Iterator[NpzFile]:
    """Opens a NumPy archive and refuses pickled objects, at once or when they are asked for."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            raise ValueError("it is no zip file, as NumPy archives are.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except ValueError as error:
        if "allow_pickle" in str(error):  # NumPy's wording for an array of Python objects
            refuse_pickle(path)
        raise


def read_npz(path: Path) -> Arrays:
    """Reads a NumPy archive with named arrays, such as ``np.savez(path, obs=..., acts=...)``."""
    with open_npz(path) as archive:
        if {"indices", "terminal"} <= set(archive.files):  # imitation's before version 1.0
            refuse_pickle(path)
        return named_arrays(archive.files, archive.__getitem__)


def refuse_pickle(path: Path) -> NoReturn:
    """Refuses a file with pickled objects and says how to convert it."""
    raise ValueError(
        "it holds pickled Python objects, as older versions of imitation write them, and "
        "unpickling can run any code. If you trust where it comes from, convert it once in an "
        "environment that may be exposed to it, and load the new directory here:\n"
        "    from imitation.data import serialize\n"
        f"    serialize.save('demonstrations', serialize.load({str(path)!r}))"
    )


def load_state_dict(path: str | os.PathLike[str]) -> dict[Any, Any]:
    """Reads a dictionary of tensors that ``torch.save`` wrote, without unpickling objects.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, holds other objects, or no dictionary.
    """
    try:
        content = th.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            "it is damaged, or holds more than a dictionary of tensors; the latter is refused, "
            "because loading other objects can run code that the file brings along."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"it must hold a dictionary of tensors, found {type(content).__name__}.")
    return content


def read_torch(path: Path) -> Arrays:
    """Reads a dictionary of tensors written by ``torch.save``, the format of the paper's files."""
    content = load_state_dict(path)

    def read(name: str) -> Array | None:
        tensor = content[name]
        return tensor.detach().numpy() if isinstance(tensor, th.Tensor) else None

    return named_arrays(content, read)


def read_hdf5(path: Path) -> Arrays:
    """Reads arrays at the top level of an HDF5 file, as D4RL's ``observations``, ``actions``."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Reading {path} needs h5py: pip install h5py") from error
    with h5py.File(path, "r") as file:

        def read(name: str) -> Array | None:
            found = file[name]
            return np.asarray(found[()]) if isinstance(found, h5py.Dataset) else None

        return named_arrays(list(file), read)


def map_npy_directory(path: Path) -> Arrays:
    """Maps the files of a directory, each named as its array: ``obs.npy``, ``acts.npy``, ..."""

    def read(name: str) -> Array:
        try:
            array: Array = np.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise ValueError(f"{name}.npy is no NumPy array: {error}") from error
        return array

    return named_arrays([file.stem for file in path.glob("*.npy")], read)


def read_directory(path: Path) -> Arrays:
    """Reads a directory that imitation's ``serialize.save`` wrote, or one of ``.npy`` files."""
    if (path / "state.json").exists() or not any(path.glob("*.npy")):
        return read_dataset_directory(path)
    return {field: np.array(array) for field, array in map_npy_directory(path).items()}


READERS: dict[str, Callable[[Path], Arrays]] = {
    ".npz": read_npz,
    ".pt": read_torch,
    ".pth": read_torch,
    ".hdf5": read_hdf5,
    ".h5": read_hdf5,
    ".pkl": refuse_pickle,
    ".pickle": refuse_pickle,
}
"""The reader of each file suffix."""
