"""The report: verdicts and targets first, then what is said over tasks, figures, and each task."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from benchmarks.records import METHOD_TITLES, Record
from benchmarks.report import statistics
from benchmarks.report.comparisons import (
    MAIN,
    Comparison,
    Pair,
    Scaled,
    compare,
    compare_over_tasks,
    complete_part,
    pairs,
    targets,
)
from benchmarks.report.results import Results, TaskResults
from benchmarks.report.scales import Scale
from benchmarks.report.words import (
    NOTHING,
    difference_unit,
    episode_counts,
    interval,
    number,
    paper_score,
    seeds,
    seeds_by_method,
    sentence,
    span,
    tally,
    with_interval,
    with_std,
)
from benchmarks.tables import table

SCALE = "on the shared scale"
_PAPER_COLUMN = 6

INTRODUCTION = """\
Written by `python -m benchmarks.report` from the result files, one for each task, method and
training seed. A run's score is the mean over its evaluation episodes at the last checkpoint; scores
of success are in percent.

**Intervals are over training seeds.** Episodes of one run are not independent training runs, so a
run counts once, however many episodes it was scored on. Means have Student's 95 % intervals, the
paired difference Student's over the differences of runs of the same seed, other differences
Welch's. ± is the sample standard deviation over seeds; which one the paper prints, it does not say.
Interquartile means (IQM), probabilities of improvement and performance profiles are rliable's, with
its stratified bootstrap over seeds; with three to five seeds bootstrap intervals are too narrow, so
no verdict rests on them. **Better** and **worse** mean that the 95 % interval of the difference is
clear of zero, **equal** that it covers zero, which is not a proof that there is no difference. With
as many comparisons as here, some intervals miss zero by chance; nothing is corrected for that."""

COLUMNS = """\
Scores are percent of successful episodes, or returns. "Last checkpoints" is the mean over the last
entries of the learning curve, which swings less than the last one alone. CPU and wall-clock seconds
are those of the critic, where there is one, and of training; other programs on the machine lengthen
the latter. Seconds, memory and latency are medians over seeds. Environment steps are those that
were learned from."""

CAPTIONS = {
    "scores": (
        "Scores",
        "Bars: mean over training seeds at the last checkpoint, with Student's 95 % interval; "
        "ticks: single seeds. Diamonds: the paper's own number. An interval longer than the axis "
        "is cut.",
    ),
    "learning-curves": (
        "Learning curves",
        "Mean over training seeds, band: Student's 95 % interval. Checkpoints are scored on fewer "
        "episodes than the table's scores, from other environment seeds.",
    ),
    "learning-curves-interactive": (
        "Learning curves of the methods that learn in the environment",
        "As above, over environment steps.",
    ),
    "performance-profiles": (
        "Performance profiles",
        "rliable's: the share of runs, over the tasks and methods of the table above, whose score "
        "on the shared scale is above τ; band: pointwise 95 % interval of the stratified "
        "bootstrap.",
    ),
    "training-cost": (
        "Score against training cost",
        "Mean with Student's 95 % interval over the median CPU seconds of training, the critic's "
        "included.",
    ),
    "inference-latency": (
        "Score against inference latency",
        "Mean with Student's 95 % interval over the milliseconds an action takes, batch of 1.",
    ),
}


def report(results: Results, tasks: Sequence[Scaled], figures: Sequence[str], folder: str) -> str:
    """Gives the report.

    Args:
        results: At least one task.
        tasks: Those that have a shared scale.
        figures: Which of `CAPTIONS` were drawn.
        folder: Where they are, as a link from the report.

    Returns:
        Markdown.
    """
    parts = [
        "# The comparison",
        INTRODUCTION,
        *_main_pair(results, tasks),
        *_targets(results),
        *_other_pairs(results, tasks),
        *_over_tasks(results, tasks),
        "## Figures",
        f"Training seeds: {seeds_by_method(results)}; {episode_counts(results)} evaluation "
        "episodes for each. Commands, revisions and versions stand with each task below.",
        *(_figure(name, folder) for name in CAPTIONS if name in figures),
        "## Each task",
        COLUMNS,
        *(part for task in results.tasks for part in _task(task)),
        *_problems(results),
    ]
    return "\n\n".join(parts) + "\n"


def _main_pair(results: Results, tasks: Sequence[Scaled]) -> list[str]:
    first, second = (METHOD_TITLES[method] for method in (MAIN.first, MAIN.second))
    parts = [
        f"## {first} against the same training without L_DM",
        f"{second} has {first}'s policy network, optimiser, batches, number of updates and seeds; "
        "only L_DM differs. Runs of the same seed are compared, on the same evaluation episodes.",
    ]
    found = [(task, comparison) for task in results.tasks if (comparison := compare(task, MAIN))]
    if not found:
        return [*parts, "No task has runs of both with the same seed."]
    lines = [
        f"- **{task.title}**: {sentence(comparison, difference_unit(task))}"
        for task, comparison in found
    ]
    overall = compare_over_tasks(tasks, MAIN)
    if overall is not None:
        lines.append(
            f"- **Mean over {overall.n_tasks} tasks** {SCALE}: {sentence(overall, SCALE, 3)}"
        )
    return [*parts, "\n".join(lines), tally([comparison for _, comparison in found])]


def _targets(results: Results) -> list[str]:
    found = list(targets(results))
    if all(target.measured is None for target in found):
        return []
    words = {True: "met", False: "missed", None: "not measured"}
    rows = [
        (
            target.title,
            f"≥ {number(target.score)}{target.unit}",
            NOTHING if target.measured is None else with_interval(target.measured),
            str(target.n_seeds),
            words[target.is_met],
        )
        for target in found
    ]
    return [
        "## Targets",
        f"What {METHOD_TITLES[MAIN.first]} should reach on the authors' own demonstrations is the "
        "paper's score there; the mean over seeds counts.",
        table(("task", "target", "measured, 95 % interval", "seeds", "target is"), rows),
    ]


def _other_pairs(results: Results, tasks: Sequence[Scaled]) -> list[str]:
    rows = []
    for pair in pairs(results.methods):
        for task in results.tasks:
            rows += _comparison_row(task.title, compare(task, pair), difference_unit(task), 1)
        rows += _comparison_row("mean over", compare_over_tasks(tasks, pair), SCALE, 3)
    if not rows:
        return []
    header = ("method", "against", "task", "difference, 95 % interval", "verdict")
    return [
        "## All comparisons",
        "P is the probability that a run of the method beats one of the other, with rliable's "
        f"bootstrap interval. Means over tasks count each the same, {SCALE}; the number of seeds "
        "is then that of the task with the fewest.",
        table((*header, "P, 95 % interval", "seeds"), rows),
    ]


def _comparison_row(
    title: str, comparison: Comparison | None, unit: str, digits: int
) -> list[tuple[str, ...]]:
    if comparison is None:
        return []
    pair: Pair = comparison.pair
    verdict = comparison.difference.verdict
    where = f"{title} {comparison.n_tasks} tasks" if title == "mean over" else title
    return [
        (
            METHOD_TITLES[pair.first],
            METHOD_TITLES[pair.second],
            where,
            with_interval(comparison.difference, digits, unit),
            verdict or "no verdict",
            with_interval(comparison.improvement(), 2),
            seeds(comparison),
        )
    ]


def _over_tasks(results: Results, tasks: Sequence[Scaled]) -> list[str]:
    part, methods = complete_part(tasks)
    if not methods:
        return []
    rows = []
    for method in methods:
        scores = statistics.matrix(
            [scale.normalised(task.scores(method).values()) for task, scale in part]
        )
        estimate = statistics.interquartile_mean(scores)
        shape = f"{len(scores)} × {len(part)}"
        rows.append(
            (METHOD_TITLES[method], with_interval(estimate, 3), number(scores.mean(), 3), shape)
        )
    without = [METHOD_TITLES[method] for method in results.methods if method not in methods]
    used = {task.title for task, _ in part}
    left_out = [task.title for task in results.tasks if task.title not in used]
    notes = [
        f"Left out because they miss some of these tasks: {', '.join(without)}." if without else "",
        f"Tasks left out, without a scale or with too few methods: {', '.join(left_out)}."
        if left_out
        else "",
    ]
    return [
        "## Over tasks",
        "Scores of different tasks meet on a shared scale. Runs of all tasks and seeds count the "
        "same; a method has as many of its first seeds as every task has.",
        table(("task", "scale"), ((task.title, _scale(task, scale)) for task, scale in part)),
        table(("method", "IQM, 95 % interval", "mean", "seeds × tasks"), rows),
        *(note for note in notes if note),
    ]


def _scale(task: TaskResults, scale: Scale) -> str:
    return f"{scale.meaning} ({number(scale.zero)} and {number(scale.one)}{task.unit})"


def _figure(name: str, folder: str) -> str:
    title, caption = CAPTIONS[name]
    return f"### {title}\n\n![{title}]({folder}/{name}.png)\n\n{caption}"


def _task(task: TaskResults) -> list[str]:
    header = (
        "method",
        "seeds",
        "mean ± std",
        "mean's 95 % interval",
        "IQM, 95 % interval",
        "last checkpoints, mean ± std",
        "paper, same demonstrations" if task.is_on_paper_data else "paper, other demonstrations",
        "CPU s, critic + training",
        "wall-clock s",
        "environment steps",
        "updates",
        "peak memory, MB",
        "ms per action",
    )
    rows = [header, *(_method_row(task, method) for method in task.runs)]
    if task.task is None:
        rows = [row[:_PAPER_COLUMN] + row[_PAPER_COLUMN + 1 :] for row in rows]
    return [f"### {task.title}", table(rows[0], rows[1:]), _provenance(task), *_warnings(task)]


def _method_row(task: TaskResults, method: str) -> tuple[str, ...]:
    scores = list(task.scores(method).values())
    records = task.runs[method]
    estimate = task.estimate(scores)
    quartiles = statistics.interquartile_mean(statistics.matrix([scores]))
    return (
        METHOD_TITLES[method],
        str(len(scores)),
        with_std(scores),
        interval(estimate),
        with_interval(quartiles),
        with_std(task.last_checkpoints(method).values()),
        paper_score(task, method),
        _phases(task, method, "cpu_seconds"),
        _phases(task, method, "seconds"),
        span(record["env_steps"] for record in records),
        span(record["updates"] for record in records),
        _measured(task.median(method, "peak_memory_mb"), 0),
        _measured(task.median(method, "inference_ms"), 3),
    )


def _phases(task: TaskResults, method: str, clock: str) -> str:
    found = (task.median(method, clock, phase) for phase in ("critic", "training"))
    return " + ".join(_measured(seconds, 1) for seconds in found if seconds is not None)


def _measured(value: float | None, digits: int) -> str:
    return NOTHING if value is None else number(value, digits)


def _provenance(task: TaskResults) -> str:
    records, data = task.records(), task.demonstrations
    kind = "the authors'" if task.is_on_paper_data else ""
    kind = "bundled" if task.is_on_bundled_data else kind
    versions = sorted({(name, v) for record in records for name, v in record["versions"].items()})
    lines = {
        "demonstrations": f"`{task.source}`{f' ({kind})' if kind else ''}, "
        f"{data['transitions']:,} transitions, {data['episodes']:,} episodes, sha256 "
        f"`{data['sha256'][:12]}`",
        "environment": f"`{task.env}`, noise ratio {task.noise_ratio:g}{_paper_noise(task)}",
        "training seeds": ", ".join(map(str, sorted({record["seed"] for record in records}))),
        "evaluation": f"{span(len(record['scores']) for record in records)} episodes, environment "
        f"seeds from {_distinct(str(record['first_episode_seed']) for record in records)}",
        "learning curves": _curve_episodes(records),
        "commands": _distinct(f"`{record['command']}`" for record in records),
        "revisions": _distinct(map(_revision, records)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions),
        "machines": _distinct(_machine(record) for record in records),
    }
    return "\n".join(f"- {name}: {text}" for name, text in lines.items())


def _paper_noise(task: TaskResults) -> str:
    if task.task is None or task.task.paper_noise_ratio == task.noise_ratio:
        return ""
    return f" (the paper's numbers are at {task.task.paper_noise_ratio:g})"


def _curve_episodes(records: Sequence[Record]) -> str:
    counts = [len(checkpoint["scores"]) for record in records for checkpoint in record["curve"]]
    if not counts:
        return "none"
    seeds_from = _distinct(str(record["first_curve_episode_seed"]) for record in records)
    last = span(record["last_checkpoints"] for record in records)
    return (
        f"{span(counts)} episodes for each checkpoint, environment seeds from {seeds_from}; the "
        f"last {last} count as the last checkpoints"
    )


def _machine(record: Record) -> str:
    facts = record["machine"].items()
    return ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in facts)


def _revision(record: Record) -> str:
    revision = f"`{record['git_revision'][:12]}`" if record["git_revision"] else "unknown"
    return f"{revision} with uncommitted changes" if record["git_dirty"] else revision


def _warnings(task: TaskResults) -> list[str]:
    """What keeps runs from being comparable, if anything does."""
    found = []
    episodes = {(r["first_episode_seed"], len(r["scores"])) for r in task.records()}
    if len(episodes) > 1:
        found.append("not all runs were scored on the same episodes")
    for method, records in task.runs.items():
        configs = {
            json.dumps({k: v for k, v in r["config"].items() if k != "seed"}, sort_keys=True)
            for r in records
        }
        if len(configs) > 1:
            found.append(f"runs of {METHOD_TITLES[method]} differ in their settings")
    if len({_machine(record) for record in task.records()}) > 1:
        found.append("not all runs had the same machine, so their times compare only roughly")
    return [f"**Take care**: {'; '.join(found)}."] if found else []


def _distinct(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))


def _problems(results: Results) -> list[str]:
    if not results.problems:
        return []
    lines = "\n".join(f"- {problem}" for problem in results.problems)
    return ["## Files left out", "These are no results, or damaged:", lines]
