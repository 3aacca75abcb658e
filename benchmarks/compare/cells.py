"""One cell of the comparison, a task with a method and a seed: what it takes and what it gives."""

import dataclasses
import os
import platform
import resource
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from imitation.data import types
from stable_baselines3.common import policies

import sb3_diffbc
from benchmarks import records
from benchmarks.compare.learners import Learner, Setup, as_json
from benchmarks.compare.methods import ComparedMethod
from benchmarks.compare.phases import Phases, undisturbed_randomness
from benchmarks.compare.protocol import Protocol
from benchmarks.compare.tasks import ComparedTask, described
from benchmarks.methods import SamplingPolicy
from benchmarks.provenance import package_versions, processor_name
from sb3_diffbc import evaluate_episodes
from sb3_diffbc.demonstrations import DemonstrationWarning

_PACKAGES = ("torch", "stable-baselines3", "imitation", "gymnasium", "mujoco", "numpy")
_WARM_UP = 20


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where results come from.

    Attributes:
        command: how to run them again.
        git_revision: of the code; None outside a repository.
        git_dirty: whether it had changes that are not in the revision.
    """

    command: str
    git_revision: str | None
    git_dirty: bool | None


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a process needs to run one cell.

    Attributes:
        task: on what.
        method: by what.
        seed: of training.
        protocol: how long, and on which episodes.
        sha256: of the demonstrations, which must not have changed since the cell was planned.
        cache: folder for what seeds of a task share.
        origin: for the record.
    """

    task: ComparedTask
    method: ComparedMethod
    seed: int
    protocol: Protocol
    sha256: str
    cache: Path
    origin: Origin

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.task.key} {self.method.key} {self.seed}"


def make_learner(cell: Cell, demonstrations: types.Transitions) -> Learner:
    """Makes a cell's learner, which checks that method, task and demonstrations go together.

    Args:
        cell: whose.
        demonstrations: the task's.

    Returns:
        The learner, not trained.

    Raises:
        ValueError: if the demonstrations do not suit the method.
        TypeError: if the method does not take these spaces.
    """
    observation_space, action_space = cell.task.spaces()
    return cell.method.make(
        Setup(
            task=cell.task,
            demonstrations=demonstrations,
            observation_space=observation_space,
            action_space=action_space,
            seed=cell.seed,
            protocol=cell.protocol,
            cache=cell.cache,
        )
    )


def run_cell(cell: Cell) -> records.Record:
    """Trains and evaluates one cell on one thread.

    Args:
        cell: which.

    Returns:
        The result, as ``benchmarks.records`` writes it.

    Raises:
        ValueError: if the demonstrations are not those that the cell was planned with.
    """
    th.set_num_threads(1)
    with warnings.catch_warnings():
        # Said once, when the comparison starts.
        warnings.simplefilter("ignore", DemonstrationWarning)
        # imitation logs a loss that way at the start of every training.
        warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
        return _run(cell)


def _run(cell: Cell) -> records.Record:
    phases = Phases()
    with phases("prepare"):
        demonstrations = cell.task.demonstrations()
        description = described(cell.task, demonstrations)
        if description["sha256"] != cell.sha256:
            raise ValueError(f"The demonstrations of {cell.task.key} have changed meanwhile.")
        learner = make_learner(cell, demonstrations)
    curve = Curve(cell, learner, phases)
    with phases("training"):
        learner.train(phases, curve)
    with phases("evaluation"):
        scores = evaluate(
            learner.policy, cell.task, cell.protocol.n_episodes, cell.protocol.first_episode_seed
        )
    latency = inference_ms(learner.policy, demonstrations, cell.protocol.n_predictions)
    return {
        **identity(cell, learner.config),
        "demonstrations": dict(description),
        "scores": scores,
        "curve": curve.entries,
        "seconds": _rounded(phases.seconds),
        "cpu_seconds": _rounded(phases.cpu_seconds),
        "env_steps": learner.env_steps,
        "updates": learner.updates,
        "n_parameters": learner.n_parameters,
        "peak_memory_mb": round(peak_memory_mb(), 1),
        "inference_ms": round(latency, 4),
        "versions": versions(),
        **dataclasses.asdict(cell.origin),
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads_per_cell": th.get_num_threads(),
        },
    }


def identity(cell: Cell, config: Mapping[str, Any]) -> records.Record:
    """What makes two results comparable: which cell, with which settings, on which episodes."""
    return {
        "format": records.FORMAT,
        "task": cell.task.key,
        "title": cell.task.title,
        "env": cell.task.env_id,
        "noise_ratio": cell.task.noise_ratio,
        "metric": cell.task.metric,
        "method": cell.method.key,
        "seed": cell.seed,
        "config": as_json(config),
        "first_episode_seed": cell.protocol.first_episode_seed,
        "first_curve_episode_seed": cell.protocol.first_curve_episode_seed,
        "last_checkpoints": cell.protocol.last_checkpoints,
    }


class Curve:
    """Evaluates a learner whenever a checkpoint is due; to be called after each unit of training.

    Args:
        cell: whose.
        learner: what is training.
        phases: charged with "curve", so that training is not.
    """

    def __init__(self, cell: Cell, learner: Learner, phases: Phases) -> None:
        self.entries: list[dict[str, Any]] = []
        self._cell, self._learner, self._phases = cell, learner, phases
        self._due = cell.protocol.checkpoints(learner.length)

    def __call__(self, done: int) -> None:
        if done not in self._due:
            return
        protocol, task = self._cell.protocol, self._cell.task
        with self._phases("curve"):
            scores = evaluate(
                self._learner.policy,
                task,
                protocol.curve_episodes[task.metric],
                protocol.first_curve_episode_seed,
            )
        self.entries.append(
            {
                "updates": self._learner.updates,
                "env_steps": self._learner.env_steps,
                "scores": scores,
            }
        )


def evaluate(
    policy: policies.BasePolicy, task: ComparedTask, n_episodes: int, first_seed: int
) -> list[float]:
    """Scores a policy's most likely actions on episodes that are fixed by their seeds.

    Args:
        policy: what acts; one with random numbers of its own starts them again each time.
        task: where, and what counts.
        n_episodes: how many episodes.
        first_seed: of the first one's reset.

    Returns:
        Returns, or 1 for each success and 0 for each failure.

    Raises:
        RuntimeError: if success counts but an episode does not tell it.
    """
    with undisturbed_randomness():
        if isinstance(policy, SamplingPolicy):
            policy.reset_noise()
        result = evaluate_episodes(policy, task.env, n_episodes=n_episodes, seed=first_seed)
    scores = result.returns if task.metric == "return" else result.successes
    if scores is None:
        raise RuntimeError(f"{task.env_id} did not tell 'is_success' at the end of an episode.")
    return [float(score) for score in scores]


def inference_ms(
    policy: policies.BasePolicy, demonstrations: types.Transitions, n_predictions: int
) -> float:
    """Median milliseconds of one ``predict`` for one observation.

    Args:
        policy: what acts.
        demonstrations: where observations are taken from.
        n_predictions: timed calls.

    Returns:
        The median.
    """
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


def peak_memory_mb() -> float:
    """Peak resident memory of this process in MB."""
    # The kernel's count for the program that runs now: getrusage's may be that of the process
    # which started this one.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6


def versions() -> dict[str, str]:
    """What results depend on."""
    return {**package_versions(*_PACKAGES), "sb3-diffbc": sb3_diffbc.__version__}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(max(value, 0.0), 3) for name, value in seconds.items()}
