"""Scores and comparisons as text, for the report and the README."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.records import METHOD_TITLES
from benchmarks.report.comparisons import Comparison
from benchmarks.report.results import Results, TaskResults
from benchmarks.report.statistics import Estimate, mean_and_std

NOTHING = "–"
_MOST_DIGITS = 6

_VERDICTS: Mapping[str | None, str] = {
    "better": "is **better** than",
    "equal": "is **equal** to",
    "worse": "is **worse** than",
    None: "cannot be judged yet against",
}


def number(value: float, digits: int = 1) -> str:
    """Gives a number with so many decimals, and never a negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def with_interval(estimate: Estimate, digits: int = 1, unit: str = "") -> str:
    """Gives a value with its unit and, in brackets, its interval, or that there is none."""
    value = f"{number(estimate.value, digits)} {unit}".rstrip()
    return f"{value} {interval(estimate, digits)}"


def interval(estimate: Estimate, digits: int = 1) -> str:
    """Gives the interval alone, with as many decimals more as show on which side of 0 it ends."""
    if estimate.low is None or estimate.high is None:
        return "(one seed, no interval)"
    bounds = (estimate.low, estimate.high)
    while digits < _MOST_DIGITS and any(bound and not round(bound, digits) for bound in bounds):
        digits += 1
    return f"[{', '.join(number(bound, digits) for bound in bounds)}]"


def with_std(scores: Iterable[float]) -> str:
    """Gives mean ± standard deviation over seeds, the latter if there are two."""
    values = list(scores)
    if not values:
        return NOTHING
    mean, std = mean_and_std(values)
    return number(mean) if std is None else f"{number(mean)} ± {number(std)}"


def paper_score(results: TaskResults, method: str) -> str:
    """Gives the paper's mean ± standard deviation, or a dash."""
    paper = results.paper(method)
    return NOTHING if paper is None else f"{number(paper.mean)} ± {number(paper.std)}"


def span(values: Iterable[int]) -> str:
    """Gives the one value that all share, or the range of different ones."""
    found = sorted(set(values))
    if not found:
        return NOTHING
    ends = found[:1] if len(found) == 1 else [found[0], found[-1]]
    return "–".join(f"{value:,}" for value in ends)


def difference_unit(results: TaskResults) -> str:
    """What a difference of two scores is counted in."""
    return "percentage points" if results.metric == "success" else "in return"


def sentence(comparison: Comparison, unit: str, digits: int = 1) -> str:
    """Says how two methods compare.

    Args:
        comparison: What was found.
        unit: Of the difference.
        digits: Decimals of the difference.

    Returns:
        A sentence with the verdict, the difference, its interval and the number of seeds.
    """
    first, second = (METHOD_TITLES[m] for m in (comparison.pair.first, comparison.pair.second))
    estimate = comparison.difference
    found = f"a mean difference of {number(estimate.value, digits)} {unit}"
    if estimate.verdict is None:
        found += ", without an interval"
    else:
        zero = "covers zero" if estimate.verdict == "equal" else "is clear of zero"
        found += f", whose 95 % interval {interval(estimate, digits)} {zero}"
    return f"{first} {_VERDICTS[estimate.verdict]} {second}: {found} ({seeds(comparison)})."


def seeds(comparison: Comparison) -> str:
    """Says how many runs were compared."""
    first, second = comparison.n_seeds
    if comparison.pair.is_paired:
        return f"{_counted(first)}, paired"
    return _counted(first) if first == second else f"{first} and {_counted(second)}"


def tally(comparisons: Sequence[Comparison]) -> str:
    """Counts on how many tasks a pair came out how.

    Args:
        comparisons: Of the same pair, at least one.

    Returns:
        One sentence.
    """
    n = len(comparisons)
    at_or_above = sum(comparison.difference.value >= 0 for comparison in comparisons)
    verdicts = [comparison.difference.verdict for comparison in comparisons]
    counts = ", ".join(
        f"{verdict} on {verdicts.count(verdict)}" for verdict in ("better", "equal", "worse")
    )
    unjudged = f", not judged on {verdicts.count(None)}" if None in verdicts else ""
    pair = comparisons[0].pair
    first, second = METHOD_TITLES[pair.first], METHOD_TITLES[pair.second]
    return (
        f"{first} against {second}, {_tasks(n)}: mean at or above on {at_or_above}; "
        f"{counts}{unjudged}."
    )


def seeds_by_method(results: Results) -> str:
    """Says how many training seeds the methods have, those with equally many together."""
    groups: dict[str, list[str]] = {}
    for method in results.methods:
        counts = span(len(task.runs[method]) for task in results.tasks if method in task.runs)
        groups.setdefault(counts, []).append(METHOD_TITLES[method])
    return "; ".join(f"{', '.join(titles)}: {counts}" for counts, titles in groups.items())


def episode_counts(results: Results) -> str:
    """Says over how many episodes a run is scored."""
    return span(len(record["scores"]) for task in results.tasks for record in task.records())


def _counted(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


def _tasks(n: int) -> str:
    return "1 task" if n == 1 else f"{n} tasks"
