"""The statistics of a suite's frame, see :func:`benchmarks.report.frame.read_frame`."""

from __future__ import annotations

import math
from typing import NamedTuple

import pandas as pd

from benchmarks.report.frame import COSTS
from benchmarks.report.over_tasks import (
    complete_runs,
    interquartile_mean,
    probability_of_improvement,
)
from benchmarks.report.statistics import Estimate, difference, mean_score

OURS = "diffusion_bc"
WITHOUT_CRITIC = "bc_paired"
OVER_TASKS = "all tasks, scaled"

_SAME = ("variant", "metric", "paper_mean", "paper_std", "authors_data")


class Statistics(NamedTuple):
    """What is worked out of a comparison.

    Attributes:
        methods: of each method on each task, see :func:`summarise`.
        differences: of two methods on each task and over all, see :func:`compare`.
        over_tasks: of each method over all tasks, see :func:`summarise_over_tasks`.
    """

    methods: pd.DataFrame
    differences: pd.DataFrame
    over_tasks: pd.DataFrame


def work_out(frame: pd.DataFrame) -> Statistics:
    """Returns all statistics of :func:`benchmarks.report.frame.read_frame`'s frame."""
    return Statistics(summarise(frame), compare(frame), summarise_over_tasks(frame))


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the statistics of each method on each task.

    Returns:
        One row for each ``title`` and ``method``: ``value``, ``low`` and ``high`` of the mean
        score, ``std`` (the sample standard deviation over seeds), ``seeds``, ``variant``,
        ``metric``, ``paper_mean``, ``paper_std``, ``authors_data``, and the medians over seeds of
        ``COSTS``.
    """
    rows = []
    for (title, method), runs in frame.groupby(["title", "method"], observed=True):
        first = runs.iloc[0]
        estimate = mean_score(runs["score"], first["metric"], runs["n_episodes"].min())
        row = {"title": title, "method": method, "seeds": len(runs), "std": runs["score"].std()}
        row |= {name: first[name] for name in _SAME}
        rows.append(row | estimate._asdict() | runs[list(COSTS)].median().to_dict())
    return pd.DataFrame(rows).astype({name: frame[name].dtype for name in ("title", "method")})


def compare(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns how methods differ on each task, and over all of them.

    DiffusionBC and the BC that differs from it by L_DM alone are compared by runs of the same
    seed. DiffusionBC and every other method are compared as independent samples.

    Returns:
        One row for each ``pair`` (as ``"first − second"``) and ``title``: ``value`` (the first
        mean minus the second), ``low``, ``high``, ``verdict`` and ``paired``. The last row of a
        pair has the title ``OVER_TASKS`` and is about the scaled scores, where a seed's mean over
        tasks counts; it is missing where a method has no seed with all tasks.
    """
    means = {variant: runs.mean(axis=1) for variant, runs in complete_runs(frame).items()}
    scores = frame[["variant", "title", "seed", "score", "metric"]]
    if means:
        over = pd.concat(means, names=["variant"]).rename("score").reset_index()
        scores = pd.concat([scores, over.assign(title=OVER_TASKS, metric="return")])
    order = [*frame["title"].cat.categories, OVER_TASKS]
    scores = scores.assign(title=pd.Categorical(scores["title"], order, ordered=True))
    names = frame.sort_values("method").groupby("variant", sort=False)["method"].first().to_dict()
    others = [variant for variant in names if variant not in (OURS, WITHOUT_CRITIC)]
    pairs = [(OURS, WITHOUT_CRITIC)]
    pairs += [(OURS, other) for other in others]
    rows = []
    for first, second in pairs:
        paired = (first, second) == (OURS, WITHOUT_CRITIC)
        for title, runs in scores.groupby("title", observed=True):
            both = runs.pivot(index="seed", columns="variant", values="score")
            both = both.reindex(columns=[first, second]).dropna(how="any" if paired else "all")
            ours, theirs = both[first].dropna(), both[second].dropna()
            if ours.empty or theirs.empty:
                continue
            estimate = difference(ours, theirs, runs["metric"].iloc[0], paired=paired)
            row = {"pair": f"{names[first]} − {names[second]}", "title": title, "paired": paired}
            rows.append(row | estimate._asdict() | {"verdict": estimate.verdict})
    found = pd.DataFrame(rows, columns=["pair", "title", "paired", *Estimate._fields, "verdict"])
    found["pair"] = pd.Categorical(found["pair"], found["pair"].unique(), ordered=True)
    return found.astype({"title": scores["title"].dtype, "paired": bool})


def summarise_over_tasks(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns rliable's statistics of the methods that have a seed with all tasks.

    Returns:
        One row for each ``method``: ``seeds``, ``tasks``, ``mean`` of the scaled scores, and the
        estimates ``iqm`` and, of DiffusionBC against the method, ``improvement``.
    """
    complete = complete_runs(frame)
    columns = ("method", "seeds", "tasks", "mean", "iqm", "improvement")
    rows = []
    for variant, runs in complete.items():
        scores = runs.to_numpy()
        method = frame.loc[frame["variant"] == variant, "method"].iloc[0]
        improvement = Estimate(math.nan)
        if OURS in complete and variant != OURS:
            improvement = probability_of_improvement(complete[OURS].to_numpy(), scores)
        row = (method, *runs.shape, scores.mean(), interquartile_mean(scores), improvement)
        rows.append(dict(zip(columns, row, strict=True)))
    return pd.DataFrame(rows, columns=columns)
