"""The command line: what is run, listed and gathered, and how a run ends."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas")
pytest.importorskip("tyro")
pytest.importorskip("joblib")
pytest.importorskip("rliable")

from comparing import FAILING, line_suite, tiny, write_demonstrations
from toys import LINE_ENV_ID

from benchmarks import __main__ as command_line
from benchmarks import record as records
from benchmarks.__main__ import main


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The suite ``toys`` and folders for its results."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(records, "RUNS", tmp_path / "runs")
    suite = line_suite(tmp_path, tiny("bc"), FAILING, default_variants=("bc",), n_seeds=2)
    comparison = dataclasses.replace(suite, name="comparison")
    monkeypatch.setattr(command_line, "SUITES", {"toys": suite, "comparison": comparison})
    return tmp_path


def run(*arguments: str) -> int:
    return main([*arguments, "--jobs", "1"])


def test_what_is_missing_is_run_and_nothing_twice(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", "toys", "--seeds", "1") == 0
    assert "bc 100: success" in capsys.readouterr().out
    assert run("run", "toys") == 0
    assert "1 of 2 cells are done" in (output := capsys.readouterr().out)
    assert "bc 101: success" in output
    assert len(records.read_suite("toys")) == 2
    assert run("run", "toys") == 0
    assert "2 of 2 cells are done" in capsys.readouterr().out


def test_gathered_cells_count_as_done_and_changed_ones_do_not(
    toys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("run", "toys") == 0
    assert main(["gather", "toys"]) == 0
    for path in (toys / "runs").rglob("*.json"):
        path.unlink()
    assert main(["list", "toys"]) == 0
    assert "2 of 2 done" in capsys.readouterr().out
    suite = line_suite(toys, dataclasses.replace(tiny("bc"), arguments={"n_updates": 9}))
    monkeypatch.setattr(command_line, "SUITES", {"toys": suite})
    assert main(["list", "toys"]) == 0
    output = capsys.readouterr().out
    assert "0 of 1 done" in output
    assert "bc 100: other config, n_batches" in output


def test_a_record_says_how_to_run_it_again(toys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "toys", "--jobs", "1", "--paper-data", str(toys)]
    monkeypatch.setattr(command_line.sys, "argv", ["benchmarks", *arguments])
    assert main() == 0
    row = records.read_suite("toys").to_dict("records")[0]
    assert row["command"] == "python -m benchmarks run toys --jobs 1 --paper-data FOLDER"
    assert row["git_revision"] is None or len(row["git_revision"]) == 40


def test_a_failed_cell_is_named_and_tells_in_the_exit_status(
    toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("run", "toys", "--variants", "failing", "bc", "--seeds", "1") == 1
    captured = capsys.readouterr()
    assert "failing 100: FAILED: RuntimeError: fails on purpose" in captured.out
    assert "Traceback" in captured.err
    assert len(records.read_suite("toys")) == 1


def test_ctrl_c_keeps_what_is_done(
    toys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(outcome: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command_line, "summary", interrupt)
        assert run("run", "toys") == 130
    assert "Interrupted" in capsys.readouterr().out
    assert len(records.read_suite("toys")) == 1
    assert run("run", "toys") == 0
    assert len(records.read_suite("toys")) == 2


def test_a_task_of_one_s_own_has_results_of_its_own(
    toys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(records, "RESULTS", toys / "results")
    monkeypatch.setattr(records, "RUNS", toys / "runs")
    demos = str(write_demonstrations(toys / "mine.npz"))
    own = ["own", "--env", LINE_ENV_ID, "--demos", demos, "--metric", "success"]
    selection = command_line.List("own", env=LINE_ENV_ID, demos=demos)
    names = [cell.variant.name for cell in selection.cells(selection.find_suite())[0]]
    assert "gail" in names
    assert main(["list", *own]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "toy"], "suite: found 'toy', expected one of toys, comparison, own"),
        (["run", "toys", "--seeds", "0"], "--seeds: found 0, expected at least 1"),
        (["run", "own", "--env", "Hopper-v4"], "--env and --demos go with the suite 'own'"),
        (["run", "toys", "--env", "A", "--demos", "b"], "--env and --demos go with"),
        (["run", "own", "--env", "A-v0", "--demos", "b"], "--env: 'A-v0' cannot be made"),
        (["run", "toys", "--variants", "bd"], "variants: found 'bd'"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(
    arguments: list[str], message: str, toys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(arguments)
    except SystemExit as error:  # tyro's own, for what the dataclasses refuse
        status = error.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())
