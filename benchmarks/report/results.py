"""Result files, read and grouped by task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from statistics import fmean, median
from typing import Any, Literal

from benchmarks.records import METHOD_TITLES, Record, RecordError, read_record
from benchmarks.report.statistics import Estimate, mean
from sb3_diffbc.tasks import TASKS, PaperScore, Task

PAPER_NAMES: Mapping[str, str] = {
    "bc": "bc",
    "bc_paired": "bc",
    "diffusion_bc": "dbc",
    "diffusion_bc_paper": "dbc",
    "implicit_bc": "implicit_bc",
    "diffusion_policy": "diffusion_policy",
    "diffusion_policy_ddim": "diffusion_policy",
}
"""Which of the paper's methods one is compared with; the paper scores no other."""

# The paper's unit of a success rate is percent, and so is the report's.
_FACTORS = {"success": 100.0, "return": 1.0}
_BOUNDS = {"success": (0.0, 100.0), "return": (-math.inf, math.inf)}


@dataclasses.dataclass(frozen=True)
class TaskResults:
    """All results on one task, from the same demonstrations.

    Attributes:
        name: The task's key.
        title: Its name in tables; no two tasks share one.
        env: The environment's id.
        noise_ratio: Noise of start and goal in the evaluation.
        metric: What a score is: success, in percent, or return.
        source: Where the demonstrations come from: a file, or a bundled set's name.
        demonstrations: Further facts about them, as in the result files.
        task: What the library knows of the task; None for a user's own.
        runs: The result files of each method, in the order of `METHOD_TITLES`, by seed.
    """

    name: str
    title: str
    env: str
    noise_ratio: float
    metric: Literal["success", "return"]
    source: str
    demonstrations: Mapping[str, Any]
    task: Task | None
    runs: Mapping[str, tuple[Record, ...]]

    @property
    def unit(self) -> str:
        """What follows a score: a percent sign, or nothing."""
        return " %" if self.metric == "success" else ""

    @property
    def is_on_paper_data(self) -> bool:
        """Whether the demonstrations are the authors' own."""
        return self.task is not None and self.source == self.task.paper_file

    @property
    def is_on_bundled_data(self) -> bool:
        """Whether the demonstrations are those that come with the package."""
        return self.task is not None and self.source == self.task.name

    def records(self) -> list[Record]:
        """All result files."""
        return [record for records in self.runs.values() for record in records]

    def scores(self, method: str) -> dict[int, float]:
        """Gives the scores of the last checkpoint.

        Args:
            method: A key of `METHOD_TITLES`.

        Returns:
            Mean over the episodes for each training seed; empty if there are no results.
        """
        return {
            record["seed"]: self._mean(record["scores"]) for record in self.runs.get(method, ())
        }

    def estimate(self, scores: Sequence[float]) -> Estimate:
        """Gives the mean of seeds' scores with Student's interval, within what is possible."""
        lowest, highest = _BOUNDS[self.metric]
        return mean(scores).within(lowest, highest)

    def last_checkpoints(self, method: str) -> dict[int, float]:
        """Gives the means over the last checkpoints of the learning curve.

        Args:
            method: A key of `METHOD_TITLES`.

        Returns:
            Mean over checkpoints and episodes for each training seed that has a curve.
        """
        found = {}
        for record in self.runs.get(method, ()):
            count = record["last_checkpoints"]
            last = record["curve"][-count:] if count else []
            if last:
                found[record["seed"]] = fmean(
                    self._mean(checkpoint["scores"]) for checkpoint in last
                )
        return found

    def curve(self, method: str) -> dict[int, list[float]]:
        """Gives the learning curves.

        Args:
            method: A key of `METHOD_TITLES`.

        Returns:
            The seeds' scores by the number of updates, or of environment steps for methods that
            learn in the environment, in rising order.
        """
        points: dict[int, list[float]] = {}
        for record in self.runs.get(method, ()):
            for checkpoint in record["curve"]:
                place = checkpoint["env_steps" if record["env_steps"] else "updates"]
                points.setdefault(place, []).append(self._mean(checkpoint["scores"]))
        return dict(sorted(points.items()))

    def is_interactive(self, method: str) -> bool:
        """Whether the method learned in the environment."""
        return any(record["env_steps"] for record in self.runs.get(method, ()))

    def median(self, method: str, *path: str) -> float | None:
        """Gives the median over seeds of what was measured.

        Args:
            method: A key of `METHOD_TITLES`.
            *path: Field of the result files, and within it.

        Returns:
            The median; None if no file has the field.
        """
        found = []
        for record in self.runs.get(method, ()):
            value: Any = record
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                found.append(value)
        return median(found) if found else None

    def training_cost(self, method: str) -> float | None:
        """Median over seeds of the CPU seconds of training, the critic's included."""
        costs = [
            record["cpu_seconds"]["training"] + record["cpu_seconds"].get("critic", 0.0)
            for record in self.runs.get(method, ())
        ]
        return median(costs) if costs else None

    def paper(self, method: str) -> PaperScore | None:
        """The paper's score, in percent for a success rate; None if it has none."""
        if self.task is None or method not in PAPER_NAMES:
            return None
        return self.task.paper.get(PAPER_NAMES[method])

    def _mean(self, scores: Sequence[float]) -> float:
        return fmean(scores) * _FACTORS[self.metric]


@dataclasses.dataclass(frozen=True)
class Results:
    """What a folder holds.

    Attributes:
        tasks: In the paper's order, then by name.
        problems: Files that were left out, and why.
    """

    tasks: tuple[TaskResults, ...]
    problems: tuple[str, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that have a result anywhere, in the order of `METHOD_TITLES`."""
        return tuple(m for m in METHOD_TITLES if any(m in task.runs for task in self.tasks))


def read_results(folder: Path) -> Results:
    """Reads all result files of a folder.

    Files that are no results, or damaged, are left out and named. Runs on other demonstrations,
    another environment or another noise are another task, even if they share its folder.

    Args:
        folder: With the files at `<task>/<method>/<seed>.json`.

    Returns:
        The results; no tasks if there are no files or no folder.
    """
    records, problems = [], []
    for path in sorted(folder.rglob("*.json")):
        try:
            records.append(read_record(path))
        except RecordError as error:
            # Paths of the machine are of no use to who reads the report elsewhere.
            problems.append(str(error).replace(f"{folder}/", ""))
    return Results(tuple(_grouped(records)), tuple(problems))


def _grouped(records: Iterable[Record]) -> list[TaskResults]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        key = (
            _place(record),
            record["task"],
            record["demonstrations"]["source"],
            record["demonstrations"]["sha256"],
            record["env"],
            record["noise_ratio"],
            record["metric"],
        )
        groups.setdefault(key, []).append(record)
    members = [groups[key] for key in sorted(groups)]
    titles = _distinct_titles([group[0] for group in members])
    return [_task_results(group, title) for group, title in zip(members, titles, strict=True)]


def _task_results(records: Sequence[Record], title: str) -> TaskResults:
    first = records[0]
    runs = {
        method: tuple(
            sorted((r for r in records if r["method"] == method), key=lambda r: r["seed"])
        )
        for method in METHOD_TITLES
    }
    return TaskResults(
        name=first["task"],
        title=title,
        env=first["env"],
        noise_ratio=first["noise_ratio"],
        metric=first["metric"],
        source=_source(first),
        demonstrations=first["demonstrations"],
        task=known_task(first),
        runs={method: found for method, found in runs.items() if found},
    )


def _distinct_titles(firsts: Sequence[Record]) -> list[str]:
    """Adds to titles that occur more than once what tells them apart."""
    titles = [record["title"] for record in firsts]
    for name in (_source, lambda r: f"noise {r['noise_ratio']:g}", lambda r: r["task"]):
        titles = [
            f"{title} ({name(record)})" if titles.count(title) > 1 else title
            for title, record in zip(titles, firsts, strict=True)
        ]
    return [
        f"{title} {titles[: place + 1].count(title)}" if titles.count(title) > 1 else title
        for place, title in enumerate(titles)
    ]


def known_task(record: Record) -> Task | None:
    """Gives the library's task that a result belongs to.

    Args:
        record: A result.

    Returns:
        The task of this environment that has the record's name or whose demonstrations (bundled,
        or the authors' file) it was made with; None for a user's own.
    """
    for task in TASKS.values():
        if record["env"] == task.env_id and (
            record["task"] == task.name or _source(record) in (task.name, task.paper_file)
        ):
            return task
    return None


def _place(record: Record) -> int:
    task = known_task(record)
    return len(TASKS) if task is None else list(TASKS).index(task.name)


def _source(record: Record) -> str:
    return PurePath(record["demonstrations"]["source"]).name or "demonstrations"
