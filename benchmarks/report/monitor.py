"""The page of the study of what warns before a policy fails."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from benchmarks.report.pages import INTERVALS, number, provenance, table, with_interval
from benchmarks.report.statistics import PERCENT, difference, mean_score

DETECTORS: Mapping[str, str] = {
    "critic": "critic of p(s, a)",
    "ensemble": "five clones: their disagreement",
    "nearest": "distance to the nearest demonstration",
}
"""What each detector is called, in the order of tables."""

MEASURES: Mapping[str, tuple[str, str]] = {
    "auroc": ("AUROC, highest mean", "success"),
    "auroc_mean": ("AUROC, mean of the episode", "success"),
    "auroc_first": ("AUROC, first 30 steps", "success"),
    "false_alarms/expert": ("alarms, expert", "success"),
    "false_alarms/success": ("alarms, successes", "success"),
    "warned": ("failures warned of", "success"),
    "warning_steps": ("steps of warning", "return"),
}
"""Headings, and kinds of intervals: shares have those of success rates."""
_DIGITS = {"success": 2, "return": 0}

_PARTS = {"auroc": "whole episode", "auroc_first": "first 30 steps"}

_ABOUT = """\
Each run clones a policy from at most 5,000 of the demonstrations' transitions and watches 100 of
its episodes at a noise ratio of 2; that of Walker is fixed. An episode fails that does not reach
its goal, or where there is none, ends before the time limit. All detectors judge the same episodes
of the same policy and learnt from the same demonstrations: the critic of p(s, a) of the pairs, five
clones by the deviation of their actions in units of the demonstrated ones', the nearest
demonstration by the distance of standardised observations.

AUROC is how often a failing episode has more than another (1 is always, 0.5 is chance), by the
highest mean over ten steps, by the mean of the whole episode, and by the highest mean within the
first 30 steps alone. These compare like with like: in whole episodes, those that last longer have
more windows and a higher highest mean, which is for the failing ones where successes end early, and
against them where failures do.

Thresholds are conformal ones for a false alarm rate of 0.05, from half of the held-out
trajectories. "Alarms, expert" is the share of the other half with an alarm, "successes" that of the
policy's episodes that do not fail, "failures warned of" that of the failing ones with an alarm
before their last step, and "steps of warning" the median of the steps that were left. Where fewer
than 19 trajectories set a threshold, there is none. Where all episodes failed, or none, there is no
AUROC."""


def monitor_page(frame: pd.DataFrame) -> str:
    """Returns the page of the suite, for each task a table of detectors and measures."""
    sections = []
    for title, runs in frame.groupby("title", sort=False, observed=True):
        failures = ", ".join(number(count, 0) for count in runs["failures"])
        sections += [f"## {title}", f"Failing episodes by run: {failures} of 100.", _table(runs)]
    return f"""\
# Does the policy know where it is?

Written by `python -m benchmarks report monitor`.

{_ABOUT}

{INTERVALS}

## All tasks

{main_table(frame)}

{chr(10).join(f"{part}{chr(10)}" for part in sections)}
{provenance(frame)}
"""


def main_table(frame: pd.DataFrame) -> str:
    """Returns each detector's AUROC on each task, and the critic's less the better rival's."""
    columns: dict[str, dict[str, str | None]] = {}
    for title, runs in frame.groupby("title", sort=False, observed=True):
        column: dict[str, str | None] = {}
        for measure, part in _PARTS.items():
            found = {name: _values(runs, measure, name) for name in DETECTORS}
            for name, values in found.items():
                column[f"{part}: {DETECTORS[name]}"] = _interval(values, "success")
            rivals = [values for name, values in found.items() if name != "critic" and len(values)]
            if rivals and len(found["critic"]):
                rival = max(rivals, key=lambda values: values.mean())
                gain = difference(found["critic"], rival, "success", paired=True)
                column[f"{part}: critic − better rival"] = with_interval(*gain, digits=2)
        columns[str(title).rpartition(", ")[0]] = column
    return table(pd.DataFrame(columns).rename_axis("AUROC of the highest mean").reset_index())


def _table(runs: pd.DataFrame) -> str:
    rows = {
        heading: {
            detector: _interval(_values(runs, measure, name), metric)
            for name, detector in DETECTORS.items()
        }
        for measure, (heading, metric) in MEASURES.items()
    }
    return table(pd.DataFrame(rows).rename_axis("detector").reset_index())


def _values(runs: pd.DataFrame, measure: str, detector: str) -> pd.Series:
    name = f"{measure}/{detector}"
    return runs[name].dropna() if name in runs else pd.Series(dtype=float)


def _interval(values: pd.Series, metric: str) -> str | None:
    """Returns the mean over seeds with its interval; of one seed, the value alone."""
    if values.empty:
        return None
    scale = PERCENT if metric == "success" else 1
    mean = mean_score(scale * values, metric, 1)
    return with_interval(*(value / scale for value in mean), digits=_DIGITS[metric])
