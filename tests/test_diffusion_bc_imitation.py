"""DiffusionBC in the place of imitation's BC: same arguments, same results, same company."""

from __future__ import annotations

import copy
import csv
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.algorithms import bc, dagger
from imitation.policies.base import FeedForward32Policy, NonTrainablePolicy
from imitation.util import logger as imit_logger
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from toys import (
    ACTION_SPACES,
    CONTINUOUS,
    CRITIC_KWARGS,
    IMAGE,
    MAPPING,
    VECTOR,
    LineEnv,
    batches_of,
    policy,
    space_id,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import DiffusionBC, DiffusionCritic


def quiet(folder: Path) -> imit_logger.HierarchicalLogger:
    return imit_logger.configure(folder, ["csv"])


def rows_logged(folder: Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def imitation_policy(
    observation_space: gym.Space = VECTOR, action_space: gym.Space = CONTINUOUS
) -> ActorCriticPolicy:
    """What imitation's BC makes by default, always with the same weights."""
    with th.random.fork_rng(devices=[]):
        th.manual_seed(0)
        if isinstance(observation_space, spaces.Dict):
            return MultiInputActorCriticPolicy(
                observation_space, action_space, lambda _: 1.0, net_arch=[8]
            )
        return FeedForward32Policy(observation_space, action_space, lambda _: 1.0)


def make(
    cls: type[bc.BC],
    folder: Path,
    observation_space: gym.Space = VECTOR,
    action_space: gym.Space = CONTINUOUS,
    **kwargs: Any,
) -> bc.BC:
    """The same algorithm from either class, with imitation's arguments only."""
    arguments: dict[str, Any] = {
        "demonstrations": transitions(observation_space, action_space),
        "policy": imitation_policy(observation_space, action_space),
        "batch_size": 16,
    }
    return cls(
        observation_space=observation_space,
        action_space=action_space,
        rng=np.random.default_rng(0),
        custom_logger=quiet(folder / cls.__name__),
        device="cpu",
        **{**arguments, **kwargs},
    )


class WithoutDM(DiffusionBC):
    """The trainer as imitation's BC, whatever its demonstrations look like."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dm_coef=0, bc_loss="nll", **kwargs)


def both(tmp_path: Path, **kwargs: Any) -> list[bc.BC]:
    """BC and DiffusionBC without L_DM, from the same initial policy."""
    algorithms = []
    for cls in (bc.BC, WithoutDM):
        th.manual_seed(5)
        algorithms.append(make(cls, tmp_path, **copy.deepcopy(kwargs)))
    return algorithms


def assert_same_results(algorithms: list[bc.BC], **length: Any) -> None:
    before = weights(algorithms[0].policy)
    for algorithm in algorithms:
        th.manual_seed(9)
        algorithm.train(progress_bar=False, **length)
    assert th.equal(weights(algorithms[1].policy), weights(algorithms[0].policy))
    assert not th.equal(weights(algorithms[0].policy), before)


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {k: v for k, v in inspect.signature(function).parameters.items() if k != "self"}


def test_the_constructor_takes_every_argument_of_bcs() -> None:
    ours = parameters(DiffusionBC.__init__)
    # Those that BC insists on may come from env and seed; the batch size depends on `train`.
    elsewhere = {"observation_space", "action_space", "rng", "batch_size"}
    for name, theirs in parameters(bc.BC.__init__).items():
        assert ours[name].kind is theirs.kind, name
        assert ours[name].default == (None if name in elsewhere else theirs.default), name
    assert trainer(batch_size=None).batch_size == parameters(bc.BC.__init__)["batch_size"].default
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in ours.values())


@pytest.mark.parametrize("method", ["train", "set_demonstrations"])
def test_methods_take_every_argument_of_bcs(method: str) -> None:
    ours = parameters(getattr(DiffusionBC, method))
    theirs = parameters(getattr(bc.BC, method))
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].kind is parameter.kind, name
        assert ours[name].default == parameter.default, name


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=space_id)
@pytest.mark.parametrize("observation_space", [VECTOR, MAPPING], ids=space_id)
@pytest.mark.parametrize("source", ["transitions", "batches"])
def test_without_l_dm_it_is_bc_to_the_bit(
    source: str, observation_space: gym.Space, action_space: gym.Space, tmp_path: Path
) -> None:
    data = transitions(observation_space, action_space)
    algorithms = both(
        tmp_path,
        observation_space=observation_space,
        action_space=action_space,
        demonstrations=data if source == "transitions" else batches_of(data, 16),
    )
    assert_same_results(algorithms, n_epochs=3)
    assert_same_results(algorithms, n_epochs=2)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"ent_weight": 0.3, "l2_weight": 1e-2},
        {"batch_size": 10},
        {"minibatch_size": 4},
        {"minibatch_size": 8, "batch_size": 24},
        {"optimizer_cls": th.optim.SGD, "optimizer_kwargs": {"lr": 0.1, "momentum": 0.9}},
        {"optimizer_cls": th.optim.RMSprop, "optimizer_kwargs": {"lr": 1e-3}},
        {"optimizer_kwargs": {"lr": 1e-2, "betas": (0.5, 0.9)}},
    ],
    ids=str,
)
@pytest.mark.parametrize("length", [{"n_epochs": 2}, {"n_batches": 5}], ids=str)
def test_that_holds_for_every_argument(
    kwargs: dict[str, Any], length: dict[str, int], tmp_path: Path
) -> None:
    assert_same_results(both(tmp_path, **kwargs), **length)


POLICIES: list[tuple[type[ActorCriticPolicy], gym.Space, gym.Space, dict[str, Any]]] = [
    (FeedForward32Policy, spaces.MultiDiscrete([2, 3]), spaces.Discrete(2), {}),
    (ActorCriticPolicy, VECTOR, CONTINUOUS, {"use_sde": True}),
    (ActorCriticPolicy, VECTOR, CONTINUOUS, {"use_sde": True, "squash_output": True}),
    (ActorCriticPolicy, VECTOR, CONTINUOUS, {"share_features_extractor": False}),
    (MultiInputActorCriticPolicy, MAPPING, spaces.MultiDiscrete([2, 3]), {}),
    (
        ActorCriticCnnPolicy,
        IMAGE,
        spaces.Discrete(3),
        {"features_extractor_kwargs": {"features_dim": 8}},
    ),
]


@pytest.mark.parametrize(("cls", "observation_space", "action_space", "kwargs"), POLICIES)
def test_that_holds_for_other_policies(
    cls: Any, observation_space: gym.Space, action_space: gym.Space, kwargs: Any, tmp_path: Path
) -> None:
    spaces_ = {"observation_space": observation_space, "action_space": action_space}
    algorithms = []
    for algorithm in (bc.BC, WithoutDM):
        th.manual_seed(5)
        learner = cls(**spaces_, lr_schedule=lambda _: 1.0, **kwargs)
        arguments = {"policy": learner, "ent_weight": 0.3, "l2_weight": 1e-2, **spaces_}
        algorithms.append(make(algorithm, tmp_path, **arguments))
    assert_same_results(algorithms, n_epochs=2)


def test_with_decoupled_weight_decay_the_actor_is_the_same(tmp_path: Path) -> None:
    # imitation's loss gives the unused value network gradients of 0, so AdamW shrinks it; ours
    # leaves it alone.
    algorithms = both(tmp_path, optimizer_cls=th.optim.AdamW)
    for algorithm in algorithms:
        th.manual_seed(9)
        algorithm.train(n_epochs=2, progress_bar=False)
    theirs, ours = (dict(algorithm.policy.named_parameters()) for algorithm in algorithms)
    for name in ours:
        if "value" not in name:
            assert th.equal(ours[name], theirs[name]), name


class Content(DiffusionCritic):
    """A critic that never finds anything wrong with the agent."""

    def l_diff(self, state: Any, action: th.Tensor, *args: Any) -> th.Tensor:
        # The agent's actions are the ones with a graph.
        return 0 * action.sum(dim=-1) - float(action.requires_grad)


@pytest.mark.parametrize("dm_clamp", ["sample", "batch"])
def test_while_l_dm_is_clamped_it_is_bc(dm_clamp: str, tmp_path: Path) -> None:
    content = Content(VECTOR, CONTINUOUS, seed=0, device="cpu", **CRITIC_KWARGS)
    content.is_fitted = True

    class WithContentCritic(DiffusionBC):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(
                critic=content, dm_coef=100.0, dm_clamp=dm_clamp, bc_loss="nll", **kwargs
            )

    algorithms = [make(cls, tmp_path) for cls in (bc.BC, WithContentCritic)]
    assert_same_results(algorithms, n_epochs=3)
    logged = rows_logged(tmp_path / "WithContentCritic")[-1]
    assert float(logged["dm/active"]) == float(logged["dm/loss"]) == 0


@pytest.mark.parametrize("length", [{"n_epochs": 2}, {"n_batches": 6}], ids=str)
@pytest.mark.parametrize("minibatch_size", [16, 8])
def test_callbacks_are_called_as_in_bc(
    minibatch_size: int, length: dict[str, int], tmp_path: Path
) -> None:
    calls = []
    for algorithm in both(tmp_path, minibatch_size=minibatch_size):
        events: list[str] = []
        algorithm.train(
            on_epoch_end=lambda events=events: events.append("epoch"),
            on_batch_end=lambda events=events: events.append("batch"),
            progress_bar=False,
            **length,
        )
        calls.append(events)
    assert calls[1] == calls[0]
    assert {"epoch", "batch"} == set(calls[1])


def test_a_loader_that_runs_dry_is_reported_as_in_bc(tmp_path: Path) -> None:
    class RunsDry:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            # The first pass is only looked into.
            return iter(batches_of(transitions(), 16) if self.passes <= 2 else [])

    for kwargs in ({"dm_coef": 0}, {}, {"policy": None}):
        algorithm = trainer(demonstrations=RunsDry(), **kwargs)
        with pytest.raises(AssertionError, match="no data"):
            train(algorithm, n_epochs=2)
        assert algorithm.n_updates == 4
    with pytest.raises(AssertionError, match="no data"):
        make(bc.BC, tmp_path, demonstrations=RunsDry()).train(n_epochs=2, progress_bar=False)


def test_rollouts_are_logged(tmp_path: Path) -> None:
    algorithm = trainer(
        LineEnv.observation_space,
        LineEnv.action_space,
        custom_logger=quiet(tmp_path),
    )
    venv = DummyVecEnv([LineEnv] * 2)
    train(algorithm, n_batches=4, log_interval=2, log_rollouts_venv=venv, log_rollouts_n_episodes=3)
    rows = [row for row in rows_logged(tmp_path) if row["bc/batch"]]
    assert len(rows) == 2
    assert all(np.isfinite(float(row["rollout/return_mean"])) for row in rows)


def test_every_term_is_logged(tmp_path: Path) -> None:
    algorithm = trainer(custom_logger=quiet(tmp_path), bc_loss="mse")
    train(algorithm, n_batches=4, log_interval=2)
    rows = rows_logged(tmp_path)
    assert algorithm.critic is not None
    assert algorithm.critic.history is not None
    of_critic = [row for row in rows if row["critic/loss"]]
    assert [float(row["critic/validation_loss"]) for row in of_critic] == pytest.approx(
        algorithm.critic.history.validation_loss, rel=1e-5
    )
    of_training = [row for row in rows if row["bc/batch"]]
    assert [row["bc/batch"] for row in of_training] == ["0", "2"]
    for row in of_training:
        values = {name: float(value) for name, value in row.items() if value}
        for name in ("loss", "agent", "expert"):
            assert values[f"dm/{name}"] >= 0
        assert values["dm/agent"] - values["dm/expert"] <= values["dm/loss"] + 1e-6
        assert 0 <= values["dm/active"] <= 1
        cloning = values["bc/regression"] + values["bc/neglogp"]
        total = cloning + algorithm.dm_coef * values["dm/loss"]
        assert values["bc/loss"] == pytest.approx(total, rel=1e-5)


def test_what_bc_logs_is_logged_alike(tmp_path: Path) -> None:
    for algorithm in both(tmp_path, l2_weight=0.0):
        th.manual_seed(9)
        algorithm.train(n_epochs=2, log_interval=3, progress_bar=False)
    theirs, ours = (rows_logged(tmp_path / name) for name in ("BC", "WithoutDM"))
    assert len(ours) == len(theirs) == 3
    for mine, row in zip(ours, theirs, strict=True):
        assert set(mine) == set(row)
        assert "bc/l2_norm" in row
        for name, value in row.items():
            # Unweighted, our norm is only computed for the log, which is after the update.
            tolerance = 1e-2 if name == "bc/l2_norm" else 1e-5
            assert float(mine[name]) == pytest.approx(float(value), rel=tolerance), name


def test_steps_of_the_log_go_on_unless_reset(tmp_path: Path) -> None:
    algorithm = trainer(custom_logger=quiet(tmp_path), dm_coef=0)
    for kwargs in ({}, {}, {"reset_tensorboard": True}):
        train(algorithm, n_batches=2, log_interval=1, **kwargs)
        steps = algorithm._bc_logger._tensorboard_step
        assert steps == (4 if algorithm.n_updates == 4 else 2)


def test_without_a_place_to_log_to_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(trainer(), n_batches=1)
    assert list(tmp_path.iterdir()) == []


class PendulumExpert(NonTrainablePolicy):
    """Damps the swing."""

    def _choose_action(self, obs: Any) -> np.ndarray:
        return np.clip([-obs[1] - 0.5 * obs[2]], -2, 2).astype(np.float32)


def dagger_trainer(
    folder: Path, logger: imit_logger.HierarchicalLogger | None = None, **kwargs: Any
) -> dagger.SimpleDAggerTrainer:
    venv: VecEnv = DummyVecEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=20)] * 2)
    venv.seed(0)
    return dagger.SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=folder / "scratch",
        expert_policy=PendulumExpert(venv.observation_space, venv.action_space),
        bc_trainer=DiffusionBC(
            env=venv,
            critic_kwargs=CRITIC_KWARGS,
            **{"batch_size": 16, "verbose": 0, "device": "cpu", **kwargs},
        ),
        rng=np.random.default_rng(0),
        custom_logger=logger or quiet(folder / "log"),
    )


def test_dagger_runs_with_it(tmp_path: Path, fits: list[Any]) -> None:
    learner = dagger_trainer(tmp_path)
    before = weights(learner.policy)
    learner.train(
        # Two rounds of at least two episodes of 20 steps.
        total_timesteps=60,
        rollout_round_min_episodes=2,
        rollout_round_min_timesteps=20,
        bc_train_kwargs={"n_batches": 5, "progress_bar": False, "log_rollouts_n_episodes": 1},
    )
    assert learner.round_num == 2
    # Each round adds demonstrations, to which the critic is fitted again.
    assert len(fits) == 2
    assert len(fits[1]) > len(fits[0])
    assert not th.equal(weights(learner.policy), before)
    assert learner.bc_trainer.n_updates == 10


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_in_dagger_a_training_prints_what_its_verbosity_says(
    verbose: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logger = imit_logger.configure(tmp_path / "log", ["stdout", "csv"])
    learner = dagger_trainer(tmp_path, logger, verbose=verbose, validation_fraction=0.3)
    learner.train(
        total_timesteps=30,
        rollout_round_min_episodes=2,
        rollout_round_min_timesteps=20,
        bc_train_kwargs={"n_batches": 30, "log_rollouts_venv": None, "log_interval": 10},
    )
    out, err = capfd.readouterr()
    assert out.count("policy, update 30 of 30") == (verbose > 0)
    assert ("DiffusionBC" in err) == (verbose > 0)
    assert ("dagger/" in out) == (verbose > 1)
    if not verbose:
        assert out == ""
    assert len([row for row in rows_logged(tmp_path / "log") if row["bc/loss"]]) == 3
    print_output = logger.default_logger.output_formats
    assert len(print_output) == 2, "the logger prints again afterwards"


def test_dagger_saves_and_reloads_it(tmp_path: Path) -> None:
    learner = dagger_trainer(tmp_path)
    kwargs: dict[str, Any] = {
        "rollout_round_min_episodes": 2,
        "rollout_round_min_timesteps": 20,
        "bc_train_kwargs": {"n_batches": 3, "progress_bar": False, "log_rollouts_venv": None},
    }
    learner.train(total_timesteps=30, **kwargs)
    checkpoint, policy_path = learner.save_trainer()
    # What imitation's reconstruct_trainer does, with torch's guard against pickles off.
    restored = th.load(checkpoint, weights_only=False)
    restored.venv = learner.venv
    restored.logger = quiet(tmp_path / "again")
    assert th.equal(weights(restored.policy), weights(learner.policy))
    assert th.equal(weights(th.load(policy_path, weights_only=False)), weights(learner.policy))
    restored.train(total_timesteps=30, **kwargs)
    assert not th.equal(weights(restored.policy), weights(learner.policy))


@pytest.mark.parametrize("n_batches", [0, 2])
def test_a_pickled_trainer_trains_on_to_the_same_parameters(n_batches: int) -> None:
    algorithm = trainer(seed=0)
    if n_batches:
        train(algorithm, n_batches=n_batches)
    restored = pickle.loads(pickle.dumps(algorithm))
    for one in (algorithm, restored):
        th.manual_seed(1)
        train(one, n_batches=5)
    assert th.equal(weights(restored.policy), weights(algorithm.policy))


def test_pickling_leaves_the_environment_behind_but_keeps_its_id() -> None:
    line = (LineEnv.observation_space, LineEnv.action_space)
    for env, expected in ((LineEnv(), None), ("sb3_diffbc_tests/Line-v0", str)):
        algorithm = trainer(*line, env=env, policy=policy(*line))
        restored = pickle.loads(pickle.dumps(algorithm))
        assert restored.env is None if expected is None else isinstance(restored.env, expected)
        assert algorithm.env is env
