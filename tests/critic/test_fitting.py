"""Fitting the critic: the loss falls, early stopping, averaging, data, randomness."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import toys
from critics import (
    CLUSTERS,
    assert_same_state,
    both_denoisers,
    both_models,
    generator,
    ignore_demonstration_warnings,
    minimal,
    real_box,
    state_of,
    tiny_critic,
    two_clusters,
)
from imitation.data.types import TransitionsMinimal

from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.critic.fitting import CriticFit, FitRecord

pytestmark = ignore_demonstration_warnings


def fit(critic: DiffusionCritic, data: Any, **kwargs: Any) -> Any:
    return critic.fit(data, **{"progress_bar": False, **kwargs})


def curves(history: Any) -> tuple[Any, ...]:
    """What two equal fits have in common: all but the time that they took."""
    return history.steps, history.train_loss, history.validation_loss, history.best_step


class Recorder:
    """Stands in for a logger: keeps what is recorded, and looks at something at each dump."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self.pending: dict[str, Any] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.seen: dict[int, Any] = {}
        self.look = look

    def record(self, key: str, value: Any) -> None:
        self.pending[key] = value

    def dump(self, step: int) -> None:
        self.rows[step], self.pending = self.pending, {}
        self.seen[step] = self.look()


# --- what is learnt -----------------------------------------------------------------------------


@both_models
@both_denoisers
def test_a_fitted_critic_ranks_pairs_above_mismatched_ones(models: str, denoiser: str) -> None:
    critic = tiny_critic(**{**CLUSTERS, "models": models, "denoiser": denoiser, "n_steps": 200})
    fit(critic, two_clusters())
    unseen = two_clusters(n=200, seed=1)
    noise = critic.draw_noise(200, generator())
    right = critic.denoising_loss(unseen.obs, unseen.acts, noise=noise)
    wrong = critic.denoising_loss(unseen.obs, -unseen.acts, noise=noise)
    assert right.mean() < 0.9 * wrong.mean()


# --- steps, early stopping and averaging --------------------------------------------------------


def test_the_history_has_one_entry_per_evaluation() -> None:
    # Next to no learning, so every mean of training losses is about 1, whatever it covers.
    critic = tiny_critic(n_steps=53, learning_rate=1e-12, validation_fraction=0.0, seed=0)
    history = fit(critic, two_clusters(128))
    assert history is critic.history
    assert list(history.steps) == [*range(2, 53, 2), 53]
    assert history.validation_loss == ()
    assert history.best_step == 53
    assert history.seconds > 0
    np.testing.assert_allclose(history.train_loss, np.ones(27), atol=0.3)


@pytest.mark.parametrize(("batch_size", "steps_per_epoch"), [(128, 1), (20, 3)])
def test_few_pairs_end_the_fit_after_its_epochs(batch_size: int, steps_per_epoch: int) -> None:
    critic = tiny_critic(
        batch_size=batch_size, max_epochs=4, validation_fraction=0.2, patience=99, seed=0
    )
    # 52 of the 64 are trained on: three batches of 20.
    assert fit(critic, two_clusters(64)).steps[-1] == 4 * steps_per_epoch


def test_the_learning_rate_decays_to_0_along_half_a_cosine() -> None:
    critic = tiny_critic(n_steps=20, learning_rate=1e-2, ema_decay=0.0, patience=20, seed=0)
    recorder = Recorder(lambda: critic.denoiser.out.bias.detach().clone())
    fit(critic, two_clusters(), logger=recorder)
    changes = [(recorder.seen[k + 1] - recorder.seen[k]).abs().max() for k in range(1, 20)]
    # A step of Adam moves a weight by about the learning rate, seldom by more.
    limits = 1e-2 * (1 + np.cos(np.pi * np.arange(1, 20) / 20)) / 2
    assert (np.array(changes) < 1.5 * limits).all()
    assert changes[0] > 0.3 * limits[0]


def test_held_out_losses_are_compared_under_the_same_noise() -> None:
    critic = tiny_critic(n_steps=50, learning_rate=1e-12, patience=50, seed=0)
    history = fit(critic, two_clusters(64))
    assert len(history.validation_loss) == 25
    assert np.ptp(history.validation_loss) < 1e-6
    assert np.ptp(history.train_loss) > 1e-3


def overfitting_critic(patience: int = 2) -> tuple[DiffusionCritic, TransitionsMinimal]:
    """A critic and noise for data, so that the held-out loss soon rises."""
    critic = DiffusionCritic(
        real_box(3),
        real_box(3),
        width=64,
        num_train_timesteps=20,
        beta_schedule="cosine",
        n_steps=1500,
        max_epochs=1500,
        learning_rate=1e-2,
        validation_fraction=0.5,
        patience=patience,
        ema_decay=0.0,
        seed=0,
        device="cpu",
    )
    obs, acts = np.random.default_rng(0).normal(size=(2, 24, 3)).astype(np.float32)
    return critic, minimal(obs, acts)


@pytest.mark.parametrize("patience", [1, 3])
def test_fitting_stops_early_and_keeps_the_best_weights(patience: int) -> None:
    critic, data = overfitting_critic(patience)
    recorder = Recorder(lambda: copy.deepcopy(critic.denoiser.state_dict()))
    history = fit(critic, data, logger=recorder)
    losses = history.validation_loss
    assert len(history.steps) == len(history.train_loss) == len(losses)
    assert history.steps[-1] < 1500
    best = int(np.argmin(losses))
    assert history.best_step == history.steps[best]
    assert len(losses) - 1 - best == patience
    rows = [
        {"loss": loss, "validation_loss": held_out}
        for loss, held_out in zip(history.train_loss, losses, strict=True)
    ]
    logged = [{k: row[f"critic/{k}"] for k in rows[0]} for row in recorder.rows.values()]
    assert logged == rows
    assert list(recorder.rows) == list(history.steps)
    # Without averaging, what was evaluated are the raw weights, which the recorder saw.
    assert_same_state(critic.denoiser.state_dict(), recorder.seen[history.best_step])


def test_averaged_weights_are_what_is_kept() -> None:
    decay = 0.8
    # Up to 25 steps, every one is an evaluation, so the recorder sees all raw weights.
    critic = tiny_critic(n_steps=20, learning_rate=1e-2, ema_decay=decay, patience=20, seed=0)
    recorder = Recorder(lambda: copy.deepcopy(critic.denoiser.state_dict()))
    history = fit(critic, two_clusters(), logger=recorder)
    averaged: dict[str, th.Tensor] = {}
    for step in range(1, history.best_step + 1):
        # The decay grows to its value, so that the first weights do not linger. The first
        # update only copies.
        weight = min(decay, step / (9 + step))
        averaged = {
            name: weight * averaged.get(name, value) + (1 - weight) * value
            for name, value in recorder.seen[step].items()
        }
    kept = critic.denoiser.state_dict()
    for name, value in averaged.items():
        th.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
    assert not th.equal(kept["out.weight"], recorder.seen[history.best_step]["out.weight"])


def test_a_second_fit_takes_new_statistics_and_keeps_the_weights() -> None:
    critic = tiny_critic(**{**CLUSTERS, "n_steps": 100})
    first = fit(critic, two_clusters())
    data = two_clusters()
    moved = minimal(data.obs * 3 + 7, data.acts * 2 - 1)
    second = fit(critic, moved)
    th.testing.assert_close(critic.encoder.obs_mean, th.as_tensor(moved.obs.mean(axis=0)))
    # The same standardised pairs are learnt on from where the first fit ended.
    assert second.train_loss[0] < 0.8 * first.train_loss[0]


def test_the_critic_is_frozen_before_and_after_a_fit_even_one_that_diverges() -> None:
    critic = tiny_critic(n_steps=3)
    diverging = tiny_critic(n_steps=30, learning_rate=1e30, seed=0)
    fit(critic, two_clusters())
    with pytest.raises(RuntimeError, match=r"held-out pairs (nan|inf).*learning_rate"):
        fit(diverging, two_clusters())
    for each, is_fitted in ((tiny_critic(), False), (critic, True), (diverging, False)):
        assert each.is_fitted is is_fitted
        assert not each.training
        assert not any(p.requires_grad for p in each.parameters())


@pytest.mark.parametrize("validation_fraction", [0.0, 0.1])
def test_a_fit_that_diverges_leaves_a_fitted_critic_as_it_was(validation_fraction: float) -> None:
    critic = tiny_critic(n_steps=30, validation_fraction=validation_fraction, seed=0)
    history = fit(critic, two_clusters())
    before = state_of(critic)
    critic.config["learning_rate"] = 1e30
    with pytest.raises(RuntimeError, match="learning_rate"):
        fit(critic, two_clusters(seed=1))
    assert_same_state(state_of(critic), before)
    assert critic.is_fitted
    assert critic.history is history


def test_weights_that_diverge_after_the_last_loss_are_noticed() -> None:
    # A single step: its loss is that of the first weights.
    critic = tiny_critic(n_steps=1, learning_rate=1e39, validation_fraction=0.0, ema_decay=0.0)
    with pytest.raises(RuntimeError, match=r"largest weight is (inf|nan)"):
        fit(critic, two_clusters())
    assert not critic.is_fitted


def test_an_unfitted_critic_neither_scores_nor_samples_nor_is_saved(tmp_path: Path) -> None:
    critic, data = tiny_critic(), two_clusters(4)
    for use in (
        lambda: critic.denoising_loss(data.obs, data.acts),
        lambda: critic.score(data.obs, data.acts),
        lambda: critic.calibrate(data),
        lambda: critic.sample(3),
        lambda: critic.save(tmp_path / "critic"),
    ):
        with pytest.raises(ValueError, match="critic is not fitted"):
            use()
    assert not list(tmp_path.iterdir())


class LeftError(Exception):
    """Leaves a fit."""


@pytest.mark.parametrize("validation_fraction", [0.0, 0.1])
@pytest.mark.parametrize("stop", [1, 7, 8, 39])
def test_a_fit_that_was_left_goes_on_to_the_bit(stop: int, validation_fraction: float) -> None:
    data = two_clusters()

    def fit_of() -> CriticFit:
        return CriticFit(tiny_critic(n_steps=40, validation_fraction=validation_fraction, seed=0))

    whole, left = fit_of(), fit_of()
    expected = curves(whole.run(data))

    def leave() -> None:
        if left.step == stop:
            raise LeftError

    with pytest.raises(LeftError):
        left.run(data, on_step=leave)
    tensors, record = left.to_state("fit/")
    record = FitRecord.model_validate_json(record.model_dump_json())
    copied = {name: value.clone() for name, value in tensors.items()}
    other = tiny_critic(n_steps=40, validation_fraction=validation_fraction, seed=0)
    other.load_state_dict(left.critic.state_dict())
    restored = CriticFit.from_state(other, record, copied, "fit/")
    for each in (left, restored):
        assert curves(each.run(data)) == expected
        assert_same_state(state_of(each.critic), state_of(whole.critic))
        assert each.critic.is_fitted


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_pairs_is_enough_to_run(n: int) -> None:
    for validation_fraction in (0.0, 0.1, 0.5, 0.99):
        critic = tiny_critic(n_steps=6, validation_fraction=validation_fraction, seed=0)
        data = two_clusters(n)
        history = fit(critic, data)
        assert np.isfinite(history.train_loss).all()
        assert bool(history.validation_loss) == (int(n * validation_fraction) > 0)
        assert critic.denoising_loss(data.obs, data.acts).isfinite().all()


@pytest.mark.parametrize("space", [toys.VECTOR, toys.MAPPING, toys.IMAGE], ids=toys.space_id)
@pytest.mark.filterwarnings("error::UserWarning")
def test_all_observation_spaces_can_be_fitted_from_memory_and_from_disk(
    space: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # The arrays of a memory map are read-only, as imitation's are, which torch may warn about.
    request.addfinalizer(lambda: th.set_warn_always(False))
    th.set_warn_always(True)
    data = toys.transitions(space, n=20)
    fitted = []
    for each in (data, toys.pairs_on_disk(data, tmp_path)):
        critic = DiffusionCritic(space, toys.CONTINUOUS, n_steps=20, seed=0, width=8, device="cpu")
        fitted.append((curves(fit(critic, each)), state_of(critic)))
    assert fitted[0][0] == fitted[1][0]
    assert_same_state(fitted[0][1], fitted[1][1])


def test_demonstrations_that_cannot_be_learnt_leave_the_critic_as_it_was() -> None:
    critic = tiny_critic()
    before = state_of(critic)
    with pytest.raises(ValueError, match="acts"):
        fit(critic, minimal(np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32)))
    assert_same_state(state_of(critic), before)
    assert not critic.is_fitted


# --- randomness ---------------------------------------------------------------------------------


def fitted_under(global_seed: int, **kwargs: Any) -> tuple[Any, ...]:
    """The weights before and after a fit, and its curves, after seeding torch's global state."""
    with th.random.fork_rng(devices=[]):
        th.manual_seed(global_seed)
        critic = tiny_critic(n_steps=8, learning_rate=1e-2, **kwargs)
        before = state_of(critic)
        history = fit(critic, two_clusters())
    return before, state_of(critic), curves(history)


def is_same(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> bool:
    return all(th.equal(one[name], other[name]) for name in one)


def test_a_seed_fixes_the_initial_weights_and_the_fit() -> None:
    one, same, other = (
        fitted_under(global_seed, seed=seed) for seed, global_seed in ((3, 0), (3, 1), (4, 0))
    )
    assert is_same(one[0], same[0])
    assert is_same(one[1], same[1])
    assert one[2] == same[2]
    assert not is_same(one[0], other[0])
    # The train loss of the first step shows the batch and the noise.
    assert one[2][1][0] != other[2][1][0]


def test_without_a_seed_the_global_state_decides() -> None:
    one, same, other = (fitted_under(global_seed) for global_seed in (3, 3, 4))
    assert is_same(one[1], same[1])
    assert not is_same(one[1], other[1])
    with th.random.fork_rng(devices=[]):
        first, second = state_of(tiny_critic()), state_of(tiny_critic())
    assert not is_same(first, second)


def test_a_critic_with_a_seed_leaves_global_random_states_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(th.cuda, "manual_seed_all", reseeded.append)
    before = th.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    critic = tiny_critic(n_steps=8, seed=7)
    data = two_clusters(4)
    fit(critic, data)
    critic.sample(3, generator=generator())
    critic.denoising_loss(data.obs, data.acts, generator=generator())
    DiffusionCritic.load(critic.save(tmp_path / "critic"), device="cpu")
    assert th.equal(th.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert reseeded == []  # GPUs have states of their own


def test_inside_autocast_every_step_sees_its_own_weights() -> None:
    found = []
    for cache_enabled in (False, True):
        critic = tiny_critic(n_steps=25, seed=0)
        with th.autocast("cpu", th.bfloat16, cache_enabled=cache_enabled):
            found.append(curves(fit(critic, two_clusters())))
    assert found[0] == found[1]
