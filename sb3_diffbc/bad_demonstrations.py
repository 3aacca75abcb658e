"""Which demonstrations are bad: scores of transitions, trajectories and stretches of them."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import gymnasium as gym
import numpy as np
import torch as th
import tqdm
from imitation.data import types
from pydantic import Field
from scipy import stats
from stable_baselines3.common import vec_env

from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.critic.encoder import resolve_device
from sb3_diffbc.demonstrations import (
    DemonstrationWarning,
    load_demonstrations,
    validate_demonstrations,
)
from sb3_diffbc.demonstrations.trajectories import lengths_of
from sb3_diffbc.demonstrations.validation import Array
from sb3_diffbc.evaluation import resolve_spaces
from sb3_diffbc.label_noise import N_LOOKS, robust_clone
from sb3_diffbc.schema import NonNegativeInt, Number, PositiveInt, checked_arguments
from sb3_diffbc.scoring import PolicyResidual

CLONE_UPDATES = 9_000
"""Updates of the clone whose residual is a score."""

By = Literal["transitions", "trajectories"]
Method = Literal["both", "critic", "residual"]
_Share = Annotated[Number, Field(gt=0, le=1)]

_MOST_DRAWN = 12


@runtime_checkable
class Scorer(Protocol):
    """What scores pairs: a :class:`DiffusionCritic`, a :class:`PolicyResidual` or one's own."""

    def score(self, obs: Any, acts: Any, *, raw: bool = False) -> th.Tensor:
        """Returns scores as :meth:`~sb3_diffbc.DiffusionCritic.score` does."""
        ...


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive transitions with low scores.

    Attributes:
        trajectory: its number, from 0.
        start: the first step within the trajectory.
        stop: the step after the last.
        score: mean over the segment.
    """

    trajectory: int
    start: int
    stop: int
    score: float


@dataclasses.dataclass(frozen=True)
class DemonstrationScores:
    """How expert-like demonstrations are.

    Attributes:
        scores: of the transitions, shape ``(n,)``, from 0 to 1; see
            :meth:`~sb3_diffbc.DiffusionCritic.score`.
        ranks: the transitions' places among these demonstrations, shape ``(n,)``, from 0 for the
            worst to 1. They tell transitions apart whose score is the same 0.
        lengths: of the trajectories, shape ``(n_trajectories,)``.
        threshold: as given.
        segments: stretches of low scores, the longest first.
        bad_label_share: the estimate of :meth:`~sb3_diffbc.DiffusionBC.bad_label_share`; None
            without a clone.
    """

    scores: Array
    ranks: Array
    lengths: Array
    threshold: float
    segments: tuple[Segment, ...]
    bad_label_share: float | None = None

    @property
    def starts(self) -> Array:
        """First rows of the trajectories, shape ``(n_trajectories,)``."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def trajectory_scores(self) -> Array:
        """Mean scores of the trajectories, shape ``(n_trajectories,)``."""
        return np.add.reduceat(self.scores, self.starts) / self.lengths

    @property
    def worst_trajectories(self) -> Array:
        """Numbers of the trajectories, shape ``(n_trajectories,)``, those of lowest ranks first."""
        return np.argsort(np.add.reduceat(self.ranks, self.starts) / self.lengths, kind="stable")

    def kept(self, share: _Share, by: By = "transitions") -> Array:
        """Tells which rows the best part of the demonstrations has.

        Args:
            share: how much to keep, above 0 and at most 1.
            by: whether single transitions or whole trajectories are left out.

        Returns:
            A flag for each row, shape ``(n,)``: of so many transitions or trajectories, rounded
            and at least one.

        Raises:
            ValueError: for an argument outside its range.
        """
        checked_arguments(DemonstrationScores.kept, {"share": share, "by": by})
        is_kept = np.zeros(len(self.scores), dtype=bool)
        if by == "transitions":
            is_kept[np.argsort(-self.ranks, kind="stable")[: _count(share, len(is_kept))]] = True
            return is_kept
        n_kept = _count(share, len(self.lengths))
        of_trajectories = np.zeros(len(self.lengths), dtype=bool)
        of_trajectories[self.worst_trajectories[len(self.lengths) - n_kept :]] = True
        return np.repeat(of_trajectories, self.lengths)

    def draw(self, path: str | os.PathLike[str], n_trajectories: int = 6) -> None:
        """Draws scores over time of the worst trajectories, with their segments.

        Args:
            path: of the picture; its suffix chooses the format.
            n_trajectories: how many, at most 12.
        """
        from matplotlib.figure import Figure

        numbers = self.worst_trajectories[: min(n_trajectories, _MOST_DRAWN)]
        figure = Figure(figsize=(8, 0.4 + 1.3 * len(numbers)), layout="constrained")
        panels = figure.subplots(len(numbers), squeeze=False)[:, 0]
        for axes, number in zip(panels, numbers, strict=True):
            first, length = self.starts[number], self.lengths[number]
            axes.plot(self.scores[first : first + length], ".", ms=3, color="#0072B2")
            axes.axhline(self.threshold, lw=0.8, color="#888888")
            for segment in self.segments:
                if segment.trajectory == number:
                    axes.axvspan(
                        segment.start - 0.5, segment.stop - 0.5, color="#D55E00", alpha=0.3
                    )
            mean = self.trajectory_scores[number]
            axes.set(ylim=(-0.05, 1.05), xlim=(-1, length), ylabel="score")
            axes.set_title(f"trajectory {number}, mean {mean:.2f}", fontsize=9, loc="left")
        panels[-1].set_xlabel("step")
        figure.savefig(path, dpi=100)


def _count(share: float, n: int) -> int:
    return max(1, math.floor(share * n + 0.5))


def score_demonstrations(
    demonstrations: Any,
    *,
    env: str | gym.Env | vec_env.VecEnv | None = None,
    observation_space: gym.Space | None = None,
    action_space: gym.Space | None = None,
    method: Method = "both",
    scorers: Sequence[Scorer] = (),
    threshold: _Share = 0.2,
    min_length: PositiveInt = 10,
    n_updates: PositiveInt = CLONE_UPDATES,
    seed: NonNegativeInt = 0,
    device: str | th.device = "auto",
    progress_bar: bool = True,
) -> DemonstrationScores:
    """Tells which transitions and trajectories of demonstrations look least like the others.

    Without ``scorers`` a critic and a clone are fitted to the demonstrations themselves, bad ones
    included. They learn what most of the demonstrations have in common, so that what is rare
    stands out: single wrong actions, or a few bad trajectories. Where most are bad, or bad in a way
    that is easier to predict than the expert, nothing does; then give scorers that were fitted to
    demonstrations that you trust.

    Args:
        demonstrations: what ``load_demonstrations`` takes.
        env: whose spaces the demonstrations have: an id, an environment or a vectorised one.
        observation_space: needed only without ``env``.
        action_space: needed only without ``env``.
        method: what to fit: a ``"critic"`` of p(a | s), a clone whose ``"residual"`` counts, or
            ``"both"``, whose scores and ranks are averaged.
        scorers: what scores instead: a fitted :class:`DiffusionCritic`, a :class:`PolicyResidual`,
            or several, which are averaged.
        threshold: scores below are low.
        min_length: consecutive low scores that make a segment.
        n_updates: of the clone, which leaves out what looks bad to it.
        seed: of both fits. The global random states stay as they are.
        device: where to fit.
        progress_bar: whether to show the fits.

    Returns:
        The scores.

    Raises:
        ValueError: if the demonstrations cannot be read or do not fit the spaces, or for an
            argument outside its range.
        TypeError: for an argument of another type.
        FileNotFoundError: if there is no such file.
    """
    checked_arguments(score_demonstrations, locals())
    spaces = resolve_spaces(env, observation_space, action_space)
    device = resolve_device(device)
    transitions = load_demonstrations(demonstrations)
    validate_demonstrations(transitions, observation_space=spaces[0], action_space=spaces[1])
    bad_label_share = None
    if not scorers:
        with warnings.catch_warnings():
            # They have just been said.
            warnings.simplefilter("ignore", DemonstrationWarning)
            if method != "residual":
                critic = DiffusionCritic(*spaces, models="action", seed=seed, device=device)
                critic.fit(transitions, progress_bar=progress_bar)
                scorers = [critic]
            if method != "critic":
                clone, bad_label_share = fit_clone(
                    transitions,
                    *spaces,
                    n_updates,
                    seed=seed,
                    device=device,
                    progress_bar=progress_bar,
                )
                scorers = [*scorers, clone]
    shares, ranks = [], []
    for scorer in scorers:
        raw, share = (
            th.as_tensor(scorer.score(transitions.obs, transitions.acts, raw=is_raw)).cpu().numpy()
            for is_raw in (True, False)
        )
        shares.append(share)
        ranks.append((stats.rankdata(raw) - 1) / max(1, len(raw) - 1))
    scores, lengths = np.mean(shares, axis=0), lengths_of(transitions.dones)
    return DemonstrationScores(
        scores=scores,
        ranks=np.mean(ranks, axis=0),
        lengths=lengths,
        threshold=threshold,
        segments=tuple(_segments(scores, lengths, threshold, min_length)),
        bad_label_share=bad_label_share,
    )


def fit_clone(
    transitions: types.Transitions,
    observation_space: gym.Space,
    action_space: gym.Space,
    n_updates: int = CLONE_UPDATES,
    *,
    seed: int,
    device: th.device,
    progress_bar: bool,
) -> tuple[PolicyResidual, float]:
    """Clones demonstrations without what looks bad in them.

    Args:
        transitions: what to clone, and to score.
        observation_space: of them.
        action_space: of them.
        n_updates: rounded up to a multiple of the looks at the labels.
        seed: of weights and batches.
        device: where to.
        progress_bar: whether to show one.

    Returns:
        What scores by the clone's error, and which share of the actions looks bad.
    """
    n_stage = -(-n_updates // N_LOOKS)
    with tqdm.tqdm(total=N_LOOKS * n_stage, desc="clone", disable=not progress_bar) as bar:
        policy, is_bad = robust_clone(
            transitions,
            observation_space,
            action_space,
            n_updates=n_stage,
            seed=seed,
            device=device,
            on_update=bar.update,
            to_the_end=True,
        )
    residual = PolicyResidual(policy, transitions, observation_space=observation_space)
    return residual, float(is_bad.mean())


def _segments(scores: Array, lengths: Array, threshold: float, min_length: int) -> list[Segment]:
    """Returns the stretches of low scores, the longest first."""
    found = []
    for number, part in enumerate(np.split(scores, np.cumsum(lengths)[:-1])):
        edges = np.flatnonzero(np.diff(np.pad(part < threshold, 1).astype(int)))
        for start, stop in edges.reshape(-1, 2):
            if stop - start >= min_length:
                mean = float(part[start:stop].mean())
                found.append(Segment(number, int(start), int(stop), mean))
    return sorted(found, key=lambda segment: segment.start - segment.stop)
