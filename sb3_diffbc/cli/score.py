"""``sb3-diffbc score``: which demonstrations are bad."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from sb3_diffbc.bad_demonstrations import (
    CLONE_UPDATES,
    By,
    DemonstrationScores,
    Method,
    score_demonstrations,
)
from sb3_diffbc.cli.options import KEYS, check_output
from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.demonstrations import load_demonstrations
from sb3_diffbc.demonstrations.recording import pieces_of, write_episodes
from sb3_diffbc.envs import make_env


@dataclasses.dataclass(kw_only=True)
class Score:
    """Ranks demonstrations by how expert-like they are; keeps the best of them."""

    demonstrations: Annotated[str, tyro.conf.arg(aliases=["--demos"])]
    """A file, a folder or a bundled set's name."""
    env: str
    """Id of the environment."""
    obs_keys: Annotated[Any, KEYS] = None
    """Which observations, where the source names several: a name, a list to join, or a mapping."""
    action_key: str | None = None
    """The name of the actions, where it is an unusual one."""
    method: Method = "both"
    """What is fitted to the demonstrations: a critic, a clone whose residual counts, or both."""
    critic: Path | None = None
    """A critic's file that scores instead: best one fitted to demonstrations that you trust."""
    n_updates: int = CLONE_UPDATES
    """Updates of the clone."""
    threshold: float = 0.2
    """Scores below are low."""
    min_length: int = 10
    """Consecutive low scores that make a segment."""
    n_worst: int = 10
    """Trajectories and segments to show."""
    plot: Path | None = None
    """A picture to draw, of the scores over time of the worst trajectories."""
    keep: float | None = None
    """The share of the demonstrations to write to --output, the best; by default all but as many
    transitions as look wrong to the clone."""
    by: By = "transitions"
    """What --keep leaves out: single transitions or whole trajectories."""
    output: Annotated[Path | None, tyro.conf.arg(aliases=["--out"])] = None
    """The file to write; must not exist. With the suffix .hdf5 it is as robomimic's, which holds
    observations by key, too."""
    seed: int = 0
    """Of the fits."""
    device: str = "auto"
    """Where to fit."""
    progress_bar: bool = True
    """Whether to show the fits."""

    def run(self) -> int:
        """Scores, prints, draws and writes."""
        if self.keep is not None and self.output is None:
            raise ValueError("--keep needs --output.")
        if self.output is not None and self.keep is None:
            if self.by == "trajectories":
                raise ValueError("--by trajectories needs --keep: only single actions look wrong.")
            if self.method == "critic" or self.critic is not None:
                raise ValueError(
                    "--output needs --keep, as without a clone nothing tells how many actions look "
                    "wrong."
                )
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"--keep: found {self.keep}, expected more than 0 and at most 1.")
        if self.n_worst < 0:
            raise ValueError(f"--n-worst: found {self.n_worst}, expected 0 or more.")
        env = make_env(self.env)
        if self.output is not None:
            check_output("--output", self.output, env.observation_space)
        scorers = []
        if self.critic is not None:
            scorers.append(DiffusionCritic.load(self.critic, device=self.device))
        transitions = load_demonstrations(
            self.demonstrations, obs_keys=self.obs_keys, action_key=self.action_key
        )
        result = score_demonstrations(
            transitions,
            env=env,
            method=self.method,
            scorers=scorers,
            threshold=self.threshold,
            min_length=self.min_length,
            n_updates=self.n_updates,
            seed=self.seed,
            device=self.device,
            progress_bar=self.progress_bar,
        )
        print(f"{self.demonstrations}: {table(result, self.n_worst)}")
        if self.plot is not None:
            self.plot.parent.mkdir(parents=True, exist_ok=True)
            result.draw(self.plot)
            print(self.plot)
        if self.output is not None:
            keep = self.keep
            if keep is None:
                assert result.bad_label_share is not None  # there was a clone
                print(f"about {result.bad_label_share:.1%} of the actions look wrong")
                keep = 1 - result.bad_label_share
            is_kept = result.kept(keep, self.by)
            episodes = pieces_of(transitions, is_kept)
            write_episodes(self.output, episodes)
            print(
                f"{self.output}: {is_kept.sum():,} of {len(is_kept):,} transitions in "
                f"{len(episodes):,} trajectories"
            )
        return 0


def table(result: DemonstrationScores, n_worst: int) -> str:
    """Returns the worst trajectories and the longest segments as text."""
    n, is_low = len(result.scores), result.scores < result.threshold
    low = f"below {result.threshold:g}"
    lines = [
        f"{n:,} transitions in {len(result.lengths):,} trajectories, {is_low.mean():.1%} {low}",
        "",
        f"{'trajectory':>10} {'steps':>7} {'mean score':>10} {low:>10}",
    ]
    shares_low = np.add.reduceat(is_low, result.starts) / result.lengths
    for number in result.worst_trajectories[:n_worst]:
        mean, share = result.trajectory_scores[number], shares_low[number]
        lines.append(f"{number:10} {result.lengths[number]:7,} {mean:10.2f} {share:10.1%}")
    segments = result.segments
    lines += ["", f"{len(segments):,} segments of low scores" + (":" if segments else "")]
    for segment in segments[:n_worst]:
        steps = f"steps {segment.start:,} to {segment.stop - 1:,}"
        lines.append(f"  trajectory {segment.trajectory}, {steps}, mean score {segment.score:.2f}")
    return "\n".join(lines)
