"""DAgger on FetchPick with starts twice as wide as demonstrated: who should be asked for labels?

The learner starts from a few demonstrations. Plain DAgger asks the expert at each step, the others
at some: a random quarter, or where the learner's own critic finds its step unfamiliar. All get the
same number of labels in each round. Writes a figure of the success over labels into a folder.

    python examples/gated_dagger.py
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import gymnasium as gym
import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch as th
from imitation.data import rollout, types
from imitation.util import logger as imit_logger
from matplotlib import pyplot as plt
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffbc import (
    CriticGate,
    DiffusionBC,
    GatedDAggerTrainer,
    evaluate_episodes,
    hold_out,
    load_expert,
)
from sb3_diffbc.gates import Gate, ask_always
from sb3_diffbc.tasks import find_task

TASK = find_task("fetch_pick")
NARROW, WIDE = TASK.spec(1.0), TASK.spec(2.0)
MAX_STEPS_PER_LABEL = 8


GATES: dict[str, Callable[..., Gate]] = {
    "no gate": lambda learner, held_out, rng: ask_always,
    "random": lambda learner, held_out, rng: lambda obs, acts: rng.random(len(acts)) < 0.25,
    "critic": lambda learner, held_out, rng: CriticGate(learner, held_out, false_alarm_rate=0.1),
}
"""Makers of gates."""


def demonstrate(n_episodes: int, seed: int) -> list[types.TrajectoryWithRew]:
    """Rolls out the expert where the block and the goal start as in the demonstrations."""
    venv = DummyVecEnv([lambda: gym.make(NARROW)])
    venv.seed(seed)
    found = rollout.generate_trajectories(
        load_expert(TASK.name),
        venv,
        rollout.make_min_episodes(n_episodes),
        np.random.default_rng(seed),
        deterministic_policy=True,
    )
    venv.close()
    return list(found)


def curve(name: str, options: argparse.Namespace) -> list[tuple[int, float]]:
    """Runs DAgger with a gate; returns numbers of labels, and the success after each of them."""
    rng = np.random.default_rng(options.seed)
    venv = DummyVecEnv([lambda: gym.make(WIDE)])
    venv.seed(options.seed)
    learner = DiffusionBC(
        env=venv,
        seed=options.seed,
        # It judges states, too.
        critic_models="state_action",
        critic_kwargs={"n_steps": options.critic_steps},
        batch_size=128,
        learning_rate=lambda left: 1e-3 * left,
        verbose=0,
        device="cpu",
    )
    # The critic's gate takes its threshold from a few demonstrations that none of them learns from.
    demonstrations, held_out = hold_out(demonstrate(options.demonstrations, options.seed), 0.2)
    points = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = GatedDAggerTrainer(
            venv=venv,
            scratch_dir=folder,
            expert_policy=load_expert(TASK.name),
            rng=rng,
            expert_trajs=demonstrations,
            bc_trainer=learner,
            gate=GATES[name](learner, held_out, rng),
            custom_logger=imit_logger.configure(format_strs=[]),
        )
        for round_number in range(options.rounds + 1):
            # The first training is on the demonstrations alone.
            max_steps = options.labels * MAX_STEPS_PER_LABEL if round_number else 0
            trainer.max_labels = max(1, options.labels * round_number)
            trainer.train(
                max_steps,
                rollout_round_min_timesteps=max(1, max_steps),
                rollout_round_min_episodes=1,
                bc_train_kwargs={
                    "n_batches": options.updates,
                    "log_rollouts_n_episodes": 0,
                    "progress_bar": False,
                },
            )
            result = evaluate_episodes(trainer.policy, WIDE, n_episodes=options.episodes)
            points.append((trainer.n_expert_labels, 100 * result.success_rate))
            print(
                f"{name}: {points[-1][0]} labels in {trainer.num_timesteps} steps, "
                f"success {points[-1][1]:.0f} %",
                flush=True,
            )
    venv.close()
    return points


def main() -> None:
    """Runs all gates and draws their curves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demonstrations", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=150, help="of each round")
    parser.add_argument("--updates", type=int, default=700, help="of each round")
    parser.add_argument("--critic-steps", type=int, default=600, help="of each fit, at most")
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    th.set_num_threads(1)  # networks this small lose more to threads than they gain
    datasets.disable_progress_bars()  # imitation saves each episode as a data set

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, mark in zip(GATES, "os^", strict=True):
        axes.plot(*zip(*curve(name, options), strict=True), marker=mark, label=name)
    axes.set(xlabel="labels of the expert", ylabel="success %", ylim=(0, 103))
    axes.set_title(f"FetchPick, starts twice as wide as demonstrated, seed {options.seed}")
    axes.grid(alpha=0.3)
    axes.legend()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gated_dagger.png"
    figure.savefig(path, dpi=75, metadata={"Software": None})
    print(f"The picture is {path}.")


if __name__ == "__main__":
    main()
