"""Demonstrations that are worse or fewer than the task's own; infos tell which rows are bad."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from imitation.data import rollout, types

from benchmarks.problems import Problem
from sb3_diffbc import DiffusionBC, evaluate_episodes
from sb3_diffbc.demonstrations.trajectories import lengths_of

NOVICE_UPDATES = 500
"""Of the policy that makes bad trajectories."""
NOVICE_SEED = 3_000_000
"""Seed of its first episode, far from those of tuning and evaluation."""

_SEED = 0


def bad_rows(transitions: types.Transitions) -> np.ndarray:
    """Tells which actions are not the expert's, shape ``(n,)``."""
    return np.array(["is_bad" in info for info in transitions.infos], dtype=bool)


def uniform(problem: Problem, clean: types.Transitions, percent: int) -> types.Transitions:
    """Replaces actions, one by one, by uniform ones."""
    space = problem.spaces()[1]
    assert isinstance(space, gym.spaces.Box)
    is_bad, rng = _rows(clean, percent)
    return _with_actions(clean, is_bad, rng.uniform(space.low, space.high, clean.acts.shape))


def swapped(problem: Problem, clean: types.Transitions, percent: int) -> types.Transitions:
    """Replaces actions, one by one, by some of other trajectories."""
    is_bad, rng = _rows(clean, percent)
    lengths = lengths_of(clean.dones)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    # As far from the row's own trajectory as it takes to be in another one, cyclically.
    own = np.repeat(lengths, lengths)
    other = (starts + own + rng.integers(len(clean) - own)) % len(clean)
    return _with_actions(clean, is_bad, clean.acts[other])


def zeros(problem: Problem, clean: types.Transitions, percent: int) -> types.Transitions:
    """Replaces actions, one by one, by 0: an operator who lets go."""
    is_bad, _ = _rows(clean, percent)
    return _with_actions(clean, is_bad, np.zeros_like(clean.acts))


def novice(problem: Problem, clean: types.Transitions, percent: int) -> types.Transitions:
    """Replaces whole trajectories by those of a policy that was cloned for a short while."""
    observation_space, action_space = problem.spaces()
    trainer = DiffusionBC(
        demonstrations=clean,
        observation_space=observation_space,
        action_space=action_space,
        dm_coef=0.0,
        bc_loss="nll",
        seed=_SEED,
        device="cpu",
        verbose=0,
    )
    trainer.train(n_batches=NOVICE_UPDATES, progress_bar=False)
    lengths = lengths_of(clean.dones)
    n_bad = max(1, round(percent / 100 * len(lengths)))
    played = evaluate_episodes(
        trainer.policy,
        problem.training_env,
        n_episodes=n_bad,
        seed=NOVICE_SEED,
        keep_observations=True,
    )
    assert played.observations is not None
    bad = rollout.flatten_trajectories(
        [
            types.Trajectory(
                obs=obs.astype(np.asarray(clean.obs).dtype),
                acts=trainer.policy.predict(obs[:-1], deterministic=True)[0],
                infos=None,
                terminal=True,
            )
            for obs in played.observations
        ]
    )
    rng = np.random.default_rng(_SEED)
    replaced = np.zeros(len(lengths), dtype=bool)
    replaced[rng.choice(len(lengths), n_bad, replace=False)] = True
    keep = ~np.repeat(replaced, lengths)
    fields: dict[str, Any] = {
        name: np.concatenate([getattr(clean, name)[keep], getattr(bad, name)])
        for name in ("obs", "acts", "next_obs", "dones", "infos")
    }
    fields["dones"][np.count_nonzero(keep) - 1] = True
    is_bad = np.arange(len(fields["acts"])) >= np.count_nonzero(keep)
    return _flagged(types.Transitions(**fields), is_bad)


def few(problem: Problem, clean: types.Transitions, n: int) -> types.Transitions:
    """Keeps so many trajectories, the first ones."""
    lengths = lengths_of(clean.dones)
    if not 1 <= n <= len(lengths):
        raise ValueError(f"{problem.key}: found {len(lengths)} trajectories to keep some of.")
    return clean[: sum(lengths[:n])]


KINDS: Mapping[str, Callable[[Problem, types.Transitions, int], types.Transitions]] = {
    "uniform": uniform,
    "swapped": swapped,
    "zeros": zeros,
    "novice": novice,
    "few": few,
}
"""What happens to so many percent of the rows or of the trajectories, or what is kept, by name."""


def _rows(clean: types.Transitions, percent: int) -> tuple[np.ndarray, np.random.Generator]:
    """Chooses rows; those of a smaller share are among those of a larger one."""
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(len(clean))
    return order < round(percent / 100 * len(clean)), rng


def _with_actions(
    clean: types.Transitions, is_bad: np.ndarray, acts: np.ndarray
) -> types.Transitions:
    acts = np.where(is_bad[:, None], acts, clean.acts).astype(clean.acts.dtype)
    return _flagged(dataclasses.replace(clean, acts=acts), is_bad)


def _flagged(transitions: types.Transitions, is_bad: np.ndarray) -> types.Transitions:
    infos = np.array([{}, {"is_bad": True}])[is_bad.astype(int)]
    return dataclasses.replace(transitions, infos=infos)
