"""The HandRotate environment, next to gymnasium-robotics' own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray

from sb3_diffbc.envs.goal_task import robotics_with_this_mujoco
from sb3_diffbc.envs.hand_rotate import ROTATION_TOLERANCE, HandRotateEnv

# Columns of the observation.
BLOCK, GOAL = slice(54, 61), slice(61, 68)
# Entries of the state: the goal, then MuJoCo's, which begins with the time and the positions.
STATE_BLOCK, STATE_GOAL_BLOCK = slice(32, 39), slice(39, 46)
STATE_GOAL_BLOCK_VELOCITY = slice(46 + 30, 46 + 36)


try:
    HandRotateEnv().close()
except gym.error.DependencyNotInstalled as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(scope="module")
def made() -> HandRotateEnv:
    # Loading the hand takes far longer than playing an episode with it.
    return HandRotateEnv()


@pytest.fixture
def env(made: HandRotateEnv) -> HandRotateEnv:
    made.reset(seed=0)
    return made


@pytest.fixture(scope="module")
def upstream() -> Iterator[Any]:
    from gymnasium_robotics.envs.shadow_dexterous_hand.manipulate_block import MujocoHandBlockEnv

    with robotics_with_this_mujoco():
        yield MujocoHandBlockEnv(target_position="ignore", target_rotation="z")


def random_actions(steps: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 20)).astype(np.float32)


def draws(n: int, seed: int = 0, **ratios: float) -> NDArray[np.float32]:
    """Observations of the first resets after a seed."""
    env = HandRotateEnv(**ratios)
    env.reset(seed=seed)
    return np.stack([env.reset()[0] for _ in range(n)])


def turn(angle: float) -> NDArray[np.float64]:
    return np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])


def heading(quaternions: NDArray[Any]) -> NDArray[Any]:
    """The angle by which a block is turned about the vertical."""
    return 2 * np.arctan2(quaternions[:, 3], quaternions[:, 0])


def state_of(upstream: Any) -> NDArray[np.float64]:
    """The state of gymnasium-robotics' environment, as ours takes it."""
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = np.empty(mujoco.mj_stateSize(upstream.model, kind))
    mujoco.mj_getState(upstream.model, upstream.data, state, kind)
    return np.concatenate([upstream.goal, state])


# --- agreement with gymnasium-robotics ----------------------------------------------------------


@pytest.mark.parametrize(("seed", "long_way"), [(0, False), (5, True)])
def test_observes_moves_and_measures_as_upstream_does(
    env: HandRotateEnv, upstream: Any, seed: int, long_way: bool
) -> None:
    upstream.reset(seed=seed)
    env.set_state(state_of(upstream))
    for action in random_actions(20, seed):
        theirs, *_ = upstream.step(action)
        obs, *_, info = env.step(action)
        np.testing.assert_array_equal(obs[:61], theirs["observation"].astype(np.float32))
        np.testing.assert_array_equal(obs[GOAL], theirs["desired_goal"].astype(np.float32))
        _, error = upstream._goal_distance(theirs["achieved_goal"], theirs["desired_goal"])
        # Upstream measures the long way round for one of the two quaternions of a rotation.
        assert (error > math.pi) == long_way
        expected = 2 * math.pi - error if long_way else error
        assert info["distance"] == pytest.approx(expected, rel=1e-12)


def test_success_is_upstreams(env: HandRotateEnv, upstream: Any) -> None:
    upstream.reset(seed=0)
    still = np.zeros(20, dtype=np.float32)
    found = set()
    for offset in np.linspace(-0.2, 0.2, 9):
        block = upstream._get_achieved_goal()
        w, x, y, z = block[3:]
        cosine, _, _, sine = turn(offset)
        about_z = [w * cosine - z * sine, x * cosine + y * sine]
        about_z += [y * cosine - x * sine, z * cosine + w * sine]
        upstream.goal = np.concatenate([block[:3], about_z])
        env.set_state(state_of(upstream))
        *_, theirs = upstream.step(still)
        _, reward, terminated, _, info = env.step(still)
        assert info["is_success"] == bool(theirs["is_success"])
        assert (reward, terminated) == (float(info["is_success"]), info["is_success"])
        assert info["is_success"] == (info["distance"] < ROTATION_TOLERANCE)
        found.add(info["is_success"])
    assert found == {True, False}


# --- start and goal -----------------------------------------------------------------------------


def test_starts_and_goals_have_the_documented_ranges() -> None:
    obs = draws(150)
    start, goal = heading(obs[:, BLOCK][:, 3:]), heading(obs[:, GOAL][:, 3:])
    # The block is set down in the palm, which turns it by up to 8 degrees more.
    assert 0.9 * math.pi / 6 < np.abs(start).max() < math.pi / 6 + 0.2
    assert np.std(start) == pytest.approx(math.pi / 6 / math.sqrt(3), rel=0.2)
    assert math.pi / 3 <= goal.min() + 1e-6 < math.pi / 3 + 0.05
    assert math.pi * 2 / 3 - 0.05 < goal.max() - 1e-6 <= math.pi * 2 / 3
    assert (obs[:, BLOCK][:, 2] > 0.04).all()
    np.testing.assert_array_equal(obs[:, GOAL][:, :3], obs[:, BLOCK][:, :3])
    assert not obs[:, GOAL][:, 4:6].any()
    np.testing.assert_allclose(np.linalg.norm(obs[:, GOAL][:, 3:], axis=1), 1.0, rtol=1e-6)
    positions, mean = obs[:, BLOCK][:, :2], draws(1, noise_ratio=0.0)[0, BLOCK][:2]
    # Friction and the fingers keep some of the noise that the block is set down with.
    assert (np.std(positions - mean, axis=0) < 0.008).all()
    assert (np.std(positions - mean, axis=0) > 0.002).all()
    assert np.abs(obs[:, 48:51]).max() < 0.05  # the block has settled


def test_starts_beside_the_palm_are_drawn_again() -> None:
    # At this ratio every second block falls.
    assert (draws(20, noise_ratio=12.0)[:, BLOCK][:, 2] > 0.04).all()


def test_the_starts_angle_grows_with_its_ratio_and_goals_stay() -> None:
    ratio = 2.0
    none, one, scaled = (draws(8, noise_ratio=value) for value in (0.0, 1.0, ratio))
    for obs in (one, scaled):
        np.testing.assert_array_equal(obs[:, GOAL][:, 3:], none[:, GOAL][:, 3:])
    angles = [heading(obs[:, BLOCK][:, 3:]) for obs in (none, one, scaled)]
    # How the block settles depends on its angle, so that this holds roughly.
    np.testing.assert_allclose(
        angles[2] - angles[0], ratio * (angles[1] - angles[0]), rtol=0, atol=0.3
    )
    assert np.ptp(angles[0]) == 0


@pytest.mark.parametrize("ratio", [0.0, 2.0])
def test_the_goals_angle_spreads_with_its_ratio_and_starts_stay(ratio: float) -> None:
    base, obs = draws(8), draws(8, goal_noise_ratio=ratio)
    np.testing.assert_array_equal(obs[:, :61], base[:, :61])
    offset, spread = (heading(rows[:, GOAL][:, 3:]) - math.pi / 2 for rows in (base, obs))
    np.testing.assert_allclose(spread, ratio * offset, rtol=0, atol=1e-6)


def test_the_goals_block_has_no_influence_on_the_hand(env: HandRotateEnv) -> None:
    state = env.state
    expected = [env.step(action)[0] for action in random_actions(10)]
    # Right inside of the real block, and in motion.
    state[STATE_GOAL_BLOCK] = state[STATE_BLOCK]
    state[STATE_GOAL_BLOCK_VELOCITY] = 1.0
    env.set_state(state)
    found = [env.step(action)[0] for action in random_actions(10)]
    np.testing.assert_array_equal(found, expected)
