"""The AntReach environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sb3_diffbc.envs.ant_reach import GOAL_DISTANCE, GOAL_RADIUS, AntReachEnv

# Columns of the observation.
JOINTS, VELOCITY, JOINT_VELOCITIES = slice(5, 13), slice(13, 27), slice(19, 27)
WAY = slice(27, 29)
# Entries of the state: MuJoCo's begins with the time, then the positions and the velocities.
GOAL, POSITION, SPEEDS = slice(0, 2), slice(3, 18), slice(18, 32)

CROUCH = np.array([0.0, 1.0, 0.0, -1.0, 0.0, -1.0, 0.0, 1.0])
STILL = np.zeros(8, dtype=np.float32)


@pytest.fixture
def env() -> AntReachEnv:
    env = AntReachEnv()
    env.reset(seed=0)
    return env


def draws(n: int = 300, **ratios: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Observations and goals of the first resets after a seed."""
    env = AntReachEnv(**ratios)
    env.reset(seed=0)
    observations, goals = [], []
    for _ in range(n):
        observations.append(env.reset()[0])
        goals.append(env.goal)
    return np.stack(observations), np.stack(goals)


def angles(goals: NDArray[Any]) -> NDArray[Any]:
    return np.arctan2(goals[:, 1], goals[:, 0])


# --- the task -----------------------------------------------------------------------------------


def test_the_observation_is_pose_velocity_and_the_way_from_the_torso_to_the_goal(
    env: AntReachEnv,
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        obs, *_, info = env.step(rng.uniform(-1, 1, 8).astype(np.float32))
        state = env.state
        way = env.goal - state[POSITION][:2]
        expected = np.concatenate([state[POSITION][2:], state[SPEEDS], way])
        np.testing.assert_allclose(obs, expected, rtol=1e-6)
        assert info["distance"] == pytest.approx(np.linalg.norm(way), rel=1e-12)


def test_the_ant_moves_as_gymnasiums_does(env: AntReachEnv) -> None:
    upstream: Any = gym.make("Ant-v4").unwrapped
    upstream.reset(seed=0)
    upstream.set_state(env.state[POSITION], env.state[SPEEDS])
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 8)
        obs, *_ = env.step(action.astype(np.float32))
        upstream.step(action.astype(np.float32))
        expected = np.concatenate([upstream.data.qpos[2:], upstream.data.qvel])
        np.testing.assert_allclose(obs[:27], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("offset", "success"), [(0.48, True), (0.52, False)])
def test_success_within_half_a_metre_of_the_goal(
    env: AntReachEnv, offset: float, success: bool
) -> None:
    state = env.state
    state[SPEEDS] = 0.0
    # An ant at rest does not come 2 cm forward in one step.
    state[GOAL] = state[POSITION][:2]
    state[GOAL][1] += offset
    env.set_state(state)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert GOAL_RADIUS == 0.5
    assert info["distance"] == pytest.approx(offset, abs=0.02)
    assert (reward, terminated, truncated) == (float(success), success, False)
    assert info["is_success"] is success


# --- start and goal -----------------------------------------------------------------------------


def test_starts_are_the_crouched_pose_with_the_documented_noise() -> None:
    obs, goals = draws()
    torso = goals - obs[:, WAY]
    for noise, bound in (
        (torso, 0.01),
        (obs[:, JOINTS] - CROUCH, 0.01),
        (obs[:, VELOCITY], 0.005),
    ):
        assert 0.98 * bound < np.abs(noise).max() <= bound + 1e-6
        assert np.std(noise) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert np.abs(obs[:, 0] - 0.55).max() <= 0.01 + 1e-6  # height
    np.testing.assert_allclose(obs[:, 1:5], np.tile([1, 0, 0, 0], (len(obs), 1)), atol=0.0101)
    np.testing.assert_allclose(np.linalg.norm(obs[:, 1:5], axis=1), 1.0, rtol=1e-6)


def test_goals_are_anywhere_on_the_half_circle_ahead() -> None:
    _, goals = draws()
    np.testing.assert_allclose(np.linalg.norm(goals, axis=1), GOAL_DISTANCE)
    angle = angles(goals)
    assert 0 <= angle.min() < 0.05
    assert np.pi - 0.05 < angle.max() <= np.pi
    assert np.mean(angle) == pytest.approx(np.pi / 2, abs=0.15)
    assert np.std(angle) == pytest.approx(np.pi / np.sqrt(12), rel=0.1)


@given(ratio=st.floats(0, 5))
@settings(max_examples=15, deadline=None)
def test_start_noise_grows_with_its_ratio_and_goals_stay(ratio: float) -> None:
    (base, goals), (scaled, same_goals) = draws(5), draws(5, noise_ratio=ratio)
    np.testing.assert_array_equal(same_goals, goals)
    bounds = {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(scaled[:, VELOCITY], ratio * base[:, VELOCITY], **bounds)
    noise = base[:, JOINTS] - CROUCH
    np.testing.assert_allclose(scaled[:, JOINTS] - CROUCH, ratio * noise, **bounds)
    np.testing.assert_allclose(goals - scaled[:, WAY], ratio * (goals - base[:, WAY]), **bounds)


@given(ratio=st.floats(0, 1))
@settings(max_examples=15, deadline=None)
def test_goals_spread_with_their_ratio_around_straight_ahead_and_starts_stay(
    ratio: float,
) -> None:
    (base, goals), (obs, spread) = draws(5), draws(5, goal_noise_ratio=ratio)
    np.testing.assert_array_equal(obs[:, :27], base[:, :27])
    offset = angles(goals) - np.pi / 2
    np.testing.assert_allclose(angles(spread) - np.pi / 2, ratio * offset, rtol=0, atol=1e-9)


def test_without_noise_every_episode_is_the_same() -> None:
    obs, goals = draws(3, noise_ratio=0.0, goal_noise_ratio=0.0)
    np.testing.assert_allclose(goals, np.tile([0.0, 5.0], (3, 1)), atol=1e-12)
    assert len(np.unique(obs, axis=0)) == 1
    np.testing.assert_array_equal(obs[0, JOINTS], CROUCH)
    assert not obs[:, VELOCITY].any()
