"""Demonstrations that are objects in memory: imitation's trajectories and SB3's replay buffers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from gymnasium import spaces
from imitation.data.types import DictObs, Trajectory, TransitionsMinimal, concatenate_maybe_dictobs
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_diffbc.demonstrations.fields import Arrays, Choice
from sb3_diffbc.demonstrations.validation import Array, warn

TransitionsT = TypeVar("TransitionsT", bound=TransitionsMinimal)

NO_INFO: dict[str, Any] = {}
"""The one empty dictionary that all rows without information share (a row costs 8 bytes)."""


def read_transitions(transitions: TransitionsMinimal, choice: Choice) -> Arrays:
    """Takes the arrays of imitation's transitions as they are."""
    fields = ("obs", "acts", "next_obs", "dones", "infos")
    return {name: getattr(transitions, name) for name in fields if hasattr(transitions, name)}


def flatten_trajectories(source: Trajectory | Iterable[Trajectory], choice: Choice) -> Arrays:
    """Joins trajectories that are in memory to arrays with one row per transition."""
    trajectories = [source] if isinstance(source, Trajectory) else list(source)
    others = [part for part in trajectories if not isinstance(part, Trajectory)]
    if others:
        raise TypeError(
            "`source` must be an iterable of imitation's trajectories alone, found "
            f"{type(source).__name__} with {type(others[0]).__name__}."
        )
    if not trajectories:
        raise ValueError("`source` must hold at least one trajectory, found none.")
    all_obs: list[Any] = [trajectory.obs for trajectory in trajectories]
    try:
        obs = concatenate_maybe_dictobs([obs[:-1] for obs in all_obs])
        next_obs = concatenate_maybe_dictobs([obs[1:] for obs in all_obs])
        acts = np.concatenate([trajectory.acts for trajectory in trajectories])
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            "All trajectories in `source` must have observations and actions of the same kind "
            f"and shape: {error}"
        ) from error
    lengths = [len(trajectory) for trajectory in trajectories]
    return {
        "obs": obs,
        "acts": acts,
        "next_obs": next_obs,
        "terminals": ends_of(lengths, [trajectory.terminal for trajectory in trajectories]),
        "truncations": ends_of(lengths, True),
        "infos": np.concatenate([_infos_in_memory(trajectory) for trajectory in trajectories]),
    }


def lengths_of(dones: Array) -> Array:
    """Returns the lengths of the trajectories that ``dones`` end; a last one need not end."""
    return np.diff(np.flatnonzero([*dones[:-1], True]), prepend=-1)


def ends_of(lengths: Any, terminal: Any) -> Array:
    """Returns whether each row ends a terminal trajectory, shape ``(sum(lengths),)``."""
    dones = np.zeros(sum(lengths), dtype=bool)
    dones[np.cumsum(lengths) - 1] = terminal
    return dones


def _infos_in_memory(trajectory: Trajectory) -> Array:
    """Returns a trajectory's infos, shape ``(len(trajectory),)``.

    What imitation's ``serialize.load`` returns decodes infos only when they are touched, with
    ``jsonpickle``; such ones are left untouched and replaced by empty dictionaries.
    """
    infos = np.full(len(trajectory), NO_INFO, dtype=object)
    if isinstance(trajectory.infos, (np.ndarray, list, tuple)):
        infos[:] = trajectory.infos
    return infos


def read_replay_buffer(buffer: ReplayBuffer, choice: Choice) -> Arrays:
    """Reads SB3's ``ReplayBuffer`` or ``DictReplayBuffer``: each environment's steps in order."""
    size = buffer.buffer_size
    if buffer.full:
        # With one array for both, the oldest observation is overwritten by the newest successor.
        first = buffer.pos + buffer.optimize_memory_usage
        rows = np.arange(first, buffer.pos + size) % size
    else:
        rows = np.arange(buffer.pos)

    def flat(array: Any, at: Array = rows) -> Any:
        if isinstance(array, dict):
            return DictObs({key: flat(part, at) for key, part in array.items()})
        return np.concatenate([array[at, env] for env in range(array.shape[1])])

    space = buffer.action_space
    if isinstance(space, spaces.Box) and not (np.all(space.low == -1) and np.all(space.high == 1)):
        warn(
            "the actions of the replay buffer are taken as they are. Stable-Baselines3's own "
            "algorithms store them scaled to [-1, 1], which is not the range of its action space "
            f"{space}; `policy.unscale_action` scales them back."
        )
    if buffer.optimize_memory_usage:
        next_obs = flat(buffer.observations, (rows + 1) % size)
    else:
        next_obs = flat(buffer.next_observations)
    timeouts, dones = flat(buffer.timeouts), flat(buffer.dones)
    truncations = timeouts.astype(bool)
    if len(rows):
        truncations[len(rows) - 1 :: len(rows)] = True  # where an environment's data ends
    return {
        "obs": flat(buffer.observations),
        "acts": flat(buffer.actions),
        "next_obs": next_obs,
        "terminals": dones * (1 - timeouts),
        "truncations": truncations,
    }


def some_rows(transitions: TransitionsT, flags: Array) -> TransitionsT:
    """Returns the flagged rows of transitions, copied."""
    return type(transitions)(**{name: each[flags] for name, each in vars(transitions).items()})
