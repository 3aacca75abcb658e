"""Means, intervals and probabilities over training seeds.

The unit is a training run: its score is one number, the mean over its episodes, because episodes
of the same policy say nothing of how another training seed would fare. Means and their differences
have Student's intervals, which stay honest with three or five seeds. Interquartile means,
probabilities of improvement and performance profiles are those of rliable (Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice", 2021) with its stratified
bootstrap.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from rliable import library as rliable
from rliable import metrics
from scipy import stats

CONFIDENCE = 0.95
BOOTSTRAP_SAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval, without bounds where a seed alone allows none."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether there are bounds."""
        return self.low is not None and self.high is not None

    @property
    def verdict(self) -> str | None:
        """For a difference: better, worse, or equal if the interval covers 0; None without one."""
        if self.low is None or self.high is None:
            return None
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "equal"

    def within(self, lowest: float, highest: float) -> Estimate:
        """Keeps the bounds to values that are possible."""
        if self.low is None or self.high is None:
            return self
        return Estimate(self.value, max(self.low, lowest), min(self.high, highest))


def mean_and_std(scores: Sequence[float]) -> tuple[float, float | None]:
    """Gives what papers print.

    Args:
        scores: One for each seed, at least one.

    Returns:
        Mean and sample standard deviation (n - 1 in the denominator); None for that of one seed.
    """
    std = float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    return float(np.mean(scores)), std


def mean(scores: Sequence[float]) -> Estimate:
    """Gives the mean over seeds with Student's interval.

    Args:
        scores: One for each seed, at least one.

    Returns:
        The mean; without an interval for one seed.
    """
    return weighted_sum_of_means([(1.0, scores)])


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Gives the difference of two independent means with Welch's interval.

    Args:
        first: Scores of one method, one for each seed.
        second: Scores of the other.

    Returns:
        The first mean minus the second; without an interval if either has one seed.
    """
    return weighted_sum_of_means([(1.0, first), (-1.0, second)])


def weighted_sum_of_means(samples: Sequence[tuple[float, Sequence[float]]]) -> Estimate:
    """Gives a weighted sum of independent samples' means with its interval.

    The degrees of freedom are those of Welch and Satterthwaite (Welch, "The generalization of
    'Student's' problem when several different population variances are involved", 1947), so that
    one sample gives Student's interval, and two with weights 1 and -1 Welch's.

    Args:
        samples: Weights and samples.

    Returns:
        The sum; without an interval if a sample has one value only.
    """
    value = float(sum(weight * np.mean(sample) for weight, sample in samples))
    sizes = np.array([len(sample) for _, sample in samples])
    if min(sizes) < 2:
        return Estimate(value)
    variances = np.array([weight**2 * stats.sem(sample) ** 2 for weight, sample in samples])
    if not variances.any():
        return Estimate(value, value, value)
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(variances.sum())
    return Estimate(value, float(value - half), float(value + half))


def matrix(tasks: Sequence[Sequence[float]]) -> np.ndarray:
    """Puts scores into the shape that rliable takes.

    Args:
        tasks: For each task the scores of its seeds.

    Returns:
        Scores of shape `(n_seeds, n_tasks)`: as many of the first seeds as every task has.
    """
    n_seeds = min(len(scores) for scores in tasks)
    return np.array([list(scores)[:n_seeds] for scores in tasks], dtype=float).T


def interquartile_mean(scores: np.ndarray) -> Estimate:
    """Gives rliable's interquartile mean over seeds and tasks with its bootstrap interval.

    Args:
        scores: Of shape `(n_seeds, n_tasks)`.

    Returns:
        The mean of the middle half; without an interval for one seed.
    """
    return _bootstrapped(lambda drawn: np.array([metrics.aggregate_iqm(drawn)]), scores)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Gives how likely a run of one method beats one of another, on average over tasks.

    Equals rliable's `metrics.probability_of_improvement` (the Mann-Whitney statistic), which also
    has scipy work out a p-value for every bootstrap sample and so takes thirty times as long.

    Args:
        first: Scores of shape `(n_seeds, n_tasks)`.
        second: Scores of the other method on the same tasks; its seeds may be more or fewer.

    Returns:
        The probability, ties counting half, with its stratified bootstrap interval; without one if
        either has one seed.
    """

    def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        above = x[:, None] > y[None]
        tied = x[:, None] == y[None]
        return np.array([above.mean() + tied.mean() / 2])

    return _bootstrapped(improvement, first, second)


def performance_profiles(
    scores: Mapping[str, np.ndarray], thresholds: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Gives rliable's performance profiles: the share of runs above each threshold.

    Args:
        scores: Of each method, of shape `(n_seeds, n_tasks)`.
        thresholds: Of shape `(n_thresholds,)`.

    Returns:
        For each method the shares, of shape `(n_thresholds,)`, and the bounds of their pointwise
        intervals, of shape `(2, n_thresholds)`.
    """
    with _seeded():
        return rliable.create_performance_profile(
            dict(scores),
            thresholds,
            # The library's own function, without its loop over thresholds.
            custom_profile_func=lambda runs, taus: np.mean(runs[..., None] > taus, axis=(0, 1)),
            reps=BOOTSTRAP_SAMPLES,
            confidence_interval_size=CONFIDENCE,
        )


def _bootstrapped(statistic, *scores: np.ndarray) -> Estimate:  # type: ignore[no-untyped-def]
    if min(len(array) for array in scores) < 2:
        return Estimate(float(statistic(*scores)[0]))
    with _seeded():
        values, intervals = rliable.get_interval_estimates(
            {"": scores[0] if len(scores) == 1 else list(scores)},
            statistic,
            reps=BOOTSTRAP_SAMPLES,
            confidence_interval_size=CONFIDENCE,
        )
    (low,), (high,) = intervals[""]
    return Estimate(float(values[""][0]), float(low), float(high))


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Has NumPy's global generator draw the same within, and go on as before afterwards.

    rliable's bootstrap draws from that generator whatever its `random_state` is.
    """
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
