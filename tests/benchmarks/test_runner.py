"""The grid: cells run in parallel as they do alone, and one that fails stops no other."""

from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("joblib")

from comparing import FAILING, line_cells, tiny

from benchmarks import runner
from benchmarks.cell import Cell
from benchmarks.record import read_folder


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
