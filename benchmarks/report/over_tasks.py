"""What can be said over several tasks: rliable's statistics of the scaled scores.

Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021. Its
stratified bootstrap over seeds gives intervals that are too narrow for three to five seeds, so no
verdict rests on them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from rliable import library, metrics

from benchmarks.methods.base import undisturbed_randomness
from benchmarks.report.statistics import CONFIDENCE, Estimate

REPETITIONS = 1000
FEWEST_TASKS = 2


def complete_runs(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the scaled scores of the seeds that a method has on all tasks.

    Args:
        frame: of :func:`benchmarks.report.frame.read_frame`. Tasks without a scale are left out.

    Returns:
        For each variant that has a complete seed its scores, one row for each such seed and one
        column for each task; nothing if there are fewer than two tasks.
    """
    scores = frame.pivot(index=["variant", "seed"], columns="title", values="scaled")
    scores = scores.dropna(axis="columns", how="all").dropna()
    if scores.shape[1] < FEWEST_TASKS:
        return {}
    order = dict.fromkeys(frame.sort_values("method")["variant"])
    present = set(scores.index.get_level_values("variant"))
    return {variant: scores.loc[variant] for variant in order if variant in present}


def interquartile_mean(scores: np.ndarray) -> Estimate:
    """Returns the mean of the middle half of all runs, ``(n_seeds, n_tasks)``."""
    return _estimate(metrics.aggregate_iqm, scores)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Returns how likely a run of one method scores higher than one of another.

    Both have the shape ``(n_seeds, n_tasks)``; it is the mean over tasks, ties counting half.
    """
    return _estimate(metrics.probability_of_improvement, first, second)


def _estimate(metric: Callable[..., float], *scores: np.ndarray) -> Estimate:
    """Returns rliable's estimate; without an interval if a method has one seed."""
    if min(map(len, scores)) == 1:
        return Estimate(float(metric(*scores)))
    # rliable draws from NumPy's global generator.
    with undisturbed_randomness():
        np.random.seed(0)  # noqa: NPY002
        values, intervals = library.get_interval_estimates(
            {"": scores[0] if len(scores) == 1 else list(scores)},
            lambda *drawn: np.array([metric(*drawn)]),
            reps=REPETITIONS,
            confidence_interval_size=CONFIDENCE,
        )
    return Estimate(float(values[""][0]), *map(float, intervals[""][:, 0]))
