"""The study of gates in DAgger."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pandas")

from comparing import ORIGIN, line_suite
from imitation.data import types
from imitation.policies.base import NonTrainablePolicy
from toys import LineEnv, transitions

from benchmarks.cell import run_cell
from benchmarks.methods.base import Variant
from benchmarks.suites import dagger
from benchmarks.suites.dagger import GatedDAgger, dagger_problem, trajectories_of

GATES = {name: gate for name, (gate, _) in dagger._GATES.items()}


class LineExpert(NonTrainablePolicy):
    """Goes right."""

    def __init__(self) -> None:
        super().__init__(LineEnv.observation_space, LineEnv.action_space)

    def _choose_action(self, obs: Any) -> np.ndarray:
        return np.array([1.0], np.float32)


@pytest.fixture(autouse=True)
def _line_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dagger, "load_expert", lambda task: LineExpert())


@pytest.mark.parametrize("gate", GATES)
def test_a_cell_scores_the_learner_after_each_round(gate: str, tmp_path: Path) -> None:
    sizes = {"labels_per_round": 20, "n_rounds": 2, "n_updates": (10, 10), "gate_updates": 10}
    variant = Variant(gate, GatedDAgger, {"gate": GATES[gate], **sizes})
    suite = line_suite(tmp_path, variant)
    [cell] = suite.cells(ORIGIN)[0]
    assert cell.config["gate"] == GATES[gate].__name__
    record = run_cell(cell)
    measures = record.measures
    assert {name for name in measures if name.startswith("score/")} == {
        f"score/labels_{n}" for n in (0, 20, 40)
    }
    assert np.mean(record.scores) == measures["score/labels_40"]
    assert measures["expert_labels/labels_0"] == measures["env_steps/labels_0"] == 0
    assert measures["expert_labels/labels_20"] <= 20
    assert measures["expert_labels/labels_40"] <= 40
    if gate in ("none", "random"):
        assert measures["expert_labels/labels_40"] == 40
    assert measures["env_steps"] == measures["env_steps/labels_40"] >= 1


def test_a_threshold_is_that_of_held_out_trajectories(tmp_path: Path) -> None:
    class Distance(dagger.Scored):
        def learn(self, kept: Any) -> None:
            self.n_learned = len(kept)

        def score(self, obs: Any, acts: np.ndarray) -> np.ndarray:
            return obs[:, 0].astype(float)

    [cell] = line_suite(tmp_path).cells(ORIGIN)[0]
    gate = Distance(cell.setup(), 1)
    data = cell.transitions
    gate.fit(data)
    assert gate.n_learned == 160
    assert len(gate.held_out) == 40
    above = gate(gate.held_out.obs, gate.held_out.acts)
    assert above.sum() == 3, "the fourth largest of 40 is the threshold"
    labels = dataclasses.replace(data, obs=data.obs + 10)[:7]
    both = {
        name: np.concatenate([getattr(data, name), getattr(labels, name)])
        for name in ("obs", "acts", "infos", "next_obs", "dones")
    }
    threshold = gate.threshold
    gate.fit(types.Transitions(**both))
    assert gate.n_learned == 167
    assert gate.threshold == threshold, "labels are learned from, and no part of the threshold"


def test_trajectories_are_those_that_dones_tell_apart() -> None:
    data = transitions(n=10)
    data = dataclasses.replace(data, next_obs=data.obs + 1, dones=np.arange(10) == 3)
    first, second = trajectories_of(data)
    assert (len(first), len(second)) == (4, 6)
    np.testing.assert_array_equal(first.obs, np.concatenate([data.obs[:4], data.obs[3:4] + 1]))
    np.testing.assert_array_equal(second.acts, data.acts[4:])


def test_the_learner_acts_and_is_scored_at_the_widest_start() -> None:
    problem = dagger_problem("fetch_pick+few3")
    assert problem.noise_ratio == 2.0
    for env in (problem.env, problem.training_env):
        assert env.kwargs["noise_ratio"] == env.kwargs["goal_noise_ratio"] == 2.0
    assert problem.describe(problem.demonstrations()).episodes == 3
    assert dagger_problem("cheetah+few1").noise_ratio == 1.0
