"""The comparison of DiffusionBC with other methods."""

from benchmarks.cell import Evaluation
from benchmarks.methods import METHODS
from benchmarks.problems import default_keys
from benchmarks.suites.base import Suite

SUITE = Suite(
    name="comparison",
    variants=tuple(METHODS.values()),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=0, n_checkpoints=10
    ),
    default_tasks=default_keys,
    first_seed=100,  # the search for DiffusionBC's defaults used lower ones
    n_seeds=5,
    n_interactive_seeds=3,
)
