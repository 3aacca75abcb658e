"""Does the policy know where it is? A critic of the expert's pairs watches an agent at work."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from stable_baselines3.common import vec_env
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.critic.encoder import check_spaces_of
from sb3_diffbc.critic.score import checked_inputs
from sb3_diffbc.demonstrations import load_demonstrations
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.demonstrations.validation import Array, by_key
from sb3_diffbc.reward import check_reachable
from sb3_diffbc.schema import Fraction, PositiveInt, checked_arguments

OnAlarm = Callable[[int, int, float], object]
"""Called with the environment's index, the step within its episode from 0, and the mean."""


class Reading(NamedTuple):
    """What a monitor says of a step, or of one step in each environment.

    Attributes:
        score: how unfamiliar the pair is, :meth:`CriticMonitor.scores`.
        mean: of the scores of the last ``window`` steps; NaN in the first steps of an episode.
        alarm: whether the mean is above the threshold.
    """

    score: Any
    mean: Any
    alarm: Any


class CriticMonitor:
    """Tells when an agent does, or gets into, what the expert did not.

    The score of a pair (s, a) is L_diff of a critic of p(s, a)
    (:meth:`~sb3_diffbc.DiffusionCritic.mean_denoising_loss`): more for pairs that are less like
    the expert's. An alarm is raised while the mean score of the last ``window`` steps is above a
    threshold, which split-conformal prediction sets (Angelopoulos and Bates, 2021,
    https://arxiv.org/abs/2107.07511): of the highest means of n held-out trajectories, the
    ⌈(n + 1)(1 - rate)⌉-th smallest. If a further episode and these are exchangeable, as episodes of
    one expert in one environment are, there is an alarm in it with a probability of at most the
    rate, whatever the critic is worth. That is over the draw of the held-out trajectories, too:
    with few of them, a single monitor's rate may be higher.

    Attributes:
        critic: the critic.
        false_alarm_rate: as given.
        window: as given.
        n_trajectories: number of held-out trajectories.
        threshold: of the mean over a window.
        step_threshold: of the score of a single pair, :meth:`unfamiliar`.

    Args:
        critic: a fitted critic of p(s, a). One of p(a | s) has no opinion on states.
        demonstrations: the expert's trajectories that the critic was *not* fitted to, as from
            :func:`hold_out`; those of its fit score lower, so that alarms would be too many. What
            :func:`load_demonstrations` takes, if ``dones`` tell trajectories apart.
        false_alarm_rate: largest share of the expert's episodes with an alarm, above 0 and below
            1. It needs at least 1 / rate - 1 trajectories.
        window: steps; an episode that is shorter has no alarm.

    Raises:
        ValueError: if the critic is not fitted or models p(a | s), the demonstrations do not fit it
            or have too few trajectories for the rate, or an argument is out of its range.
        TypeError: if an argument is of another type.
    """

    def __init__(
        self,
        critic: DiffusionCritic,
        demonstrations: Any,
        *,
        false_alarm_rate: Fraction = 0.05,
        window: PositiveInt = 10,
    ) -> None:
        checked_arguments(CriticMonitor.__init__, locals())
        critic._check_judges_states()
        self.critic = critic
        self.false_alarm_rate = false_alarm_rate
        self.window = window
        transitions = load_demonstrations(demonstrations)
        check_reachable(critic, transitions)
        lengths = lengths_of(transitions.dones)
        self.n_trajectories = len(lengths)
        scores = self.scores(transitions.obs, transitions.acts)
        highest = [
            window_means(part, window).max(initial=-math.inf)
            for part in np.split(scores, np.cumsum(lengths)[:-1])
        ]
        self.threshold = conformal_threshold(highest, false_alarm_rate)
        if self.threshold == -math.inf:
            raise ValueError(
                f"window: found {window}, expected less: too many trajectories are shorter."
            )
        self.step_threshold = conformal_threshold(scores, false_alarm_rate)
        self.reset()

    def scores(self, obs: Any, acts: Any) -> Array:
        """Returns how unfamiliar pairs are; about 1 where the critic knows nothing.

        Args:
            obs: observations, ``(n, *obs_shape)``, or a mapping of such.
            acts: actions as the environment executes them, ``(n, *act_shape)``.

        Returns:
            Doubles of shape ``(n,)``.

        Raises:
            ValueError: if the pairs do not fit the critic's spaces, or hold NaN or infinities.
        """
        pairs = checked_inputs(self.critic, obs, acts)
        return self.critic.mean_denoising_loss(*pairs).cpu().numpy()

    def unfamiliar(self, obs: Any, acts: Any) -> Array:
        """Tells which pairs are unlike the expert's, one by one and without a memory.

        The threshold is the conformal quantile of single scores over all held-out transitions: a
        share of the expert's own pairs, about the false alarm rate, is above. It is no bound, since
        transitions of one trajectory are alike.

        Args:
            obs: as in :meth:`scores`.
            acts: as in :meth:`scores`.

        Returns:
            Bools of shape ``(n,)``.
        """
        return self.scores(obs, acts) > self.step_threshold

    def reset(self) -> None:
        """Begins an episode of the one environment that :meth:`step` follows."""
        self._watch = Watch(self, 1)

    def step(self, obs: Any, action: Any) -> Reading:
        """Judges the next step of one environment, best before it is executed.

        Args:
            obs: the observation that the action is for, ``obs_shape``, or a mapping of such.
            action: the action as the environment executes it, ``act_shape``.
        """
        arrays = {key: np.asarray(part)[None] for key, part in by_key(obs).items()}
        reading = self._watch.step(arrays.get(None, arrays), np.asarray(action)[None])
        return Reading(*(value.item() for value in reading))

    def wrap(self, venv: vec_env.VecEnv, on_alarm: OnAlarm | None = None) -> MonitoredVecEnv:
        """Returns an environment whose infos have the scores, see :class:`MonitoredVecEnv`."""
        return MonitoredVecEnv(venv, self, on_alarm)


class Watch:
    """Follows the episodes of n environments that go on side by side.

    Attributes:
        steps: of each environment's episode so far, shape ``(n_envs,)``.

    Args:
        monitor: what judges.
        n_envs: number of environments.
    """

    def __init__(self, monitor: CriticMonitor, n_envs: int) -> None:
        self._monitor = monitor
        self._recent = np.full((n_envs, monitor.window), math.nan)
        self.steps = np.zeros(n_envs, dtype=int)

    def step(self, obs: Any, acts: Any) -> Reading:
        """Judges one pair of each environment.

        Args:
            obs: observations, ``(n_envs, *obs_shape)``, or a mapping of such.
            acts: actions as they are executed, ``(n_envs, *act_shape)``.

        Returns:
            Arrays of shape ``(n_envs,)``.
        """
        n_envs, window = self._recent.shape
        if len(acts) != n_envs:
            raise ValueError(f"acts: found {len(acts)} rows, expected {n_envs}.")
        scores = self._monitor.scores(obs, acts)
        self._recent[np.arange(n_envs), self.steps % window] = scores
        self.steps += 1
        means = self._recent.mean(axis=1)
        return Reading(scores, means, means > self._monitor.threshold)

    def reset(self, ended: ArrayLike = True) -> None:
        """Begins new episodes where ``ended`` is true, by default in all environments."""
        ended = np.broadcast_to(ended, self.steps.shape)
        self._recent[ended] = math.nan
        self.steps[ended] = 0


class MonitoredVecEnv(vec_env.VecEnvWrapper):
    """Puts ``critic_score`` and ``critic_alarm`` into each info, for the step that it is about.

    They judge the action and the observation that it was for, also where the episode has ended
    and the environment was reset. Where there is a ``VecNormalize`` below, the monitor gets its
    original observations, which are those of the demonstrations, and not the normalised ones.

    Args:
        venv: the environment.
        monitor: what judges.
        on_alarm: called at the first alarm of each episode.

    Raises:
        ValueError: if the environment has other spaces than the critic.
        TypeError: if it is not a ``VecEnv``.
    """

    def __init__(
        self, venv: vec_env.VecEnv, monitor: CriticMonitor, on_alarm: OnAlarm | None = None
    ) -> None:
        checked_arguments(MonitoredVecEnv.__init__, {"venv": venv})
        self._normalize = vec_env.unwrap_vec_normalize(venv)
        seen = venv if self._normalize is None else self._normalize.venv
        check_spaces_of("critic", monitor.critic, seen.observation_space, venv.action_space)
        super().__init__(venv)
        self._on_alarm = on_alarm
        self._watch = Watch(monitor, venv.num_envs)
        self._has_alarmed = np.zeros(venv.num_envs, dtype=bool)
        self._obs: Any = None

    def reset(self) -> VecEnvObs:
        """As in SB3."""
        obs = self.venv.reset()
        self._begin(obs, np.ones(self.num_envs, dtype=bool))
        return obs

    def _begin(self, obs: VecEnvObs, ended: Array) -> None:
        self._obs = obs if self._normalize is None else self._normalize.get_original_obs()
        self._watch.reset(ended)
        self._has_alarmed[ended] = False

    def step_async(self, actions: Array) -> None:
        """As in SB3; the step is judged before it is executed."""
        if self._obs is None:
            raise RuntimeError("The environment was not reset: expected reset() before step().")
        self._reading = self._watch.step(self._obs, actions)
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3."""
        obs, rewards, dones, infos = self.venv.step_wait()
        for info, score, alarm in zip(infos, self._reading.score, self._reading.alarm, strict=True):
            info |= {"critic_score": float(score), "critic_alarm": bool(alarm)}
        for i in np.flatnonzero(self._reading.alarm & ~self._has_alarmed):
            self._has_alarmed[i] = True
            if self._on_alarm is not None:
                self._on_alarm(int(i), int(self._watch.steps[i]) - 1, float(self._reading.mean[i]))
        self._begin(obs, dones)
        return obs, rewards, dones, infos


def window_means(scores: Array, window: int) -> Array:
    """Returns the means of all ``window`` consecutive scores, none if there are fewer."""
    if len(scores) < window:
        return np.empty(0)
    return np.lib.stride_tricks.sliding_window_view(scores, window).mean(axis=-1)


def conformal_threshold(values: ArrayLike, rate: float) -> float:
    """Returns the ⌈(n + 1)(1 - rate)⌉-th smallest of n values.

    A further value that is exchangeable with them is above with a probability of at most ``rate``.

    Raises:
        ValueError: if there are too few, so that even the largest does not do.
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    # What is a whole number but for rounding is one.
    n_above = math.floor((len(ordered) + 1) * rate + 1e-9)
    if n_above < 1:
        raise ValueError(
            f"demonstrations: a false_alarm_rate of {rate:g} needs at least "
            f"{math.ceil(1 / rate - 1e-9) - 1} held-out trajectories (dones tell where one ends), "
            f"found {len(ordered)}."
        )
    return float(ordered[len(ordered) - n_above])
