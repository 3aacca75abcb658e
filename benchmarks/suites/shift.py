"""Generalisation: what becomes of cloning where episodes are not like the demonstrated ones.

What follows ``@`` in a task's key is what its demonstrations cover. ``fetch_pick@1`` and
``ant_reach@0`` are demonstrated at this noise ratio, and each training is scored at larger ones,
too: the mean over the evaluation's episodes at a ratio of 1.5 is the measure ``score/noise_1.5``.
``ant_reach_marked@0`` observes what the authors' observes, too, see
:mod:`benchmarks.marked_ant_reach`.
In ``maze-paper@25`` goals lie in a quarter of the maze's cells, and anywhere in the evaluation.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from gymnasium.envs.registration import EnvSpec
from imitation.data import types
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from benchmarks import record
from benchmarks.experts.demonstrations import collect
from benchmarks.marked_ant_reach import marked_spec
from benchmarks.methods.base import Variant
from benchmarks.problems import PAPER, Problem, find_problem
from benchmarks.suites import labels
from sb3_diffbc import load_expert
from sb3_diffbc.demonstrations.trajectories import some_rows
from sb3_diffbc.envs.maze import FREE_CELLS, Cell, cell_of
from sb3_diffbc.policies import DEFAULT_NET_ARCH
from sb3_diffbc.tasks import TASKS, Task, find_task

NAME = "shift"
FETCH_PICK, ANT_REACH, MARKED = "fetch_pick@1", "ant_reach@0", "ant_reach_marked@0"
ANT_REACH_RATIOS = (0.0, 1.0, 3.0, 5.0)
"""Of the start's noise, which is 0.01 at a ratio of 1; demonstrations have none."""
ANT_REACH_TRANSITIONS = 10_000
GOAL_PERCENTAGES = (25, 50, 75, 100)
"""Of the maze's cells, in which demonstrated goals lie."""

_SEED = 0


@dataclasses.dataclass(frozen=True)
class RecordedProblem(Problem):
    """A task whose expert is recorded in ``training_env`` the first time it is needed.

    It is told the first entries of observations that are longer than its own.

    Attributes:
        n_transitions: to record at least, in whole successful episodes.
    """

    n_transitions: int = 1

    def demonstrations(self) -> types.Transitions:
        """Loads the recording from ``source``, where it stays; makes it if it is not there."""
        path = Path(self.source)
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if not path.exists():
                expert, task = _told_its_own(load_expert(self.task)), find_task(self.task)
                found = collect(expert, task, _SEED, 1, self.n_transitions, self.training_env)
                # What a killed run leaves must not look like a recording.
                unfinished = path.with_suffix(".unfinished.npz")
                np.savez_compressed(unfinished, **found.arrays)  # type: ignore[arg-type]
                unfinished.replace(path)
        return super().demonstrations()


def _told_its_own(expert: BasePolicy) -> BasePolicy:
    """Returns an expert that takes longer observations, which begin with its own."""
    assert expert.observation_space.shape is not None
    [n_own] = expert.observation_space.shape
    told = copy.copy(expert)

    def predict(obs: np.ndarray, **given: Any) -> Any:
        return expert.predict(obs[:n_own], **given)

    told.predict = predict  # type: ignore[assignment, method-assign]
    return told


@dataclasses.dataclass(frozen=True)
class CoveredMaze(Problem):
    """The maze with those demonstrations whose goals are in some of the cells.

    Starts are as they were: paths lead through cells in which no demonstration begins.

    Attributes:
        percentage: of the free cells.
    """

    percentage: int = 100

    def covered(self) -> frozenset[Cell]:
        """Returns the cells; those of a smaller percentage are among those of a larger one."""
        order = np.random.default_rng(_SEED).permutation(len(FREE_CELLS))
        n_cells = math.ceil(len(FREE_CELLS) * self.percentage / 100)
        return frozenset(FREE_CELLS[place] for place in order[:n_cells])

    def demonstrations(self) -> types.Transitions:
        """As the base class says."""
        transitions, covered = super().demonstrations(), self.covered()
        goals = types.assert_not_dictobs(transitions.obs)[:, 4:6]
        # All rows of a trajectory have one goal, so that it is kept or left out as a whole.
        kept = np.array([cell_of(goal) in covered for goal in goals])
        return some_rows(transitions, kept)


def _fetch_pick(key: str, paper_data: Path | None) -> Problem:
    task = TASKS["fetch_pick"]
    return _at_noise_ratios(task, key, {ratio: task.spec(ratio) for ratio in task.noise_ratios})


def _ant_reach(key: str, paper_data: Path | None) -> Problem:
    task, is_marked = TASKS["ant_reach"], key == MARKED
    specs = {
        # Goals stay on the half circle: on a larger part of it, they would be another task.
        ratio: marked_spec(ratio) if is_marked else task.spec(ratio, 1.0)
        for ratio in ANT_REACH_RATIOS
    }
    bundled = _at_noise_ratios(task, key, specs)
    marked = " with its marker observed" if is_marked else ""
    changes = {
        "title": f"{bundled.title}{marked}, demonstrated without start noise",
        "source": str(record.RUNS / NAME / f"{key}.npz"),
    }
    return RecordedProblem(**vars(bundled) | changes, n_transitions=ANT_REACH_TRANSITIONS)


def _at_noise_ratios(task: Task, key: str, specs: Mapping[float, EnvSpec]) -> Problem:
    """Returns a task at the first noise ratio, with the others to be scored at, too."""
    (demonstrated, env), *others = specs.items()
    return dataclasses.replace(
        find_problem(task.name),
        key=key,
        env=env,
        training_env=env,
        noise_ratio=demonstrated,
        further_envs={f"noise_{ratio:g}": other for ratio, other in others},
    )


def _maze(key: str, paper_data: Path | None) -> Problem:
    name, _, percentage = key.partition("@")
    everywhere = find_problem(name, paper_data)
    title = f"{everywhere.title}, goals in {percentage} % of the cells"
    return CoveredMaze(
        **vars(everywhere) | {"key": key, "title": title}, percentage=int(percentage)
    )


_PROBLEMS: Mapping[str, Callable[[str, Path | None], Problem]] = {
    FETCH_PICK: _fetch_pick,
    ANT_REACH: _ant_reach,
    MARKED: _ant_reach,
    **{f"maze{end}@{share}": _maze for end in ("", PAPER) for share in GOAL_PERCENTAGES},
}


def shift_problem(key: str, paper_data: Path | None = None) -> Problem:
    """Returns a problem of this study.

    Raises:
        ValueError: if there is none of this key, or the authors' file is missing.
    """
    if key not in _PROBLEMS:
        raise ValueError(f"tasks: found {key!r}, expected some of {', '.join(_PROBLEMS)}.")
    return _PROBLEMS[key](key, paper_data)


def _default_tasks(paper_data: Path | None) -> tuple[str, ...]:
    maze = "maze" if paper_data is None else f"maze{PAPER}"
    return (FETCH_PICK, ANT_REACH, MARKED, *(f"{maze}@{share}" for share in GOAL_PERCENTAGES))


_RAW: dict[str, Any] = {"net_arch": {"pi": list(DEFAULT_NET_ARCH), "vf": []}}


def _raw(variant: Variant) -> Variant:
    """Returns a variant whose policy takes observations as they are, as the release's AntReach."""
    kwargs = {**_RAW, **variant.arguments.get("policy_kwargs", {})}
    arguments = {**variant.arguments, "policy": ActorCriticPolicy, "policy_kwargs": kwargs}
    return dataclasses.replace(variant, name=f"raw {variant.name}", arguments=arguments)


_TRIED_RAW = (
    *("mse, BC", "nll, BC", "l1, BC", "mse, weight decay", "mse, dropout"),
    *(f"mse, {models} {dm_coef}" for models in ("p(a|s)", "p(s,a)") for dm_coef in (1, 3, 10)),
)
_RAW_VARIANTS = tuple(_raw(v) for v in labels.SUITE.variants if v.name in _TRIED_RAW)

SUITE = dataclasses.replace(
    labels.SUITE,
    name=NAME,
    variants=(*labels.SUITE.variants, *_RAW_VARIANTS),
    default_variants=(
        *(
            f"{loss}, {critic}"
            for loss in ("nll", "mse", "l1")
            for critic in ("BC", "p(a|s) 1", "p(a|s) 3")
        ),
        "mse, observation noise",
    ),
    default_tasks=_default_tasks,
    problem=shift_problem,
)
