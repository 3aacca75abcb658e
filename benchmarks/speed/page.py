"""The page about speed, written from the results."""

import pandas as pd

from benchmarks.report.pages import table
from benchmarks.speed.against_release import FIT, TRAINING
from benchmarks.speed.updates import CLONING, COMPILED, FULL, OURS

_MEMORY = "peak anonymous memory"
_LARGEST = "10,000,000 transitions"
LIMITS = {
    ("updates", "batch 128", CLONING): 0.5,
    ("updates", "batch 1024", CLONING): 0.2,
    ("updates", "batch 128", FULL): 1.0,
    ("updates", "batch 1024", FULL): 0.6,
    ("updates", "batch 1024", COMPILED): 0.6,
    ("critic", "walker", FIT): 0.1,
    ("critic", "cheetah", FIT): 0.1,
    ("training", "walker", TRAINING): 0.05,
    ("actions", "one observation", OURS): 0.1,
    ("data", f"{_LARGEST} in memory", "update"): 1.1,
    ("data", f"{_LARGEST} in memory", _MEMORY): 1.2,
    ("data", f"{_LARGEST} on disk", "update"): 1.1,
}
"""What was aimed at: the largest ratio by part, case and contestant."""

_TITLES = {
    "updates": "Updates",
    "actions": "Actions",
    "onnx": "An exported policy",
    "monitor": "A monitor",
    "scores": "Scores of pairs",
    "critic": "The critic's fit",
    "training": "A whole training",
    "data": "Many transitions",
}
_TEXTS = {
    "updates": "On the Maze's demonstrations, from the same initial policy.",
    "actions": "One action for one observation. BC's network is that of DiffusionBC.",
    "onnx": "One action for one observation, by the same network.",
    "monitor": "One step of one environment, judged by a critic of p(s, a) with the defaults.",
    "scores": "All of the demonstrations' pairs at once, by networks with the defaults; times are "
    "those of one pair.",
    "critic": "Whole fits with the defaults, in turns with stretches of the release's loop (its "
    "network is 1024 wide), both judged on the same held-out pairs under the same noise. The "
    "release's time is that to its best loss so far; a fit that ends above it would count as "
    "infinitely long.",
    "training": "Everything from the demonstrations to the trained policy.",
    "data": "Random demonstrations of 17 + 6 numbers, batches of 128. Memory is the process's "
    "anonymous memory (pages of files that are mapped do not count), from the arrays to a first "
    "block of updates, above what was there before.",
}


def limits_table(measurements: pd.DataFrame) -> str:
    """Returns what was aimed at beside what was measured, as a Markdown table."""
    keys = ["part", "case", "what"]
    limits = pd.Series(LIMITS, name="limit").rename_axis(keys).reset_index()
    found = limits.merge(measurements, on=keys, how="inner")
    shown = pd.DataFrame(
        {
            "what": found["what"],
            "case": found["case"],
            "relative to": found["relative_to"],
            "aim": found["limit"].map("≤ {:g}".format),
            "measured": _ratios(found),
            "": (found["ratio"] <= found["limit"]).map({True: "met", False: "**not met**"}),
        }
    )
    return table(shown)


def page(measurements: pd.DataFrame) -> str:
    """Returns the page.

    Args:
        measurements: rows of ``Measurement``, with a column ``run`` that tells how they were made.
    """
    parts = [
        "# Speed",
        "Written by `python -m benchmarks speed` from [speed.csv](speed.csv). Contestants run "
        "blocks in turns, in one process; a ratio is the median over rounds, in brackets the "
        "smallest and the largest.",
        limits_table(measurements),
    ]
    for part, title in _TITLES.items():
        rows = measurements[measurements["part"] == part]
        if len(rows):
            shown = _measurement_table(rows)
            parts += [f"## {title}", _TEXTS[part], shown, rows["run"].iloc[0] + "."]
    return "\n\n".join(parts) + "\n"


def _ratios(rows: pd.DataFrame) -> pd.Series:
    texts = [
        f"{ratio:.3g}" if low == high else f"{ratio:.3g} ({low:.3g} to {high:.3g})"
        for ratio, low, high in zip(rows["ratio"], rows["low"], rows["high"], strict=True)
    ]
    return pd.Series(texts, index=rows.index, dtype=str)


def _duration(milliseconds: float) -> str:
    if pd.isna(milliseconds):
        return ""
    if milliseconds < 1e3:
        return f"{milliseconds:.3g} ms"
    seconds = milliseconds / 1e3
    return f"{seconds:.3g} s" if seconds < 3600 else f"{seconds / 3600:.3g} h"


def _measurement_table(rows: pd.DataFrame) -> str:
    shown = pd.DataFrame(
        {
            "case": rows["case"],
            "what": rows["what"],
            "time": rows["milliseconds"].map(_duration),
            "ratio": _ratios(rows),
            "relative to": rows["relative_to"],
            "remark": rows["remark"].fillna(""),
        }
    )
    return table(shown.loc[:, (shown != "").any()])
