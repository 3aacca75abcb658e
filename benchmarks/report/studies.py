"""The page of a study: what variants score under each condition, and how that differs from one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pandas as pd

from benchmarks.report.over_tasks import complete_runs
from benchmarks.report.pages import INTERVALS, VERDICTS, provenance, table, with_interval
from benchmarks.report.statistics import Estimate, difference, mean_score
from benchmarks.report.summaries import OVER_TASKS

CLEAN = "clean"
"""The condition of a task as it is."""

_CONDITION = r", \d+ (?:% \w+|trajectories)(?=, )"
_TRAINING = """\
All variants make 10,000 updates on batches of 128, with a learning rate that falls from 3e-4 to 0.
A variant names the cloning loss, and what the critic models and `dm_coef` ("BC" is 0)."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What a page says beside its tables.

    Attributes:
        title: of the page.
        about: what was done.
        baselines: variants that the others are compared with, run by run of the same seed.
        conditions: titles of the parts of tasks' keys that follow a ``+``, in their order.
    """

    title: str
    about: str
    baselines: tuple[str, ...]
    conditions: Mapping[str, str] = dataclasses.field(default_factory=dict)


_LABELS = Study(
    title="Bad labels",
    about=f"""\
A share of the actions is replaced, one by one, by uniform ones, by those of other trajectories or
by 0; or a share of the trajectories by those of a policy that was cloned for 500 updates.
{_TRAINING}""",
    baselines=("mse, BC", "l1, BC"),
    conditions={
        CLEAN: "Clean demonstrations",
        **{f"uniform{n}": f"{n} % of the actions are uniform" for n in (10, 25, 40)},
        **{
            f"swapped{n}": f"{n} % of the actions are those of other trajectories" for n in (10, 25)
        },
        **{f"zeros{n}": f"{n} % of the actions are 0" for n in (10, 25)},
        "novice25": "25 % of the trajectories are a half-trained policy's",
    },
)

STUDIES: Mapping[str, Study] = {
    "labels": _LABELS,
    "labels-tuning": dataclasses.replace(
        _LABELS, title="The search for what to try on bad labels, on episodes kept for tuning"
    ),
    "few": Study(
        title="Few demonstrations",
        about=f"The first trajectories alone are learnt from.\n{_TRAINING}",
        baselines=("mse, BC", "l1, BC"),
        conditions={f"few{n}": f"Trajectories: {n}" for n in (1, 2, 5, 10, 25, 30, 50, 100)},
    ),
}
"""By suite."""


def by_condition(frame: pd.DataFrame, suite: str) -> dict[str, pd.DataFrame]:
    """Returns the runs under each condition, in the study's order."""
    conditions = frame["task"].str.partition("+")[2].replace("", CLEAN)
    order = [key for key in STUDIES[suite].conditions if (conditions == key).any()]
    order += sorted(set(conditions) - set(order))
    return {key: frame[conditions == key] for key in order}


def study_page(frame: pd.DataFrame, suite: str, folder: str) -> str:
    """Returns a study's page: for each condition its scores, differences and figure.

    Args:
        frame: of :func:`benchmarks.report.frame.read_frame`.
        suite: its name.
        folder: of the figures, ``<condition>.png`` each.
    """
    study = STUDIES[suite]
    sections = []
    for key, runs in by_condition(frame, suite).items():
        scores, *differences = condition_tables(runs, *study.baselines)
        title = study.conditions.get(key, key)
        parts = [f"## {title}", f"![Scores: {title}]({folder}/{key}.png)", table(scores)]
        for baseline, found in zip(study.baselines, differences, strict=True):
            parts += [f"Differences from {baseline}, of runs of the same seed:", table(found)]
        sections.append("\n\n".join(parts) + "\n")
    shown = "\n".join(sections)
    return f"""\
# {study.title}

Written by `python -m benchmarks report {suite}`.

{study.about}

{INTERVALS}

{VERDICTS} "{OVER_TASKS}" is the mean of the scores on the report's shared scale: success rates from
0 to 1; returns are 0 for random actions, and 1 for the expert of the bundled demonstrations or, on
the authors' demonstrations, for the paper's BC. It has the variants and seeds that are complete.

{shown}
{provenance(frame)}
"""


def condition_tables(runs: pd.DataFrame, *baselines: str) -> list[pd.DataFrame]:
    """Returns what variants score, and how that differs from each baseline.

    Args:
        runs: of :func:`benchmarks.report.frame.read_frame`, under one condition.
        *baselines: variants.

    Returns:
        Frames of text with one row for each variant and one column for each task.
    """
    titles = without_condition(runs["title"])
    columns = {
        title: {
            variant: rows.set_index("seed")["score"]
            for variant, rows in found.groupby("variant", sort=False)
        }
        for title, found in runs.groupby(titles, sort=False)
    }
    metrics = dict(zip(titles, runs["metric"], strict=True))
    scaled = complete_runs(runs)
    if scaled:
        columns[OVER_TASKS] = {name: found.mean(axis=1) for name, found in scaled.items()}
        metrics[OVER_TASKS] = "return"
    variants = list(dict.fromkeys(runs.sort_values("method")["variant"]))
    scores = pd.DataFrame({"variant": variants})
    differences = [
        pd.DataFrame({"variant": [name for name in variants if name != baseline]})
        for baseline in baselines
    ]
    n_episodes = int(runs["n_episodes"].min())
    for title, by_variant in columns.items():
        digits = 3 if title == OVER_TASKS else 1
        scores[title] = [
            _mean(by_variant.get(name), metrics[title], n_episodes, digits) for name in variants
        ]
        for baseline, found in zip(baselines, differences, strict=True):
            found[title] = [
                _difference(by_variant.get(name), by_variant.get(baseline), metrics[title], digits)
                for name in found["variant"]
            ]
    return [scores, *differences]


def without_condition(titles: pd.Series) -> pd.Series:
    """Returns titles without the condition, which a heading names."""
    return titles.astype(str).str.replace(_CONDITION, "", regex=True)


def _mean(scores: pd.Series | None, metric: str, n_episodes: int, digits: int) -> str | None:
    if scores is None:
        return None
    estimate = mean_score(scores, metric, n_episodes)
    return f"{with_interval(*estimate, digits=digits)} ({len(scores)})"


def _difference(
    scores: pd.Series | None, base: pd.Series | None, metric: str, digits: int
) -> str | None:
    if scores is None or base is None:
        return None
    both = pd.concat([scores, base], axis=1, join="inner")
    if both.empty:
        return None
    estimate: Estimate = difference(both.iloc[:, 0], both.iloc[:, 1], metric, paired=True)
    if estimate.verdict not in ("better", "worse"):
        return with_interval(*estimate, digits=digits)
    return f"**{estimate.verdict}**: {with_interval(*estimate, digits=digits)}"
