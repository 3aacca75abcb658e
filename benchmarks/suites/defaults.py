"""The search for DiffusionBC's defaults.

Episodes start from seeds of their own (``TUNING_SEED`` and up), which no comparison uses.
"""

from typing import Any

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.suites.base import Suite

TUNING_SEED = 1_000_000

_NETWORKS = {
    "3 x 128": (128, 128, 128),
    "3 x 256": (256, 256, 256),
    "4 x 128": (128, 128, 128, 128),
    "2 x 256": (256, 256),
    "2 x 512": (512, 512),
}
_BUDGETS = {"20k": 20_000, "40k": 40_000, "80k": 80_000}
_CRITICS: dict[str, dict[str, Any]] = {
    "BC": {"dm_coef": 0.0},
    **{
        f"{name} {width} x {depth} dm_coef={dm_coef:g}": {
            "dm_coef": dm_coef,
            "critic_models": models,
            "critic_kwargs": {"width": width, "depth": depth, "n_steps": n_steps},
        }
        for name, models in {"p(a|s)": "action", "p(s,a)": "state_action"}.items()
        for width, depth, n_steps in ((64, 2, 3000), (96, 2, 6000), (128, 3, 3000))
        for dm_coef in (0.3, 1.0, 3.0, 10.0, 30.0)
    },
}
_STEPS: dict[str, dict[str, Any]] = {
    f"{batch}{rate}": {"batch_size": batch_size, "optimizer_kwargs": {"lr": lr}}
    for batch, batch_size in {"": 32, ", batch 128": 128}.items()
    for rate, lr in {"": 1e-3, ", lr 3e-4": 3e-4}.items()
}

SUITE = Suite(
    name="defaults",
    variants=tuple(
        Variant(
            f"{network}, {loss}, {critic}, {budget}{step}",
            DiffusionBCMethod,
            {"bc_loss": loss, "net_arch": net_arch, "n_updates": n_updates}
            | arguments
            | step_arguments,
        )
        for network, net_arch in _NETWORKS.items()
        for loss in ("nll", "mse")
        for critic, arguments in _CRITICS.items()
        for budget, n_updates in _BUDGETS.items()
        for step, step_arguments in _STEPS.items()
    ),
    # The pair behind the defaults: the same network, budget and batches, with and without L_DM.
    default_variants=(
        "3 x 128, nll, BC, 20k, batch 128, lr 3e-4",
        "3 x 128, nll, p(a|s) 96 x 2 dm_coef=1, 20k, batch 128, lr 3e-4",
    ),
    evaluation=Evaluation(
        n_episodes={"success": 200, "return": 100}, first_episode_seed=TUNING_SEED
    ),
    default_tasks=lambda _: ("maze", "maze-paper", "walker-paper", "cheetah-paper"),
    n_seeds=3,
)
