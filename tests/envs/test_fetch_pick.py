"""The FetchPick environment: starts and goals, agreement with upstream, and going back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sb3_diffbc.envs import FetchPickEnv, FetchPickExpert
from sb3_diffbc.envs.goal_task import make_robotics, robotics_with_this_mujoco

# One-sided along y: away from the hand.
BLOCK_NOISE = np.array([[-0.05, 0.0], [0.05, 0.04]])
GOAL_NOISE = np.array([[-0.05, -0.04], [0.05, 0.0]])
TABLE_LOW, TABLE_HIGH = np.array([1.05, 0.4]), np.array([1.55, 1.1])
BLOCK_HEIGHT, BLOCK_HALF_SIZE = 0.4247, 0.025
HAND, BLOCK, FINGERS = slice(0, 3), slice(3, 6), slice(9, 11)
ANGLES, BLOCK_VELOCITIES, GOAL = slice(11, 14), slice(14, 20), slice(25, 28)
STILL = np.zeros(4, dtype=np.float32)
# Of `state`, which is goal, time, positions of the joints, and more.
BLOCK_HEIGHT_IN_STATE, BLOCK_QUATERNION_IN_STATE = 3 + 1 + 17, slice(3 + 1 + 18, 3 + 1 + 22)


@pytest.fixture(scope="module")
def shared_env() -> FetchPickEnv:
    try:
        return FetchPickEnv()
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture
def env(shared_env: FetchPickEnv) -> FetchPickEnv:
    """One environment for all, because loading takes longer than most of these tests."""
    shared_env.noise_ratio = shared_env.goal_noise_ratio = 1.0
    shared_env.reset(seed=0)
    return shared_env


@pytest.fixture(scope="module")
def upstream(shared_env: FetchPickEnv) -> Iterator[Any]:
    made = make_robotics("fetch.pick_and_place", "MujocoFetchPickAndPlaceEnv")
    with robotics_with_this_mujoco():
        made.reset(seed=0)
        yield made


def start(env: FetchPickEnv, seed: int, ratio: float, goal_ratio: float) -> NDArray[np.float64]:
    env.noise_ratio, env.goal_noise_ratio = ratio, goal_ratio
    return env.reset(seed=seed)[0].astype(np.float64)


def grasping_actions(env: FetchPickEnv, steps: int, seed: int = 0) -> NDArray[np.float32]:
    """Actions that grasp the block, with noise; plays them from the state in which `env` is."""
    rng = np.random.default_rng(seed)
    expert, obs, actions = FetchPickExpert(), env.set_state(env.state), []
    for _ in range(steps):
        action = expert.predict(obs)[0] + 0.2 * rng.uniform(-1, 1, 4)
        actions.append(np.clip(action, -1, 1).astype(np.float32))
        obs, *_ = env.step(actions[-1])
    return np.stack(actions)


# --- starts and goals ---------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), ratio=st.floats(0, 3), goal_ratio=st.floats(0, 3))
@settings(max_examples=50, deadline=None)
def test_noise_keeps_to_its_range_and_scales_with_its_ratio(
    shared_env: FetchPickEnv, seed: int, ratio: float, goal_ratio: float
) -> None:
    none, one = start(shared_env, seed, 0, 0), start(shared_env, seed, 1, 1)
    found = start(shared_env, seed, ratio, goal_ratio)
    for part, (low, high), scale in (
        (BLOCK, BLOCK_NOISE, ratio),
        (GOAL, GOAL_NOISE, goal_ratio),
    ):
        noise = one[part] - none[part]
        assert ((noise[:2] >= low - 1e-6) & (noise[:2] <= high + 1e-6)).all()
        np.testing.assert_allclose(found[part] - none[part], scale * noise, rtol=0, atol=1e-6)
    np.testing.assert_allclose(none[BLOCK][:2] - none[HAND][:2], (0, 0.1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(none[GOAL][:2] - none[HAND][:2], (0, -0.1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[[5, 27]], (BLOCK_HEIGHT, BLOCK_HEIGHT + 0.15), atol=5e-4)


def test_starts_and_goals_fill_their_ranges_evenly(env: FetchPickEnv) -> None:
    centre = start(env, 0, 0, 0)
    start(env, 0, 1, 1)
    noise = np.stack([env.reset()[0] for _ in range(400)]) - centre
    for part, (low, high) in ((BLOCK, BLOCK_NOISE), (GOAL, GOAL_NOISE)):
        found = noise[:, part][:, :2]
        np.testing.assert_allclose(found.min(axis=0), low, rtol=0, atol=2e-3)
        np.testing.assert_allclose(found.max(axis=0), high, rtol=0, atol=2e-3)
        np.testing.assert_allclose(found.std(axis=0), (high - low) / math.sqrt(12), rtol=0.1)
    # Four independent numbers: no two are correlated.
    correlation = np.corrcoef(noise[:, [3, 4, 25, 26]].T)
    assert np.abs(correlation - np.eye(4)).max() < 0.2


@given(seed=st.integers(0, 100), ratio=st.floats(5, 1e6))
@settings(max_examples=15, deadline=None)
def test_no_noise_leads_off_the_table(shared_env: FetchPickEnv, seed: int, ratio: float) -> None:
    obs = start(shared_env, seed, ratio, ratio)
    for part in (BLOCK, GOAL):
        assert (obs[part][:2] >= TABLE_LOW + BLOCK_HALF_SIZE - 1e-6).all()
        assert (obs[part][:2] <= TABLE_HIGH - BLOCK_HALF_SIZE + 1e-6).all()
    for _ in range(10):
        obs = shared_env.step(STILL)[0]
    assert obs[5] == pytest.approx(BLOCK_HEIGHT, abs=1e-3)


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_the_block_starts_at_rest_on_the_table_away_from_goal_and_hand(
    env: FetchPickEnv, ratio: float
) -> None:
    env.noise_ratio = env.goal_noise_ratio = ratio
    for _ in range(10):
        first, info = env.reset()
        assert info["distance"] > 2 * env.tolerance
        assert info["distance"] == pytest.approx(math.dist(first[BLOCK], first[GOAL]), rel=1e-5)
        assert first[FINGERS] == pytest.approx(0.0, abs=1e-4)
        assert np.abs(first[BLOCK_VELOCITIES]).max() < 2e-4
        assert first[8] == pytest.approx(-0.11, abs=1e-3)
        for _ in range(5):
            obs, _, terminated, _, _ = env.step(STILL)
            assert not terminated
        np.testing.assert_allclose(obs[BLOCK], first[BLOCK], rtol=0, atol=1e-4)
        np.testing.assert_allclose(obs[HAND], first[HAND], rtol=0, atol=2e-3)


# --- the task -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("distance", "success"), [(0.0495, True), (0.0505, False)])
def test_success_within_5_cm_of_the_goal(env: FetchPickEnv, distance: float, success: bool) -> None:
    obs, _ = env.reset(seed=0)
    state = env.state
    state[:3] = obs[BLOCK] + np.array([0.0, 0.0, distance])
    env.set_state(state)
    _, reward, terminated, truncated, info = env.step(STILL)
    assert (reward, terminated, truncated) == (float(success), success, False)
    assert info["is_success"] is success
    assert info["distance"] == pytest.approx(distance, abs=1e-4)


# --- agreement with upstream --------------------------------------------------------------------


def follow(upstream: Any, env: FetchPickEnv) -> None:
    """Puts upstream's simulation into the state in which `env` is."""
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    mujoco.mj_resetData(upstream.model, upstream.data)
    mujoco.mj_setState(upstream.model, upstream.data, env.state[3:], kind)
    # A state is that before the last step of the simulation.
    mujoco.mj_step(upstream.model, upstream.data)


def test_the_same_actions_lead_to_upstreams_observations(env: FetchPickEnv, upstream: Any) -> None:
    seen = []
    for seed in (1, 2):
        obs, _ = env.reset(seed=seed)
        follow(upstream, env)
        np.testing.assert_allclose(obs[:25], upstream._get_obs()["observation"], atol=1e-6)
        state = env.state
        actions = grasping_actions(env, 25, seed)
        # Loosens the grip a little at a time, then lets the block go, so that it tumbles.
        loosening = actions[:15] * (1.0, 1.0, 1.0, 0.01)
        actions = np.concatenate([actions, loosening, -actions[:15]])
        env.set_state(state)
        for action in actions:
            obs, *_ = env.step(action)
            expected = upstream.step(action.astype(np.float64))[0]["observation"]
            np.testing.assert_allclose(obs[:25], expected, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(obs[GOAL], env.goal.astype(np.float32))
            seen.append(obs)
    heights = np.stack(seen)[:, 5]
    assert heights.max() > BLOCK_HEIGHT + 0.05


QUARTER_TURN = math.sqrt(0.5)


@given(quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1))
@example(quaternion=(QUARTER_TURN, 0.0, QUARTER_TURN, 0.0))  # where two of the axes coincide
@settings(max_examples=50, deadline=None)
def test_any_rotation_of_the_block_is_observed_as_upstream_does(
    shared_env: FetchPickEnv, upstream: Any, quaternion: tuple[float, ...]
) -> None:
    shared_env.reset(seed=0)
    state = shared_env.state
    state[BLOCK_HEIGHT_IN_STATE] = 1.5  # in the air, touching nothing
    state[BLOCK_QUATERNION_IN_STATE] = np.array(quaternion) / np.linalg.norm(quaternion)
    obs = shared_env.set_state(state)
    follow(upstream, shared_env)
    assert obs[5] == pytest.approx(1.5, abs=1e-4)
    expected = upstream._get_obs()["observation"]
    np.testing.assert_allclose(obs[ANGLES], expected[ANGLES], rtol=0, atol=1e-6)


# --- determinism --------------------------------------------------------------------------------
