"""How far off a setting may be: learning rate, width and length of training, with and without L_DM.

Clean demonstrations on which long or wide training overfits or falls. Episodes are those kept for
tuning.
"""

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.methods.regularised_bc import L2_WEIGHT
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import TUNING_SEED

RATES = (1e-4, 3e-4, 1e-3)
WIDTHS = (64, 128, 256)
LENGTHS = (5_000, 20_000, 40_000, 80_000)
LOSSES = {
    "nll, BC": {"bc_loss": "nll", "dm_coef": 0.0},
    "mse, BC": {"bc_loss": "mse", "dm_coef": 0.0},
    "l1, BC": {"bc_loss": "l1", "dm_coef": 0.0},
    "mse, p(a|s) 3": {"bc_loss": "mse", "dm_coef": 3.0},
    "mse, weight decay": {"bc_loss": "mse", "dm_coef": 0.0, "l2_weight": L2_WEIGHT},
}

SUITE = Suite(
    name="forgiveness",
    variants=tuple(
        Variant(
            f"{loss}, 3 x {width}, lr {rate:g}, {length // 1000}k",
            DiffusionBCMethod,
            {
                "n_updates": length,
                "net_arch": (width,) * 3,
                "optimizer_kwargs": {"lr": rate},
                **arguments,
            },
        )
        for length in LENGTHS
        for width in WIDTHS
        for rate in RATES
        for loss, arguments in LOSSES.items()
    ),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=TUNING_SEED
    ),
    default_tasks=lambda _: ("walker-paper", "cheetah-paper", "maze-paper"),
    first_seed=100,
    n_seeds=5,
)
