"""The default actor: an SB3 actor-critic policy that carries the demonstrations' statistics."""

import copy
import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any

import gymnasium as gym
import torch as th
from gymnasium import spaces
from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError
from stable_baselines3.common import distributions, policies, preprocessing, torch_layers
from torch import nn

from sb3_diffbc import checkpoints
from sb3_diffbc.critic.encoder import (
    CODE_LIMIT,
    PairEncoder,
    channels_first_space,
    check_spaces_of,
    resolve_device,
)
from sb3_diffbc.demonstrations.batches import as_transitions
from sb3_diffbc.schema import Model

DEFAULT_NET_ARCH = (128, 128, 128)
_MIN_PIXELS = 36  # of height and width, for SB3's NatureCNN


def _no_algorithm(policy: Any) -> Any:
    if isinstance(getattr(policy, "policy", None), policies.BasePolicy):
        raise PydanticCustomError(
            "policy_type", "expected a policy, as {it}.policy is", {"it": type(policy).__name__}
        )
    return policy


Policy = Annotated[
    str | type[policies.ActorCriticPolicy] | policies.ActorCriticPolicy,
    BeforeValidator(_no_algorithm),
]
"""A policy, its class, or one of SB3's names."""


def unusable_lr_schedule(_: float) -> float:
    """Learning rate of a policy's own optimiser, which behavioural cloning does not use.

    As in imitation, it is so large that using that optimiser by mistake shows at once.
    """
    return th.finfo(th.float32).max


@checkpoints.register_features_extractor_class
class StandardizedFeatures(torch_layers.BaseFeaturesExtractor):
    """Flattens an observation and standardises it with statistics kept in the policy.

    Until :meth:`set_statistics` is called, mean is 0 and scale 1.

    Args:
        observation_space: any space that SB3 preprocesses, images excepted (they are scaled by
            SB3 and need a convolutional extractor).
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, observation_space: gym.Space) -> None:
        super().__init__(observation_space, preprocessing.get_flattened_obs_dim(observation_space))
        self._keys = (
            tuple(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else ()
        )
        self.register_buffer("mean", th.zeros(self.features_dim))
        self.register_buffer("std", th.ones(self.features_dim))

    def set_statistics(self, encoder: PairEncoder) -> None:
        """Takes over the observation statistics of a fitted encoder."""
        self.mean.copy_(encoder.obs_mean)
        self.std.copy_(encoder.obs_std)

    def forward(self, observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """Returns standardised features limited to ±10, ``(batch, features_dim)``."""
        if isinstance(observations, dict):
            flat = th.cat([observations[key].flatten(start_dim=1) for key in self._keys], dim=-1)
        else:
            flat = observations.flatten(start_dim=1)
        return ((flat - self.mean) / self.std).clamp(-CODE_LIMIT, CODE_LIMIT)


class _Rescale(nn.Module):
    """Maps the network's standardised actions to the demonstrations' scale."""

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(dim))
        self.register_buffer("std", th.ones(dim))

    def forward(self, actions: th.Tensor) -> th.Tensor:
        return actions * self.std + self.mean


@checkpoints.register_policy_class
class StandardizedActorPolicy(policies.ActorCriticPolicy):
    """SB3's actor-critic policy with the demonstrations' statistics inside.

    Observations are standardised before the network and, for a Gaussian policy, its output is
    scaled back to the actions, so that a saved policy needs nothing else. Behavioural cloning
    trains the actor only; the value network is a single unused linear layer.

    The constructor is that of SB3's ``ActorCriticPolicy``; the default network has three tanh
    layers of 128 units. Observation spaces with images get SB3's own convolutional extractors,
    whose features are not standardised. As for all of SB3's policies, images are channels first
    in the space, and ``predict`` takes them channels last too.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        lr_schedule: Any,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        features_extractor_class: type[torch_layers.BaseFeaturesExtractor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={"pi": list(DEFAULT_NET_ARCH), "vf": []} if net_arch is None else net_arch,
            features_extractor_class=features_extractor_class
            or features_extractor_for(observation_space),
            **kwargs,
        )

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        if isinstance(self.action_dist, distributions.DiagGaussianDistribution):
            # Without parameters, so the optimiser that was just made misses nothing.
            self.action_net = nn.Sequential(self.action_net, _Rescale(self.action_dist.action_dim))

    def set_training_mode(self, mode: bool) -> None:
        """Switches between training and evaluation mode, unless the policy is in it already."""
        # SB3 does so before every action, of whose time walking through all modules is a fifth.
        if mode != self.training:
            super().set_training_mode(mode)

    def _predict(
        self, observation: th.Tensor | dict[str, th.Tensor], deterministic: bool = False
    ) -> th.Tensor:
        """Returns the actions of SB3's own ``_predict``, sooner."""
        # The mode of a Gaussian is its mean: building a distribution to ask for it takes another
        # tenth of an action's time.
        if deterministic and type(self.action_dist) is distributions.DiagGaussianDistribution:
            features = policies.BaseModel.extract_features(
                self, observation, self.pi_features_extractor
            )
            mean = self.action_net(self.mlp_extractor.forward_actor(features))
            if not mean.isnan().any():
                return mean
            # SB3's way says what is wrong.
        return super()._predict(observation, deterministic)

    @classmethod
    def from_demonstrations(
        cls,
        demonstrations: Any,
        observation_space: gym.Space,
        action_space: gym.Space,
        **kwargs: Any,
    ) -> "StandardizedActorPolicy":
        """Builds a policy with the statistics of demonstrations, to be shared by several trainers.

        Args:
            demonstrations: imitation transitions, or what ``load_demonstrations`` takes.
            observation_space: the demonstrations' observation space. Images of shape (H, W, C)
                become (C, H, W) in the policy's own.
            action_space: their action space.
            **kwargs: further arguments of the constructor.

        Returns:
            A policy with fresh weights.
        """
        transitions = as_transitions(demonstrations)
        encoder = PairEncoder(observation_space, action_space)
        policy = cls(
            channels_first_space(observation_space), action_space, unusable_lr_schedule, **kwargs
        )
        policy.set_statistics(encoder.fit(transitions.obs, transitions.acts))
        return policy

    def set_statistics(self, encoder: PairEncoder) -> None:
        """Takes over observation and action statistics from an encoder of the same spaces.

        Meant to be called once, before training: it changes the function that the network
        computes. The initial spread of a Gaussian policy becomes that of the demonstrations.
        """
        for module in self.modules():
            if isinstance(module, StandardizedFeatures):
                module.set_statistics(encoder)
            elif isinstance(module, _Rescale):
                module.mean.copy_(encoder.act_mean)
                module.std.copy_(encoder.act_std)
                with th.no_grad():
                    self.log_std.copy_(self.log_std_init + encoder.act_std.log())


def features_extractor_for(
    space: gym.Space, name: str | None = None
) -> type[torch_layers.BaseFeaturesExtractor]:
    """Returns the extractor that SB3's name of a policy, or no name, asks for in a space.

    Raises:
        ValueError: if the name is unknown or does not fit the space, or images are too small.
    """
    is_dict = isinstance(space, spaces.Dict)
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    images = [part.shape or () for part in parts if preprocessing.is_image_space(part)]
    fitting = ["MultiInputPolicy"] if is_dict else ["MlpPolicy", "CnnPolicy"][: 1 + len(images)]
    if name is not None and name not in fitting:
        raise ValueError(
            f"policy={name!r}: expected {' or '.join(map(repr, fitting))} for the observations "
            f"{space}, or a policy's class or instance."
        )
    if not images or name == "MlpPolicy":
        return StandardizedFeatures
    if any(min(image[1:]) < _MIN_PIXELS for image in images):
        raise ValueError(
            f"The observations {space} have images that are too small for SB3's NatureCNN: "
            f"expected at least {_MIN_PIXELS} x {_MIN_PIXELS} pixels, or another "
            "features_extractor_class in policy_kwargs, such as StandardizedFeatures."
        )
    return torch_layers.CombinedExtractor if is_dict else torch_layers.NatureCNN


def make_policy(
    policy: Policy | None,
    policy_kwargs: Mapping[str, Any] | None,
    observation_space: gym.Space,
    action_space: gym.Space,
) -> policies.ActorCriticPolicy:
    """Returns the given policy, or a new one of a class or of one of SB3's names.

    Args:
        policy: as in :class:`DiffusionBC`.
        policy_kwargs: arguments of a new policy.
        observation_space: the environment's; a new policy has its images channels first.
        action_space: the environment's.

    Raises:
        ValueError: if the name or class does not fit the spaces, a given policy has others, or
            ``policy_kwargs`` comes with it.
        TypeError: if the class takes no such arguments.
    """
    space = channels_first_space(observation_space)
    if isinstance(policy, policies.ActorCriticPolicy):
        if policy_kwargs is not None:
            raise ValueError("policy_kwargs are for a new policy, but policy is an instance.")
        expected = space if policy.observation_space == space else observation_space
        check_spaces_of("policy", policy, expected, action_space)
        return policy
    arguments = dict(policy_kwargs or {})
    if isinstance(policy, str):
        extractor = features_extractor_for(space, policy)
        arguments.setdefault("features_extractor_class", extractor)
    cls = policy if isinstance(policy, type) else StandardizedActorPolicy
    try:
        return cls(space, action_space, unusable_lr_schedule, **arguments)
    except TypeError as error:
        raise TypeError(f"policy_kwargs={policy_kwargs}: {cls.__name__}: {error}") from error
    except AssertionError as error:  # SB3's way to say what a class does not take
        raise ValueError(
            f"{cls.__name__} cannot be made for {space} and {action_space}: {error}"
        ) from error


class PolicyContent(Model):
    """What a policy's checkpoint holds besides weights."""

    observation_space: checkpoints.SpaceRecord
    action_space: checkpoints.SpaceRecord
    policy: checkpoints.PolicyRecord


def copy_policy(policy: policies.ActorCriticPolicy) -> policies.ActorCriticPolicy:
    """Returns a copy of a policy, trained or not.

    SB3's policies keep their last distribution, whose graph cannot be copied; it stays behind.
    """
    fresh = copy.copy(policy.action_dist)
    fresh.distribution = None
    return copy.deepcopy(policy, {id(policy.action_dist): fresh})


def save_policy(policy: policies.ActorCriticPolicy, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a policy to one safetensors file, atomically.

    Args:
        policy: any SB3 actor-critic policy.
        path: where to; ``.safetensors`` is appended if there is no suffix.

    Returns:
        The path written.

    Raises:
        ValueError: if a weight is NaN or infinite.
        OSError: if the file cannot be written.
    """
    content = PolicyContent(
        observation_space=checkpoints.SpaceRecord.of(policy.observation_space),
        action_space=checkpoints.SpaceRecord.of(policy.action_space),
        policy=checkpoints.PolicyRecord.of(policy),
    )
    tensors = checkpoints.module_state(policy, "policy/")
    return checkpoints.save_checkpoint(path, kind="policy", tensors=tensors, content=content)


def load_policy(
    path: str | os.PathLike[str],
    *,
    policy: policies.ActorCriticPolicy | None = None,
    device: str | th.device = "auto",
) -> policies.ActorCriticPolicy:
    """Reads what :func:`save_policy` wrote. Nothing in the file is executed or imported.

    Args:
        path: the file.
        policy: an instance of the same architecture to load the weights into, for a class
            that this library does not know.
        device: where to put the policy.

    Returns:
        The policy, ready to predict.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: a ``ValueError``, if it is not a policy's checkpoint, or its class is
            unknown and ``policy`` is not given.
    """
    tensors, content = checkpoints.load_checkpoint(path, kind="policy", content=PolicyContent)
    with checkpoints.reading_content(path, "policy"):
        if policy is None:
            policy = content.policy.build(
                content.observation_space.build(), content.action_space.build(), tensors
            )
        else:
            checkpoints.load_module_state(policy, tensors, "policy/")
    policy.set_training_mode(False)
    return policy.to(resolve_device(device))
