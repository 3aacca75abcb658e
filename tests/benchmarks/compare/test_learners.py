"""What learners say about themselves."""

import json
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from imitation.policies.base import FeedForward32Policy
from toys import CONTINUOUS, VECTOR, critic, trainer

from benchmarks.compare.learners import (
    actor_size,
    as_json,
    optimizer_config,
    policy_config,
    settings_for,
    settings_of,
)
from sb3_diffbc import StandardizedActorPolicy


class Base:
    def __init__(self, width: int = 3, *, seed: int = 0, **kwargs: Any) -> None:
        self.width = width
        self.seed = seed


class Derived(Base):
    def __init__(self, *, depth: int = 2, forgotten: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = depth
        self.state = "not an argument"


class TestSettings:
    def test_are_the_arguments_of_a_class_and_its_bases(self) -> None:
        assert settings_of(Derived(width=7)) == {"depth": 2, "width": 7}

    def test_name_what_a_trainer_was_given_or_chose_itself(self) -> None:
        settings = settings_of(trainer(dm_clamp="none", batch_size=8))
        assert settings["dm_clamp"] == "none"
        assert settings["batch_size"] == 8
        assert settings["dm_coef"] == 1.0  # by default None, which means 1 for Box actions
        assert settings["critic_models"] == "action"
        assert json.loads(json.dumps(settings)) == settings

    def test_leave_out_what_differs_between_the_cells_of_a_row(self) -> None:
        fitted = critic()
        settings = settings_of(trainer(critic=fitted, seed=5))
        assert not {"seed", "device", "env", "policy", "critic", "rng"} & settings.keys()

    def test_of_a_class_are_what_is_given_and_the_defaults_of_the_rest(self) -> None:
        assert settings_for(Derived, {"depth": 9}) == {"width": 3, "depth": 9, "forgotten": 1}


class TestJson:
    def test_values_are_as_a_file_would_give_them_back(self) -> None:
        value = {"a": (1, 2.5), "b": {"c": [None, True]}, 3: th.nn.Tanh, "d": th.device("cpu")}
        found = as_json(value)
        assert found == {
            "a": [1, 2.5],
            "b": {"c": [None, True]},
            "3": "Tanh",
            "d": "cpu",
        }
        assert json.loads(json.dumps(found)) == found


class TestNetworks:
    def test_an_actor_is_counted_without_spread_and_value(self) -> None:
        policy = StandardizedActorPolicy(
            VECTOR, CONTINUOUS, lambda _: 1.0, net_arch={"pi": [5], "vf": [50]}
        )
        assert actor_size(policy) == (3 * 5 + 5) + (5 * 2 + 2)

    def test_the_actor_of_discrete_actions_is_counted_likewise(self) -> None:
        space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        policy = FeedForward32Policy(space, spaces.Discrete(3), lambda _: 1.0)
        assert actor_size(policy) == (4 * 32 + 32) + (32 * 32 + 32) + (32 * 3 + 3)

    def test_are_described_by_their_sizes_and_activation(self) -> None:
        policy = StandardizedActorPolicy(
            VECTOR, CONTINUOUS, lambda _: 1.0, net_arch={"pi": [5], "vf": []}
        )
        assert policy_config(policy) == {
            "class": "StandardizedActorPolicy",
            "net_arch": {"pi": [5], "vf": []},
            "activation": "Tanh",
        }

    def test_an_optimiser_is_described_by_its_settings(self) -> None:
        parameters = [th.nn.Parameter(th.zeros(1))]
        assert optimizer_config(th.optim.SGD(parameters, lr=0.5, weight_decay=0.1)) == {
            "class": "SGD",
            "learning_rate": 0.5,
            "weight_decay": 0.1,
        }
