"""DAgger with DiffusionBC in place of imitation's BC; the line that differs is marked.

The scripted Maze expert labels the states that the learner reaches, round by round.

    python examples/dagger.py
"""

import argparse
import tempfile

import numpy as np
from imitation.algorithms.dagger import SimpleDAggerTrainer
from imitation.data.wrappers import RolloutInfoWrapper
from imitation.util import util

from sb3_diffbc import DiffusionBC, evaluate_episodes
from sb3_diffbc.envs import MAZE_ENV_ID, MazeExpert


def main() -> None:
    """Trains in rounds and prints an evaluation after each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--steps", type=int, default=2_000, help="labelled steps per round, at least"
    )
    parser.add_argument("--epochs", type=int, default=20, help="of training per round")
    parser.add_argument("--episodes", type=int, default=50, help="of each evaluation")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = np.random.default_rng(arguments.seed)
    venv = util.make_vec_env(
        MAZE_ENV_ID,
        n_envs=8,
        rng=rng,
        post_wrappers=[lambda env, _: RolloutInfoWrapper(env)],
    )
    trainer = SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=tempfile.mkdtemp(prefix="dagger-"),
        expert_policy=MazeExpert(),
        bc_trainer=DiffusionBC(env=venv, rng=rng, seed=arguments.seed, verbose=0),  # was: bc.BC
        rng=rng,
    )
    for round_number in range(1, arguments.rounds + 1):
        trainer.train(
            total_timesteps=arguments.steps,
            rollout_round_min_timesteps=arguments.steps,
            bc_train_kwargs={"n_epochs": arguments.epochs, "log_rollouts_n_episodes": 0},
        )
        result = evaluate_episodes(trainer.policy, MAZE_ENV_ID, n_episodes=arguments.episodes)
        print(f"after round {round_number}: {result}")
    venv.close()


if __name__ == "__main__":
    main()
