"""The DBC authors' own diffusion model φ: its network, and the weights that they published."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch as th
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from sb3_diffbc import checkpoints


class ReleaseDenoiser(nn.Module):
    """The network of the DBC authors' release: ReLU MLP, one embedding table per hidden layer.

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
        sizes = [state_dim + action_dim] + [width] * depth
        self.hidden = nn.ModuleList(
            nn.Linear(size_in, size_out) for size_in, size_out in pairwise(sizes)
        )
        self.step_embeddings = nn.ModuleList(
            nn.Embedding(num_train_timesteps, width) for _ in range(depth)
        )
        self.out = nn.Linear(width, output_dim)

    def forward(self, state: th.Tensor, action: th.Tensor, timesteps: th.Tensor) -> th.Tensor:
        """Predicts the noise; shapes as in :class:`ResidualDenoiser`."""
        hidden = th.cat([state, action], dim=-1)
        for layer, embedding in zip(self.hidden, self.step_embeddings, strict=True):
            hidden = F.relu(layer(hidden) + embedding(timesteps))
        return self.out(hidden)


def convert_release_weights(state_dict: Mapping[str, Any]) -> dict[str, th.Tensor]:
    """Renames the weights of the authors' φ to those of :class:`ReleaseDenoiser`.

    The release stores ``linears.{0,2,4,...}`` (odd indices are activations) and
    ``step_embeddings.{0,1,2}``. Its forward pass skips the last hidden layer: a network of
    depth 4 applies three hidden layers and the output layer, and the unused one is left out.

    Args:
        state_dict: what the release saved.

    Returns:
        A state dict for a :class:`ReleaseDenoiser` with one hidden layer per embedding table.

    Raises:
        ValueError: if the names or shapes are not those of the release, or a value is NaN or
            infinite.
    """
    depth = sum(str(key).startswith("step_embeddings.") for key in state_dict)
    n_layers = sum(str(key).endswith(".weight") for key in state_dict) - depth
    names = {f"linears.{2 * i}": f"hidden.{i}" for i in range(depth)}
    names[f"linears.{2 * (n_layers - 1)}"] = "out"
    keys = {
        f"{old}.{suffix}": f"{new}.{suffix}"
        for old, new in names.items()
        for suffix in ("weight", "bias")
    } | {key: key for key in (f"step_embeddings.{i}.weight" for i in range(depth))}
    weights = {new: state_dict.get(old) for old, new in keys.items()}
    if depth == 0 or n_layers != depth + 2 or not all(map(th.is_tensor, weights.values())):
        raise ValueError(
            "state_dict does not look like the release's diffusion model: expected tensors "
            "'linears.{0,2,...}.{weight,bias}' and 'step_embeddings.{0,1,...}.weight', found "
            f"{sorted(map(str, state_dict))[:16]}."
        )
    tensors = cast(dict[str, th.Tensor], weights)
    ends = [tensors[f"{name}.weight"] for name in ("step_embeddings.0", "hidden.0", "out")]
    if any(tensor.ndim != 2 for tensor in ends):
        raise ValueError(f"expected matrices, found {[tuple(tensor.shape) for tensor in ends]}.")
    (n_levels, width), (_, pair_dim), (output_dim, _) = (tensor.shape for tensor in ends)
    checkpoints.check_fit(
        lambda: ReleaseDenoiser(
            *(pair_dim, 0, output_dim), num_train_timesteps=n_levels, width=width, depth=depth
        ),
        tensors,
        "",
    )
    if any(tensor.layout is not th.strided or tensor.is_meta for tensor in tensors.values()):
        raise ValueError("expected plain dense tensors.")
    # A view may be much larger than what it shows.
    held = {(part := tensor.untyped_storage()).data_ptr(): part for tensor in tensors.values()}
    if sum(part.nbytes() for part in held.values()) < sum(t.nbytes for t in tensors.values()):
        raise ValueError("expected tensors with memory of their own, found views.")
    if not_finite := checkpoints.non_finite(tensors):
        raise ValueError(f"expected finite weights, found NaN or infinite values in {not_finite}.")
    return tensors
