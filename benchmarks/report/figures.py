"""The report's figures; a method has the same colour and the same mark in all of them."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, Formatter, LogLocator, NullLocator, StrMethodFormatter

from benchmarks.records import METHOD_TITLES
from benchmarks.report import statistics
from benchmarks.report.comparisons import Scaled, complete_part
from benchmarks.report.results import Results, TaskResults

COLUMNS = 3
_WIDTH = 9.5
_LEAST = 1e-3  # what a logarithmic axis shows in the place of 0
_WIDE_RANGE = 5  # from this ratio of lengths on, an axis of training is logarithmic


class Style(NamedTuple):
    """How a method is drawn."""

    colour: str
    mark: str
    line: str


# Related methods share a hue. The hues are those of Okabe and Ito, whose lightness differs too.
STYLES: Mapping[str, Style] = {
    "bc": Style("#56B4E9", "o", "--"),
    "bc_paired": Style("#0072B2", "s", "-"),
    "diffusion_bc": Style("#D55E00", "D", "-"),
    "diffusion_bc_paper": Style("#E69F00", "^", "--"),
    "implicit_bc": Style("#009E73", "v", "-"),
    "diffusion_policy": Style("#882255", "P", "-"),
    "diffusion_policy_ddim": Style("#CC79A7", "X", "--"),
    "gail": Style("#6B6B6B", "<", "-"),
    "airl": Style("#B0B0B0", ">", "--"),
}


def draw(results: Results, tasks: Sequence[Scaled], folder: Path) -> list[str]:
    """Draws what can be drawn of the results.

    Args:
        results: At least one task.
        tasks: Those that have a shared scale.
        folder: Where the pictures go, as PNG.

    Returns:
        The names of the files that were written, of `FIGURES`.
    """
    drawn = {
        "scores": lambda: scores(results),
        "learning-curves": lambda: learning_curves(results, interactive=False),
        "learning-curves-interactive": lambda: learning_curves(results, interactive=True),
        "performance-profiles": lambda: performance_profiles(tasks),
        "training-cost": lambda: training_cost(results),
        "inference-latency": lambda: inference_latency(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, make in drawn.items():
        path = folder / f"{name}.png"
        with plt.rc_context({"font.size": 9, "axes.titlesize": 9, "legend.frameon": False}):
            figure = make()
            if figure is None:
                path.unlink(missing_ok=True)  # of results that are no longer there
                continue
            figure.savefig(path, dpi=130, metadata={"Software": None})
            plt.close(figure)
        written.append(name)
    return written


def scores(results: Results) -> Figure:
    """Draws bars of the mean scores with Student's intervals, and the paper's scores as marks."""
    methods = results.methods
    figure, panels = _panels(len(results.tasks), 0.9 + 0.21 * len(methods), share_y=True)
    places = {method: -place for place, method in enumerate(methods)}
    for axes, task in zip(panels, results.tasks, strict=True):
        for method, place in places.items():
            _bar(axes, task, method, place)
        _set_title(axes, task)
        axes.set_xlabel(_metric(task))
        axes.set_yticks(list(places.values()), [METHOD_TITLES[method] for method in places])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(_score_limits(task, from_zero=True))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    mark = Line2D([], [], color="black", marker="D", markerfacecolor="white", markersize=5)
    seed = Line2D([], [], linestyle="", marker="|", color="black", alpha=0.5)
    interval = Line2D([], [], color="black", linewidth=1.2)
    handles = {
        "mean over training seeds, 95 % interval": interval,
        "one training seed": seed,
    }
    if any(task.task is not None for task in results.tasks):
        handles["the paper's mean ± standard deviation"] = mark
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles)
    )
    return figure


def learning_curves(results: Results, *, interactive: bool) -> Figure | None:
    """Draws scores over training: mean and Student's interval over seeds.

    Args:
        results: At least one task.
        interactive: Draw the methods that learn in the environment, over environment
            steps; else the others, over updates.

    Returns:
        The figure; None if there is nothing to draw.
    """

    def drawn(task: TaskResults) -> list[str]:
        return [m for m in task.runs if task.is_interactive(m) == interactive and task.curve(m)]

    tasks = [task for task in results.tasks if drawn(task)]
    if not tasks:
        return None
    figure, panels = _panels(len(tasks), 2.2)
    for panel, (axes, task) in enumerate(zip(panels, tasks, strict=True)):
        for method in drawn(task):
            _curve(axes, task, method)
        _set_title(axes, task)
        axes.set_ylabel(_metric(task))
        axes.set_ylim(_curve_limits(task, drawn(task)))
        axes.grid(alpha=0.3)
        places = [place for method in drawn(task) for place in task.curve(method)]
        ends = [max(task.curve(method)) for method in drawn(task)]
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if max(ends) > _WIDE_RANGE * min(ends):
            _set_log_x(axes, places, EngFormatter(sep=""))
        if panel >= len(tasks) - COLUMNS:
            axes.set_xlabel("environment steps" if interactive else "updates of the policy")
    _method_legend(figure, [m for m in results.methods if any(m in drawn(t) for t in tasks)])
    return figure


def performance_profiles(tasks: Sequence[Scaled]) -> Figure | None:
    """Draws the share of runs whose score on the shared scale is above each threshold.

    Args:
        tasks: Tasks and their scales.

    Returns:
        The figure; None if no method has two seeds on all of the tasks.
    """
    part, methods = complete_part(tasks)
    matrices = {
        method: statistics.matrix(
            [scale.normalised(task.scores(method).values()) for task, scale in part]
        )
        for method in methods
    }
    matrices = {method: scores for method, scores in matrices.items() if len(scores) > 1}
    if not matrices:
        return None
    highest = max(scores.max() for scores in matrices.values())
    lowest = min(0.0, *(scores.min() for scores in matrices.values()))
    thresholds = np.linspace(lowest, max(1.0, highest), 401)
    profiles, bands = statistics.performance_profiles(matrices, thresholds)
    figure, axes = plt.subplots(figsize=(_WIDTH, 3.6), layout="constrained")
    for method, profile in profiles.items():
        style = STYLES[method]
        axes.plot(thresholds, profile, style.line, color=style.colour, linewidth=1.8)
        axes.fill_between(thresholds, *bands[method], color=style.colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("score on the shared scale, τ")
    axes.set_ylabel("share of runs with a score above τ")
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    _method_legend(figure, list(matrices), marks=False)
    return figure


def training_cost(results: Results) -> Figure:
    """Draws scores over the CPU seconds of training, the critic's included."""
    return _scores_over(results, TaskResults.training_cost, "CPU seconds of training")


def inference_latency(results: Results) -> Figure:
    """Draws scores over the milliseconds that an action takes."""
    return _scores_over(
        results,
        lambda task, method: task.median(method, "inference_ms"),
        "milliseconds per action",
    )


def _scores_over(
    results: Results, cost: Callable[[TaskResults, str], float | None], label: str
) -> Figure:
    figure, panels = _panels(len(results.tasks), 2.2)
    for place, (axes, task) in enumerate(zip(panels, results.tasks, strict=True)):
        for method in task.runs:
            style, spent = STYLES[method], cost(task, method)
            mean = task.estimate(list(task.scores(method).values()))
            axes.errorbar(
                [max(spent or 0.0, _LEAST)],
                [mean.value],
                yerr=_error(mean),
                fmt=style.mark,
                color=style.colour,
                markersize=6,
                elinewidth=1,
                capsize=2,
            )
        _set_title(axes, task)
        axes.set_ylabel(_metric(task))
        _set_log_x(axes, [max(cost(task, m) or 0.0, _LEAST) for m in task.runs], "{x:g}")
        axes.set_ylim(_score_limits(task))
        axes.grid(alpha=0.3)
        if place >= len(results.tasks) - COLUMNS:
            axes.set_xlabel(label)
    _method_legend(figure, results.methods, lines=False)
    return figure


def _bar(axes: Axes, task: TaskResults, method: str, place: float) -> None:
    seeds = list(task.scores(method).values())
    if seeds:
        mean = task.estimate(seeds)
        axes.barh(place, mean.value, 0.72, color=STYLES[method].colour)
        # The paper's mark is lower, so that neither hides the other.
        above = place + 0.12
        axes.plot(seeds, [above] * len(seeds), "|", color="black", alpha=0.5, markersize=6)
        axes.errorbar(
            mean.value, above, xerr=_error(mean), color="black", elinewidth=1.2, capsize=2
        )
    else:
        transform = axes.get_yaxis_transform()
        axes.text(0.02, place, "no result", va="center", size=8, transform=transform)
    paper = task.paper(method)
    if paper is not None:
        axes.errorbar(
            paper.mean,
            place - 0.22,
            xerr=paper.std,
            fmt="D",
            color="black",
            markerfacecolor="white",
            markersize=4,
            elinewidth=0.8,
            zorder=3,
        )


def _curve(axes: Axes, task: TaskResults, method: str) -> None:
    style, curve = STYLES[method], task.curve(method)
    means = [task.estimate(scores) for scores in curve.values()]
    places = list(curve)
    axes.plot(
        places,
        [mean.value for mean in means],
        style.line,
        color=style.colour,
        marker=style.mark,
        markersize=3.5,
        linewidth=1.3,
    )
    bounds = [
        (mean.low, mean.high) if mean.has_interval else (mean.value, mean.value) for mean in means
    ]
    low, high = zip(*bounds, strict=True)
    axes.fill_between(places, low, high, color=style.colour, alpha=0.12, linewidth=0)


def _panels(n: int, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    columns = min(n, COLUMNS)
    rows = math.ceil(n / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(_WIDTH, rows * height + 0.6),
        sharey=share_y,
        squeeze=False,
        layout="constrained",
    )
    panels = list(grid.flat)
    for unused in panels[n:]:
        unused.set_visible(False)
    return figure, panels[:n]


def _method_legend(
    figure: Figure, methods: Sequence[str], *, marks: bool = True, lines: bool = True
) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=STYLES[method].colour,
            marker=STYLES[method].mark if marks else "",
            linestyle=STYLES[method].line if lines else "",
            markersize=5,
        )
        for method in methods
    ]
    titles = [METHOD_TITLES[method] for method in methods]
    figure.legend(handles, titles, loc="outside lower center", ncols=COLUMNS)


def _set_title(axes: Axes, task: TaskResults) -> None:
    axes.set_title(textwrap.fill(task.title.replace(" (", "\n("), 34, replace_whitespace=False))


def _metric(task: TaskResults) -> str:
    return "success, %" if task.metric == "success" else "return"


def _set_log_x(axes: Axes, places: Sequence[float], formatter: str | Formatter) -> None:
    """A logarithmic axis that has labels however narrow the range of the places is."""
    low, high = min(places), max(places)
    stretch = max(1.4, math.sqrt(12 * low / high))
    axes.set_xscale("log")
    axes.set_xlim(low / stretch, high * stretch)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_minor_locator(NullLocator())
    text = StrMethodFormatter(formatter) if isinstance(formatter, str) else formatter
    axes.xaxis.set_major_formatter(text)


def _error(mean: statistics.Estimate) -> list[list[float]] | None:
    if mean.low is None or mean.high is None:
        return None
    return [[mean.value - mean.low], [mean.high - mean.value]]


def _score_limits(task: TaskResults, *, from_zero: bool = False) -> tuple[float, float]:
    """Room for all seeds and the paper's marks; an interval may be far longer and is cut."""
    if task.metric == "success":
        return (0.0, 104.0) if from_zero else (-4.0, 104.0)
    values = [score for method in task.runs for score in task.scores(method).values()]
    papers = [task.paper(method) for method in METHOD_TITLES] if from_zero else []
    return _limits([*values, *(paper.mean for paper in papers if paper)], from_zero=from_zero)


def _curve_limits(task: TaskResults, methods: Sequence[str]) -> tuple[float, float]:
    if task.metric == "success":
        return -4.0, 104.0
    return _limits([x for m in methods for scores in task.curve(m).values() for x in scores])


def _limits(values: Sequence[float], *, from_zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = 0.08 * (high - low) or 1.0
    return (low if from_zero and low == 0 else low - margin), high + margin
