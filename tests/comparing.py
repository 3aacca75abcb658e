"""A toy task, tiny budgets and misbehaving methods for the tests of the comparison."""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from toys import CRITIC_KWARGS, LINE_ENV_ID, LineEnv, transitions

from benchmarks.compare import offline
from benchmarks.compare.cells import Cell, Origin
from benchmarks.compare.learners import Setup
from benchmarks.compare.methods import METHODS, ComparedMethod
from benchmarks.compare.phases import Phases
from benchmarks.compare.protocol import Protocol
from benchmarks.compare.tasks import ComparedTask, described, own

TINY = Protocol(
    n_episodes=4,
    n_checkpoints=3,
    curve_episodes={"success": 2, "return": 2},
    last_checkpoints=2,
    n_predictions=2,
    updates=12,
    paper_updates=12,
    paper_critic_steps=10,
    critic_kwargs=CRITIC_KWARGS,
    interactive_steps=2_048,
)


def write_demonstrations(path: Path, seed: int = 0) -> Path:
    """Saves demonstrations for the line that no two seeds share."""
    data = transitions(LineEnv.observation_space, LineEnv.action_space, n=200, seed=seed)
    dones = np.arange(1, len(data) + 1) % 5 == 0
    np.savez(path, obs=data.obs, acts=data.acts, next_obs=data.obs + 1, dones=dones)
    return path


def line_task(folder: Path, seed: int = 0, **changes: Any) -> ComparedTask:
    """The task of ending right of 0, whose episodes have a few steps.

    The paper's settings for it are the smallest.
    """
    source = write_demonstrations(folder / f"line{seed}.npz", seed)
    return dataclasses.replace(own(LINE_ENV_ID, str(source)), **{"name": "maze", **changes})


def make_cell(
    folder: Path,
    method: str | ComparedMethod = "bc",
    *,
    task: ComparedTask | None = None,
    seed: int = 100,
    protocol: Protocol = TINY,
) -> Cell:
    """A cell of the toy task."""
    task = line_task(folder) if task is None else task
    return Cell(
        task=task,
        method=METHODS[method] if isinstance(method, str) else method,
        seed=seed,
        protocol=protocol,
        sha256=described(task, task.demonstrations())["sha256"],
        cache=folder / "critics",
        origin=Origin("python -m benchmarks.compare", "abc123", False),
    )


def setup_of(cell: Cell) -> Setup:
    """What a cell's method is given."""
    observation_space, action_space = cell.task.spaces()
    return Setup(
        task=cell.task,
        demonstrations=cell.task.demonstrations(),
        observation_space=observation_space,
        action_space=action_space,
        seed=cell.seed,
        protocol=cell.protocol,
        cache=cell.cache,
    )


class FailingLearner(offline.PlainBC):
    """Raises when it trains."""

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        raise RuntimeError("fails on purpose")


class DyingLearner(offline.PlainBC):
    """Takes its process along when it trains."""

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class WorkerKillingLearner(offline.PlainBC):
    """Kills whoever waits for its process when it trains, unless the marker says it has done so."""

    def __init__(self, setup: Setup, marker: Path) -> None:
        super().__init__(setup)
        self.marker = marker

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        if not self.marker.exists():
            self.marker.touch()
            parent = multiprocessing.parent_process()
            assert parent is not None
            os.kill(parent.pid, signal.SIGKILL)
            time.sleep(600)
        super().train(phases, on_progress)


def worker_killing(marker: Path) -> ComparedMethod:
    """A method whose first attempt takes the worker along."""
    return ComparedMethod("gail", functools.partial(WorkerKillingLearner, marker=marker), 1.0, 0.01)


FAILING = ComparedMethod("airl", FailingLearner, 1.0, 0.01)
DYING = ComparedMethod("gail", DyingLearner, 1.0, 0.01)
