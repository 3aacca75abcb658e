"""Clones Walker, and goes on with PPO on a reward that the critic gives.

The environment's own reward is used for the scores alone. Writes a table into a folder.

    python examples/critic_reward.py
"""

import argparse
import sys
from importlib import metadata
from pathlib import Path

import gymnasium as gym
import torch as th
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

ENV, DEMONSTRATIONS = "Walker2d-v4", "walker"
N_ENVS = 8
ROLLOUT = 8192  # environment steps between updates
# Very small steps: a clone's actions vary so little that a little changes their probabilities.
SETTINGS = {
    "n_steps": ROLLOUT // N_ENVS,
    "batch_size": 512,
    "gamma": 0.98,
    "learning_rate": 3e-5,
    "target_kl": 0.03,
    "device": "cpu",
}


def row(label: str, steps: int, policy: ActorCriticPolicy, reward: CriticReward, n: int) -> str:
    """Scores a policy by the environment and by the critic; returns a row of the table."""
    true = evaluate_episodes(policy, ENV, n_episodes=n)
    # A VecEnv's returns are sums of what it hands out: here, of the critic's reward.
    seen = evaluate_episodes(
        policy, reward.wrap(DummyVecEnv([lambda: gym.make(ENV)])), n_episodes=n
    )
    low, high = true.return_interval() or (true.returns[0],) * 2
    cells = (
        label,
        f"{steps:,}",
        f"{true.returns.mean():.0f} ({low:.0f} to {high:.0f})",
        f"{true.lengths.mean():.0f}",
        f"{seen.returns.mean():.0f}",
    )
    print("  ".join(cells), flush=True)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Clones, fits the critic, goes on with PPO, and scores before and after."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--updates", type=int, default=10_000, help="of the clone")
    parser.add_argument("--critic-steps", type=int, default=6_000, help="of the critic's fit")
    parser.add_argument("--rollouts", type=int, default=10, help="of PPO")
    parser.add_argument("--value-rollouts", type=int, default=2, help="before, for the value net")
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    th.set_num_threads(1)  # networks this small lose more to threads than they gain

    transitions = load_demonstrations(DEMONSTRATIONS)
    trainer = DiffusionBC(
        demonstrations=transitions,
        env=ENV,
        dm_coef=0,  # the critic comes later
        batch_size=128,
        learning_rate=lambda left: 3e-4 * left,
        seed=options.seed,
        device="cpu",
    )
    trainer.train(n_batches=options.updates)

    critic = DiffusionCritic(
        trainer.observation_space,
        trainer.action_space,
        models="state_action",
        n_steps=options.critic_steps,
        seed=options.seed,
        device="cpu",
    )
    critic.fit(transitions)
    # Walker's episodes end by a fall, so that each step has to be worth something.
    reward = CriticReward(critic, transitions, bias="survival")

    venv = reward.wrap(make_vec_env(ENV, N_ENVS, seed=options.seed))
    model = trainer.to_rl(
        PPO,
        VecNormalize(venv, norm_obs=False, gamma=SETTINGS["gamma"]),
        value_timesteps=options.value_rollouts * ROLLOUT,
        seed=options.seed,
        **SETTINGS,
    )
    rows = [row("clone", 0, model.policy, reward, options.episodes)]
    model.learn(options.rollouts * ROLLOUT)
    steps = (options.value_rollouts + options.rollouts) * ROLLOUT
    rows.append(row("PPO with the critic's reward", steps, model.policy, reward, options.episodes))

    names = ("torch", "stable-baselines3", "gymnasium", "mujoco", "sb3-diffbc")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    text = "\n".join(
        [
            "| | environment steps | return (95 % interval) | episode's length | critic's reward |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Seed {options.seed}; means over the same {options.episodes} episodes for returns and "
            "lengths, with the interval over episodes, and over as many others for sums of the "
            f"critic's reward. Python {sys.version.split()[0]}, {versions}.",
            f"`{' '.join(['python', 'examples/critic_reward.py', *sys.argv[1:]])}`",
            "",
        ]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "critic_reward.md").write_text(text)
    print(f"\n{text}\nThe table is in {options.out}.")


if __name__ == "__main__":
    main()
