"""One way to drive every method: settings before training, callbacks during it, a policy after."""

import abc
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch as th
from imitation.data import types
from imitation.util import logger as imit_logger
from stable_baselines3.common import policies

from benchmarks.compare.phases import Phases
from benchmarks.compare.protocol import Protocol
from benchmarks.compare.tasks import ComparedTask


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a method is given.

    Attributes:
        task: where.
        demonstrations: what to imitate.
        observation_space: of the task.
        action_space: of the task.
        seed: of training.
        protocol: budgets.
        cache: folder for what seeds of a task share.
    """

    task: ComparedTask
    demonstrations: types.Transitions
    observation_space: gym.Space
    action_space: gym.Space
    seed: int
    protocol: Protocol
    cache: Path


class Learner(abc.ABC):
    """A method on one task with one seed. Making it checks everything and trains nothing.

    Attributes:
        config: every setting, as JSON; the same for all seeds.
        length: units of training, by which progress is counted.
        updates: gradient updates of the policy so far.
        env_steps: interactions with the environment so far.
    """

    config: dict[str, Any]
    length: int
    updates = 0
    env_steps = 0

    @property
    @abc.abstractmethod
    def policy(self) -> policies.BasePolicy:
        """What acts, with what was learnt so far."""

    @property
    def n_parameters(self) -> int:
        """Trained weights of what acts."""
        return actor_size(self.policy)

    @abc.abstractmethod
    def train(self, phases: Phases, on_progress: Callable[[int], None]) -> None:
        """Trains to the end.

        Args:
            phases: to charge phases of the method's own; the caller charges "training".
            on_progress: called with the number of finished units after each of them.
        """


def actor_size(policy: policies.BasePolicy) -> int:
    """Parameters of an actor-critic policy that its most likely action depends on."""
    assert isinstance(policy, policies.ActorCriticPolicy)
    parts = (policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net)
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def quiet_logger() -> imit_logger.HierarchicalLogger:
    """A logger that writes nothing."""
    return imit_logger.configure(format_strs=[])


_NOT_SETTINGS = frozenset(
    {
        *("self", "observation_space", "action_space", "demonstrations", "env", "rng", "policy"),
        *("critic", "seed", "device", "verbose", "custom_logger", "tensorboard_log"),
    }
)


def settings_of(instance: Any) -> dict[str, Any]:
    """The constructor's arguments that an object keeps under their names, as JSON.

    So that arguments which are added to a class later are in the results without further ado.
    """
    return {
        name: as_json(getattr(instance, name))
        for name in _parameters(type(instance))
        if hasattr(instance, name) and name not in _NOT_SETTINGS
    }


def settings_for(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The constructor's arguments, as JSON: those given, and the defaults of the others."""
    return {
        name: as_json(arguments.get(name, parameter.default))
        for name, parameter in _parameters(cls).items()
        if parameter.default is not parameter.empty and name not in _NOT_SETTINGS
    }


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Of the class's constructor and those that it may pass arguments on to."""
    return {
        name: parameter
        for base in reversed(cls.__mro__[:-1])
        for name, parameter in inspect.signature(base.__init__).parameters.items()  # type: ignore[misc]
    }


def as_json(value: Any) -> Any:
    """A setting as JSON: classes and functions by name, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): as_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", str(value))


def policy_config(policy: policies.ActorCriticPolicy) -> dict[str, Any]:
    """An actor-critic policy's network."""
    return {
        "class": type(policy).__name__,
        "net_arch": as_json(policy.net_arch),
        "activation": policy.activation_fn.__name__,
    }


def optimizer_config(optimizer: th.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's class and settings."""
    group = optimizer.param_groups[0]
    return {
        "class": type(optimizer).__name__,
        "learning_rate": group["lr"],
        **{
            name: as_json(group[name]) for name in ("betas", "eps", "weight_decay") if name in group
        },
    }
