"""PPO in the training environment, from scratch or from a clone: what interactive methods share."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from imitation.data import types
from stable_baselines3 import PPO
from stable_baselines3.common import policies, utils, vec_env

from benchmarks.methods.base import Method, Setup, policy_config
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from sb3_diffbc import StandardizedActorPolicy, to_rl
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


class OnPolicyMethod(Method):
    """PPO on a reward that a subclass makes.

    From scratch, it has DiffusionBC's policy network with the demonstrations' statistics, beside it
    a value network of the same size, and its first spread follows the demonstrations' actions.
    From a clone, it goes on as ``DiffusionBC.to_rl`` does; the clone of a seed is that of
    ``DiffusionBCMethod`` with ``dm_coef=0``.

    Args:
        setup: demonstrations, spaces, seed and training environment.
        n_env_steps: environment steps; whole rollouts of PPO are made.
        from_clone: whether to start from a clone.
        clone_updates: its gradient updates.
        ppo: what differs from ``PPO_SETTINGS``.

    Raises:
        TypeError: for Dict observations.
        ValueError: if there are fewer environment steps than a rollout has.
    """

    is_interactive = True

    def __init__(
        self,
        setup: Setup,
        *,
        n_env_steps: int = 100_000,
        from_clone: bool = False,
        clone_updates: int = 10_000,
        ppo: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(setup)
        if isinstance(setup.observation_space, spaces.Dict):
            raise TypeError("imitation's adversarial trainers do not take Dict observations.")
        assert setup.training_env is not None  # every problem has one
        self.demonstrations = executed(setup.demonstrations, setup.action_space)
        self.ppo_settings = {**PPO_SETTINGS, **ppo}
        self.rollout_steps = N_ENVS * self.ppo_settings["n_steps"]
        self.length = n_env_steps // self.rollout_steps
        if not self.length:
            raise ValueError(
                f"n_env_steps: found {n_env_steps}, expected at least {self.rollout_steps}, those "
                "of one round."
            )
        self.clone: DiffusionBCMethod | None = None
        if from_clone:
            self.clone = DiffusionBCMethod(
                setup, n_updates=clone_updates, dm_coef=0.0, bc_loss="nll"
            )
        env = setup.training_env
        utils.set_random_seed(setup.seed)
        self.venv = vec_env.DummyVecEnv([lambda: gym.make(env)] * N_ENVS)
        self.ppo = self.make_ppo(self.venv)
        self.config = {
            "interactive_steps": self.length * self.rollout_steps,
            "n_envs": N_ENVS,
            "ppo": self.ppo_settings,
            "policy": {**policy_config(self.ppo.policy), "log_std_init": LOG_STD_INIT},
            "expert actions": "clipped to the action space, as the environment executes them",
        }
        if self.clone is not None:
            self.config["policy"]["log_std_init"] = "the clone's"
            self.config["clone"] = self.clone.config

    @property
    def policy(self) -> policies.BasePolicy:
        """As the base class says."""
        return self.ppo.policy

    def make_ppo(self, venv: vec_env.VecEnv, **kwargs: Any) -> PPO:
        """Makes PPO, with the clone as it is or from scratch.

        Args:
            venv: where it learns.
            **kwargs: further arguments of ``to_rl``.
        """
        common = {"seed": self.setup.seed, "device": "cpu", **self.ppo_settings}
        if self.clone is not None:
            return to_rl(self.clone.trainer.policy, PPO, venv, **kwargs, **common)
        ppo = PPO(
            StandardizedActorPolicy,
            venv,
            policy_kwargs={
                "net_arch": {"pi": list(DEFAULT_NET_ARCH), "vf": list(DEFAULT_NET_ARCH)},
                "log_std_init": LOG_STD_INIT,
            },
            **common,
        )
        encoder = PairEncoder(self.setup.observation_space, self.setup.action_space)
        policy = cast(StandardizedActorPolicy, ppo.policy)
        policy.set_statistics(encoder.fit(self.demonstrations.obs, self.demonstrations.acts))
        return ppo

    @abc.abstractmethod
    def learn(self, on_round_end: Callable[[], None]) -> None:
        """Sets ``ppo`` up, from the clone now that it is trained, and has it learn.

        Args:
            on_round_end: called after each of ``length`` rollouts and what is learnt from it.
        """

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""
        cloned = 0
        if self.clone is not None:
            phase = self.clock.switch("clone")
            self.clone.train(lambda: None)
            self.clock.switch(phase)
            cloned = self.clone.updates
        batches = -(-self.rollout_steps // self.ppo_settings["batch_size"])

        def on_round_end() -> None:
            self.env_steps += self.rollout_steps
            # PPO counts epochs, which a limit on the divergence can end early.
            self.updates = cloned + self.ppo._n_updates * batches
            on_progress()

        self.learn(on_round_end)
        self.venv.close()

    def further_policies(self) -> dict[str, policies.BasePolicy]:
        """The clone, where there is one."""
        return {} if self.clone is None else {"clone": self.clone.policy}


def executed(demonstrations: types.Transitions, action_space: gym.Space) -> types.Transitions:
    """The demonstrations with their actions as the environment executes them.

    PPO's are clipped too: a discriminator would tell the others by their size.
    """
    if not isinstance(action_space, spaces.Box):
        return demonstrations
    acts = np.clip(demonstrations.acts, action_space.low, action_space.high)
    return dataclasses.replace(demonstrations, acts=acts)
