"""Intervals and probabilities against scipy's own, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("rliable")

from rliable import metrics

from benchmarks.report import statistics
from benchmarks.report.statistics import Estimate

RNG = np.random.default_rng(0)
FIVE = RNG.normal(90, 4, 5)
OTHER_FIVE = RNG.normal(85, 9, 5)
THREE = RNG.normal(50, 20, 3)


def bounds(estimate: Estimate) -> tuple[float | None, float | None]:
    return estimate.low, estimate.high


def test_the_mean_has_students_interval() -> None:
    estimate = statistics.mean(FIVE)
    expected = stats.ttest_1samp(FIVE, 0).confidence_interval(0.95)
    assert estimate.value == pytest.approx(FIVE.mean())
    assert bounds(estimate) == pytest.approx(expected)


def test_a_mean_by_hand() -> None:
    estimate = statistics.mean([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.302653, s = 1, n = 3
    assert bounds(estimate) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


def test_a_difference_has_welchs_interval() -> None:
    for first, second in itertools.permutations([FIVE, OTHER_FIVE, THREE], 2):
        estimate = statistics.difference(first, second)
        expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
        assert estimate.value == pytest.approx(first.mean() - second.mean())
        assert bounds(estimate) == pytest.approx(expected)


def test_differences_of_pairs_have_the_paired_tests_interval() -> None:
    estimate = statistics.mean(FIVE - OTHER_FIVE)
    expected = stats.ttest_rel(FIVE, OTHER_FIVE).confidence_interval(0.95)
    assert bounds(estimate) == pytest.approx(expected)


def test_a_sum_over_tasks_has_the_spread_that_simulation_finds() -> None:
    rng = np.random.default_rng(1)
    truth, hits, n = 0.5 * 3 - 0.25 * 7 + 2.0, 0, 2000
    for _ in range(n):
        samples = [(0.5, rng.normal(3, 1, 4)), (-0.25, rng.normal(7, 6, 5)), (1.0, [2.0, 2.0])]
        low, high = bounds(statistics.weighted_sum_of_means(samples))
        hits += low <= truth <= high
    assert hits / n == pytest.approx(0.95, abs=0.02)


def test_one_seed_gives_a_value_without_an_interval() -> None:
    for estimate in (
        statistics.mean([7.0]),
        statistics.difference([8.0], [1.0]),
        statistics.difference([7.0, 9.0], [1.0]),
        statistics.interquartile_mean(np.array([[7.0]])),
        statistics.probability_of_improvement(np.array([[2.0]]), np.array([[1.0], [0.0]])),
    ):
        assert bounds(estimate) == (None, None)
        assert not estimate.has_interval
        assert estimate.verdict is None
    assert statistics.mean([7.0]).value == statistics.difference([8.0], [1.0]).value == 7.0


def test_seeds_that_agree_exactly_give_an_interval_without_width() -> None:
    assert bounds(statistics.mean([5.0, 5.0, 5.0])) == (5.0, 5.0)
    assert statistics.difference([100.0] * 3, [100.0] * 3).verdict == "equal"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 2.0, "better"),
        (1e-12, 2.0, "better"),
        (0.0, 2.0, "equal"),
        (-1.0, 1.0, "equal"),
        (-2.0, 0.0, "equal"),
        (-2.0, -1e-12, "worse"),
        (0.0, 0.0, "equal"),
        (None, None, None),
    ],
)
def test_the_verdict_is_equal_exactly_if_the_interval_covers_zero(
    low: float | None, high: float | None, verdict: str | None
) -> None:
    assert Estimate(1.0, low, high).verdict == verdict


def test_mean_and_sample_standard_deviation() -> None:
    assert statistics.mean_and_std([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx((14 / 3) ** 0.5))
    assert statistics.mean_and_std([4.0]) == (4.0, None)


def test_bounds_are_kept_to_what_is_possible() -> None:
    assert Estimate(95.0, 80.0, 110.0).within(0, 100) == Estimate(95.0, 80.0, 100.0)
    assert Estimate(95.0).within(0, 100) == Estimate(95.0)


def test_a_matrix_has_as_many_seeds_as_every_task() -> None:
    found = statistics.matrix([[1.0, 2.0, 3.0], [4.0, 5.0]])
    np.testing.assert_array_equal(found, [[1.0, 4.0], [2.0, 5.0]])


def test_the_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    scores = np.array([[1.0, 2.0, 3.0, 4.0], [100.0, -50.0, 5.0, 6.0]])
    estimate = statistics.interquartile_mean(scores)
    assert estimate.value == pytest.approx(np.mean([2.0, 3.0, 4.0, 5.0]))
    low, high = bounds(estimate)
    assert scores.min() <= low <= estimate.value <= high <= scores.max()


def test_the_bootstrap_resamples_seeds_within_tasks_only() -> None:
    # Whatever seeds are drawn, each task keeps its own two scores.
    tasks_apart = np.array([[0.0, 1000.0], [0.0, 1000.0]])
    assert bounds(statistics.interquartile_mean(tasks_apart)) == (500.0, 500.0)


def test_the_bootstrap_interval_is_that_of_all_possible_draws() -> None:
    scores = [1.0, 2.0, 4.0, 7.0, 11.0]
    draws = np.array(list(itertools.product(scores, repeat=5)))
    low, high = np.percentile(np.sort(draws, axis=1)[:, 1:4].mean(axis=1), [2.5, 97.5])
    estimate = statistics.interquartile_mean(np.array(scores)[:, None])
    assert estimate.low == pytest.approx(low, abs=0.4)
    assert estimate.high == pytest.approx(high, abs=0.4)


def test_the_probability_of_improvement_is_rliables() -> None:
    rng = np.random.default_rng(2)
    for n_first, n_second in ((5, 5), (5, 3)):
        first = rng.integers(0, 6, (n_first, 4)).astype(float)
        second = rng.integers(0, 6, (n_second, 4)).astype(float)
        estimate = statistics.probability_of_improvement(first, second)
        assert estimate.value == pytest.approx(metrics.probability_of_improvement(first, second))
        low, high = bounds(estimate)
        assert 0 <= low <= estimate.value <= high <= 1


def test_the_probability_of_improvement_by_hand() -> None:
    def improvement(x: list[float], y: list[float]) -> float:
        return statistics.probability_of_improvement(
            np.array(x)[:, None], np.array(y)[:, None]
        ).value

    assert improvement([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert improvement([1.0, 1.0], [1.0, 1.0]) == 0.5
    assert improvement([0.0, 2.0], [1.0, 2.0]) == (0 + 0 + 1 + 0.5) / 4


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    scores = {"bc": np.array([[0.2, 0.8], [0.4, 0.6]])}
    thresholds = np.array([0.0, 0.2, 0.5, 0.7, 1.0])
    profiles, intervals = statistics.performance_profiles(scores, thresholds)
    np.testing.assert_allclose(profiles["bc"], [1.0, 0.75, 0.5, 0.25, 0.0])
    low, high = intervals["bc"]
    assert np.all(low <= profiles["bc"])
    assert np.all(profiles["bc"] <= high)


def test_the_bootstrap_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    scores = np.random.default_rng(3).random((5, 3))
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random(4)  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first = statistics.interquartile_mean(scores)
    np.testing.assert_array_equal(np.random.random(4), expected)  # noqa: NPY002
    assert statistics.interquartile_mean(scores) == first
    profiles = [
        statistics.performance_profiles({"bc": scores}, np.linspace(0, 1, 5))[1]["bc"]
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*profiles)
