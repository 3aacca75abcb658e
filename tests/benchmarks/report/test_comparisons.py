"""Comparisons of two methods against scipy's tests, over tasks, and the targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic
from scipy import stats

pytest.importorskip("rliable")

from benchmarks.report.comparisons import (
    MAIN,
    Pair,
    compare,
    compare_over_tasks,
    complete_part,
    pairs,
    targets,
)
from benchmarks.report.results import Results, read_results
from benchmarks.report.scales import Scale
from sb3_diffbc.tasks import TASKS

FIRST = [94.0, 90.0, 97.0, 93.0, 99.0]
SECOND = [91.0, 88.0, 95.0, 92.0, 91.0]
UNIT = Scale(0.0, 100.0, "")


def read(
    folder: Path, scores: Mapping[str, Mapping[str, Iterable[float]]], **further: bool
) -> Results:
    synthetic.write(folder, *synthetic.comparison(scores, **further))
    return read_results(folder)


def test_the_main_pair_is_compared_by_seeds(tmp_path: Path) -> None:
    results = read(tmp_path, {"maze": {"diffusion_bc": FIRST, "bc_paired": SECOND}})
    found = compare(results.tasks[0], MAIN)
    assert found is not None
    expected = stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(expected))
    assert found.difference.value == pytest.approx(np.mean(FIRST) - np.mean(SECOND))
    assert found.n_seeds == (5, 5)


def test_only_common_seeds_are_paired(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path,
        *(synthetic.record("diffusion_bc", seed, 90.0 + seed) for seed in (1, 2, 3)),
        *(synthetic.record("bc_paired", seed, 80.0 + 2 * seed) for seed in (2, 3, 4)),
    )
    found = compare(read_results(tmp_path).tasks[0], MAIN)
    assert found is not None
    assert found.n_seeds == (2, 2)
    assert found.difference.value == pytest.approx(np.mean([92 - 84, 93 - 86]))


def test_runs_without_a_common_seed_are_not_compared_as_pairs(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path,
        synthetic.record("diffusion_bc", 1, 90.0),
        synthetic.record("bc_paired", 2, 80.0),
    )
    assert compare(read_results(tmp_path).tasks[0], MAIN) is None


def test_other_pairs_are_compared_by_welchs_test(tmp_path: Path) -> None:
    results = read(tmp_path, {"maze": {"diffusion_bc": FIRST, "gail": [30.0, 50.0, 10.0]}})
    found = compare(results.tasks[0], Pair("diffusion_bc", "gail"))
    assert found is not None
    test = stats.ttest_ind(FIRST, [30.0, 50.0, 10.0], equal_var=False)
    expected = tuple(test.confidence_interval(0.95))
    assert (found.difference.low, found.difference.high) == pytest.approx(expected)
    assert (found.n_seeds, found.improvement().value) == ((5, 3), 1.0)


def test_a_method_without_results_is_not_compared(tmp_path: Path) -> None:
    results = read(tmp_path, {"maze": {"diffusion_bc": FIRST}})
    assert compare(results.tasks[0], Pair("diffusion_bc", "gail")) is None


def test_the_pairs_are_those_that_have_results() -> None:
    assert pairs(["bc", "gail"]) == []
    assert pairs(["bc_paired", "diffusion_bc_paper"]) == [Pair("diffusion_bc_paper", "bc_paired")]
    assert pairs(["bc", "bc_paired", "diffusion_bc", "diffusion_bc_paper", "airl"]) == [
        MAIN,
        Pair("diffusion_bc_paper", "bc_paired"),
        Pair("diffusion_bc", "bc"),
        Pair("diffusion_bc", "diffusion_bc_paper"),
        Pair("diffusion_bc", "airl"),
    ]


def test_over_tasks_each_task_counts_the_same(tmp_path: Path) -> None:
    scores = {
        "maze": {"diffusion_bc": FIRST, "bc_paired": SECOND},
        "walker": {"diffusion_bc": [200.0, 210.0, 190.0], "bc_paired": [100.0, 120.0, 140.0]},
    }
    maze, walker = read(tmp_path, scores).tasks
    found = compare_over_tasks([(maze, UNIT), (walker, Scale(-100.0, 900.0, ""))], MAIN)
    assert found is not None
    on_maze = (np.array(FIRST) - SECOND) / 100
    on_walker = np.array([100.0, 90.0, 50.0]) / 1000
    assert found.difference.value == pytest.approx((on_maze.mean() + on_walker.mean()) / 2)
    variances = np.array([stats.sem(on_maze) ** 2, stats.sem(on_walker) ** 2]) / 4
    freedom = variances.sum() ** 2 / (variances[0] ** 2 / 4 + variances[1] ** 2 / 2)
    half = stats.t.ppf(0.975, freedom) * variances.sum() ** 0.5
    assert found.difference.low == pytest.approx(found.difference.value - half)
    assert (found.n_tasks, found.n_seeds) == (2, (3, 3))


def test_tasks_where_a_method_has_one_seed_are_left_out_over_tasks(tmp_path: Path) -> None:
    scores = {
        "maze": {"diffusion_bc": FIRST, "bc_paired": SECOND},
        "hand_rotate": {"diffusion_bc": FIRST, "bc_paired": SECOND},
        "fetch_pick": {"diffusion_bc": [90.0], "bc_paired": [80.0]},
    }
    tasks = [(task, UNIT) for task in read(tmp_path, scores).tasks]
    found = compare_over_tasks(tasks, MAIN)
    assert found is not None
    assert found.n_tasks == 2
    assert compare_over_tasks(tasks[:2], MAIN) is None  # FetchPick is the second


def test_the_complete_part_has_every_combination(tmp_path: Path) -> None:
    scores = {
        "maze": {"bc": [50.0], "diffusion_bc": [50.0], "gail": [50.0]},
        "fetch_pick": {"bc": [50.0], "diffusion_bc": [50.0]},
        "hand_rotate": {"gail": [50.0]},
    }
    tasks = [(task, UNIT) for task in read(tmp_path, scores).tasks]
    part, methods = complete_part(tasks)
    assert [task.name for task, _ in part] == ["maze", "fetch_pick"]
    assert methods == ["bc", "diffusion_bc"]
    assert complete_part(tasks[:1]) == complete_part([]) == ([], [])


@pytest.mark.parametrize(
    ("scores", "is_met"),
    [([96.0, 96.0, 95.0], True), ([96.0, 95.0, 95.0], False), ([96.0], True), ([95.0], False)],
)
def test_a_target_is_met_by_the_mean_over_seeds(
    tmp_path: Path, scores: list[float], is_met: bool
) -> None:
    results = read(tmp_path, {"maze": {"diffusion_bc": scores}}, paper_data=True)
    maze, cheetah, walker = targets(results)
    assert (maze.title, maze.score, maze.is_met) == ("Maze", 95.4, is_met)
    assert maze.n_seeds == len(scores)
    for target, name in ((cheetah, "cheetah"), (walker, "walker")):
        assert target.score == TASKS[name].paper["dbc"].mean
        assert (target.measured, target.is_met, target.n_seeds) == (None, None, 0)


def test_a_target_that_is_reached_exactly_is_met(tmp_path: Path) -> None:
    walker = TASKS["walker"].paper["dbc"].mean
    results = read(
        tmp_path, {"walker": {"diffusion_bc": [walker - 0.1, walker + 0.1]}}, paper_data=True
    )
    assert [target.is_met for target in targets(results)] == [None, None, True]
    below = read(tmp_path / "b", {"walker": {"diffusion_bc": [walker - 0.01]}}, paper_data=True)
    assert [target.is_met for target in targets(below)] == [None, None, False]


def test_bundled_demonstrations_and_other_methods_meet_no_target(tmp_path: Path) -> None:
    scores = {"maze": {"diffusion_bc": [100.0, 100.0]}}
    assert all(target.measured is None for target in targets(read(tmp_path / "a", scores)))
    scores = {"maze": {"bc": [100.0, 100.0]}}
    results = read(tmp_path / "b", scores, paper_data=True)
    assert all(target.measured is None for target in targets(results))
