"""What the trainer takes and what it refuses: arguments, demonstrations, spaces, policies."""

from __future__ import annotations

import gc
import itertools
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.data.types import Transitions
from imitation.policies.base import FeedForward32Policy, RandomPolicy
from imitation.util import logger as imit_logger
from stable_baselines3 import PPO
from stable_baselines3.common import logger as sb3_logger
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from stable_baselines3.dqn.policies import DQNPolicy
from toys import (
    CONTINUOUS,
    IMAGE,
    MAPPING,
    VECTOR,
    Endless,
    LineEnv,
    batches_of,
    critic,
    policy,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import (
    DemonstrationWarning,
    DiffusionBC,
    DiffusionCritic,
    StandardizedActorPolicy,
    load_policy,
)
from sb3_diffbc.policies import StandardizedFeatures


class OwnPolicy(ActorCriticPolicy):
    """A user's policy, which no checkpoint may name."""


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bc_loss": "l2"}, "bc_loss: .*'l1' or 'huber' or 'auto', found 'l2'"),
        ({"dm_clamp": "both"}, "dm_clamp: .*'none', found 'both'"),
        ({"critic_models": "state"}, "critic_models: .*'action', found 'state'"),
        ({"bc_coef": float("nan")}, "bc_coef: .*found nan"),
        ({"ent_weight": float("nan")}, "ent_weight: .*found nan"),
        ({"l2_weight": -0.1}, "l2_weight: .*found -0.1"),
        ({"seed": -1}, "seed: .*found -1"),
        ({"dm_coef": -0.5}, "dm_coef: .*found -0.5"),
        ({"dm_coef": "1"}, "dm_coef: .*valid number or 'auto', found '1'"),
        ({"critic_kwargs": {"width": 0}}, "width: .*found 0"),
        ({"critic_kwargs": {"seed": th.tensor(1)}}, "critic_kwargs.seed: .*JSON"),
        ({"batch_size": 16, "minibatch_size": 5}, "multiple of minibatch size"),
        ({"batch_size": 0}, "batch_size: .*found 0"),
        ({"optimizer_kwargs": {"weight_decay": 0.1}}, "l2_weight instead of weight_decay"),
    ],
    ids=str,
)
def test_arguments_outside_their_range_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(**kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dm_coef": [1.0]},
        {"critic_kwargs": [3]},
        {"critic": DiffusionCritic},
        {"policy": 3},
        {"policy": th.nn.Linear(3, 2)},
        {"policy": DQNPolicy},
        {"policy": RandomPolicy(VECTOR, CONTINUOUS)},
        {"policy_kwargs": [3]},
        {"optimizer_cls": "Adam"},
        {"optimizer_cls": th.nn.Linear},
        {"optimizer_kwargs": [3]},
        {"rng": np.random.RandomState(0)},
        {"seed": "1"},
        {"verbose": "1"},
        {"compile": "yes"},
        {"tensorboard_log": 3},
        {"custom_logger": 3},
        {"device": 3},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_arguments_of_another_type_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"^{next(iter(kwargs))}: .*found"):
        trainer(**kwargs)


def test_an_entropy_penalty_is_allowed_as_in_imitation() -> None:
    train(trainer(ent_weight=-0.1), n_batches=1)


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "xpu"])
def test_a_device_that_is_not_there_is_refused(device: str, tmp_path: Path) -> None:
    algorithm = trainer()
    refused = pytest.raises(ValueError, match=f"^device='{device}' cannot be used here")
    with refused:
        trainer(device=device)
    with refused:
        DiffusionCritic(VECTOR, CONTINUOUS, device=device)
    with refused:
        DiffusionBC.load(algorithm.save(tmp_path / "trainer"), device=device)
    with refused:
        load_policy(algorithm.save_policy(tmp_path / "policy"), device=device)
    with refused:
        DiffusionCritic.load(critic().save(tmp_path / "critic"), device=device)


def tensorboard_threads() -> set[threading.Thread]:
    gc.collect()  # trainers that are gone end theirs
    return {t for t in threading.enumerate() if "tensorboard" in type(t).__module__}


def test_nothing_is_left_behind_where_nothing_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = trainer().save(tmp_path / "trainer")
    writers = tensorboard_threads()
    kept = [
        DiffusionBC.load(path, verbose=verbose, tensorboard_log=folder, device="cpu")
        for verbose in (0, 1)
        for folder in (None, tmp_path / "events")
    ]
    assert all(algorithm.n_updates == 0 for algorithm in kept)
    found = {file.name for file in tmp_path.iterdir()} - {path.name}
    assert not {name for name in found if not name.startswith("torchinductor")}
    assert tensorboard_threads() == writers


def test_tensorboard_logs_are_written_and_their_thread_ends_with_the_trainer(
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard")
    writers = tensorboard_threads()
    algorithm = trainer(tensorboard_log=tmp_path / "events")
    train(algorithm, n_batches=2, log_interval=1)
    [file] = (tmp_path / "events").iterdir()
    assert b"dm/loss" in file.read_bytes()
    del algorithm
    assert tensorboard_threads() == writers


def test_sb3s_own_loggers_are_taken(tmp_path: Path) -> None:
    algorithm = trainer(custom_logger=sb3_logger.configure(str(tmp_path), ["csv"]))
    train(algorithm, n_batches=1, log_interval=1)
    assert "dm/loss" in (tmp_path / "progress.csv").read_text()


def test_two_places_to_log_to_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="custom_logger or tensorboard_log, not both"):
        trainer(
            custom_logger=imit_logger.configure(tmp_path, []), tensorboard_log=tmp_path / "events"
        )


def test_unknown_options_of_the_critic_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="n_layers"):
        trainer(critic_kwargs={"n_layers": 3})


def test_a_policy_for_other_spaces_is_refused() -> None:
    for name, other in {
        "observation_space": policy(MAPPING),
        "action_space": policy(action_space=spaces.Discrete(3)),
    }.items():
        with pytest.raises(ValueError, match=rf"policy\.{name} is .*expected"):
            trainer(policy=other)


@pytest.mark.parametrize(
    ("demonstrations", "error", "message"),
    [
        (3, TypeError, "found int"),
        ([], ValueError, "no elements"),
        ([1, 2], TypeError, "found list"),
        ({"o": np.zeros((64, 3))}, (TypeError, ValueError), "found"),
        (np.zeros((64, 3)), TypeError, "found ndarray"),
        (map(tuple, itertools.repeat([1])), TypeError, "iterable of tuple.*expected trajectories"),
        ("no-such-set", ValueError, "no-such-set"),
        ("halfcheeta", ValueError, "Did you mean 'cheetah'"),
        (Path("no-such-file.npz"), FileNotFoundError, r"no-such-file\.npz"),
        (transitions(n=15), ValueError, "15 is smaller than batch size 16"),
        (transitions(spaces.Box(-1, 1, (4,))), ValueError, r"`obs` must have shape \(3,\)"),
        (transitions(VECTOR, spaces.Discrete(2)), ValueError, r"`acts` must have shape \(2,\)"),
    ],
    ids=[
        "number", "no batches", "numbers", "dict", "array", "iterator", "name",
        "near name", "path", "too few", "obs shape", "acts shape"
    ],
)  # fmt: skip
def test_unusable_demonstrations_are_refused_before_training(
    demonstrations: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        trainer(demonstrations=demonstrations)
    algorithm = trainer()
    with pytest.raises(error, match=message):
        algorithm.set_demonstrations(demonstrations)
    # What was there before can still be trained on.
    train(algorithm, n_batches=1)


def test_actions_outside_the_bounds_are_reported_and_kept() -> None:
    data = transitions()
    acts = 3 * data.acts
    with pytest.warns(DemonstrationWarning, match="leave the bounds of `action_space`"):
        algorithm = trainer(demonstrations=Transitions(**{**vars(data), "acts": acts}), policy=None)
    train(algorithm, n_batches=1)
    np.testing.assert_allclose(algorithm.policy.log_std.detach().exp(), acts.std(axis=0), rtol=0.05)


def test_batches_of_an_iterable_are_validated_when_training_starts() -> None:
    batches = batches_of(transitions(action_space=spaces.Discrete(2)), 16)
    algorithm = trainer(demonstrations=batches, policy=None)
    with pytest.raises(ValueError, match="`acts` must have shape"):
        train(algorithm, n_batches=1)


def test_two_lengths_of_training_are_refused() -> None:
    algorithm = trainer()
    with pytest.raises(ValueError, match=f"exactly one.*{algorithm.DEFAULT_N_BATCHES} batches"):
        train(algorithm, n_epochs=1, n_batches=1)


@pytest.mark.parametrize("name", ["n_epochs", "n_batches", "log_interval"])
def test_numbers_below_one_are_refused_before_training(name: str, fits: list[Any]) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*found 0"):
        train(trainer(), **{name: 0})
    with pytest.raises(TypeError, match=f"{name}: .*found '10'"):
        train(trainer(), **{name: "10"})
    assert fits == []


# --- spaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action_space", "convert"),
    [
        (spaces.Discrete(3), lambda acts: acts.astype(np.float32).reshape(-1, 1)),
        (spaces.MultiDiscrete([2, 3]), lambda acts: acts.astype(np.float32)),
        (spaces.MultiBinary(3), lambda acts: acts.astype(np.int8)),
        (CONTINUOUS, lambda acts: acts.astype(np.float64)),
    ],
    ids=["column of floats", "multi floats", "int8 bits", "double"],
)
@pytest.mark.parametrize("bc_loss", ["nll", "mse"])
def test_the_form_of_valid_actions_makes_no_difference(
    action_space: gym.Space, convert: Any, bc_loss: str
) -> None:
    data = transitions(action_space=action_space)
    results = []
    for acts in (data.acts, convert(data.acts)):
        algorithm = trainer(
            VECTOR,
            action_space,
            demonstrations=Transitions(**{**vars(data), "acts": acts}),
            critic=critic(action_space=action_space),
            bc_loss=bc_loss,
            policy=policy(action_space=action_space),
        )
        th.manual_seed(0)
        train(algorithm, n_batches=3)
        results.append(weights(algorithm.policy))
    th.testing.assert_close(results[1], results[0], rtol=0, atol=1e-6)


def test_double_observations_are_trained_on() -> None:
    data = transitions()
    obs = data.obs.astype(np.float64)
    algorithm = trainer(
        demonstrations=Transitions(**{**vars(data), "obs": obs, "next_obs": obs}), policy=None
    )
    train(algorithm, n_batches=2)


# --- policies and statistics ----------------------------------------------------------------------


def test_the_default_policy_holds_the_demonstrations_statistics() -> None:
    algorithm = trainer(policy=None)
    actor = algorithm.policy
    assert isinstance(actor, StandardizedActorPolicy)
    train(algorithm, n_batches=1)
    data = transitions()
    np.testing.assert_allclose(actor.features_extractor.mean, data.obs.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(actor.features_extractor.std, data.obs.std(axis=0), rtol=1e-5)
    # Later demonstrations do not shift what the network has learnt to read.
    before = actor.features_extractor.mean.clone()
    algorithm.set_demonstrations(transitions(seed=5))
    train(algorithm, n_batches=1)
    assert th.equal(actor.features_extractor.mean, before)


@pytest.mark.parametrize("endless", [False, True])
def test_statistics_come_from_an_iterables_first_batches(endless: bool) -> None:
    data = transitions()
    batches = batches_of(data, 16)
    algorithm = trainer(demonstrations=Endless(batches) if endless else batches, policy=None)
    train(algorithm, n_batches=1)
    extractor = algorithm.policy.features_extractor
    np.testing.assert_allclose(extractor.mean, data.obs.mean(axis=0), atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: policy(),
        lambda: FeedForward32Policy(VECTOR, CONTINUOUS, lambda _: 1.0),
        lambda: ActorCriticPolicy(VECTOR, CONTINUOUS, lambda _: 1.0, net_arch=[4], use_sde=True),
        lambda: ActorCriticPolicy(
            VECTOR, CONTINUOUS, lambda _: 1.0, net_arch=[4], use_sde=True, squash_output=True
        ),
    ],
    ids=["standardised", "imitation", "state-dependent", "squashed"],
)
@pytest.mark.parametrize("bc_loss", ["nll", "mse"])
def test_a_given_policy_is_used_as_it_is(make: Any, bc_loss: str) -> None:
    actor = make()
    buffers = {name: value.clone() for name, value in actor.named_buffers()}
    algorithm = trainer(policy=actor, bc_loss=bc_loss, optimizer_kwargs={"lr": 0.0})
    before = weights(actor)
    train(algorithm, n_batches=2)
    assert algorithm.policy is actor
    assert th.equal(weights(actor), before), "at a rate of 0 nothing else may change it"
    assert all(th.equal(value, buffers[name]) for name, value in actor.named_buffers())


@pytest.mark.parametrize(
    ("name", "space", "extractor"),
    [
        ("MlpPolicy", VECTOR, StandardizedFeatures),
        ("MlpPolicy", spaces.Discrete(3), StandardizedFeatures),
        ("MlpPolicy", IMAGE, StandardizedFeatures),
        ("CnnPolicy", IMAGE, NatureCNN),
        ("MultiInputPolicy", MAPPING, StandardizedFeatures),
        ("MultiInputPolicy", spaces.Dict(image=IMAGE), CombinedExtractor),
    ],
    ids=str,
)
def test_sb3s_names_give_the_default_policy(
    name: str, space: gym.Space, extractor: type, tmp_path: Path
) -> None:
    kwargs = {"net_arch": [7], "activation_fn": th.nn.ReLU, "log_std_init": -1.0}
    algorithm = trainer(space, policy=name, policy_kwargs=kwargs)
    actor = algorithm.policy
    assert type(actor) is StandardizedActorPolicy
    assert type(actor.features_extractor) is extractor
    assert actor.mlp_extractor.policy_net[0].out_features == 7
    train(algorithm, n_batches=2)
    # It has the demonstrations' scale inside.
    acts = transitions(space).acts
    np.testing.assert_allclose(actor.action_net[1].mean, acts.mean(axis=0), atol=1e-6)
    loaded = DiffusionBC.load(algorithm.save(tmp_path / "trainer"), verbose=0, device="cpu")
    assert th.equal(weights(loaded.policy), weights(actor))
    alone = load_policy(algorithm.save_policy(tmp_path / "policy"), device="cpu")
    assert type(alone.features_extractor) is extractor
    assert th.equal(weights(alone), weights(actor))


@pytest.mark.parametrize(
    ("name", "space", "fitting"),
    [
        ("MlpPolicy", MAPPING, "expected 'MultiInputPolicy'"),
        ("CnnPolicy", MAPPING, "expected 'MultiInputPolicy'"),
        ("CnnPolicy", VECTOR, "expected 'MlpPolicy'"),
        ("MultiInputPolicy", VECTOR, "expected 'MlpPolicy'"),
        ("MultiInputPolicy", IMAGE, "expected 'MlpPolicy' or 'CnnPolicy'"),
        ("mlp", VECTOR, "expected 'MlpPolicy'"),
    ],
)
def test_names_that_do_not_fit_the_observations_are_refused(
    name: str, space: gym.Space, fitting: str
) -> None:
    with pytest.raises(ValueError, match=f"policy='{name}': {fitting} for the observations"):
        trainer(space, policy=name)


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (FeedForward32Policy, None),
        (ActorCriticPolicy, {"net_arch": [9, 8]}),
        (OwnPolicy, {"net_arch": [9]}),
    ],
    ids=str,
)
def test_a_class_is_made_as_it_is(
    cls: type[ActorCriticPolicy], kwargs: dict[str, Any] | None, tmp_path: Path
) -> None:
    algorithm = trainer(policy=cls, policy_kwargs=kwargs)
    th.manual_seed(0)
    expected = cls(VECTOR, CONTINUOUS, lambda _: 1.0, **kwargs or {})
    assert type(algorithm.policy) is cls
    assert str(algorithm.policy) == str(expected)
    train(algorithm, n_batches=1)
    path = algorithm.save(tmp_path / "trainer")
    unknown = {"policy": cls, "policy_kwargs": kwargs} if cls is OwnPolicy else {}
    loaded = DiffusionBC.load(path, verbose=0, device="cpu", **unknown)
    assert th.equal(weights(loaded.policy), weights(algorithm.policy))


def test_a_subclass_of_the_default_policy_gets_the_statistics_too() -> None:
    class Own(StandardizedActorPolicy):
        """A user's variant."""

    algorithm = trainer(policy=Own)
    train(algorithm, n_batches=1)
    extractor = algorithm.policy.features_extractor
    np.testing.assert_allclose(extractor.mean, transitions().obs.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"policy_kwargs": {}}, ValueError, "policy_kwargs are for a new policy"),
        (
            {"policy": FeedForward32Policy, "policy_kwargs": {"net_arch": [4]}},
            TypeError,
            "policy_kwargs=.*FeedForward32Policy: .*'net_arch'",
        ),
        (
            {"policy": ActorCriticCnnPolicy},
            ValueError,
            r"ActorCriticCnnPolicy cannot be made for Box.*images",
        ),
    ],
    ids=str,
)
def test_arguments_that_no_policy_takes_are_refused(
    kwargs: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        trainer(**kwargs)


def test_an_algorithm_in_place_of_its_policy_is_refused_with_advice() -> None:
    for algorithm in (PPO("MlpPolicy", LineEnv(), device="cpu"), trainer()):
        name = type(algorithm).__name__
        with pytest.raises(TypeError, match=rf"^policy: expected a policy, as {name}\.policy is"):
            trainer(policy=algorithm)


# --- iterables ------------------------------------------------------------------------------------
def one_shot(batches: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    yield from batches


@pytest.mark.parametrize("default_policy", [False, True])
@pytest.mark.parametrize("dm_coef", [0.0, 1.0])
def test_a_one_shot_iterable_is_trained_on_batch_by_batch(
    dm_coef: float, default_policy: bool, losses: list[tuple[th.Tensor, Any]]
) -> None:
    data = transitions()
    kwargs: dict[str, Any] = {"policy": None} if default_policy else {}
    algorithm = trainer(demonstrations=one_shot(batches_of(data, 16)), dm_coef=dm_coef, **kwargs)
    train(algorithm, n_batches=1)
    train(algorithm, n_batches=3)
    np.testing.assert_array_equal(th.cat([acts for acts, _ in losses]), data.acts)
    with pytest.raises(AssertionError, match="no data"):
        train(algorithm, n_batches=1)
