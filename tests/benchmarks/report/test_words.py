"""Numbers and verdicts as text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

pytest.importorskip("rliable")

from benchmarks.report import words
from benchmarks.report.comparisons import MAIN, Comparison, Pair, compare
from benchmarks.report.results import read_results
from benchmarks.report.statistics import Estimate


def comparison(estimate: Estimate, pair: Pair = MAIN, n: tuple[int, int] = (5, 5)) -> Comparison:
    first, second = (np.zeros((n_seeds, 1)) for n_seeds in n)
    return Comparison(pair, first, second, estimate)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (
            Estimate(3.25, 1.0, 5.5),
            "DiffusionBC is **better** than BC (DiffusionBC's network): a mean difference of 3.2 "
            "percent, whose 95 % interval [1.0, 5.5] is clear of zero (5 seeds, paired).",
        ),
        (
            Estimate(-3.0, -5.0, -1.0),
            "DiffusionBC is **worse** than BC (DiffusionBC's network): a mean difference of -3.0 "
            "percent, whose 95 % interval [-5.0, -1.0] is clear of zero (5 seeds, paired).",
        ),
        (
            Estimate(3.0, 0.0, 6.0),
            "DiffusionBC is **equal** to BC (DiffusionBC's network): a mean difference of 3.0 "
            "percent, whose 95 % interval [0.0, 6.0] covers zero (5 seeds, paired).",
        ),
        (
            Estimate(3.0),
            "DiffusionBC cannot be judged yet against BC (DiffusionBC's network): a mean "
            "difference of 3.0 percent, without an interval (5 seeds, paired).",
        ),
    ],
)
def test_a_sentence_has_the_verdict_the_difference_and_its_interval(
    estimate: Estimate, text: str
) -> None:
    assert words.sentence(comparison(estimate), "percent") == text


def test_a_bound_next_to_zero_shows_its_side() -> None:
    assert words.interval(Estimate(2.0, 0.0004, 4.0)) == "[0.0004, 4.0000]"
    assert words.interval(Estimate(2.0, -0.04, 4.0)) == "[-0.04, 4.00]"
    assert words.interval(Estimate(2.0, 0.0, 4.0)) == "[0.0, 4.0]"
    assert "clear of zero" in words.sentence(comparison(Estimate(2.0, 0.0004, 4.0)), "")


@pytest.mark.parametrize(
    ("pair", "n", "text"),
    [
        (MAIN, (1, 1), "1 seed, paired"),
        (Pair("diffusion_bc", "gail"), (5, 3), "5 and 3 seeds"),
        (Pair("diffusion_bc", "gail"), (3, 1), "3 and 1 seed"),
        (Pair("diffusion_bc", "bc"), (5, 5), "5 seeds"),
    ],
)
def test_the_number_of_seeds_is_told(pair: Pair, n: tuple[int, int], text: str) -> None:
    assert words.seeds(comparison(Estimate(0.0), pair, n)) == text


def test_the_tally_counts_means_and_verdicts() -> None:
    found = [
        comparison(Estimate(2.0, 1.0, 3.0)),
        comparison(Estimate(0.0, -1.0, 1.0)),
        comparison(Estimate(-0.5, -1.0, 0.1)),
        comparison(Estimate(-2.0, -3.0, -1.0)),
        comparison(Estimate(1.0)),
    ]
    assert words.tally(found) == (
        "DiffusionBC against BC (DiffusionBC's network), 5 tasks: mean at or above on 3; "
        "better on 1, equal on 2, worse on 1, not judged on 1."
    )
    assert ", 1 task: mean at or above on 1; better on 1, equal on 0" in words.tally(found[:1])


def test_numbers_have_one_digit_and_no_negative_zero() -> None:
    assert words.number(-0.04) == "0.0"
    assert words.number(7034.56) == "7034.6"
    assert words.with_std([1.0, 3.0]) == "2.0 ± 1.4"
    assert words.with_std([1.0]) == "1.0"
    assert words.with_std([]) == "–"
    assert words.with_interval(Estimate(1.0)) == "1.0 (one seed, no interval)"
    assert words.span([20_000, 20_000]) == "20,000"
    assert words.span([5, 3, 4]) == "3–5"
    assert words.span([]) == "–"


def test_methods_with_as_many_seeds_are_told_together(tmp_path: Path) -> None:
    scores = {
        "maze": {"bc": [1.0] * 5, "diffusion_bc": [1.0] * 5, "gail": [1.0] * 3},
        "walker": {"gail": [1.0]},
    }
    synthetic.write(tmp_path, *synthetic.comparison(scores))
    results = read_results(tmp_path)
    assert words.seeds_by_method(results) == "BC (imitation's defaults), DiffusionBC: 5; GAIL: 1–3"
    assert words.episode_counts(results) == "100"
    assert compare(results.tasks[0], MAIN) is None
