"""The command line: what it runs, skips, refuses and leaves behind."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import FAILING, TINY, write_demonstrations
from toys import LINE_ENV_ID

from benchmarks.compare import __main__ as compare
from benchmarks.compare import running
from benchmarks.compare.cells import Cell, run_cell
from benchmarks.compare.methods import METHODS
from benchmarks.records import read_record

# The report needs rliable, which is not there on every stack.
report = pytest.importorskip("benchmarks.report", exc_type=ImportError)

Main = Callable[..., int]


class Here:
    """Runs cells in this process, and may interrupt."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.interrupt_after: int | None = None

    def __call__(
        self, cells: Sequence[Cell], n_jobs: int, ray_address: str | None
    ) -> Iterator[running.Outcome]:
        for cell in cells:
            if len(self.ran) == self.interrupt_after:
                raise KeyboardInterrupt
            self.ran.append(f"{cell.method.key} {cell.seed}")
            try:
                yield running.Outcome(cell, run_cell(cell))
            except RuntimeError as error:
                yield running.Outcome(cell, None, str(error))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    ran = Here()
    monkeypatch.setattr(running, "run", ran)
    return ran


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Fills up with the folders that reports are written on."""
    written: list[Path] = []

    def write_report(results: Path) -> Path:
        written.append(results)
        return results / "report.md"

    monkeypatch.setattr(report, "write_report", write_report)
    return written


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here, reports: list[Path]) -> Main:
    """The command on a user's own task, with tiny budgets."""
    monkeypatch.setattr(compare, "PROTOCOLS", {False: TINY})
    monkeypatch.setattr(compare, "CACHE", tmp_path / "critics")
    demos = write_demonstrations(tmp_path / "mine.npz")

    def run(*arguments: str) -> int:
        own = ["--env", LINE_ENV_ID, "--demos", str(demos)]
        return compare.main([*own, "--results", str(tmp_path / "results"), *arguments])

    return run


def results_in(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((folder / "results").glob("*/*/*.json"))
    return {f"{path.parent.name} {path.stem}": read_record(path) for path in paths}


class TestRun:
    def test_writes_one_result_for_each_cell_and_the_report(
        self, main: Main, tmp_path: Path, reports: list[Path]
    ) -> None:
        assert main("--methods", "bc", "bc_paired", "--seeds", "2") == 0
        found = results_in(tmp_path)
        assert found.keys() == {"bc 100", "bc 101", "bc_paired 100", "bc_paired 101"}
        record = found["bc 100"]
        assert record["task"] == "sb3_diffbc_tests_Line-v0"
        assert record["metric"] == "success"
        assert record["demonstrations"]["source"] == "mine.npz"
        assert record["command"].startswith("python -m benchmarks.compare --env")
        assert str(tmp_path / "results") not in record["command"]
        assert reports == [tmp_path / "results"]

    def test_again_runs_nothing(self, main: Main, here: Here) -> None:
        main("--methods", "bc", "--seeds", "2")
        assert len(here.ran) == 2
        assert main("--methods", "bc", "--seeds", "2") == 0
        assert len(here.ran) == 2

    def test_more_seeds_run_only_the_new_ones(self, main: Main, here: Here) -> None:
        main("--methods", "bc", "--seeds", "1")
        main("--methods", "bc", "--seeds", "3")
        assert here.ran == ["bc 100", "bc 101", "bc 102"]

    def test_a_damaged_result_is_told_and_run_again(
        self, main: Main, here: Here, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main("--methods", "bc", "--seeds", "2")
        path = next((tmp_path / "results").glob("*/bc/101.json"))
        path.write_text(path.read_text()[:100])
        assert main("--methods", "bc", "--seeds", "2") == 0
        assert here.ran[2:] == ["bc 101"]
        assert f"runs again: {path}" in capsys.readouterr().out
        assert len(results_in(tmp_path)) == 2

    def test_a_failing_cell_is_told_and_the_others_are_kept(
        self,
        main: Main,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(compare, "METHODS", {**METHODS, "airl": FAILING})
        assert main("--methods", "airl", "bc", "--seeds", "1") == 1
        assert results_in(tmp_path).keys() == {"bc 100"}
        told = capsys.readouterr()
        assert "failed: sb3_diffbc_tests_Line-v0 airl 100: fails on purpose" in told.err

    def test_a_result_that_cannot_be_written_is_a_failure(
        self, main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(cells: Sequence[Cell], *_: Any) -> Iterator[running.Outcome]:
            for cell in cells:
                record = run_cell(cell)
                record["scores"] = [float("nan")]
                yield running.Outcome(cell, record)

        monkeypatch.setattr(running, "run", run)
        assert main("--methods", "bc", "--seeds", "1") == 1
        assert "scores" in capsys.readouterr().err

    def test_interrupted_it_keeps_what_is_done_reports_and_goes_on_later(
        self,
        main: Main,
        here: Here,
        reports: list[Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        here.interrupt_after = 2
        assert main("--methods", "bc", "--seeds", "3") == 130
        assert len(results_in(tmp_path)) == 2
        assert len(reports) == 1
        assert "the same command goes on" in capsys.readouterr().out
        here.interrupt_after = None
        assert main("--methods", "bc", "--seeds", "3") == 0
        assert here.ran == ["bc 100", "bc 101", "bc 102"]

    def test_interrupted_before_the_first_result_there_is_no_report(
        self, main: Main, here: Here, reports: list[Path]
    ) -> None:
        here.interrupt_after = 0
        assert main("--methods", "bc") == 130
        assert not reports

    def test_a_cluster_that_fails_is_told(
        self, main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run(*_: Any) -> Iterator[running.Outcome]:
            raise running.ClusterError("Ray at 1.2.3.4:5: nobody there")
            yield

        monkeypatch.setattr(running, "run", run)
        assert main("--methods", "bc", "--ray", "1.2.3.4:5") == 1
        assert "nobody there" in capsys.readouterr().err


class TestWhat:
    def test_interactive_methods_have_fewer_seeds_by_default(
        self, main: Main, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main("--list", "--methods", "bc", "gail") == 0
        printed = capsys.readouterr().out
        assert "missing: 8 of 8 cells" in printed

    def test_a_users_task_has_all_methods_but_the_papers_settings(
        self, main: Main, capsys: pytest.CaptureFixture[str]
    ) -> None:
        main("--list", "--seeds", "1")
        printed = capsys.readouterr().out
        assert f"of {len(METHODS) - 1} cells" in printed
        assert "diffusion_bc_paper" not in printed

    def test_listing_runs_nothing(self, main: Main, here: Here, tmp_path: Path) -> None:
        main("--list")
        assert not here.ran
        assert not (tmp_path / "results").exists()

    def test_interactive_steps_can_be_chosen(
        self, main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        assert main("--methods", "gail", "--seeds", "1", "--interactive-steps", "2500") == 0
        assert results_in(tmp_path)["gail 100"]["env_steps"] == 2048

    def test_demonstrations_are_warned_about_once(
        self, main: Main, tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        path = write_demonstrations(tmp_path / "mine.npz")
        with np.load(path) as data:
            arrays = dict(data)
        arrays["obs"][:, 1] = arrays["next_obs"][:, 1] = 3  # a dimension that never changes
        np.savez(path, **arrays)
        main("--methods", "bc", "bc_paired", "--seeds", "2")
        told = [w for w in recwarn if "never changes" in str(w.message)]
        assert len(told) == 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--tasks", "mars"], "invalid choice: 'mars'"),
            (["--tasks", "maze", "--methods", "magic"], "invalid choice: 'magic'"),
            (["--tasks", "maze", "--seeds", "0"], "found 0, expected at least 1"),
            (["--tasks", "maze", "--jobs", "-1"], "found -1, expected at least 1"),
            (["--env", "Hopper-v4"], "--env needs --demos"),
            (["--demos", "a.npz"], "--demos is for a task of your own"),
            (["--metric", "return"], "--metric is for a task of your own"),
            (["--env", "Hopper-v4", "--demos", "a.npz", "--tasks", "maze"], "not both"),
            (["--env", "Nowhere-v0", "--demos", "a.npz"], "'Nowhere-v0' cannot be made"),
            (["--env", "Hopper-v4", "--demos", "nothing.npz"], "nothing.npz"),
            (["--tasks", "maze-paper"], "--paper-data: maze-paper needs the folder"),
            (["--tasks", "walker-paper", "--paper-data", "/nowhere"], "walker.pt is not there"),
            (["--env", "Hopper-v4", "--demos", "walker"], "shape"),
        ],
    )
    def test_wrong_arguments_are_told_before_any_work(
        self,
        arguments: list[str],
        reason: str,
        here: Here,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with pytest.raises(SystemExit) as stopped:
            compare.main([*arguments, "--results", str(tmp_path / "results")])
        assert stopped.value.code == 2
        assert reason in capsys.readouterr().err
        assert not here.ran
        assert not (tmp_path / "results").exists()

    def test_too_few_steps_for_a_round_are_told_before_any_work(
        self, main: Main, here: Here, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            main("--methods", "bc", "gail", "--interactive-steps", "5")
        assert "gail on" in capsys.readouterr().err
        assert not here.ran


class TestFolders:
    def test_toy_figures_do_not_take_the_place_of_real_ones(
        self, here: Here, reports: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        here.interrupt_after = 1
        compare.main(["--quick", "--tasks", "maze", "--methods", "bc", "--seeds", "2"])
        [folder] = reports
        assert compare.ROOT not in folder.parents
        assert list(folder.glob("maze/bc/100.json"))

    def test_a_users_results_do_not_mix_with_the_published_ones(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert compare.RESULTS not in (compare.OWN_RESULTS, *compare.OWN_RESULTS.parents)
        ignored = subprocess.run(
            ["git", "check-ignore", "-q", str(compare.OWN_RESULTS)], cwd=compare.ROOT
        )
        assert ignored.returncode in (0, 128)  # 128: not a repository


@pytest.mark.slow
def test_ctrl_c_leaves_the_finished_cells_and_a_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.compare", "--quick", "--tasks", "maze"]
    with subprocess.Popen(
        [*command, "--methods", "bc_paired", "--seeds", "40", "--results", str(tmp_path / "r")],
        cwd=compare.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Whoever starts the tests in the background has them, and what they start, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "maze bc_paired 100" in line:
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, "".join(lines)
    kept = list((tmp_path / "r").glob("maze/bc_paired/*.json"))
    assert 1 <= len(kept) < 40
    assert all(json.loads(path.read_text())["method"] == "bc_paired" for path in kept)
