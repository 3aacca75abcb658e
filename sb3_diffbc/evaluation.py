"""Evaluation over episodes that are fixed by their seeds, the same for every policy."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import tqdm
from gymnasium.envs.registration import EnvSpec
from scipy import stats
from stable_baselines3.common import policies, vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_diffbc.critic.encoder import channels_first_space
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
    video_folder: str | os.PathLike[str] | None = None,
    n_videos: PositiveInt = 1,
) -> EvaluationResult:
    """Runs a policy for ``n_episodes`` episodes whose resets are seeded one by one.

    Episode i starts from ``env.reset(seed=seed + i)``, so every policy gets the same episodes
    whatever it does in them. For an id or a spec, copies of the environment run side by side; a
    given environment runs one episode after the other. A ``VecEnv`` resets by itself: its
    episodes are only as reproducible as its own seeding, and ``seed`` goes to ``VecEnv.seed``.
    The statistics of a ``VecNormalize`` stay as they are, and returns are in the environment's own
    rewards.

    Args:
        policy: an SB3 policy.
        env: environment id, spec, environment, or ``VecEnv``.
        n_episodes: number of episodes.
        seed: seed of the first episode.
        deterministic: whether to take the policy's mode rather than a sample.
        n_parallel: largest number of copies of the environment.
        keep_observations: whether to return the observations (not for Dict observations).
        progress_bar: whether to show finished episodes.
        video_folder: where to write videos, ``episode-SEED.mp4`` each (not for a ``VecEnv``). Needs
            ``imageio[ffmpeg]``, and an environment that renders as ``"rgb_array"``.
        n_videos: of how many episodes, from the first one on.

    Returns:
        The scores, in the order of the seeds.

    Raises:
        ValueError: if a number is below 1, the environment has other spaces than the policy or
            does not render as the videos need it, or a reward or an observation is NaN or
            infinite; the message names episode and step.
        TypeError: if an argument has another type.
        ModuleNotFoundError: if a package that the videos need is missing.
    """
    numbers = {"n_episodes": n_episodes, "n_parallel": n_parallel, "n_videos": n_videos}
    checked_arguments(evaluate_episodes, numbers)
    videos = None if video_folder is None else _Videos(pathlib.Path(video_folder), n_videos)
    if isinstance(env, vec_env.VecEnv):
        if videos is not None:
            raise ValueError("video_folder: a VecEnv is given, wrap it in SB3's VecVideoRecorder.")
        check_spaces(policy, env)
        return _evaluate_vec_env(policy, env, n_episodes, seed, deterministic)
    if isinstance(env, gym.Env):
        # Its spec may not tell of every wrapper, so it is not copied.
        envs, own = [env], []
    elif isinstance(env, str | EnvSpec):
        options: dict[str, Any] = {} if videos is None else {"render_mode": "rgb_array"}
        envs = own = [make_env(env, **options) for _ in range(min(n_parallel, n_episodes))]
    else:
        raise TypeError(
            f"env is a {type(env).__name__}: expected an environment id, an EnvSpec, a "
            "gymnasium.Env or a VecEnv."
        )
    seeds = tuple(range(seed, seed + n_episodes))
    try:
        check_spaces(policy, envs[0])
        if videos is not None:
            videos.check(envs[0])
        with tqdm.tqdm(
            total=n_episodes, desc="evaluate", unit="episode", disable=not progress_bar
        ) as progress:
            episodes = _run(
                policy, envs, seeds, deterministic, progress.update, videos, keep_observations
            )
    finally:
        for copy in own:
            copy.close()
    return EvaluationResult(
        returns=np.array([episode.total for episode in episodes]),
        lengths=np.array([episode.n_steps for episode in episodes]),
        successes=_all_successes([episode.success for episode in episodes]),
        seeds=seeds,
        observations=tuple(np.stack(e.observations) for e in episodes)
        if keep_observations
        else None,
    )


@dataclasses.dataclass
class _Episode:
    """An episode under way."""

    env: gym.Env
    name: str
    observations: list[Any]  # all of them, or the last one
    writer: Any = None
    n_steps: int = 0
    total: float = 0.0
    success: bool | None = None

    def look(self, reward: float = 0.0) -> None:
        """Checks what the environment just gave, and films it."""
        where = f"{self.name}, step {self.n_steps}"
        _check_finite(self.observations[-1], reward, where)
        if self.writer is not None:
            self.writer.append_data(self.env.render())


def success_of(info: dict[str, Any]) -> bool | None:
    """Returns whether an episode that ended with ``info`` succeeded; None if it does not say."""
    return bool(info["is_success"]) if "is_success" in info else None


def _all_successes(successes: list[bool | None]) -> np.ndarray | None:
    """Returns the episodes' successes; None if the environment does not say all of them."""
    return None if None in successes else np.array(successes, dtype=bool)


def _check_finite(observation: Any, reward: float, where: str) -> None:
    parts = observation if isinstance(observation, dict) else {"observation": observation}
    for name, value in {"reward": reward, **parts}.items():
        numbers = np.asarray(value)
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            worst = numbers[~np.isfinite(numbers)].flat[0]
            raise ValueError(f"{where}: {name} has {worst}, expected finite numbers.")


class _Videos:
    """Writers of the first episodes' videos."""

    def __init__(self, folder: pathlib.Path, n_episodes: int) -> None:
        try:
            import imageio.v2
            import imageio_ffmpeg  # noqa: F401  # which imageio uses
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"video_folder: videos need the package {error.name}: "
                "pip install 'imageio[ffmpeg]'",
                name=error.name,
            ) from error
        self._open = imageio.v2.get_writer
        self._folder, self._n_left = folder, n_episodes

    def check(self, env: gym.Env) -> None:
        if env.render_mode != "rgb_array":
            raise ValueError(
                f"video_folder: env renders as {env.render_mode!r}, expected 'rgb_array': give "
                "its id, or render_mode='rgb_array' to gymnasium.make."
            )
        self._folder.mkdir(parents=True, exist_ok=True)

    def writer(self, env: gym.Env, seed: int) -> Any:
        """Returns a writer for an episode that starts, None if enough are filmed."""
        if self._n_left == 0:
            return None
        self._n_left -= 1
        # Macro blocks of 2 keep the picture's size, which the codec wants to be even.
        return self._open(
            self._folder / f"episode-{seed}.mp4",
            fps=env.metadata.get("render_fps", 30),
            macro_block_size=2,
        )


def _run(
    policy: policies.BasePolicy,
    envs: Sequence[gym.Env],
    seeds: Sequence[int],
    deterministic: bool,
    on_finished: Callable[[int], object],
    videos: _Videos | None,
    keep_observations: bool,
) -> list[_Episode]:
    """Steps all environments in lockstep with one forward pass for all of them."""
    episodes: list[_Episode] = []

    def start(env: gym.Env) -> _Episode:
        number = len(episodes)
        observation, _ = env.reset(seed=seeds[number])
        writer = None if videos is None else videos.writer(env, seeds[number])
        name = f"episode {number} (seed {seeds[number]})"
        episodes.append(_Episode(env, name, [observation], writer))
        episodes[-1].look()
        return episodes[-1]

    running = [start(env) for env in envs]
    while running:
        observations = stacked([episode.observations[-1] for episode in running])
        actions, _ = policy.predict(observations, deterministic=deterministic)
        still_running = []
        for episode, action in zip(running, actions, strict=True):
            observation, reward, terminated, truncated, info = episode.env.step(action)
            if not keep_observations:
                episode.observations.clear()
            episode.observations.append(observation)
            episode.n_steps += 1
            episode.total += float(reward)
            episode.look(float(reward))
            if not (terminated or truncated):
                still_running.append(episode)
                continue
            episode.success = success_of(info)
            if episode.writer is not None:
                episode.writer.close()
            on_finished(1)
            if len(episodes) < len(seeds):
                still_running.append(start(episode.env))
        running = still_running
    return episodes


def stacked(observations: list[Any]) -> Any:
    """Joins observations, or mappings of them, along a new first axis."""
    if isinstance(observations[0], dict):
        return {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)


class _CheckedVecEnv(vec_env.VecEnvWrapper):
    """Refuses rewards and observations that are not finite."""

    def reset(self) -> vec_env.base_vec_env.VecEnvObs:
        observations = self.venv.reset()
        self._episodes = np.zeros(self.num_envs, dtype=int)
        self._steps = np.zeros(self.num_envs, dtype=int)
        self._check(observations, np.zeros(self.num_envs))
        return observations

    def step_wait(self) -> vec_env.base_vec_env.VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        self._steps += 1
        for i in np.flatnonzero(dones):
            # The observation is that of the next episode already.
            _check_finite(infos[i].get("terminal_observation"), rewards[i], self._where(i))
        self._steps[dones] = 0
        self._episodes += dones
        self._check(observations, np.where(dones, 0.0, rewards))
        return observations, rewards, dones, infos

    def _where(self, i: int) -> str:
        return f"environment {i}, its episode {self._episodes[i]}, step {self._steps[i]}"

    def _check(self, observations: Any, rewards: np.ndarray) -> None:
        # VecNormalize clips infinite observations.
        normalized = vec_env.unwrap_vec_normalize(self.venv)
        if normalized is not None:
            observations = normalized.get_original_obs()
        is_dict = isinstance(observations, dict)
        for i, reward in enumerate(rewards):
            own = {k: v[i] for k, v in observations.items()} if is_dict else observations[i]
            _check_finite(own, reward, self._where(i))


@contextlib.contextmanager
def _frozen(env: vec_env.VecEnv) -> Iterator[None]:
    """Has every ``VecNormalize`` keep its statistics and pass rewards on."""
    layers, layer = [], env
    while isinstance(layer, vec_env.VecEnvWrapper):
        if isinstance(layer, vec_env.VecNormalize):
            layers.append((layer, layer.training, layer.norm_reward))
            layer.training = layer.norm_reward = False
        layer = layer.venv
    try:
        yield
    finally:
        for normalize, training, norm_reward in layers:
            normalize.training, normalize.norm_reward = training, norm_reward


def _evaluate_vec_env(
    policy: policies.BasePolicy,
    env: vec_env.VecEnv,
    n_episodes: int,
    seed: int,
    deterministic: bool,
) -> EvaluationResult:
    successes: list[bool | None] = []

    def note_success(local: dict[str, Any], _: dict[str, Any]) -> None:
        if local["done"]:
            successes.append(success_of(local["info"]))

    env.seed(seed)
    with _frozen(env):
        returns, lengths = evaluate_policy(
            policy,
            _CheckedVecEnv(env),
            n_eval_episodes=n_episodes,
            deterministic=deterministic,
            return_episode_rewards=True,
            callback=note_success,
            warn=False,
        )
    return EvaluationResult(
        returns=np.array(returns),
        lengths=np.array(lengths),
        successes=_all_successes(successes),
    )


def check_spaces(policy: policies.BasePolicy, env: gym.Env | vec_env.VecEnv) -> None:
    """Checks that an environment has a policy's spaces; images may be channels last.

    Raises:
        ValueError: if it has others.
    """
    for name in ("observation_space", "action_space"):
        found, expected = getattr(env, name), getattr(policy, name)
        if expected not in (found, channels_first_space(found)):
            raise ValueError(f"env.{name} is {found}: expected the policy's, {expected}.")


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
