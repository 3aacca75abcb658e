"""A critic that is fitted once, saved, and used in several trainings.

The critic does not depend on the policy, so one fit serves any number of seeds and coefficients.

    python examples/shared_critic.py
"""

import argparse
from pathlib import Path

import gymnasium as gym

from sb3_diffbc import DiffusionBC, DiffusionCritic, load_demonstrations

ENV = "sb3_diffbc/Maze-v0"


def main() -> None:
    """Fits or loads the critic, then trains with several coefficients."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--critic", type=Path, default=Path("maze_critic.safetensors"))
    parser.add_argument("--dm-coefs", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    parser.add_argument("--updates", type=int, default=5_000)
    parser.add_argument("--critic-steps", type=int, default=3_000, help="at most")
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation")
    arguments = parser.parse_args()

    demonstrations = load_demonstrations("maze")
    if arguments.critic.exists():
        critic = DiffusionCritic.load(arguments.critic)
    else:
        env = gym.make(ENV)
        critic = DiffusionCritic(
            env.observation_space,
            env.action_space,
            models="action",
            n_steps=arguments.critic_steps,
            seed=0,
        )
        critic.fit(demonstrations)
        critic.save(arguments.critic)

    for dm_coef in arguments.dm_coefs:
        trainer = DiffusionBC(
            demonstrations=demonstrations,
            env=ENV,
            critic=critic,
            dm_coef=dm_coef,
            bc_loss="mse",
            seed=0,
            verbose=0,
        )
        trainer.train(n_batches=arguments.updates)
        print(f"dm_coef={dm_coef}: {trainer.evaluate(arguments.episodes)}")


if __name__ == "__main__":
    main()
