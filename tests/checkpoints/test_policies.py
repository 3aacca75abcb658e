"""Policies as JSON: rebuilt from a table, or refused with the way out."""

import json
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.policies import base as imitation_policies
from imitation.util import networks
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch import nn

from sb3_diffbc.checkpoints import (
    CheckpointError,
    PolicyRecord,
    module_state,
    policies,
    register_features_extractor_class,
    register_policy_class,
)
from sb3_diffbc.schema import parse_json

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"image": IMAGE, "vector": VECTOR, "choice": spaces.Discrete(3)})
CONTINUOUS = spaces.Box(-1, 1, (2,), np.float32)


class OwnPolicy(ActorCriticPolicy):
    """A user's policy, with an argument of its own."""

    def __init__(self, *args: Any, size: int = 1, **kwargs: Any) -> None:
        self.size = size
        super().__init__(*args, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "size": self.size}


class OwnExtractor(FlattenExtractor):
    """A user's features extractor."""


@pytest.fixture(autouse=True)
def _restored_tables() -> Iterator[None]:
    tables = (policies._policies, policies._features_extractors)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


def build(
    cls: type[ActorCriticPolicy] = ActorCriticPolicy,
    obs: gym.Space[Any] = VECTOR,
    acts: gym.Space[Any] = CONTINUOUS,
    **kwargs: Any,
) -> ActorCriticPolicy:
    policy = cls(obs, acts, lambda _: 0.125, **kwargs)
    with th.no_grad():  # so that no two weights are equal by their initialisation
        for parameter in policy.parameters():
            parameter.add_(th.rand_like(parameter))
    return policy


def record_of(policy: ActorCriticPolicy) -> PolicyRecord:
    """What comes back of a policy's record from a file."""
    text = PolicyRecord.of(policy).model_dump_json()
    return parse_json(PolicyRecord, text, "policy", CheckpointError)


def rebuild(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    spaces_ = (policy.observation_space, policy.action_space)
    return record_of(policy).build(*spaces_, module_state(policy, "policy/"))


@pytest.mark.parametrize(
    "policy",
    [
        build(),
        build(acts=spaces.Discrete(4), net_arch=[7], activation_fn=nn.ELU),
        build(acts=spaces.MultiDiscrete([2, 3]), net_arch={"pi": [4], "vf": []}),
        build(acts=spaces.MultiBinary(3), optimizer_class=th.optim.RMSprop, ortho_init=False),
        build(use_sde=True, squash_output=True, full_std=False, use_expln=True),
        build(log_std_init=-1.5, share_features_extractor=False, net_arch=(4,)),
        build(
            features_extractor_class=imitation_policies.NormalizeFeaturesExtractor,
            features_extractor_kwargs={"normalize_class": networks.EMANorm},
        ),
        build(optimizer_class=th.optim.AdamW, optimizer_kwargs={"betas": (0.5, 0.6)}),
        build(imitation_policies.FeedForward32Policy),
        build(
            ActorCriticCnnPolicy, IMAGE, features_extractor_kwargs={"features_dim": 8}, net_arch=[]
        ),
        build(MultiInputActorCriticPolicy, DICT, features_extractor_kwargs={"cnn_output_dim": 8}),
    ],
    ids=lambda policy: f"{type(policy).__name__} {type(policy.action_space).__name__}",
)
@pytest.mark.filterwarnings("error::UserWarning")  # pydantic's, of unexpected values
def test_policies_come_back(policy: ActorCriticPolicy) -> None:
    rebuilt = rebuild(policy)
    assert type(rebuilt) is type(policy)
    assert repr(rebuilt) == repr(policy)
    assert rebuilt.optimizer_kwargs == policy.optimizer_kwargs
    assert type(rebuilt.optimizer) is type(policy.optimizer)
    assert rebuilt.optimizer.param_groups[0]["lr"] == 0.125
    for policy_ in (policy, rebuilt):
        policy_.set_training_mode(False)
        policy_.observation_space.seed(0)
    for _ in range(3):
        obs = policy.observation_space.sample()
        expected = policy.predict(obs, deterministic=True)[0]
        np.testing.assert_array_equal(rebuilt.predict(obs, deterministic=True)[0], expected)


def test_rebuilding_leaves_the_random_state_alone() -> None:
    policy = build()
    before = th.get_rng_state()
    rebuild(policy)
    assert th.equal(th.get_rng_state(), before)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (build(OwnPolicy), "not registered"),
        (build(type("ActorCriticPolicy", (ActorCriticPolicy,), {})), "not registered"),
        (build(features_extractor_class=OwnExtractor), "features_extractor_class.*OwnExtractor"),
        (
            build(
                features_extractor_class=imitation_policies.NormalizeFeaturesExtractor,
                features_extractor_kwargs={"normalize_class": lambda n: nn.Identity()},
            ),
            r"features_extractor_kwargs\.normalize_class.*function",
        ),
    ],
    ids=["policy", "same name", "extractor", "function"],
)
def test_a_policy_outside_the_tables_needs_an_instance(
    policy: ActorCriticPolicy, reason: str
) -> None:
    with pytest.raises(
        CheckpointError, match=rf"\({type(policy).__name__}\) .*{reason}.*Pass policy="
    ):
        rebuild(policy)


def test_registered_classes_come_back() -> None:
    assert register_policy_class(OwnPolicy) is OwnPolicy
    register_policy_class(OwnPolicy)  # again changes nothing
    assert register_features_extractor_class(OwnExtractor) is OwnExtractor
    policy = build(OwnPolicy, features_extractor_class=OwnExtractor, size=3)
    rebuilt = rebuild(policy)
    assert isinstance(rebuilt, OwnPolicy)
    assert rebuilt.size == 3
    assert type(rebuilt.features_extractor) is OwnExtractor
    policies._policies.pop("OwnPolicy")
    record = record_of(build()).model_copy(update={"name": "OwnPolicy"})
    with pytest.raises(CheckpointError, match=r"'OwnPolicy'\. Register its class"):
        record.build(VECTOR, CONTINUOUS, {})


def test_registration_refuses_other_classes_and_taken_names() -> None:
    wrong: Any = nn.Linear
    with pytest.raises(TypeError, match="subclass of ActorCriticPolicy"):
        register_policy_class(wrong)
    with pytest.raises(TypeError, match="subclass of BaseFeaturesExtractor"):
        register_features_extractor_class(wrong)
    with pytest.raises(ValueError, match="registered as ActorCriticPolicy"):
        register_policy_class(type("ActorCriticPolicy", (ActorCriticPolicy,), {}))


def changed(**arguments: Any) -> dict[str, Any]:
    obj: dict[str, Any] = json.loads(PolicyRecord.of(build()).model_dump_json())
    obj["arguments"].update(arguments)
    return obj


def rebuilt_from(obj: Any) -> ActorCriticPolicy:
    record = parse_json(PolicyRecord, json.dumps(obj), "policy", CheckpointError)
    return record.build(VECTOR, CONTINUOUS, module_state(build(), "policy/"))


@pytest.mark.parametrize(
    ("obj", "problem"),
    [
        ({**changed(), "name": "os.system"}, "one of the classes ActorCriticPolicy, .*os.system"),
        (changed(activation_fn="Adam"), "activation_fn: .*one of the classes.*'Adam'"),
        (changed(surprise=1), "cannot be built.*TypeError.*surprise"),
        (changed(net_arch=[0]), "net_arch.*greater than or equal to 1, found 0"),
        (changed(net_arch={"pi": [10**12]}), "net_arch.*less than or equal to 65536"),
        (changed(net_arch=[2**16] * 64), "do not fit.*missing mlp_extractor"),
        (changed(net_arch=[1] * 65), "net_arch.*at most 64 items"),
        (
            changed(features_extractor_kwargs={"features_dim": 10**12}),
            "less than or equal to 65536",
        ),
    ],
)
def test_damaged_records_are_refused(obj: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        rebuilt_from(obj)
