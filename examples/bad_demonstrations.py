"""Demonstrations with wrong actions: which ones they are, and what leaving them out is worth.

A share of Cheetah's demonstrated actions is replaced by random ones. `score_demonstrations` does
not know which. It takes about two minutes on two cores.

    python examples/bad_demonstrations.py
"""

import argparse
import dataclasses
from pathlib import Path

import gymnasium as gym
import numpy as np

from sb3_diffbc import DiffusionBC, load_demonstrations, score_demonstrations

TASK, ENV = "cheetah", "HalfCheetah-v4"


def main() -> None:
    """Spoils demonstrations, scores them, and clones from all of them and from the best."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bad", type=float, default=0.25, help="share of wrong actions")
    parser.add_argument("--updates", type=int, default=10_000, help="of each clone")
    parser.add_argument("--episodes", type=int, default=10, help="of each evaluation")
    parser.add_argument("--out", type=Path, default=Path("scores.png"), help="the picture")
    arguments = parser.parse_args()

    demonstrations = load_demonstrations(TASK)
    rng = np.random.default_rng(0)
    is_bad = rng.random(len(demonstrations)) < arguments.bad
    space = gym.make(ENV).action_space
    random_acts = rng.uniform(space.low, space.high, demonstrations.acts.shape)
    acts = np.where(is_bad[:, None], random_acts, demonstrations.acts).astype(np.float32)
    spoilt = dataclasses.replace(demonstrations, acts=acts)

    scores = score_demonstrations(spoilt, env=ENV, n_updates=arguments.updates)
    scores.draw(arguments.out)
    kept = scores.kept(1 - arguments.bad)
    print(f"wrong actions: {is_bad.mean():.1%} of all, {is_bad[kept].mean():.1%} of those kept")
    print(f"the picture: {arguments.out}")

    best = {"obs": spoilt.obs[kept], "acts": spoilt.acts[kept]}
    for name, data in {"all": spoilt, "those kept": best}.items():
        trainer = DiffusionBC(
            demonstrations=data, env=ENV, bc_loss="mse", dm_coef=0, seed=0, verbose=0
        )
        trainer.train(n_batches=arguments.updates)
        print(f"cloned from {name}: {trainer.evaluate(arguments.episodes)}")


if __name__ == "__main__":
    main()
