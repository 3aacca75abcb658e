"""Scores of demonstrations: what is ranked, flagged and kept, and what is written of it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
import toys
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from imitation.data.types import Transitions

from sb3_diffbc import DiffusionCritic, bad_demonstrations, load_demonstrations
from sb3_diffbc.bad_demonstrations import DemonstrationScores, Segment, score_demonstrations
from sb3_diffbc.demonstrations.recording import pieces_of, write_episodes
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.demonstrations.validation import by_key

LENGTHS = np.array([5, 3, 8, 4])
N = int(LENGTHS.sum())


def demonstrations(
    observation_space: Any = toys.VECTOR, lengths: Any = LENGTHS, truncated: int = 1
) -> Transitions:
    """Trajectories whose actions follow the observations; one of them is cut short."""
    n = int(np.sum(lengths))
    data = toys.transitions(observation_space, n=n + 1)
    dones = np.zeros(n, dtype=bool)
    dones[np.cumsum(lengths) - 1] = True
    infos = np.array([{}] * n)
    infos[np.cumsum(lengths)[truncated] - 1] = {"TimeLimit.truncated": True}
    return Transitions(
        obs=data.obs[:-1], acts=data.acts[:-1], next_obs=data.obs[1:], dones=dones, infos=infos
    )


class Fixed:
    """A scorer with scores of its own."""

    def __init__(self, shares: Any, raw: Any = None) -> None:
        self.shares, self.raws = shares, shares if raw is None else raw

    def score(self, obs: Any, acts: Any, *, raw: bool = False) -> th.Tensor:
        return th.tensor(self.raws if raw else self.shares, dtype=th.float32)


def scored(*scorers: Fixed, **arguments: Any) -> DemonstrationScores:
    return score_demonstrations(
        demonstrations(),
        observation_space=toys.VECTOR,
        action_space=toys.CONTINUOUS,
        scorers=scorers,
        **arguments,
    )


# --- ranking and keeping ------------------------------------------------------------------------


def test_scores_and_ranks_are_means_over_scorers() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.permutation(N) / N, rng.permutation(N) / N
    result = scored(Fixed(one), Fixed(other))
    np.testing.assert_allclose(result.scores, (one + other) / 2, rtol=1e-6)
    places = (one + other) * N / 2 / (N - 1)
    np.testing.assert_allclose(result.ranks, places, rtol=1e-6)


def test_ranks_tell_apart_what_scores_do_not() -> None:
    raw = -np.arange(N)
    result = scored(Fixed(np.zeros(N), raw))
    assert not result.kept(0.5)[N // 2 :].any()
    assert result.kept(0.5)[: N // 2].all()


def test_trajectories_are_ranked_by_their_means() -> None:
    means = np.array([0.4, 0.8, 0.2, 0.6])
    result = scored(Fixed(np.repeat(means, LENGTHS)))
    assert result.lengths.tolist() == LENGTHS.tolist()
    np.testing.assert_allclose(result.trajectory_scores, means, rtol=1e-6)
    assert result.worst_trajectories.tolist() == [2, 0, 3, 1]
    kept = result.kept(0.5, "trajectories")
    assert kept.tolist() == np.repeat([False, True, False, True], LENGTHS).tolist()


@given(share=st.floats(0.001, 1), by=st.sampled_from(["transitions", "trajectories"]))
def test_so_much_is_kept_and_never_nothing(share: float, by: Any) -> None:
    ranks = np.random.default_rng(0).permutation(N) / N
    kept = DemonstrationScores(ranks, ranks, LENGTHS, 0.2, ()).kept(share, by)
    of_trajectories = np.add.reduceat(kept, [0, 5, 8, 16])
    if by == "transitions":
        assert kept.sum() == max(1, int(share * N + 0.5))
        assert kept.all() or ranks[kept].min() > ranks[~kept].max()
    else:
        assert np.isin(of_trajectories / LENGTHS, (0, 1)).all()
        assert np.count_nonzero(of_trajectories) == max(1, int(share * 4 + 0.5))


def test_segments_are_long_stretches_of_low_scores_within_a_trajectory() -> None:
    scores = np.ones(N)
    scores[2:7] = 0.125  # across the end of the first trajectory
    scores[8:12] = 0
    scores[13] = 0
    result = scored(Fixed(scores), threshold=0.25, min_length=2)
    assert result.segments == (
        Segment(trajectory=2, start=0, stop=4, score=0.0),
        Segment(trajectory=0, start=2, stop=5, score=0.125),
        Segment(trajectory=1, start=0, stop=2, score=0.125),
    )
    assert scored(Fixed(scores), threshold=0.1, min_length=5).segments == ()


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    result = scored(Fixed(np.zeros(N)), min_length=2)
    result.draw(tmp_path / "scores.png", n_trajectories=2)
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("share", "by", "error", "message"),
    [
        (0, "transitions", ValueError, "^share: .*greater than 0, found 0"),
        (1.5, "transitions", ValueError, "^share: .*less than or equal to 1"),
        (0.5, "rows", ValueError, "^by: .*'transitions' or 'trajectories'"),
        ("half", "transitions", TypeError, "^share: "),
    ],
)
def test_what_cannot_be_kept_is_refused(share: Any, by: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        scored(Fixed(np.zeros(N))).kept(share, by)


# --- fitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["critic", "residual", "both"])
def test_wrong_actions_have_low_scores(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(*spaces: Any, **kwargs: Any) -> DiffusionCritic:
        return DiffusionCritic(*spaces, **kwargs, width=32, n_steps=600)

    monkeypatch.setattr(bad_demonstrations, "DiffusionCritic", small)
    data = demonstrations(lengths=[20] * 20)
    is_bad = np.arange(400) % 8 == 0
    acts = np.where(is_bad[:, None], -data.acts, data.acts).astype(np.float32)
    before = random.getstate(), th.get_rng_state()
    results = [
        score_demonstrations(
            {"obs": data.obs, "acts": acts, "dones": data.dones},
            observation_space=toys.VECTOR,
            action_space=toys.CONTINUOUS,
            method=method,
            n_updates=300,
            progress_bar=False,
            device="cpu",
        )
        for _ in range(2)
    ]
    assert np.array_equal(results[0].scores, results[1].scores)
    assert random.getstate() == before[0]
    assert th.equal(th.get_rng_state(), before[1])
    # Half of the actions are near 0, where the wrong one is the right one.
    assert results[0].scores[is_bad].mean() < results[0].scores[~is_bad].mean() - 0.15


@pytest.mark.parametrize(("method", "tells"), [("critic", True), ("residual", False)])
def test_a_rare_second_way_is_no_bad_label_to_the_critic_alone(
    method: Any, tells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(*spaces: Any, **kwargs: Any) -> DiffusionCritic:
        return DiffusionCritic(*spaces, **kwargs, width=48, n_steps=1_500)

    monkeypatch.setattr(bad_demonstrations, "DiffusionCritic", small)
    n, rng = 2_000, np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (n, 3)).astype(np.float32)
    acts = 0.3 * obs[:, :2] + rng.normal(0, 0.02, (n, 2))
    is_second = (obs[:, 2] > 0) & (rng.random(n) < 0.12)
    acts[:, 0] += (obs[:, 2] > 0) * np.where(is_second, -0.6, 0.6)
    is_bad = rng.random(n) < 0.06
    acts[is_bad] = rng.uniform(-1, 1, (is_bad.sum(), 2))
    found = score_demonstrations(
        {"obs": obs, "acts": acts.astype(np.float32), "dones": np.arange(n) % 50 == 49},
        observation_space=spaces.Box(-1, 1, (3,)),
        action_space=spaces.Box(-1, 1, (2,)),
        method=method,
        n_updates=900,
        progress_bar=False,
        device="cpu",
    )
    second, bad = found.ranks[is_second & ~is_bad], found.ranks[is_bad]
    assert (np.mean(second[:, None] > bad) > 0.9) == tells
    assert np.median(found.ranks[~is_second & ~is_bad]) > np.median(bad) + 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.0}, "threshold: .*greater than 0"),
        ({"min_length": 0}, "min_length: .*greater than or equal to 1"),
        ({"method": "vote"}, "method: .*'both', 'critic' or 'residual'"),
        ({"action_space": spaces.Discrete(3)}, "`acts`"),
        ({"observation_space": None}, "observation_space"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    given = {"observation_space": toys.VECTOR, "action_space": toys.CONTINUOUS, **arguments}
    with pytest.raises(ValueError, match=message):
        score_demonstrations(demonstrations(), **given)


# --- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observation_space", "suffix"),
    [(toys.VECTOR, ".npz"), (toys.VECTOR, ".hdf5"), (toys.MAPPING, ".hdf5")],
    ids=toys.space_id,
)
def test_what_is_written_of_the_kept_rows_is_read_back(
    observation_space: Any, suffix: str, tmp_path: Path
) -> None:
    if suffix == ".hdf5":
        pytest.importorskip("h5py")
    data = demonstrations(observation_space)
    is_kept = np.ones(N, dtype=bool)
    is_kept[[0, 3, 7, 8, 15]] = False
    write_episodes(tmp_path / f"kept{suffix}", pieces_of(data, is_kept))
    read = load_demonstrations(tmp_path / f"kept{suffix}")
    for field in ("obs", "next_obs", "acts"):
        found, expected = by_key(getattr(read, field)), by_key(getattr(data, field)[is_kept])
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array)
    assert lengths_of(read.dones).tolist() == [2, 1, 2, 6, 4]
    truncated = [bool(info.get("TimeLimit.truncated")) for info in read.infos[read.dones]]
    assert truncated == [True, False, True, True, False]


def test_keeping_no_row_or_other_rows_is_refused() -> None:
    for is_kept in (np.zeros(N, dtype=bool), np.ones(N + 1, dtype=bool)):
        with pytest.raises(ValueError, match=f"is_kept: expected {N} flags"):
            pieces_of(demonstrations(), is_kept)
