"""Module weights as named tensors, loaded only if every name and shape fits."""

from collections.abc import Mapping

import torch
from torch import nn

from sb3_diffbc.checkpoints.errors import CheckpointError


def module_state(module: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Return a module's state dict with ``prefix`` in front of every name.

    Args:
        module: any module whose state consists of tensors.
        prefix: taken as it is, for example ``"policy/"``.

    Returns:
        The tensors themselves (detached, not copied).

    Raises:
        TypeError: if the module keeps extra state that is not a tensor.
    """
    state = {prefix + name: value for name, value in module.state_dict().items()}
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} is a {type(value).__qualname__}; only tensors can be saved")
    return state


def load_module_state(module: nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Load the tensors whose names start with ``prefix`` into a module; all must fit.

    Args:
        module: the module to load into, on any device.
        tensors: what `module_state` returned; other names are passed over.
        prefix: as given to `module_state`.

    Raises:
        CheckpointError: if a tensor is missing, left over, or of another shape or dtype than
            in the module, which is then unchanged.
    """
    expected = module_state(module, "")
    found = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {_signature(found[name])} instead of {_signature(tensor)}"
        for name, tensor in expected.items()
        if name in found and _signature(found[name]) != _signature(tensor)
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise CheckpointError(
            f"the saved weights ({prefix!r}) do not fit this {type(module).__name__}: {shown}"
        )
    module.load_state_dict(found, strict=True)


def _signature(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"
