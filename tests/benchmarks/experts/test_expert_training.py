"""Training of experts: what it gives, and what it rewards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from toys import LINE_ENV_ID, weights

from benchmarks.experts import training
from benchmarks.experts.training import ProgressReward, actor_of, train
from sb3_diffbc import load_policy, save_policy
from sb3_diffbc.tasks import TASKS, LearnedExpert, Task

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

ROLLOUT = 2 * 32
TIMESTEPS = 6 * ROLLOUT

EXPERT = LearnedExpert(
    "PPO, briefly",
    timesteps=TIMESTEPS,
    n_envs=2,
    net_arch=(8, 4),
    ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 2, "gamma": 0.9},
)
LINE = dataclasses.replace(TASKS["cheetah"], name="line", env_id=LINE_ENV_ID, expert=EXPERT)
ANT = dataclasses.replace(
    TASKS["ant_reach"], expert=dataclasses.replace(EXPERT, progress_reward=True)
)


# --- what training gives ------------------------------------------------------------------------


@pytest.mark.parametrize("task", [LINE, ANT], ids=["line", "ant_reach"])
def test_training_gives_a_policy_for_the_bare_environment(task: Task) -> None:
    policy = train(task, 0)
    env = gym.make(task.env_id)
    assert policy.observation_space == env.observation_space
    observation, _ = env.reset(seed=0)
    action, _ = policy.predict(observation, deterministic=True)
    assert action in env.action_space


def test_training_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    # On the line, going right is all there is to learn.
    monkeypatch.setattr(training, "LEARNING_RATE", 3e-3)
    longer = dataclasses.replace(EXPERT, timesteps=40 * ROLLOUT)
    policy = train(dataclasses.replace(LINE, expert=longer), 0)
    observations = np.array([[x, steps] for x in (-2, 0, 2) for steps in (1, 3, 5)], np.float32)
    actions, _ = policy.predict(observations, deterministic=True)
    assert actions.mean() > 0.2


def test_a_seed_gives_one_expert_to_the_bit() -> None:
    first, again, other = (weights(train(LINE, seed)) for seed in (0, 0, 1))
    assert th.equal(first, again)
    assert not th.equal(first, other)


def test_a_task_whose_expert_is_scripted_cannot_be_trained() -> None:
    with pytest.raises(ValueError, match="task: the expert of 'maze' is scripted"):
        train(TASKS["maze"], 0)


# --- the policy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"activation": "relu", "net_arch": (16,)}], ids=str)
@pytest.mark.parametrize("task", [LINE, TASKS["walker"]], ids=["float32", "float64"])
def test_the_actor_acts_on_raw_observations_as_ppo_does_on_normalised_ones(
    task: Task, changes: dict[str, Any]
) -> None:
    expert = dataclasses.replace(EXPERT, **changes)
    model = training._make_model(task, expert, seed=0)
    venv = model.get_vec_normalize_env()
    size = model.observation_space.shape[0]
    rng = np.random.default_rng(0)
    venv.obs_rms.mean = rng.normal(scale=10, size=size)
    venv.obs_rms.var = rng.uniform(1e-4, 100, size=size)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.5 * th.randn_like(parameter))
    policy = actor_of(model)
    spread = np.sqrt(venv.obs_rms.var)
    # As many as 20 standard deviations away, beyond where both clip.
    raw = venv.obs_rms.mean + spread * rng.normal(size=(200, size)) * rng.choice([1, 7], (200, 1))
    raw = raw.astype(model.observation_space.dtype)
    expected, _ = model.predict(venv.normalize_obs(raw), deterministic=True)
    found, _ = policy.predict(raw, deterministic=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.std(expected) > 0.1
    assert np.abs(venv.normalize_obs(raw)).max() == 10.0
    model.get_env().close()


def test_the_actor_carries_no_critic_and_survives_saving(tmp_path: Path) -> None:
    policy = train(LINE, 0)
    assert not list(policy.mlp_extractor.value_net.parameters())
    assert not any(parameter.any() for parameter in policy.value_net.parameters())
    loaded = load_policy(save_policy(policy, tmp_path / "policy"), device="cpu")
    observations = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0],
        policy.predict(observations, deterministic=True)[0],
    )


# --- the reward ---------------------------------------------------------------------------------


def test_progress_sums_to_the_way_made_good_and_the_tasks_reward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sb3_diffbc.envs import AntReachEnv

    # So near that random actions get there at times.
    monkeypatch.setattr(AntReachEnv, "tolerance", 4.9)
    env = ProgressReward(gym.make(ANT.env_id))
    env.action_space.seed(0)
    successes = 0
    env.reset(seed=0)
    for _ in range(20):
        _, info = env.reset()
        first, total, plain, done = info["distance"], 0.0, 0.0, False
        while not done:
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            total += float(reward)
            plain += float(terminated)
            done = terminated or truncated
        assert total == pytest.approx(first - info["distance"] + plain, abs=1e-9)
        successes += int(plain)
    assert 0 < successes < 20
