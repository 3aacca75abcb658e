"""Which actions look wrong, and what losses follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from imitation.data.types import TransitionsMinimal
from toys import CONTINUOUS, CRITIC_KWARGS, VECTOR, train, weights

from sb3_diffbc import DiffusionBC
from sb3_diffbc.label_noise import BadLabels, is_bad

N = 1_000
N_PILOT = 300


def demonstrations(
    bad: float = 0.0, spread: float = 0.03, *, are_alike: bool = False
) -> TransitionsMinimal:
    """A linear expert, a share of whose actions is replaced by uniform ones, or by one."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N, 3)).astype(np.float32)
    acts = 0.5 * obs[:, :2] * [1.0, -1.0] + spread * rng.normal(size=(N, 2))
    is_bad = rng.random(N) < bad
    acts[is_bad] = 0.1 if are_alike else rng.uniform(-1, 1, size=(is_bad.sum(), 2))
    infos = np.array([{}] * N)
    return TransitionsMinimal(obs=obs, acts=acts.clip(-1, 1).astype(np.float32), infos=infos)


def trainer(data: TransitionsMinimal, dm_coef: Any = None, **arguments: Any) -> DiffusionBC:
    algorithm = DiffusionBC(
        demonstrations=data,
        observation_space=VECTOR,
        action_space=CONTINUOUS,
        dm_coef=dm_coef,
        critic_kwargs=CRITIC_KWARGS if dm_coef == "auto" else None,
        seed=0,
        device="cpu",
        verbose=0,
        **arguments,
    )
    algorithm.PILOT_UPDATES = N_PILOT
    return algorithm


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25])
def test_the_share_of_bad_actions_is_found(share: float) -> None:
    found = trainer(demonstrations(share)).bad_label_share(N_PILOT)
    # A uniform action may well be nearly right.
    assert 0.6 * share <= found <= share + 0.01


def test_where_all_is_uncertain_nothing_is_called_bad() -> None:
    assert trainer(demonstrations(0.25, spread=1.0)).bad_label_share(N_PILOT) == 0.0


def test_errors_of_any_distribution_are_harmless_while_they_are_small() -> None:
    heavy = np.abs(np.random.default_rng(0).standard_cauchy(1000)).clip(max=100)
    assert not is_bad(heavy, np.full(1000, 1e3)).any()
    assert is_bad(heavy, np.full(1000, 20.0)).mean() > 0.02


@pytest.mark.parametrize(
    ("share", "are_alike", "dm_coef", "losses"),
    [
        (0.0, False, None, ("nll", 0.0)),
        (0.25, False, None, ("l1", 0.0)),
        (0.25, True, None, ("l1", 0.0)),
        (0.0, False, "auto", ("nll", 0.0)),
        (0.25, False, "auto", ("mse", DiffusionBC.AUTO_DM_COEF)),
        # A critic of these would call the one wrong action a likely one.
        (0.25, True, "auto", ("l1", 0.0)),
    ],
)
def test_the_demonstrations_choose_the_losses(
    share: float, are_alike: bool, dm_coef: Any, losses: tuple[str, float]
) -> None:
    algorithm = trainer(demonstrations(share, are_alike=are_alike), dm_coef)
    train(algorithm, n_batches=10 * N_PILOT if share else 20)
    assert (algorithm.bc_loss, algorithm.dm_coef) == losses
    assert (algorithm.critic is not None) == (algorithm.dm_coef > 0)


@pytest.mark.parametrize("dm_coef", [None, "auto"])
def test_on_good_demonstrations_it_is_bc_to_the_bit(dm_coef: Any) -> None:
    default, cloning = trainer(demonstrations(), dm_coef), trainer(demonstrations(), bc_loss="nll")
    for algorithm in (default, cloning):
        train(algorithm, n_batches=30)
    assert default.state.bad_label_share == 0.0
    assert cloning.state.bad_label_share is None
    assert th.equal(weights(default.policy), weights(cloning.policy))


def test_a_loss_that_is_given_stays() -> None:
    algorithm = trainer(demonstrations(0.25), bc_loss="mse")
    train(algorithm, n_batches=2)
    assert (algorithm.bc_loss, algorithm.state.bad_label_share) == ("mse", None)


def find(monkeypatch: pytest.MonkeyPatch, algorithm: DiffusionBC, *shares: float) -> None:
    """Has the next looks at the demonstrations find these shares."""
    found = iter([BadLabels(share, are_alike=False) for share in shares])
    monkeypatch.setattr(algorithm, "_bad_labels", lambda *_: next(found))


@pytest.mark.parametrize("dm_coef", [None, "auto"])
def test_other_demonstrations_are_looked_at_anew(
    dm_coef: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = trainer(demonstrations(), dm_coef)
    find(monkeypatch, algorithm, 0.2, 0.0)
    train(algorithm, n_batches=2)
    train(algorithm, n_batches=2)
    assert algorithm.bc_loss == ("l1" if dm_coef is None else "mse")
    algorithm.set_demonstrations(demonstrations(0.1))
    train(algorithm, n_batches=2)
    assert (algorithm.bc_loss, algorithm.dm_coef) == ("nll", 0.0)


def test_a_policy_that_was_trained_can_be_looked_at_again() -> None:
    algorithm = trainer(demonstrations())
    train(algorithm, n_batches=2)
    before = weights(algorithm.policy)
    assert algorithm.bad_label_share(2) >= 0
    assert th.equal(weights(algorithm.policy), before)


@pytest.mark.parametrize("dm_coef", [None, "auto"])
def test_a_loaded_trainer_keeps_the_choice(
    dm_coef: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = demonstrations()
    algorithm = trainer(data, dm_coef)
    find(monkeypatch, algorithm, 0.2)
    train(algorithm, n_batches=2)
    loaded = DiffusionBC.load(
        algorithm.save(tmp_path / "trainer"), demonstrations=data, verbose=0, device="cpu"
    )
    find(monkeypatch, loaded)  # not to be asked again
    train(loaded, n_batches=2)
    assert (loaded.bc_loss, loaded.dm_coef) == (algorithm.bc_loss, algorithm.dm_coef)
    assert loaded.state.bad_label_share == 0.2


def test_other_words_are_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="dm_coef"):
        trainer(demonstrations(), dm_coef="automatic")
