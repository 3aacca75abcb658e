"""The list of demonstration sets on the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cards import make_set

from sb3_diffbc.demonstrations import bundled_names, loading
from sb3_diffbc.demonstrations.__main__ import main

HEADER = "name task env_id episodes transitions score kB check expert"

LONG = "an expert who needs many words to say what it does, " * 5


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sound sets in the place of the bundled ones."""
    folder = tmp_path / "bundled"
    make_set(folder / "toy.npz")
    make_set(
        folder / "runner.npz",
        task="Fast Runner",
        env_id="Runner-v4",
        expert=LONG,
        score={"metric": "return", "mean": 4750.94},
    )
    monkeypatch.setattr(loading, "_bundled", folder)
    return folder


def test_the_table_of_sound_sets(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    header, runner, toy = out.splitlines()
    assert header.split() == HEADER.split()
    assert runner.split()[:5] == ["runner", "Fast", "Runner", "Runner-v4", "3"]
    assert f" 10   return 4750.9   1  ok     {LONG.strip()} " in runner
    assert toy.split()[:4] == ["toy", "Toy", "sb3_diffbc/Toy-v0", "3"]
    assert " 10  success 100.0%   1  ok     scripted: goes there " in toy


def test_only_what_was_asked_for(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = make_set(tmp_path / "own.npz")
    assert main(["toy", str(own)]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == ["toy", "own"]


def test_findings_fail_and_say_of_which_set(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_set(bundle / "toy.npz", transitions=11, episodes=2)
    assert main([]) == 1
    out, err = capsys.readouterr()
    _, runner, toy = out.splitlines()
    assert " ok " in runner
    assert " FAILED " in toy
    assert err.splitlines() == [
        "toy: the card says `transitions` 11, the file has 10",
        "toy: the card says `episodes` 2, the file has 3",
    ]
    assert main(["runner"]) == 0


@pytest.mark.parametrize("content", [None, "", "[]", '{"name": 3}'])
def test_a_damaged_card_still_gives_a_row(
    content: str | None, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = bundle / "toy.json"
    card.unlink()
    if content is not None:
        card.write_text(content)
    assert main(["toy"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["toy", *"-----", "1", "FAILED", "-"]
    assert err.startswith("toy: ")
    assert "card" in err or "JSON" in err


def test_texts_cannot_break_the_table_or_steer_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_set(tmp_path / "toy.npz", task="To\ny", expert="\x1b[2Jgone λ [red]")
    assert main([str(path)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2
    assert " To y " in out
    assert out.rstrip().endswith(" ?[2Jgone λ [red]")


@pytest.mark.parametrize("source", ["tyo", "nowhere/toy.npz", "toy.pt"])
def test_unknown_sets_are_an_error_of_usage(
    source: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["toy", source])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert source in err


def test_an_empty_bundle_is_an_empty_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "_bundled", tmp_path)
    assert main([]) == 0
    assert capsys.readouterr().out.split() == HEADER.split()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the module in a Python of its own, with its output in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "sb3_diffbc.demonstrations", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "COLUMNS": "80"},
    )


def test_nothing_is_cut_in_a_pipe(tmp_path: Path) -> None:
    path = make_set(tmp_path / "toy.npz", expert=LONG)
    sound = run(str(path))
    assert sound.returncode == 0, sound.stderr
    assert sound.stdout.splitlines()[-1].rstrip().endswith(LONG.strip())
    make_set(path, seed="none")
    damaged = run(str(path))
    assert damaged.returncode == 1
    assert f"{path}: " in damaged.stderr
    assert "seed: input should be a valid integer" in damaged.stderr
    assert "Traceback" not in damaged.stderr


def test_all_bundled_sets_are_listed_and_sound() -> None:
    done = run()
    rows = done.stdout.splitlines()
    assert [row.split()[0] for row in rows[-len(bundled_names()) :]] == list(bundled_names())
    assert done.returncode == 0, done.stderr
