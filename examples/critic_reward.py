"""Clones the maze, and goes on with PPO on the critic's reward, and on a constant one.

The environment's own reward is used for the scores alone. The constant reward shows what the end
of an episode alone tells. Writes a table into a folder.

    python examples/critic_reward.py
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from imitation.rewards.reward_function import RewardFn
from imitation.rewards.reward_wrapper import RewardVecEnvWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffbc import (
    CriticReward,
    DiffusionBC,
    DiffusionCritic,
    evaluate_episodes,
    load_demonstrations,
)

ENV, DEMONSTRATIONS = "sb3_diffbc/Maze-v0", "maze"
N_ENVS = 8
ROLLOUT = 8192  # environment steps between updates
# Small steps, which a clone survives, and enough noise to come upon something better.
SETTINGS = {
    "n_steps": ROLLOUT // N_ENVS,
    "batch_size": 512,
    "gamma": 0.98,
    "learning_rate": 1e-4,
    "target_kl": 0.03,
    "log_std": -1.0,
    "device": "cpu",
}


def constant(
    state: np.ndarray, action: np.ndarray, next_state: np.ndarray, done: np.ndarray
) -> np.ndarray:
    """What the critic's reward is worth for a pair that is neither like the expert's nor unlike."""
    return np.full(len(action), -0.5, np.float32)


def clone(seed: int, n_updates: int) -> DiffusionBC:
    """Clones the bundled demonstrations."""
    trainer = DiffusionBC(
        demonstrations=DEMONSTRATIONS,
        env=ENV,
        bc_loss="nll",  # the critic comes later
        batch_size=128,
        learning_rate=lambda left: 3e-4 * left,
        seed=seed,
        device="cpu",
    )
    trainer.train(n_batches=n_updates)
    return trainer


def go_on(trainer: DiffusionBC, reward: RewardFn, options: argparse.Namespace) -> ActorCriticPolicy:
    """Goes on from the clone with PPO on a reward; returns the policy."""
    venv = RewardVecEnvWrapper(make_vec_env(ENV, N_ENVS, seed=options.seed), reward)
    model = trainer.to_rl(
        PPO,
        VecNormalize(venv, norm_obs=False, gamma=SETTINGS["gamma"]),
        value_timesteps=options.value_rollouts * ROLLOUT,
        seed=options.seed,
        **SETTINGS,
    )
    model.learn(options.rollouts * ROLLOUT)
    return model.policy


def row(label: str, steps: int, policy: ActorCriticPolicy, reward: CriticReward, n: int) -> str:
    """Scores a policy by the environment and by the critic; returns a row of the table."""
    true = evaluate_episodes(policy, ENV, n_episodes=n)
    # A VecEnv's returns are sums of what it hands out: here, of the critic's reward.
    venv = reward.wrap(DummyVecEnv([lambda: gym.make(ENV)] * N_ENVS))
    seen = evaluate_episodes(policy, venv, n_episodes=n)
    low, high = true.success_interval()
    cells = (
        label,
        f"{steps:,}",
        f"{true.success_rate:.0%} ({100 * low:.0f} to {100 * high:.0f})",
        f"{true.lengths.mean():.0f}",
        f"{seen.returns.mean():.0f}",
        f"{seen.returns.sum() / seen.lengths.sum():.2f}",
    )
    print("  ".join(cells), flush=True)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Clones, fits the critic, goes on with PPO on both rewards, and scores all three policies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=10_000, help="of the clone")
    parser.add_argument("--critic-steps", type=int, default=6_000, help="of the critic's fit")
    parser.add_argument("--rollouts", type=int, default=10, help="of PPO")
    parser.add_argument("--value-rollouts", type=int, default=2, help="before, for the value net")
    parser.add_argument("--episodes", type=int, default=100, help="of each evaluation")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.episodes < 2:
        parser.error("at least 2 episodes are needed")
    th.set_num_threads(1)  # networks this small lose more to threads than they gain

    trainer = clone(options.seed, options.updates)
    transitions = load_demonstrations(DEMONSTRATIONS)
    critic = DiffusionCritic(
        trainer.observation_space,
        trainer.action_space,
        models="state_action",
        n_steps=options.critic_steps,
        seed=options.seed,
        device="cpu",
    )
    critic.fit(transitions)
    # Episodes end at the goal, so that each step has to cost something.
    reward = CriticReward(critic, transitions, bias="termination")

    steps = (options.value_rollouts + options.rollouts) * ROLLOUT
    rows = [row("clone", 0, trainer.policy, reward, options.episodes)]
    for label, given in {"the critic's": reward, "a constant": constant}.items():
        policy = go_on(trainer, given, options)
        rows.append(row(f"PPO with {label} reward", steps, policy, reward, options.episodes))

    names = ("torch", "stable-baselines3", "gymnasium", "mujoco", "sb3-diffbc")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    text = "\n".join(
        [
            "| | environment steps | success (95 % interval) | steps per episode "
            "| critic's reward per episode | per step |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            f"Seed {options.seed}. Success and steps are those of {options.episodes} episodes, the "
            "same for all, and the intervals are over episodes; the critic's reward is a mean over "
            f"as many others. Python {sys.version.split()[0]}, {versions}.",
            f"`{' '.join(['python', 'examples/critic_reward.py', *sys.argv[1:]])}`",
            "",
        ]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "critic_reward.md").write_text(text)
    print(f"\n{text}\nThe table is in {options.out}.")


if __name__ == "__main__":
    main()
