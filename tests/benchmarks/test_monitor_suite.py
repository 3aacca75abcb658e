"""The study of what warns before a policy fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

pytest.importorskip("pandas")

from comparing import ORIGIN, TINY, resized

from benchmarks.cell import run_cell
from benchmarks.report.monitor import DETECTORS
from benchmarks.suites import monitor


def episode(rng: np.random.Generator, length: int, wrong_from: int | None = None) -> np.ndarray:
    """Scores near 0, and near 1 from a step on."""
    scores = rng.normal(0, 0.01, length)
    if wrong_from is not None:
        scores[wrong_from:] += 1
    return scores


def test_what_a_detector_tells_of_episodes() -> None:
    rng = np.random.default_rng(0)
    failed = np.array([True, True, True, False, False])
    episodes = [
        episode(rng, 100, 50),
        episode(rng, 100, 20),
        episode(rng, 60),
        episode(rng, 40),
        episode(rng, 40),
    ]
    held_out = [episode(rng, 50) for _ in range(60)]
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
    rng = np.random.default_rng(0)
    held_out = [episode(rng, 50) for _ in range(60)]
    late = episode(rng, 50, 49)
    told = monitor.told([late, episode(rng, 50)], np.array([True, False]), held_out)
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
