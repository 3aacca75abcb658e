"""What a trainer offers when the policy is trained."""

import os
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common import policies, vec_env

from sb3_diffbc import export, rl
from sb3_diffbc.evaluation import Env, EvaluationResult, evaluate_episodes


class AfterTraining:
    """The part of :class:`DiffusionBC` that uses the policy.

    Attributes:
        policy: the policy.
        env: the constructor's environment, if there was one.
    """

    policy: policies.ActorCriticPolicy
    env: str | gym.Env | vec_env.VecEnv | None

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Returns the policy's actions and ``state``, as ``predict`` of an SB3 policy does."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def evaluate(
        self, n_episodes: int = 100, *, env: Env | None = None, **kwargs: Any
    ) -> EvaluationResult:
        """Runs the policy for episodes that are fixed by their seeds.

        Args:
            n_episodes: number of episodes.
            env: where; the constructor's environment if None.
            **kwargs: further arguments of :func:`evaluate_episodes`, such as ``seed``,
                ``deterministic``, ``progress_bar`` and ``video_folder``.

        Returns:
            Returns, lengths and successes per episode.

        Raises:
            ValueError: if there is no environment, and as :func:`evaluate_episodes` does.
        """
        env = self._env("evaluate", env)
        return evaluate_episodes(self.policy, env, n_episodes=n_episodes, **kwargs)

    def to_rl(
        self,
        algorithm: type[rl.AlgorithmT],
        env: str | gym.Env | vec_env.VecEnv | None = None,
        **kwargs: Any,
    ) -> rl.AlgorithmT:
        """Makes an SB3 algorithm, such as PPO, that goes on from the cloned policy.

        Args:
            algorithm: ``PPO``, ``A2C``, or ``TRPO`` of sb3-contrib.
            env: where to learn; the constructor's environment if None.
            **kwargs: further arguments of :func:`sb3_diffbc.to_rl` and of the algorithm.

        Returns:
            The algorithm, whose actor is a copy of the policy.

        Raises:
            ValueError: if there is no environment, and as :func:`sb3_diffbc.to_rl` does.
            TypeError: as :func:`sb3_diffbc.to_rl` does.
        """
        return rl.to_rl(self.policy, algorithm, self._env("to_rl", env), **kwargs)

    def export_onnx(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the policy as an ONNX model; see :func:`sb3_diffbc.export_onnx`.

        Args:
            path: where to; ``.onnx`` is appended if there is no suffix.

        Returns:
            The path written.
        """
        return export.export_onnx(self.policy, path)

    def _env(self, method: str, env: Any) -> Any:
        env = self.env if env is None else env
        if env is None:
            raise ValueError(f"env is missing: give it to {method} or to the constructor.")
        return env
