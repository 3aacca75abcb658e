"""Does the policy know where it is? What warns before a cloned policy fails.

Each cell clones a policy, watches its episodes at twice the demonstrations' noise with a critic of
p(s, a) and with its rivals, and asks how well each tells the failing episodes from the others, and
how early. All judge the same episodes. Half of the trajectories that are held out, of which 200 are
looked at, set thresholds, and the other half counts false alarms. ``walker@recorded`` records its
expert anew, since none of the few trajectories of ``walker-paper`` can be held out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from imitation.data import types
from scipy.spatial import cKDTree

from benchmarks import record
from benchmarks.cell import Evaluation
from benchmarks.methods.base import Setup, Variant, undisturbed_randomness
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.problems import PAPER, Problem, find_problem
from benchmarks.suites.base import Suite
from benchmarks.suites.scores import auroc
from benchmarks.suites.shift import RecordedProblem
from sb3_diffbc import DiffusionCritic, evaluate_episodes, hold_out
from sb3_diffbc.critic.encoder import to_tensor_obs
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.monitor import conformal_threshold, window_means
from sb3_diffbc.tasks import Task, find_task

NAME = "monitor"
NOISE_RATIO = 2.0
RATE, WINDOW, FIRST_STEPS = 0.05, 10, 30
N_UPDATES = 5_000
N_TRAINED = 5_000
"""Transitions, in whole trajectories, at most; the others are held out."""
N_CLONES = 5
N_EPISODES = 100
RECORDED = "walker@recorded"

_RECORDED_TRANSITIONS = 60_000
_MAX_HELD_OUT = 200
_FIRST_SEED = 700_000

Score = Callable[[Any, np.ndarray], np.ndarray]
"""How unfamiliar pairs are, ``(n,)``, given observations and actions."""


class MonitorMethod(DiffusionBCMethod):
    """A clone, and what watches it.

    Args:
        setup: as in the base class, with a task of ``sb3_diffbc.tasks``.
        n_trained: transitions that the clones and the critic learn from, at most.
        n_clones: of the ensemble; the policy is one of them.
        critic_kwargs: of the critic.
        n_episodes: to watch.
        **arguments: of the base class.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        n_trained: int = N_TRAINED,
        n_clones: int = N_CLONES,
        critic_kwargs: Mapping[str, Any] | None = None,
        n_episodes: int = N_EPISODES,
        **arguments: Any,
    ) -> None:
        space: Any = setup.action_space
        clipped = np.clip(setup.demonstrations.acts, space.low, space.high)
        demonstrations = dataclasses.replace(setup.demonstrations, acts=clipped)
        n = len(lengths_of(demonstrations.dones))
        share = 1 - int(n_trained / len(demonstrations) * n) / n
        self.held_out: list[tuple[Any, np.ndarray]] = []
        if share > 0:
            demonstrations, rows = hold_out(demonstrations, share, seed=setup.seed)
            ends = np.cumsum(lengths_of(rows.dones))[:-1]
            obs = np.split(types.assert_not_dictobs(rows.obs), ends)
            pairs = zip(obs, np.split(rows.acts, ends), strict=True)
            self.held_out = list(pairs)[:_MAX_HELD_OUT]
        setup = dataclasses.replace(setup, demonstrations=demonstrations)
        self._clone_arguments = {"dm_coef": 0.0, "bc_loss": "nll", **arguments}
        super().__init__(setup, **self._clone_arguments)
        self.n_clones, self.n_episodes = n_clones, n_episodes
        self.clones: list[Any] = []
        with undisturbed_randomness():
            self.critic = DiffusionCritic(
                **setup.spaces, seed=setup.seed, device="cpu", **(critic_kwargs or {})
            )
        self.config |= {
            "n_trained": n_trained,
            "n_clones": n_clones,
            "n_watched": n_episodes,
            "critic": {k: v for k, v in self.critic.config.items() if k != "seed"},
            "false_alarm_rate": RATE,
            "window": WINDOW,
        }

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says; the critic and the other clones come last."""
        super().train(on_progress)
        phase = self.clock.switch("critic")
        self.critic.fit(self.setup.demonstrations, progress_bar=False)
        self.clock.switch("ensemble")
        self.clones = [self.policy]
        for number in range(1, self.n_clones):
            setup = dataclasses.replace(self.setup, seed=self.setup.seed + 1000 * number)
            other = DiffusionBCMethod(setup, **self._clone_arguments)
            other.train(lambda: None)
            self.clones.append(other.policy)
        self.clock.switch(phase)

    def detectors(self) -> dict[str, Score]:
        """Returns what judges pairs, by name."""
        encoder, demonstrations = self.critic.encoder, self.setup.demonstrations

        def codes(obs: Any) -> np.ndarray:
            return encoder.encode_obs(to_tensor_obs(obs, th.device("cpu"))).numpy()

        tree = cKDTree(codes(demonstrations.obs))
        scale = encoder.act_std.numpy()

        def disagreement(obs: Any, acts: np.ndarray) -> np.ndarray:
            proposed = [clone.predict(obs, deterministic=True)[0] for clone in self.clones]
            return np.sqrt(np.square(np.std(proposed, axis=0) / scale).mean(axis=-1))

        return {
            "critic": lambda obs, acts: self.critic.mean_denoising_loss(obs, acts).numpy(),
            "ensemble": disagreement,
            "nearest": lambda obs, acts: tree.query(codes(obs))[0],
        }

    def measures(self) -> dict[str, float]:
        """How well each detector tells failing episodes from the others, and how early."""
        task = find_task(self.setup.task)
        episodes, failed = watched(self.policy, self.setup.training_env, task, self.n_episodes)
        measures = {"failures": float(failed.sum()), "held_out": float(len(self.held_out))}
        for name, score in self.detectors().items():
            found = scored(score, [*episodes, *self.held_out])
            kinds = found[: len(episodes)], failed, found[len(episodes) :]
            measures |= {f"{measure}/{name}": value for measure, value in told(*kinds).items()}
        return super().measures() | measures


def watched(
    policy: Any, env: Any, task: Task, n_episodes: int
) -> tuple[list[tuple[Any, np.ndarray]], np.ndarray]:
    """Plays episodes.

    Returns:
        Observations and actions of each, and which of them failed: had no success, or, where the
        return counts, ended before the time limit.
    """
    with undisturbed_randomness():
        result = evaluate_episodes(
            policy, env, n_episodes=n_episodes, seed=_FIRST_SEED, keep_observations=True
        )
    assert result.observations is not None
    observations = [obs[:-1].astype(np.float32) for obs in result.observations]
    pairs = [(obs, policy.predict(obs, deterministic=True)[0]) for obs in observations]
    if task.metric == "return":
        return pairs, result.lengths < task.horizon
    assert result.successes is not None
    return pairs, ~result.successes


def scored(score: Score, episodes: list[tuple[Any, np.ndarray]]) -> list[np.ndarray]:
    """Returns the scores of each step of each episode."""
    obs, acts = (np.concatenate(parts) for parts in zip(*episodes, strict=True))
    ends = np.cumsum([len(acts) for _, acts in episodes])[:-1]
    return np.split(score(obs, acts), ends)


def told(
    episodes: list[np.ndarray], failed: np.ndarray, held_out: list[np.ndarray]
) -> dict[str, float]:
    """Returns what a detector tells of episodes.

    Args:
        episodes: scores of each step of each episode.
        failed: which episodes failed.
        held_out: scores of the expert's trajectories; those at even places set the threshold.
    """
    measures: dict[str, float] = {}
    statistics = {
        "auroc": [highest(scores) for scores in episodes],
        "auroc_mean": [scores.mean() for scores in episodes],
        "auroc_first": [highest(scores[:FIRST_STEPS]) for scores in episodes],
    }
    if 0 < failed.sum() < len(failed):
        for name, values in statistics.items():
            measures[name] = auroc(-np.array(values), failed)
    if len(held_out[::2]) < 1 / RATE - 1:
        return measures
    threshold = conformal_threshold([highest(scores) for scores in held_out[::2]], RATE)
    measures["false_alarms/expert"] = share(first_alarms(held_out[1::2], threshold) >= 0)
    alarms = first_alarms(episodes, threshold)
    left = np.array([len(scores) - 1 for scores in episodes]) - alarms
    is_warned = (alarms >= 0) & (left > 0)
    if not failed.all():
        measures["false_alarms/success"] = share(alarms[~failed] >= 0)
    if failed.any():
        measures["warned"] = share(is_warned[failed])
    if is_warned[failed].any():
        measures["warning_steps"] = float(np.median(left[failed & is_warned]))
    return measures


def highest(scores: np.ndarray) -> float:
    """Returns the highest mean over a window, -inf if the episode is shorter."""
    return float(window_means(scores, WINDOW).max(initial=-np.inf))


def first_alarms(episodes: list[np.ndarray], threshold: float) -> np.ndarray:
    """Returns the step of each episode's first alarm, -1 where there is none."""
    found = []
    for scores in episodes:
        above = np.flatnonzero(window_means(scores, WINDOW) > threshold)
        found.append(above[0] + WINDOW - 1 if len(above) else -1)
    return np.array(found)


def share(flags: np.ndarray) -> float:
    """Returns the share of true ones."""
    return float(np.mean(flags))


def monitor_problem(key: str, paper_data: Path | None = None) -> Problem:
    """Returns a task at twice the noise where that can be varied.

    Raises:
        ValueError: if there is none of this key, or the authors' file is missing.
    """
    if key == RECORDED:
        bundled = find_problem("walker")
        changes = {"key": key, "title": f"{bundled.title} (recorded anew)"}
        changes["source"] = str(record.RUNS / NAME / f"{key}.npz")
        return RecordedProblem(**vars(bundled) | changes, n_transitions=_RECORDED_TRANSITIONS)
    problem = find_problem(key, paper_data)
    task = find_task(problem.task)
    if task.entry_point is None:  # whose noise is fixed
        return problem
    env = task.spec(NOISE_RATIO)
    return dataclasses.replace(problem, env=env, training_env=env, noise_ratio=NOISE_RATIO)


def _default_tasks(paper_data: Path | None) -> tuple[str, ...]:
    end = "" if paper_data is None else PAPER
    return f"maze{end}", "ant_reach", f"walker{end}", RECORDED, "fetch_pick"


SUITE = Suite(
    name=NAME,
    variants=(Variant("clone", MonitorMethod, {"n_updates": N_UPDATES}, "Clone"),),
    # The clone's own score is a by-product: its watched episodes are further ones.
    evaluation=Evaluation(n_episodes={"success": 1, "return": 1}, first_episode_seed=0),
    default_tasks=_default_tasks,
    first_seed=100,
    n_seeds=3,
    problem=monitor_problem,
)
