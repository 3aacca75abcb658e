"""What tells bad actions from good ones: critics, a clone's residual, and both together.

Each cell fits two critics and one clone to demonstrations with bad labels and scores every one of
their pairs in several ways. All scorers are fitted to the pairs that they score, bad ones
included, as they would be in practice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch as th
from scipy import stats

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Setup, Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.problems import default_keys
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import TUNING_SEED
from benchmarks.suites.labels import N_UPDATES, labels_problem
from sb3_diffbc import DiffusionCritic
from sb3_diffbc.critic import Noise
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.scoring import PolicyResidual

CRITIC_STEPS = 6_000
MODELS: tuple[Literal["action", "state_action"], ...] = ("action", "state_action")
"""What the critics model."""


class ScoringMethod(DiffusionBCMethod):
    """A clone, and critics beside it that have no part in its training.

    Args:
        setup: demonstrations, spaces and seed.
        critic_steps: of each critic's fit, at most.
        **arguments: of :class:`DiffusionBCMethod`.
    """

    quick: ClassVar[Mapping[str, Any]] = {"n_updates": 20, "critic_steps": 25}

    def __init__(self, setup: Setup, *, critic_steps: int = CRITIC_STEPS, **arguments: Any) -> None:
        super().__init__(setup, dm_coef=0.0, **arguments)
        self.critics = {
            models: DiffusionCritic(
                **setup.spaces, models=models, n_steps=critic_steps, seed=setup.seed, device="cpu"
            )
            for models in MODELS
        }
        for models, critic in self.critics.items():
            settings = {name: value for name, value in critic.config.items() if name != "seed"}
            self.config[f"critic/{models}"] = settings

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says; the critics come first."""
        phase = self.clock.switch("critic")
        for critic in self.critics.values():
            critic.fit(self.setup.demonstrations, progress_bar=False)
        self.clock.switch(phase)
        super().train(on_progress)

    def measures(self) -> dict[str, float]:
        """How well each scorer tells bad rows from good ones, and bad trajectories."""
        is_bad = self.setup.bad_rows()
        if is_bad is None or not 0 < is_bad.sum() < len(is_bad):
            return {}
        measures = {}
        lengths = lengths_of(self.setup.demonstrations.dones)
        starts = np.cumsum(lengths) - lengths
        share_bad = np.add.reduceat(is_bad, starts) / lengths
        for name, values in self.scores().items():
            measures[f"auroc/{name}"] = auroc(values, is_bad)
            if np.isin(share_bad, (0, 1)).all():
                means = np.add.reduceat(ranks(values), starts) / lengths
                measures[f"auroc_trajectories/{name}"] = auroc(means, share_bad == 1)
        return measures

    def scores(self) -> dict[str, np.ndarray]:
        """Returns what each scorer says of each pair, more for what looks better."""
        obs, acts = self.setup.demonstrations.obs, self.setup.demonstrations.acts
        scores: dict[str, th.Tensor] = {}
        for models, critic in self.critics.items():
            scores[f"critic/{models}"] = critic.score(obs, acts, raw=True)
            draws = [critic.draw_noise(len(acts), th.Generator().manual_seed(self.setup.seed))]
            scores[f"one_draw/{models}"] = -mean_loss(critic, obs, acts, draws)
            assert critic.calibration is not None
            draws = [
                Noise(level.expand(len(acts)), epsilon.expand(len(acts), -1))
                for level, epsilon in zip(
                    critic.calibration.timesteps, critic.calibration.epsilon, strict=True
                )
            ]
            scores[f"loss/{models}"] = -mean_loss(critic, obs, acts, draws)
        residual = PolicyResidual(self.policy, self.setup.demonstrations)
        scores["residual"] = residual.score(obs, acts, raw=True)
        errors = residual.errors(obs, acts)
        scores["absolute"] = -errors.abs().mean(dim=-1)
        scores["squared"] = -errors.square().mean(dim=-1)
        found = {name: values.numpy() for name, values in scores.items()}
        for models in MODELS:
            both = ranks(found[f"critic/{models}"]) + ranks(found["residual"])
            found[f"both/{models}"] = both
        return found


@th.no_grad()
def mean_loss(critic: DiffusionCritic, obs: Any, acts: Any, draws: list[Noise]) -> th.Tensor:
    """Returns the mean of L_diff over draws, shape ``(n,)``."""
    return th.stack([critic.denoising_loss(obs, acts, noise=noise) for noise in draws]).mean(dim=0)


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns the place of each value among all, from 0 to 1."""
    return stats.rankdata(values) / len(values)


def auroc(values: np.ndarray, is_bad: np.ndarray) -> float:
    """Returns how often a good one has more than a bad one; where both have the same, half."""
    found = stats.mannwhitneyu(values[~is_bad], values[is_bad], method="asymptotic")
    return float(found.statistic / (is_bad.sum() * (~is_bad).sum()))


CONDITIONS = (
    *("uniform10", "uniform25", "swapped10", "swapped25", "zeros10", "zeros25"),
    "novice25",
)

SUITE = Suite(
    name="scores",
    variants=tuple(
        Variant(loss, ScoringMethod, {"n_updates": N_UPDATES, "bc_loss": loss})
        for loss in ("l1", "mse")
    ),
    default_variants=("l1",),
    # The clone's own score is a by-product.
    evaluation=Evaluation(n_episodes={"success": 1, "return": 1}, first_episode_seed=TUNING_SEED),
    default_tasks=lambda paper_data: tuple(
        f"{task}+{condition}" for condition in CONDITIONS for task in default_keys(paper_data)
    ),
    first_seed=100,
    n_seeds=3,
    problem=labels_problem,
)
