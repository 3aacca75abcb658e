"""The search for DiffusionBC's defaults.

Episodes start from seeds of their own (``TUNING_SEED`` and up), which no comparison uses.
"""

import re
from typing import Any

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.suites.base import Suite

TUNING_SEED = 1_000_000

# The pair behind the defaults: the same network, budget and batches, with and without L_DM.
_CHOSEN = (
    "3 x 128, nll, BC, 20k, batch 128, lr 3e-4",
    "3 x 128, nll, p(a|s) 96 x 2 dm_coef=1, 20k, batch 128, lr 3e-4",
)
_TRIED = (
    *_CHOSEN,
    "3 x 128, nll, BC, 20k",
    "3 x 128, nll, BC, 20k, lr 3e-4",
    "3 x 128, nll, p(a|s) 64 x 2 dm_coef=1, 20k",
    "3 x 128, nll, p(a|s) 96 x 2 dm_coef=10, 20k, batch 128, lr 3e-4",
    "3 x 128, nll, p(a|s) 96 x 2 dm_coef=30, 20k, batch 128, lr 3e-4",
    "3 x 128, nll, p(a|s) 128 x 3 dm_coef=1, 20k",
    "3 x 128, nll, p(s,a) 96 x 2 dm_coef=30, 20k, batch 128, lr 3e-4",
    "3 x 128, mse, BC, 20k",
    "3 x 128, mse, BC, 40k, batch 128",
    "3 x 128, mse, BC, 40k, batch 128, lr 3e-4",
    "3 x 128, mse, p(s,a) 96 x 2 dm_coef=10, 40k",
    "3 x 128, mse, p(s,a) 96 x 2 dm_coef=10, 40k, batch 128",
    "3 x 128, mse, p(s,a) 96 x 2 dm_coef=30, 40k, batch 128",
    "3 x 128, mse, p(s,a) 96 x 2 dm_coef=30, 80k",
    "3 x 256, nll, BC, 20k",
    "3 x 256, nll, BC, 20k, batch 128",
    "3 x 256, nll, BC, 40k",
    "3 x 256, nll, BC, 80k",
    "3 x 256, nll, p(a|s) 128 x 3 dm_coef=1, 20k",
    "3 x 256, nll, p(a|s) 128 x 3 dm_coef=1, 40k",
    "3 x 256, nll, p(a|s) 128 x 3 dm_coef=3, 20k",
    "3 x 256, nll, p(s,a) 128 x 3 dm_coef=1, 20k",
    "3 x 256, mse, BC, 20k",
    "3 x 256, mse, BC, 40k, batch 128",
    "3 x 256, mse, p(a|s) 128 x 3 dm_coef=1, 20k",
    "3 x 256, mse, p(s,a) 96 x 2 dm_coef=10, 40k, batch 128",
    "3 x 256, mse, p(s,a) 96 x 2 dm_coef=30, 40k, batch 128",
    "4 x 128, nll, BC, 20k",
    "2 x 256, nll, BC, 20k",
    "2 x 512, nll, BC, 20k",
)
_CRITIC = re.compile(r"(?P<models>.*) (?P<width>\d+) x (?P<depth>\d) dm_coef=(?P<dm_coef>\d+)")
_CRITIC_STEPS = {64: 3000, 96: 6000, 128: 3000}


def tried(name: str) -> Variant:
    """Reads layers, loss, critic and coefficient, updates, and what is not 32 and 1e-3, in turn."""
    policy, loss, critic, updates, *step = name.split(", ")
    depth, width = map(int, policy.split(" x "))
    given = dict(part.split(" ") for part in step)
    arguments: dict[str, Any] = {"dm_coef": 0.0}
    if found := _CRITIC.fullmatch(critic):
        size = int(found["width"])
        arguments = {
            "dm_coef": float(found["dm_coef"]),
            "critic_models": {"p(a|s)": "action", "p(s,a)": "state_action"}[found["models"]],
            "critic_kwargs": {
                "width": size,
                "depth": int(found["depth"]),
                "n_steps": _CRITIC_STEPS[size],
            },
        }
    return Variant(
        name,
        DiffusionBCMethod,
        {
            "bc_loss": loss,
            "net_arch": (width,) * depth,
            "n_updates": 1000 * int(updates.removesuffix("k")),
            "batch_size": int(given.get("batch", 32)),
            "optimizer_kwargs": {"lr": float(given.get("lr", 1e-3))},
            **arguments,
        },
    )


SUITE = Suite(
    name="defaults",
    variants=tuple(map(tried, _TRIED)),
    default_variants=_CHOSEN,
    evaluation=Evaluation(
        n_episodes={"success": 200, "return": 100}, first_episode_seed=TUNING_SEED
    ),
    default_tasks=lambda _: ("maze", "maze-paper", "walker-paper", "cheetah-paper"),
    n_seeds=3,
)
