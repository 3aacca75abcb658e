"""The paper's own comparison, at the paper's own budgets: BC against DBC, as in the release."""

import dataclasses

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc_paper import PaperDiffusionBC
from benchmarks.methods.regularised_bc import REMEDIES
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import tried

SUITE = Suite(
    name="paper",
    variants=(
        Variant("bc", PaperDiffusionBC, {"dm_coef": 0.0}, "BC"),
        Variant("dbc, clamp per batch", PaperDiffusionBC, {"dm_clamp": "batch"}, "DBC (release)"),
        Variant("dbc, clamp per sample", PaperDiffusionBC, {"dm_clamp": "sample"}, "DBC (formula)"),
        # Cheap rivals of L_DM, for Maze: as of other studies, and a tenth of the updates, which is
        # where BC's learning curve begins to fall there.
        *(
            Variant(f"bc, {name}", PaperDiffusionBC, REMEDIES[f"mse, {name}"], f"BC, {name}")
            for name in ("weight decay", "early stopping")
        ),
        Variant(
            "bc, a tenth of the updates",
            PaperDiffusionBC,
            {"dm_coef": 0.0, "n_updates": 28_800},
            "BC, 28,800 updates",
        ),
        Variant(
            "dbc, a tenth of the updates",
            PaperDiffusionBC,
            {"dm_clamp": "batch", "n_updates": 28_800},
            "DBC (release), 28,800 updates",
        ),
        # The BC that was best on Maze in the search for defaults, on episodes kept for tuning.
        dataclasses.replace(
            tried("3 x 256, nll, BC, 20k"),
            name="bc, likelihood, 20k",
            title="BC, 3 x 256, likelihood, 20,000 updates",
        ),
    ),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=0, n_checkpoints=10
    ),
    default_variants=("bc", "dbc, clamp per batch", "dbc, clamp per sample"),
    default_tasks=lambda _: ("maze-paper", "cheetah-paper", "walker-paper", "fetch_pick"),
    first_seed=100,
    n_seeds=5,
)
