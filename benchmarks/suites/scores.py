"""What tells bad actions from good ones: critics, a clone's residual, and both together.

Each cell fits two critics and one clone to demonstrations with bad labels and scores every one of
their pairs in several ways. All scorers are fitted to the pairs that they score, bad ones
included, as they would be in practice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch as th
from scipy import stats
from stable_baselines3.common import policies

from benchmarks.cell import Evaluation
from benchmarks.corruption import bad_rows
from benchmarks.methods.base import Method, Setup, Variant
from benchmarks.problems import default_keys
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import TUNING_SEED
from benchmarks.suites.labels import labels_problem
from sb3_diffbc import DiffusionCritic
from sb3_diffbc.bad_demonstrations import CLONE_UPDATES, fit_clone
from sb3_diffbc.critic import Noise
from sb3_diffbc.critic.encoder import Pairs
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.label_noise import codes_of
from sb3_diffbc.scoring import PolicyResidual

CRITIC_STEPS = 6_000
MODELS: tuple[Literal["action", "state_action"], ...] = ("action", "state_action")
"""What the critics model."""


class ScoringMethod(Method):
    """The clone and the critic of ``score_demonstrations``, and a critic of p(s, a).

    Args:
        setup: demonstrations, spaces and seed.
        clone_updates: of the clone.
        critic_steps: of each critic's fit, at most.
    """

    length = 1
    clone: PolicyResidual

    def __init__(
        self, setup: Setup, *, clone_updates: int = CLONE_UPDATES, critic_steps: int = CRITIC_STEPS
    ) -> None:
        super().__init__(setup)
        self.clone_updates = clone_updates
        self.critics = {
            models: DiffusionCritic(
                **setup.spaces, models=models, n_steps=critic_steps, seed=setup.seed, device="cpu"
            )
            for models in MODELS
        }
        self.bad_label_share = 0.0
        self.config = {"clone_updates": clone_updates}
        for models, critic in self.critics.items():
            settings = {name: value for name, value in critic.config.items() if name != "seed"}
            self.config[f"critic/{models}"] = settings

    @property
    def policy(self) -> policies.ActorCriticPolicy:
        """As the base class says."""
        return self.clone.policy

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""
        self.clone, self.bad_label_share = fit_clone(
            self.setup.demonstrations,
            **self.setup.spaces,
            n_updates=self.clone_updates,
            seed=self.setup.seed,
            device=th.device("cpu"),
            progress_bar=False,
        )
        self.updates = self.clone_updates
        phase = self.clock.switch("critic")
        for critic in self.critics.values():
            critic.fit(self.setup.demonstrations, progress_bar=False)
        self.clock.switch(phase)
        on_progress()

    def measures(self) -> dict[str, float]:
        """How well each scorer tells bad rows from good ones, and bad trajectories."""
        is_bad = bad_rows(self.setup.demonstrations)
        if not 0 < is_bad.sum() < len(is_bad):
            return {}
        measures = {"bad_label_share": self.bad_label_share}
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
            draws = [
                Noise(level.expand(len(acts)), epsilon.expand(len(acts), -1))
                for level, epsilon in zip(
                    critic.calibration.timesteps, critic.calibration.epsilon, strict=True
                )
            ]
            scores[f"loss/{models}"] = -mean_loss(critic, obs, acts, draws)
        scores["residual"] = self.clone.score(obs, acts, raw=True)
        encoder = self.clone.encoder
        pairs = Pairs(encoder, obs, acts)
        codes, predicted = codes_of(self.clone.policy, encoder, pairs, th.arange(len(acts)))
        errors = codes - predicted
        scores["absolute"] = -errors.abs().mean(dim=-1)
        scores["squared"] = -errors.square().mean(dim=-1)
        elsewhere = scores["residual"] - scores["absolute"]
        scores["relative"] = scores["absolute"] / elsewhere
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
    variants=(Variant("scorers", ScoringMethod),),
    # The clone's own score is a by-product.
    evaluation=Evaluation(n_episodes={"success": 1, "return": 1}, first_episode_seed=TUNING_SEED),
    default_tasks=lambda paper_data: tuple(
        f"{task}+{condition}" for condition in CONDITIONS for task in default_keys(paper_data)
    ),
    first_seed=100,
    n_seeds=3,
    problem=labels_problem,
)
