"""What a result says of the machine."""

from pathlib import Path

import pytest

from benchmarks.machine import processor_name


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
