"""Watches a cloned policy with the critic, and draws an episode that fails and one that does not.

A part of AntReach's demonstrations teaches a policy and a critic; the others, which neither has
seen, set the threshold. Starts and goals are more spread out than demonstrated, so that the policy
fails now and then. Writes a table and a figure into a folder. It takes about a minute on two cores.

    python examples/monitor.py
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_diffbc import CriticMonitor, DiffusionBC, DiffusionCritic, hold_out

matplotlib.use("Agg")  # draws without a screen
from matplotlib import pyplot as plt

TASK, ENV = "ant_reach", "sb3_diffbc/AntReach-v0"
NOISE = {"noise_ratio": 2.0, "goal_noise_ratio": 2.0}


@dataclass
class Episode:
    """How it ended, and the critic's mean over the window at each step."""

    is_success: bool
    means: np.ndarray
    first_alarm: int | None


def play(env: gym.Env, policy: ActorCriticPolicy, monitor: CriticMonitor, seed: int) -> Episode:
    """Plays an episode; the monitor judges each action before it is executed."""
    obs, _ = env.reset(seed=seed)
    monitor.reset()
    readings, is_over = [], False
    while not is_over:
        action, _ = policy.predict(obs, deterministic=True)
        readings.append(monitor.step(obs, action))
        obs, _, terminated, truncated, info = env.step(action)
        is_over = terminated or truncated
    alarms = [step for step, reading in enumerate(readings) if reading.alarm]
    means = np.array([reading.mean for reading in readings])
    return Episode(info["is_success"], means, alarms[0] if alarms else None)


def draw(episodes: list[Episode], threshold: float, path: Path) -> None:
    """Draws the first episode that fails and the first that does not, as far as there are both."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for is_success, label, colour in ((False, "fails", "#D55E00"), (True, "succeeds", "#0072B2")):
        shown = next((each for each in episodes if each.is_success == is_success), None)
        if shown is None:
            continue
        axes.plot(shown.means, color=colour, label=f"the first episode that {label}")
        if shown.first_alarm is not None:
            axes.plot(shown.first_alarm, shown.means[shown.first_alarm], "o", color=colour)
    axes.axhline(threshold, color="#555555", ls="--", lw=1, label="threshold")
    axes.set(xlabel="step", ylabel="mean score of the last ten steps")
    axes.legend()
    figure.savefig(path, dpi=100, metadata={"Software": None})


def counts(episodes: list[Episode]) -> str:
    """Returns a table of how many episodes had an alarm, and how long before their end."""
    lines = ["| | episodes | with an alarm | steps left, median |", "|---|---|---|---|"]
    for name, is_success in (("failing", False), ("succeeding", True)):
        found = [episode for episode in episodes if episode.is_success == is_success]
        left = [len(e.means) - 1 - e.first_alarm for e in found if e.first_alarm is not None]
        median = f"{np.median(left):.0f}" if left else "–"
        lines.append(f"| {name} | {len(found)} | {len(left)} | {median} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Clones, calibrates, plays, counts and draws."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=5_000, help="of the clone")
    parser.add_argument("--critic-steps", type=int, default=6_000, help="at most")
    parser.add_argument("--episodes", type=int, default=50, help="to watch")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()

    demonstrations, held_out = hold_out(TASK, 0.8)
    trainer = DiffusionBC(
        demonstrations=demonstrations, env=ENV, dm_coef=0, batch_size=128, seed=0, verbose=0
    )
    trainer.train(n_batches=options.updates)
    critic = DiffusionCritic(
        trainer.observation_space,
        trainer.action_space,
        n_steps=options.critic_steps,
        seed=0,
        device="cpu",
    )
    critic.fit(demonstrations)
    monitor = CriticMonitor(critic, held_out, false_alarm_rate=0.05, window=10)

    env = gym.make(ENV, **NOISE)
    episodes = [play(env, trainer.policy, monitor, seed) for seed in range(options.episodes)]
    table = counts(episodes)
    print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "monitor.md").write_text(table)
    draw(episodes, monitor.threshold, options.out / "monitor.png")
    print(f"The table and the picture are in {options.out}.")


if __name__ == "__main__":
    main()
