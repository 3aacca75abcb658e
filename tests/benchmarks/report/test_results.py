"""Result files grouped by task: what counts as one task, and what is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

pytest.importorskip("rliable")

from benchmarks.records import METHOD_TITLES, record_path
from benchmarks.report.results import TaskResults, read_results
from sb3_diffbc.tasks import TASKS


def read_one(folder: Path) -> TaskResults:
    (task,) = read_results(folder).tasks
    return task


def test_a_folder_without_files_or_that_is_not_there_has_no_tasks(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        found = read_results(folder)
        assert (found.tasks, found.problems, found.methods) == ((), (), ())


def test_tasks_come_in_the_papers_order_and_a_users_own_last(tmp_path: Path) -> None:
    names = ["A-v0", "walker", "Hopper-v4", "maze", "cheetah"]
    synthetic.write(tmp_path, *(synthetic.record("bc", 1, 50.0, name) for name in names))
    found = [task.name for task in read_results(tmp_path).tasks]
    assert found == ["maze", "cheetah", "walker", "A-v0", "Hopper-v4"]


def test_methods_and_seeds_come_in_order(tmp_path: Path) -> None:
    for method in reversed(METHOD_TITLES):
        for seed in (101, 99, 100):
            synthetic.write(tmp_path, synthetic.record(method, seed, float(seed - 50)))
    task = read_one(tmp_path)
    assert list(task.runs) == list(METHOD_TITLES)
    assert task.scores("gail") == {99: 49.0, 100: 50.0, 101: 51.0}
    assert list(task.scores("gail")) == [99, 100, 101]


def test_a_success_rate_is_in_percent_and_a_return_as_it_is(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path,
        synthetic.record("bc", 1, 0.0, scores=[1.0, 0.0, 0.0, 1.0, 1.0]),
        synthetic.record("bc", 1, 0.0, "walker", scores=[10.0, 20.0, 45.0]),
    )
    maze, walker = read_results(tmp_path).tasks
    assert maze.scores("bc") == {1: pytest.approx(60.0)}
    assert walker.scores("bc") == {1: 25.0}
    assert (maze.unit, walker.unit) == (" %", "")


def test_the_last_checkpoints_are_averaged(tmp_path: Path) -> None:
    curve = [
        {"updates": n, "env_steps": 0, "scores": scores}
        for n, scores in enumerate([[1, 1], [1, 0], [0, 0, 0, 1]])
    ]
    synthetic.write(
        tmp_path,
        synthetic.record("bc", 1, 50.0, curve=curve, last_checkpoints=2),
        synthetic.record("bc", 2, 50.0, curve=curve, last_checkpoints=5),
        synthetic.record("bc", 3, 50.0, curve=curve, last_checkpoints=0),
        synthetic.record("bc", 4, 50.0, curve=[]),
    )
    found = read_one(tmp_path).last_checkpoints("bc")
    assert found == {1: pytest.approx((50 + 25) / 2), 2: pytest.approx((100 + 50 + 25) / 3)}


def test_a_curve_goes_over_updates_or_over_environment_steps(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path, *synthetic.runs("bc", [90.0, 45.0]), *synthetic.runs("gail", [90.0, 90.0])
    )
    task = read_one(tmp_path)
    curve = task.curve("bc")
    assert list(curve) == [4000, 8000, 12000, 16000, 20000]
    assert curve[20000] == [90.0, 45.0]
    assert list(task.curve("gail")) == [40_000, 80_000, 120_000, 160_000, 200_000]
    assert task.is_interactive("gail")
    assert not task.is_interactive("bc")
    assert task.curve("airl") == {}


def test_cost_is_the_median_over_seeds_with_the_critic(tmp_path: Path) -> None:
    for seed, (critic, training) in enumerate([(1.0, 10.0), (2.0, 30.0), (50.0, 0.0)]):
        times = {"critic": critic, "training": training, "evaluation": 1e6}
        synthetic.write(tmp_path, synthetic.record("diffusion_bc", seed, 50.0, cpu_seconds=times))
    synthetic.write(tmp_path, synthetic.record("bc", 0, 50.0, cpu_seconds={"training": 7.0}))
    task = read_one(tmp_path)
    assert task.training_cost("diffusion_bc") == np.median([11.0, 32.0, 50.0])
    assert task.training_cost("bc") == 7.0
    assert task.training_cost("gail") is None
    assert task.median("diffusion_bc", "cpu_seconds", "critic") == 2.0
    assert task.median("bc", "cpu_seconds", "critic") is None


def test_the_papers_score_goes_to_every_form_of_the_method(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.record("bc", 1, 50.0))
    task = read_one(tmp_path)
    paper = TASKS["maze"].paper
    assert task.paper("bc") == task.paper("bc_paired") == paper["bc"]
    assert task.paper("diffusion_bc") == task.paper("diffusion_bc_paper") == paper["dbc"]
    assert task.paper("diffusion_policy_ddim") == paper["diffusion_policy"]
    assert task.paper("gail") is None


def test_the_authors_and_the_bundled_demonstrations_are_told_apart(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path,
        synthetic.record("bc", 1, 50.0, "walker"),
        synthetic.record("bc", 1, 50.0, "walker", paper_data=True),
        synthetic.record("bc", 1, 50.0, "Hopper-v4"),
    )
    bundled, authors, own = read_results(tmp_path).tasks
    assert (bundled.name, authors.name, own.name) == ("walker", "walker-paper", "Hopper-v4")
    assert bundled.task is authors.task is TASKS["walker"]
    assert (bundled.is_on_bundled_data, bundled.is_on_paper_data) == (True, False)
    assert (authors.is_on_bundled_data, authors.is_on_paper_data) == (False, True)
    assert (own.task, own.is_on_bundled_data, own.is_on_paper_data) == (None, False, False)
    assert own.paper("bc") is None


def test_a_users_data_for_a_known_environment_have_no_paper_numbers(tmp_path: Path) -> None:
    record = synthetic.record("bc", 1, 50.0, "Walker2d-v4")
    synthetic.write(tmp_path, record)
    assert read_one(tmp_path).task is None


@pytest.mark.parametrize(
    "change",
    [
        {"noise_ratio": 1.25},
        {"env": "sb3_diffbc/Maze-v1"},
        {"demonstrations": {"source": "x.npz", "sha256": "1", "transitions": 1, "episodes": 1}},
        {"demonstrations": {"source": "maze", "sha256": "1", "transitions": 1, "episodes": 1}},
    ],
)
def test_runs_on_something_else_are_another_task_with_another_title(
    tmp_path: Path, change: dict
) -> None:
    synthetic.write(
        tmp_path,
        synthetic.record("bc", 1, 50.0),
        synthetic.record("bc", 2, 50.0, **change),
    )
    tasks = read_results(tmp_path).tasks
    assert sorted(tuple(task.scores("bc")) for task in tasks) == [(1,), (2,)]
    assert len({task.title for task in tasks}) == 2


def test_damaged_and_foreign_files_are_named_without_the_folder_and_left_out(
    tmp_path: Path,
) -> None:
    synthetic.write(tmp_path, *synthetic.runs("bc", [50.0, 60.0]))
    record_path(tmp_path, "maze", "bc", 101).write_text("{")
    (tmp_path / "notes.json").write_text("[]")
    shutil.copy(record_path(tmp_path, "maze", "bc", 100), tmp_path / "maze" / "bc" / "7.json")
    (tmp_path / "maze" / "bc" / "9.json").mkdir()
    (tmp_path / "maze" / "bc" / "8.json.tmp").write_text("{")
    found = read_results(tmp_path)
    assert list(found.tasks[0].scores("bc")) == [100]
    names = [problem.split(": ")[0] for problem in found.problems]
    assert names == ["maze/bc/101.json", "maze/bc/7.json", "maze/bc/9.json", "notes.json"]
    assert not any(str(tmp_path) in problem for problem in found.problems)


def test_an_interval_stays_within_possible_success_rates(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path,
        *synthetic.runs("bc", [100.0, 90.0]),
        *synthetic.runs("bc", [10.0, 20.0], "walker"),
    )
    maze, walker = read_results(tmp_path).tasks
    assert (maze.estimate([100.0, 90.0]).low, maze.estimate([100.0, 90.0]).high) == (
        pytest.approx(95 - 12.706 * 5, abs=0.01),
        100.0,
    )
    assert walker.estimate([10.0, 20.0]).low == pytest.approx(15 - 12.706 * 5, abs=0.01)
