"""The paper's own comparison, at the paper's own budgets: BC against DBC, as in the release.

The authors' demonstrations and, on Maze, their own trained φ. Elsewhere one critic, fitted for as
long as theirs, serves all seeds; it stays beside the records.
"""

from pathlib import Path

import filelock

from benchmarks import record
from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc_paper import PaperDiffusionBC
from benchmarks.suites.base import Suite
from sb3_diffbc import DiffusionCritic
from sb3_diffbc.critic.encoder import resolve_device

NAME = "paper"
AUTHORS_CRITICS = {"maze": "maze_ddpm.pt"}
"""The authors' φ by task, beside their demonstrations."""


class FullBudget(PaperDiffusionBC):
    """The release's settings and budgets, with the authors' φ where they published it."""

    def fitted_critic(self) -> DiffusionCritic:
        """Takes the authors' φ, or the critic that the first of all cells fits."""
        setup = self.setup
        published = Path(setup.source).parent / AUTHORS_CRITICS.get(setup.task, "-")
        if published.is_file():
            return DiffusionCritic.from_release(
                published, setup.demonstrations, **setup.spaces, device="cpu"
            )
        steps = self.critic.config["n_steps"]
        path = record.RUNS / NAME / f"{setup.task}-critic-{steps}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if path.exists():
                return DiffusionCritic.load(path, device="cpu")
            # Networks of 1024 units are slow without a GPU; where they were fitted does not matter.
            self.critic.to(resolve_device("auto"))
            super().fitted_critic().save(path)
        return DiffusionCritic.load(path, device="cpu")


SUITE = Suite(
    name=NAME,
    variants=(
        Variant("bc", FullBudget, {"dm_coef": 0.0}, "BC"),
        Variant("dbc, clamp per batch", FullBudget, {"dm_clamp": "batch"}, "DBC (release)"),
        Variant("dbc, clamp per sample", FullBudget, {"dm_clamp": "sample"}, "DBC (formula)"),
    ),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=0, n_checkpoints=10
    ),
    default_tasks=lambda _: ("maze-paper", "cheetah-paper", "walker-paper", "fetch_pick"),
    first_seed=100,
    n_seeds=5,
)
