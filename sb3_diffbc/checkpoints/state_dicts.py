"""State dicts of modules and optimisers as named tensors, loaded only if all of them fit."""

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias, TypeGuard, TypeVar

import pydantic
import torch as th
from torch import nn
from torch.overrides import TorchFunctionMode

from sb3_diffbc.checkpoints.file import CheckpointError, non_finite
from sb3_diffbc.schema import AnyFloat, Model, describe

Hyperparameter: TypeAlias = bool | int | AnyFloat | tuple[AnyFloat, ...] | None

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)


def module_state(module: nn.Module, prefix: str) -> dict[str, th.Tensor]:
    """Returns a module's state dict with ``prefix`` in front of every name.

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
        if not isinstance(value, th.Tensor):
            raise TypeError(f"{name} is a {type(value).__qualname__}; only tensors can be saved")
    return state


def load_module_state(module: nn.Module, tensors: Mapping[str, th.Tensor], prefix: str) -> None:
    """Loads the tensors whose names start with ``prefix`` into a module; all must fit.

    Args:
        module: the module to load into, on any device.
        tensors: what :func:`module_state` returned; other names are passed over.
        prefix: as given to :func:`module_state`.

    Raises:
        CheckpointError: if a tensor is missing, left over, or of another shape or dtype than
            in the module, which is then unchanged.
    """
    module.load_state_dict(matching_state(module, tensors, prefix), strict=True)


def build_module(
    make: Callable[[], _ModuleT], tensors: Mapping[str, th.Tensor], prefix: str
) -> _ModuleT:
    """Builds a module and loads the tensors whose names start with ``prefix``; all must fit.

    A module that is larger than the tensors is refused before it is allocated
    (:func:`check_fit`). PyTorch's global random state is left as it was.

    Args:
        make: builds the module.
        tensors: what :func:`module_state` returned; other names are passed over.
        prefix: as given to :func:`module_state`.

    Returns:
        The module.

    Raises:
        CheckpointError: if a tensor is missing, left over, or of another shape or dtype than
            in the module.
    """
    check_fit(make, tensors, prefix)
    with th.random.fork_rng(devices=[]):
        module = make()
    load_module_state(module, tensors, prefix)
    return module


def check_fit(make: Callable[[], nn.Module], tensors: Mapping[str, th.Tensor], prefix: str) -> None:
    """Builds a module on PyTorch's meta device, without memory for weights, to see if these fit.

    Args:
        make: builds the module.
        tensors: what :func:`module_state` returned; other names are passed over.
        prefix: as given to :func:`module_state`.

    Raises:
        CheckpointError: as :func:`build_module` does.
    """
    with th.random.fork_rng(devices=[]), th.device("meta"), _WithoutValues():
        matching_state(make(), tensors, prefix)


class _WithoutValues(TorchFunctionMode):
    """Lets constructors that move tensors or look into them run on the meta device."""

    _ANSWERS: ClassVar[Mapping[Any, Callable[..., Any]]] = {
        th.Tensor.to: lambda tensor, *_, **__: tensor,
        th.Tensor.__bool__: lambda _: True,
        th.Tensor.__int__: lambda _: 0,
    }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._ANSWERS.get(func, func)(*args, **(kwargs or {}))


def matching_state(
    module: nn.Module, tensors: Mapping[str, th.Tensor], prefix: str
) -> dict[str, th.Tensor]:
    """Returns the state dict that :func:`load_module_state` would load, checked as it does."""
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
    return found


def _signature(tensor: th.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{tuple(tensor.shape)}"


class _Parameter(Model):
    shape: tuple[int, ...]
    state: tuple[str, ...]


class _Group(Model):
    parameters: tuple[_Parameter, ...]
    hyperparameters: dict[str, Hyperparameter]


class OptimizerRecord(Model):
    """What an optimiser's state dict holds besides tensors.

    Attributes:
        name: of the optimiser's class.
        groups: for each parameter group the hyperparameters, and for each parameter its shape and
            the names of the tensors in its state.
    """

    name: str
    groups: tuple[_Group, ...]


def optimizer_to_state(
    optimizer: th.optim.Optimizer, prefix: str = ""
) -> tuple[dict[str, th.Tensor], OptimizerRecord]:
    """Takes an optimiser's state apart.

    Args:
        optimizer: any torch optimiser with plain hyperparameters, whose state per parameter is
            scalars and tensors of the parameter's shape.
        prefix: put in front of every tensor's name, as it is.

    Returns:
        The tensors themselves, named ``<prefix><parameter's index>/<key>``, and the rest.

    Raises:
        TypeError: if hyperparameters or state are of another kind.
    """
    where = type(optimizer).__name__
    groups = []
    tensors: dict[str, th.Tensor] = {}
    indices = itertools.count()
    for group in optimizer.param_groups:
        parameters = []
        for parameter, index in zip(group["params"], indices, strict=False):
            state = optimizer.state.get(parameter, {})
            state = {key: value for key, value in state.items() if value is not None}
            for key, value in state.items():
                if not _fits(value, parameter):
                    raise TypeError(f"{where} state {index}/{key} is {value!r}, no fitting tensor")
                tensors[f"{prefix}{index}/{key}"] = value
            parameters.append(_Parameter(shape=tuple(parameter.shape), state=tuple(state)))
        hyperparameters = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in group.items()
            if key not in ("params", "param_names")
        }
        for key, value in hyperparameters.items():
            if isinstance(value, th.Tensor):  # which pydantic would take for a number
                raise TypeError(f"{where} keeps {key} in a tensor: expected a number")
        try:
            groups.append(_Group(parameters=tuple(parameters), hyperparameters=hyperparameters))
        except pydantic.ValidationError as error:
            raise TypeError(describe(error, f"{where} group {len(groups)}")) from None
    return tensors, OptimizerRecord(name=where, groups=tuple(groups))


def load_optimizer_state(
    optimizer: th.optim.Optimizer,
    tensors: Mapping[str, th.Tensor],
    record: OptimizerRecord,
    prefix: str = "",
) -> None:
    """Puts a saved state into an optimiser over the same parameters.

    Args:
        optimizer: of the same class, over parameters of the same shapes in the same order.
        tensors: what :func:`optimizer_to_state` returned, possibly among others.
        record: what :func:`optimizer_to_state` returned with them.
        prefix: as given to :func:`optimizer_to_state`.

    Raises:
        CheckpointError: if the state is damaged or belongs to another optimiser, its constructor
            refuses the hyperparameters, or a step from there fails; it is unchanged then.
    """
    where = f"{type(optimizer).__name__} state"
    own = optimizer_to_state(optimizer)[1]
    if (record.name, _shapes(record)) != (own.name, _shapes(own)):
        raise CheckpointError(
            f"{where}: expected the state of {own.name} over {_shapes(own)}, found the state of "
            f"{record.name} over {_shapes(record)}"
        )
    for saved, group in zip(record.groups, own.groups, strict=True):
        for key, value in group.hyperparameters.items():
            # Schedules add entries of their own, which a new optimiser does not have yet.
            if key not in saved.hyperparameters or not _alike(saved.hyperparameters[key], value):
                raise CheckpointError(f"{where}: {key} is {saved.hyperparameters.get(key)!r}")
    state: dict[int, dict[str, th.Tensor]] = {}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    recorded = (parameter for group in record.groups for parameter in group.parameters)
    for index, (parameter, saved_parameter) in enumerate(zip(parameters, recorded, strict=True)):
        for key in saved_parameter.state:
            tensor = tensors.get(f"{prefix}{index}/{key}")
            if not _fits(tensor, parameter):
                raise CheckpointError(
                    f"{where}: {index}/{key} is missing or of a wrong shape or dtype"
                )
            if (key == "step" or "sq" in key) and (tensor < 0).any():  # counts and squares
                raise CheckpointError(f"{where}: {index}/{key} is negative")
            # A copy: the optimiser updates its tensors in place.
            state.setdefault(index, {})[key] = tensor.clone()
    groups = [
        {**saved.hyperparameters, "params": group["params"]}
        for group, saved in zip(optimizer.state_dict()["param_groups"], record.groups, strict=True)
    ]
    before = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    try:
        _check_ranges(type(optimizer), groups)
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        _rehearse_step(optimizer)
    except Exception as error:  # whatever an optimiser makes of missing entries
        optimizer.__dict__.update(before)
        raise CheckpointError(f"{where}: {type(error).__name__}: {error}") from error


def _check_ranges(cls: type[th.optim.Optimizer], groups: list[dict[str, Any]]) -> None:
    for group in groups:
        # Schedules' entries are no arguments, and neither are the parameters' indices.
        names = inspect.signature(cls).parameters.keys() & group.keys() - {"params"}
        cls([nn.Parameter(th.zeros(1))], **{name: group[name] for name in names})


def _rehearse_step(optimizer: th.optim.Optimizer) -> None:
    """Takes a step of a copy, without gradients' effect, which shows what the state is good for."""
    rehearsal = copy.deepcopy(optimizer)
    parameters = [parameter for group in rehearsal.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = th.zeros_like(parameter)
    rehearsal.step()
    if non_finite({str(index): parameter for index, parameter in enumerate(parameters)}):
        raise ValueError("the next step makes parameters NaN or infinite")


def _shapes(record: OptimizerRecord) -> list[list[tuple[int, ...]]]:
    return [[parameter.shape for parameter in group.parameters] for group in record.groups]


def _fits(value: Any, parameter: th.Tensor) -> TypeGuard[th.Tensor]:
    return isinstance(value, th.Tensor) and (
        value.shape == () or (value.shape, value.dtype) == (parameter.shape, parameter.dtype)
    )


def _alike(a: Hyperparameter, b: Hyperparameter) -> bool:
    """Returns whether both are flags (which may be None), numbers, or as many numbers."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b)
    return (a is None or isinstance(a, bool)) == (b is None or isinstance(b, bool))
