"""The table of readers, how a source is recognised by its content, and NumPy's and torch's files.

No reader runs anything that a file names: there is no unpickling and no import on a file's behalf.
A reader may raise whatever its library raises on a damaged file; ``load_demonstrations`` adds the
path to the message.
"""

from __future__ import annotations

import dataclasses
import os
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch as th
from imitation.data.types import Trajectory, TransitionsMinimal
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_diffbc.demonstrations.fields import (
    KNOWN_NAMES,
    Arrays,
    Choice,
    Named,
    SizeLimit,
    check_readable,
    n_bytes,
    named_arrays,
    regular_file,
)
from sb3_diffbc.demonstrations.hdf5 import (
    MINARI_EPISODE,
    minari_file,
    open_hdf5,
    read_d4rl,
    read_minari,
    read_robomimic,
)
from sb3_diffbc.demonstrations.tables import read_dataset, read_dataset_directory, read_lerobot
from sb3_diffbc.demonstrations.trajectories import (
    flatten_trajectories,
    read_replay_buffer,
    read_transitions,
)
from sb3_diffbc.demonstrations.validation import Array

_NPY = re.compile(r".+\.npy", re.DOTALL)
_TORCH_PICKLE = re.compile(r"(.+/)?data\.pkl", re.DOTALL)
_LEROBOT, _MINARI = "meta/info.json", "main_data.hdf5"
_N_OLD_PICKLES = 5
_USED_TWICE = ("GLOBAL", "BINUNICODE", "REDUCE", "BINPERSID")
"""What makes the values that ``torch.save`` refers to again: names, texts, tensors, storages."""
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8"
"""How files begin that ``torch.save`` wrote before it wrote zip files: a pickled magic number."""


def open_npz(path: Path) -> Mapping[str, Array]:
    """Returns the arrays of a NumPy archive, each read when it is asked for.

    Pickled objects are refused when they are asked for, and so is an array that is larger than the
    archive allows.
    """
    with zipfile.ZipFile(regular_file(path)) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    limit = SizeLimit(path)

    def read(name: str) -> Array | None:
        info = members[name]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name!r} is compressed in a way that NumPy does not use.")
        if not info.filename.endswith(".npy"):
            return None
        with zipfile.ZipFile(path) as archive:
            with archive.open(info) as stream:
                shape, dtype = _npy_header(stream)
            if dtype.hasobject:
                refuse_pickle(path)
            check_readable(name, dtype)
            size = n_bytes(shape, dtype)
            if size > info.file_size:
                raise ValueError(f"{name!r} is cut off: it says that it has {size:,} bytes.")
            limit.take(name, size)
            with archive.open(info) as stream:
                return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))

    return Named(members, read)


def read_npz(path: Path, choice: Choice) -> Arrays:
    """Reads a NumPy archive with named arrays, such as ``np.savez(path, obs=..., acts=...)``."""
    archive = open_npz(path)
    if {"indices", "terminal"} <= set(archive):  # imitation's before version 1.0
        refuse_pickle(path)
    return named_arrays(archive, choice)


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Reads the header of an array in NumPy's format."""
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"arrays of NumPy's format version {version} are not read.")
    shape, _, dtype = read(stream)
    return shape, dtype


def refuse_pickle(path: Path, choice: Choice | None = None) -> NoReturn:
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
        ValueError: if it is no regular file, is damaged, holds other objects or tensors that are
            larger than the file, or no dictionary.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file at {path}.")
    limit = SizeLimit(regular_file(path))
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                limit.take(path.name, sum(info.file_size for info in archive.infolist()))
                for info in archive.infolist():
                    if _TORCH_PICKLE.fullmatch(info.filename):
                        with archive.open(info) as stream:
                            _check_pickle(stream)
        else:
            with path.open("rb") as stream:
                for _ in range(_N_OLD_PICKLES):
                    _check_pickle(stream)
        content = th.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise ValueError(
            "it is damaged, or holds more than a dictionary of tensors; the latter is refused, "
            f"because loading other objects can run code that the file brings along ({error})."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"it must hold a dictionary of tensors, found {type(content).__name__}.")
    for name, tensor in content.items():
        if isinstance(tensor, th.Tensor) and tensor.layout is th.strided:
            size = tensor.numel() * tensor.element_size()
            if tensor.device.type != "cpu" or size > tensor.untyped_storage().nbytes():
                raise ValueError(f"{name!r} says that it has {size:,} bytes, which it does not.")
    return content


def _check_pickle(stream: IO[bytes]) -> None:
    """Refuses what torch would not write: values used twice whose hash may take for ever."""
    put, previous = {}, ""
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            put[argument] = previous
        elif opcode.name in ("BINGET", "LONG_BINGET") and put.get(argument) not in _USED_TWICE:
            raise ValueError(f"a value made by {put.get(argument)} is used twice")
        previous = opcode.name


def read_torch(path: Path, choice: Choice) -> Arrays:
    """Reads a dictionary of tensors written by ``torch.save``, the format of the paper's files."""
    content = load_state_dict(path)
    return named_arrays({str(name): value for name, value in content.items()}, choice)


def map_npy_directory(path: Path, choice: Choice) -> Arrays:
    """Maps the files of a directory, each named as its array: ``obs.npy``, ``acts.npy``, ..."""

    def read(name: str) -> Array:
        file = regular_file(path / f"{name}.npy", path)
        try:
            with file.open("rb") as stream:
                shape, dtype = _npy_header(stream)
                left = file.stat().st_size - stream.tell()
            check_readable(name, dtype)
            if n_bytes(shape, dtype) > left:
                raise ValueError(f"it is cut off: {left:,} bytes for the shape {shape}")
            array: Array = np.load(file, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise ValueError(f"{file.name} is no NumPy array: {error}") from error
        return array

    return named_arrays(Named([file.stem for file in path.glob("*.npy")], read), choice)


def read_npy_directory(path: Path, choice: Choice) -> Arrays:
    """Reads such a directory into memory."""
    return {field: np.array(array) for field, array in map_npy_directory(path, choice).items()}


@dataclasses.dataclass(frozen=True)
class Content:
    """What can be seen of a file or directory before it is read.

    Attributes:
        kind: ``"zip"``, ``"HDF5"``, ``"torch"``, ``"pickle"``, ``"directory"``, or how a file of
            another kind begins.
        names: what is in it, at the top level.
    """

    kind: str
    names: tuple[str, ...] = ()

    def has(self, kind: str, test: Callable[[str], object]) -> bool:
        """Tells whether it is of a kind and any of its names passes a test."""
        return self.kind == kind and any(map(test, self.names))


@dataclasses.dataclass(frozen=True)
class Format:
    """One kind of source.

    Attributes:
        name: how messages call it.
        fits: whether a path's content, or an object, is of this kind.
        read: returns its arrays.
    """

    name: str
    fits: Callable[[Any], bool]
    read: Callable[[Any, Choice], Arrays]


def _is_d4rl(found: Content) -> bool:
    is_other = any(name == "data" or MINARI_EPISODE.fullmatch(name) for name in found.names)
    return found.kind == "HDF5" and (not is_other or not KNOWN_NAMES.isdisjoint(found.names))


def _is_dataset(source: Any) -> bool:
    library = sys.modules.get("datasets")  # whoever has a Dataset has imported it
    return library is not None and isinstance(source, library.Dataset)


PATHS = (
    Format(".npz", lambda found: found.has("zip", _NPY.fullmatch), read_npz),
    Format(".pt", lambda found: found.has("zip", _TORCH_PICKLE.fullmatch), read_torch),
    Format(".pt", lambda found: found.kind == "torch", read_torch),
    Format("", lambda found: found.kind == "pickle", refuse_pickle),
    Format("D4RL's HDF5", _is_d4rl, read_d4rl),
    Format("Minari's HDF5", lambda found: found.has("HDF5", MINARI_EPISODE.fullmatch), read_minari),
    Format("robomimic's HDF5", lambda found: found.has("HDF5", "data".__eq__), read_robomimic),
    Format("Minari's directory", lambda found: found.has("directory", _MINARI.__eq__), read_minari),
    Format(
        "LeRobot's directory", lambda found: found.has("directory", _LEROBOT.__eq__), read_lerobot
    ),
    Format(
        "a directory written by imitation's serialize.save or Dataset.save_to_disk",
        lambda found: found.has("directory", "state.json".__eq__),
        read_dataset_directory,
    ),
    Format(
        "a directory of .npy files",
        lambda found: found.has("directory", _NPY.fullmatch),
        read_npy_directory,
    ),
)
OBJECTS = (
    Format("Transitions", lambda source: isinstance(source, TransitionsMinimal), read_transitions),
    Format("a dictionary of arrays", lambda source: isinstance(source, Mapping), named_arrays),
    Format("a Hugging Face Dataset", _is_dataset, read_dataset),
    Format("a ReplayBuffer", lambda source: isinstance(source, ReplayBuffer), read_replay_buffer),
    Format(
        "trajectories",
        lambda source: isinstance(source, (Trajectory, Iterable)) and not isinstance(source, bytes),
        flatten_trajectories,
    ),
)
"""Every kind of source, and its reader; of the objects, the first that fits counts."""


def recognise(source: Any) -> Format:
    """Finds the format of a path or of an object by what is in it.

    Raises:
        ValueError: if a path is none of the formats, or could be more than one of them.
        TypeError: if an object is none of them.
    """
    table = PATHS if isinstance(source, Path) else OBJECTS
    content = _look_into(source) if isinstance(source, Path) else source
    fitting = [each for each in table if each.fits(content)]
    if fitting and (len(fitting) == 1 or table is OBJECTS):
        return fitting[0]
    names = ", ".join(dict.fromkeys(each.name for each in fitting or table if each.name))
    if isinstance(content, Content):
        problem = "it could be more than one format" if fitting else "it is of no format known here"
        raise ValueError(
            f"{problem} ({names}); found {content.kind}, holding {sorted(content.names)[:20]}."
        )
    raise TypeError(
        f"`source` must be a path, the name of a bundled set, {names}; "
        f"found {type(source).__name__}."
    )


def _look_into(path: Path) -> Content:
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        if (path / _LEROBOT).exists():
            names.add(_LEROBOT)
        if minari_file(path).exists():
            names.add(_MINARI)
        return Content("directory", tuple(names))
    with regular_file(path).open("rb") as file:
        start = file.read(16)
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            return Content("zip", tuple(archive.namelist()))
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        with open_hdf5(path) as content:
            return Content("HDF5", tuple(content))
    if start.startswith(_OLD_TORCH):
        return Content("torch")
    return Content("pickle" if start[:1] == b"\x80" else f"a file that begins with {start!r}")
