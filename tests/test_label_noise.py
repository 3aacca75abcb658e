"""How many actions look wrong, and what ``dm_coef="auto"`` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from imitation.data.types import TransitionsMinimal
from toys import CONTINUOUS, CRITIC_KWARGS, VECTOR, train, weights

from sb3_diffbc import DiffusionBC
from sb3_diffbc.label_noise import Residuals

N = 1_000
N_PILOT = 300


def demonstrations(bad: float = 0.0, spread: float = 0.03) -> TransitionsMinimal:
    """A linear expert, a share of whose actions is replaced by uniform ones."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(N, 3)).astype(np.float32)
    acts = 0.5 * obs[:, :2] * [1.0, -1.0] + spread * rng.normal(size=(N, 2))
    is_bad = rng.random(N) < bad
    acts[is_bad] = rng.uniform(-1, 1, size=(is_bad.sum(), 2))
    infos = np.array([{}] * N)
    return TransitionsMinimal(obs=obs, acts=acts.clip(-1, 1).astype(np.float32), infos=infos)


def trainer(data: TransitionsMinimal, dm_coef: Any = "auto", **arguments: Any) -> DiffusionBC:
    algorithm = DiffusionBC(
        demonstrations=data,
        observation_space=VECTOR,
        action_space=CONTINUOUS,
        dm_coef=dm_coef,
        critic_kwargs=CRITIC_KWARGS,
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
    assert Residuals(heavy, np.full(1000, 1e3)).bad_share() == 0.0
    assert Residuals(heavy, np.full(1000, 20.0)).bad_share() > 0.02


@pytest.mark.parametrize(("share", "is_on"), [(0.0, False), (0.25, True)])
def test_bad_actions_turn_the_critic_on(share: float, is_on: bool) -> None:
    algorithm = trainer(demonstrations(share))
    train(algorithm, n_batches=10 * N_PILOT if is_on else 20)
    assert algorithm.dm_coef == (algorithm.AUTO_DM_COEF if is_on else 0.0)
    assert (algorithm.critic is not None) == is_on


def test_the_choice_leaves_no_other_trace_in_a_training() -> None:
    auto, off = trainer(demonstrations()), trainer(demonstrations(), dm_coef=0.0)
    for algorithm in (auto, off):
        train(algorithm, n_batches=30)
    assert auto.state.bad_label_share == 0.0
    assert th.equal(weights(auto.policy), weights(off.policy))


def test_other_demonstrations_are_looked_at_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = trainer(demonstrations())
    shares = iter([0.2, 0.0])
    monkeypatch.setattr(algorithm, "bad_label_share", lambda *_, **__: next(shares))
    train(algorithm, n_batches=2)
    train(algorithm, n_batches=2)
    assert algorithm.dm_coef > 0
    algorithm.set_demonstrations(demonstrations(0.1))
    train(algorithm, n_batches=2)
    assert algorithm.dm_coef == 0


def test_a_loaded_trainer_keeps_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = demonstrations()
    algorithm = trainer(data)
    monkeypatch.setattr(algorithm, "bad_label_share", lambda *_, **__: 0.2)
    train(algorithm, n_batches=2)
    loaded = DiffusionBC.load(
        algorithm.save(tmp_path / "trainer"), demonstrations=data, verbose=0, device="cpu"
    )
    monkeypatch.setattr(loaded, "bad_label_share", None)  # not to be asked again
    train(loaded, n_batches=2)
    assert (loaded.dm_coef, loaded.state.bad_label_share) == (algorithm.dm_coef, 0.2)


def test_other_words_are_refused() -> None:
    with pytest.raises((ValueError, TypeError), match="dm_coef"):
        trainer(demonstrations(), dm_coef="automatic")
