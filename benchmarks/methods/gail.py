"""GAIL and AIRL of imitation, with PPO as generator."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from imitation.algorithms.adversarial.airl import AIRL
from imitation.algorithms.adversarial.common import AdversarialTrainer
from imitation.algorithms.adversarial.gail import GAIL
from imitation.data import types
from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet, RewardNet
from imitation.util import logger as imit_logger
from imitation.util.networks import RunningNorm
from stable_baselines3 import PPO
from stable_baselines3.common import policies, utils
from stable_baselines3.common.vec_env import DummyVecEnv

from benchmarks.methods.base import Method, Setup, Variant, policy_config
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


class Adversarial(Method):
    """An adversarial trainer of imitation with PPO.

    The generator has DiffusionBC's policy network with the demonstrations' statistics, beside it a
    value network of the same size. Its first spread follows the demonstrations' actions.

    Args:
        setup: demonstrations, spaces, seed and training environment.
        trainer: the trainer's class.
        reward_net: class of what the trainer learns as reward.
        hidden: sizes of the reward network's hidden layers by argument of its class.
        n_env_steps: environment steps; whole rounds of PPO are made.

    Raises:
        TypeError: for Dict observations.
        ValueError: if there are fewer environment steps than a round has.
    """

    is_interactive = True
    quick: ClassVar[Mapping[str, Any]] = {"n_env_steps": 2_048}

    def __init__(
        self,
        setup: Setup,
        *,
        trainer: type[AdversarialTrainer],
        reward_net: Callable[..., RewardNet],
        hidden: Mapping[str, tuple[int, ...]],
        n_env_steps: int = 100_000,
    ) -> None:
        super().__init__(setup)
        if isinstance(setup.observation_space, spaces.Dict):
            raise TypeError("imitation's adversarial trainers do not take Dict observations.")
        assert setup.training_env is not None  # every problem has one
        demonstrations = _executed(setup.demonstrations, setup.action_space)
        utils.set_random_seed(setup.seed)
        env = setup.training_env
        self._venv = DummyVecEnv([lambda: gym.make(env)] * N_ENVS)
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
        network = reward_net(
            setup.observation_space,
            setup.action_space,
            **hidden,
            normalize_input_layer=RunningNorm,
        )
        self._trainer = trainer(
            demonstrations=demonstrations,
            venv=self._venv,
            gen_algo=self._ppo,
            reward_net=network,
            custom_logger=imit_logger.configure(format_strs=[]),
            allow_variable_horizon=True,
            **discriminator,
        )
        self._round_steps = self._trainer.gen_train_timesteps
        self.length = n_env_steps // self._round_steps
        if not self.length:
            raise ValueError(
                f"n_env_steps: found {n_env_steps}, expected at least {self._round_steps}, those "
                "of one round."
            )
        self.config = {
            "interactive_steps": self.length * self._round_steps,
            "n_envs": N_ENVS,
            "ppo": dict(PPO_SETTINGS),
            "policy": {**policy_config(self._ppo.policy), "log_std_init": LOG_STD_INIT},
            "discriminator": discriminator,
            "reward_net": {
                "class": type(network).__name__,
                **hidden,
                "normalize_input_layer": RunningNorm.__name__,
            },
            "allow_variable_horizon": True,
            "expert actions": "clipped to the action space, as the environment executes them",
        }

    @property
    def policy(self) -> policies.BasePolicy:
        """As the base class says."""
        return self._ppo.policy

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""
        batches = -(-self._round_steps // PPO_SETTINGS["batch_size"])

        def on_round_end(_: int) -> None:
            self.env_steps += self._round_steps
            self.updates += PPO_SETTINGS["n_epochs"] * batches
            on_progress()

        # imitation's progress bar cannot be turned off.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            self._trainer.train(self.length * self._round_steps, on_round_end)
        self._venv.close()


def _executed(demonstrations: types.Transitions, action_space: gym.Space) -> types.Transitions:
    """The demonstrations with their actions as the environment executes them.

    PPO's are clipped too: a discriminator would tell the others by their size.
    """
    if not isinstance(action_space, spaces.Box):
        return demonstrations
    acts = np.clip(demonstrations.acts, action_space.low, action_space.high)
    return dataclasses.replace(demonstrations, acts=acts)


VARIANTS = (
    Variant(
        "gail",
        Adversarial,
        {"trainer": GAIL, "reward_net": BasicRewardNet, "hidden": {"hid_sizes": (32, 32)}},
        "GAIL",
    ),
    Variant(
        "airl",
        Adversarial,
        {
            "trainer": AIRL,
            "reward_net": BasicShapedRewardNet,
            "hidden": {"reward_hid_sizes": (32, 32), "potential_hid_sizes": (32, 32)},
        },
        "AIRL",
    ),
)
