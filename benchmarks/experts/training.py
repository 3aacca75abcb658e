"""Trains an expert with PPO; can be stopped at any time and goes on from its last checkpoint."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, SupportsFloat, cast

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn

from sb3_diffbc import checkpoints
from sb3_diffbc.policies import StandardizedFeatures
from sb3_diffbc.tasks import LearnedExpert, Task

LEARNING_RATE = 3e-4
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
SAVE_EVERY_SECONDS = 120.0
HISTORY_POINTS = 50


class ProgressReward(gym.Wrapper):
    """Rewards each step with the decrease of `info["distance"]`, besides the task's own reward."""

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


def train(task: Task, seed: int, checkpoint: Path) -> tuple[ActorCriticPolicy, dict[str, Any]]:
    """Trains a task's expert, or goes on where the checkpoint stands.

    A checkpoint is written at least every `SAVE_EVERY_SECONDS` (and one rollout). The environments
    are not part of it: after an interruption their episodes begin anew, from other random numbers,
    so that only an uninterrupted run is reproducible to the bit.

    Args:
        task: A task whose expert is a `LearnedExpert`.
        seed: Seeds weights, environments and sampling.
        checkpoint: Where to save; left there at the end, so that a second call returns at once.

    Returns:
        The policy, with the statistics of its observations inside and no critic, and a record of
        the training: `timesteps`, `seconds` (without the pauses), `interruptions`, `history`.

    Raises:
        ValueError: If the task's expert is not learned.
        CheckpointError: If the checkpoint is damaged or that of other settings.
    """
    expert = task.expert
    if not isinstance(expert, LearnedExpert):
        raise ValueError(f"task: the expert of {task.name!r} is scripted, there is none to train.")
    model = _make_model(task, expert, seed)
    record = {"timesteps": 0, "seconds": 0.0, "interruptions": 0, "history": []}
    settings = {"task": task.name, "seed": seed, "expert": _settings(expert)}
    saver = _Saver(model, checkpoint, settings, record, expert.timesteps)
    if checkpoint.exists():
        saver.load()
    remaining = expert.timesteps - model.num_timesteps
    if remaining > 0:
        model.learn(
            remaining, callback=saver, reset_num_timesteps=False, progress_bar=True, log_interval=1
        )
        saver.save()
    policy = actor_of(model)
    _normalized_env(model).close()
    return policy, record


def _make_model(task: Task, expert: LearnedExpert, seed: int) -> PPO:
    def make_env() -> gym.Env:
        env = gym.make(task.env_id)
        if expert.progress_reward:
            return Monitor(ProgressReward(env), info_keywords=("is_success",))
        return Monitor(env)

    settings = {"gamma": 0.99, "n_epochs": 10, **expert.ppo}
    venv = DummyVecEnv([make_env] * expert.n_envs)
    return PPO(
        "MlpPolicy",
        VecNormalize(venv, gamma=settings["gamma"]),
        learning_rate=_falling,
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


def _normalized_env(model: BaseAlgorithm) -> VecNormalize:
    venv = model.get_vec_normalize_env()
    assert venv is not None
    return venv


def _falling(progress_remaining: float) -> float:
    return LEARNING_RATE * progress_remaining


def actor_of(model: PPO) -> ActorCriticPolicy:
    """Gives a policy of the actor alone that needs no `VecNormalize` around the environment.

    Args:
        model: PPO whose policy extracts `StandardizedFeatures`, in a `VecNormalize`.

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


class _Saver(BaseCallback):
    """Saves now and then between two rollouts, and keeps the record of the training."""

    def __init__(
        self,
        model: PPO,
        path: Path,
        settings: dict[str, Any],
        record: dict[str, Any],
        timesteps: int,
    ) -> None:
        super().__init__()
        self.model = model
        self._path = path
        self._settings = settings
        self._record = record
        self._point_every = timesteps / HISTORY_POINTS
        self._seconds_before = 0.0
        self._began = self._saved = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        # The update has just ended: weights, optimiser and statistics belong together.
        history = self._record["history"]
        if self.num_timesteps >= self._point_every * (len(history) + 1):
            history.append(self._point())
        if time.perf_counter() - self._saved > SAVE_EVERY_SECONDS:
            self.save()

    def _point(self) -> dict[str, float]:
        episodes = list(self.model.ep_info_buffer or ())
        point: dict[str, float] = {"timesteps": self.num_timesteps}
        for name, key in (("return", "r"), ("success_rate", "is_success")):
            values = [episode[key] for episode in episodes if key in episode]
            if values:
                point[name] = round(float(np.mean(values)), 3)
        return point

    def save(self) -> None:
        """Writes the checkpoint."""
        model, venv = self.model, _normalized_env(self.model)
        self._saved = time.perf_counter()
        self._record["timesteps"] = model.num_timesteps
        self._record["seconds"] = round(self._seconds_before + self._saved - self._began, 1)
        optimizer, optimizer_content = checkpoints.optimizer_to_state(
            model.policy.optimizer, "optimizer/"
        )
        checkpoints.save_checkpoint(
            self._path,
            kind="expert",
            tensors={
                **checkpoints.module_state(model.policy, "policy/"),
                **optimizer,
                **_statistics(venv),
            },
            content={
                "settings": self._settings,
                "record": self._record,
                "optimizer": optimizer_content,
            },
        )

    def load(self) -> None:
        """Takes up the checkpoint."""
        tensors, content = checkpoints.load_checkpoint(self._path, kind="expert")
        with checkpoints.reading_content(self._path, "expert"):
            if content["settings"] != self._settings:
                raise checkpoints.CheckpointError(
                    f"it belongs to the settings {content['settings']}, found "
                    f"{self._settings}; move it away to begin anew"
                )
            checkpoints.load_module_state(self.model.policy, tensors, "policy/")
            checkpoints.load_optimizer_state(
                self.model.policy.optimizer, tensors, content["optimizer"], "optimizer/"
            )
            _load_statistics(_normalized_env(self.model), tensors)
            for name, kind in _RECORD.items():
                self._record[name] = kind(content["record"][name])
            timesteps, self._seconds_before = self._record["timesteps"], self._record["seconds"]
        self.model.num_timesteps = timesteps
        if timesteps < self._settings["expert"]["timesteps"]:
            self._record["interruptions"] += 1
            # The random numbers of before have been used up to an unknown place.
            seed = self._settings["seed"] + timesteps
            set_random_seed(seed)
            _normalized_env(self.model).seed(seed)


_RECORD = {"timesteps": int, "seconds": float, "interruptions": int, "history": list}
_RUNNING = ("obs_rms", "ret_rms")


def _statistics(venv: VecNormalize) -> dict[str, th.Tensor]:
    return {
        f"{name}/{field}": th.as_tensor(np.asarray(getattr(getattr(venv, name), field)))
        for name in _RUNNING
        for field in ("mean", "var", "count")
    }


def _load_statistics(venv: VecNormalize, tensors: dict[str, th.Tensor]) -> None:
    for name in _RUNNING:
        running: RunningMeanStd = getattr(venv, name)
        shape = np.shape(running.mean)
        for field, expected in (("mean", shape), ("var", shape), ("count", ())):
            value = tensors[f"{name}/{field}"].numpy().astype(np.float64)
            if value.shape != expected:
                raise ValueError(f"{name}/{field} has the shape {value.shape}, expected {expected}")
            setattr(running, field, value if field != "count" else float(value))


def _settings(expert: LearnedExpert) -> dict[str, Any]:
    """Gives what training depends on, as it comes back from JSON."""
    settings = dataclasses.asdict(dataclasses.replace(expert, ppo=dict(expert.ppo)))
    del settings["summary"]
    settings["net_arch"] = list(expert.net_arch)
    return settings
