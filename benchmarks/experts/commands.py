"""The experts on the command line: each command is a dataclass, whose fields are its options."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch as th

import sb3_diffbc.demonstrations
import sb3_diffbc.experts
from benchmarks.experts import page, scores
from benchmarks.experts.demonstrations import collect, write
from benchmarks.experts.training import train
from sb3_diffbc import load_expert, save_policy
from sb3_diffbc.tasks import TASKS, LearnedExpert

BUNDLED = Path(sb3_diffbc.demonstrations.__file__).parent / "bundled"
EXPERTS = Path(sb3_diffbc.experts.__file__).parent

if TYPE_CHECKING:
    TaskName: TypeAlias = str
    LearnedName: TypeAlias = str
else:
    TaskName = Literal[tuple(TASKS)]
    LearnedName = Literal[
        tuple(name for name, task in TASKS.items() if isinstance(task.expert, LearnedExpert))
    ]


@dataclasses.dataclass
class TrainExperts:
    """Trains experts with PPO, saves and scores them."""

    tasks: tuple[LearnedName, ...]
    """Whose experts."""
    seed: int = 0
    """Of weights, environments and sampling."""

    def run(self) -> None:
        """Trains one expert after the other."""
        th.set_num_threads(1)  # networks this small lose more to threads than they gain
        for name in self.tasks:
            policy = train(TASKS[name], self.seed)
            save_policy(policy, EXPERTS / f"{name}.safetensors")
        ScoreExperts(self.tasks).run()


@dataclasses.dataclass
class ScoreExperts:
    """Scores experts and random actions over fixed episodes, and writes results/experts.csv."""

    tasks: tuple[TaskName, ...]
    """Whose experts."""

    def run(self) -> None:
        """Scores one expert after the other."""
        th.set_num_threads(1)
        for name in self.tasks:
            found = scores.score_task(TASKS[name], load_expert(name))
            scores.save_scores(found)
            print(found.drop(columns="versions").to_string(index=False))


@dataclasses.dataclass
class Demonstrate:
    """Rolls out experts and writes their demonstrations: a .npz and a card for each task."""

    tasks: tuple[TaskName, ...]
    """Whose experts."""
    seed: int = 0
    """Of the first reset."""
    out: Path = BUNDLED
    """Folder to write to."""

    def run(self) -> None:
        """Rolls out one expert after the other."""
        th.set_num_threads(1)
        for name in self.tasks:
            policy, task, path = load_expert(name), TASKS[name], self.out / f"{name}.npz"
            found = collect(policy, task, self.seed, task.size.episodes, task.size.transitions)
            write(found, task, path, seed=self.seed, expert_score=scores.score(policy, task))
            print(f"{path}: {len(found.result.lengths)} of {found.tried} episodes")


@dataclasses.dataclass
class DrawTasks:
    """Draws an episode of each task's expert as a strip of pictures."""

    tasks: tuple[TaskName, ...]
    """Which tasks."""
    seed: int = 0
    """Of the episode."""
    out: Path = page.PICTURES
    """Folder to write to."""

    def run(self) -> None:
        """Draws one task after the other."""
        self.out.mkdir(parents=True, exist_ok=True)
        for name in self.tasks:
            strip = page.film_strip(load_expert(name), TASKS[name], self.seed)
            strip.quantize(256).save(self.out / f"{name}.png", optimize=True)


@dataclasses.dataclass
class WriteTasksPage:
    """Writes the page about the tasks from the scores and the demonstrations' cards."""

    out: Path = page.PAGE
    """Where to."""

    def run(self) -> None:
        """Writes the page."""
        self.out.write_text(page.page(), encoding="utf-8")
