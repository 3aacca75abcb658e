"""What the tasks with a goal have in common that run on someone else's MuJoCo model."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, TypeAlias

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from sb3_diffbc.envs.checks import checked_ratio, checked_render_mode

FloatArray: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

# Everything that a step depends on, the solver's warm start included.
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class GoalTask(gym.Env[FloatArray, FloatArray], abc.ABC):
    """A MuJoCo task that is solved in the moment in which the goal is reached.

    - **Observation**, `Box`, float32: flat, with the goal or the way to it at the end.
    - **Action**, `Box(-1, 1)`, float32; clipped to the box.
    - **Reward** is sparse: 1.0 in the step that reaches the goal, 0.0 in every other step.
    - **Episode end**: `terminated` at the goal; the time limit is that of `gymnasium.make`.
    - **Info**: `is_success` (bool) and `distance` to the goal (float, in the task's unit), from
      `reset` and from every step.

    Each reset puts the simulation back to the same state before it draws a start and a goal, so
    that an episode depends on its seed and actions alone, to the bit.

    A subclass loads a model and says how to start, draw a goal, act, observe and measure.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    camera: ClassVar[dict[str, Any]] = {}
    """Attributes of MuJoCo's free camera (`mujoco.MjvCamera`) that differ from its defaults."""

    def __init__(
        self,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        action_size: int,
        goal_size: int,
        noise_ratio: float,
        goal_noise_ratio: float,
        render_mode: str | None,
    ) -> None:
        """Sets up the spaces and keeps the state that every reset begins with.

        Args:
            model: The model to simulate.
            data: Its data, in the state to begin with.
            action_size: Number of actions.
            goal_size: Number of values of the goal.
            noise_ratio: Scales the noise of the start; 0 leaves none.
            goal_noise_ratio: Scales the noise of the goal; 0 leaves none.
            render_mode: None, or `"rgb_array"`.

        Raises:
            ValueError: If a ratio is negative or not finite, or `render_mode` is not known.
        """
        self.noise_ratio = checked_ratio("noise_ratio", noise_ratio)
        self.goal_noise_ratio = checked_ratio("goal_noise_ratio", goal_noise_ratio)
        self.render_mode = checked_render_mode(render_mode, self.metadata["render_modes"])
        self._model = model
        self._data = data
        self._renderer: Any = None
        self._initial_state = self._simulation_state()
        self._goal: Doubles | None = None
        self._goal_size = goal_size
        self.action_space = spaces.Box(-1.0, 1.0, shape=(action_size,), dtype=np.float32)
        size = len(self._observe(np.zeros(goal_size)))
        self.observation_space = spaces.Box(-np.inf, np.inf, shape=(size,), dtype=np.float32)

    @abc.abstractmethod
    def _place(self) -> bool:
        """Draws a start with `self.np_random`; gives False where it is to be drawn again."""

    @abc.abstractmethod
    def _draw_goal(self) -> Doubles:
        """Draws a goal with `self.np_random`, shape `(goal_size,)`."""

    @abc.abstractmethod
    def _advance(self, action: Doubles) -> None:
        """Applies an action within ±1 and simulates one step."""

    @abc.abstractmethod
    def _observe(self, goal: Doubles) -> Doubles:
        """Gives the observation of the simulation as it is."""

    @abc.abstractmethod
    def _distance(self, goal: Doubles) -> float:
        """Measures how far the goal is."""

    @property
    @abc.abstractmethod
    def tolerance(self) -> float:
        """The distance below which the goal counts as reached."""

    @property
    def goal(self) -> Doubles:
        """The goal, shape `(goal_size,)`.

        Raises:
            gymnasium.error.ResetNeeded: Before the first `reset`.
        """
        if self._goal is None:
            raise gym.error.ResetNeeded(f"{type(self).__name__}: call reset() first.")
        return self._goal

    @property
    def state(self) -> Doubles:
        """All that the next steps depend on: the goal, then MuJoCo's integration state.

        Raises:
            gymnasium.error.ResetNeeded: Before the first `reset`.
        """
        return np.concatenate([self.goal, self._simulation_state()])

    def set_state(self, state: ArrayLike) -> FloatArray:
        """Goes back to a state; the same actions then lead to the same observations, to the bit.

        Args:
            state: What `state` gave, in this or another instance of the same model and version
                of MuJoCo.

        Returns:
            The observation there.

        Raises:
            ValueError: If the state has another size or is not finite.
        """
        values = checked_vector("state", state, self._goal_size + len(self._initial_state))
        self._goal = values[: self._goal_size].copy()
        self._restore(values[self._goal_size :])
        return self._observation()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: Seeds the environment's generator; the same seed gives the same episode.
            options: None; there are none.

        Returns:
            The observation and the info.

        Raises:
            ValueError: If there are options.
        """
        super().reset(seed=seed)
        if options:
            raise ValueError(f"options: found {sorted(map(str, options))}, expected none.")
        self._restore(self._initial_state)
        while not self._place():
            self._restore(self._initial_state)
        self._goal = self._draw_goal()
        return self._observation(), {"is_success": False, "distance": self._distance(self._goal)}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Simulates one step.

        Args:
            action: Shape `(action_size,)`; clipped to ±1.

        Returns:
            The observation, the reward (1.0 at the goal, else 0.0), whether the goal was reached,
            False (truncation is the time limit's business) and the info.

        Raises:
            ValueError: If the action has another shape or is not finite.
            gymnasium.error.ResetNeeded: Before the first `reset`.
        """
        goal = self.goal
        size = self.action_space.shape[0]  # type: ignore[index]
        self._advance(np.clip(checked_vector("action", action, size), -1.0, 1.0))
        distance = self._distance(goal)
        success = distance < self.tolerance
        info = {"is_success": success, "distance": distance}
        return self._observation(), float(success), success, False, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Draws the scene; needs a graphics library that MuJoCo finds (see `MUJOCO_GL`).

        Returns:
            An RGB image of shape (480, 480, 3), uint8; None without a render mode.
        """
        if self.render_mode is None:
            gym.logger.warn(
                f"{type(self).__name__}.render() was called without a render mode; pass "
                'render_mode="rgb_array" when making the environment.'
            )
            return None
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self._model, height=480, width=480)
        camera = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(self._model, camera)
        for name, value in self.camera.items():
            setattr(camera, name, value)
        self._renderer.update_scene(self._data_to_draw(), camera)
        self._mark_goal(self._renderer.scene)
        image: NDArray[np.uint8] = self._renderer.render()
        return image

    def _data_to_draw(self) -> mujoco.MjData:
        """Gives what to draw; a copy where the drawing differs from the simulation."""
        return self._data

    def _mark_goal(self, scene: mujoco.MjvScene) -> None:
        """Adds the goal to a scene that is about to be rendered."""

    def close(self) -> None:
        """Frees what `render` uses; may be called repeatedly."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __getstate__(self) -> dict[str, Any]:
        """Gives what `copy` and `pickle` need.

        The model is loaded again on the other side: some versions of MuJoCo crash when they
        unpickle their own objects.
        """
        state = self.__dict__.copy()
        for name in ("_model", "_data", "_renderer"):
            del state[name]
        state["_simulation"] = self._simulation_state()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes up what `__getstate__` gave."""
        simulation = state.pop("_simulation")
        type(self).__init__(  # type: ignore[call-arg]
            self,
            noise_ratio=state["noise_ratio"],
            goal_noise_ratio=state["goal_noise_ratio"],
            render_mode=state["render_mode"],
        )
        self.__dict__.update(state)
        self._restore(simulation)

    def _observation(self) -> FloatArray:
        return self._observe(self.goal).astype(np.float32)

    def _simulation_state(self) -> Doubles:
        state = np.empty(mujoco.mj_stateSize(self._model, _STATE))
        mujoco.mj_getState(self._model, self._data, state, _STATE)
        return state

    def _restore(self, state: Doubles) -> None:
        # A state only holds what changes with time; the reset clears what was derived from it.
        mujoco.mj_resetData(self._model, self._data)
        mujoco.mj_setState(self._model, self._data, state, _STATE)
        warm_start = self._data.qacc_warmstart.copy()
        mujoco.mj_forward(self._model, self._data)
        self._data.qacc_warmstart[:] = warm_start


def checked_vector(name: str, value: ArrayLike, size: int) -> Doubles:
    """Gives finite numbers of shape `(size,)`, or raises a ValueError that names the argument."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: found {value!r}, expected {size} numbers.") from None
    if array.shape != (size,):
        raise ValueError(f"{name}: found shape {array.shape}, expected shape ({size},).")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: found {array.tolist()}, expected finite numbers.")
    return array


def add_marker(
    scene: mujoco.MjvScene, shape: mujoco.mjtGeom, size: list[float], position: list[float]
) -> None:
    """Adds a half transparent green body to a scene about to be rendered."""
    geom = scene.geoms[scene.ngeom]
    mujoco.mjv_initGeom(
        geom,
        shape,
        np.array(size),
        np.array(position),
        np.eye(3).ravel(),
        np.array([0.18, 0.62, 0.27, 0.5], dtype=np.float32),
    )
    scene.ngeom += 1
