"""What a run measures, and on which demonstrations."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from gymnasium import spaces
from imitation.data import types
from imitation.util import logger as imit_logger

from sb3_diffbc import load_demonstrations
from sb3_diffbc.demonstrations import DemonstrationWarning
from sb3_diffbc.tasks import find_task

TASKS = ("walker", "cheetah", "maze")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of all measurements; the defaults are those of the published figures."""

    results: Path
    paper_data: Path | None = None
    threads: int = 2
    blocks: int = 15
    seeds: int = 3
    release_steps: int = 40_000
    release_every: int = 250
    release_patience: int = 12  # evaluations without a better loss
    release_width: int = 1024
    again: bool = False
    rows: int | None = None
    batch_sizes: tuple[int, ...] = (32, 128, 1024)
    min_updates: int = 60
    critic: dict[str, Any] = dataclasses.field(default_factory=dict)
    policy_updates: int = 100
    release_updates: int = 10
    actions: int = 5
    precision_steps: int = 500
    growth_sizes: tuple[int, ...] = tuple(10**power for power in range(3, 8))
    growth_updates: int = 100

    def demonstrations(self, name: str) -> types.Transitions:
        """The authors' file where their folder is given, the bundled set otherwise."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DemonstrationWarning)
            file = find_task(name).paper_file
            source = name if self.paper_data is None or file is None else self.paper_data / file
            found = load_demonstrations(source)
        return found if self.rows is None else found[: self.rows]


QUICK: dict[str, Any] = {
    "blocks": 3,
    "seeds": 1,
    "release_steps": 20,
    "release_every": 10,
    "release_width": 32,
    "rows": 400,
    "batch_sizes": (128,),
    "min_updates": 3,
    "critic": {"n_steps": 25, "width": 16, "depth": 1},
    "policy_updates": 2,
    "release_updates": 1,
    "actions": 1,
    "precision_steps": 3,
    "growth_sizes": (1_000,),
    "growth_updates": 3,
}
"""Sizes that only show that everything runs."""


class Spaces(TypedDict):
    """The spaces, as trainers, critics and policies take them."""

    observation_space: spaces.Box
    action_space: spaces.Box


def spaces_of(transitions: types.TransitionsMinimal) -> Spaces:
    """Unbounded spaces of the demonstrations' shapes, so that no environment is needed."""
    return {
        "observation_space": _box(types.assert_not_dictobs(transitions.obs).shape[1:]),
        "action_space": _box(transitions.acts.shape[1:]),
    }


def _box(shape: tuple[int, ...]) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def no_logger() -> imit_logger.HierarchicalLogger:
    """A logger that writes nothing."""
    return imit_logger.configure(format_strs=[])
