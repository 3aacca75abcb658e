"""Batches of demonstrations for imitation's training loop."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch as th
from imitation.algorithms import base as algo_base
from imitation.data import rollout, types
from imitation.util import util
from torch.utils import data as th_data

from sb3_diffbc.demonstrations.loading import load_demonstrations, no_infos
from sb3_diffbc.demonstrations.trajectories import ends_of, some_rows
from sb3_diffbc.demonstrations.validation import by_key, row_chunks


@dataclasses.dataclass
class PassState:
    """Where a pass through the demonstrations is.

    Attributes:
        pass_seed: the seed of the pass's order; None before the first pass.
        position: the number of batches that have been handed out.
    """

    pass_seed: int | None = None
    position: int = 0


class TransitionBatches:
    """Shuffled batches of transitions, in memory or memory-mapped.

    Each pass has an order of its own and leaves out an incomplete last batch. imitation's ``BC``
    and this class give the same batches after the same ``torch.manual_seed``, and draw the same
    from torch's global random state.

    Iterating continues a pass that was left in the middle. To begin a new one instead, assign
    ``PassState()`` to :attr:`state`; to continue one that was saved, assign its state.

    Attributes:
        transitions: observations (an array or imitation's ``DictObs``) and actions, not copied.
        batch_size: the number of rows in a batch.
        left_out: flags of rows that are not used, ``(n,)``; None if all are.
        state: where the last pass is, up to date at any time while a batch is in use.
    """

    def __init__(self, transitions: types.TransitionsMinimal, batch_size: int) -> None:
        self.transitions = transitions
        self.batch_size = batch_size
        self.left_out: np.ndarray | None = None
        self.state = PassState()

    def leave_out(self, flags: np.ndarray) -> None:
        """Leaves rows out; the next pass is a new one.

        Args:
            flags: of the rows to leave out, shape ``(n,)``.

        Raises:
            ValueError: if they are no such flags, or leave fewer rows than a batch has.
        """
        n = len(self.transitions.acts)
        if flags.dtype != bool or flags.shape != (n,) or n - flags.sum() < self.batch_size:
            raise ValueError(
                f"flags: expected {n} booleans, {self.batch_size} of them False, found "
                f"{flags.dtype} of shape {flags.shape}."
            )
        self.left_out = flags
        self.state = PassState()

    @property
    def rows(self) -> np.ndarray | None:
        """The numbers of the rows that are used; None if all are."""
        return None if self.left_out is None else np.flatnonzero(~self.left_out)

    @property
    def n_rows(self) -> int:
        """How many they are."""
        n = len(self.transitions.acts)
        return n if self.left_out is None else n - np.count_nonzero(self.left_out)

    @property
    def used(self) -> types.TransitionsMinimal:
        """The transitions that are used; a copy of them if others are not."""
        if self.left_out is None:
            return self.transitions
        return some_rows(self.transitions, ~self.left_out)

    @functools.cached_property
    def fingerprint(self) -> str:
        """That of the transitions, taken once: it reads all of them."""
        return fingerprint(self.transitions)

    def __len__(self) -> int:
        """Returns the number of batches in a pass."""
        return self.n_rows // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yields the batches of a pass, each with ``obs`` and ``acts``."""
        if self.state.pass_seed is None or not 0 < self.state.position < len(self):
            # A DataLoader draws a seed for its workers first, then its sampler draws its own.
            th.empty((), dtype=th.int64).random_()
            self.state = PassState(int(th.empty((), dtype=th.int64).random_()))
        state = self.state
        generator = th.Generator().manual_seed(cast(int, state.pass_seed))
        order = th.randperm(self.n_rows, generator=generator)
        if (used := self.rows) is not None:
            order = th.from_numpy(used)[order]
        acts = to_tensor(self.transitions.acts)
        obs: Any = self.transitions.obs
        # imitation's container of observations by key takes NumPy arrays only.
        is_keyed = isinstance(obs, types.DictObs)
        obs = obs if is_keyed else to_tensor(obs)
        for index in range(state.position, len(self)):
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            # Counted before the batch is handed out, so that a save in between includes it.
            state.position = index + 1
            yield {"obs": obs[rows.numpy()] if is_keyed else obs[rows], "acts": acts[rows]}


class PrefetchedBatches:
    """A user's iterable of batches whose first batches can be looked at before training.

    The critic and the policy's statistics need data before training starts, but an iterable
    may be usable only once, or have no batches in its second pass. The batches that :meth:`peek`
    reads therefore come again as the first ones of the next pass.

    Args:
        batches: any iterable of mappings with ``obs`` and ``acts``.
    """

    def __init__(self, batches: Iterable[types.TransitionMapping]) -> None:
        self._batches = batches
        # imitation wraps an iterable to check the size of its batches.
        self._is_one_shot = isinstance(getattr(batches, "data_loader", batches), Iterator)
        self._upcoming: Iterator[types.TransitionMapping] | None = None

    def __iter__(self) -> Iterator[types.TransitionMapping]:
        """Returns the iterator of the next pass; that of a one-shot iterable is always the same."""
        upcoming = iter(self._batches) if self._upcoming is None else self._upcoming
        self._upcoming = upcoming if self._is_one_shot else None
        return upcoming

    def peek(self, max_transitions: int) -> types.TransitionsMinimal:
        """Returns the transitions of the next pass's first batches.

        Args:
            max_transitions: reading stops at the batch that reaches this number, since an iterable
                may be endless.

        Raises:
            ValueError: if the iterable has no batches.
        """
        upcoming = iter(self)
        seen: list[types.TransitionMapping] = []
        n_seen = 0
        while n_seen < max_transitions and (batch := next(upcoming, None)) is not None:
            seen.append(batch)
            n_seen += len(batch["acts"])
        self._upcoming = itertools.chain(seen, upcoming)
        if not seen:
            raise ValueError("demonstrations is an iterable without batches: expected at least 1.")
        return types.TransitionsMinimal(
            obs=_concatenate([batch["obs"] for batch in seen]),
            acts=_concatenate([batch["acts"] for batch in seen]),
            infos=no_infos(n_seen),
        )


def make_batches(demonstrations: Any, batch_size: int) -> TransitionBatches | PrefetchedBatches:
    """Turns what imitation's ``BC`` takes, and what ``load_demonstrations`` reads, into batches.

    Returns:
        Shuffled batches for transitions, trajectories, everything that is read, and for the
        shuffling ``DataLoader`` over transitions that imitation's DAgger makes; an iterable of
        batches itself, wrapped.

    Raises:
        ValueError: if there are fewer transitions than ``batch_size``; while iterating, if an
            iterable's batches are not of that size.
        TypeError: if ``demonstrations`` is none of these.
    """
    if isinstance(demonstrations, th_data.DataLoader) and _is_plain_shuffle(
        demonstrations, batch_size
    ):
        demonstrations = demonstrations.dataset
    found = transitions_or_batches(demonstrations)
    if not isinstance(found, types.TransitionsMinimal):
        return PrefetchedBatches(algo_base._WrappedDataLoader(found, batch_size))
    algo_base.make_data_loader(found, batch_size)  # which checks the sizes
    return TransitionBatches(found, batch_size)


def transitions_or_batches(
    demonstrations: Any,
) -> types.TransitionsMinimal | Iterable[types.TransitionMapping]:
    """Reads everything that is not an iterable of batches.

    Raises:
        TypeError: if it is neither.
    """
    others = types.TransitionsMinimal | str | os.PathLike | Mapping | np.ndarray | th.Tensor
    # Hugging Face's data sets are iterables of rows, which look like batches.
    is_table = hasattr(demonstrations, "column_names")
    if isinstance(demonstrations, others) or is_table or not isinstance(demonstrations, Iterable):
        return as_transitions(demonstrations)
    # Looked at once, as in imitation: a loader draws from the global random state for it.
    first, demonstrations = util.get_first_iter_element(demonstrations)
    if isinstance(first, types.Trajectory):
        return flattened(list(demonstrations))
    if isinstance(first, Mapping) and {"obs", "acts"} <= first.keys():
        return demonstrations
    if isinstance(demonstrations, Sized):
        return as_transitions(demonstrations)
    raise TypeError(
        f"`demonstrations` is an iterable of {type(first).__name__}: expected trajectories, or "
        "batches, which are mappings with `obs` and `acts`."
    )


def flattened(trajectories: Sequence[types.Trajectory]) -> types.Transitions:
    """Joins trajectories as imitation does, but ``dones`` also mark the ends of cut-short ones."""
    ends = ends_of([len(each) for each in trajectories], True)
    return dataclasses.replace(rollout.flatten_trajectories(trajectories), dones=ends)


def as_transitions(demonstrations: Any) -> types.TransitionsMinimal:
    """Returns transitions as they are, and anything else through ``load_demonstrations``."""
    if isinstance(demonstrations, types.TransitionsMinimal):
        return demonstrations
    return load_demonstrations(demonstrations)


def fingerprint(transitions: types.TransitionsMinimal) -> str:
    """Returns the SHA-256 of observations and actions: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    obs = transitions.obs
    arrays = dict(obs.items()) if isinstance(obs, types.DictObs) else {"obs": obs}
    for name, array in {**arrays, "acts": transitions.acts}.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        for _, rows in row_chunks(array):
            digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def to_tensor(array: np.ndarray | th.Tensor, device: th.device | str = "cpu") -> th.Tensor:
    """Returns a tensor for reading only, which shares the array's memory where it can."""
    if isinstance(array, np.ndarray) and any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no views that run backwards
    if isinstance(array, th.Tensor):
        return array.to(device)
    # imitation marks its arrays read-only, which torch warns about, and a copy would double the
    # memory that demonstrations take.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return th.as_tensor(array, device=device)


def _is_plain_shuffle(loader: th_data.DataLoader, batch_size: int) -> bool:
    """Tells whether a loader does what ``TransitionBatches`` do: shuffle and collate."""
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


def _concatenate(parts: list[Any]) -> Any:
    """Joins arrays, tensors or lists to one array, and mappings of them to a ``DictObs``."""
    if isinstance(parts[0], types.DictObs | Mapping):
        by_name = [by_key(part) for part in parts]
        return types.DictObs(
            {str(key): _concatenate([part[key] for part in by_name]) for key in by_name[0]}
        )
    return np.concatenate([np.asarray(part) for part in parts])
