"""The study of what tells bad actions from good ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from imitation.data import types

pytest.importorskip("pandas")

from comparing import ORIGIN, line_suite
from toys import weights

from benchmarks.cell import run_cell
from benchmarks.methods.base import Variant
from benchmarks.problems import Problem
from benchmarks.report.scores import SCORERS
from benchmarks.suites.scores import ScoringMethod, auroc

VARIANT = Variant("scorers", ScoringMethod, {"clone_updates": 12, "critic_steps": 10})


class BadTrajectories(Problem):
    """The line, with some trajectories of five rows that count as bad."""

    def demonstrations(self) -> types.Transitions:
        infos = np.array([{"is_bad": True}, {}, {}, {}]).repeat(5)
        return dataclasses.replace(super().demonstrations(), infos=np.tile(infos, 10))


def suite_of(problem_class: type[Problem], folder: Path):
    suite = line_suite(folder, VARIANT)
    [key] = suite.default_tasks(None)
    line = suite.problem(key, None)
    fields = {field.name: getattr(line, field.name) for field in dataclasses.fields(line)}
    problem = problem_class(**fields)
    return dataclasses.replace(suite, problem=lambda *_: problem)


def test_the_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    values, is_bad = rng.integers(5, size=50).astype(float), rng.random(50) < 0.3
    good, bad = values[~is_bad, None], values[is_bad]
    expected = np.mean((good > bad) + (good == bad) / 2)
    assert auroc(values, is_bad) == pytest.approx(expected)
    assert auroc(-is_bad.astype(float), is_bad) == 1


def test_a_cell_scores_rows_and_trajectories_with_every_scorer(tmp_path: Path) -> None:
    [cell] = suite_of(BadTrajectories, tmp_path).cells(ORIGIN)[0]
    measures = run_cell(cell).measures
    for kind in ("auroc", "auroc_trajectories"):
        found = {name.removeprefix(f"{kind}/") for name in measures if name.startswith(f"{kind}/")}
        assert found == set(SCORERS)
    assert all(0 <= value <= 1 for name, value in measures.items() if name.startswith("auroc"))
    assert measures["seconds/critic"] > 0


def test_critics_have_no_part_in_the_clone_and_clean_demonstrations_no_measures(
    tmp_path: Path,
) -> None:
    [cell] = suite_of(Problem, tmp_path).cells(ORIGIN)[0]
    first, second = (cell.variant.make(cell.setup()) for _ in range(2))
    for critic in second.critics.values():
        critic.fit = lambda *_, **__: None
    for method in (first, second):
        method.train(lambda: None)
    assert np.array_equal(weights(first.policy), weights(second.policy))
    assert first.measures() == {}
