"""Goes on from a clone with PPO, next to PPO from scratch, where only success is rewarded.

AntReach gives a reward of 1 for the goal and nothing else. Both kinds of PPO take the same number
of environment steps and have the same settings; for each seed, everything is trained anew. Writes
a picture and tables into a folder.

    python examples/clone_then_ppo.py
"""

import argparse
import csv
import sys
from importlib import metadata
from pathlib import Path

import matplotlib
import numpy as np
import torch as th
from scipy import stats
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffbc import DiffusionBC, evaluate_episodes

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot as plt

ENV = "sb3_diffbc/AntReach-v0"
N_ENVS = 8
ROLLOUT = 8192  # environment steps between updates
# Small steps: a clone's actions vary little, so that a little changes their probabilities a lot.
SETTINGS = {
    "n_steps": ROLLOUT // N_ENVS,
    "batch_size": 512,
    "gamma": 0.98,
    "learning_rate": 1e-4,
    "target_kl": 0.05,
    "device": "cpu",
}
CLONE, SCRATCH = "PPO from the clone", "PPO from scratch"


def clone(seed: int, n_updates: int) -> DiffusionBC:
    """Clones the bundled demonstrations."""
    trainer = DiffusionBC(demonstrations="ant_reach", env=ENV, seed=seed, verbose=0, device="cpu")
    trainer.train(n_batches=n_updates, progress_bar=False)
    return trainer


def curve(model: PPO, steps: range, n_episodes: int) -> dict[int, float]:
    """Trains a model; returns success rates by the number of environment steps before them."""
    rates = {}
    for step in steps:
        if step > model.num_timesteps:
            model.learn(step - model.num_timesteps, reset_num_timesteps=False)
        rates[step] = evaluate_episodes(model.policy, ENV, n_episodes=n_episodes).success_rate
        print(f"  {step:>9,} steps: {rates[step]:.0%}", flush=True)
    return rates


def interval(rates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns Student's 95 % interval of the mean over seeds, the first axis, within 0 to 1."""
    half = stats.t.ppf(0.975, len(rates) - 1) * stats.sem(rates, axis=0)
    return np.clip(rates.mean(axis=0) - half, 0, 1), np.clip(rates.mean(axis=0) + half, 0, 1)


def draw(curves: dict[str, np.ndarray], steps: range, path: Path) -> None:
    """Draws the means over seeds with their intervals, and every seed."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    thousands = np.array(steps) / 1000
    for label, rates in curves.items():
        (line,) = axis.plot(thousands, 100 * rates.mean(axis=0), marker="o", label=label)
        low, high = interval(rates)
        axis.fill_between(thousands, 100 * low, 100 * high, color=line.get_color(), alpha=0.15)
        axis.plot(thousands, 100 * rates.T, color=line.get_color(), lw=0.7, alpha=0.6)
    n_seeds = len(rates)
    axis.set(
        title=f"AntReach: mean and 95 % interval over {n_seeds} seeds (thin lines)",
        xlabel="environment steps of PPO (thousands)",
        ylabel="success rate (%)",
        ylim=(-3, 103),
    )
    axis.grid(alpha=0.3)
    axis.legend(loc="center right")
    figure.savefig(path, dpi=110)


def as_table(curves: dict[str, np.ndarray], steps: range, options: argparse.Namespace) -> str:
    """Returns the first and the last success rates as Markdown, with how they were made."""
    lines = ["| | environment steps | success rate | 95 % interval |", "|---|---|---|---|"]
    for label, rates in curves.items():
        low, high = interval(rates)
        for i in (0, -1):
            bounds = f"{100 * low[i]:.0f} to {100 * high[i]:.0f} %"
            lines.append(f"| {label} | {steps[i]:,} | {rates[:, i].mean():.0%} | {bounds} |")
    names = ("torch", "stable-baselines3", "gymnasium", "mujoco", "sb3-diffbc")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    return "\n".join(
        [
            *lines,
            "",
            f"Mean over seeds 0 to {options.seeds - 1} of the success rate in {options.episodes} "
            "episodes each, which are the same for all. "
            f"The clone's steps include {options.value_rollouts * ROLLOUT:,} for its value "
            "network. "
            f"Python {sys.version.split()[0]}, {versions}.",
            f"`{' '.join(['python', 'examples/clone_then_ppo.py', *sys.argv[1:]])}`",
            "",
        ]
    )


def main() -> None:
    """Trains all for each seed, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--evaluations", type=int, default=5, help="after the first one")
    parser.add_argument("--rollouts", type=int, default=4, help="between evaluations")
    parser.add_argument(
        "--value-rollouts", type=int, default=2, help="those of the first that fit the value net"
    )
    parser.add_argument("--updates", type=int, default=5_000, help="of the clone")
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.seeds < 2 or options.value_rollouts > options.rollouts:
        parser.error("at least 2 seeds, and no more value rollouts than rollouts, are needed")
    th.set_num_threads(1)  # networks this small lose more to threads than they gain
    every = options.rollouts * ROLLOUT
    steps = range(0, options.evaluations * every + 1, every)

    curves: dict[str, list[dict[int, float]]] = {CLONE: [], SCRATCH: []}
    for seed in range(options.seeds):
        env = make_vec_env(ENV, N_ENVS, seed=seed)
        trainer = clone(seed, options.updates)
        print(f"seed {seed}: {trainer.evaluate(options.episodes)}", flush=True)
        models = {
            CLONE: trainer.to_rl(
                PPO, env, value_timesteps=options.value_rollouts * ROLLOUT, seed=seed, **SETTINGS
            ),
            SCRATCH: PPO(
                "MlpPolicy", env, policy_kwargs={"net_arch": [128] * 3}, seed=seed, **SETTINGS
            ),
        }
        for label, model in models.items():
            print(label)
            curves[label].append(curve(model, steps, options.episodes))

    options.out.mkdir(parents=True, exist_ok=True)
    with open(options.out / "clone_then_ppo.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["method", "seed", "steps", "success_rate", "episodes"])
        for label, seeds in curves.items():
            for seed, rates in enumerate(seeds):
                for step, rate in rates.items():
                    table.writerow([label, seed, step, rate, options.episodes])
    arrays = {
        label: np.array([list(rates.values()) for rates in seeds])
        for label, seeds in curves.items()
    }
    draw(arrays, steps, options.out / "clone_then_ppo.png")
    text = as_table(arrays, steps, options)
    (options.out / "clone_then_ppo.md").write_text(text)
    print(f"\n{text}\nPicture and tables are in {options.out}.")


if __name__ == "__main__":
    main()
