"""Cells in processes of their own: results come back, and nothing else dies with a cell."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from comparing import DYING, FAILING, make_cell

from benchmarks.compare import running
from benchmarks.compare.cells import Cell


def report_process(cell: Cell) -> Any:
    return {"pid": os.getpid(), "interrupts": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}


def refuse(cell: Cell) -> Any:
    raise KeyError("not this one")


def die(cell: Cell) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def sleep(cell: Cell) -> Any:
    time.sleep(600)


@pytest.mark.slow
class TestAttempt:
    def test_runs_each_cell_in_a_fresh_process_that_leaves_ctrl_c_to_the_first(
        self, tmp_path: Path
    ) -> None:
        cell = make_cell(tmp_path)
        outcomes = [running.attempt(cell, report_process) for _ in range(2)]
        assert all(outcome.error is None for outcome in outcomes)
        pids = {outcome.record["pid"] for outcome in outcomes if outcome.record}
        assert len(pids | {os.getpid()}) == 3
        assert all(outcome.record["interrupts"] for outcome in outcomes if outcome.record)

    def test_an_error_is_told_and_not_raised(self, tmp_path: Path) -> None:
        outcome = running.attempt(make_cell(tmp_path), refuse)
        assert outcome.record is None
        assert outcome.error is not None
        assert "KeyError: 'not this one'" in outcome.error

    def test_a_killed_process_is_told(self, tmp_path: Path) -> None:
        outcome = running.attempt(make_cell(tmp_path), die)
        assert outcome.record is None
        assert "its process was killed" in (outcome.error or "")

    def test_an_interruption_ends_the_process_of_the_cell(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began = time.monotonic()
        previous = signal.signal(signal.SIGALRM, _interrupt)
        signal.alarm(3)
        try:
            with pytest.raises(KeyboardInterrupt):
                running.attempt(make_cell(tmp_path), sleep)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)
        assert time.monotonic() - began < 60
        assert not multiprocessing.active_children()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
class TestRunHere:
    @pytest.mark.parametrize("n_jobs", [1, 2])
    def test_a_cell_that_fails_or_dies_does_not_stop_the_others(
        self, tmp_path: Path, n_jobs: int
    ) -> None:
        cells = [make_cell(tmp_path, method) for method in (DYING, "bc", FAILING, "bc_paired")]
        outcomes = {o.cell.method.key: o for o in running.run(cells, n_jobs)}
        assert outcomes.keys() == {"bc", "bc_paired", "airl", "gail"}
        assert "RuntimeError: fails on purpose" in (outcomes["airl"].error or "")
        assert "killed" in (outcomes["gail"].error or "")
        for key in ("bc", "bc_paired"):
            record = outcomes[key].record
            assert record is not None
            assert record["method"] == key

    def test_leaving_early_ends_what_is_running(
        self, tmp_path: Path, recwarn: pytest.WarningsRecorder
    ) -> None:
        cells = [make_cell(tmp_path, "bc", seed=seed) for seed in range(100, 106)]
        outcomes = running.run(cells, 2)
        assert next(outcomes).record is not None
        began = time.monotonic()
        outcomes.close()
        assert time.monotonic() - began < 30
        time.sleep(1)
        assert not multiprocessing.active_children()
        assert not recwarn.list
