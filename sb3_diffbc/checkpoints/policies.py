"""Policies as JSON: a class from a table and the arguments of its constructor.

A file cannot name any class: names are looked up in the tables below, which
`register_policy_class` and `register_features_extractor_class` extend. A policy outside them is
saved all the same, but needs an instance to be loaded into.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

import gymnasium as gym
import torch
from imitation.policies import base as imitation_policies
from imitation.util import networks as imitation_networks
from stable_baselines3.common import torch_layers
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from torch import nn

from sb3_diffbc.checkpoints.errors import CheckpointError
from sb3_diffbc.checkpoints.values import (
    class_from_name,
    describe,
    require_object,
    value_from_json,
    value_to_json,
)

MAX_WIDTH = 2**16
MAX_LAYERS = 64
MAX_WEIGHTS = 2**28
"""Weights between two layers that a file may ask for: a gigabyte in single precision."""

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.Tanh, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU),
    *(nn.Mish, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Identity),
)
NORMALISATIONS: tuple[type[nn.Module], ...] = (
    *(imitation_networks.RunningNorm, imitation_networks.EMANorm),
    *(nn.LayerNorm, nn.BatchNorm1d, nn.Identity),
)
FEATURES_EXTRACTORS: tuple[type[torch_layers.BaseFeaturesExtractor], ...] = (
    torch_layers.FlattenExtractor,
    torch_layers.CombinedExtractor,
    torch_layers.NatureCNN,
    imitation_policies.NormalizeFeaturesExtractor,
)
OPTIMIZERS: tuple[type[torch.optim.Optimizer], ...] = (
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop),
)
POLICIES: tuple[type[ActorCriticPolicy], ...] = (
    *(ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy),
    imitation_policies.FeedForward32Policy,
)

_PolicyT = TypeVar("_PolicyT", bound=type[ActorCriticPolicy])
_ExtractorT = TypeVar("_ExtractorT", bound=type[torch_layers.BaseFeaturesExtractor])

_policies: dict[str, type] = {cls.__name__: cls for cls in POLICIES}
_features_extractors: dict[str, type] = {cls.__name__: cls for cls in FEATURES_EXTRACTORS}
# Arguments that a class passes to its base class by itself, and so does not accept.
_fixed_arguments: dict[type, frozenset[str]] = {
    imitation_policies.FeedForward32Policy: frozenset(("net_arch",))
}
# The arguments that may hold classes, each with its own table. The last holds them as values.
_CLASS_TABLES: dict[str, dict[str, type]] = {
    "activation_fn": {cls.__name__: cls for cls in ACTIVATIONS},
    "optimizer_class": {cls.__name__: cls for cls in OPTIMIZERS},
    "features_extractor_class": _features_extractors,
    "features_extractor_kwargs": {cls.__name__: cls for cls in (*ACTIVATIONS, *NORMALISATIONS)},
}
_GIVEN_ELSEWHERE = frozenset(("observation_space", "action_space", "lr_schedule"))
_ONLY_WITH_SDE = frozenset(("squash_output", "full_std", "use_expln"))


def register_policy_class(cls: _PolicyT, *, fixed_arguments: Iterable[str] = ()) -> _PolicyT:
    """Let checkpoints rebuild policies of this class. Usable as a decorator.

    Args:
        cls: a subclass of ActorCriticPolicy with a name of its own, whose constructor takes
            what its ``_get_constructor_parameters`` returns.
        fixed_arguments: those among ActorCriticPolicy's arguments that it does not take.

    Returns:
        The class.

    Raises:
        TypeError: if it is no ActorCriticPolicy.
        ValueError: if another class has the name.
    """
    if not (isinstance(cls, type) and issubclass(cls, ActorCriticPolicy)):
        raise TypeError(f"expected a subclass of ActorCriticPolicy, got {cls!r}")
    _register(cls, _policies)
    _fixed_arguments[cls] = frozenset(fixed_arguments)
    return cls


def register_features_extractor_class(cls: _ExtractorT) -> _ExtractorT:
    """Let checkpoints rebuild policies with this features extractor. Usable as a decorator.

    Args:
        cls: a subclass of BaseFeaturesExtractor with a name of its own.

    Returns:
        The class.

    Raises:
        TypeError: if it is no BaseFeaturesExtractor.
        ValueError: if another class has the name.
    """
    if not (isinstance(cls, type) and issubclass(cls, torch_layers.BaseFeaturesExtractor)):
        raise TypeError(f"expected a subclass of BaseFeaturesExtractor, got {cls!r}")
    _register(cls, _features_extractors)
    return cls


def policy_to_json(policy: ActorCriticPolicy) -> dict[str, Any]:
    """Write down how to build a policy: its class and arguments, without spaces and weights.

    Args:
        policy: any ActorCriticPolicy.

    Returns:
        A JSON object. For a policy that cannot be rebuilt from it (a class outside the tables,
        an argument that is not JSON) ``"class"`` is None, and ``"name"`` and ``"reason"`` say
        which and why.
    """
    cls = type(policy)
    try:
        if _policies.get(cls.__name__) is not cls:
            raise TypeError("its class is not registered (see register_policy_class)")
        arguments = _arguments_to_json(policy)
    except TypeError as error:
        name = f"{cls.__module__}.{cls.__qualname__}"
        return {"class": None, "name": name, "reason": str(error)}
    learning_rate = float(policy.optimizer.param_groups[0]["lr"])
    return {
        "class": cls.__name__,
        "arguments": arguments,
        "learning_rate": value_to_json(learning_rate, "learning_rate"),
    }


def policy_from_json(
    obj: Any,
    *,
    observation_space: gym.Space[Any],
    action_space: gym.Space[Any],
    device: str | torch.device = "cpu",
) -> ActorCriticPolicy:
    """Build a policy as `policy_to_json` recorded it, with fresh weights.

    Torch's global random state is left as it was.

    Args:
        obj: what `policy_to_json` returned.
        observation_space: the policy's observation space.
        action_space: the policy's action space.
        device: where to put the policy.

    Returns:
        The policy, ready for `load_module_state`.

    Raises:
        CheckpointError: if the record is damaged, names a class outside the tables, asks for an
            absurd network, or says that the policy cannot be rebuilt: pass ``policy=`` then.
    """
    record = require_object(obj, "policy")
    if record.get("class") is None:
        raise CheckpointError(
            f"the policy ({describe(record.get('name'))}) cannot be rebuilt from the file: "
            f"{record.get('reason')}. Pass policy=, an instance with the same architecture, and "
            "the saved weights are loaded into it"
        )
    cls = class_from_name(record["class"], "policy class", _policies)
    arguments = _arguments_from_json(record.get("arguments"))
    learning_rate = value_from_json(record.get("learning_rate"), "policy learning_rate")
    if isinstance(learning_rate, bool) or not isinstance(learning_rate, (int, float)):
        raise CheckpointError(f"policy learning_rate: found {describe(learning_rate)}")
    _check_size(arguments, observation_space, action_space)
    try:
        with torch.random.fork_rng(devices=[]):
            policy = cls(
                observation_space, action_space, lambda _: float(learning_rate), **arguments
            )
    except Exception as error:  # the constructor of any registered class, on arguments of a file
        raise CheckpointError(
            f"policy: {cls.__name__} cannot be built with the saved arguments and these spaces: "
            f"{type(error).__name__}: {error}"
        ) from error
    return policy.to(device)


def _register(cls: type, table: dict[str, type]) -> None:
    if table.setdefault(cls.__name__, cls) is not cls:
        raise ValueError(f"another class is registered as {cls.__name__}: {table[cls.__name__]!r}")


def _arguments_to_json(policy: ActorCriticPolicy) -> dict[str, Any]:
    parameters: Mapping[str, Any] = {
        **policy._get_constructor_parameters(),
        # SB3's own list leaves this one out.
        "share_features_extractor": policy.share_features_extractor,
    }
    absent = _GIVEN_ELSEWHERE | _fixed_arguments.get(type(policy), frozenset())
    if not policy.use_sde:
        absent |= _ONLY_WITH_SDE  # SB3 reports them as None, which is not their default
    arguments = {}
    for name, value in parameters.items():
        if name not in absent:
            class_names = {cls: key for key, cls in _CLASS_TABLES.get(name, {}).items()}
            arguments[name] = value_to_json(value, f"its argument {name}", class_names)
    return arguments


def _arguments_from_json(obj: Any) -> dict[str, Any]:
    arguments = {}
    for name, value in require_object(obj, "policy arguments").items():
        if name in _GIVEN_ELSEWHERE:
            raise CheckpointError(f"policy arguments: {name} does not belong there")
        where = f"policy argument {name}"
        arguments[name] = value_from_json(value, where, _CLASS_TABLES.get(name))
    for name in ("activation_fn", "optimizer_class", "features_extractor_class"):
        if name in arguments and not isinstance(arguments[name], type):
            found = describe(arguments[name])
            raise CheckpointError(f"policy argument {name}: expected a class, found {found}")
    for name in ("optimizer_kwargs", "features_extractor_kwargs"):
        require_object(arguments.get(name, {}), f"policy argument {name}")
    return arguments


def _check_size(
    arguments: dict[str, Any], observation_space: gym.Space[Any], action_space: gym.Space[Any]
) -> None:
    """Refuse networks that no file of a sensible size can hold, before allocating them."""
    kwargs = arguments.get("features_extractor_kwargs", {})
    for name, value in kwargs.items():
        if isinstance(value, int) and value > MAX_WIDTH:
            raise CheckpointError(f"policy: {name} is {value}, beyond the limit of {MAX_WIDTH}")
    # A convolutional extractor has fewer features than the observation has entries.
    extractor = arguments.get("features_extractor_class", torch_layers.FlattenExtractor)
    convolves = issubclass(extractor, (torch_layers.NatureCNN, torch_layers.CombinedExtractor))
    n_inputs = 1 if convolves else gym.spaces.utils.flatdim(observation_space)
    n_outputs = gym.spaces.utils.flatdim(action_space)
    net_arch = arguments.get("net_arch")
    for widths in net_arch.values() if isinstance(net_arch, dict) else [net_arch or []]:
        if not isinstance(widths, (list, tuple)) or len(widths) > MAX_LAYERS:
            raise CheckpointError(f"policy: expected layer widths, found {describe(widths)}")
        for width in widths:
            if not isinstance(width, int) or not 0 < width <= MAX_WIDTH:
                raise CheckpointError(
                    f"policy: expected layers of 1 to {MAX_WIDTH} units, found {describe(width)}"
                )
        sizes = [n_inputs, *widths, n_outputs]
        if any(a * b > MAX_WEIGHTS for a, b in pairwise(sizes)):
            raise CheckpointError(
                f"policy: layers of {sizes} units have more than {MAX_WEIGHTS} weights between two"
            )
