"""How much faster an update is than imitation's BC with the same policy.

    python -m benchmarks.step_time

Times blocks of updates of both trainers in turn, so that a machine whose speed drifts does not
favour one, and prints the median ratio with the range of its middle half. Writes the figures to
``benchmarks/results/step_time.json``.
"""

import argparse
import copy
import json
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from imitation.algorithms import bc
from imitation.util import logger as imit_logger

from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy, load_demonstrations

RESULT = Path(__file__).parent / "results" / "step_time.json"


def seconds_of(trainer: bc.BC, updates: int) -> float:
    """Wall-clock time of a number of updates, without logging."""
    began = time.perf_counter()
    trainer.train(n_batches=updates, progress_bar=False, log_interval=10**9)
    return time.perf_counter() - began


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 128, 1024])
    parser.add_argument("--updates", type=int, default=60, help="in a block")
    parser.add_argument("--blocks", type=int, default=15, help="of each trainer")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    arguments = parser.parse_args()
    th.set_num_threads(arguments.threads)
    env = gym.make("sb3_diffbc/Maze-v0")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    demonstrations = load_demonstrations("maze")
    # Its quality does not change its speed.
    critic = DiffusionCritic(**spaces, models="action", n_steps=20, seed=0)
    critic.fit(demonstrations, progress_bar=False)
    policy = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)
    ratios = {}
    for batch_size in arguments.batch_sizes:
        shared = {
            **spaces,
            "demonstrations": demonstrations,
            "batch_size": batch_size,
            "rng": np.random.default_rng(0),
            "custom_logger": imit_logger.configure(format_strs=[]),
        }
        trainers = {
            "BC": bc.BC(policy=copy.deepcopy(policy), **shared),
            "DiffusionBC, dm_coef=0": DiffusionBC(
                policy=copy.deepcopy(policy), dm_coef=0, **shared
            ),
            "DiffusionBC": DiffusionBC(policy=copy.deepcopy(policy), critic=critic, **shared),
        }
        for trainer in trainers.values():
            seconds_of(trainer, 10)  # warm up
        blocks = [
            {name: seconds_of(t, arguments.updates) for name, t in trainers.items()}
            for _ in range(arguments.blocks)
        ]
        for name in list(trainers)[1:]:
            speedups = np.array([block["BC"] / block[name] for block in blocks])
            low, median, high = np.quantile(speedups, [0.25, 0.5, 0.75])
            ratios[f"{name}, batch {batch_size}"] = {"median": median, "middle_half": [low, high]}
            print(
                f"batch {batch_size:5}: an update of {name} is {median:.2f} times as fast as "
                f"BC's ({low:.2f} to {high:.2f})"
            )
    record = {
        "command": " ".join(["python -m benchmarks.step_time", *sys.argv[1:]]),
        "speed_relative_to_bc": ratios,
        "threads": arguments.threads,
        "blocks": arguments.blocks,
        "updates_per_block": arguments.updates,
        "processor": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "imitation", "stable-baselines3")},
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
