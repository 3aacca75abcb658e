"""What is held out, early stopping on it, and learning rates."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from imitation.data import rollout
from imitation.data.types import Trajectory, Transitions
from imitation.util import logger as imit_logger
from stable_baselines3.common.utils import get_schedule_fn
from toys import (
    MAPPING,
    batches_of,
    policy,
    recipe_of,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import CheckpointError, DiffusionBC, hold_out
from sb3_diffbc.losses import DiffusionBCLoss

ShortRecipe = recipe_of(20)


def episodes(*lengths: int, **kwargs: Any) -> Transitions:
    """Random demonstrations whose episodes have these lengths."""
    data = transitions(n=sum(lengths), **kwargs)
    dones = np.zeros(len(data), dtype=bool)
    dones[np.cumsum(lengths) - 1] = True
    return dataclasses.replace(data, dones=dones)


DATA = episodes(*[16] * 8)


def rows(array: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in array]


class Recorder:
    """Keeps the values that a logger would write."""

    def __init__(self) -> None:
        self.logger = imit_logger.configure(format_strs=[])
        self.values: list[tuple[int, float]] = []
        dump = self.logger.dump

        def keep(step: int = 0) -> None:
            found = self.logger.default_logger.name_to_value
            if "bc/validation_loss" in found:
                self.values.append((step, found["bc/validation_loss"]))
            dump(step)

        self.logger.dump = keep  # type: ignore[method-assign]


# --- what is held out ---------------------------------------------------------------------------


def test_whole_trajectories_are_held_out_of_everything(fits: list[Any], losses: list[Any]) -> None:
    data = episodes(10, 20, 30, 40, 50)
    algorithm = trainer(demonstrations=data, validation_fraction=0.4, policy=None)
    held_out = algorithm.held_out
    assert held_out is not None
    places = np.flatnonzero(np.isin(rows(data.acts), rows(held_out.acts)))
    number = np.repeat(np.arange(5), [10, 20, 30, 40, 50])
    chosen = np.unique(number[places])
    assert len(chosen) == 2
    assert len(places) == len(held_out) == np.isin(number, chosen).sum()
    train(algorithm, n_epochs=1, log_interval=10**6)
    assert not set(rows(fits[0].acts)) & set(rows(held_out.acts))
    assert len(fits[0]) == 150 - len(held_out)
    trained_on = [acts for acts, metrics in losses if metrics.dm is not None]
    assert not set(rows(th.cat(trained_on).numpy())) & set(rows(held_out.acts))
    expected = data.obs[~np.isin(number, chosen)].mean(axis=0)
    th.testing.assert_close(algorithm._encoder.obs_mean, th.as_tensor(expected))


def test_the_choice_is_random_but_always_the_same(tmp_path: Path) -> None:
    first, second = (
        trainer(demonstrations=DATA, validation_fraction=0.25, seed=seed) for seed in (0, 1)
    )
    loaded = DiffusionBC.load(
        first.save(tmp_path / "trainer"), demonstrations=DATA, verbose=0, device="cpu"
    )
    assert first.held_out is not None
    for algorithm in (second, loaded):
        assert algorithm.held_out is not None
        np.testing.assert_array_equal(algorithm.held_out.acts, first.held_out.acts)
    assert not np.array_equal(first.held_out.acts, DATA.acts[-32:])
    assert not np.array_equal(first.held_out.acts, DATA.acts[:32])


def test_trajectories_need_no_terminal_end() -> None:
    parts = [
        Trajectory(
            obs=np.concatenate([DATA.obs[i : i + 16], DATA.obs[i : i + 1]]),
            acts=DATA.acts[i : i + 16],
            infos=None,
            terminal=False,
        )
        for i in range(0, 128, 16)
    ]
    kept, held_out = hold_out(parts, 0.25)
    assert len(kept) == 6
    assert len(held_out) == 32
    train(trainer(demonstrations=parts, validation_fraction=0.25), n_batches=1)
    assert set(rows(rollout.flatten_trajectories(kept).acts)) | set(rows(held_out.acts)) == set(
        rows(DATA.acts)
    )


def test_what_is_left_can_be_split_again() -> None:
    left, _ = hold_out(DATA, 0.25)
    assert np.flatnonzero(left.dones).tolist() == list(range(15, 96, 16))
    assert len(hold_out(left, 0.5)[0]) == 48


@pytest.mark.parametrize(
    ("demonstrations", "message"),
    [
        (transitions(), "finds 1 of them.*expected at least 2"),
        (batches_of(DATA, 16), "needs transitions with dones.*found list"),
    ],
    ids=["no ends", "list of batches"],
)
def test_what_has_no_trajectories_to_hold_out_is_refused(demonstrations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(demonstrations=demonstrations, validation_fraction=0.1)


# --- the held-out loss --------------------------------------------------------------------------


@pytest.mark.parametrize("bc_loss", ["nll", "mse"])
def test_the_held_out_cloning_loss_is_logged_with_the_rest(bc_loss: str) -> None:
    recorder = Recorder()
    algorithm = trainer(
        demonstrations=DATA,
        validation_fraction=0.25,
        bc_loss=bc_loss,
        ent_weight=0.5,
        l2_weight=0.5,
        bc_coef=3.0,
        custom_logger=recorder.logger,
    )
    train(algorithm, n_batches=7, log_interval=3)
    # Logged at the updates 1, 4 and 7.
    assert [step for step, _ in recorder.values] == [0, 1, 2]
    held_out, net = algorithm.held_out, algorithm.policy
    assert held_out is not None
    with th.no_grad():
        if bc_loss == "nll":
            acts = th.as_tensor(held_out.acts)
            expected = -net.evaluate_actions(th.as_tensor(held_out.obs), acts)[1].mean()
        else:
            means = net.get_distribution(th.as_tensor(held_out.obs)).distribution.mean
            gap = algorithm._encoder.encode_acts(means)
            gap = gap - algorithm._encoder.encode_acts(th.as_tensor(held_out.acts))
            expected = gap.square().mean()
    assert recorder.values[-1][1] == pytest.approx(float(expected), rel=1e-4)


def test_the_last_update_is_looked_at_too() -> None:
    recorder = Recorder()
    algorithm = trainer(
        demonstrations=DATA, validation_fraction=0.25, custom_logger=recorder.logger
    )
    train(algorithm, n_batches=5)
    assert len(recorder.values) == 2


def test_looking_changes_nothing() -> None:
    """The same training on what is not held out ends alike; the policy's mode is as it was."""
    kept, _ = hold_out(DATA, 0.25)
    plain = trainer(demonstrations=kept, seed=1)
    watched = trainer(demonstrations=DATA, validation_fraction=0.25, seed=1)
    modes: list[bool] = []
    train(plain, n_batches=9)
    train(
        watched,
        n_batches=9,
        log_interval=2,
        on_batch_end=lambda: modes.append(watched.policy.training),
    )
    assert th.equal(weights(plain.policy), weights(watched.policy))
    assert len(set(modes)) == 1


def test_mappings_are_held_out_as_well() -> None:
    data = episodes(16, 16, 16, observation_space=MAPPING)
    algorithm = trainer(MAPPING, demonstrations=data, validation_fraction=0.3, policy=None)
    train(algorithm, n_batches=2)
    assert len(algorithm.held_out or ()) == 16


# --- early stopping -----------------------------------------------------------------------------


def scripted(monkeypatch: pytest.MonkeyPatch, values: list[float]) -> list[th.Tensor]:
    """Has the held-out loss take some values; returns the weights at each look."""
    looks: list[th.Tensor] = []

    def loss(_: DiffusionBCLoss, net: Any, __: Any) -> float:
        looks.append(weights(net))
        return values[len(looks) - 1]

    monkeypatch.setattr("sb3_diffbc.training_run.held_out_loss", loss)
    return looks


def test_patience_stops_and_the_best_policy_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = scripted(monkeypatch, [3.0, 1.0, 2.0, 1.5, 0.1])
    algorithm = trainer(demonstrations=DATA, validation_fraction=0.25, cls=ShortRecipe)
    train(algorithm, patience=2, log_interval=2)
    assert len(looks) == 4
    assert algorithm.n_updates == 7, "looks follow the updates 1, 3, 5 and 7"
    assert th.equal(weights(algorithm.policy), looks[1])
    assert algorithm.state.recipe_updates == 0, "the recipe is at its end"


def test_the_best_policy_comes_back_also_if_nothing_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = scripted(monkeypatch, [3.0, 1.0, 2.0])
    algorithm = trainer(demonstrations=DATA, validation_fraction=0.25)
    train(algorithm, n_batches=4, patience=5, log_interval=2)
    assert len(looks) == 3
    assert th.equal(weights(algorithm.policy), looks[1])


def test_without_patience_the_last_policy_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = scripted(monkeypatch, [1.0, 2.0, 3.0])
    algorithm = trainer(demonstrations=DATA, validation_fraction=0.25)
    train(algorithm, n_batches=4, log_interval=2)
    assert th.equal(weights(algorithm.policy), looks[-1])


def test_a_resumed_recipe_remembers_the_best(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = {"demonstrations": DATA, "validation_fraction": 0.25, "cls": ShortRecipe}
    looks = scripted(monkeypatch, [1.0, *[2.0] * 30])
    stopped = trainer(**arguments)
    best_path = tmp_path / "trainer"

    def save(locals_: dict[str, Any], _: Any) -> bool:
        stopped.save(best_path)
        return locals_["self"].n_updates < 5

    train(stopped, patience=4, log_interval=2, callback=save)
    loaded = ShortRecipe.load(best_path, demonstrations=DATA, verbose=0, device="cpu")
    train(loaded, patience=4, log_interval=2)
    assert loaded.n_updates < 20, "looks before the interruption count"
    assert th.equal(weights(loaded.policy), looks[0])


def test_a_killed_run_that_is_given_its_rest_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    arguments = {"demonstrations": DATA, "validation_fraction": 0.25, "seed": 1}
    length = {"patience": 2, "log_interval": 4}
    whole, killed = trainer(**arguments), trainer(**arguments)
    train(whole, n_batches=30, **length)

    def kill(locals_: dict[str, Any], _: Any) -> bool:
        if locals_["self"].n_updates < 7:
            return True
        killed.save(tmp_path / "trainer")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(killed, n_batches=30, callback=kill, **length)
    loaded = DiffusionBC.load(tmp_path / "trainer", demonstrations=DATA, verbose=0, device="cpu")
    train(loaded, n_batches=30 - loaded.num_timesteps, **length)
    assert loaded.n_updates == whole.n_updates
    assert th.equal(weights(loaded.policy), weights(whole.policy))
    # What comes after a training that is over begins anew.
    train(loaded, n_batches=3, **length)
    assert loaded.n_updates == whole.n_updates + 3


def test_a_stop_by_a_callback_is_no_look_without_a_better_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted(monkeypatch, [1.0, *[2.0] * 9])
    algorithm = trainer(demonstrations=DATA, validation_fraction=0.25)
    stop = {"callback": lambda locals_, _: locals_["self"].n_updates < 6}
    train(algorithm, n_batches=9, patience=2, log_interval=8, **stop)
    train(algorithm, n_batches=30, patience=2, log_interval=8)
    assert algorithm.n_updates == 17, "looks follow the updates 1, 9 and 17"


def test_a_run_that_was_killed_at_its_last_look_is_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripted(monkeypatch, [1.0, *[2.0] * 9])
    killed = trainer(demonstrations=DATA, validation_fraction=0.25)
    save = {"callback": lambda *_: bool(killed.save(tmp_path / "trainer"))}
    train(killed, n_batches=30, patience=2, log_interval=4, **save)
    loaded = DiffusionBC.load(tmp_path / "trainer", demonstrations=DATA, verbose=0, device="cpu")
    assert loaded.n_updates == killed.n_updates == 9
    train(loaded, n_batches=21, patience=2, log_interval=4)
    assert loaded.n_updates == 9
    assert th.equal(weights(loaded.policy), weights(killed.policy))


def test_patience_needs_something_held_out() -> None:
    with pytest.raises(ValueError, match="patience needs a validation_fraction"):
        train(trainer(), n_batches=1, patience=3)
    with pytest.raises(ValueError, match="patience"):
        train(trainer(demonstrations=DATA, validation_fraction=0.1), n_batches=1, patience=0)


# --- learning rates -----------------------------------------------------------------------------


def rates_of(algorithm: DiffusionBC, **length: Any) -> list[float]:
    used: list[float] = []
    hook = algorithm.optimizer.register_step_pre_hook(
        lambda *_: used.append(algorithm.optimizer.param_groups[0]["lr"])
    )
    train(algorithm, **length)
    hook.remove()
    return used


def test_a_number_takes_the_place_of_the_optimisers_rate() -> None:
    algorithm = trainer(learning_rate=1e-2, dm_coef=0, cls=ShortRecipe)
    assert rates_of(algorithm, n_batches=2) == [1e-2] * 2
    np.testing.assert_allclose(rates_of(algorithm), [1e-2 * (1 - i / 20) for i in range(20)])
    other = trainer(optimizer_kwargs={"lr": 1e-2}, dm_coef=0, cls=ShortRecipe)
    np.testing.assert_array_equal(rates_of(other), rates_of(algorithm))


@pytest.mark.parametrize("length", [{"n_batches": 8}, {"n_epochs": 2}])
def test_a_function_is_a_schedule_over_a_call(length: dict[str, int]) -> None:
    algorithm = trainer(learning_rate=lambda remaining: 1e-2 * remaining, dm_coef=0)
    for _ in range(2):
        np.testing.assert_allclose(
            rates_of(algorithm, **length), [1e-2 * (1 - i / 8) for i in range(8)]
        )


def test_a_function_takes_the_place_of_the_recipes_decay() -> None:
    algorithm = trainer(learning_rate=get_schedule_fn(5e-3), dm_coef=0, cls=ShortRecipe)
    assert rates_of(algorithm) == [5e-3] * 20


def test_a_function_goes_on_in_a_resumed_recipe_where_it_is_given_again(tmp_path: Path) -> None:
    def schedule(remaining: float) -> float:
        return 1e-2 * remaining

    whole = trainer(learning_rate=schedule, cls=ShortRecipe, seed=0, policy=policy())
    train(whole)
    stopped = trainer(learning_rate=schedule, cls=ShortRecipe, seed=0, policy=policy())
    path = tmp_path / "trainer"

    def save(*_: Any) -> bool:
        stopped.save(path)
        return stopped.n_updates < 7

    train(stopped, callback=save)
    arguments: dict[str, Any] = {"demonstrations": transitions(), "verbose": 0, "device": "cpu"}
    with pytest.raises(CheckpointError, match="pass learning_rate="):
        ShortRecipe.load(path, **arguments)
    loaded = ShortRecipe.load(path, learning_rate=schedule, **arguments)
    train(loaded)
    assert th.equal(weights(loaded.policy), weights(whole.policy))
    changed = ShortRecipe.load(path, learning_rate=0.5, **arguments)
    assert rates_of(changed, n_batches=1) == [0.5]
    assert rates_of(ShortRecipe.load(changed.save(path), **arguments), n_batches=1) == [0.5]


def test_learning_rates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        trainer(learning_rate=1e-3, optimizer_kwargs={"lr": 1e-3})
    for value, error in ((0.0, ValueError), (np.nan, ValueError), ("fast", TypeError)):
        with pytest.raises(error, match="learning_rate: "):
            trainer(learning_rate=value)
    algorithm = trainer(learning_rate=lambda _: 1e-3, demonstrations=batches_of(DATA, 16))
    with pytest.raises(ValueError, match="training of known length"):
        train(algorithm, n_epochs=1)
    train(algorithm, n_batches=2)
