"""The bundled Maze demonstrations and the script that makes them."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import make_maze_demonstrations as script
from sb3_diffbc.envs import MAZE_ENV_ID, MazeEnv

BUNDLED = Path(str(resources.files("sb3_diffbc"))) / "demonstrations" / "bundled"


@pytest.fixture(scope="module")
def bundled() -> dict[str, NDArray[Any]]:
    with np.load(BUNDLED / "maze.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    card: dict[str, Any] = json.loads((BUNDLED / "maze.json").read_text(encoding="utf-8"))
    return card


def test_card_describes_the_file(bundled: dict[str, NDArray[Any]], card: dict[str, Any]) -> None:
    assert card["sha256"] == hashlib.sha256((BUNDLED / card["file"]).read_bytes()).hexdigest()
    assert card["env_id"] == MAZE_ENV_ID
    assert card["transitions"] == len(bundled["obs"])
    assert card["episodes"] == bundled["dones"].sum() == 100
    assert card["expert_success_rate"] == card["episodes"] / card["episodes_tried"]
    assert card["licence"] == "MIT"
    described = {name: (array["shape"], array["dtype"]) for name, array in card["arrays"].items()}
    assert described == {
        name: (list(array.shape), str(array.dtype)) for name, array in bundled.items()
    }


def test_each_transition_replays_through_the_environment(bundled: dict[str, NDArray[Any]]) -> None:
    env = MazeEnv()
    rows = zip(*(bundled[name] for name in ("obs", "acts", "next_obs", "dones")), strict=True)
    for obs, act, next_obs, done in rows:
        env.set_state(obs[:2], obs[2:4], obs[4:])
        found, _, terminated, _, _ = env.step(act)
        assert np.abs(found.astype(np.float64) - next_obs).max() < 1e-6
        assert terminated == done


def test_episodes_are_unbroken_and_lie_in_the_spaces(bundled: dict[str, NDArray[Any]]) -> None:
    going_on = ~bundled["dones"][:-1]
    np.testing.assert_array_equal(bundled["next_obs"][:-1][going_on], bundled["obs"][1:][going_on])
    assert bundled["dones"][-1]
    env = MazeEnv()
    for name, space in (
        ("obs", env.observation_space),
        ("next_obs", env.observation_space),
        ("acts", env.action_space),
    ):
        assert bundled[name].dtype == space.dtype
        assert (bundled[name] >= space.low).all()
        assert (bundled[name] <= space.high).all()


def test_script_makes_the_bundled_file(bundled: dict[str, NDArray[Any]]) -> None:
    arrays = script.collect(episodes=5, seed=0).arrays
    # Other versions of MuJoCo and NumPy may round otherwise, which adds up along an episode.
    for name, array in arrays.items():
        np.testing.assert_allclose(array, bundled[name][: len(array)], rtol=0, atol=1e-3)


def test_same_seed_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name / "demo.npz" for name in ("first", "second", "other")]
    for path, seed in zip(paths, ("3", "3", "4"), strict=True):
        script.main(["--seed", seed, "--episodes", "2", "--out", str(path)])
    first, second, other = (path.read_bytes() for path in paths)
    assert first == second
    assert first != other
    card = json.loads(paths[0].with_suffix(".json").read_text(encoding="utf-8"))
    assert (card["name"], card["seed"], card["episodes"]) == ("demo", 3, 2)
    assert card["command"].endswith(f"--seed 3 --episodes 2 --out {paths[0].as_posix()}")
    assert "2 episodes" in capsys.readouterr().out


def test_noise_moves_the_ball_and_the_expert_still_labels(
    bundled: dict[str, NDArray[Any]],
) -> None:
    noisy = script.collect(episodes=2, seed=0, action_noise=0.5).arrays
    expert = script.MazeExpert()
    np.testing.assert_array_equal(noisy["obs"][0], bundled["obs"][0])
    assert not np.array_equal(noisy["obs"][1], bundled["obs"][1])
    labels, _ = expert.predict(noisy["obs"])
    np.testing.assert_array_equal(labels, noisy["acts"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--episodes", "0"], "--episodes: found 0"),
        (["--action-noise", "-1"], "--action-noise: found -1.0"),
        (["--out", "demo.pkl"], "--out: found demo.pkl"),
    ],
)
def test_bad_arguments_are_named(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--out", str(tmp_path / "demo.npz"), *argv])
    assert message in capsys.readouterr().err


def test_an_expert_that_never_arrives_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "_roll_out", lambda *args: None)
    with pytest.raises(RuntimeError, match="0 of 10 episodes"):
        script.collect(episodes=1, seed=0)
