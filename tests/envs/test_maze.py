"""The Maze environment: its dynamics against the paper's data, and its Gymnasium manners."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_diffbc import envs
from sb3_diffbc.envs.maze import (
    BALL_RADIUS,
    GOAL_RADIUS,
    MAZE_MAP,
    MazeEnv,
    cell_of,
    draw_maze,
    free_cells,
    is_free,
)

# A corridor cell with room to both sides along the first axis, and a far-away goal.
OPEN_POSITION = (3.0, 2.8)
FAR_GOAL = (6.0, 6.0)
REST = (0.0, 0.0)


@pytest.fixture
def env() -> MazeEnv:
    env = MazeEnv()
    env.reset(seed=0)
    return env


@pytest.fixture(scope="module")
def paper_transitions(paper_data: Path) -> dict[str, NDArray[Any]]:
    tensors = th.load(paper_data / "maze.pt", weights_only=True, map_location="cpu")
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def replay_errors(
    obs: NDArray[Any], acts: NDArray[Any], next_obs: NDArray[Any]
) -> NDArray[np.float64]:
    """Steps once from each observation; gives the largest error of each row."""
    env = MazeEnv()
    errors = np.empty(len(obs))
    for row, (ob, act, next_ob) in enumerate(zip(obs, acts, next_obs, strict=True)):
        env.set_state(ob[:2], ob[2:4], ob[4:])
        found = env.step(act)[0].astype(np.float64)
        errors[row] = np.abs(found - next_ob).max()
    return errors


# --- the task -----------------------------------------------------------------------------------


def test_replays_the_papers_transitions(paper_transitions: dict[str, NDArray[Any]]) -> None:
    columns = [paper_transitions[name][::7] for name in ("obs", "actions", "next_obs")]
    assert replay_errors(*columns).max() < 1e-6


def test_replays_every_transition_collisions_included(
    paper_transitions: dict[str, NDArray[Any]],
) -> None:
    columns = [paper_transitions[name] for name in ("obs", "actions", "next_obs")]
    errors = replay_errors(*columns)
    # Two rows hold a collision. A wall turns an error of position into one of velocity 25 times as
    # large (stiffness 2500 / s² for 0.01 s), and the recorded float32 position is known to 2.4e-7.
    assert np.sum(errors >= 1e-6) <= 1
    assert errors.max() < 1e-5


def test_a_constant_force_accelerates_as_newtons_law_says(env: MazeEnv) -> None:
    env.set_state(OPEN_POSITION, REST, FAR_GOAL)
    mass = 1000 * 4 / 3 * np.pi * BALL_RADIUS**3
    obs, *_ = env.step(np.array([0.5, 0.0], dtype=np.float32))
    # The Euler integrator treats the joints' damping (1 N s/m) implicitly.
    assert obs[2] == pytest.approx(50 * 0.01 / (mass + 0.01), rel=1e-5)
    assert obs[0] == pytest.approx(OPEN_POSITION[0] + 0.01 * obs[2], rel=1e-6)


def test_velocity_is_clipped_before_the_step(env: MazeEnv) -> None:
    action = np.zeros(2, dtype=np.float32)
    env.set_state(OPEN_POSITION, (9.0, 0.0), FAR_GOAL)
    fast, *_ = env.step(action)
    env.set_state(OPEN_POSITION, (5.0, 0.0), FAR_GOAL)
    limit, *_ = env.step(action)
    np.testing.assert_array_equal(fast, limit)
    assert fast[0] - OPEN_POSITION[0] < 0.05


def test_action_is_clipped_to_the_box(env: MazeEnv) -> None:
    env.set_state(OPEN_POSITION, REST, FAR_GOAL)
    beyond, *_ = env.step(np.array([7.0, -7.0], dtype=np.float32))
    env.set_state(OPEN_POSITION, REST, FAR_GOAL)
    bound, *_ = env.step(np.array([1.0, -1.0], dtype=np.float32))
    np.testing.assert_array_equal(beyond, bound)


@pytest.mark.parametrize("force", [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1)])
def test_walls_hold_the_ball(env: MazeEnv, force: tuple[int, int]) -> None:
    env.set_state(OPEN_POSITION, REST, FAR_GOAL)
    for _ in range(300):
        obs, *_ = env.step(np.array(force, dtype=np.float32))
        assert is_free(cell_of(obs[:2]))
        assert obs in env.observation_space


@pytest.mark.parametrize(("distance", "success"), [(0.49, True), (0.51, False)])
def test_success_within_half_a_cell_of_the_goal(
    env: MazeEnv, distance: float, success: bool
) -> None:
    env.set_state(OPEN_POSITION, REST, (OPEN_POSITION[0], OPEN_POSITION[1] - distance))
    _, reward, terminated, truncated, info = env.step(np.zeros(2, dtype=np.float32))
    assert GOAL_RADIUS == 0.5
    assert (reward, terminated, truncated) == (float(success), success, False)
    assert info == {"is_success": success}


def test_made_environment_is_truncated_after_400_steps() -> None:
    env = gym.make(envs.MAZE_ENV_ID)
    env.reset(options={"position": (1, 1), "velocity": REST, "goal": (6, 6)})
    for step in range(1, 401):
        *_, terminated, truncated, info = env.step(np.zeros(2, dtype=np.float32))
        assert (terminated, truncated) == (False, step == 400)
        assert info["is_success"] is False


# --- reset and set_state ------------------------------------------------------------------------


def test_same_seed_gives_the_same_trajectory() -> None:
    runs = []
    for _ in range(2):
        env = MazeEnv()
        rng = np.random.default_rng(1)
        rows = [env.reset(seed=3)[0]]
        for _ in range(100):
            rows.append(env.step(rng.uniform(-1, 1, 2).astype(np.float32))[0])
        rows.append(env.reset()[0])
        runs.append(np.stack(rows))
    np.testing.assert_array_equal(*runs)
    assert not np.array_equal(MazeEnv().reset(seed=4)[0], runs[0][0])


def starts(**kwargs: float) -> NDArray[np.float32]:
    env = MazeEnv(**kwargs)
    env.reset(seed=0)
    return np.stack([env.reset()[0] for _ in range(500)])


def test_starts_and_goals_cover_the_free_cells_with_the_documented_noise() -> None:
    obs = starts()
    cells = set(free_cells())
    for columns in (slice(0, 2), slice(4, 6)):
        nearest = np.rint(obs[:, columns])
        assert {tuple(map(int, cell)) for cell in nearest} == cells
        noise = obs[:, columns] - nearest
        assert 0.09 < np.abs(noise).max() <= 0.1 + 1e-6
        assert np.std(noise) == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
    assert np.std(obs[:, 2:4]) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 2.0])
def test_noise_ratios_scale_the_spread_of_start_and_goal(ratio: float) -> None:
    base = starts()
    start, goal = starts(noise_ratio=ratio), starts(goal_noise_ratio=ratio)
    noise = base - np.rint(base)
    scaled = {"rtol": 0, "atol": 1e-6}
    np.testing.assert_allclose((start - base)[:, :2], (ratio - 1) * noise[:, :2], **scaled)
    np.testing.assert_allclose(start[:, 2:4], ratio * base[:, 2:4], **scaled)
    np.testing.assert_array_equal(start[:, 4:], base[:, 4:])
    np.testing.assert_allclose((goal - base)[:, 4:], (ratio - 1) * noise[:, 4:], **scaled)
    np.testing.assert_array_equal(goal[:, :4], base[:, :4])


def test_huge_noise_still_starts_in_free_space() -> None:
    env = MazeEnv(noise_ratio=1000.0, goal_noise_ratio=1000.0)
    env.reset(seed=0)
    for _ in range(100):
        obs, _ = env.reset()
        assert obs in env.observation_space
        assert is_free(cell_of(obs[:2]))
        assert is_free(cell_of(obs[4:]))


def test_options_fix_the_start_and_leave_the_rest_of_the_draw_alone() -> None:
    env = MazeEnv()
    drawn, _ = env.reset(seed=5)
    after, _ = env.reset()
    fixed, info = env.reset(seed=5, options={"goal": (1.0, 2.0)})
    np.testing.assert_array_equal(fixed[:4], drawn[:4])
    np.testing.assert_array_equal(fixed[4:], np.array([1.0, 2.0], dtype=np.float32))
    np.testing.assert_array_equal(env.reset()[0], after)
    assert info == {"is_success": False}


def test_set_state_leaves_no_trace_of_what_came_before(env: MazeEnv) -> None:
    action = np.array([0.3, -1.0], dtype=np.float32)
    touching = ((3.0, 2.195), (1.0, 2.0), FAR_GOAL)  # a wall pushes, so the solver has memory
    env.set_state(*touching)
    fresh, *_ = env.step(action)
    env.set_state((4.0, 3.8), (3.0, 3.0), FAR_GOAL)
    for _ in range(50):
        env.step(-action)
    env.set_state(*touching)
    np.testing.assert_array_equal(env.step(action)[0], fresh)


def test_returned_observations_are_never_written_again(env: MazeEnv) -> None:
    obs, *_ = env.step(np.ones(2, dtype=np.float32))
    before = obs.copy()
    env.step(np.ones(2, dtype=np.float32))
    np.testing.assert_array_equal(obs, before)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_continue_alike_and_apart(env: MazeEnv, clone: Any) -> None:
    action = np.array([0.5, -0.5], dtype=np.float32)
    twin = clone(env)
    expected, *_ = env.step(action)
    env.step(action)
    np.testing.assert_array_equal(twin.step(action)[0], expected)


# --- Gymnasium and Stable-Baselines3 -------------------------------------------------------------


@pytest.mark.parametrize("check", [gymnasium_check_env, sb3_check_env])
def test_environment_checkers_find_nothing(check: Any) -> None:
    made = gym.make(envs.MAZE_ENV_ID, render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        check(made.unwrapped)
    made.close()
    made.close()


def test_registering_again_changes_nothing() -> None:
    spec = gym.spec(envs.MAZE_ENV_ID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.register_envs()
    assert gym.spec(envs.MAZE_ENV_ID) is spec


def test_make_passes_the_arguments_on() -> None:
    env = gym.make(envs.MAZE_ENV_ID, noise_ratio=0.0, goal_noise_ratio=0.0)
    obs, _ = env.reset(seed=0)
    np.testing.assert_array_equal(obs, np.rint(obs))


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["gymnasium", "sb3_diffbc", "stable_baselines3", "imitation.algorithms.bc"]
)
def test_entry_point_works_whatever_is_imported_first(module: str) -> None:
    if not [point for point in entry_points(group="gymnasium.envs") if "sb3_diffbc" in point.value]:
        pytest.skip("the package is not installed, so it has no entry point")
    code = f"import {module}, gymnasium; print('{envs.MAZE_ENV_ID}' in gymnasium.registry)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Gymnasium 1.x reads no entry points; there the import of this package registers.
    automatic = gym.__version__.startswith("0.") or module == "sb3_diffbc"
    assert done.stdout.strip() == str(automatic)


@pytest.mark.slow
def test_registering_does_not_load_the_environment() -> None:
    # The entry point registers with every `import gymnasium`, which should stay cheap.
    code = (
        "import sys; from sb3_diffbc import envs; name = 'sb3_diffbc.envs.maze'; "
        "before = name in sys.modules; envs.MazeEnv; print(before, name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"


def test_envs_package_names_what_it_lacks() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Labyrinth'"):
        envs.Labyrinth  # noqa: B018


# --- drawing ------------------------------------------------------------------------------------


def pixel(image: NDArray[np.uint8], position: tuple[float, float]) -> NDArray[np.int64]:
    """Reads the colour at a position: x to the right, y upwards, from -0.2 to 6.8."""
    scale = len(image) / (len(MAZE_MAP) - 1)
    column, row = ((np.array(position) + 0.2) * scale).astype(int)
    return image[len(image) - 1 - row, column].astype(np.int64)


def test_render_marks_ball_goal_and_walls() -> None:
    env = MazeEnv(render_mode="rgb_array")
    ball, goal = (1.0, 5.0), (3.0, 2.8)
    env.reset(seed=0, options={"position": ball, "goal": goal})
    image = env.render()
    assert image is not None
    assert (image.shape, image.dtype) == ((400, 400, 3), np.uint8)
    orange, green = pixel(image, ball), pixel(image, goal)
    assert orange[0] > orange[1] + 50 > orange[2] + 50
    assert green[1] > green.sum() / 2
    zone = pixel(image, (goal[0] - 0.3, goal[1]))
    assert zone[1] > zone[0]
    assert zone[1] > zone[2]
    assert zone.min() > green.min()
    assert pixel(image, (0.0, 3.0)).max() < 150  # wall
    assert pixel(image, (2.0, 1.0)).min() > 230  # floor

    env.set_state((2.0, 1.0), REST, goal)
    moved = env.render()
    assert moved is not None
    np.testing.assert_array_equal(pixel(moved, (2.0, 1.0)), orange)
    assert pixel(moved, ball).min() > 230
    np.testing.assert_array_equal(pixel(image, ball), orange)  # the first image is untouched
    env.close()


def test_render_without_a_mode_warns_and_gives_none(env: MazeEnv) -> None:
    with pytest.warns(UserWarning, match="render mode"):
        assert env.render() is None


def test_draw_maze_prepares_axes_in_the_observations_coordinates() -> None:
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    draw_maze(ax, ("###", "#O#", "###"))
    floor, walls = ax.collections
    assert (len(floor.get_paths()), len(walls.get_paths())) == (1, 8)
    extent = floor.get_paths()[0].get_extents()
    np.testing.assert_allclose(extent.get_points(), [[0.3, 0.3], [1.3, 1.3]])
    np.testing.assert_allclose(ax.get_xlim(), (-0.2, 1.8))
    np.testing.assert_allclose(ax.get_ylim(), (-0.2, 1.8))


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"noise_ratio": -1.0}, r"noise_ratio: found -1.0, expected"),
        ({"goal_noise_ratio": float("nan")}, r"goal_noise_ratio: found nan, expected"),
        ({"noise_ratio": "much"}, r"noise_ratio: found 'much', expected"),
        ({"render_mode": "human"}, r"render_mode: found 'human', expected None or .*rgb_array"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MazeEnv(**kwargs)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, 0.0, 0.0], r"action: found shape \(3,\), expected shape \(2,\)"),
        ([[0.0, 0.0]], r"action: found shape \(1, 2\), expected shape \(2,\)"),
        ([0.0, float("nan")], r"action: found \[0.0, nan\], expected finite"),
        ([float("inf"), 0.0], r"action: found \[inf, 0.0\], expected finite"),
        ("up", r"action: found 'up', expected 2 numbers"),
    ],
)
def test_bad_actions_are_named(env: MazeEnv, action: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.step(action)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"position": (0.0, 3.0)}, r"position: found \(0.0, 3.0\), in a wall"),
        ({"position": (-3.0, 99.0)}, r"position: found \(-3.0, 99.0\), in a wall or outside"),
        ({"goal": (7.0, 1.0)}, r"goal: found \(7.0, 1.0\), in a wall"),
        ({"velocity": (0.0, -11.0)}, r"velocity: found \(0.0, -11.0\), expected at most 10"),
        ({"velocity": (0.0, float("nan"))}, r"velocity: found \[0.0, nan\], expected finite"),
        ({"position": 1.0}, r"position: found shape \(\), expected shape \(2,\)"),
        ({"place": (1.0, 1.0)}, r"options: found the keys \['place'\], expected only"),
    ],
)
def test_bad_states_are_named(env: MazeEnv, state: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.reset(options=state)


def test_stepping_before_reset_is_refused() -> None:
    with pytest.raises(gym.error.ResetNeeded, match="reset"):
        MazeEnv().step(np.zeros(2, dtype=np.float32))
