"""Optimiser states: tensors by name, everything else as JSON."""

from collections.abc import Mapping
from typing import Any

import torch

from sb3_diffbc.checkpoints.errors import CheckpointError
from sb3_diffbc.checkpoints.values import (
    describe,
    require_list,
    require_object,
    value_from_json,
    value_to_json,
)

# The state entries of torch's own optimisers that have one number per weight.
_PER_WEIGHT = frozenset(
    (
        *("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg"),
        *("grad_avg", "sum", "acc_delta", "prev", "ax"),
    )
)


def optimizer_to_state(
    optimizer: torch.optim.Optimizer, prefix: str = ""
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Take an optimiser's state apart.

    Args:
        optimizer: any torch optimiser whose state per parameter is tensors and plain values.
        prefix: put in front of every tensor's name, as it is.

    Returns:
        The tensors, named ``state/<parameter index>/<key>`` (and ``group/<index>/<key>`` for a
        hyperparameter that is a tensor), and a JSON object with the rest.

    Raises:
        TypeError: if the state holds something else.
    """
    state_dict = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}

    def flatten(entries: Mapping[str, Any], place: str) -> dict[str, Any]:
        plain = {}
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{prefix}{place}/{key}"] = value
                plain[key] = {"tensor": f"{place}/{key}"}
            else:
                plain[key] = value_to_json(value, f"{type(optimizer).__name__} {place}/{key}")
        return plain

    groups = state_dict["param_groups"]
    content = {
        "class": type(optimizer).__name__,
        "param_shapes": [list(param.shape) for param in _parameters(optimizer)],
        "param_groups": [flatten(group, f"group/{i}") for i, group in enumerate(groups)],
        "state": {
            str(index): flatten(entries, f"state/{index}")
            for index, entries in state_dict["state"].items()
        },
    }
    return tensors, content


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, torch.Tensor],
    content: Any,
    prefix: str = "",
) -> None:
    """Put a saved state into an optimiser over the same parameters.

    Args:
        optimizer: of the same class, over parameters of the same shapes in the same order.
        tensors: what `optimizer_to_state` returned, possibly among others.
        content: the JSON that `optimizer_to_state` returned.
        prefix: as given to `optimizer_to_state`.

    Raises:
        CheckpointError: if the state is damaged or belongs to another optimiser, which is then
            unchanged.
    """
    where = f"{type(optimizer).__name__} state"
    content = require_object(content, where)
    _check_fits(optimizer, content, where)
    parameters = _parameters(optimizer)

    def restore(entries: Any, place: str) -> dict[str, Any]:
        return {
            key: _restored(value, tensors, prefix, f"{where} {place}/{key}")
            for key, value in require_object(entries, where).items()
        }

    saved_state = require_object(content.get("state"), f"{where} state")
    indices = {str(index): index for index in range(len(parameters))}
    state = {}
    for name, entries in saved_state.items():
        if name not in indices:
            raise CheckpointError(f"{where}: there is no parameter {describe(name)}")
        state[indices[name]] = restore(entries, f"state/{name}")
        _check_shapes(state[indices[name]], parameters[indices[name]], f"{where} state/{name}")
    saved_groups = require_list(content.get("param_groups"), f"{where} groups")
    groups = [restore(group, f"group/{i}") for i, group in enumerate(saved_groups)]
    _check_groups(optimizer, groups, where)
    before = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except Exception as error:  # whatever an optimiser makes of odd values
        optimizer.__dict__.update(before)
        raise CheckpointError(f"{where}: {type(error).__name__}: {error}") from error


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _restored(value: Any, tensors: Mapping[str, torch.Tensor], prefix: str, where: str) -> Any:
    if not isinstance(value, dict) or "tensor" not in value:
        return value_from_json(value, where)
    name = value["tensor"]
    if not isinstance(name, str) or prefix + name not in tensors:
        raise CheckpointError(f"{where}: expected a tensor, found none named {describe(name)}")
    # A copy: the optimiser updates its tensors in place.
    return tensors[prefix + name].clone()


def _check_fits(optimizer: torch.optim.Optimizer, content: dict[str, Any], where: str) -> None:
    if content.get("class") != type(optimizer).__name__:
        raise CheckpointError(
            f"expected the state of {type(optimizer).__name__}, found the state of "
            f"{describe(content.get('class'))}"
        )
    shapes = [list(param.shape) for param in _parameters(optimizer)]
    saved = require_list(content.get("param_shapes"), f"{where} shapes")
    if len(saved) != len(shapes):
        raise CheckpointError(f"{where}: for {len(saved)} parameters instead of {len(shapes)}")
    for index, (found, expected) in enumerate(zip(saved, shapes, strict=True)):
        if found != expected:
            raise CheckpointError(
                f"{where}: parameter {index} has the shape {describe(found)} instead of {expected}"
            )


def _check_shapes(entries: dict[str, Any], parameter: torch.Tensor, where: str) -> None:
    for key, value in entries.items():
        per_weight = key in _PER_WEIGHT and isinstance(value, torch.Tensor)
        if per_weight and value.shape != parameter.shape:
            raise CheckpointError(
                f"{where}/{key} has the shape {tuple(value.shape)} instead of "
                f"{tuple(parameter.shape)}"
            )


def _check_groups(
    optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]], where: str
) -> None:
    expected = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    found = [group.get("params") for group in groups]
    if found != expected:
        raise CheckpointError(
            f"{where}: its parameter groups are {describe(found)} instead of {describe(expected)}"
        )
    for own, saved in zip(optimizer.param_groups, groups, strict=True):
        for key, value in own.items():
            if key not in saved or not _is_alike(saved[key], value):
                raise CheckpointError(f"{where}: {key} is {describe(saved.get(key))}")


def _is_alike(saved: Any, own: Any) -> bool:
    """Whether a saved hyperparameter can stand where the optimiser has ``own``."""
    if own is None or isinstance(own, bool):
        return saved is None or isinstance(saved, bool)
    if isinstance(own, int | float):
        # A learning rate may be kept in a tensor.
        return isinstance(saved, int | float | torch.Tensor) and not isinstance(saved, bool)
    if isinstance(own, tuple):
        return isinstance(saved, tuple | list) and len(saved) == len(own)
    return True
