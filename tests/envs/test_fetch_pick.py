"""The FetchPick environment: starts and goals, agreement with upstream, and going back."""

from __future__ import annotations

import math
import pickle
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from graphics import draw
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_diffbc.envs.fetch_pick import FetchPickEnv
from sb3_diffbc.envs.fetch_pick_expert import FetchPickExpert
from sb3_diffbc.envs.robotics import make_robotics

NOISE = np.array([0.05, 0.02])
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
def upstream(shared_env: FetchPickEnv) -> Any:
    made = make_robotics("fetch.pick_and_place", "MujocoFetchPickAndPlaceEnv")
    made.reset(seed=0)
    return made


def start(env: FetchPickEnv, seed: int, ratio: float, goal_ratio: float) -> NDArray[np.float64]:
    env.noise_ratio, env.goal_noise_ratio = ratio, goal_ratio
    return env.reset(seed=seed)[0].astype(np.float64)


def grasping_actions(env: FetchPickEnv, steps: int, seed: int = 0) -> NDArray[np.float32]:
    """Actions that grasp the block, with noise; plays them from the state in which `env` is."""
    rng = np.random.default_rng(seed)
    expert, obs, actions = FetchPickExpert(speed=1.0), env.set_state(env.state), []
    for _ in range(steps):
        action = expert.predict(obs)[0] + 0.2 * rng.uniform(-1, 1, 4)
        actions.append(np.clip(action, -1, 1).astype(np.float32))
        obs, *_ = env.step(actions[-1])
    return np.stack(actions)


def play(env: FetchPickEnv, actions: NDArray[np.float32]) -> list[Any]:
    """What each action led to, with the observation as bytes."""
    steps = []
    for action in actions:
        obs, *rest = env.step(action)
        steps.append((obs.tobytes(), *rest))
    return steps


# --- starts and goals ---------------------------------------------------------------------------


@given(seed=st.integers(0, 10_000), ratio=st.floats(0, 3), goal_ratio=st.floats(0, 3))
@settings(max_examples=50, deadline=None)
def test_noise_keeps_to_its_range_and_scales_with_its_ratio(
    shared_env: FetchPickEnv, seed: int, ratio: float, goal_ratio: float
) -> None:
    none, one = start(shared_env, seed, 0, 0), start(shared_env, seed, 1, 1)
    found = start(shared_env, seed, ratio, goal_ratio)
    for part, scale in ((BLOCK, ratio), (GOAL, goal_ratio)):
        noise = one[part] - none[part]
        assert (np.abs(noise[:2]) <= NOISE + 1e-6).all()
        np.testing.assert_allclose(found[part] - none[part], scale * noise, rtol=0, atol=1e-6)
    np.testing.assert_allclose(none[BLOCK][:2] - none[HAND][:2], (0, 0.1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(none[GOAL][:2] - none[HAND][:2], (0, -0.1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[[5, 27]], (BLOCK_HEIGHT, BLOCK_HEIGHT + 0.15), atol=1e-4)


def test_starts_and_goals_fill_their_ranges_evenly(env: FetchPickEnv) -> None:
    centre = start(env, 0, 0, 0)
    drawn = start(env, 0, 1, 1)
    noise = np.stack([env.reset()[0] for _ in range(400)]) - centre
    for part in (BLOCK, GOAL):
        np.testing.assert_allclose(np.abs(noise[:, part][:, :2]).max(axis=0), NOISE, rtol=0.03)
        np.testing.assert_allclose(
            noise[:, part][:, :2].std(axis=0), NOISE / math.sqrt(3), rtol=0.1
        )
    # Four independent numbers: no two are correlated.
    correlation = np.corrcoef(noise[:, [3, 4, 25, 26]].T)
    assert np.abs(correlation - np.eye(4)).max() < 0.2
    assert not np.array_equal(drawn, centre)


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


@pytest.mark.parametrize("ratio", [0.0, 1.0, 3.0])
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


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_first_three_actions_move_the_hand_along_the_axes(
    env: FetchPickEnv, axis: int, sign: float
) -> None:
    before = env.reset(seed=0)[0]
    action = STILL.copy()
    action[axis] = sign
    for _ in range(2):
        obs, *_ = env.step(action)
    way = obs[HAND] - before[HAND]
    assert 0.04 < sign * way[axis] < 0.1
    assert np.abs(np.delete(way, axis)).max() < 0.005


def test_the_last_action_opens_and_closes_the_fingers(env: FetchPickEnv) -> None:
    for sign, expected in ((1.0, 0.05), (-1.0, 0.0)):
        for _ in range(10):
            obs, *_ = env.step(np.array([0, 0, 0, sign], dtype=np.float32))
        np.testing.assert_allclose(obs[FINGERS], expected, rtol=0, atol=2e-3)


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


@pytest.mark.parametrize("check", [gymnasium_check_env, sb3_check_env])
def test_environment_checkers_find_nothing(env: FetchPickEnv, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", category=UserWarning)
        # Positions have no natural bounds.
        warnings.filterwarnings(
            "ignore", ".*Box observation space (min|max)imum value is.*infinity"
        )
        check(env, skip_render_check=True)


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
@example(quaternion=(0.5, 0.5, -0.5, 0.5))
@example(quaternion=(0.0, 0.0, 0.0, 1.0))
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


def test_a_seed_gives_the_same_episode_to_the_bit_whatever_happened_before(
    env: FetchPickEnv,
) -> None:
    first, _ = env.reset(seed=3)
    actions = grasping_actions(env, 25)
    runs = []
    for before in (0, 17, 25):
        env.reset(seed=before)
        play(env, actions[:before])
        obs, info = env.reset(seed=3)
        runs.append((obs.tobytes(), info, play(env, actions)))
    fresh = FetchPickEnv()
    obs, info = fresh.reset(seed=3)
    runs.append((obs.tobytes(), info, play(fresh, actions)))
    assert all(run == runs[0] for run in runs)
    assert runs[0][0] == first.tobytes()


@pytest.mark.parametrize("moment", [0, 1, 6, 9, 14])
def test_the_same_actions_from_a_state_give_the_same_steps_to_the_bit(
    env: FetchPickEnv, moment: int
) -> None:
    # The moments are before, while and after the fingers grasp the block.
    env.reset(seed=5)
    actions = grasping_actions(env, 25)
    obs, _ = env.reset(seed=5)
    for action in actions[:moment]:
        obs, *_ = env.step(action)
    state = env.state
    expected = play(env, actions[moment:])
    env.reset()
    np.testing.assert_array_equal(env.set_state(state), obs)
    np.testing.assert_array_equal(env.state, state)
    assert play(env, actions[moment:]) == expected


def test_a_copy_continues_alike_and_apart(env: FetchPickEnv) -> None:
    env.reset(seed=5)
    actions = grasping_actions(env, 20)
    env.reset(seed=5)
    play(env, actions[:12])
    twin = pickle.loads(pickle.dumps(env))
    expected = [play(env, actions[12:]), env.reset()[0].tobytes(), play(env, actions[:3])]
    found = [play(twin, actions[12:]), twin.reset()[0].tobytes(), play(twin, actions[:3])]
    assert found == expected


# --- drawing ------------------------------------------------------------------------------------


def test_render_shows_the_block_and_the_goal(env: FetchPickEnv, tmp_path: Path) -> None:
    shown = draw(
        """
from sb3_diffbc.envs import FetchPickEnv
env = FetchPickEnv(render_mode="rgb_array")
env.reset(seed=0)
shown["start"] = env.render()
state = env.state
state[1] -= 0.1
env.set_state(state)
shown["other_goal"] = env.render()
env.close()
""",
        tmp_path,
    )
    start, other = shown["start"].astype(int), shown["other_goal"].astype(int)
    assert start.shape == (480, 480, 3)
    red, green, blue = np.moveaxis(start, 2, 0)
    assert np.sum((red > green + 50) & (green > blue + 20)) > 200  # the orange block
    changed = (start != other).any(axis=2)
    assert 1000 < changed.sum() < 40_000
    red, green, blue = other[changed].mean(axis=0)
    assert green > max(red, blue)


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("env")
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"noise_ratio": -1.0}, r"noise_ratio: found -1.0, expected a finite number"),
        ({"goal_noise_ratio": math.nan}, r"goal_noise_ratio: found nan, expected"),
        ({"render_mode": "human"}, r"render_mode: found 'human', expected None or .*rgb_array"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FetchPickEnv(**kwargs)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0] * 3, r"action: found shape \(3,\), expected shape \(4,\)"),
        ([0.0, 0.0, 0.0, math.nan], r"action: found .*nan.*, expected finite"),
    ],
)
def test_bad_actions_are_named(env: FetchPickEnv, action: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        env.step(action)


def incompatible(**kwargs: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "needs gymnasium-robotics, which cannot be imported"),
        (
            types.SimpleNamespace(MujocoFetchPickAndPlaceEnv=incompatible),
            r"does not work with the installed MuJoCo [\d.]+ \(AssertionError\(\)\)",
        ),
    ],
)
def test_a_missing_or_incompatible_upstream_is_named_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, module: Any, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.fetch.pick_and_place", module)
    with pytest.raises(gym.error.DependencyNotInstalled, match=message) as caught:
        FetchPickEnv()
    assert 'pip install "sb3-diffbc[robotics]"' in str(caught.value)
