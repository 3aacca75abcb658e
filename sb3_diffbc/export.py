"""Policies as ONNX models, which run without PyTorch, Stable-Baselines3 and this package."""

import copy
import io
import os
import pathlib
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import distributions, policies
from torch import nn

from sb3_diffbc.checkpoints import SpaceRecord

_OPSET = 17
_N_EXAMPLES = 64


class _DeterministicActor(nn.Module):
    """What ``predict(..., deterministic=True)`` of an SB3 policy does, in tensors alone.

    SB3's own code builds distributions, whose checks of their arguments cannot be traced, and
    limits actions in NumPy.
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, policy: policies.ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy
        if isinstance(policy.action_space, spaces.Box):
            for name in ("low", "high"):
                limits = th.as_tensor(getattr(policy.action_space, name), device=policy.device)
                self.register_buffer(name, limits.float())

    def forward(self, *arrays: th.Tensor) -> th.Tensor:
        policy = self.policy
        space = policy.observation_space
        observation = (
            dict(zip(space.spaces, arrays, strict=True))
            if isinstance(space, spaces.Dict)
            else arrays[0]
        )
        features = policies.BaseModel.extract_features(
            policy, observation, policy.pi_features_extractor
        )
        raw = policy.action_net(policy.mlp_extractor.forward_actor(features))
        return self._limited(self._mode(raw).reshape(-1, *(policy.action_space.shape or ())))

    def _mode(self, raw: th.Tensor) -> th.Tensor:
        dist = self.policy.action_dist
        if isinstance(dist, distributions.CategoricalDistribution):
            return raw.argmax(dim=1)
        if isinstance(dist, distributions.MultiCategoricalDistribution):
            parts = raw.split(list(map(int, dist.action_dims)), dim=1)
            return th.stack([part.argmax(dim=1) for part in parts], dim=1)
        if isinstance(dist, distributions.BernoulliDistribution):
            return (raw > 0).float()
        return raw.tanh() if self.policy.squash_output else raw

    def _limited(self, actions: th.Tensor) -> th.Tensor:
        if not isinstance(self.policy.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.low + 0.5 * (actions + 1.0) * (self.high - self.low)
        return th.minimum(th.maximum(actions, self.low), self.high)


def export_onnx(policy: policies.ActorCriticPolicy, path: str | os.PathLike[str]) -> pathlib.Path:
    """Writes a policy's deterministic actions as an ONNX model.

    The model computes what ``policy.predict(observations, deterministic=True)`` does, the
    statistics of the observations and the limits of the actions included. It has one input,
    ``observation``, or one per key of Dict observations, named like the key; the output is
    ``action``. An input has its space's type, the action is float32 or int64; the first axis of
    all is the batch, of any size. Entries ``observation_space`` and ``action_space`` of the
    model's metadata hold the spaces as JSON.

    Args:
        policy: an SB3 actor-critic policy, on any device.
        path: where to; ``.onnx`` is appended if there is no suffix.

    Returns:
        The path written.

    Raises:
        ModuleNotFoundError: without the package ``onnx``.
        TypeError: if it is no SB3 actor-critic policy.
        ValueError: if its actions are not computed as by SB3's own policies, or a key of its
            observations is ``action``.
    """
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the export needs the package onnx: pip install onnx") from error
    check_actor_critic(policy)
    records = {
        name: SpaceRecord.of(getattr(policy, name)).model_dump_json()
        for name in ("observation_space", "action_space")
    }
    actor = _DeterministicActor(policy)
    examples = example_observations(policy.observation_space)
    inputs = tuple(th.as_tensor(array, device=policy.device) for array in examples.values())
    if "action" in examples:
        raise ValueError("policy: a key of its observations is 'action', as the output is named.")
    # The exporter takes no numbers for names.
    names = dict(zip((f"input:{i}" for i in range(len(examples))), examples, strict=True))
    stream = io.BytesIO()
    was_training = policy.training
    # Sets the mode for evaluation.
    expected, _ = policy.predict(observations_of(policy, examples), deterministic=True)
    try:
        if not np.allclose(actor(*inputs).detach().cpu(), expected, rtol=1e-5, atol=1e-5):
            raise ValueError(
                f"policy: {type(policy).__name__} does not compute actions as SB3's own policies "
                "do, and cannot be exported."
            )
        with warnings.catch_warnings():
            # PyTorch recommends its newer exporter, which needs further packages and writes to
            # the console; and tracing warns of checks that SB3 makes in Python.
            warnings.simplefilter("ignore")
            th.onnx.export(
                actor,
                inputs,
                stream,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=_OPSET,
                input_names=list(names),
                output_names=["action"],
                dynamic_axes={name: {0: "batch"} for name in (*names, "action")},
            )
    finally:
        policy.set_training_mode(was_training)
    model = onnx.load_from_string(stream.getvalue())
    for value in model.graph.input:
        value.name = names[value.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.helper.set_model_props(model, records)
    onnx.checker.check_model(model)
    path = pathlib.Path(path)
    path = path if path.suffix else path.with_name(path.name + ".onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def check_actor_critic(policy: Any) -> None:
    """Checks that a policy is one of SB3's actor-critic policies.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(policy, policies.ActorCriticPolicy):
        raise TypeError(
            f"policy is a {type(policy).__name__}: expected an SB3 actor-critic policy, such as a "
            "trainer's or a PPO's .policy."
        )


def example_observations(space: gym.Space) -> dict[str, np.ndarray]:
    """Draws observations, the same at every call, by the names of an exported model's inputs."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"observation": space}
    examples = {}
    for name, part in parts.items():
        source = copy.deepcopy(part)
        source.seed(0)
        examples[name] = np.stack([source.sample() for _ in range(_N_EXAMPLES)])
    return examples


def observations_of(policy: policies.BasePolicy, arrays: dict[str, np.ndarray]) -> Any:
    """Returns what ``predict`` takes in place of the arrays of :func:`example_observations`."""
    is_dict = isinstance(policy.observation_space, spaces.Dict)
    return arrays if is_dict else arrays["observation"]
