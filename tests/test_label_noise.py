"""Which actions look wrong, and what losses follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from imitation.data.types import TransitionsMinimal
from scipy.stats import norm
from toys import CONTINUOUS, CRITIC_KWARGS, VECTOR, batches_of, train, weights

from sb3_diffbc import DiffusionBC, label_noise

N = 1_000
N_PILOT = 300


def bad_rows(share: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed + 1000).random(N) < share


def demonstrations(
    bad: float = 0.0,
    kind: str = "uniform",
    *,
    spread: float = 0.03,
    idle: float = 0.0,
    seed: int = 0,
) -> TransitionsMinimal:
    """A linear expert, idle at some observations; a share of the actions is replaced."""
    rng = np.random.default_rng(seed)
    obs = rng.normal(size=(N, 3)).astype(np.float32)
    acts = 0.5 * obs[:, :2] * [1.0, -1.0] * (obs[:, 2:] > norm.ppf(idle))
    acts = (acts + spread * rng.normal(size=(N, 2))).clip(-1, 1)
    replaced = {
        "uniform": rng.uniform(-1, 1, size=(N, 2)),
        "others": rng.permutation(acts),
        "alike": np.full((N, 2), 0.1),
    }
    acts = np.where(bad_rows(bad, seed)[:, None], replaced[kind], acts).astype(np.float32)
    return TransitionsMinimal(obs=obs, acts=acts, infos=np.array([{}] * N))


class Looking(DiffusionBC):
    """Looks at the labels before a training of any length, and for as long."""

    SHORTEST_LOOKED_AT = 0

    def _bad_labels(self, n_updates: int, on_update: Any) -> np.ndarray:
        return super()._bad_labels(max(n_updates, N_PILOT), on_update)


def trainer(data: TransitionsMinimal, dm_coef: Any = None, **arguments: Any) -> DiffusionBC:
    return Looking(
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


@pytest.mark.parametrize(
    ("share", "kind"), [(0.1, "uniform"), (0.1, "alike"), (0.25, "others"), (0.4, "uniform")]
)
def test_the_share_of_bad_actions_is_found_whatever_they_are(share: float, kind: str) -> None:
    assert trainer(demonstrations(share, kind)).bad_label_share(N_PILOT) == pytest.approx(
        share, abs=0.04
    )


@pytest.mark.parametrize(("spread", "idle"), [(0.0, 0.0), (0.3, 0.0), (0.03, 0.3), (0.03, 0.6)])
def test_an_experts_own_actions_are_not_bad(spread: float, idle: float) -> None:
    """Noisy ones are not, nor are those of an expert who does nothing most of the time."""
    assert trainer(demonstrations(spread=spread, idle=idle)).bad_label_share(N_PILOT) == 0.0


@pytest.mark.parametrize(
    ("bad", "spread", "is_flagged"),
    [
        pytest.param(0.0, 0.03, [False], id="good"),
        pytest.param(0.4, 0.03, [False, True, True], id="too early to tell"),
        pytest.param(0.25, 1.0, [False, False, False], id="uncertain"),
    ],
)
def test_it_looks_again_unless_all_labels_look_good(
    bad: float, spread: float, is_flagged: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, look = [], label_noise.bad_labels

    def spy(*arguments: Any) -> tuple[np.ndarray, bool]:
        flags, all_good = look(*arguments)
        found.append(bool(flags.any()))
        return flags, all_good

    monkeypatch.setattr(label_noise, "bad_labels", spy)
    algorithm = DiffusionBC(
        demonstrations=demonstrations(bad, spread=spread),
        observation_space=VECTOR,
        action_space=CONTINUOUS,
        seed=0,
        device="cpu",
        verbose=0,
    )
    share = algorithm.bad_label_share(60)
    assert found == is_flagged
    assert share == pytest.approx(bad if is_flagged[-1] else 0.0, abs=0.04)


@pytest.mark.parametrize("length", [{"n_batches": 100}, {"n_epochs": 3}, {}], ids=str)
def test_bad_actions_are_left_out(length: dict[str, int]) -> None:
    data = demonstrations(0.25)
    algorithm = trainer(data)
    algorithm.DEFAULT_N_BATCHES = 100
    train(algorithm, **length)
    is_bad = bad_rows(0.25)
    left_out = algorithm.left_out
    assert left_out is not None
    assert np.mean(left_out[is_bad]) > 0.85
    assert np.mean(left_out[~is_bad]) < 0.05
    assert algorithm.bc_loss == "nll"
    # A training with bad actions is as long.
    assert algorithm.n_updates == (3 * (N // 32) if "n_epochs" in length else 100)
    used = algorithm._peek()
    assert np.array_equal(used.acts, data.acts[~left_out])
    # Nor are they in the statistics.
    encoder = algorithm._encoder
    np.testing.assert_allclose(encoder.act_std, used.acts.std(axis=0), rtol=1e-4)
    assert th.equal(algorithm.policy.action_net[-1].std, encoder.act_std)
    rows = {row.tobytes() for row in used.obs}
    assert all(
        row.numpy().tobytes() in rows for batch in algorithm._batches for row in batch["obs"]
    )


@pytest.mark.parametrize(("share", "coef"), [(0.0, 0.0), (0.25, DiffusionBC.AUTO_DM_COEF)])
def test_l_dm_is_on_where_labels_are_bad(share: float, coef: float) -> None:
    algorithm = trainer(demonstrations(share), dm_coef="auto")
    train(algorithm, n_batches=20)
    assert (algorithm.bc_loss, algorithm.dm_coef) == ("mse" if coef else "nll", coef)
    assert (algorithm.critic is not None) == (algorithm.left_out is not None) == (coef > 0)


def test_a_critic_that_is_asked_for_does_not_see_them(fits: list[Any]) -> None:
    algorithm = trainer(demonstrations(0.25), dm_coef=1.0)
    train(algorithm, n_batches=20)
    assert (algorithm.bc_loss, algorithm.dm_coef) == ("mse", 1.0)
    assert algorithm.left_out is not None
    assert [len(data) for data in fits] == [N - algorithm.left_out.sum()]


def test_what_cannot_be_left_out_pulls_little() -> None:
    """An iterable of batches has no rows, and a batch needs as many as it has."""
    data = demonstrations(0.25)
    batches = [
        {"obs": data.obs[rows], "acts": data.acts[rows]} for rows in np.split(np.arange(N), 20)
    ]
    for source, size in ((batches, 50), (data, N - 100)):
        algorithm = trainer(source, batch_size=size)
        train(algorithm, n_batches=20)
        assert (algorithm.bc_loss, algorithm.left_out) == ("l1", None)


@pytest.mark.parametrize("dm_coef", [None, "auto"])
def test_on_good_demonstrations_it_is_bc_to_the_bit(dm_coef: Any) -> None:
    default, cloning = trainer(demonstrations(), dm_coef), trainer(demonstrations(), bc_loss="nll")
    for algorithm in (default, cloning):
        train(algorithm, n_batches=30)
    assert default.state.bad_label_share == 0.0
    assert cloning.state.bad_label_share is None
    assert th.equal(weights(default.policy), weights(cloning.policy))


def test_a_short_training_does_not_look() -> None:
    algorithm = trainer(demonstrations(0.25))
    algorithm.SHORTEST_LOOKED_AT = 31
    train(algorithm, n_batches=30)
    assert (algorithm.state.bad_label_share, algorithm.left_out) == (None, None)


def test_a_loss_that_is_given_stays() -> None:
    algorithm = trainer(demonstrations(0.25), bc_loss="mse")
    train(algorithm, n_batches=2)
    assert (algorithm.bc_loss, algorithm.state.bad_label_share) == ("mse", None)


def find(monkeypatch: pytest.MonkeyPatch, algorithm: DiffusionBC, *shares: float) -> None:
    """Has the next looks at the demonstrations find these shares."""
    found = iter([np.arange(N) < share * N for share in shares])
    monkeypatch.setattr(algorithm, "_bad_labels", lambda *_: next(found))


@pytest.mark.parametrize("dm_coef", [None, "auto"])
def test_other_demonstrations_are_looked_at_anew(
    dm_coef: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = trainer(demonstrations(), dm_coef)
    find(monkeypatch, algorithm, 0.2, 0.0)
    train(algorithm, n_batches=2)
    train(algorithm, n_batches=2)
    assert algorithm.bc_loss == ("nll" if dm_coef is None else "mse")
    assert algorithm.left_out is not None
    algorithm.set_demonstrations(demonstrations(0.1))
    train(algorithm, n_batches=2)
    assert (algorithm.bc_loss, algorithm.dm_coef, algorithm.left_out) == ("nll", 0.0, None)


def test_a_look_of_ones_own_changes_neither_the_training_nor_the_next_look() -> None:
    looked, plain = (trainer(demonstrations(0.25)) for _ in range(2))
    share = looked.bad_label_share(N_PILOT)
    for algorithm in (looked, plain):
        train(algorithm, n_batches=20)
    assert th.equal(weights(looked.policy), weights(plain.policy))
    assert th.equal(looked._encoder.act_std, plain._encoder.act_std)
    assert looked.bad_label_share(N_PILOT) == pytest.approx(share, abs=0.02)


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
    for each in (loaded, algorithm):
        train(each, n_batches=2)
    assert th.equal(weights(loaded.policy), weights(algorithm.policy))
    assert (loaded.bc_loss, loaded.dm_coef) == (algorithm.bc_loss, algorithm.dm_coef)
    assert loaded.state.bad_label_share == 0.2
    assert np.array_equal(loaded.left_out, algorithm.left_out)


@pytest.mark.parametrize(
    "flags", [th.zeros(N), th.zeros(N - 1, dtype=th.bool), th.ones(N, dtype=th.bool)]
)
def test_flags_of_a_file_that_do_not_fit_are_refused(
    flags: th.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = demonstrations()
    algorithm = trainer(data)
    find(monkeypatch, algorithm, 0.2)
    train(algorithm, n_batches=2)
    algorithm._batches.left_out = flags.numpy()
    path = algorithm.save(tmp_path / "trainer")
    with pytest.raises(ValueError, match="flags: expected 1000 booleans"):
        DiffusionBC.load(path, demonstrations=data, verbose=0)


class OfAFolder(Looking):
    """A trainer with a constructor of its own."""

    def __init__(self, data: TransitionsMinimal) -> None:
        super().__init__(
            demonstrations=data, observation_space=VECTOR, action_space=CONTINUOUS, verbose=0
        )


def test_a_subclass_may_have_a_constructor_of_its_own() -> None:
    algorithm = OfAFolder(demonstrations(0.25))
    train(algorithm, n_batches=20)
    assert algorithm.left_out is not None


@pytest.mark.parametrize("n", [203, 40])
def test_at_most_half_are_left_out_however_many_are_bad(n: int) -> None:
    data = demonstrations(0.6)
    few = TransitionsMinimal(obs=data.obs[:n], acts=data.acts[:n], infos=data.infos[:n])
    assert 0 <= trainer(few).bad_label_share(50) <= 0.5


def test_a_training_of_unknown_length_does_not_look() -> None:
    algorithm = trainer(batches_of(demonstrations(0.25), 32))
    train(algorithm, n_epochs=1)
    assert algorithm.state.bad_label_share is None
