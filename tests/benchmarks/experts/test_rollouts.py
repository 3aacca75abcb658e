"""What experts do: demonstrations that replay to the bit, and scores over fixed episodes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from imitation.policies.base import NonTrainablePolicy
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from toys import LINE_ENV_ID, LineEnv

from benchmarks.experts import rollouts
from benchmarks.experts.rollouts import (
    MEANINGS,
    SCORE_SEED,
    collect,
    random_policy,
    score,
    write,
)
from sb3_diffbc import load_demonstrations
from sb3_diffbc.demonstrations import check_card, read_card
from sb3_diffbc.envs import AntReachEnv, MazeExpert
from sb3_diffbc.tasks import TASKS, Task

MAZE, ANT = TASKS["maze"], TASKS["ant_reach"]
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


class Wobble(NonTrainablePolicy):
    """Depends on the observation alone, and on nothing that makes sense."""

    def _choose_action(self, obs: Any) -> Any:
        return np.sin(np.arange(1, 9) * obs[:8] * 100).astype(np.float32)


@pytest.fixture
def easy_ant(monkeypatch: pytest.MonkeyPatch) -> BasePolicy:
    """A policy that solves AntReach at times, because its goal is made as large as the world."""
    monkeypatch.setattr(AntReachEnv, "tolerance", 4.8)
    env = AntReachEnv()
    return Wobble(env.observation_space, env.action_space)


@pytest.fixture
def few_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "SCORE_EPISODES", 5)


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
        expected = np.concatenate([arrays["obs"][rows], final[None]])
        np.testing.assert_array_equal(np.float32(obs), expected[0])
        for act, following in zip(arrays["acts"][rows], expected[1:], strict=True):
            obs, _, terminated, truncated, _ = env.step(act)
            np.testing.assert_array_equal(np.float32(obs), following)
        assert terminated == arrays["dones"][rows][-1]
        assert terminated or truncated


# --- demonstrations -----------------------------------------------------------------------------


def test_episodes_replay_to_the_bit_from_the_seed() -> None:
    demonstrations = collect(MazeExpert(), MAZE, seed=3, episodes=4, transitions=1)
    arrays = demonstrations.arrays
    assert_replays(arrays, MAZE, seed=3)
    np.testing.assert_array_equal(arrays["episode"], [1, 2, 3, 4])
    assert demonstrations.tried == 4
    assert demonstrations.result.success_rate == 1.0
    np.testing.assert_array_equal(
        demonstrations.result.lengths, [rows.stop - rows.start for rows in episodes(arrays)]
    )


def test_the_actions_are_the_experts() -> None:
    arrays = collect(MazeExpert(), MAZE, seed=0, episodes=2, transitions=1).arrays
    np.testing.assert_array_equal(MazeExpert().predict(arrays["obs"])[0], arrays["acts"])


def test_failures_are_left_out_and_counted() -> None:
    demonstrations = collect(HalfHeartedExpert(), MAZE, seed=0, episodes=6, transitions=1)
    arrays = demonstrations.arrays
    assert_replays(arrays, MAZE, seed=0)
    assert len(arrays["episode"]) == 6
    assert demonstrations.tried == arrays["episode"][-1] > 6
    assert (arrays["obs"][:, 4] > 3.5).all()
    assert arrays["dones"].sum() == 6
    assert "timeouts" not in arrays


def test_failures_of_the_ant_are_left_out_and_the_rest_replays(easy_ant: BasePolicy) -> None:
    demonstrations = collect(easy_ant, ANT, seed=1, episodes=8, transitions=1)
    assert_replays(demonstrations.arrays, ANT, seed=1)
    assert demonstrations.tried > 8
    assert demonstrations.result.returns.tolist() == [1.0] * 8


def test_episodes_are_added_until_there_are_enough_transitions() -> None:
    few = collect(MazeExpert(), MAZE, seed=0, episodes=1, transitions=1)
    enough = collect(MazeExpert(), MAZE, seed=0, episodes=1, transitions=500)
    lengths = enough.result.lengths
    assert len(few.result.lengths) == 1
    assert lengths.sum() >= 500 > lengths[:-1].sum()
    first = len(few.arrays["obs"])
    np.testing.assert_array_equal(enough.arrays["obs"][:first], few.arrays["obs"])


def test_episodes_without_a_goal_go_on_to_the_time_limit() -> None:
    task = TASKS["cheetah"]
    demonstrations = collect(random_policy(task), task, seed=0, episodes=2, transitions=1)
    arrays = demonstrations.arrays
    assert_replays(arrays, task, seed=0)
    assert arrays["obs"].dtype == np.float32
    assert np.flatnonzero(arrays["timeouts"]).tolist() == [999, 1999]
    assert not arrays["dones"].any()
    assert demonstrations.result.successes is None


def test_falls_are_left_out_where_there_is_no_goal() -> None:
    policy = random_policy(STUMBLING)
    demonstrations = collect(policy, STUMBLING, seed=0, episodes=5, transitions=1)
    arrays = demonstrations.arrays
    assert_replays(arrays, STUMBLING, seed=0)
    assert (arrays["final_obs"][:, 0] >= 0).all()
    assert demonstrations.tried == arrays["episode"][-1] > 5
    assert arrays["timeouts"].sum() == 5
    assert not arrays["dones"].any()


def test_an_expert_that_never_arrives_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = rollouts._Recorded([np.zeros(6)], [np.zeros(2)], success=False)
    monkeypatch.setattr(rollouts, "_roll_out", lambda *_: failed)
    with pytest.raises(RuntimeError, match="maze solved 0 of 100 episodes"):
        collect(MazeExpert(), MAZE, seed=0, episodes=1, transitions=1)


# --- files --------------------------------------------------------------------------------------


def written(folder: Path, seed: int = 0, task: Task = MAZE, **kwargs: Any) -> Path:
    """Collects and writes two episodes of the maze."""
    demonstrations = collect(HalfHeartedExpert(), task, seed, episodes=2, transitions=1)
    path = folder / f"{task.name}.npz"
    write(
        demonstrations,
        task,
        path,
        seed=seed,
        command="python -m benchmarks.experts demonstrate maze",
        expert_score={"metric": "success", "mean": 0.5},
        **kwargs,
    )
    return path


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first, again, other = (
        written(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    cards = [path.with_suffix(".json").read_bytes() for path in (first, again)]
    assert cards[0] == cards[1]


def test_the_card_describes_the_file(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert check_card(path) == []
    card = read_card(path)
    with np.load(path) as arrays:
        lengths = [rows.stop - rows.start for rows in episodes(dict(arrays))]
        assert card["arrays"] == {
            name: {
                "shape": list(array.shape),
                "dtype": str(array.dtype),
                "meaning": MEANINGS[name],
            }
            for name, array in arrays.items()
        }
        assert card["episodes_tried"] == arrays["episode"][-1]
    assert card["transitions"] == sum(lengths)
    assert card["episode_length"] == {
        "mean": round(np.mean(lengths), 2),
        "min": min(lengths),
        "max": max(lengths),
    }
    assert (card["name"], card["task"], card["env_id"]) == ("maze", "Maze", MAZE.env_id)
    assert (card["seed"], card["episodes"], card["licence"]) == (0, 2, "MIT")
    assert card["score"]["mean"] == 1.0
    assert card["expert_score"] == {"metric": "success", "mean": 0.5}
    assert card["expert"] == MAZE.expert.summary
    assert card["kept"] == "successful episodes only"
    assert {"python", "numpy", "mujoco", "gymnasium", "sb3-diffbc"} <= card["versions"].keys()
    assert "gymnasium-robotics" not in card["versions"]


def test_the_file_loads_with_exact_successors(tmp_path: Path) -> None:
    path = written(tmp_path)
    transitions = load_demonstrations(path)
    with np.load(path) as arrays:
        ends = arrays["dones"]
        np.testing.assert_array_equal(transitions.next_obs[ends], arrays["final_obs"])
        np.testing.assert_array_equal(
            transitions.next_obs[:-1][~ends[:-1]], arrays["obs"][1:][~ends[:-1]]
        )
        np.testing.assert_array_equal(transitions.dones, ends)


def test_the_card_of_a_task_without_a_goal_says_what_was_kept(tmp_path: Path) -> None:
    policy = random_policy(STUMBLING)
    path = tmp_path / "line.npz"
    demonstrations = collect(policy, STUMBLING, seed=0, episodes=3, transitions=1)
    write(demonstrations, STUMBLING, path, seed=0, command="", expert_score={})
    assert check_card(path) == []
    card = read_card(path)
    assert card["kept"] == "episodes that last until the time limit only"
    assert card["score"]["metric"] == "return"
    assert card["score"]["mean"] == pytest.approx(demonstrations.result.returns.mean(), abs=0.05)


def test_json_is_written_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "card.json"
    rollouts.write_json(path, {"old": 1})

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            rollouts.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    rollouts.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}


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
def test_scores_begin_at_the_seed_that_is_kept_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    original = gym.Env.reset

    def reset(self: Any, *, seed: int | None = None, options: Any = None) -> Any:
        seeds.append(seed)
        return original(self, seed=seed, options=options)

    monkeypatch.setattr(gym.Env, "reset", reset)
    score(MazeExpert(), MAZE)
    assert sorted(seeds) == list(range(SCORE_SEED, SCORE_SEED + 5))


@pytest.mark.usefixtures("few_episodes")
def test_a_score_at_another_noise_ratio_is_of_other_episodes() -> None:
    found = {ratio: score(MazeExpert(), MAZE, ratio) for ratio in (0.0, 1.0, 2.0)}
    assert [entry["noise_ratio"] for entry in found.values()] == [0.0, 1.0, 2.0]
    assert len({entry["steps_per_episode"] for entry in found.values()}) == 3
    assert all(entry["mean"] == 1.0 for entry in found.values())


@pytest.mark.usefixtures("few_episodes")
def test_a_task_that_does_not_tell_successes_cannot_be_scored_by_them() -> None:
    pendulum = dataclasses.replace(MAZE, env_id="Pendulum-v1")
    with pytest.raises(ValueError, match="Pendulum-v1 does not say is_success"):
        score(random_policy(pendulum), pendulum)


@pytest.mark.parametrize("task", [MAZE, ANT, TASKS["walker"]], ids=lambda task: task.name)
def test_random_actions_fill_the_box_and_are_the_same_every_time(task: Task) -> None:
    env = gym.make(task.env_id)
    observations = np.stack([env.reset(seed=0)[0]] * 200)
    first, again = (random_policy(task).predict(observations)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert all(action in env.action_space for action in first)
    assert first.min() < -0.95
    assert first.max() > 0.95
    assert len(np.unique(first, axis=0)) == 200
