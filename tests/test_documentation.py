"""The documentation's code runs, its commands parse, and its API pages name what is public."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stable_baselines3.common.callbacks import EvalCallback

import sb3_diffbc
from sb3_diffbc import (
    DiffusionBC,
    DiffusionCritic,
    checkpoints,
    critic,
    demonstrations,
    envs,
    rl,
)

pytest.importorskip("sybil")
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PYTHON, SHELL = "python", "sh"
SETTINGS = "yaml"
SHOWN_ONLY = {"", "json", "text", "toml"}
TINY = 3  # updates, and steps of a critic's fit


def blocks(page: Path, language: str) -> bool:
    return f"```{language}\n" in page.read_text(encoding="utf-8")


def evaluate(page: Path, *parsers: Any) -> None:
    """Evaluates a page's blocks from top to bottom; they share one namespace."""
    for example in Sybil(parsers).parse(page).examples():
        with contextlib.suppress(unittest.SkipTest):  # as a comment before the block asks for
            example.evaluate()


@pytest.fixture
def tiny_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every training and evaluation short, whatever lengths the code asks for."""
    fit, train, evaluate = DiffusionCritic.fit, DiffusionBC.train, DiffusionBC.evaluate
    make_evaluation = EvalCallback.__init__

    def short_fit(self: DiffusionCritic, *args: Any, **kwargs: Any) -> Any:
        self.config["n_steps"] = TINY
        return fit(self, *args, **kwargs)

    def short_train(self: DiffusionBC, **kwargs: Any) -> None:
        if kwargs.pop("n_epochs", None) or kwargs.pop("n_batches", None):
            kwargs["n_batches"] = TINY
        train(self, **kwargs)

    def frequent_evaluation(self: EvalCallback, *args: Any, **kwargs: Any) -> None:
        make_evaluation(self, *args, **{**kwargs, "eval_freq": TINY})

    def short_evaluate(self: DiffusionBC, n_episodes: int = 2, **kwargs: Any) -> Any:
        return evaluate(self, min(n_episodes, 2), **kwargs)

    monkeypatch.setattr(DiffusionBC, "DEFAULT_N_BATCHES", TINY)
    monkeypatch.setattr(DiffusionCritic, "fit", short_fit)
    monkeypatch.setattr(DiffusionBC, "train", short_train)
    monkeypatch.setattr(DiffusionBC, "evaluate", short_evaluate)
    monkeypatch.setattr(EvalCallback, "__init__", frequent_evaluation)
    monkeypatch.setattr(rl, "_N_UPDATES", TINY)  # of a value network


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("tiny_trainings")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, PYTHON)], ids=lambda page: page.stem
)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evaluate(page, SkipParser(), PythonCodeBlockParser())


@pytest.fixture
def check_commands(monkeypatch: pytest.MonkeyPatch) -> Callable[[Example], None]:
    """Checks the commands of a block: that they parse, not what they do."""
    pytest.importorskip("rliable")  # which `python -m benchmarks` imports
    tyro = pytest.importorskip("tyro")
    parse = tyro.extras.subcommand_cli_from_dict

    def parse_only(*args: Any, **kwargs: Any) -> Any:
        parse(*args, **kwargs)
        return SimpleNamespace(run=lambda: 0)

    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", parse_only)

    def exit_status(package: str, arguments: list[str]) -> Any:
        monkeypatch.setattr(sys, "argv", [package, *arguments])
        try:
            return importlib.import_module(f"{package}.__main__").main()
        except SystemExit as stop:  # as --help does
            return stop.code or 0

    def check(command: str) -> None:
        match shlex.split(command, comments=True):
            case ["sb3-diffbc", *arguments]:
                assert exit_status("sb3_diffbc.cli", arguments) == 0, command
            case ["python", "-m", "benchmarks", *arguments]:
                assert exit_status("benchmarks", arguments) == 0, command
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), command
            case ["python", script, *_]:
                assert (ROOT / script).is_file(), command
            case ["make", *arguments] if shutil.which("make"):
                dry = ["make", "--dry-run", "-C", str(ROOT), *arguments]
                subprocess.run(dry, check=True, capture_output=True)
            case ["pip", "install", *arguments]:
                for extra in re.findall(r"[\[,](\w+)(?=[\],])", " ".join(arguments)):
                    assert f'"{extra}":' in (ROOT / "setup.py").read_text(), command
                for option, value in itertools.pairwise(arguments):
                    assert option not in ("-c", "-r") or (ROOT / value).is_file(), command

    def check_block(example: Example) -> None:
        for command in str(example.parsed).replace("\\\n", " ").splitlines():
            check(command)

    return check_block


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, SHELL)], ids=lambda page: page.stem
)
def test_the_commands_of_a_page_parse(
    page: Path,
    check_commands: Callable[[Example], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def keep(settings: Example) -> None:
        """Writes settings for the commands that follow, under the names that pages use."""
        for path in (tmp_path / "settings.yaml", tmp_path / "run" / "config.yaml"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(settings.parsed)

    parsers = CodeBlockParser(SETTINGS, keep), CodeBlockParser(SHELL, check_commands)
    evaluate(page, SkipParser(), *parsers)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_names_a_language_whose_blocks_are_checked_or_only_shown(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)[::2]
    assert {*fences} <= {PYTHON, SHELL, SETTINGS, *SHOWN_ONLY}


def test_the_api_pages_name_everything_public() -> None:
    shown = set()
    for page in (ROOT / "docs" / "api").glob("*.md"):
        for path in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            module, _, name = path.rpartition(".")
            shown.add(id(getattr(importlib.import_module(module), name)))
    for package in (sb3_diffbc, checkpoints, critic, demonstrations, envs):
        names = {name for name in package.__all__ if id(getattr(package, name)) not in shown}
        assert names <= {"envs"}, f"{package.__name__}: add {sorted(names)} to docs/api"
