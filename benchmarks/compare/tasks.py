"""What is compared on: a task, how it is scored, and one set of demonstrations."""

import dataclasses
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from imitation.data import types

from sb3_diffbc import load_demonstrations, validate_demonstrations
from sb3_diffbc.demonstrations import DemonstrationWarning
from sb3_diffbc.demonstrations.batches import fingerprint
from sb3_diffbc.tasks import TASKS, Metric, find_task

Source = str | Path | types.Transitions

PAPER = "-paper"
"""Ends the key of a task with the authors' demonstrations, whose results never mix with others."""

_PROBE_STEPS = 2_000


@dataclasses.dataclass(frozen=True)
class ComparedTask:
    """A task with its demonstrations.

    Attributes:
        key: names the task in result files.
        title: in tables.
        env: what ``gymnasium.make`` and ``evaluate_episodes`` take.
        training_env: the same with the noise of the demonstrations, for interactive methods.
        noise_ratio: of start and goal while evaluating.
        metric: which of the evaluation's arrays counts.
        horizon: time limit of an episode in steps.
        source: what ``load_demonstrations`` takes.
        source_name: what results call it; folders differ from machine to machine.
        name: that of the paper's settings; see ``methods.PAPER_SETTINGS``.
    """

    key: str
    title: str
    env: EnvSpec
    training_env: EnvSpec
    noise_ratio: float
    metric: Metric
    horizon: int
    source: Source
    source_name: str
    name: str

    @property
    def env_id(self) -> str:
        """Gymnasium's id."""
        return self.env.id

    def spaces(self) -> tuple[gym.Space, gym.Space]:
        """Observation and action space of the environment."""
        env = gym.make(self.env)
        found = env.observation_space, env.action_space
        env.close()
        return found

    def demonstrations(self) -> types.Transitions:
        """Loads them, without a word about what was repaired: see :func:`checked_demonstrations`.

        Returns:
            The transitions.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DemonstrationWarning)
            return load_demonstrations(self.source)


def keys(paper_data: Path | None = None) -> tuple[str, ...]:
    """The tasks that are compared by default, the authors' demonstrations where they are given."""
    return tuple(
        name + PAPER if paper_data is not None and task.paper_file is not None else name
        for name, task in TASKS.items()
    )


def all_keys() -> tuple[str, ...]:
    """Every task that there is, with either source of demonstrations."""
    return tuple(TASKS) + tuple(n + PAPER for n, task in TASKS.items() if task.paper_file)


def find(key: str, paper_data: Path | None = None) -> ComparedTask:
    """Gives a task of the paper by its key.

    Args:
        key: a name of ``sb3_diffbc.tasks``, or one that ends in ``-paper`` for the authors' own
            demonstrations.
        paper_data: folder of the authors' files.

    Returns:
        The task; its demonstrations are not loaded yet.

    Raises:
        ValueError: if there is none of this key, or the authors' file is missing.
    """
    if key not in all_keys():
        raise ValueError(f"task: found {key!r}, expected one of {', '.join(all_keys())}.")
    task = find_task(key.removesuffix(PAPER))
    title, source, source_name = task.title, task.name, task.name
    if key.endswith(PAPER):
        assert task.paper_file is not None  # else the key would be unknown
        if paper_data is None:
            raise ValueError(
                f"--paper-data: {key} needs the folder that holds the authors' {task.paper_file}."
            )
        path = paper_data / task.paper_file
        if not path.is_file():
            raise ValueError(f"--paper-data: {path} is not there; {key} needs it.")
        title, source, source_name = f"{title} (authors' demonstrations)", str(path), path.name
    return ComparedTask(
        key=key,
        title=title,
        env=task.spec(task.paper_noise_ratio),
        training_env=task.spec(),
        noise_ratio=task.paper_noise_ratio,
        metric=task.metric,
        horizon=task.horizon,
        source=source,
        source_name=source_name,
        name=task.name,
    )


def own(
    env_id: str, source: str, metric: Literal["success", "return"] | None = None
) -> ComparedTask:
    """Makes a task of any environment and any demonstrations.

    Args:
        env_id: Gymnasium's id.
        source: what ``load_demonstrations`` takes.
        metric: what counts; by default success where the environment tells ``is_success``.

    Returns:
        The task.

    Raises:
        ValueError: if there is no such environment, it cannot be made, or it never tells the
            success that is asked for.
    """
    try:
        spec = gym.spec(env_id)
        env = gym.make(spec)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(f"--env: {env_id!r} cannot be made: {error}") from error
    try:
        tells_success, n_steps = _probe(env)
    finally:
        env.close()
    if metric == "success" and not tells_success:
        raise ValueError(
            f"--metric: found 'success', but {env_id} does not tell 'is_success' in its infos."
        )
    key = re.sub(r"[^\w.+-]+", "_", spec.id).lstrip(".+-")
    if key in all_keys():
        raise ValueError(f"--env: {env_id!r} would be called {key}, as one of the paper's tasks.")
    return ComparedTask(
        key=key,
        title=spec.id,
        env=spec,
        training_env=spec,
        noise_ratio=1.0,
        metric=metric or ("success" if tells_success else "return"),
        horizon=spec.max_episode_steps or n_steps,
        source=source,
        source_name=Path(source).name,
        name=key,
    )


def _probe(env: gym.Env) -> tuple[bool, int]:
    """Whether the end of an episode of random actions tells of success, and its length."""
    env.reset(seed=0)
    env.action_space.seed(0)
    is_over, n_steps = False, 0
    while not is_over and n_steps < _PROBE_STEPS:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        is_over, n_steps = terminated or truncated, n_steps + 1
    return "is_success" in info, n_steps


def checked_demonstrations(task: ComparedTask) -> types.Transitions:
    """Loads a task's demonstrations and says what is odd about them.

    Args:
        task: whose they are.

    Returns:
        The transitions.

    Raises:
        ValueError: if they cannot be read or do not fit the environment's spaces.
        FileNotFoundError: if they are not there.
    """
    transitions = load_demonstrations(task.source)
    observation_space, action_space = task.spaces()
    validate_demonstrations(
        transitions,
        observation_space=observation_space,
        action_space=action_space,
    )
    return transitions


def described(task: ComparedTask, transitions: types.Transitions) -> Mapping[str, Any]:
    """What results say about demonstrations, their fingerprint included."""
    return {
        "source": task.source_name,
        "sha256": fingerprint(transitions),
        "transitions": len(transitions),
        # An incomplete last episode counts too.
        "episodes": int(np.sum(transitions.dones[:-1])) + 1,
    }
