"""What methods are tried on: a task, how it is scored, and one set of demonstrations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from imitation.data import types

from benchmarks.record import Demonstrations
from sb3_diffbc import load_demonstrations, validate_demonstrations
from sb3_diffbc.demonstrations.batches import fingerprint
from sb3_diffbc.tasks import TASKS, Metric, find_task

PAPER = "-paper"
"""Ends the key of a problem with the authors' demonstrations."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with its demonstrations.

    Attributes:
        key: names the problem in records.
        title: in tables.
        env: of the evaluation.
        training_env: the same with the noise of the demonstrations, for interactive methods.
        metric: which of the evaluation's arrays counts.
        source: what ``load_demonstrations`` takes.
        task: name in ``sb3_diffbc.tasks``; empty for a user's own.
        noise_ratio: of the start in ``env``, and of the goal where they are not told apart.
        further_envs: other environments on which the same training is scored, by name.
    """

    key: str
    title: str
    env: EnvSpec
    training_env: EnvSpec
    metric: Metric
    source: str | Path
    task: str = ""
    noise_ratio: float = 1.0
    further_envs: Mapping[str, EnvSpec] = dataclasses.field(default_factory=dict)

    def spaces(self) -> tuple[gym.Space, gym.Space]:
        """Observation and action space of the environment."""
        env = gym.make(self.env)
        found = env.observation_space, env.action_space
        env.close()
        return found

    def demonstrations(self) -> types.Transitions:
        """Loads the demonstrations, with warnings about what is odd in them.

        Raises:
            ValueError: if they cannot be read or do not fit the environment's spaces.
            FileNotFoundError: if they are not there.
        """
        transitions = load_demonstrations(self.source)
        observation_space, action_space = self.spaces()
        validate_demonstrations(
            transitions, observation_space=observation_space, action_space=action_space
        )
        return transitions

    def describe(self, transitions: types.Transitions) -> Demonstrations:
        """Returns what records say of the demonstrations."""
        return Demonstrations(
            # Folders differ from machine to machine.
            source=Path(self.source).name,
            sha256=fingerprint(transitions),
            transitions=len(transitions),
            episodes=int(np.sum(transitions.dones[:-1])) + 1,
        )


def default_keys(paper_data: Path | None) -> tuple[str, ...]:
    """Returns one key per task of the paper: the authors' demonstrations where they are given."""
    return tuple(
        name + PAPER if paper_data is not None and task.paper_file is not None else name
        for name, task in TASKS.items()
    )


def find_problem(key: str, paper_data: Path | None = None) -> Problem:
    """Returns the problem of a key.

    Args:
        key: a name of ``sb3_diffbc.tasks``, or one that ends in ``-paper`` for the authors' own
            demonstrations.
        paper_data: folder of the authors' files.

    Raises:
        ValueError: if there is none of this key, or the authors' file is missing.
    """
    keys = [*TASKS, *(name + PAPER for name, task in TASKS.items() if task.paper_file)]
    if key not in keys:
        raise ValueError(f"tasks: found {key!r}, expected some of {', '.join(keys)}.")
    task = find_task(key.removesuffix(PAPER))
    title, source = task.title, Path(task.name)
    if key.endswith(PAPER):
        assert task.paper_file is not None  # else the key would be unknown
        if paper_data is None:
            raise ValueError(
                f"--paper-data: {key} needs the folder that holds the authors' {task.paper_file}."
            )
        title, source = f"{title} (authors' demonstrations)", paper_data / task.paper_file
        if not source.is_file():
            raise ValueError(f"--paper-data: {source} is not there; {key} needs it.")
    return Problem(
        key=key,
        title=title,
        env=task.spec(task.paper_noise_ratio),
        training_env=task.spec(),
        metric=task.metric,
        source=str(source),
        task=task.name,
        noise_ratio=task.paper_noise_ratio,
    )


def own_problem(env_id: str, source: str, metric: Metric) -> Problem:
    """Returns a problem of any environment and any demonstrations.

    Raises:
        ValueError: if there is no such environment.
    """
    try:
        spec = gym.spec(env_id)
    except gym.error.Error as error:
        raise ValueError(f"--env: {env_id!r} cannot be made: {error}") from error
    key = re.sub(r"[^\w.+-]+", "_", spec.id).lstrip(".+-")
    return Problem(
        key=key, title=spec.id, env=spec, training_env=spec, metric=metric, source=source
    )
