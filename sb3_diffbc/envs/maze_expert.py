"""A scripted expert for the Maze task."""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any

import numpy as np
from gymnasium import spaces
from imitation.policies.base import NonTrainablePolicy
from numpy.typing import NDArray

from sb3_diffbc.envs.checks import checked_box
from sb3_diffbc.envs.maze import (
    CELL_CENTRE_OFFSET,
    MAZE_MAP,
    Cell,
    MazeEnv,
    Point,
    cell_of,
    free_cells,
)

_NEIGHBOURS: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))


class MazeExpert(NonTrainablePolicy):
    """Follows the shortest path over the maze's cells with a spring and a damper.

    The path runs through the centres of the cells to the goal. A carrot runs ahead of the ball at a
    fixed distance along that path; the action pulls the ball towards it (proportional) and slows it
    down (derivative). Because the distance is measured along the path, the ball rounds a corner in
    a smooth arc that stays clear of the wall. The action is a function of the observation alone, so
    the expert can label any state, as DAgger asks for.

    It is a Stable-Baselines3 policy: use it with `evaluate_policy`, imitation's `rollout` or as the
    `expert_policy` of `SimpleDAggerTrainer`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        look_ahead: float = 0.7,
        stiffness: float = 6.0,
        damping: float = 1.0,
    ) -> None:
        """Tabulates the shortest paths.

        Args:
            observation_space: The Maze task's space, which is the default.
            action_space: The Maze task's space, which is the default.
            look_ahead: Distance of the carrot in cells, in (0, 1].
            stiffness: Force per unit of distance to the carrot.
            damping: Force per unit of velocity.

        Raises:
            ValueError: If a space has another shape than the Maze task's or a number is out of
                range.
        """
        env = MazeEnv()
        observation_space = checked_box(
            "observation_space", observation_space, env.observation_space, "Maze"
        )
        action_space = checked_box("action_space", action_space, env.action_space, "Maze")
        if not 0 < look_ahead <= 1:
            raise ValueError(f"look_ahead: found {look_ahead}, expected a number in (0, 1].")
        for name, value in (("stiffness", stiffness), ("damping", damping)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: found {value}, expected a positive number.")
        super().__init__(observation_space, action_space)
        self.look_ahead = look_ahead
        self.stiffness = stiffness
        self.damping = damping
        self._next_cells = _shortest_paths()

    def _choose_action(  # type: ignore[override]
        self, obs: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Gives the expert's action for one observation.

        Args:
            obs: One observation, shape (6,).

        Returns:
            The action, shape (2,), float32, within ±1.
        """
        x, y, x_velocity, y_velocity, x_goal, y_goal = np.asarray(obs, dtype=np.float64).tolist()
        x_carrot, y_carrot = self._carrot((x, y), (x_goal, y_goal))
        force = (
            self.stiffness * (x_carrot - x) - self.damping * x_velocity,
            self.stiffness * (y_carrot - y) - self.damping * y_velocity,
        )
        return np.clip(np.array(force, dtype=np.float32), -1.0, 1.0)

    def _carrot(self, position: Point, goal: Point) -> Point:
        """Finds the point that lies the look-ahead distance further along the path."""
        next_cells = self._next_cells.get(cell_of(goal), {})
        cell = cell_of(position)
        if cell not in next_cells:
            return goal  # in the goal's cell already, or where no path leads through
        path: list[Point] = []
        while cell in next_cells:  # the goal's own cell has no next one
            path.append(_centre(cell))
            cell = next_cells[cell]
        path.append(goal)
        return _walk(path, self.look_ahead + _progress(position, path[0], path[1]))


def _centre(cell: Cell) -> Point:
    return cell[0] + CELL_CENTRE_OFFSET, cell[1] + CELL_CENTRE_OFFSET


def _progress(position: Point, start: Point, end: Point) -> float:
    """Measures how far the ball has come along a leg of the path; negative before its start.

    Distance to the side counts against it. A ball that comes into the cell from the side has then
    made as much progress as it is told in the cell before, and the carrot moves without a jump.
    """
    x, y = position[0] - start[0], position[1] - start[1]
    x_leg, y_leg = end[0] - start[0], end[1] - start[1]
    length = math.hypot(x_leg, y_leg)
    along = (x * x_leg + y * y_leg) / length
    aside = (x * y_leg - y * x_leg) / length
    return along - abs(aside)


def _walk(path: list[Point], distance: float) -> Point:
    """Gives the point at a distance along a polyline, held at both of its ends."""
    distance = max(distance, 0.0)
    for start, end in itertools.pairwise(path):
        length = math.dist(start, end)
        if distance < length:
            share = distance / length
            return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
        distance -= length
    return path[-1]


def _shortest_paths() -> dict[Cell, dict[Cell, Cell]]:
    """Tabulates, for every goal cell, the next cell on a shortest path from every other cell.

    Breadth-first search outwards from the goal; among paths of equal length a fixed order of the
    directions decides.
    """
    free = set(free_cells(MAZE_MAP))
    tables: dict[Cell, dict[Cell, Cell]] = {}
    for goal in free:
        next_cells: dict[Cell, Cell] = {}
        queue = deque([goal])
        while queue:
            cell = queue.popleft()
            for di, dj in _NEIGHBOURS:
                neighbour = (cell[0] + di, cell[1] + dj)
                if neighbour in free and neighbour != goal and neighbour not in next_cells:
                    next_cells[neighbour] = cell
                    queue.append(neighbour)
        tables[goal] = next_cells
    return tables
