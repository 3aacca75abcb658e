"""The default actor: an SB3 actor-critic policy that carries the demonstrations' statistics."""

import os
import pathlib
from typing import Any

import gymnasium as gym
import torch as th
from gymnasium import spaces
from stable_baselines3.common import distributions, policies, preprocessing, torch_layers, utils
from torch import nn

from sb3_diffbc import checkpoints
from sb3_diffbc.critic.encoder import CODE_LIMIT, PairEncoder
from sb3_diffbc.demonstrations.batches import as_transitions
from sb3_diffbc.schema import Model

DEFAULT_NET_ARCH = (128, 128, 128)


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
    whose features are not standardised.
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
            or _features_extractor_for(observation_space),
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
            observation_space: the demonstrations' observation space.
            action_space: their action space.
            **kwargs: further arguments of the constructor.

        Returns:
            A policy with fresh weights.
        """
        transitions = as_transitions(demonstrations)
        encoder = PairEncoder(observation_space, action_space)
        policy = cls(observation_space, action_space, unusable_lr_schedule, **kwargs)
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


def _features_extractor_for(space: gym.Space) -> type[torch_layers.BaseFeaturesExtractor]:
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if not any(preprocessing.is_image_space(part) for part in parts):
        return StandardizedFeatures
    if isinstance(space, spaces.Dict):
        return torch_layers.CombinedExtractor
    return torch_layers.NatureCNN


class PolicyContent(Model):
    """What a policy's checkpoint holds besides weights."""

    observation_space: checkpoints.SpaceRecord
    action_space: checkpoints.SpaceRecord
    policy: checkpoints.PolicyRecord


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
    return policy.to(utils.get_device(device))
