"""Learns to navigate a maze from demonstrations, with DiffusionBC and with imitation's BC.

Both have the same demonstrations, initial network, optimiser, batches and number of updates, and
are evaluated on the same episodes. Writes a picture and a table into a folder.

    python examples/quickstart.py
"""

import argparse
import copy
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import torch as th
from imitation.algorithms import bc
from imitation.util import logger as imit_logger
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

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot as plt

ENV = "sb3_diffbc/Maze-v0"
N_EVALUATIONS = 8


def train(trainer: bc.BC, n_updates: int, n_episodes: int) -> dict[int, EvaluationResult]:
    """Trains BC or DiffusionBC; returns evaluations by the number of updates before them."""
    results: dict[int, EvaluationResult] = {}
    n_done = 0
    schedule = th.optim.lr_scheduler.LinearLR(trainer.optimizer, 1, 0, total_iters=n_updates)

    def after_update() -> None:
        nonlocal n_done
        n_done += 1
        schedule.step()
        if n_done % (n_updates // N_EVALUATIONS) == 0:
            results[n_done] = evaluate_episodes(
                trainer.policy, ENV, n_episodes=n_episodes, keep_observations=True
            )

    trainer.train(n_batches=n_updates, on_batch_end=after_update)
    return results


def draw_trajectories(axis: plt.Axes, result: EvaluationResult) -> None:
    """Draws the way of each episode through the maze."""
    draw_maze(axis)
    for observations, success in zip(result.observations, result.successes, strict=True):
        x, y = observations[:, :2].T
        if success:
            axis.plot(x, y, color="tab:green", alpha=0.3, lw=0.8)
        else:
            axis.plot(x, y, color="tab:red", lw=1.5, zorder=3)
            axis.plot(x[0], y[0], "o", color="black", ms=5, zorder=4)
            axis.plot(*observations[0, 4:], "*", color="gold", mec="black", ms=12, zorder=5)


def draw(runs: dict[str, dict[int, EvaluationResult]], critic: CriticHistory, path: Path) -> None:
    """Draws the last evaluations' trajectories, the success rates and the critic's loss."""
    figure, ((*mazes,), (success_axis, critic_axis)) = plt.subplots(
        2, 2, figsize=(10, 9.2), height_ratios=[1.7, 1], layout="constrained"
    )
    figure.suptitle("Green: reaches the goal. Red: fails, with its start (dot) and goal (star).")
    for maze_axis, (label, results) in zip(mazes, runs.items(), strict=True):
        updates = np.array(list(results))
        last = results[updates[-1]]
        draw_trajectories(maze_axis, last)
        maze_axis.set_title(f"{label}: {last.successes.sum()} of {len(last.successes)} succeed")
        rates = 100 * np.array([result.success_rate for result in results.values()])
        bounds = 100 * np.array([result.success_interval() for result in results.values()]).T
        shift = 0.06 * updates[0] * (-1 if label == "BC" else 1)  # keeps the intervals apart
        success_axis.errorbar(
            updates + shift, rates, np.abs(bounds - rates), marker="o", capsize=3, label=label
        )
    success_axis.set(
        title="Policy, with 95 % intervals over episodes",
        xlabel="updates",
        ylabel=f"success rate over {len(last.successes)} episodes (%)",
    )
    critic_axis.plot(critic.steps, critic.train_loss, label="training pairs")
    critic_axis.plot(critic.steps, critic.validation_loss, label="held-out pairs")
    critic_axis.set(
        title="Critic", xlabel="optimiser steps", ylabel="mean squared error of predicted noise"
    )
    for axis in (success_axis, critic_axis):
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=110)


def as_table(runs: dict[str, dict[int, EvaluationResult]]) -> str:
    """Returns the last evaluations as a Markdown table."""
    lines = ["| | updates | episodes | success rate | 95 % interval |", "|---|---|---|---|---|"]
    for label, results in runs.items():
        updates, last = max(results.items())
        low, high = last.success_interval()
        rate, interval = (
            f"{100 * last.success_rate:.0f} %",
            f"{100 * low:.1f} to {100 * high:.1f} %",
        )
        lines.append(f"| {label} | {updates:,} | {len(last.successes)} | {rate} | {interval} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fits the critic, trains and evaluates both policies, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=8_000, help="of each policy")
    parser.add_argument("--critic-steps", type=int, default=3_000, help="at most")
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.updates < N_EVALUATIONS or options.episodes < 2:
        parser.error(f"at least {N_EVALUATIONS} updates and 2 episodes are needed")
    set_random_seed(options.seed)
    th.set_num_threads(1)  # networks this small lose more to threads than they gain

    demonstrations = load_demonstrations("maze")
    env = gym.make(ENV)
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    critic = DiffusionCritic(
        **spaces, models="action", n_steps=options.critic_steps, seed=options.seed
    )
    history = critic.fit(demonstrations)

    policy = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)
    shared = {
        **spaces,
        "demonstrations": demonstrations,
        "batch_size": 128,
        "optimizer_kwargs": {"lr": 5e-4},
        "rng": np.random.default_rng(options.seed),
        "custom_logger": imit_logger.configure(format_strs=[]),
    }
    trainers = {
        "BC": bc.BC(policy=copy.deepcopy(policy), **shared),
        # The same cloning loss as BC's, so that L_DM is all that differs.
        "DiffusionBC": DiffusionBC(
            policy=copy.deepcopy(policy), critic=critic, bc_loss="nll", **shared
        ),
    }
    runs = {}
    for label, trainer in trainers.items():
        print(f"\n{label}")
        th.manual_seed(options.seed)  # the same batches in the same order
        runs[label] = train(trainer, options.updates, options.episodes)

    options.out.mkdir(parents=True, exist_ok=True)
    draw(runs, history, options.out / "quickstart.png")
    (options.out / "quickstart.md").write_text(as_table(runs))
    print(f"\n{as_table(runs)}\nPicture and table are in {options.out}.")


if __name__ == "__main__":
    main()
