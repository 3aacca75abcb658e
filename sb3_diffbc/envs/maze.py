"""The Maze task: push a ball through a walled maze to a goal.

The task is D4RL's `maze2d-medium` (https://arxiv.org/abs/2004.07219) in the form used for
"Diffusion Model-Augmented Behavioral Cloning" (https://arxiv.org/abs/2302.13335). It is built on
the plain `mujoco` bindings, so that it does not depend on the version of MuJoCo that Gymnasium's
own MuJoCo environments expect.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_diffbc.envs.checks import checked_ratio, checked_render_mode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray: TypeAlias = NDArray[np.float32]
Point: TypeAlias = tuple[float, float]
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
"""Rows of the maze, indexed by the first coordinate: `#` is wall, `O` and `G` are free."""

BALL_RADIUS = 0.1
CELL_CENTRE_OFFSET = -0.2
"""Cell (i, j) is the unit square centred on position (i, j) + this offset.

Positions are joint displacements from the body's origin at 1.2 while walls stand at cell index + 1.
"""
GOAL_RADIUS = 0.5
MAX_VELOCITY = 5.0
POSITION_NOISE = 0.1
VELOCITY_NOISE = 0.1

_BODY_ORIGIN = 1.2
_WALL_ORIGIN = 1.0
_WALL_HALF_SIZE = (0.5, 0.5, 0.2)
_TIMESTEP = 0.01
_GEAR = 100
# The free space spans 0.4 to 6.2; walls are a little soft, so the bounds leave room around it.
_POSITION_BOUNDS = (0.0, 7.0)
# The clip to MAX_VELOCITY comes before a step; the step itself adds up to 0.24, collisions aside.
_VELOCITY_BOUND = 10.0


def free_cells(maze_map: tuple[str, ...] = MAZE_MAP) -> list[Cell]:
    """Lists the free cells (i, j) of a maze in row order."""
    return [
        (i, j) for i, row in enumerate(maze_map) for j, symbol in enumerate(row) if symbol != "#"
    ]


def cell_of(position: ArrayLike) -> Cell:
    """Gives the cell (i, j) that holds a position.

    Args:
        position: Two coordinates, in the observation's units.

    Returns:
        The indices into `MAZE_MAP`; outside the map they may be negative or too large.
    """
    x, y = np.asarray(position, dtype=np.float64).tolist()
    shift = 0.5 - CELL_CENTRE_OFFSET
    return math.floor(x + shift), math.floor(y + shift)


def is_free(cell: Cell, maze_map: tuple[str, ...] = MAZE_MAP) -> bool:
    """Says whether a cell lies inside the map and is no wall."""
    i, j = cell
    return 0 <= i < len(maze_map) and 0 <= j < len(maze_map[i]) and maze_map[i][j] != "#"


def maze_xml(maze_map: tuple[str, ...] = MAZE_MAP) -> str:
    """Writes the MuJoCo model of a maze.

    Args:
        maze_map: Rows of equal length, as in `MAZE_MAP`.

    Returns:
        An MJCF document with two slide joints `x`, `y`, one motor on each, and a box per wall cell.
    """
    size = " ".join(map(str, _WALL_HALF_SIZE))
    walls = "\n".join(
        f'    <geom type="box" size="{size}" pos="{i + _WALL_ORIGIN} {j + _WALL_ORIGIN} 0"/>'
        for i, row in enumerate(maze_map)
        for j, symbol in enumerate(row)
        if symbol == "#"
    )
    return f"""
<mujoco model="maze">
  <compiler inertiafromgeom="true"/>
  <option timestep="{_TIMESTEP}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
{walls}
    <body name="ball" pos="{_BODY_ORIGIN} {_BODY_ORIGIN} 0">
      <geom name="ball" type="sphere" size="{BALL_RADIUS}" contype="1" margin="0"/>
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="{_GEAR}" ctrllimited="true" ctrlrange="-1 1"/>
    <motor joint="y" gear="{_GEAR}" ctrllimited="true" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


def _load_model() -> mujoco.MjModel:
    """Compiles the maze such that collisions are as in MuJoCo 2.1, which the task's data come from.

    Two rules have changed since. A contact's margin was the larger one of the two bodies' and has
    become their sum: here only the walls have one. And a body's inverse weight, which softens its
    contacts, was its mean over the three axes, counting the axis without a joint as 0; newer
    versions leave that axis out.
    """
    model = mujoco.MjModel.from_xml_string(maze_xml())
    ball = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "ball")
    model.body_invweight0[ball, 0] = model.dof_invweight0.sum() / 3.0
    return model


def draw_maze(
    ax: Axes,
    maze_map: tuple[str, ...] = MAZE_MAP,
    *,
    wall_color: str = "#4a5568",
    floor_color: str = "#f7f7f5",
    grid_color: str = "#e3e3df",
) -> None:
    """Draws a maze from above in the coordinates of the observations.

    Plot a trajectory over it with `ax.plot(obs[:, 0], obs[:, 1])`.

    Args:
        ax: Matplotlib axes; limits, aspect and ticks are set.
        maze_map: Rows of equal length, as in `MAZE_MAP`.
        wall_color: Any Matplotlib colour.
        floor_color: Colour of the free cells.
        grid_color: Colour of the thin lines between free cells.
    """
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    # A cell's lower corner lies half a cell below its centre.
    shift = CELL_CENTRE_OFFSET - 0.5
    width, height = len(maze_map), len(maze_map[0])
    free: list[Rectangle] = []
    walls: list[Rectangle] = []
    for i, row in enumerate(maze_map):
        for j, symbol in enumerate(row):
            (walls if symbol == "#" else free).append(Rectangle((i + shift, j + shift), 1, 1))
    ax.add_collection(
        PatchCollection(free, facecolor=floor_color, edgecolor=grid_color, linewidth=0.6, zorder=0)
    )
    # An edge in the wall's own colour hides the seams that anti-aliasing leaves between boxes.
    ax.add_collection(
        PatchCollection(walls, facecolor=wall_color, edgecolor=wall_color, linewidth=0.6, zorder=1)
    )
    # Half of the outer wall frames the maze well enough.
    ax.set_xlim(shift + 0.5, width + shift - 0.5)
    ax.set_ylim(shift + 0.5, height + shift - 0.5)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


class MazeEnv(gym.Env[FloatArray, FloatArray]):
    """Push a ball through a maze of 8 x 8 cells until it is near the goal.

    - **Observation**, `Box` of shape (6,), float32: position (2), velocity (2), goal (2). One unit
      is one cell; velocities are in units per second. The simulation itself runs in float64.
    - **Action**, `Box(-1, 1)` of shape (2,), float32: a force along each axis. Actions outside the
      box are clipped; a step lasts 0.01 s.
    - **Velocity** is clipped to ±5 along each axis before each step, so the observed velocity may
      exceed 5 by what one step adds.
    - **Reward** is sparse: 1.0 in the step that reaches the goal, 0.0 in every other step.
    - **Episode end**: `terminated` once the ball is within 0.5 of the goal. An episode started
      through `gymnasium.make("sb3_diffbc/Maze-v0")` is `truncated` after 400 steps; the bare class
      sets no limit.
    - **Start**: a random free cell's indices (i, j) plus uniform noise of ±0.1, a velocity drawn
      from N(0, 0.1²), and a goal drawn as the start's position is, independently of it: about 4 %
      of the episodes begin in the goal's own cell and end with their first step. The indices lie
      0.2 beside the cell's centre (see `CELL_CENTRE_OFFSET`), as in D4RL.
    - **Info**: `is_success` (bool), from `reset` and from every step.

    Noise that would leave the drawn cell's free space (a ratio above 2 can) is cut off at its edge,
    because the ball would otherwise start inside a wall; so is a start velocity above 5.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(
        self,
        noise_ratio: float = 1.0,
        goal_noise_ratio: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        """Compiles the model and sets up the spaces.

        Args:
            noise_ratio: Scales the noise of the start, position and velocity; 0 gives the bare
                cell at rest.
            goal_noise_ratio: Scales the noise of the goal.
            render_mode: None, or `"rgb_array"` for a view from above.

        Raises:
            ValueError: If a ratio is negative or not finite, or `render_mode` is not known.
        """
        self.noise_ratio = checked_ratio("noise_ratio", noise_ratio)
        self.goal_noise_ratio = checked_ratio("goal_noise_ratio", goal_noise_ratio)
        self.render_mode = checked_render_mode(render_mode, self.metadata["render_modes"])

        low = np.repeat([_POSITION_BOUNDS[0], -_VELOCITY_BOUND, _POSITION_BOUNDS[0]], 2)
        high = np.repeat([_POSITION_BOUNDS[1], _VELOCITY_BOUND, _POSITION_BOUNDS[1]], 2)
        self.observation_space = spaces.Box(
            low.astype(np.float32), high.astype(np.float32), dtype=np.float32
        )
        self.action_space = spaces.Box(-1.0, 1.0, shape=(2,), dtype=np.float32)

        self._model = _load_model()
        self._data = mujoco.MjData(self._model)
        self._cells = free_cells()
        self._goal: Point | None = None
        self._canvas: _Canvas | None = None

    @property
    def goal(self) -> Point:
        """The goal's position.

        Raises:
            gymnasium.error.ResetNeeded: Before the first `reset` or `set_state`.
        """
        if self._goal is None:
            raise gym.error.ResetNeeded("MazeEnv: call reset() or set_state() first.")
        return self._goal

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Seeds the environment's generator; the same seed gives the same episode.
            options: May fix `"position"`, `"velocity"` and `"goal"` (2 numbers each), which are
                then taken as they are. The others are drawn, and the generator advances as it
                would without options.

        Returns:
            The observation and `{"is_success": False}`.

        Raises:
            ValueError: If an option is not known or not valid (see `set_state`).
        """
        super().reset(seed=seed)
        position = self._draw_position(self.noise_ratio)
        velocity = self.np_random.normal(size=2) * (VELOCITY_NOISE * self.noise_ratio)
        velocity = np.clip(velocity, -MAX_VELOCITY, MAX_VELOCITY)
        goal = self._draw_position(self.goal_noise_ratio)
        start: dict[str, ArrayLike] = {"position": position, "velocity": velocity, "goal": goal}
        unknown = set(options or ()) - set(start)
        if unknown:
            raise ValueError(
                f"options: found the keys {sorted(map(str, unknown))}, expected only {list(start)}."
            )
        start.update(options or {})
        return self.set_state(**start), {"is_success": False}

    def set_state(self, position: ArrayLike, velocity: ArrayLike, goal: ArrayLike) -> FloatArray:
        """Places the ball and the goal; the next `step` continues from there.

        Replaying a recorded transition is `set_state(obs[:2], obs[2:4], obs[4:])` and `step(act)`.

        Args:
            position: Position of the ball, 2 numbers, inside the maze and not in a wall.
            velocity: Velocity of the ball, 2 numbers of at most 10 in size.
            goal: Position of the goal, 2 numbers, inside the maze and not in a wall.

        Returns:
            The observation of the new state.

        Raises:
            ValueError: If an argument has the wrong shape, is not finite or lies outside its range.
        """
        start = _checked_position("position", position)
        speed = _checked_pair("velocity", velocity)
        if max(map(abs, speed)) > _VELOCITY_BOUND:
            raise ValueError(
                f"velocity: found {speed}, expected at most {_VELOCITY_BOUND} along each axis."
            )
        self._goal = _checked_position("goal", goal)
        # A full reset also clears the solver's warm start: what came before leaves no trace.
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[:] = start
        self._data.qvel[:] = speed
        return self._observation(start, speed)

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Applies a force for 0.01 s.

        Args:
            action: Force along each axis, shape (2,); clipped to ±1.

        Returns:
            The observation, the reward (1.0 at the goal, else 0.0), whether the goal was reached,
            False (truncation is the time limit's business) and `{"is_success": bool}`.

        Raises:
            ValueError: If the action has another shape or is not finite.
            gymnasium.error.ResetNeeded: Before the first `reset` or `set_state`.
        """
        x_goal, y_goal = self.goal
        x_force, y_force = _checked_pair("action", action)
        data = self._data
        ctrl, qvel = data.ctrl, data.qvel
        ctrl[0] = min(max(x_force, -1.0), 1.0)
        ctrl[1] = min(max(y_force, -1.0), 1.0)
        x_velocity, y_velocity = qvel.tolist()
        qvel[0] = min(max(x_velocity, -MAX_VELOCITY), MAX_VELOCITY)
        qvel[1] = min(max(y_velocity, -MAX_VELOCITY), MAX_VELOCITY)
        mujoco.mj_step(self._model, data)

        position, velocity = data.qpos.tolist(), qvel.tolist()
        success = math.hypot(position[0] - x_goal, position[1] - y_goal) <= GOAL_RADIUS
        observation = self._observation(position, velocity)
        return observation, float(success), success, False, {"is_success": success}

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Draws the maze, the ball and the goal from above.

        Returns:
            An RGB image of shape (400, 400, 3), uint8, with the first coordinate to the right and
            the second one upwards; None without a render mode.
        """
        if self.render_mode is None:
            gym.logger.warn(
                "MazeEnv.render() was called without a render mode; pass "
                'render_mode="rgb_array" when making the environment.'
            )
            return None
        if self._canvas is None:
            self._canvas = _Canvas()
        x, y = self._data.qpos.tolist()
        return self._canvas.draw((x, y), self.goal)

    def close(self) -> None:
        """Frees the figure that `render` draws on; may be called repeatedly."""
        self._canvas = None

    def __getstate__(self) -> dict[str, Any]:
        """Gives what `copy` and `pickle` need.

        The model is compiled again on the other side: some versions of MuJoCo crash when they
        unpickle their own objects.
        """
        state = self.__dict__.copy()
        for name in ("_model", "_data", "_canvas"):
            del state[name]
        # The warm start keeps the copy's collisions equal to the last bit.
        state["_simulation"] = {
            name: np.array(getattr(self._data, name)) for name in ("qpos", "qvel", "qacc_warmstart")
        }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes up what `__getstate__` gave."""
        simulation = state.pop("_simulation")
        self.__dict__.update(state)
        self._model = _load_model()
        self._data = mujoco.MjData(self._model)
        self._canvas = None
        for name, values in simulation.items():
            getattr(self._data, name)[:] = values

    def _draw_position(self, ratio: float) -> NDArray[np.float64]:
        """Draws a free cell and a position near its reference point."""
        cell = self._cells[self.np_random.integers(len(self._cells))]
        noise = self.np_random.uniform(-POSITION_NOISE, POSITION_NOISE, size=2) * ratio
        reach = 0.5 - BALL_RADIUS
        noise = np.clip(noise, CELL_CENTRE_OFFSET - reach, CELL_CENTRE_OFFSET + reach)
        return np.asarray(cell + noise, dtype=np.float64)

    def _observation(
        self, position: list[float] | Point, velocity: list[float] | Point
    ) -> FloatArray:
        return np.array([*position, *velocity, *self.goal], dtype=np.float32)


class _Canvas:
    """An off-screen figure of the maze with one marker each for the ball and the goal."""

    PIXELS = 400

    def __init__(self) -> None:
        # The object interface leaves pyplot's global state and the user's backend alone.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Circle

        dpi = 100
        figure = Figure(figsize=(self.PIXELS / dpi, self.PIXELS / dpi), dpi=dpi)
        self._agg: Any = FigureCanvasAgg(figure)
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        draw_maze(ax)
        self._zone = Circle((0, 0), GOAL_RADIUS, color="#2f9e44", alpha=0.2, zorder=2)
        self._centre = Circle((0, 0), BALL_RADIUS, color="#2f9e44", zorder=3)
        self._ball = Circle((0, 0), BALL_RADIUS, color="#e8590c", zorder=4)
        for marker in (self._zone, self._centre, self._ball):
            ax.add_patch(marker)

    def draw(self, ball: Point, goal: Point) -> NDArray[np.uint8]:
        self._zone.center = goal
        self._centre.center = goal
        self._ball.center = ball
        self._agg.draw()
        rgba = np.asarray(self._agg.buffer_rgba(), dtype=np.uint8)
        return rgba[..., :3].copy()


def _checked_pair(name: str, value: ArrayLike) -> Point:
    """Takes an array of two finite numbers apart; called once per step, so kept lean."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: found {value!r}, expected 2 numbers.") from None
    if array.shape != (2,):
        raise ValueError(f"{name}: found shape {array.shape}, expected shape (2,).")
    x, y = array.tolist()
    if not (math.isfinite(x) and math.isfinite(y)):
        raise ValueError(f"{name}: found {[x, y]}, expected finite numbers.")
    return x, y


def _checked_position(name: str, value: ArrayLike) -> Point:
    point = _checked_pair(name, value)
    if not is_free(cell_of(point)):
        raise ValueError(
            f"{name}: found {point}, in a wall or outside the maze, expected a point in a free "
            f"cell (cell (i, j) is the unit square centred on (i, j) {CELL_CENTRE_OFFSET:+})."
        )
    return point
