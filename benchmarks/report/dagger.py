"""The page of the study of gates in DAgger: scores against the expert's labels."""

from __future__ import annotations

import pandas as pd

from benchmarks.report.frame import scores_at
from benchmarks.report.pages import (
    INTERVALS,
    VERDICTS,
    number,
    provenance,
    short,
    table,
    with_interval,
)
from benchmarks.report.statistics import mean_score
from benchmarks.report.studies import paired_difference

PLAIN = "none"
"""The variant without a gate."""

_ABOUT = """\
DAgger from a few demonstrations, in rounds: the learner acts until the expert was asked for the
round's labels, then it is trained on all demonstrations and labels so far. "none" asks at each
step, as plain DAgger does; "random" at a quarter of the steps; "ensemble" where four clones differ
more, and "critic" where L_diff of a critic of p(s, a) is larger, than on nine tenths of held-out
transitions, the last fifth of the demonstrations. Their models are fitted to the others and to all
labels so far before each round. With "takeover" the expert also acts where it is asked. A round
ends in any case after eight steps for each label, so that a gate may have asked for fewer labels
than its budget."""


def dagger_page(frame: pd.DataFrame, folder: str) -> str:
    """Returns the study's page.

    Args:
        frame: of :func:`benchmarks.report.frame.read_frame`.
        folder: of the figure ``labels.png``.
    """
    sections = "\n".join(
        f"## {title}\n\n{table(_scores_table(runs))}\n"
        for title, runs in scores_at(frame, "labels").groupby("title", observed=True)
    )
    return f"""\
# Fewer labels for DAgger

Written by `python -m benchmarks report dagger`.

{_ABOUT}

{INTERVALS}

{VERDICTS}

![Scores against the expert's labels]({folder}/labels.png)

Mean over training seeds, band: from the lowest to the highest seed.

## Half of the labels

{main_table(frame)}

{sections}
{provenance(frame)}
"""


def main_table(frame: pd.DataFrame) -> str:
    """Returns what each gate reaches with half of the labels, next to plain DAgger with all."""
    rows = []
    for title, points in scores_at(frame, "labels").groupby("title", observed=True):
        metric, n_episodes = points["metric"].iloc[0], int(points["n_episodes"].min())
        spent = points["at"].unique()
        full = int(spent.max())
        half = int(min(spent, key=lambda n: abs(n - full / 2)))
        by_seed = points.set_index(["variant", "at", "seed"])["score"].sort_index()
        for variant, runs in points[points["at"] == full].groupby("variant", sort=False):
            scores, last = by_seed[variant, half], by_seed[variant, full]
            plain = by_seed[PLAIN, full] if PLAIN in by_seed else None
            rows.append(
                {
                    "task": title,
                    "gate": variant,
                    "seeds": len(scores),
                    "labels": f"{half:,}",
                    "score [95 % interval]": with_interval(*mean_score(scores, metric, n_episodes)),
                    f"minus {PLAIN} with all": paired_difference(scores, plain, metric),
                    "with all labels": with_interval(*mean_score(last, metric, n_episodes)),
                    "labels asked for": short(runs[f"expert_labels/labels_{full}"].mean()),
                    "steps": short(runs[f"env_steps/labels_{full}"].mean()),
                }
            )
    return table(pd.DataFrame(rows))


def _scores_table(points: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each gate and a column for each number of labels."""
    means = (
        points.groupby(["variant", "at"], sort=False)["score"].mean().unstack().sort_index(axis=1)
    )
    shown = means.map(number)
    shown.columns = [f"{n:,.0f}" for n in shown.columns]
    return shown.reset_index(names="mean score after labels")
