"""What a result says of where it comes from."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.provenance import command_line, package_versions, processor_name


def test_the_processor_is_named_as_the_system_does(monkeypatch: pytest.MonkeyPatch) -> None:
    info = "processor\t: 0\nmodel name\t: Fast: One\n\nprocessor\t: 1\nmodel name\t: Other\n"
    monkeypatch.setattr(Path, "read_text", lambda path: info)
    assert processor_name() == "Fast: One"


def test_where_the_system_does_not_say_there_is_still_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert processor_name()


def test_versions_are_those_of_python_and_the_packages_named() -> None:
    found = package_versions("torch", "numpy")
    assert list(found) == ["python", "torch", "numpy"]
    assert found["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_a_command_can_be_run_again_and_tells_no_folders() -> None:
    arguments = ["--paper-data", "/data/a b", "--tasks", "maze", "--name", "x y"]
    shown = command_line("benchmarks.speed", arguments, [Path("/data/a b"), None])
    assert shlex.split(shown) == [
        *("python", "-m", "benchmarks.speed", "--paper-data", "FOLDER"),
        *("--tasks", "maze", "--name", "x y"),
    ]
