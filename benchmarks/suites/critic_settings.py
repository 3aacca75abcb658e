"""What L_DM depends on: one setting of the critic, of its loss or of the coefficients at a time.

The base clones by squared error with λ_BC 1 and L_DM of p(a | s) at λ_DM 3. Clean demonstrations
of Maze, and of Cheetah and Walker such in which a quarter of the actions are wrong.

There is no variant without the expert's term: where nothing is clamped it is a constant, so that
"clamp none" is that variant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Setup, Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import TUNING_SEED
from benchmarks.suites.labels import labels_problem
from sb3_diffbc import DiffusionBC, DiffusionCritic
from sb3_diffbc.critic import Noise, PairEncoder
from sb3_diffbc.losses import DiffusionBCLoss, DiffusionLoss, DiffusionMetrics


@dataclasses.dataclass(frozen=True)
class LevelsLoss(DiffusionLoss):
    """L_DM at a part of the noise levels, of several draws per pair.

    Args:
        noise_std: least and largest std √(1 − ᾱ_n) of the levels' noise.
        n_draws: draws per pair; the clamp sees the mean of their losses.
    """

    noise_std: tuple[float, float] = (0.0, 1.0)
    n_draws: int = 1

    def draw_noise(self, batch_size: int) -> Noise:
        """Draws uniformly among the levels, one draw of all pairs after the other."""
        std = self.critic.schedule.sqrt_one_minus_alphas_cumprod
        low, high = self.noise_std
        levels = ((low <= std) & (std <= high)).nonzero().squeeze(dim=-1)
        timesteps, epsilon = super().draw_noise(batch_size * self.n_draws)
        # Spread evenly, so that antithetic pairs stay such, up to rounding.
        places = timesteps * len(levels) // len(std)
        return Noise(levels[places], epsilon)

    def __call__(
        self,
        obs: th.Tensor | dict[str, th.Tensor],
        agent_acts: th.Tensor,
        expert_acts: th.Tensor,
        noise: Noise | None = None,
    ) -> DiffusionMetrics:
        """As the base class says; ``noise`` has ``n_draws`` rows per pair."""
        assert isinstance(obs, th.Tensor)
        noise = noise or self.draw_noise(len(obs))
        n = self.n_draws
        drawn = super().__call__(
            obs.repeat(n, 1), agent_acts.repeat(n, 1), expert_acts.repeat(n, 1), noise
        )
        agent, expert = (
            losses.reshape(n, -1).mean(dim=0) for losses in (drawn.agent, drawn.expert)
        )
        return DiffusionMetrics(self.clamped(agent, expert), agent, expert)


class BlindEncoder(PairEncoder):
    """Codes of observations are 0, so that a model of p(a | s) is one of p(a)."""

    def encode_obs(self, obs: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """Returns zeros, ``(batch, obs_dim)``."""
        return th.zeros_like(super().encode_obs(obs))


class StudiedBC(DiffusionBC):
    """``DiffusionBC`` with a :class:`LevelsLoss`.

    Attributes:
        noise_std: of the loss.
        n_draws: of the loss.
        critic_sees_obs: whether the critic is told the observations.
    """

    noise_std: tuple[float, float] = (0.0, 1.0)
    n_draws: int = 1
    critic_sees_obs: bool = True

    def _new_critic(self) -> DiffusionCritic:
        critic = super()._new_critic()
        if not self.critic_sees_obs:
            critic.encoder = BlindEncoder(self.observation_space, self.action_space)
        return critic

    def _make_loss(self) -> DiffusionBCLoss:
        loss = super()._make_loss()
        plain = loss.diffusion
        if plain is None:
            return loss
        studied = LevelsLoss(
            plain.critic, plain.generator, plain.clamp, self.noise_std, self.n_draws
        )
        return dataclasses.replace(loss, diffusion=studied)


class StudiedMethod(DiffusionBCMethod):
    """``DiffusionBC`` with what is studied here.

    Args:
        setup: demonstrations, spaces and seed.
        noise_std: see :class:`LevelsLoss`.
        n_draws: likewise.
        critic_sees_obs: whether the critic is told the observations.
        **arguments: as of :class:`DiffusionBCMethod`.
    """

    trainer_class = StudiedBC
    trainer: StudiedBC
    # The critic's fit is as short, and its schedule stays the variant's.
    quick: ClassVar[Mapping[str, Any]] = {"n_updates": 20}

    def __init__(
        self,
        setup: Setup,
        *,
        noise_std: tuple[float, float] = StudiedBC.noise_std,
        n_draws: int = StudiedBC.n_draws,
        critic_sees_obs: bool = StudiedBC.critic_sees_obs,
        **arguments: Any,
    ) -> None:
        super().__init__(setup, **arguments)
        studied = {
            "noise_std": noise_std,
            "n_draws": n_draws,
            "critic_sees_obs": critic_sees_obs,
        }
        for name, value in studied.items():
            setattr(self.trainer, name, value)
        self.config |= studied


BASE: Mapping[str, Any] = {
    **{"n_updates": 10_000, "bc_loss": "mse", "bc_coef": 1.0},
    **{"critic_models": "action", "dm_coef": 3.0},
}
"""What a variant changes."""
COEFFICIENTS = (0.0, 0.1, 0.5, 1.0, 2.0, 10.0, 30.0)
"""Of both losses."""

_CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    **{
        f"schedule {name}": {"critic_kwargs": {"beta_schedule": name}}
        for name in ("linear", "cosine")
    },
    # Whose noise ends at a std of 0.8.
    "T 100": {"critic_kwargs": {"num_train_timesteps": 100}},
    "noise <= 0.3": {"noise_std": (0.0, 0.3)},
    "noise <= 0.5": {"noise_std": (0.0, 0.5)},
    "noise >= 0.5": {"noise_std": (0.5, 1.0)},
    "l1": {"bc_loss": "l1"},
    **{f"l1, noise <= {std}": {"bc_loss": "l1", "noise_std": (0.0, std)} for std in (0.3, 0.5)},
    **{f"draws {n}": {"n_draws": n} for n in (4, 16)},
    **{f"clamp {name}": {"dm_clamp": name} for name in ("batch", "none")},
    "critic p(a)": {"critic_sees_obs": False},
    "critic p(s,a)": {"critic_models": "state_action"},
    # Its loss is a mean over the state's dimensions, too, so that λ_DM weighs less.
    "critic p(s,a), λ 1 x 30": {"critic_models": "state_action", "dm_coef": 30.0},
}
_WEIGHTS: dict[str, dict[str, Any]] = {
    f"λ {bc_coef:g} x {dm_coef:g}": {"bc_coef": bc_coef, "dm_coef": dm_coef}
    for bc_coef in COEFFICIENTS
    for dm_coef in COEFFICIENTS
    if bc_coef or dm_coef
}
"""λ_BC x λ_DM."""


def one_of_each_ratio(weights: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the names of those whose ratio is not the base's and that no other has.

    To Adam a loss and ten times the loss are the same.
    """

    def angle(pair: Mapping[str, Any]) -> float:
        return round(math.atan2(pair["dm_coef"], pair["bc_coef"]), 6)

    def distance_from_1(name: str) -> list[float]:
        return [abs(math.log(weights[name][key] or 1e-9)) for key in ("bc_coef", "dm_coef")]

    found = {angle(BASE): ""}
    for name in sorted(weights, key=distance_from_1):
        found.setdefault(angle(weights[name]), name)
    return [name for name in weights if name in found.values()]


SUITE = Suite(
    name="critic-settings",
    variants=tuple(
        Variant(name, StudiedMethod, {**BASE, **changes})
        for name, changes in {**_CHANGES, **_WEIGHTS}.items()
    ),
    default_variants=(
        *_CHANGES,
        *one_of_each_ratio(_WEIGHTS),
    ),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=TUNING_SEED
    ),
    default_tasks=lambda _: ("maze-paper", "cheetah-paper+uniform25", "walker-paper+uniform25"),
    first_seed=100,
    n_seeds=5,
    problem=labels_problem,
)
