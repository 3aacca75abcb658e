"""Demonstrations with bad labels, and the page of the study."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch as th
from comparing import line_problem
from hypothesis import given
from hypothesis import strategies as st
from imitation.data import types
from toys import CONTINUOUS, VECTOR, transitions

from benchmarks import corruption
from benchmarks.methods.base import Setup
from benchmarks.methods.regularised_bc import FilteredMethod
from benchmarks.problems import Problem
from benchmarks.report.studies import CONDITIONS, STUDIES
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
