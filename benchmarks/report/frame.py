"""A suite's records as the frame that everything in the report is worked out from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.experts.scores import expert_scores
from benchmarks.methods import METHOD_TITLES
from benchmarks.problems import PAPER
from benchmarks.record import read_suite
from benchmarks.report.statistics import PERCENT
from benchmarks.suites import SUITES
from sb3_diffbc.tasks import TASKS, Task

METRIC_TITLES: Mapping[str, str] = {"success": "success %", "return": "return"}
COSTS: Mapping[str, str] = {
    "cpu_seconds/critic": "CPU s, critic",
    "cpu_seconds/training": "training",
    "updates": "updates",
    "env_steps": "environment steps",
    "inference_ms": "ms per action",
}
"""Measures that are summarised, and their headings in tables."""
PAPER_NAMES: Mapping[str, str] = {
    "bc": "bc",
    "bc_paired": "bc",
    "diffusion_bc": "dbc",
    "implicit_bc": "implicit_bc",
    "diffusion_policy": "diffusion_policy",
    "diffusion_policy_ddim": "diffusion_policy",
}
"""The paper's name, in ``sb3_diffbc.tasks``, of the methods that it scores."""


def read_frame(source: str | Path) -> pd.DataFrame:
    """Reads the records of a suite.

    Args:
        source: a suite's name, or the path of a table or of a folder of cells.

    Returns:
        The columns of ``benchmarks.record.read_suite`` and one for each measure, by its name.
        Scores are in percent where they are success rates. ``title`` has the metric at its end
        and is an ordered category in the paper's order. Further columns, NaN where unknown:

        - ``method``: the variant's title, an ordered category;
        - ``scaled``: the score where random actions have 0 and the expert 1, see :func:`_scale`;
        - ``authors_data``: whether the demonstrations are those of the paper's authors;
        - ``paper_mean``, ``paper_std``: the paper's score of this method on this task.

    Raises:
        ValueError: if there are no records, or runs of a task are not about the same problem.
    """
    frame = read_suite(source)
    if frame.empty:
        raise ValueError(f"{source}: found no records, expected a suite that has run.")
    frame["title"] += ", " + frame["metric"].map(METRIC_TITLES)
    _check_problems(frame)
    measures = pd.DataFrame(list(frame["measures"]), index=frame.index)
    frame = frame.join(measures.reindex(columns=measures.columns.union(list(COSTS))))
    if "episodes" in frame:  # of records that kept the mean over them alone
        frame["n_episodes"] = frame["episodes"].fillna(frame["n_episodes"]).astype(int)
    factors = frame["metric"].map({"success": PERCENT, "return": 1.0})
    for name in ["score", *(name for name in measures if name.startswith("score/"))]:
        frame[name] *= factors
    frame["curve"] = [
        [{**checkpoint, "score": checkpoint["score"] * factor} for checkpoint in curve]
        for curve, factor in zip(frame["curve"], factors, strict=True)
    ]
    frame = frame.join(pd.DataFrame([_known(row) for row in frame.itertuples()], frame.index))
    frame["scaled"] = (frame["score"] - frame["zero"]) / (frame["one"] - frame["zero"])
    titles = frame.sort_values("place", kind="stable")["title"].unique()
    frame["title"] = pd.Categorical(frame["title"], titles, ordered=True)
    suite = SUITES.get(frame["suite"].iloc[0])
    own = {v.name: v.title for v in suite.variants if v.title} if suite else {}
    variants = set(frame["variant"])
    others = sorted(variants - {*METHOD_TITLES, *own}, key=_with_numbers)
    names = {**METHOD_TITLES, **own, **{name: name for name in others}}
    present = [title for name, title in names.items() if name in variants]
    frame["method"] = pd.Categorical(frame["variant"].map(names), present, ordered=True)
    return frame.sort_values(["title", "method", "seed"], ignore_index=True)


def scores_at(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Returns further scores of the runs, which are measures such as ``score/noise_1.5``.

    Args:
        frame: of :func:`read_frame`.
        name: of what they were measured at, here ``noise``.

    Returns:
        The frame with one row for each run and score, which is in ``score``; the number is in
        ``at``.
    """
    prefix = f"score/{name}_"
    measures = [column for column in frame if column.startswith(prefix)]
    parts = [
        frame.assign(score=frame[measure], at=float(measure.removeprefix(prefix)))
        for measure in measures
    ]
    return pd.concat([frame.head(0).assign(at=0.0), *parts]).dropna(subset="score")


def _with_numbers(name: str) -> tuple[list[str | int], str]:
    """Returns what names are sorted by, so that 5k stands before 20k."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def _known(row: Any) -> dict[str, Any]:
    """Returns what is known beforehand of a record's task, and of its method on it."""
    key = re.split("[+@]", row.task)[0]  # of benchmarks.problems; what follows is a condition
    task = TASKS.get(key.removesuffix(PAPER))
    authors_data = task is not None and key.endswith(PAPER)
    zero, one = (0.0, PERCENT) if row.metric == "success" else _scale(task, authors_data)
    paper = task.paper.get(PAPER_NAMES.get(row.variant, "")) if task else None
    return {
        "place": list(TASKS).index(task.name) if task else len(TASKS),
        "zero": zero,
        "one": one,
        "authors_data": authors_data,
        "paper_mean": paper.mean if paper else math.nan,
        "paper_std": paper.std if paper else math.nan,
    }


def _scale(task: Task | None, authors_data: bool) -> tuple[float, float]:
    """Returns the returns that become 0 and 1 where tasks are put together, NaN if unknown.

    0 is random actions' mean return. 1 is that of the expert that made the bundled demonstrations.
    The authors' demonstrations do not tell their own return: there it is that of the paper's BC.
    """
    if task is None:
        return math.nan, math.nan
    measured = expert_scores().query("task == @task.name and noise_ratio == 1")
    means = measured.set_index("who")["mean"]
    one = task.paper["bc"].mean if authors_data else means["expert"]
    return float(means["random"]), float(one)


def _check_problems(frame: pd.DataFrame) -> None:
    """Checks that all runs under one title are about the same problem and demonstrations."""
    digests = frame["demonstrations"].map(lambda demonstrations: demonstrations["sha256"])
    facts = frame[["title", "task", "env", "noise_ratio"]].assign(demonstrations=digests)
    for title, counts in facts.groupby("title").nunique().iterrows():
        mixed = [name for name, count in counts.items() if count > 1]
        if mixed:
            raise ValueError(f"{title}: found runs with different {', '.join(mixed)}.")
