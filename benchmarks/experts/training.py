"""Training of an expert with PPO, which can be stopped and continued from its last checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_diffbc.policies import StandardizedFeatures
from sb3_diffbc.tasks import LearnedExpert, Task

LEARNING_RATE = 3e-4
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
SAVE_EVERY_SECONDS = 120.0


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


def train(task: Task, seed: int, checkpoint: Path) -> ActorCriticPolicy:
    """Trains a task's expert, or continues from the checkpoint.

    A checkpoint is written at least every ``SAVE_EVERY_SECONDS`` (and one rollout). The
    environments are not part of it: after an interruption their episodes begin anew, from other
    random numbers, so that only an uninterrupted run is reproducible to the bit.

    Args:
        task: a task whose expert is a ``LearnedExpert``.
        seed: seeds weights, environments and sampling.
        checkpoint: where to save; left there at the end, so that a second call returns at once.

    Returns:
        The policy, with the statistics of its observations inside and no critic.

    Raises:
        ValueError: if the task's expert is not learned, or the checkpoint is that of other
            settings.
    """
    expert = task.expert
    if not isinstance(expert, LearnedExpert):
        raise ValueError(f"task: the expert of {task.name!r} is scripted, there is none to train.")
    model = _make_model(task, expert, seed)
    settings = {**vars(expert), "summary": None, "env_id": task.env_id, "seed": seed}
    saver = _Checkpoint(model, checkpoint, str(settings))
    if checkpoint.exists():
        saver.load()
    remaining = expert.timesteps - model.num_timesteps
    if remaining > 0:
        if model.num_timesteps > 0:
            # The random numbers of before have been used up to an unknown place.
            set_random_seed(seed + model.num_timesteps)
            _normalized_env(model).seed(seed + model.num_timesteps)
        model.learn(remaining, callback=saver, reset_num_timesteps=False, progress_bar=True)
        saver.save()
    policy = actor_of(model)
    _normalized_env(model).close()
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


def _normalized_env(model: PPO) -> VecNormalize:
    venv = model.get_vec_normalize_env()
    assert venv is not None
    return venv


def actor_of(model: PPO) -> ActorCriticPolicy:
    """Returns a policy of the actor alone that needs no ``VecNormalize`` around the environment.

    Args:
        model: PPO whose policy extracts ``StandardizedFeatures``, in a ``VecNormalize``.

    Returns:
        A policy that acts as the model's does on normalised observations.
    """
    venv = _normalized_env(model)
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


class _Checkpoint(BaseCallback):
    """Saves between two rollouts, when weights, optimiser and statistics belong together.

    SB3's ``CheckpointCallback`` saves before an update, and what it writes for ``VecNormalize`` can
    only be unpickled; this is a file of tensors and plain values.
    """

    def __init__(self, model: PPO, path: Path, settings: str) -> None:
        super().__init__()
        self.model: PPO = model
        self._path = path
        self._settings = settings
        self._saved = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if time.perf_counter() - self._saved > SAVE_EVERY_SECONDS:
            self.save()

    def _statistics(self) -> dict[str, RunningMeanStd]:
        venv = _normalized_env(self.model)
        return {"obs": cast(RunningMeanStd, venv.obs_rms), "returns": venv.ret_rms}

    def save(self) -> None:
        """Writes the checkpoint, in one piece."""
        self._saved = time.perf_counter()
        content = {
            "settings": self._settings,
            "timesteps": self.model.num_timesteps,
            "policy": self.model.policy.state_dict(),
            "optimizer": self.model.policy.optimizer.state_dict(),
            "statistics": {
                name: (th.as_tensor(rms.mean), th.as_tensor(rms.var), float(rms.count))
                for name, rms in self._statistics().items()
            },
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        th.save(content, temporary)
        temporary.replace(self._path)

    def load(self) -> None:
        """Restores what was saved; raises ``ValueError`` if it belongs to other settings."""
        content = th.load(self._path, weights_only=True)
        if content["settings"] != self._settings:
            raise ValueError(
                f"{self._path} belongs to the settings {content['settings']}, found "
                f"{self._settings}: move it away to begin anew."
            )
        self.model.policy.load_state_dict(content["policy"])
        self.model.policy.optimizer.load_state_dict(content["optimizer"])
        for name, rms in self._statistics().items():
            mean, var, rms.count = content["statistics"][name]
            rms.mean, rms.var = mean.numpy(), var.numpy()
        self.model.num_timesteps = content["timesteps"]
