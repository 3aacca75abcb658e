"""The pages: tables of the statistics, what is needed to read them, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from benchmarks.report.frame import COSTS
from benchmarks.report.summaries import (
    OURS,
    OVER_TASKS,
    WITHOUT_CRITIC,
    Statistics,
    compare,
    summarise,
)

NOTHING = "–"
FIGURES: Mapping[str, tuple[str, str]] = {
    "scores": (
        "Scores",
        "Mean over training seeds with its 95 % interval; small dots: single seeds; diamonds: the "
        "paper's score, where it is about the same demonstrations. A method whose mean is less "
        "than 70 % of the best one's is named with its mean at the axis' left end. Axes show the "
        "runs; an interval may reach further.",
    ),
    "learning-curves": (
        "Learning curves",
        "Mean over training seeds, band: from the lowest to the highest seed. A checkpoint is "
        "scored on fewer episodes than the final score, from other environment seeds.",
    ),
}
"""Title and caption of each figure, by the name of its file."""

INTERVALS = """\
The unit is a training run: its score is the mean over its evaluation episodes. **Intervals** are
95 % intervals over training seeds: Student's or Welch's for returns, and for success rates those
of a bootstrap, which stay within what is possible; of one run, Wilson's over its episodes. With
five seeds the bootstrap's cover the truth in about nine of ten cases rather than in 95 %, with
three in eight of ten; of two seeds all have Student's. One without width, as [100.0, 100.0], means
that all seeds scored the same, not that the next one must."""

VERDICTS = """\
**Better** and **worse** mean that the interval of a difference is clear of zero. Where neither word
stands, **no difference is shown**, which is no proof that there is none: the interval says how
large it may be. Nothing is corrected for the number of comparisons."""

_OVER_TASKS = """\
Scores on one scale: success rates from 0 to 1; returns are 0 for random actions, and 1 for the
expert of the bundled demonstrations or, on the authors' demonstrations, for the paper's BC. A
method counts with the seeds that it has on every task. The interquartile mean (IQM) and P, the
probability that a run of DiffusionBC scores higher than one of the method, are rliable's, with its
bootstrap over seeds, whose intervals are too narrow for so few."""


def comparison_page(
    frame: pd.DataFrame, statistics: Statistics, figures: Iterable[str], folder: str
) -> str:
    """Returns the page of a comparison of methods, with those ``FIGURES`` that were drawn."""
    pictures = "\n".join(
        f"![{FIGURES[name][0]}]({folder}/{name}.png)\n\n{FIGURES[name][1]}\n" for name in figures
    )
    return f"""\
# The comparison

Written by `python -m benchmarks report comparison`.

{INTERVALS}

{VERDICTS}

## DiffusionBC and the same training without L_DM

The BC here has DiffusionBC's policy, optimiser, batches, number of updates and seeds; only L_DM is
missing. Differences are those of runs of the same seed.

{main_table(frame)}

## The paper's score of DBC

What the paper reports on its authors' own demonstrations, and what DiffusionBC reaches on them.

{_targets_table(statistics.methods)}

## All differences

Mean of the first minus mean of the second, of independent runs except for the pair above.

{_differences_table(statistics.differences)}

## Over tasks

{_OVER_TASKS}

{_over_tasks_table(statistics.over_tasks)}

## Figures

{pictures}
## Scores and costs

± is the sample standard deviation over seeds. The paper's scores marked * are about other
demonstrations than here. CPU seconds and latency (of one action) are medians over seeds; those of
methods that ran on different processors, which the end of the page lists, cannot be compared.

{_details_table(statistics.methods)}

{provenance(frame)}
"""


def main_table(frame: pd.DataFrame) -> str:
    """Returns the README's table: DiffusionBC, the same training without L_DM, the difference."""
    pair = frame[frame["variant"].isin([OURS, WITHOUT_CRITIC])]
    if pair.empty:
        return table(pair)
    methods, main = summarise(pair), compare(pair)
    columns = [
        methods.assign(cell=_intervals(methods), column=methods["method"].astype(str)),
        main.assign(cell=_with_verdicts(main), column="difference"),
    ]
    rows = pd.concat(columns)[["title", "column", "cell"]]
    rows = rows[rows["title"] != OVER_TASKS]
    wide = rows.pivot(index="title", columns="column", values="cell")
    wide = wide.loc[methods["title"].unique(), rows["column"].unique()]
    return table(wide.rename_axis(columns=None).reset_index(names="mean [95 % interval]"))


def provenance(frame: pd.DataFrame) -> str:
    """Returns how a suite was made: demonstrations, seeds, episodes, commands and versions."""
    facts = []
    for title, runs in frame.groupby("title", observed=True):
        row = runs.iloc[0]
        data = row["demonstrations"]
        facts.append(
            {
                "task": title,
                "environment": f"`{row['env']}`, noise ratio {row['noise_ratio']:g}",
                "demonstrations": f"`{data['source']}`, sha256 `{data['sha256'][:12]}`",
                "transitions (episodes)": f"{data['transitions']:,} ({data['episodes']:,})",
                "evaluation episodes": _span(runs["n_episodes"]),
                "their seeds from": _span(runs["first_episode_seed"]),
                "training seeds": _span(runs["seed"]),
            }
        )
    changed = frame["git_dirty"].map({True: " with changes"}).fillna("")
    revisions = (frame["git_revision"].str[:12] + changed).dropna()
    versions = (f"{name} {version}" for row in frame["versions"] for name, version in row.items())
    machines = (f"{name} {value}" for row in frame["machine"] for name, value in row.items())
    commands = "\n".join(sorted(set(frame["command"])))
    return f"""\
## Provenance

{table(pd.DataFrame(facts))}

- revisions: {_listed(revisions)}
- versions: {_listed(versions)}
- machines: {_listed(machines)}

Commands, as they were at these revisions:

```
{commands}
```"""


def _targets_table(methods: pd.DataFrame) -> str:
    ours = methods[methods["authors_data"] & (methods["variant"] == OURS)]
    rows = {
        "task": ours["title"],
        "paper's DBC": ours["paper_mean"].map(number),
        "DiffusionBC [95 % interval]": _intervals(ours),
        "the mean": np.where(ours["value"] >= ours["paper_mean"], "reaches it", "is below"),
    }
    return table(pd.DataFrame(rows))


def _differences_table(differences: pd.DataFrame) -> str:
    cells = differences.assign(cell=_with_verdicts(differences))
    return table(_matrix(cells, "pair", "difference"))


def _over_tasks_table(over_tasks: pd.DataFrame) -> str:
    rows = {
        "method": over_tasks["method"],
        "seeds × tasks": [f"{row.seeds} × {row.tasks}" for row in over_tasks.itertuples()],
        "mean": [number(mean, 3) for mean in over_tasks["mean"]],
        "IQM [95 % interval]": [with_interval(*iqm, digits=3) for iqm in over_tasks["iqm"]],
        "P [95 % interval]": [with_interval(*p, digits=2) for p in over_tasks["improvement"]],
    }
    return table(pd.DataFrame(rows))


def _details_table(methods: pd.DataFrame) -> str:
    papers = [
        f"{number(row.paper_mean)} ± {number(row.paper_std)}{'' if row.authors_data else ' *'}"
        for row in methods.itertuples()
    ]
    rows = {
        "task": methods["title"],
        "method": methods["method"],
        "seeds": methods["seeds"],
        "mean [95 % interval]": _intervals(methods),
        "±": methods["std"].map(number),
        "paper": pd.Series(papers, methods.index).where(methods["paper_mean"].notna(), NOTHING),
    }
    costs = {title: methods[name].map(short) for name, title in COSTS.items()}
    return table(pd.DataFrame(rows | costs))


def _intervals(rows: pd.DataFrame) -> pd.Series:
    """Returns value and interval of each row as text."""
    texts = [
        with_interval(row.value, row.low, row.high, digits=3 if row.title == OVER_TASKS else 1)
        for row in rows.itertuples()
    ]
    return pd.Series(texts, rows.index, dtype=object)


def _with_verdicts(differences: pd.DataFrame) -> pd.Series:
    """Returns the differences as text, after the verdict where an interval is clear of zero."""
    words = {"better": "**better**: ", "worse": "**worse**: "}
    return differences["verdict"].map(words).fillna("") + _intervals(differences)


def _matrix(rows: pd.DataFrame, index: str, heading: str) -> pd.DataFrame:
    """Returns the column ``cell`` with a row for each ``index`` and a column for each title."""
    wide = rows.pivot(index=index, columns="title", values="cell")
    return wide.rename_axis(columns=None).reset_index(names=heading)


def _span(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(sorted(set(texts))) or "not recorded"


def number(value: float, digits: int = 1) -> str:
    """Returns a number with so many decimals, without a negative zero; a dash for NaN."""
    return NOTHING if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def short(value: float) -> str:
    """Returns a measured number with at least three digits; a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(value: float, low: float, high: float, *, digits: int = 1) -> str:
    """Returns a value followed by its interval in brackets, where it has one."""
    text = number(value, digits)
    if math.isnan(low):
        return text
    return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def table(frame: pd.DataFrame) -> str:
    """Returns a frame as a Markdown table without its index; a sentence if there are no rows."""
    if frame.empty:
        return "There are no results for this table."
    cells = frame.astype(object).where(frame.notna(), NOTHING).astype(str)
    escaped = cells.replace(r"\|", r"\\|", regex=True)
    return str(escaped.to_markdown(index=False, disable_numparse=True))
