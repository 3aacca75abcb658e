"""The statistics of a suite: of methods, of their differences and over tasks."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_records import comparison, table

pytest.importorskip("rliable")

from benchmarks.report import over_tasks
from benchmarks.report.frame import read_frame
from benchmarks.report.summaries import (
    OVER_TASKS,
    compare,
    summarise_over_tasks,
)


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_tasks, "REPETITIONS", 50)


def frame_of(folder: Path, scores: Mapping[str, Mapping[str, Iterable[float]]]) -> pd.DataFrame:
    return read_frame(table(folder, *comparison(scores)))


def test_the_main_pair_is_compared_seed_by_seed(tmp_path: Path) -> None:
    # The seeds differ far more than the methods do, and one has no partner.
    scores = {"walker": {"diffusion_bc": [103.0, 504.0, 903.0], "bc_paired": [100, 500, 900, 7]}}
    found = compare(frame_of(tmp_path, scores)).iloc[0]
    assert found["paired"]
    assert found["value"] == pytest.approx(10 / 3)
    assert found["verdict"] == "better"


def test_other_pairs_are_compared_as_independent_samples(tmp_path: Path) -> None:
    scores = {"walker": {"diffusion_bc": [101.0, 502.0, 901.0], "bc": [100, 500, 900, 7]}}
    found = compare(frame_of(tmp_path, scores)).iloc[0]
    assert not found["paired"]
    assert found["value"] == pytest.approx(1504 / 3 - 1507 / 4)
    assert found["verdict"] == "no difference shown"


def test_every_method_is_compared_with_diffusion_bc(tmp_path: Path) -> None:
    runs = [80.0, 90.0]
    methods = ("bc", "bc_paired", "diffusion_bc", "gail")
    found = compare(frame_of(tmp_path, {"maze": dict.fromkeys(methods, runs)}))
    assert list(found["pair"]) == [
        "DiffusionBC with L_DM − BC (DiffusionBC's network)",
        "DiffusionBC with L_DM − BC (imitation's defaults)",
        "DiffusionBC with L_DM − GAIL",
    ]


def test_over_tasks_a_seed_counts_with_its_mean_over_them(tmp_path: Path) -> None:
    scores = {
        "maze": {"diffusion_bc": [90.0, 80.0, 70.0], "bc": [80.0, 70.0, 60.0]},
        "fetch_pick": {"diffusion_bc": [70.0, 80.0, 90.0], "bc": [70.0, 80.0]},
        "own": {"diffusion_bc": [1.0], "bc": [900.0]},  # has no scale
    }
    frame = frame_of(tmp_path, scores)
    found = compare(frame).set_index("title").loc[OVER_TASKS]
    assert found["value"] == pytest.approx(0.05)
    over = summarise_over_tasks(frame).set_index("method")
    assert over.loc["BC (imitation's defaults)", ["seeds", "tasks"]].tolist() == [2, 2]
    assert over.loc["DiffusionBC with L_DM", "mean"] == pytest.approx(0.8)


def test_a_method_that_lacks_a_task_is_left_out_over_tasks(tmp_path: Path) -> None:
    both = {"diffusion_bc": [90.0, 80.0]}
    frame = frame_of(tmp_path, {"maze": both | {"bc": [50.0, 60.0]}, "ant_reach": both})
    assert list(summarise_over_tasks(frame)["method"]) == ["DiffusionBC with L_DM"]
    assert OVER_TASKS not in set(compare(frame)["title"])


def test_probability_of_improvement_counts_ties_half() -> None:
    first, second = np.array([[1.0], [2.0]]), np.array([[1.0], [1.5], [3.0]])
    value, low, high = over_tasks.probability_of_improvement(first, second)
    assert value == pytest.approx((0.5 + 2) / 6)
    assert 0 <= low <= value <= high <= 1


def test_rliables_draws_are_the_same_each_time_and_leave_numpys_alone() -> None:
    scores = np.linspace(0, 1, 12).reshape(4, 3) ** 2
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = over_tasks.interquartile_mean(scores)
    assert first == over_tasks.interquartile_mean(scores)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
