"""Updates and the critic's fit inside bfloat16 autocast, against single precision."""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from imitation.data import types

from benchmarks.speed.settings import Settings, no_logger, spaces_of
from benchmarks.speed.timing import Block, in_turns, milliseconds, summary
from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy

BATCH_SIZES = (128, 1024)
SINGLE, HALF = "float32", "bfloat16"


class Networks(NamedTuple):
    """Sizes of policy and critic; empty for the defaults.

    Attributes:
        name: in the table.
        policy: arguments of the policy.
        critic: arguments of the critic.
        share: of the usual number of updates, since large networks take long.
    """

    name: str
    policy: dict[str, Any]
    critic: dict[str, Any]
    share: float


NETWORKS = (
    Networks("default", {}, {}, 1),
    Networks("width 1024", {"net_arch": {"pi": [1024] * 3, "vf": []}}, {"width": 1024}, 0.1),
)


def autocast(precision: str) -> th.autocast:
    """The context for a precision; with single precision it does nothing."""
    return th.autocast("cpu", th.bfloat16, enabled=precision == HALF)


def _row(what: str, networks: Networks, batch: int, seconds: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": what,
        "networks": networks.name,
        "batch": batch,
        "ms": {precision: milliseconds(seconds[precision]) for precision in (SINGLE, HALF)},
        "time_to_single": summary(seconds[HALF] / seconds[SINGLE]),
    }


def _updates(
    demonstrations: types.Transitions, networks: Networks, batch_size: int, settings: Settings
) -> dict[str, Any]:
    spaces = spaces_of(demonstrations)
    # How good the critic is does not change how fast it is.
    arguments = {**networks.critic, **settings.critic, "n_steps": 2}
    critic = DiffusionCritic(**spaces, models="action", seed=0, device="cpu", **arguments)
    critic.fit(demonstrations, progress_bar=False)
    policy = StandardizedActorPolicy.from_demonstrations(
        demonstrations, **spaces, **networks.policy
    )
    n_updates = max(2, int(settings.min_updates * networks.share))

    def block(precision: str) -> Block:
        trainer = DiffusionBC(
            **spaces,
            demonstrations=demonstrations,
            policy=copy.deepcopy(policy),
            critic=critic,
            batch_size=batch_size,
            rng=np.random.default_rng(0),
            custom_logger=no_logger(),
            device="cpu",
        )

        def run() -> None:
            with autocast(precision):
                trainer.train(n_batches=n_updates, progress_bar=False, log_interval=10**9)

        return Block(run, n_updates)

    seconds = in_turns({name: block(name) for name in (SINGLE, HALF)}, settings.blocks)
    return _row("update with the full loss", networks, batch_size, seconds)


def _fits(
    demonstrations: types.Transitions, networks: Networks, batch_size: int, settings: Settings
) -> dict[str, Any]:
    n_steps = max(2, int(settings.precision_steps * networks.share))
    losses: dict[str, float] = {}

    def block(precision: str) -> Block:
        def run() -> None:
            arguments = {**networks.critic, **settings.critic, "n_steps": n_steps}
            critic = DiffusionCritic(
                **spaces_of(demonstrations),
                models="action",
                batch_size=batch_size,
                patience=10**6,
                seed=0,
                device="cpu",
                **arguments,
            )
            with autocast(precision):
                history = critic.fit(demonstrations, progress_bar=False)
            losses[precision] = history.validation_loss[-1]

        return Block(run, n_steps)

    seconds = in_turns({name: block(name) for name in (SINGLE, HALF)}, settings.blocks)
    row = _row("step of the critic's fit", networks, batch_size, seconds)
    return {**row, "steps": n_steps, "held_out_loss": losses}


def _rows(settings: Settings) -> Iterator[dict[str, Any]]:
    demonstrations = settings.demonstrations("walker")
    for networks in NETWORKS:
        for batch_size in BATCH_SIZES:
            if batch_size <= len(demonstrations):
                yield _updates(demonstrations, networks, batch_size, settings)
                yield _fits(demonstrations, networks, batch_size, settings)


def measure(settings: Settings) -> dict[str, Any]:
    """Times inside autocast relative to those outside, and what a fit comes to in both."""
    return {"demonstrations": "walker", "rows": list(_rows(settings))}
