"""The page of the study of what tells bad actions from good ones."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from benchmarks.report.pages import number, provenance, table
from benchmarks.report.studies import CONDITIONS, by_condition

SCORERS: Mapping[str, str] = {
    "critic/action": "critic of p(a given s): its score",
    "critic/state_action": "critic of p(s, a): its score",
    "residual": "clone: its score",
    "both/action": "both: critic of p(a given s) and clone",
    "both/state_action": "both: critic of p(s, a) and clone",
    "absolute": "clone: absolute error alone",
    "squared": "clone: squared error alone",
    "relative": "clone: absolute error, relative to that elsewhere",
    "loss/action": "critic of p(a given s): L_diff alone",
    "loss/state_action": "critic of p(s, a): L_diff alone",
    "one_draw/action": "critic of p(a given s): one draw of L_diff",
    "one_draw/state_action": "critic of p(s, a): one draw of L_diff",
}
"""What each scorer is called, in the order of tables."""

_ABOUT = """\
How often a scorer rates a good action above a bad one (AUROC; 1 is always, 0.5 is chance), where a
share of the demonstrations' actions or trajectories was replaced. Critics and clone were fitted to
the same demonstrations, bad ones included. A score is that of `DiffusionCritic.score` or
`PolicyResidual.score`, "both" the mean of the places of a pair in two of them, "L_diff alone" the
critic's loss under the same draws without a comparison with other observations. The clone learns
by the absolute error for 9,000 updates and leaves out twice what looks bad to it, the critics
learn for 6,000 steps. Means over training seeds ± their sample standard deviation."""


def scores_page(frame: pd.DataFrame) -> str:
    """Returns the page of a suite of scorers, for each condition a table of scorers and tasks."""
    sections = []
    for key, runs in by_condition(frame).items():
        parts = [f"## {CONDITIONS.get(key, key)}"]
        for kind, about in (("auroc", "Single actions:"), ("auroc_trajectories", "Trajectories:")):
            found = condition_table(runs, kind)
            if not found.empty:
                parts += [about, table(found)]
        sections.append("\n\n".join(parts) + "\n")
    shown = "\n".join(sections)
    return f"""\
# What tells bad actions from good ones

Written by `python -m benchmarks report scores`.

{_ABOUT}

## All tasks

{main_table(frame)}

{shown}
{provenance(frame)}
"""


def main_table(frame: pd.DataFrame) -> str:
    """Returns each scorer's AUROC of single actions, the mean over tasks.

    A column is one condition that all tasks have.
    """
    columns = {}
    n_tasks = frame["task"].str.partition("+")[0].nunique()
    for condition, runs in by_condition(frame).items():
        if runs["task"].nunique() < n_tasks:
            continue
        columns[condition] = {
            name: number(values.groupby(runs["task"]).mean().mean(), 3)
            for name, values in _values(runs, "auroc").items()
        }
    return table(pd.DataFrame(columns).rename_axis("mean AUROC over tasks").reset_index())


def condition_table(runs: pd.DataFrame, kind: str) -> pd.DataFrame:
    """Returns each scorer's AUROC on each task, as text; no rows where nothing was measured.

    Args:
        runs: of :func:`benchmarks.report.frame.read_frame`, under one condition.
        kind: ``"auroc"`` of single actions, or ``"auroc_trajectories"``.
    """
    columns = {}
    for title, found in runs.groupby("title", observed=True):
        columns[title] = {
            row: number(values.mean(), 3)
            + (f" ± {number(values.std(), 3)}" if len(values) > 1 else "")
            for row, values in _values(found, kind).items()
        }
    return pd.DataFrame(columns).rename_axis("scorer").reset_index()


def _values(runs: pd.DataFrame, kind: str) -> dict[str, pd.Series]:
    """Returns the runs' values by scorer."""
    names = {title: f"{kind}/{scorer}" for scorer, title in SCORERS.items()}
    values = {title: runs[name].dropna() for title, name in names.items() if name in runs}
    return {title: found for title, found in values.items() if len(found)}
