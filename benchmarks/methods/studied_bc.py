"""``DiffusionBC`` with what is studied of L_DM: levels, draws, and what it is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th

from benchmarks.methods.base import Setup
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from sb3_diffbc import DiffusionBC, DiffusionCritic
from sb3_diffbc.critic import Noise, PairEncoder
from sb3_diffbc.losses import DiffusionBCLoss, DiffusionLoss, DiffusionMetrics


@dataclasses.dataclass(frozen=True)
class StudiedLoss(DiffusionLoss):
    """L_DM at a part of the noise levels, of several draws per pair, perhaps as a contrast.

    Args:
        noise_std: least and largest std √(1 − ᾱ_n) of the levels' noise.
        n_draws: draws per pair; the clamp sees the mean of their losses.
        is_contrast: whether losses are compared with those of the same actions at the observations
            of other pairs of the batch, as the critic's score does. An action that is likely
            everywhere, as an idle operator's, then gains nothing.
    """

    noise_std: tuple[float, float] = (0.0, 1.0)
    n_draws: int = 1
    is_contrast: bool = False

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
        of_sides = self._losses(obs, agent_acts, expert_acts, noise)
        if self.is_contrast:
            of_sides -= self._losses(obs.roll(1, dims=0), agent_acts, expert_acts, noise)
        agent, expert = of_sides[0], of_sides[1].detach()
        return DiffusionMetrics(self.clamped(agent, expert), agent, expert)

    def _losses(
        self, obs: th.Tensor, agent_acts: th.Tensor, expert_acts: th.Tensor, noise: Noise
    ) -> th.Tensor:
        """Returns the mean losses over draws of agent and expert, ``(2, batch)``."""
        n = self.n_draws
        found = super().__call__(
            obs.repeat(n, 1), agent_acts.repeat(n, 1), expert_acts.repeat(n, 1), noise
        )
        return th.stack([found.agent, found.expert]).unflatten(1, (n, -1)).mean(dim=1)


class BlindEncoder(PairEncoder):
    """Codes of observations are 0, so that a model of p(a | s) is one of p(a)."""

    def encode_obs(self, obs: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """Returns zeros, ``(batch, obs_dim)``."""
        return th.zeros_like(super().encode_obs(obs))


STUDIED: Mapping[str, Any] = {
    field.name: field.default
    for field in dataclasses.fields(StudiedLoss)
    if field.name not in DiffusionLoss.__dataclass_fields__
}
"""What :class:`StudiedLoss` adds, with the values that make it a ``DiffusionLoss``."""


class StudiedBC(DiffusionBC):
    """``DiffusionBC`` with a :class:`StudiedLoss`.

    Attributes:
        studied: arguments of the loss.
        critic_sees_obs: whether the critic is told the observations.
    """

    studied: Mapping[str, Any] = STUDIED
    critic_sees_obs: bool = True

    def _new_critic(self) -> DiffusionCritic:
        critic = super()._new_critic()
        if not self.critic_sees_obs:
            critic.encoder = BlindEncoder(self.observation_space, self.action_space)
        return critic

    def _make_loss(self) -> DiffusionBCLoss:
        loss = super()._make_loss()
        if loss.diffusion is None:
            return loss
        plain = vars(loss.diffusion)
        return dataclasses.replace(loss, diffusion=StudiedLoss(**plain, **self.studied))


class StudiedMethod(DiffusionBCMethod):
    """``DiffusionBC`` with what is studied here.

    Args:
        setup: demonstrations, spaces and seed.
        critic_sees_obs: whether the critic is told the observations.
        **arguments: as of :class:`DiffusionBCMethod`, and what is in ``STUDIED``.
    """

    trainer_class = StudiedBC
    trainer: StudiedBC
    defaults: ClassVar[Mapping[str, Any]] = {
        **DiffusionBCMethod.defaults,
        "is_contrast": False,
    }

    def __init__(self, setup: Setup, *, critic_sees_obs: bool = True, **arguments: Any) -> None:
        studied = {name: arguments.pop(name, value) for name, value in STUDIED.items()}
        super().__init__(setup, **arguments)
        self.trainer.studied, self.trainer.critic_sees_obs = studied, critic_sees_obs
        self.config |= {**studied, "critic_sees_obs": critic_sees_obs}
