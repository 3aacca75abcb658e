"""The paper's tasks as Gymnasium environments; importing this package registers them.

Gymnasium 0.29 also finds the environments by itself, through the package's ``gymnasium.envs`` entry
point. Gymnasium 1.x no longer reads entry points: import ``sb3_diffbc`` before calling
``gymnasium.make("sb3_diffbc/Maze-v0")``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sb3_diffbc.tasks import TASKS

if TYPE_CHECKING:
    import gymnasium as gym
    from gymnasium.envs.registration import EnvSpec

    from sb3_diffbc.envs.ant_reach import AntReachEnv
    from sb3_diffbc.envs.fetch_pick import FetchPickEnv
    from sb3_diffbc.envs.hand_rotate import HandRotateEnv
    from sb3_diffbc.envs.maze import MazeEnv, draw_maze
    from sb3_diffbc.envs.scripted_experts import FetchPickExpert, MazeExpert

__all__ = [
    "MAZE_ENV_ID",
    "AntReachEnv",
    "FetchPickEnv",
    "FetchPickExpert",
    "HandRotateEnv",
    "MazeEnv",
    "MazeExpert",
    "draw_maze",
    "make_env",
    "register_envs",
]

MAZE_ENV_ID = TASKS["maze"].env_id

_HOMES = {
    "AntReachEnv": "ant_reach",
    "FetchPickEnv": "fetch_pick",
    "FetchPickExpert": "scripted_experts",
    "HandRotateEnv": "hand_rotate",
    "MazeEnv": "maze",
    "MazeExpert": "scripted_experts",
    "draw_maze": "maze",
}


def register_envs() -> None:
    """Registers this package's environments with Gymnasium.

    Calling it again changes nothing, so an entry point and an import may both do it.
    """
    # Gymnasium's own import may call this function through the entry point. It must therefore
    # exist before this module imports Gymnasium, and may only use what is loaded by then.
    from gymnasium.envs.registration import register, registry

    for task in TASKS.values():
        if task.entry_point is not None and task.env_id not in registry:
            register(id=task.env_id, entry_point=task.entry_point, max_episode_steps=task.horizon)


def make_env(env: str | EnvSpec, **kwargs: Any) -> gym.Env:
    """Makes an environment.

    Args:
        env: id or spec.
        **kwargs: of ``gymnasium.make``.

    Raises:
        ValueError: if there is none of this id; the message suggests a similar one.
    """
    import gymnasium as gym

    from sb3_diffbc.schema import nearest

    try:
        return gym.make(env, **kwargs)
    except gym.error.Error as error:
        is_unknown = isinstance(error, gym.error.UnregisteredEnv | gym.error.DeprecatedEnv)
        if not isinstance(env, str) or not (is_unknown or type(error) is gym.error.Error):
            raise
        known: dict[str, str] = {}
        # Without a namespace come last, so that they are taken for a name that several have.
        for spec in sorted(gym.registry.values(), key=lambda spec: spec.namespace is None):
            known |= dict.fromkeys((spec.id, f"{spec.name}-v{spec.version}", spec.name), spec.id)
        for task in TASKS.values():
            known |= dict.fromkeys((task.name, gym.spec(task.env_id).name), task.env_id)
        fault = str(error).partition(" Did you mean")[0]
        raise ValueError(f"env={env!r}: {fault}{nearest(env, known)}") from error


def __getattr__(name: str) -> Any:
    # Through the entry point this package is loaded with every `import gymnasium`, which should
    # not have to load MuJoCo (or torch, for an expert) as well.
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_envs()
