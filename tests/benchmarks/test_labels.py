"""Demonstrations with bad labels, and the page of the study."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from comparing import line_problem
from hypothesis import given
from hypothesis import strategies as st
from imitation.data import types
from synthetic_records import comparison, table
from toys import CONTINUOUS, VECTOR, transitions

from benchmarks import corruption
from benchmarks.methods.base import Setup
from benchmarks.methods.regularised_bc import FilteredMethod
from benchmarks.problems import Problem
from benchmarks.report.frame import read_frame
from benchmarks.report.studies import CONDITIONS, STUDIES, over_conditions, score_tables, study_page
from benchmarks.suites import SUITES
from benchmarks.suites.labels import LabelsProblem, labels_problem
from sb3_diffbc.demonstrations.trajectories import lengths_of

LENGTHS = (3, 7, 4, 6)
N = sum(LENGTHS)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return line_problem(tmp_path_factory.mktemp("line"))


def clean() -> types.Transitions:
    """Every action is another one, and tells its trajectory."""
    acts = np.repeat(np.arange(len(LENGTHS)), LENGTHS) + np.arange(N) / 100 + 10
    dones = np.zeros(N, dtype=bool)
    dones[np.cumsum(LENGTHS) - 1] = True
    obs = np.zeros((N, 1), dtype=np.float32)
    return types.Transitions(
        obs=obs, next_obs=obs, acts=acts[:, None], dones=dones, infos=np.array([{}] * N)
    )


@given(kind=st.sampled_from(["uniform", "swapped", "zeros"]), percent=st.integers(0, 100))
def test_a_share_of_the_actions_is_replaced_and_nothing_else(
    problem: Problem, kind: str, percent: int
) -> None:
    before = clean()
    after = corruption.KINDS[kind](problem, before, percent)
    is_bad = corruption.bad_rows(after)
    assert is_bad.sum() == round(percent / 100 * N)
    assert np.array_equal((after.acts != before.acts).any(axis=1), is_bad)
    assert np.array_equal(after.dones, before.dones)
    if kind == "swapped":
        own, other = before.acts[is_bad] // 1, after.acts[is_bad] // 1
        assert (own != other).all(), "an action of its own trajectory"
        assert np.isin(after.acts, before.acts).all()
    if kind == "zeros":
        assert not after.acts[is_bad].any()
    assert corruption.bad_rows(corruption.KINDS[kind](problem, before, 100)).all()


def test_a_novice_takes_the_place_of_whole_trajectories(problem: Problem) -> None:
    before = problem.demonstrations()
    after = corruption.KINDS["novice"](problem, before, 25)
    is_bad = corruption.bad_rows(after)
    n_before = len(lengths_of(before.dones))
    n_bad = round(0.25 * n_before)
    good = after[: np.argmax(is_bad)]
    assert len(lengths_of(good.dones)) == n_before - n_bad
    assert len(lengths_of(after.dones)) == n_before
    assert is_bad[len(good) :].all()
    assert np.isin(good.acts, before.acts).all()


def test_the_first_trajectories_are_kept(problem: Problem) -> None:
    found = corruption.KINDS["few"](problem, clean(), 2)
    assert len(found) == sum(LENGTHS[:2])
    assert not corruption.bad_rows(found).any()
    with pytest.raises(ValueError, match="found 4 trajectories"):
        corruption.KINDS["few"](problem, clean(), 5)


def test_a_key_says_what_was_done() -> None:
    found = labels_problem("maze+uniform25")
    assert isinstance(found, LabelsProblem)
    assert (found.key, found.kind, found.amount) == ("maze+uniform25", "uniform", 25)
    assert found.title == "Maze, 25 % uniform"
    assert labels_problem("maze+few10").title == "Maze, 10 trajectories"
    assert not isinstance(labels_problem("maze"), LabelsProblem)
    for key in ("maze+uniform", "maze+25", "maze+other25", "somewhere+zeros10"):
        with pytest.raises(ValueError, match="tasks: found"):
            labels_problem(key)


def test_every_condition_of_a_study_has_a_heading() -> None:
    keys = SUITES["labels"].default_tasks(None)
    assert {key.partition("+")[2] or "clean" for key in keys} <= set(CONDITIONS)
    for name, study in STUDIES.items():
        variants = [variant.name for variant in SUITES[name].variants]
        for baseline in study.baselines:
            assert any(variant.startswith(baseline) for variant in variants)


def test_the_page_compares_runs_of_the_same_seed(tmp_path: Path) -> None:
    scores = {
        "walker+uniform25": {"mse, BC": [100.0, 200.0, 900.0], "l1, BC": [150.0, 260.0, 940.0]},
        "walker": {"mse, BC": [50.0, 60.0]},
    }
    frame = read_frame(table(tmp_path, *comparison(scores)))
    page = study_page(frame, "labels", "labels-figures")
    assert page.index("## Clean demonstrations") < page.index("## 25 % of the actions are uniform")
    assert "**better**: 50 [25, 75]" in page
    shown, differences = score_tables(frame[frame["task"] == "walker"], "mse, BC")
    assert shown.iloc[0, 0] == "mse, BC"
    assert "(2)" in shown.iloc[0, 1]
    assert differences.empty


def test_means_over_tasks_stand_side_by_side_for_all_conditions(tmp_path: Path) -> None:
    scores = {
        "maze": {"mse, BC": [80.0, 90.0], "l1, BC": [70.0]},
        "fetch_pick": {"mse, BC": [100.0, 100.0]},
        "maze+zeros25": {"mse, BC": [40.0], "l1, BC": [60.0], "defaults": [90.0]},
        "fetch_pick+zeros25": {"mse, BC": [60.0], "l1, BC": [70.0], "defaults": [80.0]},
    }
    frame = read_frame(table(tmp_path, *comparison(scores)))
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in over_conditions(frame).splitlines()
    ]
    assert cells[0][1:] == ["clean", "zeros25"]
    found = {row[0]: row[1:] for row in cells[2:]}
    assert found["l1, BC"] == ["–", "0.650 (1)"]
    assert found["mse, BC"][0].startswith("0.925 [")
    assert found["mse, BC"][1] == "0.500 (1)"
    assert found["defaults − mse, BC"] == ["–", "0.350"]
    assert "l1, BC" not in over_conditions(frame, ["mse, BC"])


@pytest.mark.parametrize("suite", ["few", "shift"])
def test_the_page_of_amounts_has_a_part_for_each_task_and_a_column_for_each_amount(
    tmp_path: Path, suite: str
) -> None:
    mark = {"few": "+few", "shift": "@"}[suite]
    tasks = {f"maze{mark}25": "mse, BC", f"maze{mark}100": "mse, BC", f"walker{mark}1": "l1, BC"}
    records = comparison({task: {variant: [5.0, 6.0]} for task, variant in tasks.items()})
    records[-1].measures["score/noise_1.5"] = 4.0
    parts = STUDIES[suite].parts(read_frame(table(tmp_path, *records)))
    assert list(parts) == ["maze", "walker"]
    (maze, *_), (walker, *_) = (score_tables(runs) for runs in parts.values())
    assert list(maze) == ["variant", "25", "100"]
    assert list(walker) == ["variant", "1", "1.5"]
    assert walker["1.5"].tolist() == ["4 (1)"]


def test_the_page_of_the_critics_settings_orders_coefficients_by_their_ratio(
    tmp_path: Path,
) -> None:
    names = ["λ 0 x 1", "λ 1 x 30", "λ 1 x 0", "λ 2 x 0.5", "base", "draws 4"]
    frame = read_frame(table(tmp_path, *comparison({"maze": {name: [5.0] for name in names}})))
    parts = STUDIES["critic-settings"].parts(frame)
    shown = {key: score_tables(runs)[0]["variant"].tolist() for key, runs in parts.items()}
    assert shown["coefficients"] == ["λ 1 x 0", "λ 2 x 0.5", "base", "λ 1 x 30", "λ 0 x 1"]
    assert sorted(shown["settings"]) == ["base", "draws 4", "λ 1 x 0"]


def test_variants_make_the_same_updates() -> None:
    lengths = {dict(v.arguments)["n_updates"] for v in SUITES["labels"].variants}
    assert len(lengths) == 1
    tuning, study = SUITES["labels-tuning"], SUITES["labels"]
    assert tuning.evaluation.first_episode_seed != study.evaluation.first_episode_seed
    assert tuning.first_seed + tuning.n_seeds <= study.first_seed
    assert dataclasses.asdict(study.evaluation) != dataclasses.asdict(tuning.evaluation)


@pytest.mark.parametrize(("by", "kept"), [("transitions", 60), ("trajectories", 50)])
def test_filtered_cloning_sees_what_the_scorers_rate_best(
    by: Any, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = transitions(n=80)
    data = dataclasses.replace(data, dones=np.isin(np.arange(80), [9, 29, 49, 79]))
    setup = Setup(data, VECTOR, CONTINUOUS, seed=0)

    class Scorer:
        """Rates early rows best."""

        def score(self, obs: Any, acts: Any, *, raw: bool = False) -> th.Tensor:
            return -th.arange(len(acts), dtype=th.float32)

    scoring = {"scorers": [Scorer()]}
    method = FilteredMethod(setup, keep=0.75, by=by, scoring=scoring, n_updates=3, dm_coef=0.0)
    seen: list[types.Transitions] = []
    learn_from = method.trainer.set_demonstrations
    monkeypatch.setattr(
        method.trainer,
        "set_demonstrations",
        lambda given: (seen.append(given), learn_from(given)),
    )
    method.train(lambda: None)
    np.testing.assert_array_equal(seen[0].obs, data.obs[:kept])
    assert method.updates == 3
