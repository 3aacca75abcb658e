"""Scripted experts: controllers that are functions of the observation alone.

They are Stable-Baselines3 policies, for ``evaluate_policy``, imitation's ``rollout`` or the
``expert_policy`` of ``SimpleDAggerTrainer``, and can label any state.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from imitation.policies.base import NonTrainablePolicy
from numpy.typing import NDArray

from sb3_diffbc.envs.maze import CELL_CENTRE_OFFSET, FREE_CELLS, Cell, MazeEnv, cell_of

Point: TypeAlias = tuple[float, float]

_NEIGHBOURS: tuple[Cell, ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))
_LOOK_AHEAD = 0.7  # in cells
_STIFFNESS = 6.0  # force per unit of distance
_DAMPING = 1.0  # force per unit of velocity

_SPEED = 0.6  # length of the hand's action far from its target
_GAIN = 30.0  # length of the hand's action near its target, per metre and relative to the speed
# In metres. Each pair is a range over which one behaviour fades into another.
_HOVER = 0.055
_ASIDE = (0.012, 0.03)  # the hand stands above the block; stands beside it
_LEVEL = (0.008, 0.03)  # the fingers reach the block; are too high or low to
_CLEAR = (0.025, 0.045)  # the fingers would push the block aside; pass above it
_EMPTY = (0.012, 0.02)  # the fingers are too far closed to hold the block; hold it
_OPEN = (0.025, 0.04)  # the fingers hold the block; are too far open to
# The fingers close along y and are broad along x, so that an error along x matters less.
_X_WEIGHT = 0.67
# A block in the grip may slip by twice of what is asked for before the fingers close.
_SLIP_WEIGHT = 0.5


class MazeExpert(NonTrainablePolicy):
    """Follows the shortest path over the maze's cells with a spring and a damper.

    The path runs through the centres of the cells to the goal. The action pulls the ball towards a
    point that lies a fixed distance ahead of it along the path (proportional) and slows it down
    (derivative). Because the distance is measured along the path, the ball rounds a corner in a
    smooth arc that stays clear of the wall.
    """

    def __init__(self) -> None:
        """Tabulates the shortest paths."""
        env = MazeEnv()
        super().__init__(env.observation_space, env.action_space)
        self._next_cells = {goal: _next_cells(goal) for goal in FREE_CELLS}

    def _choose_action(self, obs: Any) -> NDArray[np.float32]:
        x, y, x_velocity, y_velocity, *goal = np.asarray(obs, dtype=np.float64).tolist()
        x_ahead, y_ahead = self._point_ahead((x, y), (goal[0], goal[1]))
        force = (
            _STIFFNESS * (x_ahead - x) - _DAMPING * x_velocity,
            _STIFFNESS * (y_ahead - y) - _DAMPING * y_velocity,
        )
        return np.clip(np.array(force, dtype=np.float32), -1.0, 1.0)

    def _point_ahead(self, position: Point, goal: Point) -> Point:
        next_cells = self._next_cells.get(cell_of(goal), {})
        cell = cell_of(position)
        path: list[Point] = []
        while cell in next_cells:  # the goal's own cell has no next one
            path.append((cell[0] + CELL_CENTRE_OFFSET, cell[1] + CELL_CENTRE_OFFSET))
            cell = next_cells[cell]
        path.append(goal)
        if len(path) == 1:  # in the goal's cell already, or where no path leads through
            return goal
        return _walk(path, _LOOK_AHEAD + _progress(position, path[0], path[1]))


def _progress(position: Point, start: Point, end: Point) -> float:
    """Returns how far the ball has come along a leg of the path; negative before its start.

    Distance to the side counts against it. A ball that comes into the cell from the side has then
    made as much progress as in the cell before, and the point ahead moves without a jump.
    """
    x, y = position[0] - start[0], position[1] - start[1]
    x_leg, y_leg = end[0] - start[0], end[1] - start[1]
    length = math.hypot(x_leg, y_leg)
    along = (x * x_leg + y * y_leg) / length
    aside = (x * y_leg - y * x_leg) / length
    return along - abs(aside)


def _walk(path: list[Point], distance: float) -> Point:
    """Returns the point at a distance along a polyline, held at both of its ends."""
    distance = max(distance, 0.0)
    for start, end in itertools.pairwise(path):
        length = math.dist(start, end)
        if distance < length:
            share = distance / length
            return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])
        distance -= length
    return path[-1]


def _next_cells(goal: Cell) -> dict[Cell, Cell]:
    """Returns, for every other cell, the next one on a shortest path to the goal.

    Breadth-first search outwards from the goal; among paths of equal length the order of
    ``_NEIGHBOURS`` decides.
    """
    next_cells: dict[Cell, Cell] = {}
    queue = deque([goal])
    while queue:
        cell = queue.popleft()
        for di, dj in _NEIGHBOURS:
            neighbour = (cell[0] + di, cell[1] + dj)
            if neighbour in FREE_CELLS and neighbour != goal and neighbour not in next_cells:
                next_cells[neighbour] = cell
                queue.append(neighbour)
    return next_cells


class FetchPickExpert(NonTrainablePolicy):
    """Goes above the block, down to it, grasps it and carries it straight to the goal.

    The hand moves towards a target with a speed that is proportional to the distance when near and
    constant when far. The target is the block while the fingers do not hold it, raised as long as
    the hand is not above it, and such that the block comes to the goal while they do. All of this
    fades over instead of switching, so that a block that slips or falls is fetched again.

    It does not need gymnasium-robotics.
    """

    def __init__(self) -> None:
        """Sets the task's spaces."""
        super().__init__(
            spaces.Box(-np.inf, np.inf, shape=(28,), dtype=np.float32),
            spaces.Box(-1.0, 1.0, shape=(4,), dtype=np.float32),
        )

    def _choose_action(self, obs: Any) -> NDArray[np.float32]:
        values = np.asarray(obs, dtype=np.float64)
        block, to_block, fingers, goal = values[3:6], values[6:9], values[9:11].mean(), values[25:]
        clasped = _fade(fingers, *_EMPTY) * (1.0 - _fade(fingers, *_OPEN))
        tolerance = 1.0 - _SLIP_WEIGHT * clasped
        aside = _fade(tolerance * math.hypot(_X_WEIGHT * to_block[0], to_block[1]), *_ASIDE)
        within = (1.0 - aside) * (1.0 - _fade(tolerance * abs(to_block[2]), *_LEVEL))
        held = within * clasped

        approach = to_block.copy()
        approach[:2] *= 1.0 - aside * (1.0 - _fade(-to_block[2], *_CLEAR))
        approach[2] += aside * _HOVER
        pull = _GAIN * ((1.0 - held) * approach + held * (goal - block))
        hand = _SPEED * pull / math.sqrt(1.0 + pull @ pull)
        return np.append(hand, 1.0 - 2.0 * within).astype(np.float32)


def _fade(value: float, start: float, end: float) -> float:
    """Rises smoothly from 0 at ``start`` to 1 at ``end``."""
    share = min(max((value - start) / (end - start), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)
