"""Demonstrations of experts that replay to the bit, their files, and scores of fixed episodes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
from toys import LINE_ENV_ID, LineEnv, assert_replays_to_the_bit

from benchmarks.experts import demonstrations, scores
from benchmarks.experts.demonstrations import MEANINGS, collect, write
from benchmarks.experts.scores import SCORE_SEED, random_policy, score
from sb3_diffbc.demonstrations import check_card, read_card
from sb3_diffbc.envs import MazeExpert
from sb3_diffbc.tasks import TASKS, Task

MAZE = TASKS["maze"]
LINE = dataclasses.replace(TASKS["cheetah"], name="line", env_id=LINE_ENV_ID)


class StumblingEnv(LineEnv):
    """The line, on which an episode that ends left of 0 counts as a fall."""

    def __init__(self) -> None:
        super().__init__(reports_success=False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, done, _, info = super().step(action)
        fallen = self.position < 0
        return obs, reward, done and fallen, done and not fallen, info


STUMBLING_ENV_ID = "sb3_diffbc_tests/Stumbling-v0"
if STUMBLING_ENV_ID not in gym.registry:
    gym.register(STUMBLING_ENV_ID, entry_point=StumblingEnv)
STUMBLING = dataclasses.replace(LINE, env_id=STUMBLING_ENV_ID)


class HalfHeartedExpert(MazeExpert):
    """Only goes to goals in the upper half, and stays where it is otherwise."""

    def _choose_action(self, obs: Any) -> Any:
        return super()._choose_action(obs) if obs[4] > 3.5 else np.zeros(2, dtype=np.float32)


@pytest.fixture
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "SCORE_EPISODES", 5)


def episodes(arrays: dict[str, NDArray[Any]]) -> list[slice]:
    ends = np.flatnonzero(arrays["dones"] | arrays.get("timeouts", False)) + 1
    return [slice(*ends) for ends in zip([0, *ends[:-1]], ends, strict=True)]


def assert_replays(arrays: dict[str, NDArray[Any]], task: Task, seed: int) -> None:
    """Plays every episode again, from the reset that it says it began with."""
    env = gym.make(task.env_id)
    env.reset(seed=seed)
    resets = 0
    for rows, number, final in zip(
        episodes(arrays), arrays["episode"], arrays["final_obs"], strict=True
    ):
        while resets < number:
            obs, _ = env.reset()
            resets += 1
        assert_replays_to_the_bit(env, obs, arrays, rows, final)


# --- demonstrations -----------------------------------------------------------------------------


def test_failures_are_left_out_and_counted() -> None:
    found = collect(HalfHeartedExpert(), MAZE, seed=0, episodes=6, transitions=1)
    arrays = found.arrays
    assert_replays(arrays, MAZE, seed=0)
    assert len(arrays["episode"]) == 6
    assert found.tried == arrays["episode"][-1] > 6
    assert (arrays["obs"][:, 4] > 3.5).all()
    assert arrays["dones"].sum() == 6
    assert "timeouts" not in arrays


def test_episodes_are_added_until_there_are_enough_transitions() -> None:
    few = collect(MazeExpert(), MAZE, seed=0, episodes=1, transitions=1)
    enough = collect(MazeExpert(), MAZE, seed=0, episodes=1, transitions=500)
    lengths = enough.result.lengths
    assert len(few.result.lengths) == 1
    assert lengths.sum() >= 500 > lengths[:-1].sum()
    first = len(few.arrays["obs"])
    np.testing.assert_array_equal(enough.arrays["obs"][:first], few.arrays["obs"])


def test_falls_are_left_out_where_there_is_no_goal() -> None:
    policy = random_policy(STUMBLING)
    found = collect(policy, STUMBLING, seed=0, episodes=5, transitions=1)
    arrays = found.arrays
    assert_replays(arrays, STUMBLING, seed=0)
    assert (arrays["final_obs"][:, 0] >= 0).all()
    assert found.tried == arrays["episode"][-1] > 5
    assert arrays["timeouts"].sum() == 5
    assert not arrays["dones"].any()


def test_an_expert_that_never_arrives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrations, "MAX_TRIES_PER_EPISODE", 0.2)
    # Where return counts, an episode that terminates is a fall, and those on the line all do.
    with pytest.raises(RuntimeError, match="line solved 0 of 2 episodes"):
        collect(random_policy(LINE), LINE, seed=0, episodes=1, transitions=1)


# --- files --------------------------------------------------------------------------------------


def written(folder: Path, seed: int = 0, task: Task = MAZE, **kwargs: Any) -> Path:
    """Collects and writes two episodes of the maze."""
    found = collect(HalfHeartedExpert(), task, seed, episodes=2, transitions=1)
    path = folder / f"{task.name}.npz"
    write(
        found,
        task,
        path,
        seed=seed,
        expert_score={"metric": "success", "mean": 0.5},
        **kwargs,
    )
    return path


def test_the_card_describes_the_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert check_card(path) == []
    card = read_card(path).model_dump()
    with np.load(path) as arrays:
        assert {
            k: array["meaning"] for k, array in card["arrays"].items()
        }.items() <= MEANINGS.items()
        assert card["episodes_tried"] == arrays["episode"][-1]
    assert (card["name"], card["task"], card["env_id"]) == ("maze", "Maze", MAZE.env_id)
    assert (card["seed"], card["episodes"], card["licence"]) == (0, 2, "MIT")
    assert card["score"]["mean"] == 1.0
    assert card["expert_score"] == {"metric": "success", "mean": 0.5}
    assert card["expert"] == MAZE.expert.summary
    assert card["kept"] == "successful episodes only"
    assert {"python", "numpy", "mujoco", "gymnasium", "sb3-diffbc"} <= card["versions"].keys()
    assert "gymnasium-robotics" not in card["versions"]


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_episodes")
@pytest.mark.parametrize("task", [MAZE, LINE], ids=["success", "return"])
def test_a_score_is_that_of_fixed_episodes_and_lies_in_its_interval(task: Task) -> None:
    # A policy of its own each time, because random actions go on from where they were.
    first, again = (score(random_policy(task), task) for _ in range(2))
    assert first == again
    assert first["metric"] == task.metric
    assert (first["episodes"], first["seed"], first["noise_ratio"]) == (5, SCORE_SEED, 1.0)
    low, high = first["interval"]
    assert low <= first["mean"] <= high
    assert low < high
    assert json.loads(json.dumps(first)) == first


@pytest.mark.usefixtures("few_episodes")
def test_a_task_that_does_not_tell_successes_cannot_be_scored_by_them() -> None:
    pendulum = dataclasses.replace(MAZE, env_id="Pendulum-v1")
    with pytest.raises(ValueError, match="Pendulum-v1 does not say is_success"):
        score(random_policy(pendulum), pendulum)
