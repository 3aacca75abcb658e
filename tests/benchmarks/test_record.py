"""Records: one file for each cell, one table for each suite, and a frame of both."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas")

from hypothesis import given
from hypothesis import strategies as st
from synthetic_records import record

from benchmarks import record as records
from benchmarks.record import Record


def make(**changes: Any) -> Record:
    return record("bc", changes.pop("seed", 100), 75.0, **changes)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables and cell files of suites by name lie here."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(records, "RUNS", tmp_path / "runs")
    return tmp_path


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    path = records.write_record(make(), tmp_path)
    assert path == tmp_path / "maze" / "bc" / "100.json"
    assert records.read_folder(tmp_path) == ({make().key: make()}, [])
    assert list(path.parent.iterdir()) == [path]


def test_writers_of_one_record_do_not_disturb_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "replace", original)
        records.write_record(make(scores=[0.0]), tmp_path)  # another one, in between
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    path = records.write_record(make(), tmp_path)
    assert records.read_record(path) == make()
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toys.parquet"
    records.write_table([make()], path)

    def full(table: Any, to: Path, **_: Any) -> None:
        to.write_bytes(b"PAR1")
        raise OSError("No space left on device")

    monkeypatch.setattr(records.pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        records.write_table([make(seed=101)], path)
    assert list(tmp_path.iterdir()) == [path]
    assert list(records.read_table(path).values()) == [make()]


def test_variants_of_any_name_have_files_of_their_own(tmp_path: Path) -> None:
    names = ["bc", "nll, p(a|s), 1", "nll, p(s,a), 1", "4 x 128 dm_coef=0.3", "../x", "."]
    paths = {records.record_path(tmp_path, "maze", name, 0) for name in names}
    assert len(paths) == len(names)
    assert all(path.resolve().parents[2] == tmp_path.resolve() for path in paths)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "speed"}, r"metric: .*'success' or 'return', found 'speed'"),
        ({"scores": [2.0]}, r"'success' must lie between 0 and 1"),
        ({"task": "../maze"}, r"task: .*match pattern"),
        ({"measures": {"updates": "ten"}}, r"measures\.updates: .*number, found 'ten'"),
    ],
)
def test_a_file_that_is_no_record_is_refused_with_its_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = records.write_record(make(), tmp_path)
    path.write_text(json.dumps(make().model_dump() | changes))
    found, [problem] = records.read_folder(tmp_path)
    assert not found
    assert re.search(rf"100\.json.*{message}", problem)


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    scores=st.lists(finite, min_size=1),
    curve=st.lists(st.tuples(st.integers(0, 2**40), finite), max_size=4),
    measures=st.dictionaries(st.text("abc/", min_size=1), finite, min_size=1, max_size=4),
    config=st.dictionaries(
        st.text(max_size=3),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | st.text(max_size=3),
            lambda value: st.lists(value, max_size=2),
            max_leaves=4,
        ),
        max_size=3,
    ),
)
def test_a_table_gives_back_every_record(
    tmp_path_factory: pytest.TempPathFactory,
    scores: list[float],
    curve: list[tuple[int, float]],
    measures: dict[str, float],
    config: dict[str, Any],
) -> None:
    checkpoints = [
        records.Checkpoint(updates=updates, env_steps=0, score=score, episodes=2)
        for updates, score in curve
    ]
    changes: dict[str, Any] = {"scores": scores, "curve": checkpoints, "measures": measures}
    first = make(metric="return", config=config, **changes)
    second = make(seed=101, git_revision=None, git_dirty=None)
    path = tmp_path_factory.mktemp("table") / "toys.parquet"
    records.write_table([second, first], path)
    found = records.read_table(path)
    assert list(found.values()) == [first, second]


@pytest.mark.parametrize("content", [b"", b"PAR1 not a table"])
def test_a_file_that_is_no_table_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "toys.parquet"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"toys\.parquet: cannot be read"):
        records.read_table(path)


def test_a_suite_has_the_table_s_rows_and_newer_cell_files(folders: Path) -> None:
    records.write_table([make(), make(seed=101)], folders / "results" / "toys.parquet")
    records.write_record(make(seed=101, scores=[0.0]), folders / "runs" / "toys")
    records.write_record(make(seed=102), folders / "runs" / "toys")
    frame = records.read_suite("toys")
    assert frame["seed"].tolist() == [100, 101, 102]
    assert frame["score"].tolist() == [0.75, 0.0, 0.75]
    assert frame["n_episodes"].tolist() == [100, 1, 100]
    assert frame["measures"][0] == make().measures
    assert frame["config"][0] == make().config


def test_damaged_cell_files_are_named_and_left_out(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders / "runs" / "toys"
    records.write_record(make(), folder)
    records.write_record(make(seed=101), folder).write_text('{"suite": "toys"')
    records.record_path(folder, "maze", "bc", 102).mkdir()
    assert records.read_suite("toys")["seed"].tolist() == [100]
    assert "left out" in (message := capsys.readouterr().err)
    assert "101.json" in message
    assert "102.json: cannot be read" in message


def test_a_path_is_read_alone(folders: Path) -> None:
    records.write_record(make(seed=7), folders / "runs" / "toys")
    records.write_table([make()], folders / "other.parquet")
    assert records.read_suite(folders / "other.parquet")["seed"].tolist() == [100]
    assert records.read_suite(folders / "runs" / "toys")["seed"].tolist() == [7]


def test_gathering_puts_cell_files_into_the_table(folders: Path) -> None:
    records.write_table([make(), make(seed=101)], folders / "results" / "toys.parquet")
    newer = make(seed=101, scores=[0.0])
    records.write_record(newer, folders / "runs" / "toys")
    path = records.gather("toys")
    assert list(records.read_table(path).values()) == [make(), newer]
    with pytest.raises(ValueError, match="tyos: found no finished cells"):
        records.gather("tyos")
    assert not (folders / "results" / "tyos.parquet").exists()
