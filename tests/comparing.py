"""A toy problem, tiny sizes and misbehaving methods for the tests of the grid runner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from toys import CRITIC_KWARGS, LINE_ENV_ID, LineEnv, transitions

from benchmarks.cell import Cell, Evaluation
from benchmarks.methods import METHODS
from benchmarks.methods.base import Setup, Variant
from benchmarks.methods.bc import PlainBC
from benchmarks.problems import Problem, own_problem
from benchmarks.suites.base import Suite

ORIGIN = {"command": "python -m benchmarks", "git_revision": "abc123", "git_dirty": False}
TINY = Evaluation(
    n_episodes={"success": 4, "return": 4},
    first_episode_seed=0,
    n_checkpoints=3,
    curve_episodes={"success": 2, "return": 2},
    n_predictions=2,
)
SIZES: dict[str, dict[str, Any]] = {
    "diffusion_bc": {"n_updates": 12, "critic_kwargs": CRITIC_KWARGS},
    "gail": {"n_env_steps": 2_048},
    "airl": {"n_env_steps": 2_048},
}


def tiny(name: str, **arguments: Any) -> Variant:
    """A method of the comparison that trains for a moment."""
    return resized(METHODS[name], **{**SIZES.get(name, {"n_updates": 12}), **arguments})


def resized(variant: Variant, **arguments: Any) -> Variant:
    """A variant with other arguments."""
    return dataclasses.replace(variant, arguments={**variant.arguments, **arguments})


def write_demonstrations(path: Path, seed: int = 0) -> Path:
    """Saves demonstrations for the line that no two seeds share."""
    data = transitions(LineEnv.observation_space, LineEnv.action_space, n=200, seed=seed)
    dones = np.arange(1, len(data) + 1) % 5 == 0
    np.savez(path, obs=data.obs, acts=data.acts, next_obs=data.obs + 1, dones=dones)
    return path


def line_problem(folder: Path, seed: int = 0) -> Problem:
    """The problem of ending right of 0, whose episodes have a few steps.

    To the paper's settings it is a maze.
    """
    source = write_demonstrations(folder / f"line{seed}.npz", seed)
    return dataclasses.replace(own_problem(LINE_ENV_ID, str(source), "success"), task="maze")


def line_suite(folder: Path, *variants: Variant, **changes: Any) -> Suite:
    """A suite of the toy problem."""
    problem = line_problem(folder)
    fields: dict[str, Any] = {
        "name": "toys",
        "variants": variants or (tiny("bc"),),
        "evaluation": TINY,
        "default_tasks": lambda _: (problem.key,),
        "first_seed": 100,
        "problem": lambda key, _: problem,
    }
    return Suite(**{**fields, **changes})


def line_cells(folder: Path, *variants: Variant, n_seeds: int = 1, **changes: Any) -> list[Cell]:
    """The cells of such a suite."""
    cells, notes = line_suite(folder, *variants, **changes).cells(ORIGIN, n_seeds=n_seeds)
    assert not notes
    return cells


def line_setup(folder: Path, **changes: Any) -> Setup:
    """What a method is given to learn the toy problem."""
    [cell] = line_cells(folder)
    return dataclasses.replace(cell.setup(), **changes)


class FailingBC(PlainBC):
    """Raises when it trains."""

    def train(self, on_progress: Callable[[], None]) -> None:
        raise RuntimeError("fails on purpose")


FAILING = Variant("failing", FailingBC)
