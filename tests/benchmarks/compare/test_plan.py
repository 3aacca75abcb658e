"""Which cells are missing: valid results stay, others run again and say why."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from comparing import TINY, line_task, make_cell
from gymnasium import spaces

from benchmarks import records
from benchmarks.compare import cells
from benchmarks.compare.methods import METHODS
from benchmarks.compare.plan import Plan, Row, estimated_seconds, make_plan
from benchmarks.compare.protocol import Protocol
from benchmarks.compare.tasks import ComparedTask

ORIGIN = cells.Origin("python -m benchmarks.compare", None, None)


def plan_for(
    task: ComparedTask,
    folder: Path,
    methods: Sequence[str] = ("bc",),
    *,
    n_seeds: int = 2,
    protocol: Protocol = TINY,
    **kwargs: Any,
) -> Plan:
    rows = [
        Row(task, METHODS[key], range(100, 100 + n_seeds), task.demonstrations()) for key in methods
    ]
    return make_plan(rows, protocol, folder / "results", folder / "critics", ORIGIN, **kwargs)


def run_and_write(cell: cells.Cell, folder: Path) -> Path:
    path = records.record_path(folder / "results", cell.task.key, cell.method.key, cell.seed)
    records.write_record(path, cells.run_cell(cell))
    return path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def task(tmp_path: Path) -> ComparedTask:
    return line_task(tmp_path)


@pytest.fixture
def result(tmp_path: Path, task: ComparedTask) -> Path:
    """The valid result of the first seed."""
    return run_and_write(plan_for(task, tmp_path).cells[0], tmp_path)


class TestMissing:
    def test_is_everything_at_first(self, tmp_path: Path, task: ComparedTask) -> None:
        plan = plan_for(task, tmp_path, ("bc", "bc_paired"), n_seeds=3)
        assert len(plan.cells) == 6
        assert {cell.name for cell in plan.missing} == {cell.name for cell in plan.cells}
        assert not plan.notes

    def test_a_valid_result_is_kept(self, tmp_path: Path, task: ComparedTask, result: Path) -> None:
        plan = plan_for(task, tmp_path)
        assert [cell.seed for cell in plan.missing] == [101]
        assert not plan.notes

    def test_what_a_killed_run_left_behind_does_not_matter(
        self, tmp_path: Path, task: ComparedTask, result: Path
    ) -> None:
        (result.parent / "101.json.tmp").write_text('{"format": 1, "task"')
        assert [cell.seed for cell in plan_for(task, tmp_path).missing] == [101]

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "\x00"])
    def test_a_damaged_result_runs_again(
        self, tmp_path: Path, task: ComparedTask, result: Path, content: str
    ) -> None:
        result.write_text(content)
        plan = plan_for(task, tmp_path)
        assert len(plan.missing) == 2
        assert len(plan.notes) == 1
        assert str(result) in plan.notes[0]

    def test_the_result_of_another_cell_runs_again(
        self, tmp_path: Path, task: ComparedTask, result: Path
    ) -> None:
        result.with_name("101.json").write_text(result.read_text())
        plan = plan_for(task, tmp_path)
        assert [cell.seed for cell in plan.missing] == [101]
        assert "101.json" in plan.notes[0]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"first_episode_seed": 7}, "another first_episode_seed: 7 (now 0)"),
            ({"noise_ratio": 2.0}, "another noise_ratio: 2.0 (now 1.0)"),
            ({"scores": [1.0, 0.0]}, "other numbers of episodes"),
            ({"curve": []}, "other numbers of episodes"),
        ],
    )
    def test_a_result_of_another_protocol_runs_again(
        self,
        tmp_path: Path,
        task: ComparedTask,
        result: Path,
        changes: dict[str, Any],
        reason: str,
    ) -> None:
        edit(result, **changes)
        plan = plan_for(task, tmp_path)
        assert len(plan.missing) == 2
        assert reason in plan.notes[0]

    def test_a_result_with_other_settings_runs_again(
        self, tmp_path: Path, task: ComparedTask, result: Path
    ) -> None:
        config = json.loads(result.read_text())["config"]
        edit(result, config={**config, "batch_size": 64})
        assert "another config: batch_size 64 (now 32)" in plan_for(task, tmp_path).notes[0]

    def test_a_setting_that_changes_nothing_does_not_matter(
        self, tmp_path: Path, task: ComparedTask, result: Path
    ) -> None:
        config = json.loads(result.read_text())["config"]
        edit(result, config={**config, "compile": True}, title="Another title")
        assert not plan_for(task, tmp_path).notes

    def test_results_of_other_demonstrations_run_again(
        self, tmp_path: Path, task: ComparedTask, result: Path
    ) -> None:
        other = line_task(tmp_path, seed=1)
        plan = plan_for(other, tmp_path)
        assert len(plan.missing) == 2
        assert "other demonstrations" in plan.notes[0]

    def test_another_budget_runs_again_only_whom_it_concerns(
        self, tmp_path: Path, task: ComparedTask, result: Path
    ) -> None:
        longer = dataclasses.replace(TINY, interactive_steps=4096)
        assert len(plan_for(task, tmp_path, protocol=longer).missing) == 1
        more = dataclasses.replace(TINY, updates=13)
        assert len(plan_for(task, tmp_path, protocol=more).missing) == 2


class TestUnsuitable:
    def test_is_refused_before_anything_runs(self, tmp_path: Path, task: ComparedTask) -> None:
        discrete = _with_discrete_actions(task)
        with pytest.raises(TypeError, match=r"implicit_bc on .*: .*expected a Box"):
            plan_for(discrete, tmp_path, ("bc", "implicit_bc"))

    def test_is_left_out_where_nobody_asked_for_it(
        self, tmp_path: Path, task: ComparedTask
    ) -> None:
        discrete = _with_discrete_actions(task)
        plan = plan_for(discrete, tmp_path, ("bc", "implicit_bc"), leave_out_unsuitable=True)
        assert {cell.method.key for cell in plan.cells} == {"bc"}
        assert plan.notes[0].startswith("left out: implicit_bc")


def _with_discrete_actions(task: ComparedTask) -> ComparedTask:
    class Discrete(ComparedTask):
        def spaces(self) -> Any:
            return super().spaces()[0], spaces.Discrete(2)

    demonstrations = task.demonstrations()
    acts = (demonstrations.acts[:, 0] > 0).astype(int)
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return Discrete(**fields | {"source": dataclasses.replace(demonstrations, acts=acts)})


class TestOrder:
    def test_the_cheapest_comes_first(self, tmp_path: Path, task: ComparedTask) -> None:
        plan = plan_for(task, tmp_path, ("bc", "diffusion_policy", "bc_paired"), n_seeds=1)
        assert list(plan.seconds) == sorted(plan.seconds)
        assert plan.missing[0].method.key == "bc_paired"

    def test_a_row_that_was_measured_costs_what_it_cost(self, tmp_path: Path) -> None:
        cell = make_cell(tmp_path)
        done = [
            {"method": "bc", "task": cell.task.key, "seconds": {"training": 10.0, "curve": 2.0}},
            {"method": "bc", "task": cell.task.key, "seconds": {"training": 20.0}},
            {"method": "gail", "task": cell.task.key, "seconds": {"training": 500.0}},
            {"method": "bc", "task": "maze", "seconds": {"training": 900.0}},
        ]
        assert estimated_seconds(cell, done) == 16

    def test_long_episodes_and_long_trainings_cost_more(self, tmp_path: Path) -> None:
        cell = make_cell(tmp_path)
        longer = dataclasses.replace(cell, task=dataclasses.replace(cell.task, horizon=1000))
        assert estimated_seconds(longer, []) > estimated_seconds(cell, [])
        more = dataclasses.replace(cell, protocol=dataclasses.replace(TINY, updates=100_000))
        assert estimated_seconds(more, []) > estimated_seconds(cell, [])
