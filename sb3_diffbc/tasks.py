"""The paper's tasks: one entry each, which environments, experts and benchmarks read.

A further task is one more entry of ``TASKS``. The paper's scores are those of "Diffusion
Model-Augmented Behavioral Cloning" (https://arxiv.org/abs/2302.13335), table 1: mean and standard
deviation over three training seeds.

This module imports nothing but the standard library, because Gymnasium 0.29 imports it in the
middle of its own import (see ``sb3_diffbc.envs``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

Metric: TypeAlias = Literal["success", "return"]


@dataclasses.dataclass(frozen=True)
class PaperScore:
    """A score in the paper: percent of successful episodes, or mean return."""

    mean: float
    std: float


@dataclasses.dataclass(frozen=True)
class ScriptedExpert:
    """A controller written by hand.

    Attributes:
        entry_point: ``module:class`` of a policy that is made without arguments.
        summary: what it does, for cards and tables.
    """

    entry_point: str
    summary: str


@dataclasses.dataclass(frozen=True)
class LearnedExpert:
    """A policy trained by reinforcement learning (Stable-Baselines3's PPO).

    Attributes:
        summary: how it was learned, for cards and tables.
        timesteps: environment steps of training.
        n_envs: number of environments that are stepped together.
        net_arch: widths of the hidden layers, the same for the actor and for PPO's value network.
        activation: activation function between the layers.
        log_std_init: initial logarithm of the actions' standard deviation.
        ppo: further arguments of ``PPO``; the learning rate falls linearly to 0.
        progress_reward: for tasks with a goal: whether to learn from the decrease of
            ``info["distance"]`` plus the sparse reward, instead of from the latter alone.
    """

    summary: str
    timesteps: int
    n_envs: int = 8
    net_arch: tuple[int, ...] = (256, 256)
    activation: Literal["tanh", "relu"] = "tanh"
    log_std_init: float = -1.0
    ppo: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    progress_reward: bool = False


@dataclasses.dataclass(frozen=True)
class DemonstrationSize:
    """The size of a set of demonstrations: whole episodes until both numbers are reached."""

    episodes: int = 1
    transitions: int = 1


@dataclasses.dataclass(frozen=True)
class Task:
    """A task, its expert and what is known about it.

    Attributes:
        name: short name, also that of the bundled demonstrations and the expert.
        title: the paper's name.
        summary: what is to be done, in a sentence.
        env_id: Gymnasium's id.
        metric: the share of successful episodes, or the mean return.
        horizon: time limit of an episode in steps.
        expert: where the expert comes from.
        size: size of the bundled demonstrations.
        paper: the paper's scores by method.
        paper_file: name of the authors' own demonstrations, where they published them.
        entry_point: ``module:class`` of an environment of this package; None for Gymnasium's own.
        noise_ratios: noise ratios of start and goal at which the paper tests generalisation.
        paper_noise_ratio: the noise ratio of the paper's table 1; demonstrations are made at 1.
        extra: the optional dependencies of this name (``robotics``) that the task needs.
    """

    name: str
    title: str
    summary: str
    env_id: str
    metric: Metric
    horizon: int
    expert: ScriptedExpert | LearnedExpert
    size: DemonstrationSize
    paper: Mapping[str, PaperScore]
    paper_file: str | None = None
    entry_point: str | None = None
    noise_ratios: tuple[float, ...] = (1.0,)
    paper_noise_ratio: float = 1.0
    extra: str | None = None

    def spec(self, noise_ratio: float = 1.0, goal_noise_ratio: float | None = None) -> EnvSpec:
        """Returns the environment's spec, for ``gymnasium.make`` and ``evaluate_episodes``.

        Args:
            noise_ratio: scales the noise of the start.
            goal_noise_ratio: scales the noise of the goal; as that of the start if None.

        Returns:
            A copy of the registered spec.

        Raises:
            ValueError: if a ratio is not 1 and the environment is Gymnasium's own, whose noise is
                fixed.
        """
        import copy

        import gymnasium as gym

        spec = copy.deepcopy(gym.spec(self.env_id))
        ratios = {
            "noise_ratio": noise_ratio,
            "goal_noise_ratio": noise_ratio if goal_noise_ratio is None else goal_noise_ratio,
        }
        for name, ratio in ratios.items():
            if ratio != 1.0 and self.entry_point is None:
                raise ValueError(
                    f"{name}: found {ratio}, expected 1: the start of {self.env_id} cannot be "
                    "varied."
                )
        if set(ratios.values()) != {1.0}:
            spec.kwargs.update(ratios)
        return spec


def _scores(**scores: tuple[float, float]) -> dict[str, PaperScore]:
    return {method: PaperScore(*score) for method, score in scores.items()}


_ALL = (
    Task(
        name="maze",
        title="Maze",
        summary="Push a ball through a walled maze to a goal (D4RL's maze2d-medium).",
        env_id="sb3_diffbc/Maze-v0",
        metric="success",
        horizon=400,
        entry_point="sb3_diffbc.envs.maze:MazeEnv",
        expert=ScriptedExpert(
            "sb3_diffbc.envs.scripted_experts:MazeExpert",
            "scripted: shortest path over the cells, then a proportional-derivative controller "
            "towards a point ahead on the path",
        ),
        size=DemonstrationSize(episodes=100),
        paper=_scores(
            bc=(92.1, 3.6), implicit_bc=(78.3, 6.0), diffusion_policy=(95.5, 1.9), dbc=(95.4, 1.7)
        ),
        paper_file="maze.pt",
    ),
    Task(
        name="fetch_pick",
        title="FetchPick",
        summary="Grasp a block on a table with a robot arm and carry it to a point in the air.",
        env_id="sb3_diffbc/FetchPick-v0",
        metric="success",
        horizon=50,
        entry_point="sb3_diffbc.envs.fetch_pick:FetchPickEnv",
        expert=ScriptedExpert(
            "sb3_diffbc.envs.scripted_experts:FetchPickExpert",
            "scripted: approach, grasp and carry as a function of the observation",
        ),
        size=DemonstrationSize(transitions=10_000),
        paper=_scores(
            bc=(91.6, 5.8), implicit_bc=(69.4, 7.3), diffusion_policy=(83.9, 3.4), dbc=(97.5, 1.9)
        ),
        noise_ratios=(1.0, 1.25, 1.5, 1.75, 2.0),
        paper_noise_ratio=1.25,
        extra="robotics",
    ),
    Task(
        name="hand_rotate",
        title="HandRotate",
        summary="Turn a block in the palm of a dexterous hand about the vertical.",
        env_id="sb3_diffbc/HandRotate-v0",
        metric="success",
        horizon=50,
        entry_point="sb3_diffbc.envs.hand_rotate:HandRotateEnv",
        expert=LearnedExpert(
            "learned: PPO on the decrease of the angle to the goal",
            timesteps=800_000,
            n_envs=16,
            log_std_init=-0.7,
            ppo={"n_steps": 128, "batch_size": 512, "gamma": 0.98},
            progress_reward=True,
        ),
        size=DemonstrationSize(transitions=10_000),
        paper=_scores(
            bc=(57.5, 4.7), implicit_bc=(13.8, 3.7), diffusion_policy=(61.7, 4.1), dbc=(60.1, 4.4)
        ),
        extra="robotics",
    ),
    Task(
        name="cheetah",
        title="Cheetah",
        summary="Run as fast as possible with a two-legged cheetah in the plane.",
        env_id="HalfCheetah-v4",
        metric="return",
        horizon=1000,
        expert=LearnedExpert(
            "learned: PPO on the environment's own reward",
            timesteps=3_000_000,
            activation="relu",
            ppo={
                "n_steps": 512,
                "batch_size": 256,
                "gamma": 0.98,
                "gae_lambda": 0.92,
                "clip_range": 0.15,
            },
        ),
        size=DemonstrationSize(episodes=5),
        paper=_scores(
            bc=(4873.3, 69.7),
            implicit_bc=(1563.6, 486.8),
            diffusion_policy=(4650.3, 59.9),
            dbc=(4909.5, 73.0),
        ),
        paper_file="halfcheetah.pt",
    ),
    Task(
        name="walker",
        title="Walker",
        summary="Walk as fast as possible on two legs in the plane without falling.",
        env_id="Walker2d-v4",
        metric="return",
        horizon=1000,
        expert=LearnedExpert(
            "learned: PPO on the environment's own reward",
            timesteps=2_500_000,
            activation="relu",
            ppo={"n_steps": 512, "batch_size": 256, "gamma": 0.99, "clip_range": 0.15},
        ),
        size=DemonstrationSize(episodes=5),
        paper=_scores(
            bc=(6954.4, 73.5),
            implicit_bc=(839.8, 104.2),
            diffusion_policy=(6479.1, 238.6),
            dbc=(7034.6, 33.7),
        ),
        paper_file="walker.pt",
    ),
    Task(
        name="ant_reach",
        title="AntReach",
        summary="Run with a four-legged ant to a goal 5 m away within 5 seconds.",
        env_id="sb3_diffbc/AntReach-v0",
        metric="success",
        horizon=100,
        entry_point="sb3_diffbc.envs.ant_reach:AntReachEnv",
        expert=LearnedExpert(
            "learned: PPO on the decrease of the distance to the goal",
            timesteps=2_000_000,
            n_envs=32,
            log_std_init=-0.5,
            ppo={"n_steps": 128, "batch_size": 256, "gamma": 0.98},
            progress_reward=True,
        ),
        size=DemonstrationSize(transitions=25_000),
        paper=_scores(
            bc=(56.2, 4.9), implicit_bc=(23.7, 4.9), diffusion_policy=(61.8, 4.0), dbc=(70.1, 4.9)
        ),
    ),
)

TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""The tasks by name, in the paper's order."""


def find_task(name: str) -> Task:
    """Returns a task by its name.

    Args:
        name: a key of ``TASKS``.

    Returns:
        The task.

    Raises:
        ValueError: if there is no task of this name.
    """
    if name not in TASKS:
        raise ValueError(f"task: found {name!r}, expected one of {', '.join(TASKS)}.")
    return TASKS[name]
