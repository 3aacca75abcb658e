"""The grid: every cell is run once, whatever becomes of the others, and nothing is lost."""

import dataclasses
from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("joblib")

from comparing import FAILING, line_cells, tiny
from filelock import FileLock

from benchmarks import record as records
from benchmarks import runner
from benchmarks.cell import Cell
from benchmarks.record import Record, read_folder, record_path


def run(cells: list[Cell], folder: Path, n_jobs: int = 1) -> dict[str, runner.Outcome]:
    return {outcome.cell.name: outcome for outcome in runner.run_grid(cells, folder, n_jobs)}


def test_records_of_parallel_processes_are_those_of_one(tmp_path: Path) -> None:
    cells = line_cells(tmp_path, tiny("bc"), tiny("diffusion_policy_ddim"), n_seeds=2)
    alone = run(cells, tmp_path / "alone")
    together = run(cells, tmp_path / "together", n_jobs=2)
    assert alone.keys() == together.keys()
    for name, outcome in alone.items():
        other = together[name].record
        assert outcome.record is not None
        assert other is not None
        assert outcome.record.scores == other.scores
        assert outcome.record.curve == other.curve
    written, problems = read_folder(tmp_path / "together")
    assert written == {o.cell.key: o.record for o in together.values()}
    assert not problems


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    cells = line_cells(tmp_path, FAILING, tiny("bc"))
    failed, done = run(cells, tmp_path / "runs", n_jobs=2).values()
    if failed.error is None:
        failed, done = done, failed
    assert failed.record is None
    assert "RuntimeError: fails on purpose" in (failed.error or "")
    assert done.record is not None
    assert read_folder(tmp_path / "runs")[0].keys() == {done.cell.key}


def test_a_record_that_cannot_be_written_is_a_failure_of_its_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = records.write_record

    def write(record: Record, folder: Path) -> Path:
        if record.seed == 100:
            raise OSError("No space left on device")
        return original(record, folder)

    monkeypatch.setattr(runner, "write_record", write)
    first, second = run(line_cells(tmp_path, n_seeds=2), tmp_path / "runs").values()
    assert "cannot be written: No space left" in (first.error or "")
    assert second.error is None


def test_a_folder_that_cannot_be_made_is_a_failure_too(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    [outcome] = run(line_cells(tmp_path), tmp_path / "runs").values()
    assert "cannot be written" in (outcome.error or "")


def test_a_cell_that_another_run_has_begun_is_left_to_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = line_cells(tmp_path, n_seeds=2)
    path = record_path(tmp_path / "runs", *cells[0].key)
    path.parent.mkdir(parents=True)
    with FileLock(path.with_suffix(".lock")):
        outcomes = run(cells, tmp_path / "runs")
    assert outcomes.keys() == {cells[1].name}
    assert f"{cells[0].name}: left to another run" in capsys.readouterr().out
    assert run(cells, tmp_path / "runs").keys() == {cells[0].name}


def test_a_finished_cell_is_run_again_only_with_other_settings(tmp_path: Path) -> None:
    [cell] = line_cells(tmp_path)
    folder = tmp_path / "runs"
    assert len(run([cell], folder)) == 1
    assert not run([cell], folder)
    [other] = line_cells(tmp_path, dataclasses.replace(tiny("bc"), arguments={"n_updates": 9}))
    assert len(run([other], folder)) == 1
    record_path(folder, *cell.key).write_text("damaged")
    assert len(run([other], folder)) == 1


def test_what_is_not_read_any_more_is_not_run(tmp_path: Path) -> None:
    cells = line_cells(tmp_path, n_seeds=3)
    outcomes = runner.run_grid(cells, tmp_path / "runs", n_jobs=1)
    next(outcomes)
    outcomes.close()
    assert len(read_folder(tmp_path / "runs")[0]) == 1
    assert len(run(cells, tmp_path / "runs")) == 2


@pytest.mark.slow
def test_a_ray_cluster_gives_the_same_records(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    cells = line_cells(tmp_path)
    [expected] = run(cells, tmp_path / "here").values()
    [outcome] = runner.run_grid(cells, tmp_path / "ray", 1, runner.LOCAL_RAY)
    assert expected.record is not None
    assert outcome.record is not None
    assert outcome.record.scores == expected.record.scores
    assert read_folder(tmp_path / "ray")[0].keys() == {outcome.cell.key}
