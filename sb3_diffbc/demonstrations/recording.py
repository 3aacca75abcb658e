"""Rollouts of a policy, and the files that ``load_demonstrations`` reads back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from imitation.data import types
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_diffbc.demonstrations.loading import TRUNCATED
from sb3_diffbc.demonstrations.trajectories import ends_of, lengths_of
from sb3_diffbc.demonstrations.validation import Array, by_key
from sb3_diffbc.evaluation import stacked, success_of


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode of a policy.

    Attributes:
        obs: observations, ``(n + 1, *obs_shape)``, or a mapping of such.
        acts: actions as the environment got them, ``(n, *act_shape)``.
        rewards: shape ``(n,)``; None if they are not known.
        terminated: whether a terminal state ended it, not a time limit.
        success: ``info["is_success"]`` of the last step; None if the environment does not say.
    """

    obs: Any
    acts: Array
    rewards: Array | None
    terminated: bool
    success: bool | None

    @property
    def total_reward(self) -> float:
        """Sum of the rewards; NaN if they are not known."""
        return math.nan if self.rewards is None else float(self.rewards.sum())


def roll_out(
    env: gym.Env,
    policy: BasePolicy | BaseAlgorithm,
    *,
    seed: int | None = None,
    deterministic: bool = True,
) -> Episode:
    """Plays one episode.

    Args:
        env: where.
        policy: who acts.
        seed: of the reset; where None, the environment goes on drawing as it was seeded.
        deterministic: whether to take the policy's mode rather than a sample.

    Returns:
        The episode.
    """
    obs, _ = env.reset(seed=seed)
    observations, actions, rewards = [obs], [], []
    while True:
        act, _ = policy.predict(obs, deterministic=deterministic)
        obs, reward, terminated, truncated, info = env.step(act)
        observations.append(obs)
        actions.append(np.asarray(act))
        rewards.append(float(reward))
        if terminated or truncated:
            success = success_of(info)
            return Episode(
                stacked(observations),
                np.stack(actions),
                np.array(rewards),
                bool(terminated),
                success,
            )


def pieces_of(transitions: types.Transitions, is_kept: Array) -> list[Episode]:
    """Returns a part of demonstrations as episodes.

    A trajectory from whose middle rows are left out becomes several; what ends where the next row
    is left out is cut short.

    Args:
        transitions: the demonstrations.
        is_kept: a flag for each row, shape ``(n,)``, at least one of them True.

    Returns:
        Episodes without rewards.

    Raises:
        ValueError: if no row is kept, or there is not one flag for each.
    """
    if is_kept.shape != (len(transitions),) or not is_kept.any():
        raise ValueError(
            f"is_kept: expected {len(transitions)} flags, some of them True, found "
            f"{np.count_nonzero(is_kept)} that are True in shape {is_kept.shape}."
        )
    lengths = lengths_of(transitions.dones)
    numbers = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.flatnonzero(is_kept)
    is_next = (np.diff(rows) == 1) & (np.diff(numbers[rows]) == 0)
    pieces = []
    for part in np.split(rows, np.flatnonzero(~is_next) + 1):
        first, last = part[0], part[-1]
        parts: Any = [transitions.obs[first : last + 1], transitions.next_obs[last : last + 1]]
        obs = types.concatenate_maybe_dictobs(parts)
        ended = transitions.dones[last] and not transitions.infos[last].get(TRUNCATED, False)
        acts = transitions.acts[first : last + 1]
        pieces.append(Episode(obs, acts, None, bool(ended), None))
    return pieces


def as_arrays(episodes: Sequence[Episode]) -> dict[str, Array]:
    """Joins episodes to the arrays of an ``.npz`` that ``load_demonstrations`` reads.

    Args:
        episodes: at least one, with observations that are arrays.

    Returns:
        ``obs``, ``acts``, ``dones`` (terminal states), ``timeouts`` (where there are any) and
        ``final_obs``, one row per episode. Floats of 64 bits are stored with 32.
    """
    lengths = [len(episode.acts) for episode in episodes]
    terminated = np.array([episode.terminated for episode in episodes])
    arrays = {
        "obs": np.concatenate([episode.obs[:-1] for episode in episodes]),
        "acts": np.concatenate([episode.acts for episode in episodes]),
        "dones": ends_of(lengths, terminated),
        "timeouts": ends_of(lengths, ~terminated),
        "final_obs": np.stack([episode.obs[-1] for episode in episodes]),
    }
    if not arrays["timeouts"].any():
        del arrays["timeouts"]
    return {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in arrays.items()
    }


HDF5_SUFFIXES = (".hdf5", ".h5")
"""Files with others are written as ``.npz``, which holds no observations by key."""


def write_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    """Writes episodes to a new file: HDF5 with the suffix .hdf5 or .h5, ``.npz`` otherwise.

    Raises:
        FileExistsError: if there is such a file.
        ImportError: if HDF5 is asked for and h5py is not installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    (write_hdf5 if path.suffix in HDF5_SUFFIXES else write_npz)(path, episodes)


def write_npz(path: Path, episodes: Sequence[Episode]) -> None:
    """Writes episodes to a new ``.npz``.

    Raises:
        FileExistsError: if there is such a file.
    """
    with path.open("xb") as file:
        np.savez(file, **as_arrays(episodes))  # type: ignore[arg-type]


def write_hdf5(path: Path, episodes: Sequence[Episode]) -> None:
    """Writes episodes to a new HDF5 file in robomimic's layout, without its environment's metadata.

    Raises:
        FileExistsError: if there is such a file.
        ImportError: if h5py is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Writing {path} needs h5py: pip install h5py") from error
    with h5py.File(path, "x") as file:
        for i, episode in enumerate(episodes):
            group = file.create_group(f"data/demo_{i}")
            group.attrs["num_samples"] = len(episode.acts)
            for key, obs in by_key(episode.obs).items():
                group[f"obs/{key or 'state'}"] = obs[:-1]
                group[f"next_obs/{key or 'state'}"] = obs[1:]
            group["actions"] = episode.acts
            if episode.rewards is not None:
                group["rewards"] = episode.rewards
            is_last = ends_of([len(episode.acts)], True)
            group["dones"] = is_last
            group["terminals" if episode.terminated else "timeouts"] = is_last
