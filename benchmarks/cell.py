"""One cell of a suite, a problem with a variant and a training seed: what it takes and gives."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch as th
from imitation.data import types
from stable_baselines3.common import policies

from benchmarks.methods.base import Setup, Variant, undisturbed_randomness
from benchmarks.methods.sampling import SamplingPolicy
from benchmarks.problems import Problem
from benchmarks.record import (
    Checkpoint,
    Demonstrations,
    JsonObject,
    Key,
    Record,
    processor_name,
)
from sb3_diffbc import evaluate_episodes
from sb3_diffbc.checkpoints.file import package_versions
from sb3_diffbc.demonstrations import DemonstrationWarning

PACKAGES = ("torch", "stable-baselines3", "imitation", "gymnasium", "mujoco", "numpy")
"""What results depend on."""

_WARM_UP = 20


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """On which episodes a training is scored, and when.

    Attributes:
        n_episodes: of the final evaluation, by metric: episodes of tasks with a return are long.
        first_episode_seed: of the final evaluation; the resets count up from it.
        n_checkpoints: of the learning curve, spread evenly over training; the last is its end.
        curve_episodes: at each checkpoint, by metric.
        first_curve_episode_seed: of the curve's evaluations.
        n_predictions: timed calls of ``predict``.
    """

    n_episodes: Mapping[str, int]
    first_episode_seed: int
    n_checkpoints: int = 0
    curve_episodes: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"success": 20, "return": 5}
    )
    first_curve_episode_seed: int = 500_000
    n_predictions: int = 300

    def checkpoints(self, length: int) -> frozenset[int]:
        """Returns when the curve is measured in a training of so many units."""
        shares = range(1, self.n_checkpoints + 1)
        return frozenset(max(1, round(length * k / self.n_checkpoints)) for k in shares)

    def config(self, metric: str) -> JsonObject:
        """Returns what records say of the evaluation, beside its first episode's seed."""
        config: JsonObject = {"n_episodes": self.n_episodes[metric]}
        if self.n_checkpoints:
            config |= {
                "n_checkpoints": self.n_checkpoints,
                "curve_episodes": self.curve_episodes[metric],
                "first_curve_episode_seed": self.first_curve_episode_seed,
            }
        return config


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a process needs to run one cell.

    ``demonstrations`` describes the problem's ``transitions``; ``config`` has every setting of
    method and evaluation, ``origin`` the record's ``command``, ``git_revision`` and ``git_dirty``.
    """

    suite: str
    problem: Problem
    variant: Variant
    seed: int
    evaluation: Evaluation
    transitions: types.Transitions
    demonstrations: Demonstrations
    config: JsonObject
    origin: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """As that of the cell's record."""
        return self.problem.key, self.variant.name, self.seed

    @property
    def name(self) -> str:
        """The cell's name in messages."""
        return " ".join(map(str, self.key))

    def setup(self) -> Setup:
        """Returns what the cell's method is given."""
        observation_space, action_space = self.problem.spaces()
        return Setup(
            demonstrations=self.transitions,
            observation_space=observation_space,
            action_space=action_space,
            seed=self.seed,
            task=self.problem.task,
            training_env=self.problem.training_env,
            source=self.problem.source,
        )

    def identity(self) -> dict[str, Any]:
        """Returns the fields of the record that are known before it is run."""
        return {
            "suite": self.suite,
            "task": self.problem.key,
            "variant": self.variant.name,
            "seed": self.seed,
            "env": self.problem.env.id,
            "noise_ratio": self.problem.noise_ratio,
            "metric": self.problem.metric,
            "config": self.config,
            "first_episode_seed": self.evaluation.first_episode_seed,
        }

    def difference(self, record: Record) -> str:
        """Returns in what a record differs from what the cell would give; empty if it does not.

        A setting that the record does not know came later, and had its default then.
        """
        defaults, then = self.variant.method.defaults, record.config
        now = {
            name: value
            for name, value in self.config.items()
            if name in then or name not in defaults or defaults[name] != value
        }
        changed = [
            name
            for name, value in (self.identity() | {"config": now}).items()
            if getattr(record, name) != value
        ]
        if "config" in changed:
            changed += sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
        if record.demonstrations.sha256 != self.demonstrations.sha256:
            changed.append("demonstrations")
        return ", ".join(changed)


def run_cell(cell: Cell) -> Record:
    """Trains and evaluates a cell on one thread, and returns its record.

    Raises:
        RuntimeError: if success counts but an episode does not tell it.
    """
    th.set_num_threads(1)
    with warnings.catch_warnings():
        # Said once, when the cells were planned.
        warnings.simplefilter("ignore", DemonstrationWarning)
        # imitation logs a loss that way at the start of every training.
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        return _run(cell)


def _run(cell: Cell) -> Record:
    problem, evaluation = cell.problem, cell.evaluation
    method = cell.variant.make(cell.setup())
    clock, curve = method.clock, []
    due = evaluation.checkpoints(method.length)
    done = 0

    def on_progress() -> None:
        nonlocal done
        done += 1
        if done not in due:
            return
        phase = clock.switch("curve")
        n_episodes = evaluation.curve_episodes[problem.metric]
        scores = score(method.policy, problem, n_episodes, evaluation.first_curve_episode_seed)
        curve.append(
            Checkpoint(
                updates=method.updates,
                env_steps=method.env_steps,
                score=statistics.fmean(scores),
                episodes=n_episodes,
            )
        )
        clock.switch(phase)

    clock.switch("training")
    method.train(on_progress)
    clock.switch("evaluation")
    n_episodes, first_seed = evaluation.n_episodes[problem.metric], evaluation.first_episode_seed
    scores = score(method.policy, problem, n_episodes, first_seed)
    clock.switch("measures")
    measures = {
        "updates": method.updates,
        "env_steps": method.env_steps,
        "n_parameters": method.n_parameters,
        "inference_ms": inference_ms(method.policy, cell.transitions, evaluation.n_predictions),
        **method.measures(),
    }
    further = [(name, policy, problem) for name, policy in method.further_policies().items()]
    further += [
        (name, method.policy, dataclasses.replace(problem, env=env))
        for name, env in problem.further_envs.items()
    ]
    for name, policy, where in further:
        measures[f"score/{name}"] = statistics.fmean(score(policy, where, n_episodes, first_seed))
    clock.switch("end")
    return Record(
        **cell.identity(),
        **cell.origin,
        title=problem.title,
        demonstrations=cell.demonstrations,
        scores=scores,
        curve=curve,
        measures={name: float(value) for name, value in (clock.measures | measures).items()},
        versions=package_versions(*PACKAGES),
        machine={
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads_per_cell": th.get_num_threads(),
        },
    )


def score(
    policy: policies.BasePolicy, problem: Problem, n_episodes: int, first_seed: int
) -> list[float]:
    """Scores a policy's most likely actions on episodes that are fixed by their seeds.

    A policy with random numbers of its own starts them again each time.

    Returns:
        One return for each episode, or 1 for a success and 0 for a failure.

    Raises:
        RuntimeError: if success counts but an episode does not tell it.
    """
    with undisturbed_randomness():
        if isinstance(policy, SamplingPolicy):
            policy.reset_noise()
        result = evaluate_episodes(policy, problem.env, n_episodes=n_episodes, seed=first_seed)
    scores = result.returns if problem.metric == "return" else result.successes
    if scores is None:
        raise RuntimeError(f"{problem.env.id} did not tell 'is_success': use the metric 'return'.")
    return [float(value) for value in scores]


def inference_ms(
    policy: policies.BasePolicy, demonstrations: types.Transitions, n_predictions: int
) -> float:
    """Returns the median milliseconds of one ``predict`` for one demonstrated observation."""
    times = []
    rows = np.arange(_WARM_UP + n_predictions) % len(demonstrations)
    with undisturbed_randomness():
        for row in rows:
            observation = demonstrations[int(row)]["obs"]
            if isinstance(observation, types.DictObs):
                observation = observation.unwrap()
            began = time.perf_counter()
            policy.predict(observation, deterministic=True)
            times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[_WARM_UP:])
