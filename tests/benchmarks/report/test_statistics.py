"""Means and differences over seeds and their intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.report.statistics import Estimate, difference, mean_score

rates = st.lists(st.integers(0, 100).map(float), min_size=2, max_size=6)


def test_returns_have_students_interval() -> None:
    scores = [10.0, 12.0, 17.0]
    half = stats.t.ppf(0.975, 2) * np.std(scores, ddof=1) / math.sqrt(3)
    assert mean_score(scores, "return", 100) == pytest.approx((13.0, 13.0 - half, 13.0 + half))


def test_a_difference_of_returns_has_welchs_interval() -> None:
    first, second = [10.0, 12.0, 17.0], [1.0, 30.0]
    variances = [np.var(first, ddof=1) / 3, np.var(second, ddof=1) / 2]
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 1)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(variances))
    found = difference(first, second, "return", paired=False)
    assert found == pytest.approx((-2.5, -2.5 - half, -2.5 + half))


def test_paired_runs_are_compared_by_their_differences() -> None:
    first, second = [100.0, 201.0, 303.0], [97.0, 197.0, 300.0]
    paired = difference(first, second, "return", paired=True)
    assert paired == pytest.approx(mean_score([3.0, 4.0, 3.0], "return", 100))
    assert paired.verdict == "better"
    assert difference(first, second, "return", paired=False).verdict == "no difference shown"


@given(rates, rates)
def test_intervals_of_success_rates_stay_within_what_is_possible(
    first: list[float], second: list[float]
) -> None:
    value, low, high = mean_score(first, "success", 100)
    least, most = (0.0, 100.0) if len(first) == 2 else (min(first), max(first))
    assert least - 1e-9 <= low <= value + 1e-9
    assert value - 1e-9 <= high <= most + 1e-9
    _, low, high = difference(first, second, "success", paired=False)
    assert -100 - 1e-9 <= low <= high <= 100 + 1e-9


def test_two_seeds_show_next_to_nothing() -> None:
    found = difference([94.0, 92.0], [91.0, 87.0], "success", paired=True)
    assert found == pytest.approx((4.0, 4 - 12.706, 4 + 12.706), abs=1e-3)  # t of one degree
    assert found.verdict == "no difference shown"


def test_the_bootstrap_is_the_same_each_time_and_widens_for_few_seeds() -> None:
    few, many = [80.0, 90.0, 100.0], [80.0, 90.0, 100.0] * 10
    found = mean_score(few, "success", 100)
    assert found == mean_score(few, "success", 100)
    assert found == pytest.approx((90.0, 80.0, 100.0))  # the range of three seeds
    narrow = mean_score(many, "success", 100)
    half = stats.t.ppf(0.975, 29) * np.std(many, ddof=1) / math.sqrt(30)
    assert narrow == pytest.approx((90.0, 90.0 - half, 90.0 + half), abs=0.2)


@pytest.mark.parametrize("metric", ["success", "return"])
def test_seeds_that_score_the_same_have_an_interval_without_width(metric: str) -> None:
    assert mean_score([7.0, 7.0, 7.0], metric, 10) == (7.0, 7.0, 7.0)
    assert difference([7.0, 7.0], [4.0, 4.0], metric, paired=False) == (3.0, 3.0, 3.0)
    assert difference([7.0, 7.0], [7.0, 7.0], metric, paired=True).verdict == "no difference shown"


def test_one_run_has_wilsons_interval_of_its_episodes() -> None:
    low, high = stats.binomtest(90, 100).proportion_ci(0.95, "wilson")
    assert mean_score([90.0], "success", 100) == pytest.approx((90.0, 100 * low, 100 * high))
    assert mean_score([100.0], "success", 100).high == pytest.approx(100.0)


def test_what_has_no_spread_to_look_at_has_no_interval() -> None:
    for estimate in (
        mean_score([100.0], "success", 1),
        mean_score([5000.0], "return", 100),
        difference([90.0], [80.0, 70.0], "success", paired=False),
        difference([90.0], [80.0], "return", paired=True),
    ):
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
        assert estimate.verdict == "no interval"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 2.0, "better"),
        (-2.0, -0.1, "worse"),
        (0.0, 2.0, "no difference shown"),
        (-2.0, 0.0, "no difference shown"),
    ],
)
def test_verdicts_need_an_interval_clear_of_zero(low: float, high: float, verdict: str) -> None:
    assert Estimate((low + high) / 2, low, high).verdict == verdict
