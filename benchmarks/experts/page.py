"""The tasks with their experts' scores as Markdown, and pictures of the experts at work."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from stable_baselines3.common.policies import BasePolicy

from benchmarks.experts.scores import SCORE_EPISODES, SCORES, expert_scores
from benchmarks.report.pages import table
from sb3_diffbc.demonstrations import read_card
from sb3_diffbc.tasks import TASKS, LearnedExpert, Task

PAGE = SCORES.with_name("tasks.md")
PICTURES = SCORES.with_name("experts")
_SIDE, _GAP, _FOOT = 240, 4, 20
_FRAMES = 4
_LONGEST = 100


def page() -> str:
    """Returns the page about the tasks: the table, and a picture and some words for each."""
    scores = expert_scores()
    parts = [
        "# The tasks",
        "Written by `python -m benchmarks write-tasks-page` from [experts.csv](experts.csv). "
        f"Scores are means over {SCORE_EPISODES} episodes with fixed seeds, in brackets their 95 % "
        "intervals (Wilson's for success rates, Student's for returns); steps are the time limit. "
        "Demonstrations of tasks with a goal are successful episodes only.",
        table(pd.DataFrame([_row(task, scores) for task in TASKS.values()])),
        "Training an expert took 14 to 26 minutes on one core of a shared machine. The pictures "
        f"show one episode of each expert (its first {_LONGEST} steps for Cheetah and Walker); "
        "`python -m benchmarks draw-tasks TASK` draws them. Without a screen, MuJoCo needs "
        "`MUJOCO_GL=egl` and Debian's packages `libegl1` and `libgl1-mesa-dri`, or "
        "`MUJOCO_GL=osmesa` and `libosmesa6`.",
    ]
    for task in TASKS.values():
        parts += [
            f"## {task.title}",
            f"![{task.title}: {_FRAMES} moments of an episode](experts/{task.name}.png)",
            task.summary,
            f"Expert: {task.expert.summary}.",
        ]
        expert = _scores_of(task, "expert", scores)
        if len(expert) > 1:
            shown = {
                "noise ratio": expert["noise_ratio"].map("{:g}".format),
                "expert's score": expert["shown"],
            }
            parts.append(table(pd.DataFrame(shown)))
    return "\n\n".join(parts) + "\n"


def _scores_of(task: Task, who: str, scores: pd.DataFrame) -> pd.DataFrame:
    found = scores[(scores["task"] == task.name) & (scores["who"] == who)]
    shown = [
        f"{_shown(task, mean)} [{_shown(task, low, '')}, {_shown(task, high, '')}]"
        for mean, low, high in zip(found["mean"], found["low"], found["high"], strict=True)
    ]
    return found.assign(shown=shown)


def _row(task: Task, scores: pd.DataFrame) -> dict[str, str]:
    expert, random = (_scores_of(task, who, scores) for who in ("expert", "random"))
    card = read_card(task.name)
    return {
        "task": task.title,
        "environment": f"`{task.env_id}`",
        "observation": str(card.arrays["obs"].shape[1]),
        "action": str(card.arrays["acts"].shape[1]),
        "steps": str(task.horizon),
        "metric": task.metric,
        "expert": (
            f"PPO, {task.expert.timesteps / 1e6:.1f} M steps"
            if isinstance(task.expert, LearnedExpert)
            else "scripted"
        ),
        "expert's score": expert["shown"].iloc[0],
        "random actions": random["shown"].iloc[0],
        "demonstrations": f"{card.episodes} episodes, {card.transitions:,} steps",
        "their score": _shown(task, card.score.mean),
    }


def _shown(task: Task, score: float, unit: str = " %") -> str:
    """Returns a score in the unit of the task's metric."""
    return f"{score * 100:.1f}{unit}" if task.metric == "success" else f"{score:.0f}"


def film_strip(policy: BasePolicy, task: Task, seed: int) -> Image.Image:
    """Draws moments of one episode side by side, each with its step below it.

    MuJoCo draws without a screen where it finds a software or hardware renderer: set ``MUJOCO_GL``
    to ``egl`` or ``osmesa``.

    Returns:
        Square pictures from the start to the end of the episode; from its first 100 steps where
        the task has no goal, so that the end is no moment of its own.
    """
    env = gym.make(task.env_id, render_mode="rgb_array")
    obs, _ = env.reset(seed=seed)
    frames: list[Any] = [env.render()]
    limit = task.horizon if task.metric == "success" else _LONGEST
    done = False
    while not done and len(frames) <= limit:
        act, _ = policy.predict(obs, deterministic=True)
        obs, _, terminated, truncated, _ = env.step(act)
        frames.append(env.render())
        done = bool(terminated or truncated)
    env.close()
    strip = Image.new("RGB", (_FRAMES * (_SIDE + _GAP) - _GAP, _SIDE + _FOOT), "white")
    for place, step in enumerate(np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)):
        picture = Image.fromarray(frames[step]).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        left = place * (_SIDE + _GAP)
        strip.paste(picture, (left, 0))
        ImageDraw.Draw(strip).text((left + 4, _SIDE + 4), f"step {step}", fill="black")
    return strip
