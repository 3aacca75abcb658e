"""HDF5 files: D4RL's arrays at the top level, robomimic's and Minari's groups of episodes."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sb3_diffbc.demonstrations.fields import (
    Arrays,
    Choice,
    Named,
    SizeLimit,
    check_readable,
    joined_episodes,
    n_bytes,
    named_arrays,
    regular_file,
)
from sb3_diffbc.demonstrations.validation import Array

_MAX_DEFLATE_RATIO = 1032
MINARI_EPISODE = re.compile(r"episode_(\d{1,18})")
_ROBOMIMIC_EPISODE = re.compile(r"demo_(\d{1,18})")


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Mapping[str, Any]]:
    """Opens a file as arrays, and mappings of arrays, by name.

    Links, external storage and virtual datasets are refused, because they can name other files.
    Arrays are read only if the file is large enough to hold them.

    Raises:
        ImportError: if h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Reading {path} needs h5py: pip install h5py") from error
    limit = SizeLimit(path)

    def mapping(group: Any) -> Named:
        def read(name: str) -> Any:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name!r} is a link, which is not followed.")
            member = group[name]
            if isinstance(member, h5py.Dataset):
                return _read_dataset(name, member, limit)
            return mapping(member) if isinstance(member, h5py.Group) else None

        return Named(group, read)

    with h5py.File(path, "r") as file:
        yield mapping(file)


def _read_dataset(name: str, dataset: Any, limit: SizeLimit) -> Array:
    import h5py

    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{name!r} has its values in other files, which are not read.")
    check_readable(name, dataset.dtype)
    limit.take(name, n_bytes(dataset.shape or (), dataset.dtype))
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(index)[0] for index in range(plist.get_nfilters())]
    allowed = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
    if not allowed.issuperset(filters) or len(set(filters)) < len(filters):
        raise ValueError(f"{name!r} is compressed by something other than gzip, once.")
    if h5py.h5z.FILTER_DEFLATE in filters:
        chunks: list[Any] = []
        dataset.id.chunk_iter(chunks.append)
        size = n_bytes(dataset.chunks, dataset.dtype)
        for chunk in chunks:
            # HDF5 makes room for whatever comes out, also for more than the chunk has.
            if chunk.size * _MAX_DEFLATE_RATIO > limit.total:
                _, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
                if len(zlib.decompressobj().decompress(packed, size + 1)) > size:
                    raise ValueError(f"{name!r} has a chunk that is larger than it says.")
    return np.asarray(dataset[()])


def read_d4rl(path: Path, choice: Choice) -> Arrays:
    """Reads arrays at the top level of a file, as D4RL's ``observations``, ``actions``."""
    with open_hdf5(path) as file:
        return named_arrays(file, choice)


def read_minari(path: Path, choice: Choice) -> Arrays:
    """Reads a Minari dataset: its file, its folder or the ``data`` folder inside of it."""
    if path.is_dir():
        path = regular_file(minari_file(path), path)
    with open_hdf5(path) as file:
        return joined_episodes(_episodes(file, MINARI_EPISODE), choice)


def minari_file(folder: Path) -> Path:
    """Returns where a Minari dataset has its episodes, which need not exist."""
    inside = folder / "data"
    return (inside if inside.is_dir() else folder) / "main_data.hdf5"


def read_robomimic(path: Path, choice: Choice) -> Arrays:
    """Reads the demonstrations of a robomimic file. Its filter keys (``mask``) are passed over."""
    with open_hdf5(path) as file:
        episodes = list(_episodes(file["data"], _ROBOMIMIC_EPISODE))
        obs = episodes[0].get("obs") if episodes else None
        if choice.obs_keys is None and isinstance(obs, Mapping) and len(obs) == 1:
            choice = Choice(next(iter(obs)), choice.action_key)
        return joined_episodes(episodes, choice)


def _episodes(group: Any, pattern: re.Pattern[str]) -> Iterator[Mapping[str, Any]]:
    """Yields the groups of episodes in the order of their numbers."""
    if not isinstance(group, Mapping):
        raise ValueError("it must have a group of episodes, found an array.")
    numbers = {int(match[1]): name for name in group if (match := pattern.fullmatch(name))}
    for number in sorted(numbers):
        episode = group[numbers[number]]
        if not isinstance(episode, Mapping):
            raise ValueError(f"{numbers[number]!r} must be a group of arrays.")
        yield episode
