"""Batches of demonstrations for imitation's training loop."""

import collections
import hashlib
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch as th
from imitation.algorithms import base as algo_base
from imitation.data import types
from torch.utils import data as th_data

from sb3_diffbc.demonstrations.formats import shared_infos
from sb3_diffbc.demonstrations.loading import load_demonstrations
from sb3_diffbc.demonstrations.on_disk import (
    Array,
    chunks,
    is_on_disk,
    plain_dtype,
    read_rows,
    row_bytes,
)
from sb3_diffbc.demonstrations.validation import by_key

Batch = dict[str, Any]

# Rows of a random subset that lie next to each other: more would be alike, fewer slow to read.
_SUBSET_BLOCK_ROWS = 64


def as_transitions(demonstrations: Any) -> types.TransitionsMinimal:
    """Transitions as they are; anything else through :func:`load_demonstrations`."""
    if isinstance(demonstrations, types.TransitionsMinimal):
        return demonstrations
    return load_demonstrations(demonstrations)


class ShuffledBatches(ABC):
    """Passes through transitions in a random order; an incomplete last batch is dropped.

    Draws from torch's global random state what torch's ``DataLoader`` with ``shuffle=True``
    draws.

    A pass that was left in the middle can be taken up again: :attr:`pass_seed` and
    :attr:`position` say where it is, and :meth:`resume_at` sets them.

    Args:
        transitions: observations (arrays or imitation's ``DictObs``) and actions.
        batch_size: rows per batch.
    """

    def __init__(self, transitions: types.TransitionsMinimal, batch_size: int) -> None:
        self.transitions = transitions
        self.batch_size = batch_size
        self.pass_seed: int | None = None
        self.position = 0
        self._resume_next = False

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self.transitions.acts) // self.batch_size

    def fingerprint(self) -> str:
        """SHA-256 of observations and actions, to tell whether demonstrations are the same."""
        digest = hashlib.sha256()
        obs = self.transitions.obs
        arrays = dict(obs.items()) if isinstance(obs, types.DictObs) else {"obs": obs}
        for name, array in {**arrays, "acts": self.transitions.acts}.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            for _, rows in chunks(array):
                digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def continue_pass(self, pass_seed: int | None, position: int) -> None:
        self.pass_seed, self.position = pass_seed, position

    def restart(self) -> None:
        self.position = 0

    def resume_at(self, pass_seed: int | None, position: int) -> None:
        """Makes the next pass continue one that was left after ``position`` batches."""
        self.pass_seed, self.position = pass_seed, position
        self.resume_next()

    def start_over(self) -> None:
        """Makes the next pass a new one, whatever became of the last."""
        self._resume_next = False

    def resume_next(self) -> None:
        """Makes the next pass continue the last one if it was left in the middle."""
        self._resume_next = self.pass_seed is not None and 0 < self.position < len(self)

    def __iter__(self) -> Iterator[Batch]:
        if self.pass_seed is None or not 0 < self.position < len(self):
            self._start_pass()
        assert self.pass_seed is not None
        yield from self._rest_of_pass(th.Generator().manual_seed(self.pass_seed))

    @abstractmethod
    def _rest_of_pass(self, generator: th.Generator) -> Iterator[Batch]:
        """The pass that the generator's seed fixes, from :attr:`position` on."""

    def _counted(self, index: int, obs: Any, acts: th.Tensor) -> Batch:
        # Counted before the batch is handed out: whoever saves while working on it has it.
        self.position = index + 1
        return {"obs": obs, "acts": acts}

    def _start_pass(self) -> None:
        # A DataLoader draws a seed for its workers first, then its sampler draws its own.
        th.empty((), dtype=th.int64).random_()
        self.pass_seed = int(th.empty((), dtype=th.int64).random_())
        self.position = 0


class TransitionBatches(ShuffledBatches):
    """Batches of transitions held in memory, gathered by one indexing per array.

    imitation's ``BC`` and ``DiffusionBC`` see the same batches after the same
    ``torch.manual_seed``.

    Args:
        transitions: as for :class:`ShuffledBatches`.
        batch_size: rows per batch.
    """

    def __init__(self, transitions: types.TransitionsMinimal, batch_size: int) -> None:
        super().__init__(transitions, batch_size)
        self._obs = _indexable(transitions.obs)
        self._acts = to_tensor(transitions.acts)

    def _rest_of_pass(self, generator: th.Generator) -> Iterator[Batch]:
        order = th.randperm(len(self._acts), generator=generator)
        for index in range(self.position, len(self)):
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield self._counted(index, _gather(self._obs, rows), self._acts[rows])


class BlockBatches(ShuffledBatches):
    """Batches of transitions on disk, which read a part of them at a time.

    A pass puts blocks of consecutive rows into a random order, reads as many as the buffer
    holds, and hands them out shuffled; then come the next ones. Every row comes once, but for
    the incomplete last batch. Only rows that are in the buffer together can meet in a batch, so
    the order is less random than in memory, and not that of imitation's ``BC``.

    Args:
        transitions: as for :class:`ShuffledBatches`; arrays in memory among them are read alike.
        batch_size: rows per batch.
        block_bytes: size of a block, at least one row.
        buffer_bytes: size of the buffer, at least one batch.
    """

    def __init__(
        self,
        transitions: types.TransitionsMinimal,
        batch_size: int,
        *,
        block_bytes: int = 2**16,
        buffer_bytes: int = 2**25,
    ) -> None:
        super().__init__(transitions, batch_size)
        size = sum(map(row_bytes, _arrays(transitions)))
        self._block_rows = max(1, block_bytes // size)
        self._buffer_batches = max(1, buffer_bytes // (size * batch_size))
        self._fingerprint: str | None = None

    def fingerprint(self) -> str:
        """SHA-256 of observations, actions and how they are cut; reads them all, once."""
        if self._fingerprint is None:
            cut = f"{self._block_rows} {self._buffer_batches} {super().fingerprint()}"
            self._fingerprint = hashlib.sha256(cut.encode()).hexdigest()
        return self._fingerprint

    def _rest_of_pass(self, generator: th.Generator) -> Iterator[Batch]:
        starts, stops = self._shuffled_blocks(generator)
        n_buffers = -(-len(self) // self._buffer_batches)
        # A seed for each buffer, so that a pass is taken up without going through what it left.
        seeds = th.randint(2**62, (n_buffers,), generator=generator).tolist()
        capacity = min(self._buffer_batches * self.batch_size, len(self.transitions))
        buffers = _allocate(self.transitions, capacity)
        obs = _indexable(_like(self.transitions.obs, buffers))
        acts = to_tensor(buffers[-1])
        for number in range(self.position // self._buffer_batches, n_buffers):
            first = number * self._buffer_batches
            n_rows = _read_blocks(
                self.transitions,
                _cut(starts, stops, first * self.batch_size, capacity),
                buffers,
            )
            order = th.randperm(n_rows, generator=th.Generator().manual_seed(seeds[number]))
            for index in range(self.position, min(first + self._buffer_batches, len(self))):
                rows = order[(index - first) * self.batch_size :][: self.batch_size]
                yield self._counted(index, _gather(obs, rows), acts[rows])

    def _shuffled_blocks(self, generator: th.Generator) -> tuple[Array, Array]:
        """First rows of all blocks, and the rows after their last, in a random order."""
        n = len(self.transitions)
        order = th.randperm(-(-n // self._block_rows), generator=generator).numpy()
        starts = order * self._block_rows
        return starts, np.minimum(starts + self._block_rows, n)


class PrefetchedBatches:
    """A user's iterable of batches whose first batches were already looked at.

    The critic and the policy's statistics need data before training starts, but an iterable
    may be usable only once, or run dry. What :meth:`peek` reads is therefore kept, and the
    first pass of training begins with it.

    Args:
        batches: any iterable of mappings with ``obs`` and ``acts``.
    """

    def __init__(self, batches: Iterable[types.TransitionMapping]) -> None:
        self._batches = batches
        # imitation wraps an iterable to check the size of its batches.
        self._is_one_shot = isinstance(getattr(batches, "data_loader", batches), Iterator)
        self._kept: collections.deque[types.TransitionMapping] = collections.deque()
        self._rest: Iterator[types.TransitionMapping] | None = None

    def __iter__(self) -> Iterator[types.TransitionMapping]:
        if self._rest is None:
            return iter(self._batches)
        if self._is_one_shot:
            return self._go_on(self._rest)
        first_pass = itertools.chain(self._kept, self._rest)
        self._kept, self._rest = collections.deque(), None
        return first_pass

    def _go_on(self, rest: Iterator[types.TransitionMapping]) -> Iterator[types.TransitionMapping]:
        """Like an iterator: a pass that is left in the middle leaves its rest to the next."""
        while self._kept:
            yield self._kept.popleft()
        # "yield from" would close a generator that is left in the middle.
        for batch in rest:  # noqa: UP028
            yield batch

    def peek(self, max_transitions: int) -> types.TransitionsMinimal:
        """Reads the first batches of the next pass.

        Args:
            max_transitions: reading stops once so many were read, since an iterable may be
                endless.

        Returns:
            Their transitions.

        Raises:
            ValueError: if the iterable has no batches.
        """
        if self._rest is None:
            self._rest = iter(self._batches)
        n_kept = sum(len(batch["acts"]) for batch in self._kept)
        while n_kept < max_transitions and (batch := next(self._rest, None)) is not None:
            self._kept.append(batch)
            n_kept += len(batch["acts"])
        if not self._kept:
            raise ValueError("demonstrations is an iterable without batches: expected at least 1.")
        acts = np.concatenate([np.asarray(batch["acts"]) for batch in self._kept])
        return types.TransitionsMinimal(
            obs=_concatenate([batch["obs"] for batch in self._kept]),
            acts=acts,
            infos=np.full(len(acts), {}),
        )


def make_batches(
    demonstrations: algo_base.AnyTransitions, batch_size: int
) -> ShuffledBatches | PrefetchedBatches:
    """Turns anything that imitation's ``BC`` accepts into batches.

    Args:
        demonstrations: transitions, trajectories, or an iterable of batches.
        batch_size: rows per batch.

    Returns:
        Shuffled batches for transitions, trajectories and for the shuffling ``DataLoader``
        over transitions that imitation's DAgger makes, read in blocks where an array is on disk;
        the iterable itself, wrapped, otherwise.

    Raises:
        ValueError: if there are fewer transitions than ``batch_size``; while iterating, if an
            iterable's batches are not of that size.
        TypeError: if ``demonstrations`` is none of these.
    """
    if isinstance(demonstrations, th_data.DataLoader) and _is_plain_shuffle(
        demonstrations, batch_size
    ):
        demonstrations = cast(types.TransitionsMinimal, demonstrations.dataset)
    loader = algo_base.make_data_loader(demonstrations, batch_size)
    if isinstance(loader, th_data.DataLoader):
        transitions = cast(types.TransitionsMinimal, loader.dataset)
        kind = BlockBatches if any_on_disk(transitions) else TransitionBatches
        return kind(transitions, batch_size)
    return PrefetchedBatches(loader)


def _is_plain_shuffle(loader: th_data.DataLoader, batch_size: int) -> bool:
    """Whether a loader does no more than ours: it shuffles and collates transitions."""
    return (
        isinstance(loader.dataset, types.TransitionsMinimal)
        and loader.batch_size == batch_size
        and isinstance(loader.sampler, th_data.RandomSampler)
        and not loader.sampler.replacement
        and loader.sampler.num_samples == len(loader.dataset)
        and loader.sampler.generator is None
        and loader.generator is None
        and loader.drop_last
        and loader.collate_fn is types.transitions_collate_fn
    )


def to_tensor(array: np.ndarray | th.Tensor, device: th.device | str = "cpu") -> th.Tensor:
    """A tensor that shares an array's memory where it can; it is only meant to be read."""
    if isinstance(array, np.ndarray) and any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no views that run backwards
    if isinstance(array, th.Tensor):
        return array.to(device)
    # imitation marks its arrays read-only, which torch warns about, and a copy would double the
    # memory that demonstrations take.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return th.as_tensor(array, device=device)


def any_on_disk(transitions: types.TransitionsMinimal) -> bool:
    """Whether observations or actions are memory-mapped rather than in memory."""
    return any(map(is_on_disk, _arrays(transitions)))


def subset_in_memory(
    transitions: types.TransitionsMinimal, max_rows: int, generator: th.Generator
) -> types.TransitionsMinimal:
    """Reads transitions from disk: all if there are few enough, short random stretches otherwise.

    Args:
        transitions: on disk.
        max_rows: rows at most, and no less than a stretch of 64.
        generator: source of randomness.

    Returns:
        Their observations and actions, in the order of the source.
    """
    n = len(transitions)
    starts: Array = np.zeros(1, dtype=int)
    stops: Array = np.full(1, n)
    if n > max_rows:
        chosen = th.randperm(n // _SUBSET_BLOCK_ROWS, generator=generator)
        starts = np.sort(chosen[: max_rows // _SUBSET_BLOCK_ROWS].numpy()) * _SUBSET_BLOCK_ROWS
        stops = starts + _SUBSET_BLOCK_ROWS
    n_rows = int((stops - starts).sum())
    buffers = _allocate(transitions, n_rows)
    _read_blocks(transitions, (starts, stops), buffers)
    return types.TransitionsMinimal(
        obs=_like(transitions.obs, buffers),
        acts=buffers[-1],
        infos=shared_infos(n_rows),
    )


def _arrays(transitions: types.TransitionsMinimal) -> list[Array]:
    """The arrays of the observations, in their order, and the actions."""
    return [*by_key(transitions.obs).values(), transitions.acts]


def _allocate(transitions: types.TransitionsMinimal, n_rows: int) -> list[Array]:
    """Room for rows of each of the transitions' arrays."""
    return [
        np.empty((n_rows, *array.shape[1:]), plain_dtype(array.dtype))
        for array in _arrays(transitions)
    ]


def _like(obs: Any, buffers: list[Array]) -> Array | types.DictObs:
    """Takes the first buffers as observations of the same form as ``obs``."""
    if isinstance(obs, types.DictObs):
        return types.DictObs(dict(zip(obs.keys(), buffers[:-1], strict=True)))
    return buffers[0]


def _cut(starts: Array, stops: Array, offset: int, length: int) -> tuple[Array, Array]:
    """The part of a sequence of blocks between its rows ``offset`` and ``offset + length``."""
    ends = np.cumsum(stops - starts)
    first, last = np.searchsorted(ends, [offset, offset + length - 1], side="right")
    part = slice(first, last + 1)
    before = np.maximum(offset - (ends - (stops - starts))[part], 0)
    behind = np.maximum(ends[part] - (offset + length), 0)
    return starts[part] + before, stops[part] - behind


def _read_blocks(
    transitions: types.TransitionsMinimal, blocks: tuple[Array, Array], buffers: list[Array]
) -> int:
    """Reads blocks of rows into the buffers, one behind the other; returns the number of rows."""
    filled = 0
    for start, stop in zip(*(limits.tolist() for limits in blocks), strict=True):
        end = filled + stop - start
        for array, buffer in zip(_arrays(transitions), buffers, strict=True):
            buffer[filled:end] = read_rows(array, start, stop)
        filled = end
    return filled


def _indexable(obs: Array | types.DictObs) -> th.Tensor | types.DictObs:
    return obs if isinstance(obs, types.DictObs) else to_tensor(obs)


def _gather(obs: th.Tensor | types.DictObs, rows: th.Tensor) -> th.Tensor | types.DictObs:
    if isinstance(obs, types.DictObs):
        # imitation's container takes NumPy arrays only.
        index = rows.numpy()
        return types.DictObs({key: value[index] for key, value in obs.items()})
    return obs[rows]


def _concatenate(parts: list[Any]) -> Any:
    first = parts[0]
    if isinstance(first, types.DictObs | Mapping):
        by_key = [dict(part.items()) for part in parts]
        return types.DictObs(
            {key: np.concatenate([np.asarray(part[key]) for part in by_key]) for key in by_key[0]}
        )
    return np.concatenate([np.asarray(part) for part in parts])
