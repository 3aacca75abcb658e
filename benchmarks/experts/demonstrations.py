"""Rollouts of the experts, and the files of the bundled demonstrations."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from tqdm import tqdm

from benchmarks.experts.scores import summary, versions
from sb3_diffbc import EvaluationResult
from sb3_diffbc.demonstrations.recording import Episode, as_arrays, roll_out
from sb3_diffbc.tasks import Task

MAX_TRIES_PER_EPISODE = 10

KEPT = {
    "success": "successful episodes only",
    "return": "episodes that last until the time limit only",
}
MEANINGS = {
    "obs": "observation",
    "acts": "the expert's action for obs",
    "dones": "whether the episode ended with this step in a terminal state (the goal)",
    "timeouts": "whether the time limit ended the episode with this step",
    "final_obs": "observation after the last step of each episode",
    "episode": "which reset after the seeded one each episode began with, from 1",
}


@dataclasses.dataclass
class Demonstrations:
    """What a collection gave.

    Attributes:
        arrays: by the names in ``MEANINGS``.
        result: scores of the kept episodes.
        tried: episodes that were rolled out, the failed ones included.
    """

    arrays: dict[str, NDArray[Any]]
    result: EvaluationResult
    tried: int


def collect(
    policy: BasePolicy,
    task: Task,
    seed: int,
    episodes: int,
    transitions: int,
    env_spec: EnvSpec | None = None,
) -> Demonstrations:
    """Rolls out an expert until there are enough demonstrations.

    The environment is seeded by one reset and then draws one episode after the other, each with a
    reset of its own. Kept are episodes that end well: where the task has a goal, those that reach
    it (which terminates them); where return counts, those that last until the time limit.

    Args:
        policy: the expert; acts deterministically.
        task: where.
        seed: of the first reset.
        episodes: episodes to keep at least.
        transitions: their transitions at least.
        env_spec: the task's environment; with its default arguments if None.

    Raises:
        RuntimeError: if the expert fails too often.
    """
    env = gym.make(env_spec or task.env_id)
    env.reset(seed=seed)
    kept: list[Episode] = []
    numbers: list[int] = []
    steps = tried = 0
    with tqdm(total=max(episodes, 1), desc=task.name, unit="episode") as bar:
        while len(kept) < episodes or steps < transitions:
            if tried >= MAX_TRIES_PER_EPISODE * (len(kept) + 10):
                raise RuntimeError(
                    f"The expert of {task.name} solved {len(kept)} of {tried} episodes; gave up."
                )
            episode = roll_out(env, policy)
            tried += 1
            if episode.terminated == (task.metric == "success"):
                kept.append(episode)
                numbers.append(tried)
                steps += len(episode.acts)
                bar.update()
    env.close()
    successes = [episode.success for episode in kept]
    result = EvaluationResult(
        returns=np.array([episode.total_reward for episode in kept]),
        lengths=np.array([len(episode.acts) for episode in kept]),
        successes=None if None in successes else np.array(successes, dtype=bool),
    )
    arrays = as_arrays(kept) | {"episode": np.array(numbers, dtype=np.int32)}
    return Demonstrations(arrays, result, tried)


def write(
    demonstrations: Demonstrations,
    task: Task,
    path: Path,
    *,
    seed: int,
    expert_score: dict[str, Any],
) -> None:
    """Writes the arrays as ``.npz`` and, beside them with the suffix ``.json``, the card.

    Args:
        demonstrations: what ``collect`` gave.
        task: of which task.
        path: of the ``.npz``; its folder is made where it is missing.
        seed: what ``collect`` was given.
        expert_score: what ``score`` gave for the expert.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **demonstrations.arrays)  # type: ignore[arg-type]
    lengths = demonstrations.result.lengths
    card = {
        "name": task.name,
        "task": task.title,
        "env_id": task.env_id,
        "env_kwargs": {},
        "expert": task.expert.summary,
        "expert_score": expert_score,
        "score": summary(demonstrations.result, task),
        "kept": KEPT[task.metric],
        "seed": seed,
        "episodes": len(lengths),
        "episodes_tried": demonstrations.tried,
        "transitions": int(lengths.sum()),
        "episode_length": {
            "mean": round(float(lengths.mean()), 2),
            "min": int(lengths.min()),
            "max": int(lengths.max()),
        },
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "meaning": MEANINGS[name]}
            for name, array in demonstrations.arrays.items()
        },
        "command": f"python -m benchmarks demonstrate {task.name} --seed {seed}",
        "versions": versions(task),
        "licence": "MIT",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
