"""What experts do: scores over fixed episodes, and demonstrations."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from imitation.policies.base import RandomPolicy
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from tqdm import tqdm

import sb3_diffbc
from benchmarks.json_files import write_json
from sb3_diffbc import EvaluationResult, evaluate_episodes
from sb3_diffbc.tasks import Task

# Apart from the episodes on which benchmarks compare and tune methods.
SCORE_SEED = 2_000_000
SCORE_EPISODES = 100
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


def random_policy(task: Task) -> BasePolicy:
    """Gives a policy whose actions are uniform over the action space."""
    env = gym.make(task.env_id)
    policy = RandomPolicy(env.observation_space, env.action_space)
    policy.action_space.seed(SCORE_SEED)
    env.close()
    return policy


def score(policy: BasePolicy, task: Task, noise_ratio: float = 1.0) -> dict[str, Any]:
    """Scores a policy over 100 episodes fixed by their seeds.

    Args:
        policy: The policy; acts deterministically.
        task: Where.
        noise_ratio: Scales the noise of start and goal.

    Returns:
        See `summary`, with the seed of the first episode.
    """
    result = evaluate_episodes(
        policy,
        task.spec(noise_ratio),
        n_episodes=SCORE_EPISODES,
        seed=SCORE_SEED,
        progress_bar=True,
    )
    return {**summary(result, task), "seed": SCORE_SEED, "noise_ratio": noise_ratio}


def summary(result: EvaluationResult, task: Task) -> dict[str, Any]:
    """Gives mean and 95 % interval of the task's metric, as JSON takes it."""
    if task.metric == "return":
        mean, interval, digits = float(result.returns.mean()), result.return_interval(), 1
    else:
        rate, bounds = result.success_rate, result.success_interval()
        if rate is None or bounds is None:
            raise ValueError(f"{task.env_id} does not say is_success, which is its metric.")
        mean, interval, digits = rate, bounds, 4
    return {
        "metric": task.metric,
        "mean": round(mean, digits),
        "interval": [round(bound, digits) for bound in interval],
        "episodes": len(result.returns),
        "steps_per_episode": round(float(result.lengths.mean()), 1),
    }


@dataclasses.dataclass
class _Recorded:
    """One episode."""

    obs: list[NDArray[np.float32]]
    acts: list[NDArray[np.float32]]
    total: float = 0.0
    terminated: bool = False
    success: bool | None = None


@dataclasses.dataclass
class Demonstrations:
    """What a collection gave.

    Attributes:
        arrays: By the names in `MEANINGS`.
        result: Scores of the kept episodes.
        tried: Episodes that were rolled out, the failed ones included.
    """

    arrays: dict[str, NDArray[Any]]
    result: EvaluationResult
    tried: int


def collect(
    policy: BasePolicy, task: Task, seed: int, episodes: int, transitions: int
) -> Demonstrations:
    """Rolls out an expert until enough has been shown.

    The environment is seeded by one reset and then draws one episode after the other, each with a
    reset of its own. Kept are episodes that end well: where the task has a goal, those that reach
    it (which terminates them); where return counts, those that last until the time limit.

    Args:
        policy: The expert; acts deterministically.
        task: Where, with the environment's default arguments.
        seed: Of the first reset.
        episodes: Episodes to keep at least.
        transitions: Their transitions at least.

    Returns:
        The demonstrations.

    Raises:
        RuntimeError: If the expert fails too often.
    """
    env = gym.make(task.env_id)
    env.reset(seed=seed)
    kept: list[_Recorded] = []
    numbers: list[int] = []
    steps = tried = 0
    with tqdm(total=max(episodes, 1), desc=task.name, unit="episode") as bar:
        while len(kept) < episodes or steps < transitions:
            if tried >= MAX_TRIES_PER_EPISODE * (len(kept) + 10):
                raise RuntimeError(
                    f"The expert of {task.name} solved {len(kept)} of {tried} episodes; gave up."
                )
            episode = _roll_out(env, policy)
            tried += 1
            if episode.terminated == (task.metric == "success"):
                kept.append(episode)
                numbers.append(tried)
                steps += len(episode.acts)
                bar.update()
    env.close()
    return Demonstrations(_as_arrays(kept, numbers), _result(kept), tried)


def _roll_out(env: gym.Env, policy: BasePolicy) -> _Recorded:
    obs, _ = env.reset()
    episode = _Recorded([_single(obs)], [])
    while True:
        act, _ = policy.predict(obs, deterministic=True)
        obs, reward, terminated, truncated, info = env.step(act)
        episode.obs.append(_single(obs))
        episode.acts.append(_single(act))
        episode.total += float(reward)
        if terminated or truncated:
            episode.terminated = bool(terminated)
            episode.success = bool(info["is_success"]) if "is_success" in info else None
            return episode


def _single(array: Any) -> NDArray[np.float32]:
    return np.array(array, dtype=np.float32)


def _as_arrays(episodes: list[_Recorded], numbers: list[int]) -> dict[str, NDArray[Any]]:
    lengths = np.array([len(episode.acts) for episode in episodes])
    ends = np.zeros(lengths.sum(), dtype=bool)
    ends[np.cumsum(lengths) - 1] = True
    terminated = np.repeat([episode.terminated for episode in episodes], lengths)
    arrays = {
        "obs": np.concatenate([np.stack(episode.obs[:-1]) for episode in episodes]),
        "acts": np.concatenate([np.stack(episode.acts) for episode in episodes]),
        "dones": ends & terminated,
        "timeouts": ends & ~terminated,
        "final_obs": np.stack([episode.obs[-1] for episode in episodes]),
        "episode": np.array(numbers, dtype=np.int32),
    }
    if not arrays["timeouts"].any():
        del arrays["timeouts"]
    return arrays


def _result(episodes: list[_Recorded]) -> EvaluationResult:
    successes = [episode.success for episode in episodes]
    return EvaluationResult(
        returns=np.array([episode.total for episode in episodes]),
        lengths=np.array([len(episode.acts) for episode in episodes]),
        successes=None if None in successes else np.array(successes, dtype=bool),
    )


def write(
    demonstrations: Demonstrations,
    task: Task,
    out: Path,
    *,
    seed: int,
    command: str,
    expert_score: dict[str, Any],
) -> None:
    """Writes the arrays as `.npz` and, beside them with the suffix `.json`, the card.

    Args:
        demonstrations: What `collect` gave.
        task: Of which task.
        out: Path of the `.npz`; its folder is made where missing.
        seed: What `collect` was given.
        command: Command line that makes the file again.
        expert_score: What `score` gave for the expert.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **demonstrations.arrays)  # type: ignore[arg-type]
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
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "meaning": MEANINGS[name],
            }
            for name, array in demonstrations.arrays.items()
        },
        "command": command,
        "versions": versions(task),
        "licence": "MIT",
        "file": out.name,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
    }
    write_json(out.with_suffix(".json"), card)


def versions(task: Task) -> dict[str, str]:
    """Names what a rollout's numbers depend on."""
    packages = ["numpy", "torch", "mujoco", "gymnasium", "stable-baselines3"]
    if task.extra == "robotics":
        packages.append("gymnasium-robotics")
    return {
        "python": platform.python_version(),
        "sb3-diffbc": sb3_diffbc.__version__,
        **{name: version(name) for name in packages},
    }
