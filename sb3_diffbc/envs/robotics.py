"""Access to gymnasium-robotics, which only two of the tasks need."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium as gym
import mujoco

_HINT = (
    'pip install "sb3-diffbc[robotics]" brings versions that work together, '
    "gymnasium-robotics 1.2.3 and MuJoCo below 3.2"
)


def make_robotics(module: str, name: str, **kwargs: Any) -> Any:
    """Makes an environment of gymnasium-robotics.

    Args:
        module: Path of its module below `gymnasium_robotics.envs`.
        name: Name of its class.
        **kwargs: Arguments of the class.

    Returns:
        The environment.

    Raises:
        gymnasium.error.DependencyNotInstalled: If the package is missing, or does not work with
            the installed MuJoCo.
    """
    try:
        upstream = importlib.import_module(f"gymnasium_robotics.envs.{module}")
    except ImportError as error:
        raise gym.error.DependencyNotInstalled(
            f"This task needs gymnasium-robotics, which cannot be imported ({error}). {_HINT}."
        ) from error
    try:
        return getattr(upstream, name)(**kwargs)
    # The tasks ask for the same every time, so whatever goes wrong, with whichever error, is
    # between the installed versions.
    except Exception as error:
        raise gym.error.DependencyNotInstalled(
            "gymnasium-robotics does not work with the installed MuJoCo "
            f"{mujoco.__version__} ({error!r}). {_HINT}."
        ) from error
