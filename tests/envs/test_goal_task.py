"""What every task with a goal promises, on all of them."""

from __future__ import annotations

import copy
import functools
import math
import os
import pickle
import subprocess
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_diffbc.envs import FetchPickEnv, MazeEnv
from sb3_diffbc.envs.goal_task import GoalTask, make_robotics
from sb3_diffbc.tasks import TASKS, Task

OWN = [task for task in TASKS.values() if task.entry_point is not None]


def make(env_id: str) -> Any:
    """Makes a task's environment; skips the test where its package is missing."""
    try:
        return gym.make(env_id).unwrapped
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


# One environment for all tests, because loading takes longer than most of them.
shared = functools.cache(make)


@pytest.fixture(params=OWN, ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Task:
    found: Task = request.param
    return found


@pytest.fixture
def env(task: Task) -> GoalTask:
    env: GoalTask = shared(task.env_id)
    env.reset(seed=0)
    return env


@pytest.fixture
def maze() -> MazeEnv:
    env = MazeEnv()
    env.reset(seed=0)
    return env


def actions_for(env: GoalTask, steps: int, seed: int = 0) -> NDArray[np.float32]:
    """Random actions with a pull along the first axis, which takes the ball into a wall."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, env.action_size)).astype(np.float32)
    actions[:, 0] = 1.0
    return actions


def play(env: GoalTask, actions: NDArray[Any]) -> list[tuple[Any, ...]]:
    """Takes a number of steps; returns their results, with the observations as bytes."""
    steps = []
    for action in actions:
        obs, *rest = env.step(action)
        steps.append((obs.tobytes(), *rest))
    return steps


def still(env: GoalTask) -> NDArray[np.float32]:
    return np.zeros(env.action_size, dtype=np.float32)


# --- reset --------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_episode_to_the_bit_whatever_happened_before(
    env: GoalTask, task: Task
) -> None:
    env.reset(seed=9)
    play(env, actions_for(env, 40, seed=1))
    env.set_state(env.state)
    env.reset()
    play(env, -actions_for(env, 3))
    starts = []
    for each in (env, make(task.env_id)):
        obs, info = each.reset(seed=3)
        assert list(map(type, info.values())) == [bool, float], info
        starts.append((obs.tobytes(), info, play(each, actions_for(env, 40))))
    assert starts[0] == starts[1]


def test_resets_after_a_seed_follow_from_it_and_differ(env: GoalTask) -> None:
    runs = []
    for steps in (0, 7):
        rows = [env.reset(seed=3)[0]]
        for _ in range(3):
            play(env, actions_for(env, steps))
            rows.append(env.reset()[0])
        runs.append(np.stack(rows))
    np.testing.assert_array_equal(*runs)
    assert len(np.unique(runs[0], axis=0)) == 4
    assert not np.array_equal(env.reset(seed=4)[0], runs[0][0])


def test_a_start_that_is_refused_is_drawn_again_and_leaves_no_trace() -> None:
    class PickyEnv(MazeEnv):
        refused = 0

        def _place(self) -> bool:
            super()._place()
            self._advance(np.ones(2))
            accepted = bool(self._data.qpos[0] > 3.5)
            self.refused += not accepted
            return accepted

    env = PickyEnv()
    env.reset(seed=0)
    for _ in range(20):
        assert env.reset()[0][0] > 3.5
        assert env.state[2] == 0.01  # the time: one step
    assert env.refused > 5


# --- state and set_state ------------------------------------------------------------------------


def test_the_same_actions_from_a_state_give_the_same_steps_to_the_bit(
    env: GoalTask, task: Task
) -> None:
    actions = actions_for(env, 60)
    for action in actions[:30]:
        obs, *_ = env.step(action)
    state = env.state
    kept = state.copy()
    expected = play(env, actions[30:])
    env.reset()
    for each in (env, make(task.env_id)):
        state[:] = kept
        np.testing.assert_array_equal(each.set_state(state), obs)
        np.testing.assert_array_equal(each.state, kept)
        state[:] = 0.0  # the environment has a copy
        assert play(each, actions[30:]) == expected


def test_a_state_begins_with_the_goal(env: GoalTask) -> None:
    state = env.state
    np.testing.assert_array_equal(state[: env.goal_size], env.goal)
    state[: env.goal_size] += 1.0
    env.set_state(state)
    np.testing.assert_array_equal(env.goal, state[: env.goal_size])


# --- step ---------------------------------------------------------------------------------------


def test_observations_are_float32_of_the_space_and_never_written_again(env: GoalTask) -> None:
    obs, *_ = env.step(actions_for(env, 1)[0])
    assert obs in env.observation_space
    assert obs.dtype == np.float32
    before = obs.copy()
    play(env, actions_for(env, 3))
    np.testing.assert_array_equal(obs, before)


def test_actions_are_clipped_to_the_box(env: GoalTask) -> None:
    action = actions_for(env, 1)[0]
    action[:2] = (1.0, -1.0)
    state = env.state
    bound = env.step(action)[0]
    env.set_state(state)
    beyond = action.copy()
    beyond[:2] = (7.0, -1e30)
    np.testing.assert_array_equal(env.step(beyond)[0], bound)
    assert beyond[0] == 7.0


# --- Gymnasium's and Stable-Baselines3's conventions ----------------------------------------------


@pytest.mark.parametrize("check", [gymnasium_check_env, sb3_check_env])
def test_environment_checkers_find_nothing(env: GoalTask, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        # Nothing bounds positions and velocities, as in Gymnasium's own environments.
        warnings.filterwarnings("ignore", message=".*Box observation space m.* value is -?infinity")
        check(env, skip_render_check=True)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_are_made_from_the_arguments_and_continue_from_a_state(clone: Any) -> None:
    env = MazeEnv(noise_ratio=0.5, goal_noise_ratio=2.0, render_mode="rgb_array")
    obs, _ = env.reset(seed=3)
    twin = clone(env)
    assert (twin.noise_ratio, twin.goal_noise_ratio, twin.render_mode) == (0.5, 2.0, "rgb_array")
    with pytest.raises(gym.error.ResetNeeded):
        twin.step(still(twin))
    np.testing.assert_array_equal(twin.reset(seed=3)[0], obs)
    play(env, actions_for(env, 30))
    twin.set_state(env.state)
    assert play(twin, actions_for(env, 5)) == play(env, actions_for(env, 5))


# --- drawing ------------------------------------------------------------------------------------

NO_GRAPHICS = 77
# In a process of its own, because MuJoCo chooses its graphics library when it is imported.
RENDER = f"""
import sys
import gymnasium as gym, mujoco, numpy as np
from sb3_diffbc.tasks import TASKS
try:
    mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
except Exception as error:
    print(repr(error), flush=True)
    import os
    os._exit({NO_GRAPHICS})
shown = {{}}
for name, task in TASKS.items():
    try:
        env = task.entry_point and gym.make(task.env_id, render_mode="rgb_array").unwrapped
    except gym.error.DependencyNotInstalled:
        continue
    if not env:
        continue
    env.reset(seed=1)
    other_goal = env.goal
    env.reset(seed=0)
    state = env.state
    shown[name + "/start"] = env.render()
    shown[name + "/unchanged"] = env.state == state
    for _ in range(5):
        env.step(np.ones(env.action_size, dtype=np.float32))
    shown[name + "/moved"] = env.render()
    env.set_state(np.concatenate([other_goal, state[env.goal_size:]]))
    shown[name + "/other goal"] = env.render()
    env.close()
    env.close()
    env.set_state(state)
    shown[name + "/again"] = env.render()
    env.close()
np.savez(sys.argv[1], **shown)
"""


def test_rendering_shows_the_scene_with_its_goal_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shown.npz"
    done = subprocess.run(
        [sys.executable, "-c", RENDER, str(path)],
        env={**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")},
        capture_output=True,
        text=True,
    )
    if done.returncode == NO_GRAPHICS:
        pytest.skip(f"MuJoCo finds no graphics library: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        shown = dict(arrays)
    names = {key.split("/")[0] for key in shown}
    assert {"maze", "ant_reach"} <= names
    for name in names:
        start = shown[f"{name}/start"]
        assert (start.shape, start.dtype) == ((480, 480, 3), np.uint8)
        assert start.std() > 10
        assert shown[f"{name}/unchanged"].all()
        np.testing.assert_array_equal(shown[f"{name}/again"], start)
        for change in ("moved", "other goal"):
            different = (shown[f"{name}/{change}"] != start).any(axis=2)
            assert 50 < different.sum() < different.size / 3, (name, change)


def test_render_without_a_mode_warns_and_gives_none(maze: MazeEnv) -> None:
    with pytest.warns(UserWarning, match="render mode"):
        assert maze.render() is None


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"noise_ratio": -1.0}, "noise_ratio: .* greater than or equal to 0, found -1"),
        ({"goal_noise_ratio": math.nan}, "goal_noise_ratio: .* finite .* found nan"),
        ({"render_mode": "human"}, "render_mode: .*'rgb_array'.* found 'human'"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MazeEnv(**kwargs)


def test_options_are_refused(maze: MazeEnv) -> None:
    with pytest.raises(ValueError, match=r"options: found \['goal'\], expected none"):
        maze.reset(options={"goal": (1.0, 2.0)})
    maze.reset(options={})


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, 0.0, 0.0], r"action: found shape \(3,\), expected shape \(2,\)"),
        ([0.0, math.nan], r"action: found \[0.0, nan\], expected finite"),
        ("up", r"action: found 'up', expected 2 numbers"),
    ],
)
def test_bad_actions_are_named_and_move_nothing(maze: MazeEnv, action: Any, message: str) -> None:
    state = maze.state
    with pytest.raises(ValueError, match=message):
        maze.step(action)
    np.testing.assert_array_equal(maze.state, state)


def test_bad_states_are_named_and_move_nothing(maze: MazeEnv) -> None:
    state = maze.state
    with pytest.raises(ValueError, match=rf"state: found shape \({len(state) - 1},\), expected"):
        maze.set_state(state[:-1])
    broken = state.copy()
    broken[3] = math.nan
    with pytest.raises(ValueError, match=r"state: found .*, expected finite"):
        maze.set_state(broken)
    np.testing.assert_array_equal(maze.state, state)


def test_before_the_first_reset_there_is_no_episode() -> None:
    with pytest.raises(gym.error.ResetNeeded, match=r"MazeEnv: call reset\(\) first"):
        MazeEnv().state  # noqa: B018


def test_a_missing_or_incompatible_gymnasium_robotics_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def incompatible() -> None:
        raise AssertionError

    for parents in ("", ".envs", ".envs.robot_env", ".envs.fetch", ".utils", ".utils.mujoco_utils"):
        package = f"gymnasium_robotics{parents}"
        module = types.ModuleType(package)
        module.mujoco = None  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, package, module)
    name = "gymnasium_robotics.envs.fetch.pick_and_place"
    # None is Python's own mark of a module that cannot be imported.
    broken = types.SimpleNamespace(MujocoFetchPickAndPlaceEnv=incompatible)
    for module, cause in ((None, ImportError), (broken, AssertionError)):
        monkeypatch.setitem(sys.modules, name, module)
        with pytest.raises(gym.error.DependencyNotInstalled, match="gymnasium-robotics") as caught:
            FetchPickEnv()
        assert "pip install gymnasium-robotics==1.2.3" in str(caught.value)
        assert isinstance(caught.value.__cause__, cause)
    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Task=dict))
    assert make_robotics("fetch.pick_and_place", "Task", reward="sparse") == {"reward": "sparse"}
