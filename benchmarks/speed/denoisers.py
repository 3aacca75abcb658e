"""Held-out denoising loss against time for critics of other sizes and recipes than the default.

One thing is changed at a time. All fits of a task see the same pairs, and are judged on the same
held-out pairs under the same noise.
"""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from imitation.data import types

from benchmarks.speed.critic import Judge, JudgedCritic, cached_curve, our_curve
from benchmarks.speed.settings import TASKS, Settings
from sb3_diffbc.critic.critic import MODELS

DEFAULT = "96 x 2 (default)"
_SEED = 1


class ConstantRate(JudgedCritic):
    """A critic whose learning rate does not fall."""

    def _lr_schedule(
        self, optimizer: th.optim.Optimizer, n_steps: int
    ) -> th.optim.lr_scheduler.LRScheduler:
        return th.optim.lr_scheduler.ConstantLR(optimizer, factor=1)


class Variant(NamedTuple):
    """What is different from the default critic.

    Attributes:
        name: in tables, and in the names of files.
        is_network: whether the network differs, rather than how it is fitted.
        arguments: of the critic.
        cls: its class.
    """

    name: str
    is_network: bool
    arguments: dict[str, Any]
    cls: type[JudgedCritic] = JudgedCritic


def _residual(width: int, depth: int) -> Variant:
    return Variant(f"{width} x {depth}", True, {"width": width, "depth": depth})


def _release(width: int) -> Variant:
    # The release's three layers that act.
    arguments = {"denoiser": "release", "width": width, "depth": 3}
    return Variant(f"release's network, {width} x 3", True, arguments)


VARIANTS = (
    *(_residual(width, 2) for width in (32, 64)),
    Variant(DEFAULT, True, {}),
    *(_residual(width, depth) for width, depth in ((96, 3), (128, 2), (256, 2))),
    _release(128),
    Variant("1500 steps", False, {"n_steps": 1500}),
    Variant("3000 steps", False, {"n_steps": 3000}),
    Variant("no averaging", False, {"ema_decay": 0.0}),
    Variant("constant rate", False, {}, ConstantRate),
)


def _fit(
    task: str,
    models: str,
    variant: Variant,
    demonstrations: types.Transitions,
    judge: Judge,
    settings: Settings,
) -> dict[str, Any]:
    """One fit from beginning to end, or what an earlier run stored of it."""
    # Early stopping would hide what comes after the best loss.
    arguments = {"models": models, "patience": 10**6, **variant.arguments, **settings.critic}
    name = "".join(c if c.isalnum() else "_" for c in variant.name)
    curve = cached_curve(
        settings.results / "speed" / "denoisers" / f"{task}-{models}" / f"{name}.json",
        {"class": variant.cls.__name__, "arguments": arguments, "seed": _SEED, **judge.key},
        lambda: our_curve(demonstrations, judge, _SEED, cls=variant.cls, **arguments),
        settings,
    )
    best = int(np.argmin(curve["held_out_loss"]))
    return {
        "variant": variant.name,
        "is_network": variant.is_network,
        "ms_per_step": curve["seconds"][-1] / curve["steps"][-1] * 1e3,
        "best_loss": curve["held_out_loss"][best],
        "best_step": curve["steps"][best],
        "seconds_to_best": curve["seconds"][best],
        "curve": {name: curve[name] for name in ("steps", "seconds", "held_out_loss")},
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All variants on all tasks, for p(s, a) and p(a | s)."""
    found: dict[str, Any] = {}
    for task in TASKS:
        demonstrations = settings.demonstrations(task)
        for models in MODELS:
            print(f"denoisers: {task}, {models}", flush=True)
            judge = Judge(demonstrations, settings, models=models)
            found.setdefault(task, {})[models] = [
                _fit(task, models, variant, demonstrations, judge, settings) for variant in VARIANTS
            ]
    return {"tasks": found}
