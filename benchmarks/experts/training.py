"""Training of an expert with PPO."""

from __future__ import annotations

from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_diffbc.policies import StandardizedFeatures
from sb3_diffbc.tasks import LearnedExpert, Task

LEARNING_RATE = 3e-4
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


class ProgressReward(gym.Wrapper):
    """Rewards each step with the decrease of ``info["distance"]``, besides the task's reward."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode and measures the first distance."""
        observation, info = self.env.reset(**kwargs)
        self._distance = info["distance"]
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Steps and adds the decrease of the distance to the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        progress = self._distance - info["distance"]
        self._distance = info["distance"]
        return observation, float(reward) + progress, terminated, truncated, info


def train(task: Task, seed: int) -> ActorCriticPolicy:
    """Trains a task's expert; reproducible to the bit.

    Returns:
        The policy, with the statistics of its observations inside and no critic.

    Raises:
        ValueError: if the task's expert is not learned.
    """
    if not isinstance(task.expert, LearnedExpert):
        raise ValueError(f"task: the expert of {task.name!r} is scripted, there is none to train.")
    model = _make_model(task, task.expert, seed)
    model.learn(task.expert.timesteps, progress_bar=True)
    policy = actor_of(model)
    model.get_env().close()  # type: ignore[union-attr]
    return policy


def _make_model(task: Task, expert: LearnedExpert, seed: int) -> PPO:
    def make_env() -> gym.Env:
        env = gym.make(task.env_id)
        return Monitor(ProgressReward(env) if expert.progress_reward else env)

    settings = {"gamma": 0.99, "n_epochs": 10, **expert.ppo}
    venv = DummyVecEnv([make_env] * expert.n_envs)
    return PPO(
        "MlpPolicy",
        VecNormalize(venv, gamma=settings["gamma"]),
        learning_rate=lambda progress_remaining: LEARNING_RATE * progress_remaining,
        seed=seed,
        device="cpu",
        policy_kwargs={
            "net_arch": list(expert.net_arch),
            "activation_fn": ACTIVATIONS[expert.activation],
            "log_std_init": expert.log_std_init,
            "features_extractor_class": StandardizedFeatures,
        },
        **settings,
    )


def actor_of(model: PPO) -> ActorCriticPolicy:
    """Returns a policy of the actor alone that needs no ``VecNormalize`` around the environment.

    The model's policy must extract ``StandardizedFeatures``.
    """
    venv = model.get_vec_normalize_env()
    assert venv is not None
    obs_rms = cast(RunningMeanStd, venv.obs_rms)  # observations are arrays
    source = model.policy
    net_arch = source.net_arch
    widths = net_arch["pi"] if isinstance(net_arch, dict) else net_arch
    policy = ActorCriticPolicy(
        source.observation_space,
        source.action_space,
        lr_schedule=lambda _: 0.0,
        net_arch={"pi": list(widths), "vf": []},
        activation_fn=source.activation_fn,
        features_extractor_class=StandardizedFeatures,
    )
    actor = {
        name: value
        for name, value in source.state_dict().items()
        if name.startswith(("log_std", "action_net", "mlp_extractor.policy_net"))
    }
    policy.load_state_dict({**policy.state_dict(), **actor})
    # The critic's head has to be there; left at random, it would differ from one call to the next.
    for parameter in policy.value_net.parameters():
        nn.init.zeros_(parameter)
    for extractor in policy.modules():
        if isinstance(extractor, StandardizedFeatures):
            extractor.mean.copy_(th.as_tensor(obs_rms.mean))
            extractor.std.copy_(th.as_tensor(np.sqrt(obs_rms.var + venv.epsilon)))
    policy.set_training_mode(False)
    return policy
