"""`python -m benchmarks.experts`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from toys import LINE_ENV_ID, weights

import benchmarks.experts.__main__ as program
from benchmarks.experts import rollouts, table
from sb3_diffbc import experts
from sb3_diffbc.demonstrations import check_card, read_card
from sb3_diffbc.tasks import TASKS, DemonstrationSize, LearnedExpert

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that takes the place of all that the commands write to."""
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(program, "PAGE", tmp_path / "tasks.md")
    monkeypatch.setattr(program, "README", tmp_path / "README.md")
    monkeypatch.setattr(program, "EXPERTS", tmp_path)
    monkeypatch.setattr(experts.resources, "files", lambda _: tmp_path)
    monkeypatch.setattr(rollouts, "SCORE_EPISODES", 3)
    return tmp_path


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks that take no time: a short maze, and an expert to be trained on a line."""
    maze = dataclasses.replace(TASKS["maze"], size=DemonstrationSize(2), noise_ratios=(1.0, 2.0))
    line = dataclasses.replace(
        TASKS["cheetah"],
        env_id=LINE_ENV_ID,
        expert=LearnedExpert(
            "PPO, briefly",
            timesteps=128,
            n_envs=2,
            net_arch=(8,),
            ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 1},
        ),
    )
    monkeypatch.setattr(program, "TASKS", {"maze": maze, "cheetah": line})


def result(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results" / f"{name}.json").read_text())
    return content


# --- the table ----------------------------------------------------------------------------------


def test_list_prints_a_row_for_each_task_even_without_results(
    capsys: pytest.CaptureFixture[str],
) -> None:
    program.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(TASKS)
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert "not scored" in lines[2]


@pytest.mark.slow
def test_the_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "benchmarks.experts", "--list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + len(TASKS)


def test_page_writes_the_page_and_the_readmes_table(folder: Path) -> None:
    (folder / "README.md").write_text("<!-- tasks -->\n<!-- /tasks -->\n")
    program.main(["page"])
    assert (folder / "tasks.md").read_text() == table.page()
    assert table.table(table.README_COLUMNS) in (folder / "README.md").read_text()


# --- the commands -------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_tasks")
def test_demonstrate_writes_the_same_set_for_the_same_seed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = []
    for name, seed in (("first", "3"), ("again", "3"), ("other", "4")):
        program.main(["demonstrate", "maze", "--seed", seed, "--out", str(folder / name)])
        paths.append(folder / name / "maze.npz")
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again != other
    assert check_card(paths[0]) == []
    card = read_card(paths[0])
    assert card["command"] == "python -m benchmarks.experts demonstrate maze --seed 3"
    assert (card["seed"], card["episodes"], card["expert_score"]["episodes"]) == (3, 2, 3)
    assert "2 of 2 episodes" in capsys.readouterr().out


@pytest.mark.usefixtures("few_tasks")
def test_score_writes_a_score_for_each_noise_ratio_and_one_of_random_actions(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.main(["score", "maze"])
    found = result(folder, "maze")
    assert [entry["noise_ratio"] for entry in found["expert"]] == [1.0, 2.0]
    assert all(entry["mean"] == 1.0 for entry in found["expert"])
    assert found["random"]["mean"] < 1.0
    assert (found["task"], found["env_id"]) == ("maze", TASKS["maze"].env_id)
    assert "Maze, noise ratio 2: 100.0 %" in capsys.readouterr().out


@pytest.mark.usefixtures("few_tasks")
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_train_saves_the_expert_scores_it_and_later_scores_keep_its_record(folder: Path) -> None:
    runs = folder / "runs"
    program.main(["train", "cheetah", "--seed", "1", "--checkpoints", str(runs)])
    assert (runs / "cheetah-1.safetensors").is_file()
    policy = experts.load_expert("cheetah")
    assert policy.predict(np.zeros(2, dtype=np.float32))[0].shape == (1,)
    trained = result(folder, "cheetah")
    assert trained["training"]["timesteps"] == 128
    assert trained["training"]["command"].endswith("train cheetah --seed 1")
    program.main(["score", "cheetah"])
    assert result(folder, "cheetah") == trained


@pytest.mark.usefixtures("few_tasks")
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_training_again_gives_the_same_expert(folder: Path) -> None:
    found = []
    for name in ("first", "again", "again"):
        program.main(["train", "cheetah", "--checkpoints", str(folder / name)])
        found.append(weights(experts.load_expert("cheetah")))
    assert all(th.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected --list or a command"),
        (["dance"], "invalid choice: 'dance'"),
        (["train"], "the following arguments are required: TASK"),
        (["train", "maze"], "invalid choice: 'maze'"),
        (["score", "Maze"], "invalid choice: 'Maze'"),
        (["score", "maze", "--seed", "1"], "unrecognized arguments: --seed 1"),
        (["demonstrate", "maze", "--seed", "one"], "argument --seed: invalid int value: 'one'"),
        (["--list", "--seed"], "unrecognized arguments: --seed"),
    ],
)
def test_wrong_arguments_end_with_a_message_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        program.main(argv)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_a_stopped_command_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "train", stop)
    with pytest.raises(SystemExit) as stopped:
        program.main(["train", "cheetah"])
    assert stopped.value.code == 130
    assert "goes on from its last checkpoint" in capsys.readouterr().err
