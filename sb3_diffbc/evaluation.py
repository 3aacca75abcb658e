"""Evaluation over episodes that are fixed by their seeds, the same for every policy."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import tqdm
from gymnasium.envs.registration import EnvSpec
from scipy import stats
from stable_baselines3.common import policies, vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffbc.envs import make_env
from sb3_diffbc.schema import PositiveInt, checked_arguments

Env = str | EnvSpec | gym.Env | vec_env.VecEnv


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """Scores of a policy, one entry per episode.

    Attributes:
        returns: undiscounted returns, shape ``(n_episodes,)``.
        lengths: steps, shape ``(n_episodes,)``.
        successes: whether ``info["is_success"]`` was true in the last step, shape
            ``(n_episodes,)``; None if the environment does not say.
        seeds: of each episode's reset; None for a ``VecEnv``, which resets by itself.
        observations: what was seen, ``(length + 1, *obs_shape)`` per episode, if asked for.
    """

    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray | None
    seeds: tuple[int, ...] | None = None
    observations: tuple[np.ndarray, ...] | None = None

    @property
    def success_rate(self) -> float | None:
        """The share of successful episodes; None if the environment does not report success."""
        return None if self.successes is None else float(self.successes.mean())

    def success_interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Returns Wilson's interval (Wilson, 1927) of the success rate over episodes.

        None if the environment does not report success, or for a single episode.
        """
        if self.successes is None or len(self.successes) < 2:
            return None
        test = stats.binomtest(int(self.successes.sum()), len(self.successes))
        interval = test.proportion_ci(confidence, method="wilson")
        return float(interval.low), float(interval.high)

    def return_interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Returns Student's interval of the mean return over episodes; None for a single one."""
        if len(self.returns) < 2:
            return None
        if np.ptp(self.returns) == 0:
            return float(self.returns[0]), float(self.returns[0])
        low, high = stats.t.interval(
            confidence,
            len(self.returns) - 1,
            loc=self.returns.mean(),
            scale=stats.sem(self.returns),
        )
        return float(low), float(high)

    def __str__(self) -> str:
        def text(name: str, value: float, interval: tuple[float, float] | None, form: str) -> str:
            bounds = "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"
            return f"{name} {value:{form}}{bounds}"

        parts = [text("return", self.returns.mean(), self.return_interval(), ".2f")]
        if self.success_rate is not None:
            parts.insert(0, text("success", self.success_rate, self.success_interval(), ".1%"))
        n = len(self.returns)
        over = "one episode, no interval" if n == 1 else f"{n} episodes (95 % intervals)"
        return f"{', '.join(parts)} over {over}"


def evaluate_episodes(
    policy: policies.BasePolicy,
    env: Env,
    *,
    n_episodes: PositiveInt = 100,
    seed: int = 0,
    deterministic: bool = True,
    n_parallel: PositiveInt = 25,
    keep_observations: bool = False,
    progress_bar: bool = False,
) -> EvaluationResult:
    """Runs a policy for ``n_episodes`` episodes whose resets are seeded one by one.

    Episode i starts from ``env.reset(seed=seed + i)``, so every policy gets the same episodes
    whatever it does in them. For an id or a spec, copies of the environment run side by side; a
    given environment runs one episode after the other. A ``VecEnv`` resets by itself: its
    episodes are only as reproducible as its own seeding, and ``seed`` goes to ``VecEnv.seed``.

    Args:
        policy: an SB3 policy.
        env: environment id, spec, environment, or ``VecEnv``.
        n_episodes: number of episodes.
        seed: seed of the first episode.
        deterministic: whether to take the policy's mode rather than a sample.
        n_parallel: largest number of copies of the environment.
        keep_observations: whether to return the observations (not for Dict observations).
        progress_bar: whether to show finished episodes.

    Returns:
        The scores, in the order of the seeds.

    Raises:
        ValueError: if ``n_episodes`` or ``n_parallel`` is below 1.
        TypeError: if an argument has another type.
    """
    checked_arguments(evaluate_episodes, {"n_episodes": n_episodes, "n_parallel": n_parallel})
    if isinstance(env, vec_env.VecEnv):
        return _evaluate_vec_env(policy, env, n_episodes, seed, deterministic)
    if isinstance(env, gym.Env):
        # Its spec may not tell of every wrapper, so it is not copied.
        envs, own = [env], []
    elif isinstance(env, str | EnvSpec):
        envs = own = [make_env(env) for _ in range(min(n_parallel, n_episodes))]
    else:
        raise TypeError(
            f"env is a {type(env).__name__}: expected an environment id, an EnvSpec, a "
            "gymnasium.Env or a VecEnv."
        )
    seeds = tuple(range(seed, seed + n_episodes))
    try:
        with tqdm.tqdm(
            total=n_episodes, desc="evaluate", unit="episode", disable=not progress_bar
        ) as progress:
            episodes = _run(policy, envs, seeds, deterministic, progress.update)
    finally:
        for copy in own:
            copy.close()
    successes = [episode.success for episode in episodes]
    return EvaluationResult(
        returns=np.array([episode.total for episode in episodes]),
        lengths=np.array([len(episode.observations) - 1 for episode in episodes]),
        successes=None if None in successes else np.array(successes, dtype=bool),
        seeds=seeds,
        observations=tuple(np.stack(e.observations) for e in episodes)
        if keep_observations
        else None,
    )


@dataclasses.dataclass
class _Episode:
    """An episode under way."""

    env: gym.Env
    observations: list[Any]
    total: float = 0.0
    success: bool | None = None


def _run(
    policy: policies.BasePolicy,
    envs: Sequence[gym.Env],
    seeds: Sequence[int],
    deterministic: bool,
    on_finished: Callable[[int], object],
) -> list[_Episode]:
    """Steps all environments in lockstep with one forward pass for all of them."""
    episodes: list[_Episode] = []

    def start(env: gym.Env) -> _Episode:
        observation, _ = env.reset(seed=seeds[len(episodes)])
        episodes.append(_Episode(env, [observation]))
        return episodes[-1]

    running = [start(env) for env in envs]
    while running:
        observations = _stack([episode.observations[-1] for episode in running])
        actions, _ = policy.predict(observations, deterministic=deterministic)
        still_running = []
        for episode, action in zip(running, actions, strict=True):
            observation, reward, terminated, truncated, info = episode.env.step(action)
            episode.observations.append(observation)
            episode.total += float(reward)
            if not (terminated or truncated):
                still_running.append(episode)
                continue
            episode.success = bool(info["is_success"]) if "is_success" in info else None
            on_finished(1)
            if len(episodes) < len(seeds):
                still_running.append(start(episode.env))
        running = still_running
    return episodes


def _stack(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)


def _evaluate_vec_env(
    policy: policies.BasePolicy,
    env: vec_env.VecEnv,
    n_episodes: int,
    seed: int,
    deterministic: bool,
) -> EvaluationResult:
    successes: list[bool] = []

    def note_success(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"] and "is_success" in local["info"]:
            successes.append(bool(local["info"]["is_success"]))

    env.seed(seed)
    returns, lengths = evaluate_policy(
        policy,
        env,
        n_eval_episodes=n_episodes,
        deterministic=deterministic,
        return_episode_rewards=True,
        callback=note_success,
        warn=False,
    )
    return EvaluationResult(
        returns=np.array(returns),
        lengths=np.array(lengths),
        successes=np.array(successes, dtype=bool) if successes else None,
    )


def resolve_spaces(
    env: Any, observation_space: gym.Space | None, action_space: gym.Space | None
) -> tuple[gym.Space, gym.Space]:
    """Returns the two spaces, from ``env`` or as given; they must agree where both are there."""
    spaces = {"observation_space": observation_space, "action_space": action_space}
    if env is None:
        if observation_space is None or action_space is None:
            missing = next(name for name, space in spaces.items() if space is None)
            raise ValueError(f"{missing} is missing: give it, or env.")
        return observation_space, action_space
    if not isinstance(env, str | gym.Env | vec_env.VecEnv):
        raise TypeError(
            f"env is a {type(env).__name__}: expected an environment id, a gymnasium.Env or a "
            "VecEnv."
        )
    made = make_env(env) if isinstance(env, str) else env
    for name, space in spaces.items():
        if space is not None and space != getattr(made, name):
            raise ValueError(f"{name} is {space}, but env has {getattr(made, name)}.")
    if isinstance(env, str):
        made.close()
    return made.observation_space, made.action_space
