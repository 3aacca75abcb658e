"""Pictures of the experts at work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from stable_baselines3.common.policies import BasePolicy

from sb3_diffbc.tasks import Task

SIDE = 240
FRAMES = 4
LONGEST = 100


def film_strip(policy: BasePolicy, task: Task, seed: int) -> Image.Image:
    """Draws moments of one episode side by side.

    MuJoCo draws without a screen where it finds a software or hardware renderer: set `MUJOCO_GL`
    to `egl` or `osmesa`.

    Args:
        policy: The expert; acts deterministically.
        task: The task.
        seed: Of the episode.

    Returns:
        `FRAMES` square pictures from the start to the end of the episode; from the first
        `LONGEST` steps of a task without a goal, which ends nowhere in particular.
    """
    spec = task.spec()
    spec.kwargs["render_mode"] = "rgb_array"
    env = gym.make(spec)
    frames: list[NDArray[np.uint8]] = []
    obs, _ = env.reset(seed=seed)
    limit = task.horizon if task.metric == "success" else LONGEST
    done = False
    while not done and len(frames) < limit:
        frames.append(_frame(env))
        act, _ = policy.predict(obs, deterministic=True)
        obs, _, terminated, truncated, _ = env.step(act)
        done = bool(terminated or truncated)
    frames.append(_frame(env))
    env.close()
    shown = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    strip = Image.new("RGB", (FRAMES * SIDE + (FRAMES - 1) * 4, SIDE), "white")
    for place, index in enumerate(shown):
        picture = Image.fromarray(frames[index]).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        strip.paste(picture, (place * (SIDE + 4), 0))
    return strip


def _frame(env: gym.Env[Any, Any]) -> NDArray[np.uint8]:
    frame: Any = env.render()
    assert isinstance(frame, np.ndarray)
    return frame


def save(strip: Image.Image, path: Path) -> None:
    """Writes a picture as PNG of at most 256 colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    strip.quantize(256).save(path, optimize=True)
