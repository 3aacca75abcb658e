"""Policies as JSON: a class from a table and the arguments of its constructor.

A file cannot name any class: names are looked up in the tables below, which
:func:`register_policy_class` and :func:`register_features_extractor_class` extend. A policy outside
them is saved all the same, but needs an instance to be loaded into.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import gymnasium as gym
import pydantic
import torch as th
from imitation.policies import base as imitation_policies
from imitation.util import networks as imitation_networks
from pydantic import Field
from stable_baselines3.common import torch_layers
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from torch import nn

from sb3_diffbc.checkpoints.file import CheckpointError
from sb3_diffbc.checkpoints.state_dicts import build_module
from sb3_diffbc.schema import AnyFloat, Model, describe

MAX_WIDTH = 2**16
MAX_LAYERS = 64

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
OPTIMIZERS: tuple[type[th.optim.Optimizer], ...] = (
    *(th.optim.Adam, th.optim.AdamW, th.optim.SGD, th.optim.RMSprop),
)
POLICIES: tuple[type[ActorCriticPolicy], ...] = (
    *(ActorCriticPolicy, ActorCriticCnnPolicy, MultiInputActorCriticPolicy),
    imitation_policies.FeedForward32Policy,
)

_ClassT = TypeVar("_ClassT", bound=type)
_PolicyT = TypeVar("_PolicyT", bound=type[ActorCriticPolicy])
_ExtractorT = TypeVar("_ExtractorT", bound=type[torch_layers.BaseFeaturesExtractor])

_policies: dict[str, type] = {cls.__name__: cls for cls in POLICIES}
_features_extractors: dict[str, type] = {cls.__name__: cls for cls in FEATURES_EXTRACTORS}


def register_policy_class(cls: _PolicyT) -> _PolicyT:
    """Lets checkpoints rebuild policies of this class. Usable as a decorator.

    Args:
        cls: a subclass of ActorCriticPolicy with a name of its own, whose constructor takes
            what its ``_get_constructor_parameters`` returns, and runs on PyTorch's meta device.

    Returns:
        The class.

    Raises:
        TypeError: if it is no ActorCriticPolicy.
        ValueError: if another class has the name.
    """
    return _register(cls, ActorCriticPolicy, _policies)


def register_features_extractor_class(cls: _ExtractorT) -> _ExtractorT:
    """Lets checkpoints rebuild policies with this features extractor. Usable as a decorator.

    Args:
        cls: a subclass of BaseFeaturesExtractor with a name of its own, whose constructor runs
            on PyTorch's meta device.

    Returns:
        The class.

    Raises:
        TypeError: if it is no BaseFeaturesExtractor.
        ValueError: if another class has the name.
    """
    return _register(cls, torch_layers.BaseFeaturesExtractor, _features_extractors)


def _register(cls: _ClassT, base: type, table: dict[str, type]) -> _ClassT:
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise TypeError(f"expected a subclass of {base.__name__}, got {cls!r}")
    if table.setdefault(cls.__name__, cls) is not cls:
        raise ValueError(f"another class is registered as {cls.__name__}: {table[cls.__name__]!r}")
    return cls


def _one_of(table: dict[str, type]) -> pydantic.PlainValidator:
    """Checks that a class is in a table; JSON gives it by its name there."""

    def find(value: Any, info: pydantic.ValidationInfo) -> type:
        found: Any = table.get(value) if info.mode == "json" and type(value) is str else value
        if not any(found is known for known in table.values()):
            raise ValueError(f"expected one of the classes {', '.join(sorted(table))}")
        return found

    return pydantic.PlainValidator(find)


_AS_NAME = pydantic.PlainSerializer(lambda cls: cls.__name__)


def _named(*classes: type) -> dict[str, type]:
    return {cls.__name__: cls for cls in classes}


_Plain: TypeAlias = bool | int | AnyFloat | tuple[AnyFloat, ...] | None
_ExtractorArgument: TypeAlias = (
    bool
    | Annotated[int, Field(le=MAX_WIDTH)]
    | Annotated[AnyFloat, Field(le=MAX_WIDTH)]
    | Annotated[type, _one_of(_named(*ACTIVATIONS, *NORMALISATIONS)), _AS_NAME]
    | None
)
_Layers: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_WIDTH)]], Field(max_length=MAX_LAYERS, strict=False)
]


class _Arguments(Model):
    """Arguments of a policy's constructor; those not named here are plain values."""

    model_config = pydantic.ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Plain]

    net_arch: _Layers | dict[Literal["pi", "vf"], _Layers] | None = None
    activation_fn: Annotated[type[nn.Module], _one_of(_named(*ACTIVATIONS)), _AS_NAME]
    optimizer_class: Annotated[type[th.optim.Optimizer], _one_of(_named(*OPTIMIZERS)), _AS_NAME]
    optimizer_kwargs: dict[str, _Plain]
    features_extractor_class: Annotated[
        type[torch_layers.BaseFeaturesExtractor], _one_of(_features_extractors), _AS_NAME
    ]
    features_extractor_kwargs: dict[str, _ExtractorArgument]


class PolicyRecord(Model):
    """How to build an actor-critic policy, without its spaces and weights.

    Attributes:
        name: of its class, among those that are registered.
        arguments: of its constructor; None where it cannot be rebuilt from them.
        learning_rate: of its own optimiser.
        reason: why it cannot be rebuilt.
    """

    name: str
    arguments: _Arguments | None
    learning_rate: AnyFloat
    reason: str = ""

    @classmethod
    def of(cls, policy: ActorCriticPolicy) -> "PolicyRecord":
        """Records any policy.

        One that cannot be rebuilt (its class is not registered, an argument is neither a number
        nor a known class) is recorded too, with the reason.
        """
        name, arguments, reason = type(policy).__name__, None, ""
        if _policies.get(name) is not type(policy):
            reason = "its class is not registered (see register_policy_class)"
        else:
            try:
                arguments = _Arguments(**constructor_arguments(policy))
            except pydantic.ValidationError as error:
                reason = describe(error, "its arguments")
        return cls(
            name=name,
            arguments=arguments,
            learning_rate=float(policy.optimizer.param_groups[0]["lr"]),
            reason=reason,
        )

    def build(
        self,
        observation_space: gym.Space[Any],
        action_space: gym.Space[Any],
        tensors: Mapping[str, th.Tensor],
        prefix: str = "policy/",
    ) -> ActorCriticPolicy:
        """Builds the policy and loads its weights, as :func:`build_module` does.

        Args:
            observation_space: the policy's.
            action_space: the policy's.
            tensors: with the policy's weights.
            prefix: what their names start with.

        Returns:
            The policy, on the CPU.

        Raises:
            CheckpointError: if the class is not registered, the constructor refuses the arguments,
                the network is not that of the weights, or the policy was recorded as one that
                cannot be rebuilt: pass ``policy=`` then.
        """
        if self.arguments is None:
            raise CheckpointError(
                f"the policy ({self.name}) cannot be rebuilt from the file: {self.reason}. Pass "
                "policy=, an instance with the same architecture, and the saved weights are "
                "loaded into it"
            )
        if self.name not in _policies:
            raise CheckpointError(
                f"expected a policy of one of the classes {', '.join(_policies)}, found "
                f"{self.name[:60]!r}. Register its class, or pass policy="
            )
        arguments = {name: value for name, value in self.arguments if value is not None}

        def make() -> ActorCriticPolicy:
            policy: ActorCriticPolicy = _policies[self.name](
                observation_space, action_space, lambda _: self.learning_rate, **arguments
            )
            return policy

        try:
            return build_module(make, tensors, prefix)
        except CheckpointError:
            raise
        except Exception as error:  # the constructor of any registered class
            raise CheckpointError(
                f"policy: {self.name} cannot be built with the saved arguments and these spaces: "
                f"{type(error).__name__}: {error}"
            ) from error


def constructor_arguments(policy: ActorCriticPolicy) -> dict[str, Any]:
    """Returns the arguments that made a policy, but for spaces and learning rate."""
    arguments = {
        **policy._get_constructor_parameters(),
        # SB3's own list leaves this one out.
        "share_features_extractor": policy.share_features_extractor,
    }
    absent = {"observation_space", "action_space", "lr_schedule"}
    if type(policy) is imitation_policies.FeedForward32Policy:
        absent.add("net_arch")  # which it sets itself
    return {name: value for name, value in arguments.items() if name not in absent}
