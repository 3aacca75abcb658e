"""The examples run, and the README shows what they wrote."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    # As in conftest.py: threads that wait for each other on busy cores can take minutes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_quickstart_writes_its_picture_and_the_table_that_it_prints(tmp_path: Path) -> None:
    output = _run(
        "quickstart.py", "--updates", 16, "--critic-steps", 25, "--episodes", 4, "--out", tmp_path
    )
    table = (tmp_path / "quickstart.md").read_text()
    assert table in output
    assert [line.split(" | ")[:3] for line in table.splitlines()[2:]] == [
        ["| BC", "16", "4"],
        ["| DiffusionBC", "16", "4"],
    ]
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_dagger_accepts_diffusion_bc() -> None:
    output = _run("dagger.py", "--rounds", 2, "--steps", 300, "--epochs", 1, "--episodes", 4)
    assert output.count("after round") == 2


@pytest.mark.slow
def test_gates_ask_for_labels_and_their_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("gymnasium_robotics")
    sizes = {"rounds": 1, "updates": 3, "critic-steps": 3, "labels": 20, "episodes": 2}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    output = _run("gated_dagger.py", *options, "--out", tmp_path)
    labels = [int(n) for n in re.findall(r": (\d+) labels", output)]
    assert labels[:4] == [0, 20, 0, 20]
    assert (tmp_path / "gated_dagger.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_saved_critic_serves_the_next_run(tmp_path: Path) -> None:
    critic = tmp_path / "critic.safetensors"
    options = ["--critic", critic, "--critic-steps", 25, "--updates", 10, "--episodes", 4]
    first = _run("shared_critic.py", *options, "--dm-coefs", 0, 1)
    written = critic.stat().st_mtime_ns
    second = _run("shared_critic.py", *options, "--dm-coefs", 0, 1)
    assert critic.stat().st_mtime_ns == written
    assert [line for line in first.splitlines() if "dm_coef" in line] == [
        line for line in second.splitlines() if "dm_coef" in line
    ]


@pytest.mark.slow
def test_ppo_goes_on_from_a_clone_and_writes_its_picture_and_tables(tmp_path: Path) -> None:
    sizes = {"seeds": 2, "evaluations": 1, "rollouts": 1, "value-rollouts": 1, "updates": 20}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    output = _run("clone_then_ppo.py", *options, "--episodes", 2, "--out", tmp_path)
    assert (tmp_path / "clone_then_ppo.md").read_text() in output
    rows = [line.split(",") for line in (tmp_path / "clone_then_ppo.csv").read_text().splitlines()]
    assert [row[2] for row in rows[1:]] == ["0", "8192"] * 4
    assert (tmp_path / "clone_then_ppo.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_toy_is_drawn_the_same_again(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        _run("critic_toy.py", "--updates", 3, "--critic-steps", 3, "--out", folder)
    first, second = (tmp_path / name / "critic_toy.png" for name in "ab")
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()


def test_ppo_learns_from_the_critics_reward_and_both_scores_are_written(tmp_path: Path) -> None:
    sizes = {"updates": 20, "critic-steps": 20, "rollouts": 1, "value-rollouts": 1, "episodes": 2}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    output = _run("critic_reward.py", *options, "--out", tmp_path)
    table = (tmp_path / "critic_reward.md").read_text()
    assert table in output
    rows = [line.split(" | ") for line in table.splitlines()[2:5]]
    assert [row[1] for row in rows] == ["0", "16,384", "16,384"]
    assert {len(row) for row in rows} == {6}


@pytest.mark.slow
def test_a_watched_policy_is_drawn_with_its_threshold(tmp_path: Path) -> None:
    sizes = {"updates": 20, "critic-steps": 25, "episodes": 2}
    output = _run("monitor.py", *[f"--{k}={v}" for k, v in sizes.items()], "--out", tmp_path)
    table = (tmp_path / "monitor.md").read_text()
    assert table in output
    assert sum(int(row.split(" | ")[1]) for row in table.splitlines()[2:]) == 2
    assert (tmp_path / "monitor.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_bad_demonstrations_are_scored_drawn_and_left_out(tmp_path: Path) -> None:
    picture = tmp_path / "scores.png"
    output = _run("bad_demonstrations.py", "--updates", 200, "--episodes", 1, "--out", picture)
    shares = [float(share) for share in re.findall(r"([\d.]+)%", output.split("\n")[-5])]
    assert shares[1] < shares[0] / 2
    assert output.count("cloned from") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_guide_shows_the_tables_that_the_examples_wrote() -> None:
    results = ROOT / "examples" / "results"
    table = (results / "quickstart.md").read_text()
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
    table = (results / "clone_then_ppo.md").read_text().split("\n\n")[0]
    assert table in (ROOT / "docs" / "rl.md").read_text(encoding="utf-8")
    table = (results / "monitor.md").read_text()
    assert table in (ROOT / "docs" / "monitor.md").read_text(encoding="utf-8")
    table = (results / "critic_reward.md").read_text().split("\n\n")[0]
    assert table in (ROOT / "docs" / "reward.md").read_text(encoding="utf-8")
