"""The scripted experts: what they achieve, and that they are functions of the observation."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sb3_diffbc import evaluate_episodes
from sb3_diffbc.envs import FetchPickEnv, FetchPickExpert, MazeEnv, MazeExpert
from sb3_diffbc.envs.maze import FREE_CELLS, cell_of
from sb3_diffbc.tasks import TASKS

MAZE, FETCH_PICK = MazeExpert(), FetchPickExpert()
# How far the fingers are open.
CLOSED, GRASPED, OPEN = 0.0, 0.0245, 0.05


@pytest.fixture(scope="module")
def fetch_env() -> FetchPickEnv:
    """One environment for all tests, because loading takes longer than most of them."""
    try:
        return FetchPickEnv()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


def observation(
    to_block: tuple[float, float, float],
    fingers: float,
    to_goal: tuple[float, float, float] = (0.0, -0.2, 0.15),
) -> NDArray[np.float32]:
    """A FetchPick observation at rest: ways from hand to block and from block to goal."""
    obs = np.zeros(28, dtype=np.float32)
    obs[3:6] = (1.3, 0.85, 0.425)
    obs[6:9] = to_block
    obs[:3] = obs[3:6] - obs[6:9]
    obs[9:11] = fingers
    obs[25:] = obs[3:6] + np.array(to_goal)
    return obs


def act(*args: Any) -> NDArray[np.float32]:
    return FETCH_PICK.predict(observation(*args))[0]


# --- both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expert", "longest"), [("maze", MAZE, 300), ("fetch_pick", FETCH_PICK, 35)]
)
@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_every_one_of_20_episodes_is_a_success(
    name: str, expert: Any, longest: int, ratio: float
) -> None:
    try:
        result = evaluate_episodes(expert, TASKS[name].spec(ratio), n_episodes=20, n_parallel=3)
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))
    assert result.success_rate == 1.0
    assert result.lengths.max() <= longest


@pytest.mark.parametrize("expert", [MAZE, FETCH_PICK])
def test_any_observation_gets_an_action_of_the_space_that_depends_on_it_alone(expert: Any) -> None:
    space = expert.observation_space
    space.seed(0)
    scales = (0.01, 1.0, 1e6) if expert is FETCH_PICK else (1.0,)
    observations = np.stack([scale * space.sample() for scale in scales for _ in range(50)])
    batch, _ = expert.predict(observations)
    assert batch.dtype == np.float32
    assert all(action in expert.action_space for action in batch)
    singly = [type(expert)().predict(obs)[0] for obs in observations[::-10]]
    np.testing.assert_array_equal(singly, batch[::-10])


# --- Maze ---------------------------------------------------------------------------------------


def test_reaches_every_cell_from_the_farthest_corner_without_touching_a_wall() -> None:
    env = MazeEnv()
    for goal in FREE_CELLS:
        obs = env.set_observation([6, 6, 0, 0, *goal])
        success = False
        for _ in range(400):
            obs, _, success, _, _ = env.step(MAZE.predict(obs)[0])
            # The walls begin 0.5 from a cell's centre and the ball's radius is 0.1.
            centre = np.array(cell_of(obs[:2])) - 0.2
            offset = obs[:2] - centre
            for axis in np.flatnonzero(np.abs(offset) > 0.4):
                step = np.zeros(2)
                step[axis] = np.sign(offset[axis])
                assert cell_of(centre + step) in FREE_CELLS
            if success:
                break
        assert success, goal


# --- FetchPick ----------------------------------------------------------------------------------


def run(env: FetchPickEnv, steps: int, noise: float = 0.0) -> bool:
    """Continues an episode with the expert and noise on its actions; returns its success."""
    rng = np.random.default_rng(0)
    obs = env.set_state(env.state)
    for _ in range(steps):
        obs, _, success, _, _ = env.step(FETCH_PICK.predict(obs)[0] + noise * rng.normal(size=4))
        if success:
            return True
    return False


def test_copes_with_noise_on_its_actions(fetch_env: FetchPickEnv) -> None:
    for seed in range(10):
        fetch_env.reset(seed=seed)
        assert run(fetch_env, 50, noise=0.2), seed


def test_fetches_a_block_again_that_it_lost(fetch_env: FetchPickEnv) -> None:
    for seed in range(5):
        fetch_env.reset(seed=seed)
        assert not run(fetch_env, 15)
        lifted = fetch_env.set_state(fetch_env.state)[5]
        assert lifted > 0.44
        for _ in range(8):
            obs, *_ = fetch_env.step(np.array([0.5, 0.5, 0.0, 1.0], dtype=np.float32))
        assert obs[5] < lifted
        assert np.linalg.norm(obs[6:9]) > 0.05
        assert run(fetch_env, 50), seed


def test_approaches_from_above_with_open_fingers() -> None:
    x, y, z, grip = act((0.05, 0.1, -0.11), CLOSED)
    assert 2 * x == pytest.approx(y, rel=1e-4)
    assert y > 0.2
    assert (z < 0, grip) == (True, 1.0)
    # Where it would push the block aside, it goes up first; above the block, straight down.
    x, y, z, grip = act((0.05, 0.05, 0.0), OPEN)
    assert (x, y, z > 0.3, grip) == (0.0, 0.0, True, 1.0)
    x, y, z, grip = act((0.0, 0.0, -0.06), OPEN)
    assert (x, y, z < -0.4, grip) == (0.0, 0.0, True, 1.0)
    # Fingers that are closed on the block open.
    x, y, _, grip = act((0.0, 0.0, -0.0435), CLOSED)
    assert (x, y, grip) == (0.0, 0.0, 1.0)


def test_closes_around_the_block_before_it_leaves_with_it() -> None:
    np.testing.assert_allclose(act((0.0, 0.0, 0.0), OPEN), (0, 0, 0, -1), atol=1e-6)
    *hand, grip = act((0.0, 0.0, 0.0), GRASPED)
    direction = np.array(hand) / np.linalg.norm(hand)
    np.testing.assert_allclose(direction, np.array([0, -0.2, 0.15]) / 0.25, atol=1e-5)
    assert grip == -1.0


ways = st.tuples(*[st.floats(-0.15, 0.15)] * 3)


@given(to_block=ways, fingers=st.floats(0.0, 0.05), to_goal=ways, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_action_varies_little_with_the_observation(
    to_block: Any, fingers: float, to_goal: Any, seed: int
) -> None:
    obs = observation(to_block, fingers, to_goal)
    change = np.random.default_rng(seed).normal(size=28)
    # Numbers near 1 m have a resolution of 1e-7 m in float32.
    moved = obs + (1e-5 * change / np.linalg.norm(change)).astype(np.float32)
    np.testing.assert_allclose(
        FETCH_PICK.predict(moved)[0], FETCH_PICK.predict(obs)[0], rtol=0, atol=1e-2
    )
