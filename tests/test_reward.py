"""The critic as a reward: how it orders pairs, what it depends on, and what it refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import toys
from gymnasium import spaces
from imitation.rewards.reward_wrapper import RewardVecEnvWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import (
    ACTION_SPACES,
    CRITIC_KWARGS,
    MAPPING,
    OBSERVATION_SPACES,
    VECTOR,
    LineEnv,
    policy,
    space_id,
    transitions,
    weights,
)

from sb3_diffbc import CriticReward, DiffusionCritic, to_rl

demonstrations = toys.near_the_middle
SPACES = LineEnv.observation_space, LineEnv.action_space


@pytest.fixture(scope="module")
def critic() -> DiffusionCritic:
    return toys.critic_of_the_middle()


def test_the_experts_pairs_have_more_than_other_actions_and_other_states(
    critic: DiffusionCritic,
) -> None:
    reward = CriticReward(critic, demonstrations(400), bias="survival")
    obs, acts = demonstrations(400).obs, demonstrations(400).acts
    experts = reward(obs, acts)
    other_actions = reward(obs, np.random.default_rng(1).uniform(-1, 1, acts.shape))
    other_states = reward(obs + np.float32([3, 0]), acts)
    assert np.median(experts) == pytest.approx(0.5, abs=1e-6)
    assert experts.mean() > other_actions.mean() + 0.15
    assert experts.mean() > other_states.mean() + 0.3


def test_a_reward_depends_on_its_pair_alone(critic: DiffusionCritic) -> None:
    obs, acts = demonstrations(400).obs, demonstrations(400).acts
    reward = CriticReward(critic, demonstrations(400), bias="survival")
    together = reward(obs, acts)
    assert together.dtype == np.float32
    assert together.shape == (400,)
    th.manual_seed(1)
    np.testing.assert_array_equal(reward(obs, acts, obs + 1, np.ones(400, bool)), together)
    again = CriticReward(critic, demonstrations(400), bias="survival")
    np.testing.assert_array_equal(again(obs, acts), together)
    alone = [reward(obs[i : i + 1], acts[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(alone, together[:5], atol=1e-5)
    # More pairs than are looked at in one go.
    many = reward(np.tile(obs, (6, 1)), np.tile(acts, (6, 1)))
    np.testing.assert_allclose(many.reshape(6, 400), np.tile(together, (6, 1)), atol=1e-5)


def test_biases_shift_the_same_reward_to_either_side_of_zero(critic: DiffusionCritic) -> None:
    obs, acts = demonstrations(400).obs, demonstrations(400).acts
    survival, neutral, termination = (
        CriticReward(critic, demonstrations(400), bias=bias)(obs, acts)
        for bias in ("survival", "neutral", "termination")
    )
    assert survival.min() > 0
    assert termination.max() < 0
    np.testing.assert_allclose(neutral, survival - 0.5, atol=1e-6)
    np.testing.assert_allclose(termination, survival - 1, atol=1e-6)


def test_a_higher_temperature_tells_far_pairs_better_apart_and_near_ones_less(
    critic: DiffusionCritic,
) -> None:
    obs = np.array([[0.4, 4], [1.2, 4], [2, 4], [3, 4]], np.float32)
    acts = np.array([[-0.4], [-1], [-1], [-1]], np.float32)
    cold, hot = (
        CriticReward(critic, demonstrations(400), bias="survival", temperature=t)(obs, acts)
        for t in (1.0, 8.0)
    )
    assert (np.diff(cold) < 0).all()
    assert cold[0] - cold[1] > hot[0] - hot[1] > 0
    assert hot[2] - hot[3] > cold[2] - cold[3]


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=space_id)
@pytest.mark.parametrize("observation_space", OBSERVATION_SPACES, ids=space_id)
def test_every_space_of_the_critic_has_rewards(
    observation_space: gym.Space, action_space: gym.Space
) -> None:
    pairs = transitions(observation_space, action_space)
    reward = CriticReward(
        toys.critic(observation_space, action_space, data=pairs), pairs, bias="termination"
    )
    obs: Any = pairs.obs
    found = reward(obs, pairs.acts, obs, pairs.dones)
    assert found.shape == (64,)
    assert ((found >= -1) & (found <= 0)).all()
    assert np.ptp(found) > 0


# --- in imitation's wrapper ---------------------------------------------------------------------


def test_the_wrapper_hands_out_the_reward_and_keeps_the_environments_own(
    critic: DiffusionCritic,
) -> None:
    reward = CriticReward(critic, demonstrations(400), bias="termination")
    venv = reward.wrap(DummyVecEnv([LineEnv] * 3))
    assert isinstance(venv, RewardVecEnvWrapper)
    venv.seed(0)
    obs = venv.reset()
    n_ends = 0
    for _ in range(8):
        acts = np.full((3, 1), 0.5, np.float32)
        following, rewards, dones, infos = venv.step(acts)
        np.testing.assert_allclose(rewards, reward(obs, acts), atol=1e-6)
        moved = obs[:, 0] + 0.5  # what the line rewards with
        assert [info["original_env_rew"] for info in infos] == pytest.approx(list(moved), abs=1e-5)
        n_ends += int(dones.sum())
        obs = following
    assert n_ends
    assert len(venv.episode_rewards) == n_ends


def test_ppo_goes_on_from_a_clone_with_the_reward(critic: DiffusionCritic) -> None:
    reward = CriticReward(critic, demonstrations(400), bias="survival")
    before = weights(critic)
    venv = reward.wrap(DummyVecEnv([LineEnv] * 2))
    clone = policy(*SPACES)
    model = to_rl(clone, PPO, venv, n_steps=8, batch_size=8, n_epochs=2, seed=0, device="cpu")
    model.learn(32, callback=venv.make_log_callback())
    assert not th.equal(weights(model.policy.action_net), weights(clone.action_net))
    rewards = model.rollout_buffer.rewards
    assert ((rewards > 0) & (rewards < 1)).all()
    assert th.equal(weights(critic), before)


def test_observations_of_many_parts_go_through_the_wrapper() -> None:
    pairs = transitions(MAPPING, SPACES[1])
    reward = CriticReward(toys.critic(MAPPING, SPACES[1], data=pairs), pairs, bias="survival")
    venv = reward.wrap(DummyVecEnv([lambda: toys.AnyEnv(MAPPING, SPACES[1])] * 2))
    _, rewards, _, _ = venv.step(np.zeros((2, 1), np.float32))
    assert ((rewards > 0) & (rewards < 1)).all()


# --- what cannot be ----------------------------------------------------------------------------


def test_other_environments_are_refused(critic: DiffusionCritic) -> None:
    class Other(LineEnv):
        action_space = spaces.Box(-2, 2, (1,), np.float32)

    reward = CriticReward(critic, demonstrations(400), bias="survival")
    with pytest.raises(ValueError, match=r"critic\.action_space is .*: expected Box\(-2"):
        reward.wrap(DummyVecEnv([Other]))
    not_a_venv: Any = LineEnv()
    with pytest.raises(TypeError, match="venv is a LineEnv: expected a VecEnv"):
        reward.wrap(not_a_venv)


@pytest.mark.parametrize(
    ("state", "action", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 1)), r"state: found rows of shape \(3,\), expected \(2,\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), r"action: found rows of shape \(2,\)"),
        ({"a": np.zeros((2, 2))}, np.zeros((2, 1)), r"state: found \['a'\], expected what fits"),
        (np.full((2, 2), np.nan), np.zeros((2, 1)), "state: found NaN or infinite"),
        (np.zeros((2, 2)), np.full((2, 1), np.inf), "action: found NaN or infinite"),
    ],
)
def test_transitions_that_do_not_fit_are_refused(
    critic: DiffusionCritic, state: Any, action: Any, message: str
) -> None:
    reward = CriticReward(critic, demonstrations(400), bias="survival")
    with pytest.raises(ValueError, match=message):
        reward(state, action)


def test_critics_without_states_and_unfitted_ones_are_refused() -> None:
    conditional = DiffusionCritic(*SPACES, models="action", seed=0, device="cpu", **CRITIC_KWARGS)
    with pytest.raises(ValueError, match="critic is not fitted"):
        CriticReward(conditional, demonstrations(400), bias="survival")
    conditional.fit(demonstrations(400), progress_bar=False)
    with pytest.raises(ValueError, match=r"critic models 'action': expected 'state_action'"):
        CriticReward(conditional, demonstrations(400), bias="survival")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bias": "positive"}, ValueError, "bias: .* found 'positive'"),
        ({"bias": "survival", "temperature": 0}, ValueError, "temperature: .* found 0"),
        ({"bias": "survival", "critic": None}, TypeError, "critic: .* found None"),
    ],
)
def test_arguments_are_checked(
    critic: DiffusionCritic, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CriticReward(**{"critic": critic, "demonstrations": demonstrations(400), **arguments})


def test_demonstrations_that_no_policy_can_follow_are_refused(critic: DiffusionCritic) -> None:
    pairs = demonstrations(400)
    wild = dataclasses.replace(pairs, acts=pairs.acts * 3)
    with pytest.raises(ValueError, match=r"acts leave the bounds .* by up to 1\.\d+, .*np\.clip"):
        CriticReward(critic, wild, bias="survival")
    with pytest.raises(ValueError, match="shape"):
        CriticReward(critic, transitions(VECTOR, SPACES[1]), bias="survival")


def test_pairs_without_a_spread_still_give_numbers(critic: DiffusionCritic) -> None:
    reward = CriticReward(critic, demonstrations(400)[:1], bias="survival")
    assert reward(demonstrations(400).obs[:1], demonstrations(400).acts[:1]) == pytest.approx(0.5)
    assert np.isfinite(reward(demonstrations(400).obs + 50, demonstrations(400).acts)).all()
