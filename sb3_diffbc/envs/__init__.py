"""The paper's tasks as Gymnasium environments; importing this package registers them.

Gymnasium 0.29 also finds the environments by itself, through the package's `gymnasium.envs` entry
point. Gymnasium 1.x no longer reads entry points: import `sb3_diffbc` before calling
`gymnasium.make("sb3_diffbc/Maze-v0")`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sb3_diffbc.envs.maze import MAZE_MAP, MazeEnv, draw_maze
    from sb3_diffbc.envs.maze_expert import MazeExpert

__all__ = ["MAZE_ENV_ID", "MAZE_MAP", "MazeEnv", "MazeExpert", "draw_maze", "register_envs"]

MAZE_ENV_ID = "sb3_diffbc/Maze-v0"

_MODULE_OF = {
    "MAZE_MAP": "sb3_diffbc.envs.maze",
    "MazeEnv": "sb3_diffbc.envs.maze",
    "draw_maze": "sb3_diffbc.envs.maze",
    "MazeExpert": "sb3_diffbc.envs.maze_expert",
}


def register_envs() -> None:
    """Registers this package's environments with Gymnasium.

    Calling it again changes nothing, so an entry point and an import may both do it.
    """
    # Gymnasium's own import may call this function through the entry point. It must therefore
    # exist before this module imports Gymnasium, and can only count on the half that is loaded.
    from gymnasium.envs.registration import register, registry

    if MAZE_ENV_ID not in registry:
        register(
            id=MAZE_ENV_ID,
            entry_point="sb3_diffbc.envs.maze:MazeEnv",
            max_episode_steps=400,
        )


def __getattr__(name: str) -> Any:
    # Through the entry point this package is loaded with every `import gymnasium`, which should
    # not have to load MuJoCo (or torch, for the expert) as well.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


register_envs()
