"""SB3's callbacks, and checkpoints from which a killed training goes on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import (
    CRITIC_KWARGS,
    LINE_ENV_ID,
    LineEnv,
    every_batch,
    policy,
    recipe_of,
    space_id,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import CheckpointError, DiffusionBC, TrainingCheckpoints

ShortRecipe = recipe_of(30)
LINE = (LineEnv.observation_space, LineEnv.action_space)
# Two batches in a pass of the default recipe, which a run may be killed between.
DATA = transitions(*LINE, n=300)


def line_trainer(**kwargs: Any) -> DiffusionBC:
    defaults: dict[str, Any] = {
        "policy": policy(*LINE),
        "env": LINE_ENV_ID,
        "demonstrations": DATA,
        # Its fit takes all 20 steps.
        "critic_kwargs": {**CRITIC_KWARGS, "patience": 50},
        "seed": 3,
    }
    return trainer(*LINE, **{**defaults, **kwargs})


def load(path: Path, cls: type[DiffusionBC] = DiffusionBC, **kwargs: Any) -> DiffusionBC:
    return cls.load(path, **{"demonstrations": DATA, "verbose": 0, "device": "cpu", **kwargs})


class Witness(BaseCallback):
    """Writes down what it is called with; stops after some calls."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.seen: list[str | tuple[int, int]] = []

    def _on_training_start(self) -> None:
        self.seen.append("start")

    def _on_step(self) -> bool:
        self.seen.append((self.n_calls, self.num_timesteps))
        return self.n_calls != self.stop_after

    def _on_training_end(self) -> None:
        self.seen.append("end")


# --- SB3's callbacks ----------------------------------------------------------------------------


def test_a_callback_counts_updates_and_knows_the_trainer() -> None:
    algorithm, witness = line_trainer(demonstrations=transitions(*LINE, n=64)), Witness()
    train(algorithm, n_batches=2, callback=witness)
    train(algorithm, n_epochs=1, callback=[witness])
    first = ["start", (1, 1), (2, 2), "end"]
    assert witness.seen == [*first, "start", *((n, n) for n in range(3, 7)), "end"]
    assert witness.model is algorithm
    assert witness.logger is algorithm.logger
    assert witness.locals["self"] is algorithm
    assert witness.locals["n_epochs"] == 1
    assert witness.locals["total_timesteps"] == 6


def test_a_function_is_a_callback_as_in_sb3() -> None:
    calls: list[int] = []

    def stop_at_the_third(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        calls.append(locals_["self"].num_timesteps)
        return len(calls) < 3

    algorithm = line_trainer()
    train(algorithm, n_batches=10, callback=stop_at_the_third)
    assert calls == [1, 2, 3]
    assert algorithm.n_updates == 3


def test_what_is_no_callback_is_refused() -> None:
    with pytest.raises(TypeError, match="callback is a int"):
        train(line_trainer(), n_batches=1, callback=3)


@pytest.mark.parametrize("length", [{"n_batches": 7}, {}])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_training_that_a_callback_stopped_can_go_on(stop: int, length: dict[str, int]) -> None:
    stopped, whole = line_trainer(cls=ShortRecipe), line_trainer(cls=ShortRecipe)
    train(stopped, **length, callback=Witness(stop_after=stop))
    assert stopped.n_updates == stop
    assert stopped.optimizer.param_groups[0]["lr"] == 1e-3
    train(stopped, **({"n_batches": 7 - stop} if length else {}))
    train(whole, **length)
    assert stopped.n_updates == whole.n_updates
    assert th.equal(weights(stopped.policy), weights(whole.policy))


def test_the_best_model_of_an_evaluation_can_be_loaded(tmp_path: Path) -> None:
    algorithm = line_trainer()
    at_best: list[th.Tensor] = []

    class OnBest(BaseCallback):
        def _on_step(self) -> bool:
            at_best.append(weights(algorithm.policy))
            return True

    callback = EvalCallback(
        Monitor(LineEnv()),
        callback_on_new_best=OnBest(),
        eval_freq=5,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path / "log"),
        verbose=0,
    )
    train(algorithm, n_batches=20, callback=callback)
    assert at_best
    loaded = load(tmp_path / "best" / "best_model.safetensors", env=LINE_ENV_ID)
    assert th.equal(weights(loaded.policy), at_best[-1])
    found = np.load(tmp_path / "log" / "evaluations.npz")
    assert found["timesteps"].tolist() == [5, 10, 15, 20]


def test_sb3s_checkpoints_are_the_trainers_own_files(tmp_path: Path) -> None:
    callback = CheckpointCallback(save_freq=3, save_path=str(tmp_path), name_prefix="run")
    whole = line_trainer(cls=ShortRecipe)
    train(whole, callback=EveryNTimesteps(3, callback))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "run_18_steps.safetensors",
        "run_27_steps.safetensors",
        "run_9_steps.safetensors",
    ]
    # By the name that SB3 reports, too.
    for name in ("run_9_steps.zip", "run_27_steps.safetensors"):
        resumed = load(tmp_path / name, cls=ShortRecipe)
        train(resumed)
        assert resumed.n_updates == 30
        assert th.equal(weights(resumed.policy), weights(whole.policy))


def test_an_archive_of_sb3_is_not_taken_for_the_trainers_file(tmp_path: Path) -> None:
    train(line_trainer(), n_batches=1, callback=CheckpointCallback(1, str(tmp_path), "run"))
    (tmp_path / "run_1_steps.zip").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="zip archives are not opened"):
        load(tmp_path / "run_1_steps.zip")


@pytest.mark.parametrize("kind", ["id", "environment", "vectorised", "normalised"])
def test_callbacks_get_the_environment_as_vectorised(kind: str) -> None:
    venv = DummyVecEnv([LineEnv])
    normalised = VecNormalize(venv)
    env = {
        "id": LINE_ENV_ID,
        "environment": LineEnv(),
        "vectorised": venv,
        "normalised": normalised,
    }[kind]
    algorithm = line_trainer(env=env)
    found = algorithm.get_env()
    assert found is not None
    assert found.num_envs == 1
    assert found.observation_space == LineEnv.observation_space
    assert algorithm.get_vec_normalize_env() is (normalised if kind == "normalised" else None)
    assert line_trainer(env=None).get_env() is None


def test_callbacks_do_not_change_the_training() -> None:
    plain, watched = line_trainer(), line_trainer()
    train(plain, n_batches=9)
    evaluation = EvalCallback(Monitor(LineEnv()), eval_freq=2, verbose=0)
    train(watched, n_batches=9, callback=CallbackList([Witness(), evaluation]))
    assert th.equal(weights(plain.policy), weights(watched.policy))


# --- checkpoints while training -----------------------------------------------------------------


class KilledError(Exception):
    """Stands for the end of the process."""


class Killer(TrainingCheckpoints):
    """Ends the training after its n-th file."""

    def __init__(self, *args: Any, after: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_left = after

    def _save_if_due(self, n: int, suffix: str) -> None:
        before = self.newest(self.folder)
        super()._save_if_due(n, suffix)
        if self.newest(self.folder) != before:
            self.n_left -= 1
            if not self.n_left:
                raise KilledError


# 20 steps of the critic give 5 files, 30 updates give 7.
@pytest.mark.parametrize("after", [1, 3, 5, 6, 12])
@pytest.mark.parametrize("policy_of", [lambda: policy(*LINE), lambda: None], ids=["own", "default"])
def test_a_killed_run_goes_on_to_the_same_parameters(
    policy_of: Any, after: int, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"cls": ShortRecipe, "policy": policy_of(), "batch_size": None}
    whole = line_trainer(**arguments)
    train(whole)
    killed = line_trainer(**arguments | {"policy": policy_of()})
    with pytest.raises(KilledError):
        train(killed, callback=Killer(tmp_path, every_updates=4, after=after))
    newest = TrainingCheckpoints.newest(tmp_path)
    assert newest is not None
    th.manual_seed(99)
    resumed = load(newest, cls=ShortRecipe)
    assert resumed.n_updates == 4 * max(0, after - 5)
    train(resumed)
    assert resumed.n_updates == 30
    for name in ("policy", "critic"):
        assert th.equal(weights(getattr(resumed, name)), weights(getattr(whole, name))), name
    assert resumed.optimizer.param_groups[0]["lr"] == 1e-3


def test_a_half_fitted_critic_is_not_continued_on_other_demonstrations(tmp_path: Path) -> None:
    killed = line_trainer()
    with pytest.raises(KilledError):
        train(killed, n_batches=5, callback=Killer(tmp_path, every_updates=4, after=2))
    newest = TrainingCheckpoints.newest(tmp_path)
    assert newest is not None
    other = transitions(*LINE, seed=8)
    resumed = load(newest, demonstrations=other)
    train(resumed, n_batches=1)
    assert resumed.critic is not None
    th.testing.assert_close(resumed.critic.encoder.obs_mean, th.as_tensor(other.obs.mean(axis=0)))


def test_a_half_fitted_critic_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        train(line_trainer(), n_batches=5, callback=Killer(tmp_path, every_updates=4, after=2))
    path = TrainingCheckpoints.newest(tmp_path)
    assert path is not None
    with safe_open(path, "pt") as stream:
        header = stream.metadata()
    whole = load_file(path)
    names = [name for name in whole if name.startswith("fit/")]
    assert {name.split("/")[1] for name in names} == {
        *("critic", "optimizer", "averaged", "best", "generator", "loss_sum")
    }
    for name in names:
        save_file({k: v for k, v in whole.items() if k != name}, path, header)
        with pytest.raises(CheckpointError):
            load(path)


def test_a_new_checkpoint_is_kept_though_the_clock_was_turned_back(tmp_path: Path) -> None:
    algorithm = line_trainer(dm_coef=0)
    callback = TrainingCheckpoints(tmp_path, every_updates=1, keep=1)
    train(algorithm, n_batches=1, callback=callback)
    (old,) = tmp_path.iterdir()
    os.utime(old, (2**33, 2**33))
    train(algorithm, n_batches=1, callback=callback)
    assert [path.name for path in tmp_path.iterdir()] == ["trainer_000000002.safetensors"]


def test_the_newest_checkpoints_are_kept_and_older_ones_go(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    callback = TrainingCheckpoints(tmp_path, every_updates=2, keep=2)
    train(line_trainer(dm_coef=0), n_batches=9, callback=callback)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["notes.txt", "trainer_000000006.safetensors", "trainer_000000008.safetensors"]
    assert TrainingCheckpoints.newest(tmp_path) == tmp_path / names[-1]
    assert TrainingCheckpoints.newest(tmp_path / "elsewhere") is None


def test_older_checkpoints_stay_while_a_new_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    callback = TrainingCheckpoints(tmp_path, every_updates=1, keep=1)
    algorithm = line_trainer(dm_coef=0)
    train(algorithm, n_batches=1, callback=callback)
    before = sorted(tmp_path.iterdir())

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        train(algorithm, n_batches=1, callback=callback)
    assert sorted(tmp_path.iterdir()) == before


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sb3_diffbc.callbacks.time.monotonic", lambda: now[0])

    def a_minute() -> None:
        now[0] += 60

    callback = TrainingCheckpoints(tmp_path, every_minutes=5)
    train(line_trainer(dm_coef=0), n_batches=14, callback=callback, on_batch_end=a_minute)
    numbers = [int(path.stem.split("_")[1]) for path in sorted(tmp_path.iterdir())]
    assert numbers == [5, 10]


def test_checkpoints_need_an_interval_and_sensible_numbers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every_updates or every_minutes"):
        TrainingCheckpoints(tmp_path)
    for arguments in (
        {"every_updates": 0},
        {"every_minutes": 0.0},
        {"every_updates": 1, "keep": 0},
    ):
        with pytest.raises(ValueError, match=list(arguments)[-1]):
            TrainingCheckpoints(tmp_path, **arguments)  # type: ignore[arg-type]


def test_a_fit_that_was_interrupted_goes_on_at_the_next_call() -> None:
    whole, stopped = line_trainer(), line_trainer()
    train(whole, n_batches=3)

    class Interrupts(TrainingCheckpoints):
        def on_critic_step(self, step: int) -> None:
            if step == 7:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stopped, n_batches=3, callback=Interrupts("unused", every_updates=1000))
    assert stopped.critic is None
    train(stopped, n_batches=3)
    assert th.equal(weights(stopped.policy), weights(whole.policy))


# --- training that diverges ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action_space", "rate"),
    [
        (LineEnv.action_space, 1e3),
        (LineEnv.action_space, 1e30),
        (spaces.Discrete(3), 1e4),
        (spaces.Discrete(3), 1e30),
        (spaces.MultiBinary(2), 1e30),
    ],
    ids=space_id,
)
def test_a_diverging_training_says_what_to_change_and_saves_nothing(
    action_space: gym.Space, rate: float, tmp_path: Path
) -> None:
    arguments = {"policy": None, "optimizer_kwargs": {"lr": rate}, "dm_coef": 0}
    algorithm = trainer(LineEnv.observation_space, action_space, **arguments)
    path = algorithm.save(tmp_path / "trainer")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"diverged by update \d+.*learning rate \(now 1e\+"):
        train(algorithm, n_batches=300)
    if rate == 1e30:
        for save in (algorithm.save, algorithm.save_policy):
            with pytest.raises(RuntimeError, match="diverged"):
                save(path)
    assert path.read_bytes() == before


def test_a_loss_that_is_not_finite_ends_the_training_at_once() -> None:
    algorithm, witness = line_trainer(dm_coef=0), Witness()

    def spoil() -> None:
        next(algorithm.policy.action_net.parameters()).data.fill_(np.nan)

    with pytest.raises(RuntimeError, match=r"its (loss|distribution) is no"):
        train(algorithm, n_batches=9, on_batch_end=every_batch(2, spoil), callback=witness)
    assert witness.seen[-1] == (2, 2), "no callback sees an update that failed"


# --- random state -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_seeded", [True, False])
def test_trainers_in_turns_end_as_they_do_alone(is_seeded: bool, tmp_path: Path) -> None:
    def make(seed: int) -> DiffusionBC:
        th.manual_seed(seed)
        return line_trainer(policy=None, seed=seed if is_seeded else None, dm_coef=seed)

    def results(in_turns: bool) -> list[th.Tensor]:
        one = make(1)
        if not in_turns:
            train(one, n_batches=5)
            train(one, n_batches=5)
        other = make(2)
        for _ in range(2):
            if in_turns:
                train(one, n_batches=5)
                load(other.save(tmp_path / "other"))
                th.rand(3)
            train(other, n_batches=5)
        return [weights(one.policy), weights(other.policy)]

    for alone, in_turns in zip(results(False), results(True), strict=True):
        assert th.equal(alone, in_turns)


def test_training_leaves_torchs_global_state_as_it_was() -> None:
    algorithm = line_trainer()
    before = th.get_rng_state()
    train(algorithm, n_batches=3)
    assert th.equal(th.get_rng_state(), before)


def test_trainers_without_a_seed_differ() -> None:
    start = policy(*LINE)
    found = []
    for _ in range(2):
        algorithm = line_trainer(seed=None, dm_coef=0, policy=policy(*LINE))
        train(algorithm, n_batches=2)
        found.append(weights(algorithm.policy))
    assert not th.equal(found[0], found[1])
    assert not th.equal(found[0], weights(start))
