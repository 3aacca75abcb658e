"""What a run measures, and on which demonstrations."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from gymnasium import spaces
from imitation.data import types

from sb3_diffbc import load_demonstrations
from sb3_diffbc.demonstrations import DemonstrationWarning
from sb3_diffbc.tasks import find_task


@dataclasses.dataclass
class Settings:
    """Sizes of all measurements; the defaults are those of the published figures."""

    paper_data: Path | None = None
    """Folder with the authors' .pt files; without it, the bundled demonstrations are used."""
    threads: int = 2
    """Of torch."""
    rounds: int = 15
    """Blocks of each contestant."""
    batch_sizes: tuple[int, ...] = (32, 128, 1024)
    """Samples per update."""
    min_updates: int = 60
    """Updates per block, rounded up to whole passes through the demonstrations."""
    actions: int = 5
    """Actions per block of the slow policies."""
    release_steps: int = 20_000
    """Steps of the release's fit of its critic, which goes on for 320,000."""
    release_width: int = 1024
    """Of the release's network."""
    training_rounds: int = 5
    """Whole trainings."""
    data_sizes: tuple[int, ...] = (10**5, 10**6, 10**7)
    """Numbers of transitions, compared with 10,000."""
    data_updates: int = 200
    """Updates per block of these."""

    # What only a trial run changes.
    rows: int | None = dataclasses.field(default=None, init=False)
    critic: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)
    training_updates: int | None = dataclasses.field(default=None, init=False)

    def shrink(self) -> None:
        """Takes sizes that only show that everything runs."""
        self.rounds = self.training_rounds = 2
        self.batch_sizes, self.min_updates, self.actions = (128,), 3, 1
        self.release_steps, self.release_width = 20, 32
        self.data_sizes, self.data_updates = (1_000,), 3
        self.rows, self.training_updates = 400, 2
        self.critic = {"n_steps": 25, "width": 16, "depth": 1}

    def demonstrations(self, name: str) -> types.Transitions:
        """Returns the authors' file where their folder is given, the bundled set otherwise."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DemonstrationWarning)
            file = find_task(name).paper_file
            source = name if self.paper_data is None or file is None else self.paper_data / file
            found = load_demonstrations(source)
        return found if self.rows is None else found[: self.rows]


class Spaces(TypedDict):
    """The spaces, as trainers, critics and policies take them."""

    observation_space: spaces.Box
    action_space: spaces.Box


def spaces_of(transitions: types.TransitionsMinimal) -> Spaces:
    """Returns unbounded spaces of the demonstrations' shapes, so that no environment is needed."""

    def box(array: np.ndarray) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, array.shape[1:], np.float32)

    return {
        "observation_space": box(types.assert_not_dictobs(transitions.obs)),
        "action_space": box(transitions.acts),
    }
