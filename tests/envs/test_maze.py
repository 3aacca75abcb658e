"""The Maze environment: its dynamics against the paper's data, starts, goals and drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from numpy.typing import NDArray

from sb3_diffbc.envs.maze import (
    BALL_RADIUS,
    FREE_CELLS,
    GOAL_RADIUS,
    MAZE_MAP,
    MazeEnv,
    cell_of,
)

# A corridor cell with room to both sides along the first axis, and a far-away goal.
OPEN_POSITION = (3.0, 2.8)
FAR_GOAL = (6.0, 6.0)
REST = (0.0, 0.0)
STILL = np.zeros(2, dtype=np.float32)


@pytest.fixture
def env() -> MazeEnv:
    return MazeEnv()


# --- the task -----------------------------------------------------------------------------------


def test_replays_every_transition_of_the_papers_data(env: MazeEnv, paper_data: Path) -> None:
    tensors = th.load(paper_data / "maze.pt", weights_only=True, map_location="cpu")
    columns = [tensors[name].numpy() for name in ("obs", "actions", "next_obs")]
    errors = []
    for obs, action, next_obs in zip(*columns, strict=True):
        env.set_observation(obs)
        errors.append(np.abs(env.step(action)[0].astype(np.float64) - next_obs).max())
    # Two rows hold a collision. A wall turns an error of position into one of velocity 25 times as
    # large (stiffness 2500 / s² for 0.01 s), and the recorded float32 position is known to 2.4e-7.
    assert np.sort(errors)[-2] < 1e-6
    assert max(errors) < 1e-5


def test_a_constant_force_accelerates_as_newtons_law_says(env: MazeEnv) -> None:
    env.set_observation([*OPEN_POSITION, *REST, *FAR_GOAL])
    mass = 1000 * 4 / 3 * np.pi * BALL_RADIUS**3
    obs, *_ = env.step(np.array([0.5, 0.0], dtype=np.float32))
    # The Euler integrator treats the joints' damping (1 N s/m) implicitly.
    assert obs[2] == pytest.approx(50 * 0.01 / (mass + 0.01), rel=1e-5)
    assert obs[0] == pytest.approx(OPEN_POSITION[0] + 0.01 * obs[2], rel=1e-6)


def test_velocity_is_clipped_before_the_step(env: MazeEnv) -> None:
    found = []
    for speed in (9.0, 5.0):
        env.set_observation([*OPEN_POSITION, speed, -speed, *FAR_GOAL])
        found.append(env.step(STILL)[0])
    np.testing.assert_array_equal(*found)
    assert found[0][0] - OPEN_POSITION[0] < 0.05


@pytest.mark.parametrize("force", [(-1, 0), (0, 1), (1, 1)])
def test_walls_hold_the_ball(env: MazeEnv, force: tuple[int, int]) -> None:
    env.set_observation([*OPEN_POSITION, *REST, *FAR_GOAL])
    for _ in range(300):
        obs, *_ = env.step(np.array(force, dtype=np.float32))
        assert cell_of(obs[:2]) in FREE_CELLS
        assert obs in env.observation_space


@pytest.mark.parametrize(
    ("goal", "distance", "success"),
    [
        ((3.0, 2.5), 0.5, True),
        ((3.0, 2.4999), 0.5001, False),
        ((2.6, 2.65), np.hypot(0.4, 0.35), False),
    ],
)
def test_success_within_half_a_cell_of_the_goal(
    env: MazeEnv, goal: tuple[float, float], distance: float, success: bool
) -> None:
    env.set_observation([3.0, 3.0, *REST, *goal])
    _, reward, terminated, truncated, info = env.step(STILL)
    assert GOAL_RADIUS == 0.5
    assert (reward, terminated, truncated) == (float(success), success, False)
    assert info == {"is_success": success, "distance": pytest.approx(distance)}


# --- starts and goals ---------------------------------------------------------------------------


def starts(**kwargs: float) -> NDArray[np.float32]:
    env = MazeEnv(**kwargs)
    env.reset(seed=0)
    return np.stack([env.reset()[0] for _ in range(500)])


def test_starts_and_goals_cover_the_free_cells_with_the_documented_noise() -> None:
    obs = starts()
    for columns in (slice(0, 2), slice(4, 6)):
        nearest = np.rint(obs[:, columns])
        assert {tuple(map(int, cell)) for cell in nearest} == set(FREE_CELLS)
        noise = obs[:, columns] - nearest
        assert 0.09 < np.abs(noise).max() <= 0.1 + 1e-6
        assert np.std(noise) == pytest.approx(0.1 / np.sqrt(3), rel=0.1)
    assert np.std(obs[:, 2:4]) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("ratio", [0.0, 2.0])
def test_each_noise_ratio_scales_its_own_noise_and_leaves_the_other_draws_alone(
    ratio: float,
) -> None:
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
        assert {cell_of(obs[:2]), cell_of(obs[4:])} <= set(FREE_CELLS)


def test_placing_ball_and_goal_leaves_no_trace_of_what_came_before(env: MazeEnv) -> None:
    action = np.array([0.3, -1.0], dtype=np.float32)
    # A wall pushes, so that the solver has a memory.
    touching = np.array([3.0, 2.195, 1.0, 2.0, *FAR_GOAL])
    placed = env.set_observation(touching)
    np.testing.assert_array_equal(placed, touching.astype(np.float32))
    fresh, *_ = env.step(action)
    env.set_observation([4.0, 3.8, 3.0, 3.0, *FAR_GOAL])
    for _ in range(50):
        env.step(-action)
    env.set_observation(touching)
    np.testing.assert_array_equal(env.step(action)[0], fresh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: 0.0, 1: 3.0}, r"found the ball at \[0.0, 3.0\] .* expected both in free cells"),
        ({4: 7.0, 5: 1.0}, r"and the goal at \[7.0, 1.0\], expected both in free cells"),
        ({3: -11.0}, r"found the velocity \[0.0, -11.0\], expected at most 10"),
        ({2: float("nan")}, r"observation: found .*nan.*, expected finite"),
    ],
)
def test_places_and_velocities_beyond_the_maze_are_named(
    env: MazeEnv, change: dict[int, float], message: str
) -> None:
    observation = np.array([*OPEN_POSITION, *REST, *FAR_GOAL])
    observation[list(change)] = list(change.values())
    with pytest.raises(ValueError, match=message):
        env.set_observation(observation)


# --- drawing ------------------------------------------------------------------------------------


def pixel(image: NDArray[Any], position: tuple[float, float]) -> NDArray[np.int64]:
    """Reads the colour at a position: x to the right, y upwards, from -0.2 to 6.8."""
    scale = len(image) / (len(MAZE_MAP) - 1)
    column, row = ((np.array(position) + 0.2) * scale).astype(int)
    return image[len(image) - 1 - row, column].astype(np.int64)


def test_render_marks_ball_goal_and_walls() -> None:
    env = MazeEnv(render_mode="rgb_array")
    ball, goal = (1.0, 5.0), (3.0, 2.8)
    env.set_observation([*ball, *REST, *goal])
    image = env.render()
    assert image is not None
    orange, green = pixel(image, ball), pixel(image, goal)
    assert orange[0] > orange[1] + 50 > orange[2] + 50
    assert green[1] > green.sum() / 2
    zone = pixel(image, (goal[0] - 0.3, goal[1]))
    assert zone[1] > max(zone[0], zone[2])
    assert zone.min() > green.min()
    assert pixel(image, (0.0, 3.0)).max() < 150  # wall
    assert pixel(image, (2.0, 1.0)).min() > 230  # floor
