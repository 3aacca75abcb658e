"""An update of DiffusionBC against imitation's BC, the same policy, the same demonstrations."""

import copy
import math
from typing import Any, cast

import numpy as np
from imitation.algorithms import bc
from imitation.data import types

from benchmarks.speed.settings import Settings, no_logger, spaces_of
from benchmarks.speed.timing import Block, in_turns, milliseconds, summary
from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy
from sb3_diffbc.demonstrations.batches import TransitionBatches

BC = "imitation's BC"
IN_MEMORY = "imitation's BC, batches in memory"
CLONING = "DiffusionBC, dm_coef=0"
FULL = "DiffusionBC"
COMPILED = "DiffusionBC, compile=True"


def make_trainers(
    demonstrations: types.Transitions, batch_size: int, settings: Settings
) -> dict[str, bc.BC]:
    """Trainers of the same initial policy."""
    spaces = spaces_of(demonstrations)
    # How good it is does not change how fast it is.
    arguments = {**settings.critic, "n_steps": 2}
    critic = DiffusionCritic(**spaces, models="action", seed=0, device="cpu", **arguments)
    critic.fit(demonstrations, progress_bar=False)
    policy = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)

    def shared() -> dict[str, Any]:
        return {
            **spaces,
            "policy": copy.deepcopy(policy),
            "demonstrations": demonstrations,
            "batch_size": batch_size,
            "rng": np.random.default_rng(0),
            "custom_logger": no_logger(),
            "device": "cpu",
        }

    in_memory = {"demonstrations": TransitionBatches(demonstrations, batch_size)}
    return {
        BC: bc.BC(**shared()),
        IN_MEMORY: bc.BC(**shared() | in_memory),
        CLONING: DiffusionBC(**shared(), dm_coef=0),
        FULL: DiffusionBC(**shared(), critic=critic),
        COMPILED: DiffusionBC(**shared(), critic=critic, compile=True),
    }


def training_block(trainer: bc.BC, n_rows: int, min_updates: int) -> Block:
    """Whole passes through the demonstrations: their start belongs to what a pass costs."""
    updates_per_pass = n_rows // trainer.batch_size
    n_epochs = math.ceil(min_updates / updates_per_pass)
    return Block(
        lambda: trainer.train(n_epochs=n_epochs, progress_bar=False, log_interval=10**9),
        n_epochs * updates_per_pass,
    )


def measure(settings: Settings) -> dict[str, Any]:
    """Times of updates relative to BC's, by batch size."""
    demonstrations = settings.demonstrations("maze")
    rows = []
    for batch_size in settings.batch_sizes:
        trainers = make_trainers(demonstrations, batch_size, settings)
        blocks = {
            name: training_block(trainer, len(demonstrations), settings.min_updates)
            for name, trainer in trainers.items()
        }
        seconds = in_turns(blocks, settings.blocks)
        rows += [
            {
                "batch": batch_size,
                "contestant": name,
                "updates_per_block": blocks[name].units,
                "ms": milliseconds(seconds[name]),
                "time_to_bc": summary(seconds[name] / seconds[BC]),
            }
            for name, trainer in trainers.items()
            # Where compiling fails, a trainer goes on without it, and says so.
            if name != COMPILED or cast(DiffusionBC, trainer).compile
        ]
    return {"demonstrations": "maze", "transitions": len(demonstrations), "rows": rows}
