"""Saved trainers go on as if they had never stopped, and damaged files are refused."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import (
    ACTION_SPACES,
    IMAGE,
    LINE_ENV_ID,
    MAPPING,
    OBSERVATION_SPACES,
    VECTOR,
    LineEnv,
    batches_of,
    critic,
    every_batch,
    policy,
    recipe_of,
    space_id,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import CheckpointError, DiffusionBC

# 64 rows: a pass is 4 batches.
DATA = transitions()


class OwnPolicy(ActorCriticPolicy):
    """A user's policy, which no checkpoint may name."""


class OwnAdam(th.optim.Adam):
    """A user's optimiser."""


def load(path: Path, cls: type[DiffusionBC] = DiffusionBC, **kwargs: Any) -> DiffusionBC:
    """Loads in a process in which other things have used the random state meanwhile."""
    th.manual_seed(12345)
    return cls.load(path, **{"demonstrations": DATA, "verbose": 0, "device": "cpu", **kwargs})


def curves(algorithm: DiffusionBC) -> Any:
    """What the critic's fit recorded, but for the time that it took."""
    assert algorithm.critic is not None
    assert algorithm.critic.history is not None
    return dataclasses.replace(algorithm.critic.history, seconds=0)


def assert_same_state(one: DiffusionBC, other: DiffusionBC) -> None:
    assert th.equal(weights(one.policy), weights(other.policy))
    assert one.n_updates == other.n_updates
    states = [algorithm.optimizer.state_dict() for algorithm in (one, other)]
    assert str(states[0]["param_groups"]) == str(states[1]["param_groups"])
    for index, entries in states[0]["state"].items():
        for name, value in entries.items():
            assert th.equal(th.as_tensor(value), th.as_tensor(states[1]["state"][index][name]))
    assert (one.critic is None) == (other.critic is None)
    if one.critic is not None and other.critic is not None:
        assert th.equal(weights(one.critic), weights(other.critic))
        assert curves(one) == curves(other)
    assert one.rng.bit_generator.state == other.rng.bit_generator.state


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "own critic": lambda: {},
    "default policy": lambda: {"policy": None},
    "injected critic": lambda: {"critic": critic()},
    "without L_DM": lambda: {"dm_coef": 0},
    "minibatches": lambda: {"minibatch_size": 4},
    "mse, regularised": lambda: {"bc_loss": "mse", "dm_clamp": "batch", "l2_weight": 1e-3},
    "critic of pairs": lambda: {"critic_models": "state_action", "ent_weight": 0.1},
    "incomplete last batch": lambda: {"batch_size": 24},
    "default batches": lambda: {"batch_size": None},
    "momentum": lambda: {
        "optimizer_cls": th.optim.SGD,
        "optimizer_kwargs": {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    },
    "adamw": lambda: {
        "optimizer_cls": th.optim.AdamW,
        "optimizer_kwargs": {"lr": 1e-3, "amsgrad": True, "betas": (0.8, 0.99)},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [0, 3, 4])
def test_a_loaded_trainer_goes_on_as_if_never_stopped(
    stop: int, variant: str, tmp_path: Path
) -> None:
    """``stop`` 0 is before any training, 4 the end of a pass, the others in the middle of one."""
    stopped = trainer(demonstrations=DATA, seed=3, **VARIANTS[variant]())
    if stop:
        train(stopped, n_batches=stop)
    path = stopped.save(tmp_path / "trainer")
    loaded = load(path)
    assert_same_state(loaded, stopped)
    train(loaded, n_batches=7)
    # Afterwards, as the global random state is the process's only one.
    th.manual_seed(3)
    whole = trainer(demonstrations=DATA, seed=3, **VARIANTS[variant]())
    if stop:
        train(whole, n_batches=stop)
    train(whole, n_batches=7)
    assert_same_state(loaded, whole)


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    zip([*OBSERVATION_SPACES, IMAGE], itertools.cycle(ACTION_SPACES), strict=False),
    ids=space_id,
)
def test_that_holds_for_every_space(
    observation_space: gym.Space, action_space: gym.Space, tmp_path: Path
) -> None:
    data = transitions(observation_space, action_space)

    def begun() -> DiffusionBC:
        algorithm = trainer(
            observation_space, action_space, demonstrations=data, policy=None, seed=3
        )
        train(algorithm, n_batches=2)
        return algorithm

    path = begun().save(tmp_path / "trainer")
    loaded = load(path, demonstrations=data)
    train(loaded, n_batches=4)
    whole = begun()
    train(whole, n_batches=4)
    assert loaded.observation_space == observation_space
    assert loaded.action_space == action_space
    assert_same_state(loaded, whole)


def test_a_trainer_loaded_without_demonstrations_can_be_saved_again_or_given_them(
    tmp_path: Path,
) -> None:
    algorithm = trainer(demonstrations=DATA, seed=3)
    train(algorithm, n_batches=3)
    path = algorithm.save(tmp_path / "first")
    # To move a checkpoint to another device, say.
    again = load(path, demonstrations=None).save(tmp_path / "second")
    loaded = load(again, demonstrations=None)
    with pytest.raises(ValueError, match="demonstrations are missing"):
        train(loaded, n_batches=1)
    loaded.set_demonstrations(transitions())
    train(loaded, n_batches=4)
    train(reference := load(path), n_batches=4)
    assert_same_state(loaded, reference)


def test_a_trainer_on_an_iterable_of_batches_keeps_its_critic(
    tmp_path: Path, fits: list[Any]
) -> None:
    batches = batches_of(DATA, 16)
    algorithm = trainer(demonstrations=batches, seed=3)
    train(algorithm, n_epochs=1)
    loaded = load(algorithm.save(tmp_path / "trainer"), demonstrations=batches)
    for one in (algorithm, loaded):
        train(one, n_epochs=1)
    assert len(fits) == 1
    assert_same_state(loaded, algorithm)


def test_other_demonstrations_start_a_new_pass_and_refit_an_own_critic(
    tmp_path: Path, fits: list[Any], losses: list[tuple[th.Tensor, Any]]
) -> None:
    algorithm = trainer(demonstrations=DATA, seed=3)
    train(algorithm, n_batches=3)
    other = transitions(seed=9)
    loaded = load(algorithm.save(tmp_path / "trainer"), demonstrations=other)
    losses.clear()
    train(loaded, n_batches=4)
    assert fits == [DATA, other]
    seen = {row.tobytes() for acts, _ in losses for row in acts.numpy()}
    assert seen == {row.tobytes() for row in other.acts}
    # By now the critic knows the other ones.
    loaded.set_demonstrations(DATA)
    train(loaded, n_batches=1)
    assert fits == [DATA, other, DATA]


def test_the_critic_is_fitted_if_that_had_not_happened_yet(tmp_path: Path, fits: list[Any]) -> None:
    algorithm = trainer(demonstrations=DATA)
    train(algorithm, n_batches=1)
    algorithm.set_demonstrations(other := transitions(seed=9))
    loaded = load(algorithm.save(tmp_path / "trainer"), demonstrations=other)
    train(loaded, n_batches=1)
    assert fits == [DATA, other]


def test_arguments_come_back(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "batch_size": 8,
        "minibatch_size": 4,
        "ent_weight": 0.25,
        "l2_weight": 0.5,
        "bc_coef": 0.75,
        "dm_coef": 3.0,
        "bc_loss": "mse",
        "dm_clamp": "none",
        "critic_models": "state_action",
        "critic_kwargs": {"width": 8, "n_steps": 3},
        "validation_fraction": 0.25,
    }
    assert arguments.keys() == DiffusionBC.saved_arguments, (
        "a new argument has a value of its own here"
    )
    algorithm = trainer(seed=11, demonstrations=None, **arguments)
    path = algorithm.save(tmp_path / "trainer")
    loaded = load(path, demonstrations=None)
    assert {name: getattr(loaded, name) for name in arguments} == arguments
    algorithm.dm_coef = 0.5
    assert load(algorithm.save(tmp_path / "changed"), demonstrations=None).dm_coef == 0.5
    assert loaded.optimizer.param_groups[0]["lr"] == 1e-3
    assert path == tmp_path / "trainer.safetensors"
    with pytest.raises(TypeError, match="load takes no batch_size"):
        load(path, batch_size=4)


def test_numpys_numbers_are_arguments_as_pythons_are(tmp_path: Path) -> None:
    numbers = {"ent_weight": np.float32(1e-3), "l2_weight": np.int64(0), "batch_size": np.int64(8)}
    algorithm = trainer(**numbers, validation_fraction=np.float32(0.0))
    train(algorithm, n_batches=1)
    assert load(algorithm.save(tmp_path / "a")).batch_size == 8


def test_what_cannot_be_saved_is_said_before_the_work() -> None:
    with pytest.warns(UserWarning, match="save will refuse this trainer.*MT19937"):
        trainer(rng=np.random.Generator(np.random.MT19937()))
    with pytest.warns(UserWarning, match="save will refuse this trainer.*valid string"):
        trainer(spaces.Dict([(0, VECTOR)]), demonstrations=None, policy=None)


def test_the_environment_may_be_given_again(tmp_path: Path) -> None:
    line = (LineEnv.observation_space, LineEnv.action_space)
    algorithm = trainer(*line, env=LINE_ENV_ID, policy=policy(*line))
    expected = algorithm.evaluate(3)
    path = algorithm.save(tmp_path / "trainer")
    for env in (LINE_ENV_ID, LineEnv(), DummyVecEnv([LineEnv])):
        assert load(path, demonstrations=None, env=env).env is env
    loaded = load(path, demonstrations=None, env=LINE_ENV_ID)
    np.testing.assert_array_equal(loaded.evaluate(3).returns, expected.returns)
    with pytest.raises(ValueError, match="env is missing"):
        load(path, demonstrations=None).evaluate(3)
    with pytest.raises(ValueError, match=r"observation_space is .* but env has") as raised:
        load(trainer().save(path), env=LineEnv())
    assert not isinstance(raised.value, CheckpointError), "the file is not at fault"


def test_a_policy_of_another_class_needs_an_instance(tmp_path: Path) -> None:
    algorithm = trainer(policy=policy(cls=OwnPolicy), demonstrations=DATA, seed=3)
    train(algorithm, n_batches=3)
    path = algorithm.save(tmp_path / "trainer")
    with pytest.raises(CheckpointError, match=r"OwnPolicy.*policy="):
        load(path)
    instance = policy(cls=OwnPolicy, seed=8)
    loaded = load(path, policy=instance)
    assert loaded.policy is instance
    assert_same_state(loaded, algorithm)
    train(loaded, n_batches=4)
    train(reference := load(path, policy=policy(cls=OwnPolicy)), n_batches=4)
    assert_same_state(loaded, reference)


def test_an_instance_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = trainer(policy=policy(cls=OwnPolicy)).save(tmp_path / "trainer")
    with pytest.raises(CheckpointError, match="do not fit"):
        load(path, policy=policy(cls=OwnPolicy, net_arch=[9]))
    with pytest.raises(ValueError, match=r"policy\.observation_space"):
        load(path, policy=policy(MAPPING))


def test_an_unknown_optimiser_must_be_given(tmp_path: Path) -> None:
    algorithm = trainer(optimizer_cls=OwnAdam, demonstrations=DATA, seed=3)
    train(algorithm, n_batches=3)
    path = algorithm.save(tmp_path / "trainer")
    with pytest.raises(CheckpointError, match=r"OwnAdam.*optimizer_cls="):
        load(path)
    loaded = load(path, optimizer_cls=OwnAdam)
    assert type(loaded.optimizer) is OwnAdam
    assert_same_state(loaded, algorithm)
    with pytest.raises(CheckpointError, match="OwnAdam"):
        load(path, optimizer_cls=th.optim.SGD)


def test_a_rate_that_was_falling_when_it_was_saved_is_whole_in_another_training(
    tmp_path: Path,
) -> None:
    algorithm = trainer(cls=recipe_of(9))
    train(algorithm, on_batch_end=every_batch(5, lambda: algorithm.save(tmp_path / "a")))
    loaded = load(tmp_path / "a", cls=recipe_of(9))
    rates = []
    train(
        loaded,
        n_batches=1,
        on_batch_end=lambda: rates.append(loaded.optimizer.param_groups[0]["lr"]),
    )
    assert rates == [1e-3]
