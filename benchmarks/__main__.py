"""Runs suites of experiments and tells what there is of them.

    python -m benchmarks list comparison
    python -m benchmarks run comparison --paper-data FOLDER --jobs 2
    python -m benchmarks run own --env Hopper-v4 --demos my.npz --variants bc diffusion_bc
    python -m benchmarks gather comparison
    python -m benchmarks report comparison
    python -m benchmarks speed
    python -m benchmarks demonstrate maze fetch_pick

A run can be stopped at any time: finished cells stay in ``runs/``, and the same command goes on
with the others. ``gather`` puts them into the committed table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import torch as th
import tqdm
import tyro

from benchmarks import record
from benchmarks.cell import Cell
from benchmarks.experts.commands import (
    Demonstrate,
    DrawTasks,
    ScoreExperts,
    TrainExperts,
    WriteTasksPage,
)
from benchmarks.problems import own_problem
from benchmarks.report.writing import Report
from benchmarks.runner import Outcome, run_grid
from benchmarks.speed.command import Speed
from benchmarks.suites import SUITES
from benchmarks.suites.base import Suite

OWN = "own"
"""Name of the suite of a user's own task: the comparison's methods and budgets."""

SuiteName = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SUITE")]


@dataclasses.dataclass
class Selection:
    """What to run."""

    suite: SuiteName
    """Name of a suite, see ``benchmarks/suites``, or ``own`` for your own task."""
    tasks: tuple[str, ...] = ()
    """Keys of its tasks; by default those that the suite is about."""
    variants: tuple[str, ...] = ()
    """Names of its variants; see ``list``."""
    seeds: int | None = None
    """Number of training seeds; the suite's own by default."""
    paper_data: Path | None = None
    """Folder of the authors' .pt files."""
    env: str | None = None
    """For ``own``: id of the environment."""
    demos: str | None = None
    """For ``own``: the demonstrations, as ``load_demonstrations`` reads them."""
    metric: Literal["success", "return"] = "return"
    """For ``own``: what counts."""

    def __post_init__(self) -> None:
        names = [*SUITES, OWN]
        if self.suite not in names:
            raise ValueError(f"suite: found {self.suite!r}, expected one of {', '.join(names)}.")
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"--seeds: found {self.seeds}, expected at least 1.")
        if (self.suite == OWN) != (self.env is not None and self.demos is not None):
            raise ValueError(f"--env and --demos go with the suite {OWN!r}, which needs both.")

    def find_suite(self) -> Suite:
        """Returns the suite."""
        if self.suite != OWN:
            return SUITES[self.suite]
        assert self.env is not None
        assert self.demos is not None
        problem = own_problem(self.env, self.demos, self.metric)
        comparison = SUITES["comparison"]
        return dataclasses.replace(
            comparison,
            name=OWN,
            default_tasks=lambda _: (problem.key,),
            problem=lambda key, _: problem,
        )

    def cells(self, suite: Suite) -> tuple[list[Cell], list[str]]:
        """Returns the suite's selected cells, and notes on what does not go together."""
        # As in cells, so that demonstrations that a training makes are the same here and there.
        th.set_num_threads(1)
        # Folders differ from machine to machine.
        shown = ("FOLDER" if text == str(self.paper_data) else text for text in sys.argv[1:])
        command = shlex.join(["python", "-m", "benchmarks", *shown])
        return suite.cells(
            {"command": command, **git_revision()},
            tasks=self.tasks,
            variants=self.variants,
            n_seeds=self.seeds,
            paper_data=self.paper_data,
        )


def git_revision() -> dict[str, Any]:
    """Returns the repository's revision and whether the code differs; None outside of one."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(record.ROOT), *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return {"git_revision": git("rev-parse", "HEAD"), "git_dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return {"git_revision": None, "git_dirty": None}


def missing(cells: list[Cell], folder: Path, table: Path | None) -> list[Cell]:
    """Returns the cells without a valid record in the folder or the table, and says why."""
    finished, problems = record.read_folder(folder)
    for problem in problems:
        print(f"runs again: {problem}")
    records = (record.read_table(table) if table is not None else {}) | finished
    left = [cell for cell in cells if cell.key not in records]
    for cell in cells:
        if cell.key in records and (difference := cell.difference(records[cell.key])):
            print(f"runs again: {cell.name}: other {difference}")
            left.append(cell)
    return left


@dataclasses.dataclass
class List(Selection):
    """Tells which cells of a suite are done and which are missing."""

    def run(self) -> int:
        """Prints one line per task and variant, and the names of all variants."""
        suite = self.find_suite()
        cells, notes = self.cells(suite)
        print(*notes, sep="\n", end="\n" if notes else "")
        left = missing(cells, record.RUNS / suite.name, record.RESULTS / f"{suite.name}.parquet")
        n_left = Counter(cell.key[:2] for cell in left)
        for (task, variant), count in Counter(cell.key[:2] for cell in cells).items():
            print(f"{task:16} {variant:40} {count - n_left[task, variant]} of {count} done")
        print(f"variants: {', '.join(repr(variant.name) for variant in suite.variants)}")
        return 0


@dataclasses.dataclass
class Run(Selection):
    """Runs the cells of a suite that have no result yet."""

    jobs: int = 2
    """Cells at a time; with Ray, -1 for as many as it has processors."""
    ray: str | None = None
    """Address of a Ray cluster; ``local`` starts one here."""
    again: bool = False
    """Run cells that the committed table has, too: to see whether they come out the same."""

    def run(self) -> int:
        """Returns 0 if all went well, 1 if a cell failed, 130 if it was interrupted."""
        suite = self.find_suite()
        folder = record.RUNS / suite.name
        table = None if self.again else record.RESULTS / f"{suite.name}.parquet"
        cells, notes = self.cells(suite)
        for note in notes:
            print(f"left out: {note}")
        left = missing(cells, folder, table)
        print(f"{len(cells) - len(left)} of {len(cells)} cells are done; records are in {folder}")
        failed = []
        try:
            with contextlib.closing(run_grid(left, folder, self.jobs, self.ray)) as outcomes:
                for outcome in (bar := tqdm.tqdm(outcomes, total=len(left), unit="cell")):
                    bar.write(summary(outcome))
                    if outcome.error is not None:
                        failed.append(outcome)
        except KeyboardInterrupt:
            print("\nInterrupted. Finished cells are kept; the same command goes on with the rest.")
            return 130
        for outcome in failed:
            print(f"failed: {outcome.cell.name}: {outcome.error}", file=sys.stderr)
        return 1 if failed or (self.variants and notes) else 0


def summary(outcome: Outcome) -> str:
    """Returns one line on a finished cell."""
    if outcome.record is None and outcome.error is None:
        return f"{outcome.cell.name}: another run is at it"
    if outcome.record is None:
        reason = (outcome.error or "").strip().splitlines()[-1]
        return f"{outcome.cell.name}: FAILED: {reason}"
    score = fmean(outcome.record.scores)
    text = f"success {score:.0%}" if outcome.record.metric == "success" else f"return {score:.1f}"
    return f"{outcome.cell.name}: {text}"


@dataclasses.dataclass
class Gather:
    """Puts the finished cells of a suite into its table, ``benchmarks/results/<suite>.parquet``."""

    suite: SuiteName
    """Name of the suite."""

    def run(self) -> int:
        """Writes the table."""
        print(record.gather(self.suite))
        return 0


COMMANDS: dict[str, Callable[..., Any]] = {
    "run": Run,
    "list": List,
    "gather": Gather,
    "report": Report,
    "speed": Speed,
    "train-experts": TrainExperts,
    "score-experts": ScoreExperts,
    "demonstrate": Demonstrate,
    "draw-tasks": DrawTasks,
    "write-tasks-page": WriteTasksPage,
}
"""The subcommands: each a dataclass whose method ``run`` may return an exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Command line; takes the process's arguments if None."""
    try:
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments,
            prog="python -m benchmarks",
            description=__doc__,
            config=(tyro.conf.PositionalRequiredArgs,),
        )
        return command.run() or 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
