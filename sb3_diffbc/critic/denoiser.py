"""Networks that predict the noise in a noisy (state, action) pair.

Both networks split their first layer into a state half and an action half. The two passes that
L_DM compares share the noisy state, so its half is computed once (``embed_state``).
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch as th
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  (torch's own convention)


def sinusoidal_table(num_train_timesteps: int, dim: int) -> th.Tensor:
    """Sinusoidal features of every noise level (Vaswani et al., 2017, section 3.5).

    Returns:
        Float32 table of shape ``(num_train_timesteps, dim)``, ``dim`` even.
    """
    half = dim // 2
    frequencies = th.exp(-math.log(10_000) * th.arange(half) / half)
    # Levels are spread over [0, 1000) whatever their number, the range that the frequencies suit.
    levels = th.arange(num_train_timesteps) * (1000 / num_train_timesteps)
    angles = levels.unsqueeze(-1) * frequencies
    return th.cat([angles.sin(), angles.cos()], dim=-1)


Trace = tuple[th.Tensor, ...]
"""What a network keeps of a pass for :meth:`gradient_to_action`; the rows are those of the pass."""

silu_backward = th.ops.aten.silu_backward


def weight_of(layer: nn.Module) -> th.Tensor:
    """The weights of a linear layer."""
    return layer.get_parameter("weight")


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
        self.state_in = nn.Linear(state_dim, width)
        self.action_in = nn.Linear(action_dim, width, bias=False)
        # One matrix product gives every block its own shift.
        self.time_in = nn.Linear(self._TIME_DIM, width * depth)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, output_dim)
        self._shifts: tuple[tuple[int, ...], th.Tensor] | None = None
        # Starting at "no noise" (a loss of 1 per dimension) saves the first few hundred steps.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embed_state(self, state: th.Tensor) -> th.Tensor:
        """State half of the first layer: ``(batch, state_dim)`` to ``(batch, width)``."""
        return self.state_in(state)

    def forward(
        self, state_embedding: th.Tensor, action: th.Tensor, timesteps: th.Tensor
    ) -> th.Tensor:
        """Predicts the noise.

        Args:
            state_embedding: what :meth:`embed_state` returned, shape ``(batch, width)``.
            action: action codes, shape ``(batch, action_dim)``.
            timesteps: noise levels, int64 of shape ``(batch,)``.

        Returns:
            Predicted noise of shape ``(batch, output_dim)``.
        """
        return self._trace(state_embedding, action, self.time_in(self.time_features[timesteps]))[0]

    def forward_frozen(
        self, state_embedding: th.Tensor, action: th.Tensor, timesteps: th.Tensor
    ) -> tuple[th.Tensor, Trace]:
        """Predicts the noise with weights that do not change, outside of autograd.

        Args:
            state_embedding: shape ``(batch, width)``.
            action: action codes of several pairs per state, shape ``(pairs, batch, action_dim)``.
            timesteps: int64 of shape ``(batch,)``.

        Returns:
            Predicted noise of shape ``(pairs, batch, output_dim)``, and what
            :meth:`gradient_to_action` needs.
        """
        return self._trace(state_embedding, action, self._frozen_shifts()[timesteps])

    def gradient_to_action(self, gradient: th.Tensor, trace: Trace) -> th.Tensor:
        """Backpropagates to the action codes.

        Args:
            gradient: of the predicted noise, shape ``(batch, output_dim)``.
            trace: of these rows.

        Returns:
            The gradient of the action codes, shape ``(batch, action_dim)``.
        """
        *blocks, last = trace
        gradient = silu_backward(gradient @ self.out.weight, last)
        for first, second, inner, outer in zip(
            reversed(self.first),
            reversed(self.second),
            reversed(blocks[1::2]),
            reversed(blocks[::2]),
            strict=True,
        ):
            through = silu_backward(gradient @ weight_of(second), inner)
            gradient = gradient + silu_backward(through @ weight_of(first), outer)
        return gradient @ self.action_in.weight

    def _trace(
        self, state_embedding: th.Tensor, action: th.Tensor, shifts: th.Tensor
    ) -> tuple[th.Tensor, Trace]:
        """The network, and the input of each of its activations in their order."""
        hidden = state_embedding + self.action_in(action)
        trace = []
        for first, second, shift in zip(
            self.first, self.second, shifts.chunk(len(self.first), dim=-1), strict=True
        ):
            inner = first(F.silu(hidden)) + shift
            trace += [hidden, inner]
            hidden = hidden + second(F.silu(inner))
        return self.out(F.silu(hidden)), (*trace, hidden)

    def _frozen_shifts(self) -> th.Tensor:
        """The blocks' shifts at every noise level, tabulated anew when their weights changed."""
        weight, bias = self.time_in.weight, self.time_in.bias
        key = (weight.data_ptr(), weight._version, bias.data_ptr(), bias._version)
        if self._shifts is None or self._shifts[0] != key:
            self._shifts = key, self.time_in(self.time_features)
        return self._shifts[1]


class ReleaseDenoiser(nn.Module):
    """The network of the DBC authors' release: ReLU MLP, one embedding table per hidden layer.

    The release's forward pass skips the last hidden layer of a network of depth 4, so three
    hidden layers and the output layer act; :meth:`from_state_dict` leaves the unused one out.

    Args:
        state_dim: size of the state code.
        action_dim: size of the action code.
        output_dim: size of the predicted noise.
        num_train_timesteps: number of noise levels.
        width: hidden units per layer.
        depth: number of hidden layers.
    """

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
        self.state_dim = state_dim
        sizes = [state_dim + action_dim] + [width] * depth
        self.hidden = nn.ModuleList(
            nn.Linear(size_in, size_out) for size_in, size_out in pairwise(sizes)
        )
        self.step_embeddings = nn.ModuleList(
            nn.Embedding(num_train_timesteps, width) for _ in range(depth)
        )
        self.out = nn.Linear(width, output_dim)

    def embed_state(self, state: th.Tensor) -> th.Tensor:
        """State half of the first layer: ``(batch, state_dim)`` to ``(batch, width)``."""
        weight = weight_of(self.hidden[0])[:, : self.state_dim]
        return F.linear(state, weight, self.hidden[0].get_parameter("bias"))

    def forward(
        self, state_embedding: th.Tensor, action: th.Tensor, timesteps: th.Tensor
    ) -> th.Tensor:
        """Predicts the noise; shapes as in :meth:`ResidualDenoiser.forward`."""
        return self.forward_frozen(state_embedding, action, timesteps)[0]

    def forward_frozen(
        self, state_embedding: th.Tensor, action: th.Tensor, timesteps: th.Tensor
    ) -> tuple[th.Tensor, Trace]:
        """As :meth:`ResidualDenoiser.forward_frozen`."""
        hidden = state_embedding + F.linear(action, self._action_weight())
        hidden = F.relu(hidden + self.step_embeddings[0](timesteps))
        trace = [hidden]
        for layer, embedding in zip(self.hidden[1:], self.step_embeddings[1:], strict=True):
            hidden = F.relu(layer(hidden) + embedding(timesteps))
            trace.append(hidden)
        return self.out(hidden), tuple(trace)

    def gradient_to_action(self, gradient: th.Tensor, trace: Trace) -> th.Tensor:
        """As :meth:`ResidualDenoiser.gradient_to_action`."""
        gradient = gradient @ self.out.weight
        for layer, hidden in zip(reversed(self.hidden[1:]), reversed(trace[1:]), strict=True):
            gradient = (gradient * (hidden > 0)) @ weight_of(layer)
        return (gradient * (trace[0] > 0)) @ self._action_weight()

    def _action_weight(self) -> th.Tensor:
        return weight_of(self.hidden[0])[:, self.state_dim :]


Denoiser = ResidualDenoiser | ReleaseDenoiser


class FrozenLosses(th.autograd.Function):
    """Denoising losses of the agent's and the expert's actions in the same noisy states.

    One pass of the network serves both, and the way back is walked by hand: for the agent's rows
    only, and only to its actions, since nothing else learns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        agent: th.Tensor,
        expert: th.Tensor,
        denoiser: Denoiser,
        state_embedding: th.Tensor,
        timesteps: th.Tensor,
        epsilon: th.Tensor,
    ) -> tuple[th.Tensor, th.Tensor]:
        """Computes both losses.

        Args:
            ctx: autograd's.
            agent: noisy codes of the agent's actions, shape ``(batch, action_dim)``.
            expert: those of the expert's.
            denoiser: the network, whose weights get no gradient.
            state_embedding: shape ``(batch, width)``; gets no gradient either.
            timesteps: noise levels, int64 of shape ``(batch,)``.
            epsilon: the noise to predict, shape ``(batch, output_dim)``.

        Returns:
            Mean squared errors of the agent and the expert, each of shape ``(batch,)``.
        """
        actions = th.stack((agent, expert))
        predicted, trace = denoiser.forward_frozen(state_embedding, actions, timesteps)
        error = predicted - epsilon
        ctx.denoiser = denoiser
        ctx.save_for_backward(error[0], *(values[0] for values in trace))
        agent_loss, expert_loss = error.square().mean(dim=-1)
        ctx.mark_non_differentiable(expert_loss)
        return agent_loss, expert_loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: th.Tensor) -> tuple[th.Tensor | None, ...]:
        """Takes the gradient of the agent's loss to its actions."""
        error, *trace = ctx.saved_tensors
        gradient = gradients[0].unsqueeze(-1) * error * (2 / error.shape[-1])
        return ctx.denoiser.gradient_to_action(gradient, tuple(trace)), *[None] * 5


def frozen_losses(
    agent: th.Tensor,
    expert: th.Tensor,
    denoiser: Denoiser,
    state_embedding: th.Tensor,
    timesteps: th.Tensor,
    epsilon: th.Tensor,
) -> tuple[th.Tensor, th.Tensor]:
    """Denoising losses of the agent and the expert, as :class:`FrozenLosses` has them.

    Args:
        agent: as for :meth:`FrozenLosses.forward`, like all others.
        expert: likewise.
        denoiser: likewise.
        state_embedding: likewise.
        timesteps: likewise.
        epsilon: likewise.

    Returns:
        Both losses, each of shape ``(batch,)``; the expert's is a constant.
    """
    if not th.compiler.is_compiling():
        return FrozenLosses.apply(agent, expert, denoiser, state_embedding, timesteps, epsilon)
    # torch.compile cannot follow a way back that is walked by hand, and finds a short one itself.
    with th.no_grad():
        expert_loss = (denoiser(state_embedding, expert, timesteps) - epsilon).square().mean(dim=-1)
    agent_error = denoiser(state_embedding, agent, timesteps) - epsilon
    return agent_error.square().mean(dim=-1), expert_loss


DENOISERS: dict[str, type[ResidualDenoiser] | type[ReleaseDenoiser]] = {
    "residual": ResidualDenoiser,
    "release": ReleaseDenoiser,
}


def convert_release_state_dict(state_dict: Mapping[str, Any]) -> dict[str, th.Tensor]:
    """Renames the weights of the authors' φ to those of :class:`ReleaseDenoiser`.

    The release stores ``linears.{0,2,4,...}`` (odd indices are activations) and
    ``step_embeddings.{0,1,2}``. Its last hidden layer exists but is never applied.

    Args:
        state_dict: what the release saved.

    Returns:
        A state dict for a :class:`ReleaseDenoiser` with one hidden layer per embedding table.

    Raises:
        ValueError: if the keys are not those of the release.
    """
    depth = sum(str(key).startswith("step_embeddings.") for key in state_dict)
    n_layers = sum(str(key).endswith(".weight") for key in state_dict) - depth
    # Odd indices are activations; the last layer is the output, whatever lies before it.
    names = {f"linears.{2 * i}": f"hidden.{i}" for i in range(depth)}
    names[f"linears.{2 * (n_layers - 1)}"] = "out"
    weights = {
        f"{new}.{suffix}": state_dict.get(f"{old}.{suffix}")
        for old, new in names.items()
        for suffix in ("weight", "bias")
    } | {
        f"{name}.weight": state_dict.get(f"{name}.weight")
        for name in (f"step_embeddings.{i}" for i in range(depth))
    }
    if depth == 0 or n_layers <= depth or not all(map(th.is_tensor, weights.values())):
        raise ValueError(
            "state_dict does not look like the release's diffusion model: expected tensors "
            "'linears.{0,2,...}.{weight,bias}' and 'step_embeddings.{0,1,...}.weight', found "
            f"{sorted(map(str, state_dict))[:16]}."
        )
    return cast(dict[str, th.Tensor], weights)
