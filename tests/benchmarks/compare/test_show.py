"""What is printed while cells run."""

from pathlib import Path

import pytest
from comparing import make_cell

from benchmarks.compare import show
from benchmarks.compare.plan import Plan
from benchmarks.compare.running import Outcome


def outcome_of(folder: Path, metric: str) -> Outcome:
    record = {"scores": [1.0, 0.0, 1.0, 1.0], "metric": metric, "seconds": {"training": 61.6}}
    return Outcome(make_cell(folder), record)


class TestSummary:
    def test_gives_score_and_time(self, tmp_path: Path) -> None:
        success, returns = (outcome_of(tmp_path, metric) for metric in ("success", "return"))
        name = "sb3_diffbc_tests_Line-v0 bc 100"
        assert show.summary(success) == f"{name}: success 75%, 0:01:02"
        assert show.summary(returns) == f"{name}: return 0.8, 0:01:02"

    def test_of_a_failure_gives_the_last_line_of_the_error(self, tmp_path: Path) -> None:
        failed = Outcome(make_cell(tmp_path), None, "Traceback\n  ...\nValueError: bad\n")
        assert show.summary(failed).endswith("FAILED: ValueError: bad")


class TestProgress:
    def test_passes_outcomes_on_and_prints_a_line_for_each(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cells = tuple(make_cell(tmp_path, seed=seed) for seed in (100, 101))
        plan = Plan(cells, cells, (), (1.0, 3.0))
        given = [Outcome(cells[1], None, "broken"), Outcome(cells[0], None, "too")]
        assert list(show.progress(iter(given), plan)) == given
        printed = capsys.readouterr()
        assert "bc 101: FAILED: broken" in printed.out
        assert "2/2 cells" in printed.err
        assert "0:00:00 left" in printed.err

    def test_of_nothing_is_nothing(self) -> None:
        assert list(show.progress(iter([]), Plan((), (), (), ()))) == []


class TestOverview:
    def test_counts_what_is_done_and_adds_up_what_is_missing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        cells = tuple(make_cell(tmp_path, seed=seed) for seed in range(100, 104))
        show.overview(Plan(cells, cells[1:], ("runs again: a file",), (60.0, 30.0, 10.0)))
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "runs again: a file"
        assert "1 of 4 done, about 0:01:40 to go" in lines[1]
        assert lines[2] == "missing: 3 of 4 cells, about 0:01:40 on one core"
