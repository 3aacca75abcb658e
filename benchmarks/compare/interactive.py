"""Methods that also learn in the environment: imitation's GAIL and AIRL, with PPO as generator."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from imitation.algorithms.adversarial.airl import AIRL
from imitation.algorithms.adversarial.common import AdversarialTrainer
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data import types
from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet, RewardNet
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common import policies, utils
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.compare.learners import Learner, Setup, as_json, policy_config, quiet_logger
from benchmarks.compare.phases import Phases
from sb3_diffbc import StandardizedActorPolicy
from sb3_diffbc.critic import PairEncoder
from sb3_diffbc.policies import DEFAULT_NET_ARCH

N_ENVS = 8
PPO_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "n_steps": 256,
        "batch_size": 128,
        "n_epochs": 10,
        "learning_rate": 3e-4,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "ent_coef": 0.0,
    }
)
LOG_STD_INIT = -0.5
DISCRIMINATOR: Mapping[str, Any] = MappingProxyType(
    {
        "demo_batch_size": 512,
        "n_disc_updates_per_round": 8,
        "gen_replay_buffer_capacity": 4096,
        "disc_opt_kwargs": {"lr": 1e-3},
    }
)
REWARD_NET_HIDDEN = (32, 32)


class Adversarial(Learner):
    """An adversarial trainer of imitation with PPO.

    The generator has DiffusionBC's policy network with the demonstrations' statistics, beside it a
    value network of the same size. Its first spread follows the demonstrations' actions.

    Args:
        setup: see :class:`Setup`.
        cls: the trainer.
        reward_net_cls: what the trainer learns as reward.
        **sizes: hidden layers of its parts.
    """

    def __init__(
        self,
        setup: Setup,
        cls: type[AdversarialTrainer],
        reward_net_cls: type[RewardNet],
        **sizes: tuple[int, ...],
    ) -> None:
        if isinstance(setup.observation_space, spaces.Dict):
            raise TypeError("imitation's adversarial trainers do not take Dict observations.")
        demonstrations = _executed(setup.demonstrations, setup.action_space)
        utils.set_random_seed(setup.seed)
        self._venv = DummyVecEnv([lambda: gym.make(setup.task.training_env)] * N_ENVS)
        self._ppo = PPO(
            StandardizedActorPolicy,
            self._venv,
            policy_kwargs={
                "net_arch": {"pi": list(DEFAULT_NET_ARCH), "vf": list(DEFAULT_NET_ARCH)},
                "log_std_init": LOG_STD_INIT,
            },
            seed=setup.seed,
            device="cpu",
            **PPO_SETTINGS,
        )
        encoder = PairEncoder(setup.observation_space, setup.action_space)
        policy = cast(StandardizedActorPolicy, self._ppo.policy)
        policy.set_statistics(encoder.fit(demonstrations.obs, demonstrations.acts))
        discriminator = {
            **DISCRIMINATOR,
            "demo_batch_size": min(DISCRIMINATOR["demo_batch_size"], len(demonstrations)),
        }
        make_reward_net: Callable[..., RewardNet] = reward_net_cls  # their arguments differ
        self._trainer = cls(
            demonstrations=demonstrations,
            venv=self._venv,
            gen_algo=self._ppo,
            reward_net=make_reward_net(
                setup.observation_space,
                setup.action_space,
                **sizes,
                normalize_input_layer=RunningNorm,
            ),
            custom_logger=quiet_logger(),
            allow_variable_horizon=True,
            **discriminator,
        )
        self._steps_per_round = self._trainer.gen_train_timesteps
        self.length = setup.protocol.interactive_steps // self._steps_per_round
        if not self.length:
            raise ValueError(
                f"interactive_steps={setup.protocol.interactive_steps} must be at least those of "
                f"one round, {self._steps_per_round}."
            )
        self.config = {
            "interactive_steps": self.length * self._steps_per_round,
            "n_envs": N_ENVS,
            "ppo": dict(PPO_SETTINGS),
            "policy": {**policy_config(self._ppo.policy), "log_std_init": LOG_STD_INIT},
            "discriminator": as_json(discriminator),
            "reward_net": {
                "class": reward_net_cls.__name__,
                **as_json(sizes),
                "normalize_input_layer": RunningNorm.__name__,
            },
            "allow_variable_horizon": True,
            "expert actions": "clipped to the action space, as the environment executes them",
        }

    @property
    def policy(self) -> policies.BasePolicy:
        return self._ppo.policy

    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        """As the base class says."""
        batches = -(-self._steps_per_round // PPO_SETTINGS["batch_size"])

        def on_round_end(index: int) -> None:
            self.env_steps += self._steps_per_round
            self.updates += PPO_SETTINGS["n_epochs"] * batches
            on_progress(index + 1)

        # imitation's progress bar cannot be turned off.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            self._trainer.train(self.length * self._steps_per_round, on_round_end)
        self._venv.close()


def _executed(demonstrations: types.Transitions, action_space: gym.Space) -> types.Transitions:
    """The demonstrations with their actions as the environment executes them.

    PPO's are clipped too: a discriminator would tell the others by their size.
    """
    if not isinstance(action_space, spaces.Box):
        return demonstrations
    acts = np.clip(demonstrations.acts, action_space.low, action_space.high)
    return dataclasses.replace(demonstrations, acts=acts)


def gail(setup: Setup) -> Learner:
    """GAIL."""
    return Adversarial(setup, GAIL, BasicRewardNet, hid_sizes=REWARD_NET_HIDDEN)


def airl(setup: Setup) -> Learner:
    """AIRL."""
    return Adversarial(
        setup,
        AIRL,
        BasicShapedRewardNet,
        reward_hid_sizes=REWARD_NET_HIDDEN,
        potential_hid_sizes=REWARD_NET_HIDDEN,
    )
