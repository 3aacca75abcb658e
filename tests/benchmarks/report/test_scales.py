"""The scale that tasks share: where 0 and 1 come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import synthetic_records as synthetic

pytest.importorskip("rliable")

from benchmarks.report.results import TaskResults, read_results
from benchmarks.report.scales import EXPERTS, Scale, scale_of
from sb3_diffbc.tasks import TASKS


@pytest.fixture
def experts(tmp_path: Path) -> Path:
    """A folder with an expert of return 1000 and random actions of -100."""
    folder = tmp_path / "experts"
    folder.mkdir()
    content = {"expert": [{"mean": 1000.0}, {"mean": 5.0}], "random": {"mean": -100.0}}
    (folder / "walker.json").write_text(json.dumps(content))
    return folder


def results(folder: Path, task: str, **further: bool) -> TaskResults:
    synthetic.write(folder, synthetic.record("bc", 1, 50.0, task, **further))
    return read_results(folder).tasks[0]


def test_a_success_rate_is_its_own_scale(tmp_path: Path) -> None:
    scale = scale_of(results(tmp_path / "r", "maze"), tmp_path)
    assert scale is not None
    assert scale.normalised([0.0, 25.0, 100.0]) == [0.0, 0.25, 1.0]


def test_on_bundled_demonstrations_the_expert_is_one(tmp_path: Path, experts: Path) -> None:
    scale = scale_of(results(tmp_path / "r", "walker"), experts)
    assert scale is not None
    assert scale.normalised([-100.0, 450.0, 1000.0, 2100.0]) == [0.0, 0.5, 1.0, 2.0]
    assert "expert" in scale.meaning


def test_on_the_authors_demonstrations_the_papers_bc_is_one(tmp_path: Path, experts: Path) -> None:
    scale = scale_of(results(tmp_path / "r", "walker", paper_data=True), experts)
    assert scale is not None
    assert scale == Scale(-100.0, TASKS["walker"].paper["bc"].mean, scale.meaning)
    assert "paper's BC" in scale.meaning


def test_a_users_own_returns_have_no_scale(tmp_path: Path, experts: Path) -> None:
    assert scale_of(results(tmp_path / "r", "Hopper-v4"), experts) is None


def test_without_the_experts_scores_returns_have_no_scale(tmp_path: Path) -> None:
    assert scale_of(results(tmp_path / "r", "walker"), tmp_path) is None


def test_the_committed_experts_give_every_task_a_scale(tmp_path: Path) -> None:
    for name, task in TASKS.items():
        assert (EXPERTS / f"{name}.json").is_file()
        for paper_data in {False, task.paper_file is not None}:
            folder = tmp_path / f"{name}-{paper_data}"
            scale = scale_of(results(folder, name, paper_data=paper_data))
            assert scale is not None
            assert scale.zero < scale.one
