"""Learns to navigate a maze from demonstrations: DiffusionBC next to imitation's BC.

Both get the same demonstrations, the same initial network, the same optimiser and the same number
of updates, and are judged on the same episodes. Writes a picture, a table and all figures behind
them into a folder.

    python examples/quickstart.py
"""

import argparse
import copy
import dataclasses
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch as th
from imitation.algorithms import bc
from imitation.util import logger as imit_logger
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.utils import set_random_seed

from sb3_diffbc import (
    CriticHistory,
    DiffusionBC,
    DiffusionCritic,
    EvaluationResult,
    StandardizedActorPolicy,
    evaluate_episodes,
    load_demonstrations,
)
from sb3_diffbc.envs import draw_maze

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

ENV = "sb3_diffbc/Maze-v0"
# Episodes of the learning curves, apart from those of the final table.
CURVE_SEED, CURVE_EPISODES, CURVE_POINTS = 500_000, 50, 8


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a learning curve."""

    updates: int
    success_rate: float
    interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a method gave."""

    result: EvaluationResult
    curve: list[Point]
    seconds: float


def train(trainer: bc.BC, n_batches: int) -> tuple[list[Point], float]:
    """Trains BC or DiffusionBC alike; returns the learning curve and the seconds of training.

    The learning rate falls linearly to 0 for both. Evaluations on the way do not count as
    training time.
    """
    schedule = th.optim.lr_scheduler.LinearLR(trainer.optimizer, 1, 0, total_iters=n_batches)
    curve: list[Point] = []
    updates, evaluating = 0, 0.0

    def after_update() -> None:
        nonlocal updates, evaluating
        updates += 1
        schedule.step()
        if updates % (n_batches // CURVE_POINTS) == 0:
            began = time.perf_counter()
            result = evaluate_episodes(
                trainer.policy, ENV, n_episodes=CURVE_EPISODES, seed=CURVE_SEED
            )
            curve.append(Point(updates, result.success_rate, result.success_interval()))
            evaluating += time.perf_counter() - began

    began = time.perf_counter()
    trainer.train(n_batches=n_batches, on_batch_end=after_update)
    return curve, time.perf_counter() - began - evaluating


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=8_000, help="of each policy")
    parser.add_argument("--critic-steps", type=int, default=3_000, help="at most")
    parser.add_argument("--episodes", type=int, default=100, help="of the final evaluation")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.updates < CURVE_POINTS:
        parser.error(f"--updates={arguments.updates} must be at least {CURVE_POINTS}")
    started = time.perf_counter()
    set_random_seed(arguments.seed)
    th.set_num_threads(1)  # networks this small lose more to threads than they gain

    demonstrations = load_demonstrations("maze")
    env = gym.make(ENV)
    spaces = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
    }
    print(f"{len(demonstrations)} demonstrated steps in {int(demonstrations.dones.sum())} episodes")

    print("\nDiffusion critic")
    critic = DiffusionCritic(
        **spaces, models="action", n_steps=arguments.critic_steps, seed=arguments.seed
    )
    history = critic.fit(demonstrations)

    policy = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)
    shared = {
        **spaces,
        "demonstrations": demonstrations,
        "batch_size": 128,
        "optimizer_kwargs": {"lr": 5e-4},
        "rng": np.random.default_rng(arguments.seed),
        "custom_logger": imit_logger.configure(format_strs=[]),
    }
    trainers = {
        "BC": bc.BC(policy=copy.deepcopy(policy), **shared),
        "DiffusionBC": DiffusionBC(policy=copy.deepcopy(policy), critic=critic, **shared),
    }
    runs = {}
    for label, trainer in trainers.items():
        print(f"\n{label}")
        th.manual_seed(arguments.seed)  # the same batches in the same order
        curve, seconds = train(trainer, arguments.updates)
        result = evaluate_episodes(
            trainer.policy,
            ENV,
            n_episodes=arguments.episodes,
            keep_observations=True,
            progress_bar=True,
        )
        runs[label] = Run(result, curve, seconds)
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(runs, history, arguments.out / "quickstart.png")
    report(runs, history, time.perf_counter() - started, arguments)


def draw(runs: dict[str, Run], history: CriticHistory, path: Path) -> None:
    """Draws trajectories in the maze and the learning curves."""
    figure, ((*mazes,), (policy_axis, critic_axis)) = plt.subplots(
        2, 2, figsize=(10, 9), height_ratios=[1.6, 1], layout="constrained"
    )
    for axis, (label, run) in zip(mazes, runs.items(), strict=True):
        draw_maze(axis)
        successes = run.result.successes
        for seen, success in zip(run.result.observations, successes, strict=True):
            color = "tab:green" if success else "tab:red"
            axis.plot(*seen[:, :2].T, color=color, alpha=0.6, lw=1, zorder=2 + (not success))
            axis.plot(*seen[0, :2], "o", color="tab:blue", ms=4, zorder=4)
            axis.plot(*seen[0, 4:], "*", color="goldenrod", ms=7, zorder=4)
        axis.set_title(f"{label}: {int(successes.sum())} of {len(successes)} reach the goal")
    figure.legend(
        handles=[
            Line2D([], [], color="tab:green", label="success"),
            Line2D([], [], color="tab:red", label="failure"),
            Line2D([], [], color="tab:blue", marker="o", ls="", label="start"),
            Line2D([], [], color="goldenrod", marker="*", ls="", label="goal"),
        ],
        loc="outside upper center",
        ncols=4,
        frameon=False,
    )
    for label, run in runs.items():
        updates = [point.updates for point in run.curve]
        low, high = zip(*(point.interval for point in run.curve), strict=True)
        (line,) = policy_axis.plot(
            updates, [point.success_rate for point in run.curve], label=label
        )
        policy_axis.fill_between(updates, low, high, color=line.get_color(), alpha=0.15)
    policy_axis.set(
        title=f"Policy ({CURVE_EPISODES} other episodes, 95 % interval)",
        xlabel="updates",
        ylabel="success rate",
        ylim=(0, 1.02),
    )
    policy_axis.legend(loc="lower right")
    critic_axis.plot(history.steps, history.train_loss, label="training")
    critic_axis.plot(history.steps, history.validation_loss, label="held out")
    critic_axis.set(
        title="Critic", xlabel="steps", ylabel="denoising loss per dimension", ylim=(0, 1)
    )
    critic_axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(
    runs: dict[str, Run], history: CriticHistory, total: float, arguments: argparse.Namespace
) -> None:
    """Prints the table and writes it, with everything behind it, beside the picture."""
    headings = ["", f"success rate, {arguments.episodes} episodes", "95 % interval", "training"]
    rows = []
    for label, run in runs.items():
        low, high = run.result.success_interval()
        seconds = f"{run.seconds:.0f} s"
        if label == "DiffusionBC":
            seconds += f" + {history.seconds:.0f} s for the critic"
        interval = f"{low:.1%} to {high:.1%}"
        rows.append([label, f"{run.result.success_rate:.1%}", interval, seconds])
    table = Table(*headings)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    lines = ["| " + " | ".join(line) + " |" for line in [headings, ["---"] * 4, *rows]]
    (arguments.out / "quickstart.md").write_text("\n".join(lines) + "\n")
    record = {
        "command": " ".join(["python", "examples/quickstart.py", *sys.argv[1:]]),
        "seed": arguments.seed,
        "updates": arguments.updates,
        "seconds": {"total": total, "critic": history.seconds},
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "imitation", "stable-baselines3", "mujoco")},
        "runs": {
            label: {
                "seconds": run.seconds,
                "success_rate": run.result.success_rate,
                "success_interval": run.result.success_interval(),
                "successes": run.result.successes.astype(int).tolist(),
                "first_episode_seed": run.result.seeds[0],
                "curve": [dataclasses.asdict(point) for point in run.curve],
            }
            for label, run in runs.items()
        },
        "critic": dataclasses.asdict(history),
    }
    (arguments.out / "quickstart.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"\nPicture, table and figures are in {arguments.out} ({total:.0f} s in all).")


if __name__ == "__main__":
    main()
