"""Checks of arguments that several tasks and experts take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces


def checked_ratio(name: str, value: float) -> float:
    """Gives a ratio as float, or raises a ValueError that names the argument."""
    if not isinstance(value, (int, float, np.number)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: found {value!r}, expected a finite number of at least 0.")
    return float(value)


def checked_render_mode(value: str | None, known: Sequence[str]) -> str | None:
    """Gives a known render mode or None, or raises a ValueError."""
    if value is not None and value not in known:
        raise ValueError(f"render_mode: found {value!r}, expected None or one of {known}.")
    return value


def checked_box(
    name: str, space: spaces.Space[Any] | None, expected: spaces.Space[Any], task: str
) -> spaces.Space[Any]:
    """Gives a Box of the expected shape, the expected one for None, or raises a ValueError."""
    space = space or expected
    if not isinstance(space, spaces.Box) or space.shape != expected.shape:
        raise ValueError(f"{name}: found {space}, expected the {task} task's {expected}.")
    return space
