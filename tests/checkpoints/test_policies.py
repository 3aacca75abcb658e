"""Policies as JSON: rebuilt from a table, or refused with the way out."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
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
    load_module_state,
    module_state,
    policies,
    policy_from_json,
    policy_to_json,
    register_features_extractor_class,
    register_policy_class,
)

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"image": IMAGE, "vector": VECTOR, "choice": spaces.Discrete(3)})
CONTINUOUS = spaces.Box(-1, 1, (2,), np.float32)


class OwnPolicy(ActorCriticPolicy):
    """A user's policy."""


class NarrowPolicy(ActorCriticPolicy):
    """A user's policy that settles an argument itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, net_arch=[5], **kwargs)


class OwnExtractor(FlattenExtractor):
    """A user's features extractor."""


class OwnActivation(nn.Tanh):
    """A user's activation."""


@pytest.fixture(autouse=True)
def _restored_tables() -> Iterator[None]:
    tables = (policies._policies, policies._features_extractors, policies._fixed_arguments)
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
    with torch.no_grad():  # so that no two weights are equal by their initialisation
        for parameter in policy.parameters():
            parameter.add_(torch.rand_like(parameter))
    return policy


def rebuild(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    obj = json.loads(json.dumps(policy_to_json(policy), allow_nan=False))
    rebuilt = policy_from_json(
        obj, observation_space=policy.observation_space, action_space=policy.action_space
    )
    load_module_state(rebuilt, module_state(policy, "policy/"), "policy/")
    return rebuilt


@pytest.mark.parametrize(
    "policy",
    [
        build(),
        build(acts=spaces.Discrete(4), net_arch=[7], activation_fn=nn.ELU),
        build(acts=spaces.MultiDiscrete([2, 3]), net_arch={"pi": [4], "vf": []}),
        build(acts=spaces.MultiBinary(3), activation_fn=nn.GELU, ortho_init=False),
        build(use_sde=True, squash_output=True, full_std=False, use_expln=True),
        build(log_std_init=-1.5, share_features_extractor=False),
        build(
            features_extractor_class=imitation_policies.NormalizeFeaturesExtractor,
            features_extractor_kwargs={"normalize_class": networks.EMANorm},
        ),
        build(optimizer_class=torch.optim.RMSprop, optimizer_kwargs={"alpha": 0.5}),
        build(optimizer_class=torch.optim.AdamW, optimizer_kwargs={"betas": (0.5, 0.6)}),
        build(imitation_policies.FeedForward32Policy),
        build(
            ActorCriticCnnPolicy, IMAGE, features_extractor_kwargs={"features_dim": 8}, net_arch=[]
        ),
        build(MultiInputActorCriticPolicy, DICT, features_extractor_kwargs={"cnn_output_dim": 8}),
    ],
    ids=lambda policy: f"{type(policy).__name__} {type(policy.action_space).__name__}",
)
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
    obj = policy_to_json(build())
    before = torch.get_rng_state()
    policy_from_json(obj, observation_space=VECTOR, action_space=CONTINUOUS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (build(OwnPolicy), "not registered"),
        (build(features_extractor_class=OwnExtractor), "features_extractor_class is OwnExtractor"),
        (build(activation_fn=OwnActivation), "activation_fn is OwnActivation"),
        (build(optimizer_class=torch.optim.Adagrad), "optimizer_class is Adagrad"),
        (
            build(
                features_extractor_class=imitation_policies.NormalizeFeaturesExtractor,
                features_extractor_kwargs={"normalize_class": lambda n: nn.Identity()},
            ),
            r"features_extractor_kwargs\['normalize_class'\] is a function",
        ),
    ],
    ids=["policy", "extractor", "activation", "optimizer", "function"],
)
def test_a_policy_outside_the_tables_needs_an_instance(
    policy: ActorCriticPolicy, reason: str
) -> None:
    obj = json.loads(json.dumps(policy_to_json(policy)))
    assert obj["class"] is None
    assert obj["name"] == f"{type(policy).__module__}.{type(policy).__qualname__}"
    with pytest.raises(CheckpointError, match=f"{reason}.*Pass policy="):
        policy_from_json(obj, observation_space=VECTOR, action_space=CONTINUOUS)


def test_a_class_that_only_shares_its_name_is_outside_the_tables() -> None:
    same_name = type("ActorCriticPolicy", (ActorCriticPolicy,), {})
    assert policy_to_json(build(same_name))["class"] is None


def test_registered_classes_come_back() -> None:
    assert register_policy_class(OwnPolicy) is OwnPolicy
    register_policy_class(OwnPolicy)  # again changes nothing
    assert register_features_extractor_class(OwnExtractor) is OwnExtractor
    rebuilt = rebuild(build(OwnPolicy, features_extractor_class=OwnExtractor))
    assert type(rebuilt) is OwnPolicy
    assert type(rebuilt.features_extractor) is OwnExtractor


def test_a_class_that_settles_arguments_comes_back() -> None:
    register_policy_class(NarrowPolicy, fixed_arguments=["net_arch"])
    assert rebuild(build(NarrowPolicy)).net_arch == [5]


def test_registration_refuses_other_classes_and_taken_names() -> None:
    wrong: Any = nn.Linear
    with pytest.raises(TypeError, match="subclass of ActorCriticPolicy"):
        register_policy_class(wrong)
    with pytest.raises(TypeError, match="subclass of BaseFeaturesExtractor"):
        register_features_extractor_class(wrong)
    with pytest.raises(ValueError, match="registered as ActorCriticPolicy"):
        register_policy_class(type("ActorCriticPolicy", (ActorCriticPolicy,), {}))


def changed(**arguments: Any) -> dict[str, Any]:
    obj = copy.deepcopy(policy_to_json(build()))
    obj["arguments"].update(arguments)
    return obj


@pytest.mark.parametrize(
    ("obj", "problem"),
    [
        (None, "policy: expected a JSON object"),
        ({}, "cannot be rebuilt"),
        ({"class": "os.system"}, "policy class: expected one of the classes"),
        ({"class": ["ActorCriticPolicy"]}, "policy class: expected one of the classes"),
        ({"class": "ActorCriticPolicy"}, "policy arguments: expected a JSON object"),
        ({"class": "ActorCriticPolicy", "arguments": {}}, "learning_rate: found None"),
        (changed(lr_schedule=1), "lr_schedule does not belong there"),
        (changed(observation_space=1), "observation_space does not belong there"),
        (changed(activation_fn="Tanh"), "activation_fn: expected a class, found str 'Tanh'"),
        (changed(activation_fn={"class": "Adam"}), "activation_fn: expected one of the classes"),
        (changed(features_extractor_class=None), "features_extractor_class: expected a class"),
        (changed(features_extractor_kwargs=[]), "features_extractor_kwargs: expected a JSON"),
        (changed(optimizer_kwargs={"lr": 1}), "optimizer_kwargs: expected a value with a known"),
        (changed(optimizer_kwargs={"dict": {"lr": 1}}), "cannot be built.*TypeError"),
        (changed(surprise=1), "cannot be built.*TypeError.*surprise"),
        (changed(net_arch={"tuple": [{"tuple": [1]}]}), "policy: expected layer"),
        (changed(net_arch="wide"), "policy: expected layer widths"),
        (changed(net_arch=[0]), "policy: expected layers of 1 to 65536 units, found int 0"),
        (changed(net_arch=["64"]), "policy: expected layers of 1 to 65536"),
        (changed(net_arch=[10**12]), "policy: expected layers of 1 to 65536"),
        (changed(net_arch=[2**16, 2**16]), "more than 268435456 weights"),
        (changed(net_arch=[1] * 65), "policy: expected layer widths"),
        (
            changed(features_extractor_kwargs={"dict": {"features_dim": 10**12}}),
            "features_dim is 1000000000000, beyond the limit",
        ),
    ],
)
def test_damaged_records_are_refused(obj: Any, problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        policy_from_json(obj, observation_space=VECTOR, action_space=CONTINUOUS)


def test_spaces_too_wide_for_the_network_are_refused() -> None:
    obj = policy_to_json(build())
    wide = spaces.Discrete(10**12)
    for observation_space, action_space in ((wide, CONTINUOUS), (VECTOR, wide)):
        with pytest.raises(CheckpointError, match="more than 268435456 weights"):
            policy_from_json(obj, observation_space=observation_space, action_space=action_space)


def test_other_spaces_give_weights_that_do_not_fit() -> None:
    policy = build()
    other = policy_from_json(
        policy_to_json(policy), observation_space=VECTOR, action_space=spaces.Box(-1, 1, (9,))
    )
    with pytest.raises(CheckpointError, match=r"log_std is float32\(2,\) instead of float32\(9,\)"):
        load_module_state(other, module_state(policy, "p/"), "p/")
