"""The study of what warns before a policy fails."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pandas")

from comparing import ORIGIN, TINY, resized
from synthetic_records import comparison, table

from benchmarks.cell import run_cell
from benchmarks.report.frame import read_frame
from benchmarks.report.monitor import DETECTORS, main_table, monitor_page
from benchmarks.suites import monitor

RNG = np.random.default_rng(0)


def episode(length: int, wrong_from: int | None = None) -> np.ndarray:
    """Scores near 0, and near 1 from a step on."""
    scores = RNG.normal(0, 0.01, length)
    if wrong_from is not None:
        scores[wrong_from:] += 1
    return scores


def test_what_a_detector_tells_of_episodes() -> None:
    failed = np.array([True, True, True, False, False])
    episodes = [episode(100, 50), episode(100, 20), episode(60), episode(40), episode(40)]
    held_out = [episode(50) for _ in range(60)]
    told = monitor.told(episodes, failed, held_out)
    assert told["auroc"] >= 4 / 6
    assert told["auroc_first"] >= 2 / 6  # the second alone is wrong by then
    assert told["warned"] == pytest.approx(2 / 3, abs=0.34)
    # A single wrong step is enough: a tenth is far above the noise.
    assert told["warning_steps"] == pytest.approx((49 + 79) / 2, abs=1)
    assert told["false_alarms/expert"] <= 0.3
    few = monitor.told(episodes, failed, held_out[:37])
    assert "warned" in few
    assert (
        few.keys()
        > monitor.told(episodes, failed, held_out[:36]).keys()
        == {
            "auroc",
            "auroc_mean",
            "auroc_first",
        }
    )
    assert not monitor.told(episodes[3:], failed[3:], [])


def test_an_alarm_at_the_last_step_is_no_warning() -> None:
    held_out = [episode(50) for _ in range(60)]
    late = episode(50, 49)
    told = monitor.told([late, episode(50)], np.array([True, False]), held_out)
    assert monitor.first_alarms([late], 0.05)[0] == 49
    assert told["warned"] == 0
    assert "warning_steps" not in told


def test_a_task_is_watched_at_twice_the_noise_if_it_can_be_varied() -> None:
    maze = monitor.monitor_problem("maze")
    assert maze.env.kwargs["noise_ratio"] == maze.noise_ratio == 2
    assert monitor.monitor_problem("walker").noise_ratio == 1
    assert monitor.monitor_problem(monitor.RECORDED).title == "Walker (recorded anew)"
    with pytest.raises(ValueError, match="tasks: found 'mace'"):
        monitor.monitor_problem("mace")


@pytest.mark.slow
def test_a_cell_measures_all_detectors_on_the_same_episodes() -> None:
    [variant] = monitor.SUITE.variants
    small = resized(variant, n_updates=20, n_clones=2, critic_kwargs={"n_steps": 25}, n_episodes=3)
    suite = dataclasses.replace(
        monitor.SUITE,
        variants=[small],
        evaluation=TINY,
        n_interactive_seeds=1,
        n_seeds=1,
    )
    [cell], _ = suite.cells(ORIGIN, tasks=["ant_reach"])
    measures = run_cell(cell).measures
    assert measures["held_out"] == 200
    for name in DETECTORS:
        assert 0 <= measures[f"false_alarms/expert/{name}"] <= 0.2
        assert 0 <= measures[f"warned/{name}"] <= 1


def test_the_page_compares_the_critic_with_the_better_rival(tmp_path: Path) -> None:
    records = [
        record.model_copy(
            update={
                "measures": {
                    **record.measures,
                    "failures": 12.0,
                    "auroc/critic": 0.8 + record.seed / 10_000,
                    "auroc/ensemble": 0.9,
                    "auroc/nearest": 0.6,
                }
            }
        )
        for record in comparison({task: {"clone": [1.0, 2.0]} for task in ("maze", "walker")})
    ]
    frame = read_frame(table(tmp_path, *records))
    lines = main_table(frame).splitlines()
    [line] = [line for line in lines if "whole episode: critic − better rival" in line]
    assert line.count("-0.09 [-0.09, -0.09]") == 2
    page = monitor_page(frame)
    assert page.count("Failing episodes by run: 12, 12 of 100.") == 2
    assert "steps of warning" in page
