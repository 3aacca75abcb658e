"""The Maze task: push a ball through a walled maze to a goal.

The task is D4RL's ``maze2d-medium`` (https://arxiv.org/abs/2004.07219) in the form used for
"Diffusion Model-Augmented Behavioral Cloning" (https://arxiv.org/abs/2302.13335).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_diffbc.envs.goal_task import Doubles, FloatArray, GoalTask, checked_vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cell: TypeAlias = tuple[int, int]

MAZE_MAP: tuple[str, ...] = (
    "########",
    "#OO##OO#",
    "#OO#OOO#",
    "##OOO###",
    "#OO#OOO#",
    "#O#OO#O#",
    "#OOO#OG#",
    "########",
)
"""Rows of the maze, indexed by the first coordinate: ``#`` is wall, ``O`` and ``G`` are free."""

FREE_CELLS: tuple[Cell, ...] = tuple(
    (i, j) for i, row in enumerate(MAZE_MAP) for j, symbol in enumerate(row) if symbol != "#"
)
"""The free cells (i, j) in row order."""

BALL_RADIUS = 0.1
CELL_CENTRE_OFFSET = -0.2
"""Cell (i, j) is the unit square centred on position (i, j) + this offset.

Positions are joint displacements from the body's origin at 1.2 while walls stand at cell index + 1.
"""
GOAL_RADIUS = 0.5
MAX_VELOCITY = 5.0
POSITION_NOISE = 0.1
VELOCITY_NOISE = 0.1

# The free space spans 0.4 to 6.2; walls are a little soft, so the bounds leave room around it.
_POSITION_BOUNDS = (0.0, 7.0)
# The clip to MAX_VELOCITY comes before a step; the step itself adds up to 0.24, collisions aside.
_VELOCITY_BOUND = 10.0

_WALLS = "\n".join(
    f'    <geom type="box" size="0.5 0.5 0.2" pos="{i + 1.0} {j + 1.0} 0"/>'
    for i, row in enumerate(MAZE_MAP)
    for j, symbol in enumerate(row)
    if symbol == "#"
)
_MODEL = f"""
<mujoco model="maze">
  <compiler inertiafromgeom="true"/>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
{_WALLS}
    <body name="ball" pos="1.2 1.2 0">
      <geom name="ball" type="sphere" size="{BALL_RADIUS}" contype="1" margin="0"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="100" ctrllimited="true" ctrlrange="-1 1"/>
    <motor joint="y" gear="100" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


def cell_of(position: ArrayLike) -> Cell:
    """Returns the cell (i, j) that holds a position.

    Args:
        position: two coordinates, in the observation's units.

    Returns:
        The indices into ``MAZE_MAP``; outside the map they may be negative or too large.
    """
    x, y = np.asarray(position, dtype=np.float64).tolist()
    shift = 0.5 - CELL_CENTRE_OFFSET
    return math.floor(x + shift), math.floor(y + shift)


class MazeEnv(GoalTask):
    """Push a ball through a maze of 8 x 8 cells until it is near the goal, within 400 steps.

    - **Observation**, shape (6,): position (2), velocity (2), goal (2). One unit is one cell;
      velocities are in units per second.
    - **Action**, shape (2,): a force along each axis. A step lasts 0.01 s.
    - **Velocity** is clipped to ±5 along each axis before each step, so the observed velocity may
      exceed 5 by what one step adds.
    - **Start**: a random free cell's indices (i, j) plus uniform noise of ±0.1, and a velocity
      drawn from N(0, 0.1²). The indices lie 0.2 beside the cell's centre (see
      ``CELL_CENTRE_OFFSET``), as in D4RL. A start noise ratio scales position and velocity.
    - **Goal**: drawn as the start's position is, independently of it: about 4 % of the episodes
      begin in the goal's own cell and end with their first step.
    - **Success** within 0.5 of the goal; ``distance`` is in cells.

    Noise that would leave the drawn cell's free space (a ratio above 2 can) is cut off at its edge,
    because the ball would otherwise start inside a wall; so is a start velocity above 5.

    See ``GoalTask`` for the arguments, reward, end and info.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012
    action_size = 2
    goal_size = 2
    tolerance = math.nextafter(GOAL_RADIUS, math.inf)  # here the radius itself is within

    def _load(self) -> None:
        low = np.repeat([_POSITION_BOUNDS[0], -_VELOCITY_BOUND, _POSITION_BOUNDS[0]], 2)
        high = np.repeat([_POSITION_BOUNDS[1], _VELOCITY_BOUND, _POSITION_BOUNDS[1]], 2)
        self.observation_space = spaces.Box(np.float32(low), np.float32(high))
        # Collisions are as in MuJoCo 2.1, which the authors' data come from. Two rules have changed
        # since. A contact's margin was the larger one of the two bodies' and has become their sum:
        # in _MODEL only the walls have one. And a body's inverse weight, which softens its
        # contacts, was its mean over the three axes, counting the axis without a joint as 0; newer
        # versions leave that axis out.
        self._model = mujoco.MjModel.from_xml_string(_MODEL)
        ball = self._model.body("ball").id
        self._model.body_invweight0[ball, 0] = self._model.dof_invweight0.sum() / 3.0
        self._data = mujoco.MjData(self._model)

    def set_observation(self, observation: ArrayLike) -> FloatArray:
        """Places ball and goal as an observation tells; the next ``step`` continues from there.

        Replaying a recorded transition is ``set_observation(obs)`` and ``step(act)``.

        Args:
            observation: position, velocity and goal, shape (6,).

        Returns:
            The observation of the new state.

        Raises:
            ValueError: if the observation has the wrong shape, is not finite, places ball or goal
                outside the free cells, or has a velocity beyond ±10.
        """
        values = checked_vector("observation", observation, 6)
        position, velocity, goal = values[:2], values[2:4], values[4:]
        if not {cell_of(position), cell_of(goal)}.issubset(FREE_CELLS):
            raise ValueError(
                f"observation: found the ball at {position.tolist()} and the goal at "
                f"{goal.tolist()}, expected both in free cells (cell (i, j) is the unit square "
                f"centred on (i, j) {CELL_CENTRE_OFFSET:+})."
            )
        if np.abs(velocity).max() > _VELOCITY_BOUND:
            raise ValueError(
                f"observation: found the velocity {velocity.tolist()}, expected at most "
                f"{_VELOCITY_BOUND} along each axis."
            )
        # A full reset also clears the solver's warm start: what came before leaves no trace.
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:], self._data.qvel[:], self._goal = position, velocity, goal.copy()
        return self._observation()

    def _place(self) -> bool:
        self._data.qpos[:] = self._draw_position(self.noise_ratio)
        velocity = self.np_random.normal(size=2) * (VELOCITY_NOISE * self.noise_ratio)
        self._data.qvel[:] = np.clip(velocity, -MAX_VELOCITY, MAX_VELOCITY)
        return True

    def _draw_goal(self) -> Doubles:
        return self._draw_position(self.goal_noise_ratio)

    def _draw_position(self, ratio: float) -> Doubles:
        """Draws a free cell and a position near its indices."""
        cell = FREE_CELLS[self.np_random.integers(len(FREE_CELLS))]
        noise = self.np_random.uniform(-POSITION_NOISE, POSITION_NOISE, size=2) * ratio
        reach = 0.5 - BALL_RADIUS
        noise = np.clip(noise, CELL_CENTRE_OFFSET - reach, CELL_CENTRE_OFFSET + reach)
        return np.asarray(cell + noise, dtype=np.float64)

    def _advance(self, action: Doubles) -> None:
        self._data.ctrl[:] = action
        self._data.qvel.clip(-MAX_VELOCITY, MAX_VELOCITY, out=self._data.qvel)
        mujoco.mj_step(self._model, self._data)

    def _observe(self, goal: Doubles) -> Doubles:
        return np.concatenate([self._data.qpos, self._data.qvel, goal])

    def _distance(self, goal: Doubles) -> float:
        (x, y), (x_goal, y_goal) = self._data.qpos.tolist(), goal.tolist()
        return math.hypot(x - x_goal, y - y_goal)

    def _draw(self) -> NDArray[np.uint8]:
        """Draws maze, ball and goal from above, x to the right and y upwards."""
        # The object interface leaves pyplot's global state and the user's backend alone.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Circle

        figure = Figure(figsize=(4.8, 4.8), dpi=100)
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        draw_maze(axes)
        ball, goal = self._data.qpos.tolist(), self.goal.tolist()
        axes.add_patch(Circle(goal, GOAL_RADIUS, color="#2f9e44", alpha=0.2))
        axes.add_patch(Circle(goal, BALL_RADIUS, color="#2f9e44"))
        axes.add_patch(Circle(ball, BALL_RADIUS, color="#e8590c"))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw_maze(axes: Axes) -> None:
    """Draws the maze from above in the coordinates of the observations.

    Plot a trajectory over it with ``axes.plot(obs[:, 0], obs[:, 1])``.

    Args:
        axes: Matplotlib axes; limits, aspect and ticks are set.
    """
    from matplotlib.colors import ListedColormap

    walls = np.array([[symbol == "#" for symbol in row] for row in MAZE_MAP])
    # A cell's lower corner lies half a cell below its centre.
    low, high = CELL_CENTRE_OFFSET - 0.5, len(MAZE_MAP) + CELL_CENTRE_OFFSET - 0.5
    axes.imshow(
        walls.T,
        cmap=ListedColormap(["#f7f7f5", "#4a5568"]),
        origin="lower",
        extent=(low, high, low, high),
        zorder=0,
    )
    # Half of the outer wall frames the maze well enough.
    axes.set(xlim=(low + 0.5, high - 0.5), ylim=(low + 0.5, high - 0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
