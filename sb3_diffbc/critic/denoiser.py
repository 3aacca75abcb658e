"""The critic's network: it predicts the noise of a noisy pair."""

import math

import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)


def sinusoidal_table(num_train_timesteps: int, dim: int) -> th.Tensor:
    """Computes sinusoidal features of every noise level (Vaswani et al., 2017, section 3.5).

    Args:
        num_train_timesteps: number of noise levels.
        dim: number of features, even.

    Returns:
        Float32 table of shape ``(num_train_timesteps, dim)``.
    """
    half = dim // 2
    frequencies = th.exp(-math.log(10_000) * th.arange(half) / half)
    # Levels are spread over [0, 1000) whatever their number, the range that the frequencies suit.
    levels = th.arange(num_train_timesteps) * (1000 / num_train_timesteps)
    angles = levels.unsqueeze(-1) * frequencies
    return th.cat([angles.sin(), angles.cos()], dim=-1)


class ResidualDenoiser(nn.Module):
    """Residual MLP conditioned on the noise level through sinusoidal features.

    Args:
        state_dim: size of the state code.
        action_dim: size of the action code.
        output_dim: size of the predicted noise.
        num_train_timesteps: number of noise levels.
        width: hidden units per layer.
        depth: number of residual blocks, two layers each.
    """

    time_features: th.Tensor
    _TIME_DIM = 64

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        output_dim: int,
        *,
        num_train_timesteps: int,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.register_buffer(
            "time_features",
            sinusoidal_table(num_train_timesteps, self._TIME_DIM),
            persistent=False,
        )
        # The first layer's two halves: the sum of both is a layer over the whole pair.
        self.state_in = nn.Linear(state_dim, width)
        self.action_in = nn.Linear(action_dim, width, bias=False)
        # One matrix product gives every block its own shift.
        self.time_in = nn.Linear(self._TIME_DIM, width * depth)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, output_dim)
        # Starting at "no noise" (a loss of 1 per dimension) saves the first few hundred steps.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, state: th.Tensor, action: th.Tensor, timesteps: th.Tensor) -> th.Tensor:
        """Predicts the noise.

        Args:
            state: state codes, noisy or not, shape ``(batch, state_dim)``.
            action: noisy action codes, shape ``(batch, action_dim)``.
            timesteps: noise levels, int64 of shape ``(batch,)``.

        Returns:
            Predicted noise of shape ``(batch, output_dim)``.
        """
        hidden = self.state_in(state) + self.action_in(action)
        shifts = self.time_in(self.time_features[timesteps]).chunk(len(self.first), dim=-1)
        for first, second, shift in zip(self.first, self.second, shifts, strict=True):
            hidden = hidden + second(F.silu(first(F.silu(hidden)) + shift))
        return self.out(F.silu(hidden))
