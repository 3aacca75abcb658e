"""What every cell of the comparison has in common: episodes, checkpoints and budgets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sb3_diffbc import DiffusionBC


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The comparison's constants; the defaults are those of the published figures.

    Attributes:
        first_seed: the first training seed; the search for DiffusionBC's defaults used lower ones.
        n_episodes: of the final evaluation.
        first_episode_seed: the resets of the final evaluation count up from it.
        n_checkpoints: of the learning curve, spread evenly over training; the last is its end.
        curve_episodes: at each checkpoint, by metric: episodes of tasks with a return are long.
        first_curve_episode_seed: the resets of the curve's evaluations count up from it.
        last_checkpoints: how many of the curve's last checkpoints are averaged.
        n_predictions: timed calls of ``predict``.
        updates: of every offline method but the paper's settings; as many as DiffusionBC makes.
        paper_updates: with the paper's settings.
        paper_critic_steps: of the paper's critic at most.
        critic_kwargs: of DiffusionBC's own critic; empty for the library's defaults.
        interactive_steps: environment steps of GAIL and AIRL.
    """

    first_seed: int = 100
    n_episodes: int = 100
    first_episode_seed: int = 0
    n_checkpoints: int = 10
    curve_episodes: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: {"success": 20, "return": 5}
    )
    first_curve_episode_seed: int = 500_000
    last_checkpoints: int = 5
    n_predictions: int = 300
    updates: int = DiffusionBC.DEFAULT_N_BATCHES
    paper_updates: int = 10_000
    paper_critic_steps: int = 5_000
    critic_kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    interactive_steps: int = 100_000

    def checkpoints(self, length: int) -> frozenset[int]:
        """When the curve is measured in a training of so many units; fewer if it is shorter."""
        shares = range(1, self.n_checkpoints + 1)
        return frozenset(max(1, round(length * k / self.n_checkpoints)) for k in shares)


QUICK = Protocol(
    n_episodes=2,
    n_checkpoints=2,
    curve_episodes={"success": 1, "return": 1},
    last_checkpoints=1,
    n_predictions=3,
    updates=20,
    paper_updates=20,
    paper_critic_steps=25,
    critic_kwargs={"n_steps": 25},
    interactive_steps=2_048,
)
"""Sizes that only show that everything runs."""
