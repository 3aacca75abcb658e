"""One method against another, on a task and over tasks, and against what was aimed at."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.report import statistics
from benchmarks.report.results import Results, TaskResults
from benchmarks.report.scales import Scale
from benchmarks.report.statistics import Estimate
from sb3_diffbc.tasks import TASKS

Scaled = tuple[TaskResults, Scale]
"""A task, and the scale that its scores share with others'."""

_FEWEST_TASKS = 2  # for something to be said over tasks


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two methods to compare; paired ones by the differences of runs of the same seed."""

    first: str
    second: str
    is_paired: bool = False


MAIN = Pair("diffusion_bc", "bc_paired", is_paired=True)
"""The pair that differs by L_DM alone."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        pair: The methods.
        first: Scores of the first, of shape `(n_seeds, n_tasks)`; over several tasks with the
            number of seeds of the task with the fewest.
        second: Those of the second; of the same seeds if paired.
        difference: First mean minus second: in the task's own unit, over tasks on their shared
            scale.
    """

    pair: Pair
    first: np.ndarray
    second: np.ndarray
    difference: Estimate

    @property
    def n_seeds(self) -> tuple[int, int]:
        """Runs of the first and of the second."""
        return len(self.first), len(self.second)

    @property
    def n_tasks(self) -> int:
        """How many tasks it is about."""
        return self.first.shape[1]

    def improvement(self) -> Estimate:
        """Works out, by bootstrap, how likely a run of the first beats one of the second."""
        return statistics.probability_of_improvement(self.first, self.second)


@dataclasses.dataclass(frozen=True)
class Target:
    """What DiffusionBC should reach on the authors' demonstrations: the paper's own score.

    Attributes:
        title: The task.
        score: To be reached at least.
        unit: Of the score.
        n_seeds: Training seeds that were measured.
        measured: Mean over them; None for none.
    """

    title: str
    score: float
    unit: str
    n_seeds: int
    measured: Estimate | None

    @property
    def is_met(self) -> bool | None:
        """Whether the mean reaches it, rounding errors aside; None if it is not measured."""
        return None if self.measured is None else self.measured.value >= self.score - 1e-9


def pairs(methods: Sequence[str]) -> list[Pair]:
    """Gives the comparisons to make, the main one first.

    Args:
        methods: Those with results.

    Returns:
        DiffusionBC and its paired BC, DiffusionBC with the paper's settings and that BC, and
        DiffusionBC and every other method.
    """
    others = [method for method in methods if method not in (MAIN.first, MAIN.second)]
    wanted = [MAIN, Pair("diffusion_bc_paper", MAIN.second)]
    wanted += [Pair(MAIN.first, method) for method in others]
    return [pair for pair in wanted if {pair.first, pair.second} <= set(methods)]


def compare(results: TaskResults, pair: Pair) -> Comparison | None:
    """Compares two methods on a task.

    Args:
        results: The task.
        pair: The methods.

    Returns:
        What was found; None if there are no runs to compare.
    """
    found = _samples(results, pair)
    if found is None:
        return None
    first, second = found
    return Comparison(
        pair,
        statistics.matrix([first]),
        statistics.matrix([second]),
        statistics.weighted_sum_of_means(_terms(found, pair, 1.0)),
    )


def compare_over_tasks(tasks: Sequence[Scaled], pair: Pair) -> Comparison | None:
    """Compares two methods over tasks, each of which counts the same.

    Args:
        tasks: Tasks and their scales.
        pair: The methods.

    Returns:
        What was found on the tasks where the difference has an interval; None if there are fewer
        than two.
    """
    found = []
    for results, scale in tasks:
        samples = _samples(results, pair)
        if samples is not None and min(map(len, samples)) > 1:
            first, second = samples
            found.append((scale.normalised(first), scale.normalised(second)))
    if len(found) < _FEWEST_TASKS:
        return None
    terms = [term for samples in found for term in _terms(samples, pair, 1 / len(found))]
    return Comparison(
        pair,
        statistics.matrix([first for first, _ in found]),
        statistics.matrix([second for _, second in found]),
        statistics.weighted_sum_of_means(terms),
    )


def complete_part(tasks: Sequence[Scaled]) -> tuple[list[Scaled], list[str]]:
    """Gives tasks and methods of which every combination has results.

    What is said over several tasks must be about the same tasks for all methods.

    Args:
        tasks: Tasks and their scales, with gaps.

    Returns:
        The part with the most combinations among those that drop the tasks with the fewest
        methods, and its methods, in the order of the tables; nothing if it is a single task.
    """

    def methods(part: Sequence[Scaled]) -> list[str]:
        first, *rest = (results.runs for results, _ in part)
        return [method for method in first if all(method in runs for runs in rest)]

    fullest = sorted(tasks, key=lambda scaled: -len(scaled[0].runs))
    parts = [fullest[: n + 1] for n in range(len(fullest))]
    best = max(parts, key=lambda part: (len(part) * len(methods(part)), len(part)), default=[])
    if len(best) < _FEWEST_TASKS:
        return [], []
    titles = {results.title for results, _ in best}
    return [scaled for scaled in tasks if scaled[0].title in titles], methods(best)


def targets(results: Results) -> Iterator[Target]:
    """Gives the targets on the authors' demonstrations.

    Args:
        results: What there is.

    Yields:
        A target for each task whose demonstrations the authors published.
    """
    for task in TASKS.values():
        if task.paper_file is None:
            continue
        unit = " %" if task.metric == "success" else ""
        found = [r for r in results.tasks if r.is_on_paper_data and r.task == task]
        scores = [list(r.scores(MAIN.first).values()) for r in found if MAIN.first in r.runs]
        n_seeds, measured = 0, None
        if scores:
            n_seeds, measured = len(scores[0]), found[0].estimate(scores[0])
        yield Target(task.title, task.paper["dbc"].mean, unit, n_seeds, measured)


def _samples(results: TaskResults, pair: Pair) -> tuple[list[float], list[float]] | None:
    first, second = results.scores(pair.first), results.scores(pair.second)
    if pair.is_paired:
        seeds = sorted(set(first) & set(second))
        first = {seed: first[seed] for seed in seeds}
        second = {seed: second[seed] for seed in seeds}
    if not (first and second):
        return None
    return list(first.values()), list(second.values())


def _terms(
    samples: tuple[list[float], list[float]], pair: Pair, weight: float
) -> list[tuple[float, list[float]]]:
    first, second = samples
    if pair.is_paired:
        return [(weight, [a - b for a, b in zip(first, second, strict=True)])]
    return [(weight, first), (-weight, second)]
