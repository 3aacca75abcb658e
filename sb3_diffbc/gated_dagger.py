"""DAgger in which the expert is asked only where a gate says so."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from imitation.algorithms import bc, dagger
from imitation.data import rollout, types
from imitation.util import logger as imit_logger
from stable_baselines3.common import policies, vec_env
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_diffbc.gates import Gate
from sb3_diffbc.schema import PositiveInt, checked_arguments

EXPERT_LABEL = "expert_label"
"""Key in the infos of saved trajectories: whether the action is the expert's."""


def _learner_acts(round_num: int) -> float:
    """A schedule for imitation's collector, by which the expert never acts at random."""
    return 0.0


class GatedTrajectoryCollector(dagger.InteractiveTrajectoryCollector):
    """imitation's collector, which takes the learner's actions and asks the expert for some.

    An episode in which the expert was asked is saved when it ends, as a trajectory with the
    expert's actions where it was asked and the learner's elsewhere; infos tell which is which.

    Args:
        ask: returns, for observations and the learner's actions, which rows the expert was asked
            about, and its actions there.
        takeover: whether the expert's actions are executed, too.
        **kwargs: of imitation's collector.
    """

    def __init__(
        self,
        *,
        ask: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
        takeover: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.ask = ask
        self.takeover = takeover
        self._is_asked = np.zeros(self.num_envs, dtype=bool)

    def step_async(self, actions: np.ndarray) -> None:
        """Steps with the learner's actions, or the expert's where it takes over.

        Args:
            actions: the learner's for the present observations, ``(n_envs, *act_shape)``.
        """
        assert self._is_reset, "call .reset() before .step()"
        assert self._last_obs is not None
        self._is_asked, labels = self.ask(self._last_obs, actions)
        self._last_user_actions = np.array(actions)
        self._last_user_actions[self._is_asked] = labels
        self.venv.step_async(self._last_user_actions if self.takeover else actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Keeps the transition, saves episodes that are over, and returns what the step gave."""
        next_obs, rews, dones, infos = self.venv.step_wait()
        assert isinstance(next_obs, np.ndarray)
        assert self.traj_accum is not None
        assert self._last_user_actions is not None
        self._last_obs = next_obs
        ended = self.traj_accum.add_steps_and_auto_finish(
            obs=next_obs,
            acts=self._last_user_actions,
            rews=rews,
            infos=[
                info | {EXPERT_LABEL: bool(flag)}
                for info, flag in zip(infos, self._is_asked, strict=True)
            ],
            dones=dones,
        )
        for index, trajectory in enumerate(ended):
            self._save(trajectory, index)
        return next_obs, rews, dones, infos

    def save_unfinished(self) -> None:
        """Saves the episodes that are not over, whose labels were paid for, and ends the round."""
        assert self.traj_accum is not None
        for index in range(self.num_envs):
            if len(self.traj_accum.partial_trajectories[index]) > 1:
                self._save(self.traj_accum.finish_trajectory(index, terminal=False), index)
        self._is_reset = False

    def _save(self, trajectory: types.TrajectoryWithRew, index: int) -> None:
        assert trajectory.infos is not None
        flags = [{EXPERT_LABEL: info[EXPERT_LABEL]} for info in trajectory.infos]
        if any(flag[EXPERT_LABEL] for flag in flags):
            # The environment's infos may be large, and nobody reads them.
            kept = types.TrajectoryWithRew(
                **{name: getattr(trajectory, name) for name in ("obs", "acts", "rews", "terminal")},
                infos=np.array(flags),
            )
            dagger._save_dagger_demo(kept, index, self.save_dir, self.rng)


class GatedDAggerTrainer(dagger.SimpleDAggerTrainer):
    """DAgger in which a gate decides at each step whether the expert is asked.

    Plain DAgger pays for a label at each step. Here the learner acts, and the expert is queried
    only where the gate says so; only these rows, and the demonstrations it starts with, are
    learned from. Gates of this kind are known from EnsembleDAgger (Menda et al., 2019,
    https://arxiv.org/abs/1807.08364) and, with a diffusion policy's own loss, from Diff-DAgger
    (Lee et al., 2024, https://arxiv.org/abs/2410.14868).

    Unlike imitation's ``SimpleDAggerTrainer`` it first trains on ``expert_trajs`` alone, so that
    learner and gate know something before anybody is asked; the learner takes its most likely
    actions; and there is no ``beta_schedule``, as the gate says when the expert acts.

    Attributes:
        gate: as given; another may take its place between rounds.
        takeover: as given.
        max_labels: as given; it may be raised between calls of :meth:`train`.
        n_expert_labels: how many labels the expert was asked for so far, beside ``expert_trajs``.
        num_timesteps: steps in the environment so far.
        demonstrations: what the learner was trained on last, for a gate that learns from it;
            ``dones`` tell where an episode's labels end. None before the first training.

    Args:
        venv: where the learner acts; observations are arrays.
        scratch_dir: an empty folder for the rounds' trajectories.
        expert_policy: is asked, for its most likely action.
        rng: for what imitation draws.
        expert_trajs: demonstrations to start with, at least a batch.
        bc_trainer: imitation's ``BC`` or :class:`~sb3_diffbc.DiffusionBC`.
        gate: any function of observations and the learner's actions, see
            ``sb3_diffbc.gates.Gate``: :class:`~sb3_diffbc.CriticGate`, a random choice, the
            disagreement of an ensemble.
        takeover: whether the expert also acts where it is asked. Otherwise it only says what it
            would have done.
        max_labels: the budget. Once it is spent, nobody is asked and training ends.
        custom_logger: where to log; a new one if None.

    Raises:
        ValueError: if spaces differ, there are no ``expert_trajs``, ``scratch_dir`` has
            rounds of another run, or ``max_labels`` is below 1.
        TypeError: if an argument is of another type.
    """

    def __init__(
        self,
        *,
        venv: vec_env.VecEnv,
        scratch_dir: str | os.PathLike[str],
        expert_policy: policies.BasePolicy,
        rng: np.random.Generator,
        expert_trajs: Sequence[types.Trajectory],
        bc_trainer: bc.BC,
        gate: Gate,
        takeover: bool = False,
        max_labels: PositiveInt | None = None,
        custom_logger: imit_logger.HierarchicalLogger | None = None,
    ) -> None:
        given = {"takeover": takeover, "max_labels": max_labels}
        checked_arguments(GatedDAggerTrainer.__init__, given)
        if not callable(gate):
            raise TypeError(f"gate is a {type(gate).__name__}: expected a function.")
        if not len(expert_trajs):
            raise ValueError("expert_trajs: found none, expected demonstrations to start with.")
        rounds = pathlib.Path(scratch_dir, "demos")
        if rounds.is_dir() and any(rounds.iterdir()):
            # imitation would learn from them, and decode them by jsonpickle.
            raise ValueError(f"scratch_dir: found rounds in {rounds}, expected a new folder.")
        super().__init__(
            venv=venv,
            scratch_dir=scratch_dir,
            expert_policy=expert_policy,
            rng=rng,
            expert_trajs=expert_trajs,
            beta_schedule=_learner_acts,
            bc_trainer=bc_trainer,
            custom_logger=custom_logger,
        )
        self.gate = gate
        self.takeover = takeover
        self.max_labels = max_labels
        self.n_expert_labels = self.num_timesteps = 0
        self.demonstrations: types.Transitions | None = None

    @property
    def budget_is_spent(self) -> bool:
        """Whether ``max_labels`` were asked for."""
        return self.max_labels is not None and self.n_expert_labels >= self.max_labels

    def _ask(self, obs: np.ndarray, acts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns which rows the expert is asked about, ``(n,)``, and its actions for these."""
        self.num_timesteps += len(acts)
        is_asked: np.ndarray = np.zeros(len(acts), dtype=bool)
        if not self.budget_is_spent:
            is_asked = np.asarray(self.gate(obs, acts))
        if is_asked.dtype != bool or is_asked.shape != (len(acts),):
            raise ValueError(
                f"gate: found {is_asked.dtype} of shape {is_asked.shape}, expected bool of shape "
                f"{(len(acts),)}, one for each observation."
            )
        if self.max_labels is not None:
            is_asked = is_asked & (np.cumsum(is_asked) <= self.max_labels - self.n_expert_labels)
        if not is_asked.any():
            return is_asked, acts[:0]
        labels, _ = self.expert_policy.predict(obs[is_asked], deterministic=True)
        self.n_expert_labels += len(labels)
        return is_asked, labels

    def create_trajectory_collector(self) -> GatedTrajectoryCollector:
        """Makes the round's collector, whose ``step`` takes the learner's actions."""
        return GatedTrajectoryCollector(
            ask=self._ask,
            takeover=self.takeover,
            venv=self.venv,
            get_robot_acts=self._learner_actions,
            beta=0.0,
            save_dir=self._demo_dir_path_for_round(),
            rng=self.rng,
        )

    def _learner_actions(self, obs: Any) -> np.ndarray:
        return self.policy.predict(obs, deterministic=True)[0]

    def _load_all_demos(self) -> tuple[types.Transitions, list[int]]:
        """As in imitation, without the rows that the expert was not asked about."""
        transitions, counts = super()._load_all_demos()
        is_label = np.array([info.get(EXPERT_LABEL, True) for info in transitions.infos])
        lengths = [len(trajectory) for trajectory in self._all_demos]
        episodes = np.repeat(np.arange(len(lengths)), lengths)[is_label]
        kept: dict[str, Any] = {
            name: getattr(transitions, name)[is_label] for name in ("obs", "acts", "next_obs")
        }
        # An episode's last label ends it, so that whole episodes can still be held out.
        dones = np.diff(episodes, append=-1) != 0
        infos = transitions.infos[is_label]
        self.demonstrations = types.Transitions(**kept, dones=dones, infos=infos)
        return self.demonstrations, counts

    def train(
        self,
        total_timesteps: int,
        *,
        rollout_round_min_episodes: int = 3,
        rollout_round_min_timesteps: int = 500,
        bc_train_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        """Trains in rounds: the learner acts, the expert is asked, the learner is trained.

        The first call trains on the demonstrations alone first. A round in which nobody was asked
        ends without a training. Logs ``dagger/expert_labels``, the number of labels so far, and
        what imitation logs.

        Args:
            total_timesteps: steps in the environment at least, unless the budget is spent before.
            rollout_round_min_episodes: of a round, likewise.
            rollout_round_min_timesteps: of a round, likewise.
            bc_train_kwargs: arguments of the learner's ``train``, with imitation's defaults.

        Raises:
            ValueError: if the gate returns anything but one bool for each observation, or there
                are fewer demonstrations than a batch.
        """
        bc_train_kwargs = dict(bc_train_kwargs or {})
        if self.round_num == 0:
            self.extend_and_update(bc_train_kwargs)
        is_long_enough = rollout.make_sample_until(
            rollout_round_min_timesteps, rollout_round_min_episodes
        )
        end = self.num_timesteps + total_timesteps
        while self.num_timesteps < end and not self.budget_is_spent:
            n_labels, n_timesteps = self.n_expert_labels, self.num_timesteps
            collector = self.create_trajectory_collector()
            trajectories = rollout.generate_trajectories(
                policy=lambda obs, state, starts: (self._learner_actions(obs), None),
                venv=collector,
                sample_until=lambda found: self.budget_is_spent or is_long_enough(found),
                rng=self.rng,
            )
            collector.save_unfinished()
            for trajectory in trajectories:
                self.logger.record_mean("dagger/mean_episode_reward", np.sum(trajectory.rews))
            self.logger.record("dagger/total_timesteps", self.num_timesteps)
            self.logger.record("dagger/round_num", self.round_num)
            self.logger.record("dagger/round_episode_count", len(trajectories))
            self.logger.record("dagger/round_timestep_count", self.num_timesteps - n_timesteps)
            self.logger.record("dagger/expert_labels", self.n_expert_labels)
            if self.n_expert_labels > n_labels:
                self.extend_and_update(bc_train_kwargs)  # which dumps the log, too
