"""PPO with the frozen critic as its reward, and with a constant one in its place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from imitation.rewards.reward_function import RewardFn
from imitation.rewards.reward_wrapper import RewardVecEnvWrapper
from stable_baselines3.common import policies
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from benchmarks.methods.base import Setup, undisturbed_randomness
from benchmarks.methods.on_policy import N_ENVS, OnPolicyMethod
from sb3_diffbc import CriticReward, DiffusionCritic, evaluate_episodes
from sb3_diffbc.reward import OFFSETS
from sb3_diffbc.tasks import Metric, find_task

BIASES: Mapping[Metric, Literal["survival", "termination"]] = MappingProxyType(
    {"success": "termination", "return": "survival"}
)
"""Tasks with a goal end at it; of the others, Walker ends by a fall and Cheetah never early."""

MEASURED_EPISODES = 50
_FIRST_MEASURED_SEED = 600_000


class CriticRewardMethod(OnPolicyMethod):
    """PPO with ``CriticReward``, scaled by ``VecNormalize``.

    Args:
        setup: as in the base class, with a task of ``sb3_diffbc.tasks``.
        reward: ``"critic"``, or ``"constant"``: one half for every pair plus the same offset,
            which shows what the ends of episodes alone tell.
        temperature: of ``CriticReward``.
        critic_kwargs: of the critic of p(s, a).
        value_timesteps: of ``to_rl``, from a clone; they count as environment steps, and are whole
            rollouts.
        measured_episodes: on which the reward of the first and the last policy is measured.
        **arguments: of the base class.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        reward: Literal["critic", "constant"] = "critic",
        temperature: float = 1.0,
        critic_kwargs: Mapping[str, Any] = MappingProxyType({}),
        value_timesteps: int = 0,
        measured_episodes: int = MEASURED_EPISODES,
        **arguments: Any,
    ) -> None:
        super().__init__(setup, **arguments)
        self.bias = BIASES[find_task(setup.task).metric]
        self.reward, self.temperature = reward, temperature
        self.value_timesteps = value_timesteps if self.clone is not None else 0
        self.length -= -(-self.value_timesteps // self.rollout_steps)
        if self.length < 1:
            raise ValueError(
                f"n_env_steps: found too few for value_timesteps={value_timesteps} and a rollout "
                f"of {self.rollout_steps}."
            )
        self.measured_episodes = measured_episodes
        # Its weights are drawn, and the pair of this method must not notice.
        with undisturbed_randomness():
            self.critic = DiffusionCritic(
                **setup.spaces,
                models="state_action",
                seed=setup.seed,
                device="cpu",
                **critic_kwargs,
            )
        self.config |= {
            "reward": reward,
            "bias": self.bias,
            "temperature": temperature,
            "critic": {k: v for k, v in self.critic.config.items() if k != "seed"},
            "value_timesteps": self.value_timesteps,
            "normalize_reward": "VecNormalize(norm_obs=False)",
        }
        self._measures: dict[str, float] = {}

    def _reward(self) -> RewardFn:
        """Fits the critic, or makes the constant reward."""
        if self.reward == "constant":
            value = np.float32(0.5 + OFFSETS[self.bias])
            return lambda state, action, next_state, done: np.full(len(action), value)
        phase = self.clock.switch("critic")
        self.critic.fit(self.demonstrations, progress_bar=False)
        reward = CriticReward(
            self.critic, self.demonstrations, bias=self.bias, temperature=self.temperature
        )
        self.clock.switch(phase)
        return reward

    def learn(self, on_round_end: Callable[[], None]) -> None:
        """As the base class says."""
        reward = self._reward()
        venv = VecNormalize(
            RewardVecEnvWrapper(self.venv, reward), norm_obs=False, gamma=self.ppo_settings["gamma"]
        )
        kwargs = {} if self.clone is None else {"value_timesteps": self.value_timesteps}
        self.ppo = self.make_ppo(venv, **kwargs)
        self._measure("first", reward)
        self.env_steps += -(-self.value_timesteps // self.rollout_steps) * self.rollout_steps
        for _ in range(self.length):
            self.ppo.learn(self.rollout_steps, reset_num_timesteps=False)
            on_round_end()
        self._measure("last", reward)

    def _measure(self, name: str, reward: RewardFn) -> None:
        """Notes what the reward says of the present policy's most likely actions."""
        phase = self.clock.switch("measures")
        self._measures |= {
            f"{key}/{name}": value
            for key, value in measured_reward(
                self.policy, reward, self.setup, self.measured_episodes
            ).items()
        }
        self.clock.switch(phase)

    def measures(self) -> dict[str, float]:
        """The reward's mean per step and sum per episode, of the first and of the last policy.

        A sum that rises while the score falls is a critic that was fooled.
        """
        return self._measures


def measured_reward(
    policy: policies.BasePolicy, reward: RewardFn, setup: Setup, n_episodes: int
) -> dict[str, float]:
    """Returns a reward's mean per step and sum per episode in the training environment."""
    env = setup.training_env
    assert env is not None
    envs = [lambda: gym.make(env)] * N_ENVS
    with undisturbed_randomness(), contextlib.closing(DummyVecEnv(envs)) as venv:
        result = evaluate_episodes(
            policy,
            RewardVecEnvWrapper(venv, reward),
            n_episodes=n_episodes,
            seed=_FIRST_MEASURED_SEED,
        )
    return {
        "reward_per_step": float(result.returns.sum() / result.lengths.sum()),
        "reward_per_episode": float(result.returns.mean()),
    }
