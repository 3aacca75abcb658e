"""Batches of demonstrations for imitation's training loop."""

import collections
import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import torch as th
from imitation.algorithms import base as algo_base
from imitation.data import types
from torch.utils import data as th_data

from sb3_diffbc.demonstrations.loading import load_demonstrations

Batch = dict[str, Any]


def as_transitions(demonstrations: Any) -> types.TransitionsMinimal:
    """Transitions as they are; anything else through :func:`load_demonstrations`."""
    if isinstance(demonstrations, types.TransitionsMinimal):
        return demonstrations
    return load_demonstrations(demonstrations)


class TransitionBatches:
    """Shuffled batches of transitions held in memory, gathered by one indexing per array.

    Draws from torch's global random state what torch's ``DataLoader`` with ``shuffle=True``
    draws, so that imitation's ``BC`` and ``DiffusionBC`` see the same batches after the same
    ``torch.manual_seed``. As there, an incomplete last batch is dropped.

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
        obs = transitions.obs
        self._obs = obs if isinstance(obs, types.DictObs) else to_tensor(obs)
        self._acts = to_tensor(transitions.acts)

    def __len__(self) -> int:
        """Batches in a pass."""
        return len(self._acts) // self.batch_size

    def fingerprint(self) -> str:
        """SHA-256 of observations and actions, to tell whether demonstrations are the same."""
        digest = hashlib.sha256()
        obs = self.transitions.obs
        arrays = dict(obs.items()) if isinstance(obs, types.DictObs) else {"obs": obs}
        for name, array in {**arrays, "acts": self.transitions.acts}.items():
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

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
        if self._resume_next:
            self._resume_next = False
        else:
            self._start_pass()
        assert self.pass_seed is not None
        generator = th.Generator().manual_seed(self.pass_seed)
        order = th.randperm(len(self._acts), generator=generator)
        for index in range(self.position, len(self)):
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            # Counted before the batch is handed out: whoever saves while working on it has it.
            self.position = index + 1
            yield {"obs": _gather(self._obs, rows), "acts": self._acts[rows]}

    def _start_pass(self) -> None:
        # A DataLoader draws a seed for its workers first, then its sampler draws its own.
        th.empty((), dtype=th.int64).random_()
        self.pass_seed = int(th.empty((), dtype=th.int64).random_())
        self.position = 0


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
) -> TransitionBatches | PrefetchedBatches:
    """Turns anything that imitation's ``BC`` accepts into batches, in memory where possible.

    Args:
        demonstrations: transitions, trajectories, or an iterable of batches.
        batch_size: rows per batch.

    Returns:
        In-memory batches for transitions, trajectories and for the shuffling ``DataLoader``
        over transitions that imitation's DAgger makes; the iterable itself, wrapped, otherwise.

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
        return TransitionBatches(cast(types.TransitionsMinimal, loader.dataset), batch_size)
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
