"""The README's part of the comparison: the table, the verdicts and the figure of scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.readme_parts import marks, with_part
from benchmarks.records import METHOD_TITLES
from benchmarks.report.comparisons import MAIN, Pair, compare, pairs
from benchmarks.report.results import Results, TaskResults
from benchmarks.report.words import (
    NOTHING,
    episode_counts,
    number,
    span,
    tally,
    with_interval,
    with_std,
)
from benchmarks.tables import table

NAME = "comparison"
MARKS = marks(NAME)


def with_comparison(text: str, part: str) -> str:
    """Puts the comparison between the two marks that are there for it.

    Args:
        text: Of a README with the lines `<!-- comparison -->` and `<!-- /comparison -->`.
        part: What goes between them.

    Returns:
        The text with that part in the place of what was there.

    Raises:
        ValueError: If a mark is missing.
    """
    return with_part(text, NAME, part)


def readme_part(results: Results, report: Path, figure: Path, folder: Path) -> str:
    """Gives what the README shows.

    Args:
        results: At least one task.
        report: The report's place.
        figure: That of the figure of scores.
        folder: The README's.

    Returns:
        Markdown, without a line break at its end.
    """
    ours = METHOD_TITLES[MAIN.first]
    main = [comparison for task in results.tasks if (comparison := compare(task, MAIN))]
    return "\n\n".join(
        [
            scores_table(results),
            f"Success in percent or mean return over {episode_counts(results)} episodes; mean ± "
            "standard deviation over training seeds, in brackets the paper's mean "
            f"({_demonstrations(results.tasks)}).",
            f"{ours} minus each other method, with the 95 % interval over training seeds. "
            f"{METHOD_TITLES[MAIN.second]} lacks nothing but L_DM: there runs of the same seed are "
            f"compared, and {tally(main) if main else 'none are there yet.'}",
            differences_table(results),
            f"![Scores by method and task]({_link(figure, folder)})",
            f"[{report.name}]({_link(report, folder)}) has costs, learning curves, all comparisons "
            "and how each number was made.",
        ]
    )


def scores_table(results: Results) -> str:
    """Gives the table of all tasks and methods.

    Args:
        results: At least one task.

    Returns:
        A Markdown table.
    """
    header = ["method", *(f"{task.title}{task.unit and ','}{task.unit}" for task in results.tasks)]
    rows = [
        [
            METHOD_TITLES[method],
            *(_cell(task, method) for task in results.tasks),
            span(len(task.runs[method]) for task in results.tasks if method in task.runs),
        ]
        for method in results.methods
    ]
    return table([*header, "seeds"], rows)


def differences_table(results: Results) -> str:
    """Gives how DiffusionBC compares with every other method on every task.

    Args:
        results: At least one task.

    Returns:
        A Markdown table.
    """
    ours = [pair for pair in pairs(results.methods) if pair.first == MAIN.first]
    header = [f"{METHOD_TITLES[MAIN.first]} against", *(task.title for task in results.tasks)]
    rows = [
        [METHOD_TITLES[pair.second], *(_difference(task, pair) for task in results.tasks)]
        for pair in ours
    ]
    return table(header, rows)


def _difference(task: TaskResults, pair: Pair) -> str:
    comparison = compare(task, pair)
    if comparison is None:
        return NOTHING
    verdict = comparison.difference.verdict or "no verdict"
    return f"{verdict}: {with_interval(comparison.difference)}"


def _cell(task: TaskResults, method: str) -> str:
    paper = task.paper(method)
    scores = with_std(task.scores(method).values())
    return scores if paper is None or scores == NOTHING else f"{scores} ({number(paper.mean)})"


def _demonstrations(tasks: Sequence[TaskResults]) -> str:
    known = [task for task in tasks if task.task is not None]
    others = ", ".join(task.title for task in known if not task.is_on_paper_data)
    if not others:
        return "from the same demonstrations" if known else "where it has one"
    return f"from other demonstrations than here for {others}"


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
