"""The scripted FetchPick expert."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.algorithms import dagger
from imitation.algorithms.bc import BC
from imitation.data import rollout
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffbc.envs.fetch_pick import FetchPickEnv
from sb3_diffbc.envs.fetch_pick_expert import FetchPickExpert

CLOSED, GRASPED, OPEN = 0.0, 0.0245, 0.05


@pytest.fixture(scope="module")
def expert() -> FetchPickExpert:
    return FetchPickExpert()


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


def observation(
    to_block: tuple[float, float, float],
    fingers: float,
    to_goal: tuple[float, float, float] = (0.0, -0.2, 0.15),
) -> NDArray[np.float32]:
    """An observation at rest: ways from the hand to the block and from the block to the goal."""
    obs = np.zeros(28, dtype=np.float32)
    obs[3:6] = (1.3, 0.85, 0.425)
    obs[6:9] = to_block
    obs[:3] = obs[3:6] - obs[6:9]
    obs[9:11] = fingers
    obs[25:] = obs[3:6] + np.array(to_goal)
    return obs


def act(expert: FetchPickExpert, *args: Any) -> NDArray[np.float32]:
    return expert.predict(observation(*args))[0]


ways = st.tuples(*[st.floats(-0.15, 0.15)] * 3)
fingers = st.floats(0.0, 0.05)


# --- success ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 1.0, 2.0])
def test_lifts_the_block_to_the_goal_in_every_one_of_20_episodes(
    env: FetchPickEnv, expert: FetchPickExpert, ratio: float
) -> None:
    env.noise_ratio = env.goal_noise_ratio = ratio
    rewards, lengths = evaluate_policy(
        expert,
        Monitor(TimeLimit(env, 50)),
        n_eval_episodes=20,
        return_episode_rewards=True,
        warn=False,
    )
    assert rewards == [1.0] * 20
    assert max(lengths) <= 35


def run(env: FetchPickEnv, expert: FetchPickExpert, steps: int, noise: NDArray[np.float64]) -> bool:
    obs = env.set_state(env.state)
    for step in range(steps):
        obs, _, success, _, _ = env.step(expert.predict(obs)[0] + noise[step])
        if success:
            return True
    return False


def test_copes_with_noise_on_its_actions(env: FetchPickEnv, expert: FetchPickExpert) -> None:
    rng = np.random.default_rng(0)
    for seed in range(10):
        env.reset(seed=seed)
        assert run(env, expert, 50, 0.2 * rng.normal(size=(50, 4))), seed


def test_fetches_a_block_again_that_it_lost(env: FetchPickEnv, expert: FetchPickExpert) -> None:
    for seed in range(5):
        env.reset(seed=seed)
        assert not run(env, expert, 15, np.zeros((15, 4)))
        lifted = env.set_state(env.state)[5]
        assert lifted > 0.44
        for _ in range(6):
            obs, *_ = env.step(np.array([0.5, 0.5, 0.0, 1.0], dtype=np.float32))
        assert obs[5] < lifted
        assert np.linalg.norm(obs[6:9]) > 0.05
        assert run(env, expert, 50, np.zeros((50, 4))), seed


# --- the controller -----------------------------------------------------------------------------


def test_goes_towards_the_block_with_open_fingers_and_stays_above_it(
    expert: FetchPickExpert,
) -> None:
    x, y, z, grip = act(expert, (0.05, 0.1, -0.11), CLOSED)
    assert 2 * x == pytest.approx(y, rel=1e-4)
    assert y > 0.2
    assert z < 0
    assert grip == 1.0
    assert act(expert, (0.05, 0.1, -0.055), CLOSED)[2] == pytest.approx(0.0, abs=1e-5)


def test_goes_up_first_where_it_would_push_the_block_aside(expert: FetchPickExpert) -> None:
    x, y, z, grip = act(expert, (0.05, 0.05, 0.0), OPEN)
    assert (x, y) == (0.0, 0.0)
    assert z > 0.3
    assert grip == 1.0


def test_goes_straight_down_above_the_block(expert: FetchPickExpert) -> None:
    x, y, z, grip = act(expert, (0.0, 0.0, -0.06), OPEN)
    assert (x, y) == (0.0, 0.0)
    assert z < -0.4
    assert grip == 1.0


def test_closes_around_the_block_before_it_leaves_with_it(expert: FetchPickExpert) -> None:
    np.testing.assert_allclose(act(expert, (0.0, 0.0, 0.0), OPEN), (0, 0, 0, -1), atol=1e-6)
    *hand, grip = act(expert, (0.0, 0.0, 0.0), GRASPED)
    direction = np.array(hand) / np.linalg.norm(hand)
    np.testing.assert_allclose(direction, np.array([0, -0.2, 0.15]) / 0.25, atol=1e-5)
    assert grip == -1.0


def test_keeps_hold_of_a_block_that_slips(expert: FetchPickExpert) -> None:
    for to_block in ((0.0, 0.02, 0.0), (0.0, 0.0, -0.015)):
        assert act(expert, to_block, OPEN)[3] > -0.8
        assert act(expert, to_block, GRASPED)[3] == -1.0


def test_minds_an_error_across_the_fingers_less_than_one_between_them(
    expert: FetchPickExpert,
) -> None:
    assert act(expert, (0.017, 0.0, 0.0), OPEN)[3] == -1.0
    assert act(expert, (0.0, 0.017, 0.0), OPEN)[3] > -1.0


def test_opens_fingers_that_stand_closed_on_the_block(expert: FetchPickExpert) -> None:
    x, y, _, grip = act(expert, (0.0, 0.0, -0.0435), CLOSED)
    assert (x, y, grip) == (0.0, 0.0, 1.0)


def test_speed_limits_the_hand_and_gain_brakes_it(expert: FetchPickExpert) -> None:
    held = (0.0, 0.0, 0.0), GRASPED
    for speed in (0.3, 1.0):
        fast = act(FetchPickExpert(speed=speed), *held, (10.0, 0.0, 0.0))
        assert np.linalg.norm(fast[:3]) == pytest.approx(speed, rel=1e-3)
    near = act(FetchPickExpert(speed=0.5, gain=20.0), *held, (0.001, 0.0, 0.0))
    assert near[0] == pytest.approx(0.5 * 20.0 * 0.001, rel=1e-3)


@given(to_block=ways, finger=fingers, to_goal=ways, seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_action_varies_little_with_the_observation(
    to_block: Any, finger: float, to_goal: Any, seed: int
) -> None:
    expert = FetchPickExpert()
    obs = observation(to_block, finger, to_goal)
    change = np.random.default_rng(seed).normal(size=28)
    # Numbers near 1 m have a resolution of 1e-7 m in float32.
    moved = obs + (1e-5 * change / np.linalg.norm(change)).astype(np.float32)
    np.testing.assert_allclose(
        expert._choose_action(moved), expert._choose_action(obs), rtol=0, atol=1e-2
    )


# --- a policy -----------------------------------------------------------------------------------


def test_action_depends_on_the_observation_alone(expert: FetchPickExpert) -> None:
    rng = np.random.default_rng(0)
    observations = np.stack(
        [
            observation(rng.uniform(-0.04, 0.04, 3), rng.uniform(0, 0.05), rng.normal(size=3))
            for _ in range(30)
        ]
    )
    batch, state = expert.predict(observations)
    assert state is None
    assert (batch.shape, batch.dtype) == ((30, 4), np.float32)
    singly = [FetchPickExpert().predict(obs)[0] for obs in observations[::-1]]
    np.testing.assert_array_equal(batch, np.stack(singly)[::-1])
    assert len(np.unique(batch, axis=0)) == 30


def test_values_that_the_task_does_not_need_do_not_matter(expert: FetchPickExpert) -> None:
    obs = observation((0.01, 0.01, -0.02), 0.03)
    spun = obs.copy()
    spun[11:25] = np.random.default_rng(0).normal(size=14)
    np.testing.assert_array_equal(expert.predict(spun)[0], expert.predict(obs)[0])


def test_any_observation_of_the_space_gets_an_action_of_the_space(
    expert: FetchPickExpert,
) -> None:
    space = expert.observation_space
    space.seed(0)
    for scale in (0.01, 1.0, 1e6):
        for _ in range(50):
            obs = (scale * space.sample()).astype(np.float32)
            assert expert.action_space.contains(expert.predict(obs)[0])


def test_default_spaces_are_those_of_the_task(env: FetchPickEnv, expert: FetchPickExpert) -> None:
    assert expert.observation_space == env.observation_space
    assert expert.action_space == env.action_space
    FetchPickExpert(env.observation_space, env.action_space)


def test_labels_for_dagger(env: FetchPickEnv, expert: FetchPickExpert, tmp_path: Any) -> None:
    assert isinstance(expert, BasePolicy)
    venv = DummyVecEnv([lambda: TimeLimit(env, 50)])
    rng = np.random.default_rng(0)
    trainer = dagger.SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=tmp_path,
        expert_policy=expert,
        bc_trainer=BC(
            observation_space=venv.observation_space, action_space=venv.action_space, rng=rng
        ),
        rng=rng,
    )
    trajectories = rollout.generate_trajectories(
        expert,
        trainer.create_trajectory_collector(),
        sample_until=rollout.make_sample_until(min_episodes=1),
        deterministic_policy=True,
        rng=rng,
    )
    assert len(trajectories) >= 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"observation_space": spaces.Box(-1, 1, (25,))}, "observation_space: found Box"),
        ({"observation_space": spaces.Discrete(28)}, r"observation_space: found Discrete\(28\)"),
        ({"action_space": spaces.Box(-1, 1, (3,))}, "action_space: found Box"),
        ({"speed": 0.0}, r"speed: found 0.0, expected a number in \(0, 1\]"),
        ({"speed": 1.5}, r"speed: found 1.5, expected a number in \(0, 1\]"),
        ({"speed": math.nan}, r"speed: found nan, expected a number in \(0, 1\]"),
        ({"gain": 0.0}, "gain: found 0.0, expected a positive number"),
        ({"gain": math.inf}, "gain: found inf, expected a positive number"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FetchPickExpert(**kwargs)
