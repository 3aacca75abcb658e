"""The figures of a comparison; a method has the same colour and mark in all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from benchmarks.report.frame import METRIC_TITLES
from benchmarks.report.summaries import OURS, WITHOUT_CRITIC

COLUMNS = 3
WIDTH = 9.5
CURVES = ("bc", WITHOUT_CRITIC, OURS, "diffusion_policy")
"""The methods whose learning curves are drawn."""

_OURS_COLOUR = "#D55E00"
# Okabe and Ito's, whose lightness differs too, two greys, and two of Tol's.
_COLOURS = (
    *("#56B4E9", "#0072B2", "#E69F00", "#009E73", "#882255", "#CC79A7", "#555555", "#A0A0A0"),
    *("#999933", "#332288"),
)
_MARKS = "osv^PX<>"
_FAR_BELOW = 0.7  # of the best mean: a method below is named at the axis' end
plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.frameon": False})


def save(drawn: Mapping[str, Figure | None], folder: Path) -> list[str]:
    """Saves the figures that there are as ``<folder>/<name>.png``; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # of results that are no longer there
        if figure is not None:
            figure.savefig(path, dpi=100, metadata={"Software": None})
            plt.close(figure)
            written.append(name)
    return written


def scores(frame: pd.DataFrame, summary: pd.DataFrame) -> Figure:
    """Draws the mean scores with their intervals, the seeds, and the paper's scores."""
    styles = _styles(frame)
    titles, methods = _order(frame, "title"), _order(frame, "method")
    # A panel with one method compares nothing.
    several = frame.groupby("title", observed=True)["method"].nunique() > 1
    titles = [title for title in titles if several[title]] or titles
    figure, panels = _panels(len(titles), 0.7 + 0.2 * len(methods), share_y=True)
    places = {method: -place for place, method in enumerate(methods)}
    for axes, title in zip(panels, titles, strict=True):
        rows, seeds = summary[summary["title"] == title], frame[frame["title"] == title]
        is_far = _is_far_below(rows["value"])
        for row in rows[~is_far].itertuples():
            colour, mark = styles[row.method]
            place = places[row.method]
            runs = seeds.loc[seeds["method"] == row.method, "score"]
            axes.plot(runs, [place - 0.28] * len(runs), ".", color=colour, markersize=3)
            axes.errorbar(
                row.value, place, xerr=_bars(row), fmt=mark, color=colour, markersize=5, capsize=2
            )
            if row.authors_data and not math.isnan(row.paper_mean):
                axes.plot(row.paper_mean, place, "D", color="black", markersize=4, fillstyle="none")
        # By the runs: an interval of two may be so wide that nothing else is seen.
        shown = seeds[seeds["method"].isin(rows.loc[~is_far, "method"])]
        drawn = pd.concat([shown["score"], shown.loc[shown["authors_data"], "paper_mean"]])
        ends = drawn.min(), drawn.max()
        _set_score_limits(axes.set_xlim, ends, rows["metric"].iloc[0])
        for row in rows[is_far].itertuples():
            axes.annotate(
                f"◂ {row.value:.0f}",
                (0.015, places[row.method]),
                xycoords=axes.get_yaxis_transform(),
                va="center",
                color=styles[row.method][0],
            )
        axes.set_title(_wrapped(title))
        axes.set_xlabel(METRIC_TITLES[rows["metric"].iloc[0]])
        axes.set_yticks(list(places.values()), list(places))
        axes.set_ylim(0.6 - len(methods), 0.6)
        axes.grid(alpha=0.3)
    legend = {
        "mean and 95 % interval": Line2D([], [], color="black", marker="o", markersize=5),
        "one seed": Line2D([], [], color="black", marker=".", linestyle="", markersize=3),
    }
    if (frame["authors_data"] & frame["paper_mean"].notna()).any():
        legend["the paper, same demonstrations"] = Line2D(
            [], [], color="black", marker="D", fillstyle="none", linestyle="", markersize=4
        )
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=len(legend))
    return figure


def checkpoints(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the scores of a few methods while they learnt, for :func:`curves`."""
    points = frame[frame["variant"].isin(CURVES)].explode("curve").dropna(subset="curve")
    found = pd.DataFrame(points["curve"].tolist(), points.index, ["updates", "score"])
    return points.assign(at=found["updates"], score=found["score"])


def curves(points: pd.DataFrame, label: str) -> Figure | None:
    """Draws mean scores over something, with the range of the seeds; nothing without points.

    Args:
        points: the columns of :func:`benchmarks.report.frame.scores_at`.
        label: what ``at`` is.
    """
    if points.empty:
        return None
    styles, titles, methods = _styles(points), _order(points, "title"), _order(points, "method")
    figure, panels = _panels(len(titles), 2.4)
    for axes, title in zip(panels, titles, strict=True):
        rows = points[points["title"] == title]
        for method, runs in rows.groupby("method", observed=True):
            found = runs.groupby("at")["score"].agg(["mean", "min", "max"])
            colour, mark = styles[method]
            axes.plot(found.index, found["mean"], color=colour, marker=mark, markersize=3)
            axes.fill_between(
                found.index, found["min"], found["max"], color=colour, alpha=0.1, linewidth=0
            )
        metric = rows["metric"].iloc[0]
        _set_score_limits(axes.set_ylim, (rows["score"].min(), rows["score"].max()), metric)
        axes.set_title(_wrapped(title))
        axes.set_xlabel(label)
        axes.set_ylabel(METRIC_TITLES[metric])
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.3)
    handles = [
        Line2D([], [], color=styles[method][0], marker=styles[method][1], markersize=5)
        for method in methods
    ]
    figure.legend(handles, methods, loc="outside lower center", ncols=min(len(handles), 5))
    return figure


def _styles(frame: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Returns the colour and the mark of each method's title."""
    ours = set(frame.loc[frame["variant"] == OURS, "method"])
    others = [method for method in _order(frame, "method") if method not in ours]
    styles = {}
    for place, method in enumerate(others):
        # Where colours begin anew, marks go on, so that no two methods look alike.
        n_rounds, colour = divmod(place, len(_COLOURS))
        styles[method] = _COLOURS[colour], _MARKS[(colour + n_rounds) % len(_MARKS)]
    return styles | dict.fromkeys(ours, (_OURS_COLOUR, "D"))


def _order(frame: pd.DataFrame, column: str) -> list[str]:
    """Returns the values of an ordered category that occur, in its order."""
    return [value for value in frame[column].cat.categories if (frame[column] == value).any()]


def _panels(n: int, height: float, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    columns = min(n, COLUMNS)
    rows = math.ceil(n / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(WIDTH, rows * height + 0.5),
        sharey=share_y,
        squeeze=False,
        layout="constrained",
    )
    for unused in grid.flat[n:]:
        unused.set_visible(False)
    return figure, list(grid.flat[:n])


def _is_far_below(values: pd.Series) -> pd.Series:
    """Returns which values are so far below the best that an axis with them hides the others."""
    best = values.max()
    return values < (_FAR_BELOW * best if best > 0 else -math.inf)


def _bars(row: object) -> list[list[float]] | None:
    value, low, high = row.value, row.low, row.high  # type: ignore[attr-defined]
    return None if math.isnan(low) else [[value - low], [high - value]]


def _set_score_limits(setter, ends: Sequence[float], metric: str) -> None:  # type: ignore[no-untyped-def]
    """Shows the scores with a margin; a rate's axis ends just beyond what is possible."""
    low, high = ends
    margin = 0.1 * (high - low) or 1.0
    low, high = low - margin, high + margin
    setter(*((max(low, -3.0), min(high, 103.0)) if metric == "success" else (low, high)))


def _wrapped(title: str) -> str:
    return title.replace(" (", "\n(").rsplit(", ", 1)[0]
