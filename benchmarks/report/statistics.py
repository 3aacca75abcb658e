"""Means and differences over training seeds with their 95 % intervals.

The unit is a training run: its score is one number, the mean over its episodes, because episodes
of one policy do not tell how another training seed fares.

Returns have Student's intervals, Welch's for a difference of two methods. Success rates have
bootstrap intervals over seeds, which cannot leave what is possible. The bootstrap's percentiles
are expanded for few seeds (Hesterberg, "What Teachers Should Know About the Bootstrap", 2015).
In simulated rates of 100 episodes such an interval of ten seeds covers the truth in
95 % of cases, of five in 91 % (without the expansion 83 %) and of three, where it is the range of
the seeds, in 80 %. Of two it would be half of the cases: they have Student's, too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
PERCENT = 100.0


class Estimate(NamedTuple):
    """A value and its interval; the bounds are NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def verdict(self) -> str:
        """For a difference: what the interval says of it."""
        if math.isnan(self.low):
            return "no interval"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference shown"


def mean_score(scores: ArrayLike, metric: str, n_episodes: int) -> Estimate:
    """Returns the mean over training seeds.

    Args:
        scores: of shape ``(n_seeds,)``, success rates in percent.
        metric: ``"success"`` or ``"return"``.
        n_episodes: behind each score.

    Returns:
        The mean. One seed's success rate has Wilson's interval over its episodes, if there are
        several; one seed's return has none.
    """
    runs = np.asarray(scores, dtype=float)
    value = float(runs.mean())
    if len(runs) > 1:
        return Estimate(value, *_interval(metric, 0.0, runs))
    if metric == "success" and n_episodes > 1:
        wins = round(value / PERCENT * n_episodes)
        low, high = stats.binomtest(wins, n_episodes).proportion_ci(CONFIDENCE, method="wilson")
        return Estimate(value, PERCENT * low, PERCENT * high)
    return Estimate(value)


def difference(first: ArrayLike, second: ArrayLike, metric: str, *, paired: bool) -> Estimate:
    """Returns how much higher the first mean is than the second.

    Args:
        first: scores of one method, of shape ``(n_first,)``, success rates in percent.
        second: scores of another, of shape ``(n_second,)``.
        metric: ``"success"`` or ``"return"``.
        paired: whether scores at the same place belong together: they have the same seed.

    Returns:
        The difference; without an interval if a method has one seed.
    """
    samples = [np.asarray(first, dtype=float), np.asarray(second, dtype=float)]
    value = float(samples[0].mean() - samples[1].mean())
    if paired:
        samples = [samples[0] - samples[1]]
    if min(map(len, samples)) == 1:
        return Estimate(value)
    return Estimate(value, *_interval(metric, -PERCENT, *samples))


def _interval(metric: str, least: float, *samples: np.ndarray) -> tuple[float, float]:
    """Returns the interval for a metric; of success rates, ``least`` is the least possible."""
    if metric == "return":
        return _student(*samples)
    low, high = _bootstrap(*samples) if min(map(len, samples)) > 2 else _student(*samples)
    return max(low, least), min(high, PERCENT)


def _student(*samples: np.ndarray) -> tuple[float, float]:
    """Returns Student's interval of a mean, or Welch's of the difference of two."""
    if not any(np.ptp(sample) for sample in samples):  # scipy's bounds are NaN here
        value = samples[0].mean() - sum(sample.mean() for sample in samples[1:])
        return float(value), float(value)
    if len(samples) == 1:
        test = stats.ttest_1samp(samples[0], 0.0)
    else:
        test = stats.ttest_ind(*samples, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return float(low), float(high)


def _bootstrap(*samples: np.ndarray) -> tuple[float, float]:
    """Returns the expanded percentile interval of a mean, or of the difference of two."""

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        first, *second = (sample.mean(axis=axis) for sample in drawn)
        return first - second[0] if second else first

    n = min(map(len, samples))
    quantile = math.sqrt(n / (n - 1)) * stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    found = stats.bootstrap(
        samples,
        statistic,
        confidence_level=1 - 2 * stats.norm.sf(quantile),
        n_resamples=20_000,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)
