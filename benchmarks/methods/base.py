"""The interface of all methods, and the table entry that names one with its settings."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.envs.registration import EnvSpec
from imitation.data import types
from stable_baselines3.common import policies


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a method is given.

    ``task`` is the name of one of ``sb3_diffbc.tasks``, for settings that depend on it;
    ``training_env`` is for methods that learn in the environment; ``source`` is what the
    demonstrations were loaded from.
    """

    demonstrations: types.Transitions
    observation_space: gym.Space
    action_space: gym.Space
    seed: int = 0
    task: str = ""
    training_env: EnvSpec | None = None
    source: str | Path = ""

    @property
    def spaces(self) -> dict[str, Any]:
        """Both spaces as the arguments that many constructors take."""
        return {"observation_space": self.observation_space, "action_space": self.action_space}


class Clock:
    """Wall-clock and process time by phase; it starts in the phase ``"prepare"``.

    Attributes:
        measures: seconds by ``"seconds/<phase>"`` and ``"cpu_seconds/<phase>"``.
    """

    def __init__(self) -> None:
        self.measures: dict[str, float] = {}
        self._phase = "prepare"
        self._since = self._now()

    @staticmethod
    def _now() -> dict[str, float]:
        return {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}

    def switch(self, phase: str) -> str:
        """Starts another phase; returns the one that ends."""
        now, before, self._phase = self._now(), self._phase, phase
        for unit, value in now.items():
            name = f"{unit}/{before}"
            self.measures[name] = self.measures.get(name, 0.0) + value - self._since[unit]
        self._since = now
        return before


class Method(abc.ABC):
    """A method on one problem with one seed.

    The constructor checks everything and trains nothing.

    Attributes:
        config: every setting, as JSON can hold it; the same for all seeds.
        length: number of ``on_progress`` calls of :meth:`train`.
        updates: gradient updates of the policy so far.
        env_steps: environment steps of training so far.
        clock: charged with what the method does; whoever calls :meth:`train` starts the phase
            ``"training"``.

    Args:
        setup: demonstrations, spaces and seed.
    """

    is_interactive: ClassVar[bool] = False
    """Whether it learns in the environment too."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings as they are where nothing is said, for records from before there were some."""

    config: dict[str, Any]
    length: int

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.clock = Clock()
        self.updates = self.env_steps = 0

    @property
    @abc.abstractmethod
    def policy(self) -> policies.BasePolicy:
        """What acts, with what was learnt so far."""

    @abc.abstractmethod
    def train(self, on_progress: Callable[[], None]) -> None:
        """Trains to the end.

        Args:
            on_progress: called after each unit of training.
        """

    @property
    def n_parameters(self) -> int:
        """Trained weights that the most likely action depends on."""
        policy = self.policy
        assert isinstance(policy, policies.ActorCriticPolicy)
        parts = (policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net)
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    def measures(self) -> dict[str, float]:
        """What else there is to record after training, by name."""
        return {}

    def further_policies(self) -> dict[str, policies.BasePolicy]:
        """Other policies of the same training to score, by name."""
        return {}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method with its settings.

    Attributes:
        name: in records and on the command line.
        method: makes it.
        arguments: of the method's constructor, beside the setup.
        title: in tables and figures.
    """

    name: str
    method: type[Method]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    title: str = ""

    def make(self, setup: Setup) -> Method:
        """Makes the method; raises what its constructor raises."""
        return self.method(setup, **self.arguments)


@contextlib.contextmanager
def undisturbed_randomness() -> Iterator[None]:
    """Restores the global random states of Python, NumPy and torch afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with th.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def policy_config(policy: policies.ActorCriticPolicy) -> dict[str, Any]:
    """Returns the settings of an actor-critic policy's network."""
    return {
        "class": type(policy).__name__,
        "net_arch": policy.net_arch,
        "activation": policy.activation_fn.__name__,
    }


def optimizer_config(optimizer: th.optim.Optimizer) -> dict[str, Any]:
    """Returns an optimiser's class and settings."""
    group = optimizer.param_groups[0]
    names = [name for name in ("betas", "eps", "weight_decay") if name in group]
    return {
        "class": type(optimizer).__name__,
        "learning_rate": group["lr"],
        **{name: group[name] for name in names},
    }
