"""DAgger with gates: how good the learner is after so many labels of the expert's.

Each cell starts from a few demonstrations and trains in rounds. In a round the learner acts until
the expert was asked for a given number of labels, or for so many steps at most. So all gates get
the same labels, rounds, updates and evaluation episodes; what differs is where they ask, and for
how long the learner acts until the labels are spent. Thresholds come from demonstrations alone.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import datasets
import gymnasium as gym
import numpy as np
from imitation.data import types
from imitation.util import logger as imit_logger
from stable_baselines3.common import policies, vec_env

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Method, Setup, Variant, optimizer_config, policy_config
from benchmarks.problems import Problem
from benchmarks.suites.base import Suite
from benchmarks.suites.labels import labels_problem
from sb3_diffbc import DiffusionBC, DiffusionCritic, GatedDAggerTrainer, load_expert
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.gates import ask_always
from sb3_diffbc.monitor import conformal_threshold
from sb3_diffbc.policies import copy_policy
from sb3_diffbc.tasks import find_task

LABELS_PER_ROUND: Mapping[str, int] = MappingProxyType(
    {"maze": 500, "fetch_pick": 125, "cheetah": 500}
)
"""By task."""


def falling_rate(remaining: float) -> float:
    """The learning rate in each training of a clone."""
    return 1e-3 * remaining


CLONE: Mapping[str, Any] = MappingProxyType(
    {
        "dm_coef": 0.0,
        "bc_loss": "nll",
        "batch_size": 128,
        "learning_rate": falling_rate,
        "verbose": 0,
        "device": "cpu",
    }
)
"""The learner, and the members of an ensemble."""
HELD_OUT = 0.2
"""Share of the demonstrations, their end, that a gate does not learn from: for its threshold."""


class Always:
    """Asks at each step, as plain DAgger does; the base class of all gates.

    Attributes:
        config: its settings.

    Args:
        setup: spaces and seed.
        n_updates: of what a gate learns, in each round.
    """

    def __init__(self, setup: Setup, n_updates: int) -> None:
        self.n_updates = n_updates
        self.config: dict[str, Any] = {}

    def fit(self, transitions: types.Transitions) -> None:
        """Learns from all demonstrations so far, before each round; this one has nothing to."""

    def __call__(self, obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
        """As :data:`sb3_diffbc.gates.Gate`."""
        return ask_always(obs, acts)


class AtRandom(Always):
    """Asks at a share of the steps."""

    SHARE = 0.25

    def __init__(self, setup: Setup, n_updates: int) -> None:
        super().__init__(setup, n_updates)
        self.config = {"share": self.SHARE}
        self.rng = np.random.default_rng(setup.seed)

    def __call__(self, obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
        """As the base class says."""
        return self.rng.random(len(acts)) < self.SHARE


class Scored(Always):
    """Asks where a score is above that of nearly all held-out pairs."""

    FALSE_ALARM_RATE = 0.1
    """Share of held-out pairs above the threshold."""

    def __init__(self, setup: Setup, n_updates: int) -> None:
        super().__init__(setup, n_updates)
        self.config = {"false_alarm_rate": self.FALSE_ALARM_RATE, "held_out": HELD_OUT}
        self.n_demonstrated = len(setup.demonstrations)
        # By rows, as there may be one trajectory alone.
        n_kept = round((1 - HELD_OUT) * self.n_demonstrated)
        self.kept, self.held_out = setup.demonstrations[:n_kept], setup.demonstrations[n_kept:]
        self.threshold = math.inf

    def fit(self, transitions: types.Transitions) -> None:
        """Learns from most demonstrations and all labels, and takes the threshold from the rest."""
        labels = transitions[self.n_demonstrated :]  # the first round's are the first rows
        parts: dict[str, Any] = {
            name: np.concatenate([getattr(self.kept, name), getattr(labels, name)])
            for name in ("obs", "acts", "infos")
        }
        self.learn(types.TransitionsMinimal(**parts))
        values = self.score(self.held_out.obs, self.held_out.acts)
        self.threshold = conformal_threshold(values, self.FALSE_ALARM_RATE)

    def __call__(self, obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
        """As the base class says."""
        return self.score(obs, acts) > self.threshold

    def learn(self, transitions: types.TransitionsMinimal) -> None:
        """Learns from these pairs."""
        raise NotImplementedError

    def score(self, obs: Any, acts: np.ndarray) -> np.ndarray:
        """Returns how unfamiliar pairs are, shape ``(n,)``."""
        raise NotImplementedError


class Disagreement(Scored):
    """Asks where clones with other first weights and batches would act differently."""

    N_MEMBERS = 4

    def __init__(self, setup: Setup, n_updates: int) -> None:
        super().__init__(setup, n_updates)
        self.config |= {"n_members": self.N_MEMBERS, "n_updates": n_updates}
        self.members = [
            DiffusionBC(**setup.spaces, seed=1000 * n + setup.seed, **CLONE)
            for n in range(1, self.N_MEMBERS + 1)
        ]

    def learn(self, transitions: types.TransitionsMinimal) -> None:
        """As the base class says."""
        for member in self.members:
            member.set_demonstrations(transitions)
            member.train(n_batches=self.n_updates, progress_bar=False)
        self.scale = transitions.acts.std(axis=0) + 1e-6

    def score(self, obs: Any, acts: np.ndarray) -> np.ndarray:
        """The spread of the clones' actions, in standard deviations of the demonstrated ones."""
        predicted = [member.predict(obs, deterministic=True)[0] for member in self.members]
        return (np.std(predicted, axis=0) / self.scale).reshape(len(acts), -1).mean(axis=1)


class Unfamiliarity(Scored):
    """Asks where a critic of p(s, a) finds the pair unlike the demonstrations'."""

    def __init__(self, setup: Setup, n_updates: int) -> None:
        super().__init__(setup, n_updates)
        # Each fit goes on from the weights of the last one.
        self.critic = DiffusionCritic(
            **setup.spaces, models="state_action", n_steps=n_updates, seed=setup.seed, device="cpu"
        )
        self.config["critic"] = {k: v for k, v in self.critic.config.items() if k != "seed"}

    def learn(self, transitions: types.TransitionsMinimal) -> None:
        """As the base class says."""
        self.critic.fit(transitions, progress_bar=False)

    def score(self, obs: Any, acts: np.ndarray) -> np.ndarray:
        """The critic's loss, a mean over fixed noise."""
        return self.critic.mean_denoising_loss(obs, acts).numpy()


class GatedDAgger(Method):
    """DAgger with a gate, from a few demonstrations on.

    Args:
        setup: demonstrations, spaces, seed and training environment, with a task of
            ``sb3_diffbc.tasks``.
        gate: makes what decides where the expert is asked.
        takeover: as in ``GatedDAggerTrainer``.
        labels_per_round: ``LABELS_PER_ROUND`` of the task if None.
        n_rounds: after the first training, which is on the demonstrations alone.
        max_steps_per_label: a round ends after so many steps for each label that it may ask for.
        n_updates: of the learner, in the first training and in each round.
        gate_updates: of each clone of an ensemble, or of the critic, before each round.
    """

    is_interactive = True

    def __init__(
        self,
        setup: Setup,
        *,
        gate: Callable[[Setup, int], Always] = Always,
        takeover: bool = False,
        labels_per_round: int | None = None,
        n_rounds: int = 6,
        max_steps_per_label: int = 8,
        n_updates: tuple[int, int] = (3_000, 1_000),
        gate_updates: int = 1_000,
    ) -> None:
        super().__init__(setup)
        self.length = n_rounds + 1
        self.labels_per_round = labels_per_round or LABELS_PER_ROUND[setup.task]
        self.max_steps = max_steps_per_label * self.labels_per_round
        self.n_updates = n_updates
        self.takeover = takeover
        self.learner = DiffusionBC(**setup.spaces, seed=setup.seed, **CLONE)
        self.gate = gate(setup, gate_updates)
        self.config = {
            "gate": gate,
            "gate_settings": self.gate.config,
            "takeover": takeover,
            "labels_per_round": self.labels_per_round,
            "n_rounds": n_rounds,
            "max_steps_per_label": max_steps_per_label,
            "n_updates": n_updates,
            "learner": dict(CLONE),
            "optimizer": optimizer_config(self.learner.optimizer),
            "policy": policy_config(self.learner.policy),
        }
        self._policies: dict[str, policies.BasePolicy] = {}
        self._measures: dict[str, float] = {}

    @property
    def policy(self) -> policies.ActorCriticPolicy:
        """As the base class says."""
        return self.learner.policy

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""
        env = self.setup.training_env
        assert env is not None  # every problem has one
        datasets.disable_progress_bars()  # imitation writes a data set for each trajectory
        venv = vec_env.DummyVecEnv([lambda: gym.make(env)])
        venv.seed(self.setup.seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = GatedDAggerTrainer(
                venv=venv,
                scratch_dir=folder,
                expert_policy=load_expert(self.setup.task),
                rng=np.random.default_rng(self.setup.seed),
                expert_trajs=trajectories_of(self.setup.demonstrations),
                bc_trainer=self.learner,
                gate=self.gate,
                takeover=self.takeover,
                custom_logger=imit_logger.configure(format_strs=[]),
            )
            self._train(trainer, self.n_updates[0])
            self._note(trainer, 0)
            on_progress()
            for n_labels in range(1, self.length):
                phase = self.clock.switch("gate")
                assert trainer.demonstrations is not None
                self.gate.fit(trainer.demonstrations)
                self.clock.switch(phase)
                trainer.max_labels = n_labels * self.labels_per_round
                self._train(trainer, self.n_updates[1], self.max_steps)
                self._note(trainer, trainer.max_labels)
                on_progress()
        venv.close()

    def _train(self, trainer: GatedDAggerTrainer, n_updates: int, max_steps: int = 0) -> None:
        """Trains for a round, or on the demonstrations alone."""
        settings = {"n_batches": n_updates, "log_rollouts_n_episodes": 0, "progress_bar": False}
        trainer.train(
            max_steps,
            rollout_round_min_timesteps=max(1, max_steps),
            rollout_round_min_episodes=1,
            bc_train_kwargs=settings,
        )

    def _note(self, trainer: GatedDAggerTrainer, budget: int) -> None:
        """Keeps the policy, and what it took."""
        self.updates, self.env_steps = self.learner.num_timesteps, trainer.num_timesteps
        self._policies[f"labels_{budget}"] = copy_policy(self.policy)
        self._measures |= {
            f"expert_labels/labels_{budget}": trainer.n_expert_labels,
            f"env_steps/labels_{budget}": trainer.num_timesteps,
        }

    def further_policies(self) -> dict[str, policies.BasePolicy]:
        """The policies after each round, by the labels that could be asked for until then."""
        return self._policies

    def measures(self) -> dict[str, float]:
        """The labels that were asked for, and the steps in the environment, after each round."""
        return self._measures


def trajectories_of(transitions: types.Transitions) -> list[types.Trajectory]:
    """Returns transitions as the trajectories that ``dones`` tell apart."""
    found, begin = [], 0
    for length in lengths_of(transitions.dones):
        rows = slice(begin, begin + length)
        begin += length
        obs: Any = [transitions.obs[rows], transitions.next_obs[rows][-1:]]
        found.append(
            types.Trajectory(np.concatenate(obs), transitions.acts[rows], None, terminal=True)
        )
    return found


def dagger_problem(key: str, paper_data: Path | None = None) -> Problem:
    """Returns a task with few demonstrations, and with the widest start noise that it knows.

    The learner acts and is scored at this noise; the demonstrations have their own.

    Raises:
        ValueError: if there is none of this key.
    """
    problem = labels_problem(key, paper_data)
    ratio = max(find_task(problem.task).noise_ratios)
    env = find_task(problem.task).spec(ratio)
    return dataclasses.replace(problem, env=env, training_env=env, noise_ratio=ratio)


_GATES: Mapping[str, tuple[type[Always], str]] = {
    "none": (Always, "No gate"),
    "random": (AtRandom, "Random"),
    "ensemble": (Disagreement, "Ensemble"),
    "critic": (Unfamiliarity, "Critic"),
}

SUITE = Suite(
    name="dagger",
    variants=tuple(
        Variant(name + suffix, GatedDAgger, {"gate": gate, "takeover": takeover}, title + words)
        for takeover, suffix, words in ((False, "", ""), (True, "_takeover", ", takes over"))
        for name, (gate, title) in _GATES.items()
    ),
    evaluation=Evaluation(n_episodes={"success": 100, "return": 20}, first_episode_seed=0),
    default_tasks=lambda _: ("maze+few20", "fetch_pick+few10", "cheetah+few1"),
    first_seed=100,
    n_interactive_seeds=5,
    problem=dagger_problem,
)
