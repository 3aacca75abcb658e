"""Result files: written whole, read back the same, and refused with a reason if damaged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import synthetic_records

from benchmarks.records import (
    METHOD_TITLES,
    RecordError,
    check_record,
    read_record,
    record_path,
    write_record,
)


@pytest.fixture
def record() -> dict[str, Any]:
    return synthetic_records.record("diffusion_bc", 100, 94.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return record_path(tmp_path, "maze", "diffusion_bc", 100)


def test_a_record_lies_at_task_method_and_seed(tmp_path: Path) -> None:
    assert record_path(tmp_path, "Hopper-v4", "gail", 3) == tmp_path / "Hopper-v4/gail/3.json"


@pytest.mark.parametrize(
    ("task", "method", "seed", "message"),
    [
        ("../maze", "bc", 0, "task: found '../maze', expected a name of"),
        ("..", "bc", 0, "task: found"),
        ("", "bc", 0, "task: found"),
        ("a/b", "bc", 0, "task: found"),
        ("maze\n", "bc", 0, "task: found"),
        ("maze", "sac", 0, "method: found 'sac', expected one of bc, bc_paired"),
        ("maze", "bc", -1, "seed: found -1, expected a count"),
        ("maze", "bc", True, "seed: found True"),
        ("maze", "bc", "1", "seed: found '1'"),
    ],
)
def test_a_place_outside_the_folder_or_without_meaning_is_refused(
    tmp_path: Path, task: Any, method: Any, seed: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        record_path(tmp_path, task, method, seed)


def test_what_was_written_is_read_back(path: Path, record: dict[str, Any]) -> None:
    write_record(path, record)
    assert read_record(path) == record
    assert [found.name for found in path.parent.iterdir()] == ["100.json"]


def test_every_method_can_be_recorded(tmp_path: Path) -> None:
    for method in METHOD_TITLES:
        record = synthetic_records.record(method, 7, 50.0)
        write_record(record_path(tmp_path, "maze", method, 7), record)
    assert len(list(tmp_path.rglob("7.json"))) == len(METHOD_TITLES)


@pytest.mark.parametrize("field", list(synthetic_records.record("bc", 0, 50.0)))
def test_a_missing_field_is_named(path: Path, record: dict[str, Any], field: str) -> None:
    del record[field]
    with pytest.raises(RecordError, match=rf"100\.json: {field}: not there, expected .+"):
        check_record(record, path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 2, "format: found 2, expected 1"),
        ("format", True, "format: found True"),
        ("title", " ", "title: found ' '"),
        ("noise_ratio", -1.0, "noise_ratio: found -1.0"),
        ("metric", "reward", "metric: found 'reward', expected 'success' or 'return'"),
        ("metric", ["success"], "metric: found"),
        ("method", ["bc"], "method: found"),
        ("demonstrations", {"source": "maze"}, "demonstrations: found"),
        ("demonstrations", None, "demonstrations: found None"),
        ("config", [], "config: found"),
        ("scores", [], "scores: found .*, expected one number for each episode"),
        ("scores", [1.0, 0.5], "scores: found .*, expected 0 or 1 for each episode"),
        ("scores", [1.0, float("nan")], "scores: found .*nan"),
        ("scores", [1.0, None], "scores: found .*None"),
        ("scores", [True, False], "scores: found .*True"),
        ("scores", "11", "scores: found '11'"),
        ("curve", [3], r"curve\[0\]: found 3, expected an object"),
        ("curve", [{"updates": 1, "scores": [1.0]}], r"curve\[0\].env_steps: found None"),
        ("curve", [{"updates": 1.5, "env_steps": 0, "scores": [1]}], r"curve\[0\].updates: .*1.5"),
        ("curve", [{"updates": 1, "env_steps": 0}], r"curve\[0\].scores: found None"),
        ("last_checkpoints", 2.0, "last_checkpoints: found 2.0, expected a count"),
        ("seconds", {"critic": 1.0}, "seconds: found .*, expected .*'training' among them"),
        ("cpu_seconds", {"training": float("inf")}, "cpu_seconds: found"),
        ("updates", -1, "updates: found -1"),
        ("peak_memory_mb", "512", "peak_memory_mb: found '512'"),
        ("inference_ms", None, "inference_ms: found None"),
        ("versions", {"torch": 2}, "versions: found"),
        ("git_revision", 7, "git_revision: found 7"),
        ("git_dirty", "no", "git_dirty: found 'no'"),
        ("machine", "fast", "machine: found 'fast'"),
        ("command", None, "command: found None"),
    ],
)
def test_a_wrong_value_is_refused_and_not_written(
    path: Path, record: dict[str, Any], field: str, value: Any, message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        write_record(path, record | {field: value})
    assert not path.exists()


def test_returns_may_be_any_finite_number(tmp_path: Path) -> None:
    record = synthetic_records.record("bc", 1, -280.5, "walker")
    write_record(record_path(tmp_path, "walker", "bc", 1), record)
    assert min(record["scores"]) < -280.5


def test_what_is_not_known_of_the_revision_may_be_null(path: Path, record: dict[str, Any]) -> None:
    check_record(record | {"git_revision": None, "git_dirty": None}, path)


def test_further_fields_are_kept(path: Path, record: dict[str, Any]) -> None:
    write_record(path, record | {"remark": "x"})
    assert read_record(path)["remark"] == "x"


@pytest.mark.parametrize("change", [("task", "walker"), ("method", "bc"), ("seed", 101)])
def test_the_result_of_another_cell_is_refused(
    path: Path, record: dict[str, Any], change: tuple[str, Any]
) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record | dict([change])))
    with pytest.raises(RecordError, match=r"found the result of .*, expected that of maze"):
        read_record(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b'{"format": 1,', "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "found a list, expected an object"),
        (b"null", "found a NoneType, expected an object"),
        (b"{}", "format: not there, expected 1"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_with_its_name(
    path: Path, content: bytes, message: str
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(RecordError, match=rf"100\.json: {message}"):
        read_record(path)


def test_a_file_that_is_not_there_is_refused(path: Path) -> None:
    with pytest.raises(RecordError, match=r"100\.json: cannot be read"):
        read_record(path)


def test_a_file_cut_anywhere_is_refused(path: Path, record: dict[str, Any]) -> None:
    write_record(path, record)
    content = path.read_bytes().rstrip()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(RecordError):
            read_record(path)


def test_checking_changes_nothing(path: Path, record: dict[str, Any]) -> None:
    before = copy.deepcopy(record)
    check_record(record, path)
    assert record == before
