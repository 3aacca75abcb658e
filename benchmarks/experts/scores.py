"""Scores of the experts, and of random actions beside them, over episodes fixed by their seeds."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pandas as pd
from imitation.policies.base import RandomPolicy
from stable_baselines3.common.policies import BasePolicy

from benchmarks.record import RESULTS
from sb3_diffbc import EvaluationResult, evaluate_episodes
from sb3_diffbc.checkpoints.file import package_versions
from sb3_diffbc.tasks import Task

SCORES = RESULTS / "experts.csv"
# Apart from the episodes on which benchmarks compare and tune methods.
SCORE_SEED = 2_000_000
SCORE_EPISODES = 100


def expert_scores() -> pd.DataFrame:
    """Reads the committed scores.

    Returns:
        A row per ``task``, ``who`` (``"expert"`` or ``"random"``) and ``noise_ratio``, with
        ``metric``, ``mean``, the 95 % interval from ``low`` to ``high`` (success rates between 0
        and 1), ``episodes``, ``steps_per_episode``, the ``seed`` of the first episode and the
        ``versions`` of the packages.
    """
    return pd.read_csv(SCORES)


def random_policy(task: Task) -> BasePolicy:
    """Returns a policy whose actions are uniform over the task's action space."""
    env = gym.make(task.env_id)
    policy = RandomPolicy(env.observation_space, env.action_space)
    policy.action_space.seed(SCORE_SEED)
    env.close()
    return policy


def score(policy: BasePolicy, task: Task, noise_ratio: float = 1.0) -> dict[str, Any]:
    """Scores a policy over 100 episodes fixed by their seeds.

    Returns:
        What ``summary`` gives, with the seed of the first episode and the noise ratio of start
        and goal.
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
    """Returns the mean of the task's metric and its 95 % interval, as JSON takes them.

    Raises:
        ValueError: if success counts, but the environment does not report it.
    """
    if task.metric == "return":
        mean, interval, digits = float(result.returns.mean()), result.return_interval(), 1
    else:
        rate = result.success_rate
        if rate is None:
            raise ValueError(f"{task.env_id} does not say is_success, which is its metric.")
        mean, interval, digits = rate, result.success_interval(), 4
    if interval is None:
        raise ValueError("a score needs at least two episodes.")
    return {
        "metric": task.metric,
        "mean": round(mean, digits),
        "interval": [round(bound, digits) for bound in interval],
        "episodes": len(result.returns),
        "steps_per_episode": round(float(result.lengths.mean()), 1),
    }


def score_task(task: Task, expert: BasePolicy) -> pd.DataFrame:
    """Scores a task's expert at each of the task's noise ratios, and random actions.

    Returns:
        Rows as ``expert_scores`` gives them.
    """
    scores = [("expert", score(expert, task, ratio)) for ratio in task.noise_ratios]
    scores.append(("random", score(random_policy(task), task)))
    rows = pd.DataFrame([{"task": task.name, "who": who, **found} for who, found in scores])
    rows[["low", "high"]] = rows.pop("interval").to_list()
    return rows.assign(versions="; ".join(" ".join(item) for item in versions(task).items()))


def save_scores(scores: pd.DataFrame) -> None:
    """Puts rows of one task, as ``score_task`` gives them, in the place of the task's old ones."""
    known = expert_scores()
    scores = pd.concat([known[known["task"] != scores["task"].iloc[0]], scores])
    scores.to_csv(SCORES, index=False)


def versions(task: Task) -> dict[str, str]:
    """Returns the versions of Python and of the packages on which a rollout's numbers depend."""
    names = ["numpy", "torch", "mujoco", "gymnasium", "stable-baselines3"]
    return package_versions(*names, *(["gymnasium-robotics"] if task.extra == "robotics" else []))
