"""The grid: cells run in parallel as they do alone, and one that fails stops no other."""

import multiprocessing
from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("joblib")

from comparing import FAILING, line_cells, tiny

from benchmarks import runner
from benchmarks.cell import Cell
from benchmarks.record import Record, read_folder, record_path


def run(cells: list[Cell], folder: Path, n_jobs: int = 1) -> dict[str, runner.Outcome]:
    return {outcome.cell.name: outcome for outcome in runner.run_grid(cells, folder, n_jobs)}


def test_records_of_parallel_processes_are_those_of_one_and_a_failure_stops_none(
    tmp_path: Path,
) -> None:
    variants = (FAILING, tiny("bc"), tiny("diffusion_policy_ddim"))
    cells = line_cells(tmp_path, *variants, n_seeds=2)
    alone = run(cells, tmp_path / "alone")
    together = run(cells, tmp_path / "together", n_jobs=2)
    assert alone.keys() == together.keys() == {cell.name for cell in cells}
    for name, outcome in alone.items():
        record, other = outcome.record, together[name].record
        assert (record is None) == (other is None) == ("failing" in name)
        if record is None or other is None:
            assert "RuntimeError: fails on purpose" in (outcome.error or "")
        else:
            assert (record.scores, record.curve) == (other.scores, other.curve)
    written, problems = read_folder(tmp_path / "together")
    assert written == {o.cell.key: o.record for o in together.values() if o.record is not None}
    assert not problems


def test_what_is_not_read_any_more_is_not_run(tmp_path: Path) -> None:
    outcomes = runner.run_grid(line_cells(tmp_path, n_seeds=3), tmp_path / "runs", n_jobs=1)
    next(outcomes)
    outcomes.close()
    assert len(read_folder(tmp_path / "runs")[0]) == 1


@pytest.mark.parametrize("obstacle", ["record", "folder"])
def test_a_cell_that_cannot_be_written_stops_no_other(tmp_path: Path, obstacle: str) -> None:
    cells = line_cells(tmp_path, tiny("bc"), tiny("diffusion_policy_ddim"))
    in_the_way = record_path(tmp_path / "runs", *cells[0].key)
    if obstacle == "record":
        in_the_way.mkdir(parents=True)
    else:
        in_the_way.parent.parent.mkdir(parents=True)
        in_the_way.parent.touch()
    first, second = run(cells, tmp_path / "runs").values()
    assert first.record is None
    assert in_the_way.name in (first.error or "") or in_the_way.parent.name in (first.error or "")
    assert read_folder(tmp_path / "runs")[0] == {cells[1].key: second.record}
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_runs_on_a_folder_share_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = line_cells(tmp_path, n_seeds=3)
    ran: list[str] = []
    other: dict[str, runner.Outcome] = {}
    original = runner.run_cell

    def run_cell(cell: Cell) -> Record:
        ran.append(cell.name)
        if len(ran) == 1:  # the other run comes while this one is at its first cell
            other.update(run(cells, tmp_path / "runs"))
        return original(cell)

    monkeypatch.setattr(runner, "run_cell", run_cell)
    outcomes = run(cells, tmp_path / "runs")
    assert sorted(ran) == sorted(cell.name for cell in cells)
    busy, *done = other.values()
    assert busy == runner.Outcome(cells[0])
    assert [outcome.record for outcome in done] == [
        outcomes[outcome.cell.name].record for outcome in done
    ]
    assert read_folder(tmp_path / "runs")[0].keys() == {cell.key for cell in cells}


def test_a_killed_run_holds_no_cell(tmp_path: Path) -> None:
    [cell] = line_cells(tmp_path)
    held, killed = multiprocessing.Event(), multiprocessing.Event()

    def hold() -> None:
        claims = runner._Claims(tmp_path / "runs")
        assert claims.claim(cell) is None
        held.set()
        killed.wait()

    process = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert held.wait(60)
    assert run([cell], tmp_path / "runs") == {cell.name: runner.Outcome(cell)}
    process.kill()
    process.join()
    assert run([cell], tmp_path / "runs")[cell.name].record is not None


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
