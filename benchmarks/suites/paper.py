"""The paper's own comparison, at the paper's own budgets: BC against DBC, as in the release."""

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc_paper import PaperDiffusionBC
from benchmarks.suites.base import Suite

SUITE = Suite(
    name="paper",
    variants=(
        Variant("bc", PaperDiffusionBC, {"dm_coef": 0.0}, "BC"),
        Variant("dbc, clamp per batch", PaperDiffusionBC, {"dm_clamp": "batch"}, "DBC (release)"),
        Variant("dbc, clamp per sample", PaperDiffusionBC, {"dm_clamp": "sample"}, "DBC (formula)"),
    ),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=0, n_checkpoints=10
    ),
    default_tasks=lambda _: ("maze-paper", "cheetah-paper", "walker-paper", "fetch_pick"),
    first_seed=100,
    n_seeds=5,
)
