"""What the tasks with a goal share: episodes, exact states, rendering, checks."""

from __future__ import annotations

import abc
import contextlib
import copy
import functools
import importlib
import types
from collections.abc import Iterator
from typing import Any, ClassVar, Literal, TypeAlias

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from numpy.typing import ArrayLike, NDArray

from sb3_diffbc.schema import NonNegativeFloat, checked_arguments

FloatArray: TypeAlias = NDArray[np.float32]
Doubles: TypeAlias = NDArray[np.float64]

# Everything that a step depends on, the solver's warm start included.
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class GoalTask(gym.Env[FloatArray, FloatArray], EzPickle, abc.ABC):
    """A MuJoCo task that ends in the step that reaches the goal.

    - **Observation**, ``Box``, float32: flat, with the goal or the way to it at the end.
    - **Action**, ``Box(-1, 1)``, float32; clipped to the box.
    - **Reward** is sparse: 1.0 in the step that reaches the goal, 0.0 in every other step.
    - **Episode end**: ``terminated`` at the goal. The time limit is that of ``gymnasium.make``;
      the bare class has none.
    - **Info**: ``is_success`` (bool) and ``distance`` to the goal (float, in the task's unit), from
      ``reset`` and from every step.

    Each reset restores the whole state of the simulation before it draws a start and a goal, so
    that an episode depends on its seed and actions alone, to the bit. A copy or pickle is made
    from the constructor's arguments, as those of Gymnasium's MuJoCo environments; ``state`` and
    ``set_state`` carry an episode from one instance to another.

    A subclass loads a model, and defines start, goal, action, observation and distance.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    action_size: ClassVar[int]
    goal_size: ClassVar[int]
    tolerance: ClassVar[float]
    """The distance below which the goal counts as reached."""
    camera: ClassVar[dict[str, Any]] = {}
    """Attributes of MuJoCo's free camera (``mujoco.MjvCamera``) that differ from its defaults."""

    _model: mujoco.MjModel
    _data: mujoco.MjData

    def __init__(
        self,
        noise_ratio: NonNegativeFloat = 1.0,
        goal_noise_ratio: NonNegativeFloat = 1.0,
        render_mode: Literal["rgb_array"] | None = None,
    ) -> None:
        """Loads the model and sets up the spaces.

        Args:
            noise_ratio: scales the noise of the start; 0 leaves none.
            goal_noise_ratio: scales the noise of the goal; 0 leaves none.
            render_mode: None, or ``"rgb_array"``.

        Raises:
            TypeError: if a ratio is not a number.
            ValueError: if a ratio is negative or not finite, or ``render_mode`` is not known.
            gymnasium.error.DependencyNotInstalled: if the task needs gymnasium-robotics, and that
                is missing or does not work with the installed MuJoCo.
        """
        arguments = checked_arguments(GoalTask.__init__, locals())
        EzPickle.__init__(self, **arguments)
        self.noise_ratio: float = arguments["noise_ratio"]
        self.goal_noise_ratio: float = arguments["goal_noise_ratio"]
        self.render_mode: str | None = arguments["render_mode"]
        self._renderer: Any = None
        self._goal: Doubles | None = None
        self._load()
        self._initial_state = self._simulation_state()
        self.action_space = spaces.Box(-1.0, 1.0, shape=(self.action_size,), dtype=np.float32)

    @abc.abstractmethod
    def _load(self) -> None:
        """Sets ``observation_space``, ``_model``, and ``_data`` as every reset begins with it."""

    @abc.abstractmethod
    def _place(self) -> bool:
        """Draws a start with ``self.np_random``; returns False if it has to be drawn again."""

    @abc.abstractmethod
    def _draw_goal(self) -> Doubles:
        """Draws a goal with ``self.np_random``, shape ``(goal_size,)``."""

    @abc.abstractmethod
    def _advance(self, action: Doubles) -> None:
        """Applies an action within ±1 and simulates one step."""

    @abc.abstractmethod
    def _observe(self, goal: Doubles) -> Doubles:
        """Returns the observation of the current state of the simulation."""

    @abc.abstractmethod
    def _distance(self, goal: Doubles) -> float:
        """Returns the distance to the goal."""

    @property
    def goal(self) -> Doubles:
        """The goal, shape ``(goal_size,)``.

        Raises:
            gymnasium.error.ResetNeeded: before the first ``reset``.
        """
        if self._goal is None:
            raise gym.error.ResetNeeded(f"{type(self).__name__}: call reset() first.")
        return self._goal

    @property
    def state(self) -> Doubles:
        """All that the next steps depend on: the goal, then MuJoCo's integration state.

        Raises:
            gymnasium.error.ResetNeeded: before the first ``reset``.
        """
        return np.concatenate([self.goal, self._simulation_state()])

    def set_state(self, state: ArrayLike) -> FloatArray:
        """Returns to a state; the same actions then lead to the same observations, to the bit.

        Args:
            state: a value of ``state``, from this or another instance with the same model and
                version of MuJoCo.

        Returns:
            The observation there.

        Raises:
            ValueError: if the state has another size or is not finite.
        """
        values = checked_vector("state", state, self.goal_size + len(self._initial_state))
        self._goal = values[: self.goal_size].copy()
        self._restore(values[self.goal_size :])
        return self._observation()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: seeds the environment's generator; the same seed gives the same episode.
            options: None; there are none.

        Returns:
            The observation and the info.

        Raises:
            ValueError: if there are options.
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
            action: shape ``(action_size,)``; clipped to ±1.

        Returns:
            The observation, the reward (1.0 at the goal, else 0.0), whether the goal was reached,
            False (the time limit is that of ``gymnasium.make``) and the info.

        Raises:
            ValueError: if the action has another shape or is not finite.
            gymnasium.error.ResetNeeded: before the first ``reset``.
        """
        goal = self.goal
        self._advance(checked_vector("action", action, self.action_size).clip(-1.0, 1.0))
        distance = self._distance(goal)
        success = distance < self.tolerance
        info = {"is_success": success, "distance": distance}
        return self._observation(), float(success), success, False, info

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """Draws the scene; needs a graphics library that MuJoCo finds (see ``MUJOCO_GL``).

        Returns:
            An RGB image of shape (480, 480, 3), uint8; None without a render mode.
        """
        if self.render_mode is None:
            gym.logger.warn(
                f"{type(self).__name__}.render() was called without a render mode; pass "
                'render_mode="rgb_array" when making the environment.'
            )
            return None
        return self._draw()

    def _draw(self) -> NDArray[np.uint8]:
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
        """Returns what to draw: a copy where the drawing differs from the simulation."""
        return self._data

    def _mark_goal(self, scene: mujoco.MjvScene) -> None:
        """Adds the goal to a scene that is about to be rendered."""

    def close(self) -> None:
        """Frees what ``render`` uses; may be called repeatedly."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

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
    """Returns finite numbers of shape ``(size,)``, or raises a ValueError that names them."""
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
    """Adds a half transparent green body to a scene that is about to be rendered."""
    geom = scene.geoms[scene.ngeom]
    color = np.array([0.18, 0.62, 0.27, 0.5], dtype=np.float32)
    mujoco.mjv_initGeom(geom, shape, np.array(size), np.array(position), np.eye(3).ravel(), color)
    scene.ngeom += 1


@functools.cache
def _compiled_model(path: str) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(path)


class _MujocoForRobotics:
    """The ``mujoco`` module as gymnasium-robotics needs it.

    It gets a cache of compiled models: MuJoCo before 3.2 never closes the mesh files that it reads,
    so that 25 copies of FetchPick would leave 475 open files behind, and a copy of a compiled model
    takes a twentieth of the time. And it gets joint types as integers: gymnasium-robotics up to
    1.4.2 compares them with NumPy's, which MuJoCo's enums allow only before 3.12 (repaired in
    https://github.com/Farama-Foundation/Gymnasium-Robotics/pull/330, not released so far).
    """

    class MjModel:
        @staticmethod
        def from_xml_path(path: str) -> mujoco.MjModel:
            return copy.copy(_compiled_model(path))

    mjtJoint = types.SimpleNamespace(  # noqa: N815
        **{name: int(kind) for name, kind in mujoco.mjtJoint.__members__.items()}
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(mujoco, name)


@contextlib.contextmanager
def robotics_with_this_mujoco() -> Iterator[None]:
    """Lets gymnasium-robotics' environments be made and stepped with the installed MuJoCo."""
    names = ("envs.robot_env", "utils.mujoco_utils")
    modules: list[Any] = [importlib.import_module(f"gymnasium_robotics.{name}") for name in names]
    originals = [module.mujoco for module in modules]
    for module in modules:
        module.mujoco = _MujocoForRobotics()
    try:
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.mujoco = original


def make_robotics(module: str, name: str, **kwargs: Any) -> Any:
    """Makes an environment of gymnasium-robotics.

    Args:
        module: path of its module below ``gymnasium_robotics.envs``.
        name: name of its class.
        **kwargs: arguments of the class.

    Returns:
        The environment.

    Raises:
        gymnasium.error.DependencyNotInstalled: if the package is missing, or does not work with
            the installed MuJoCo.
    """
    # The arguments are the same every time, so that any error comes from the installed versions.
    try:
        with robotics_with_this_mujoco():
            env_class = getattr(importlib.import_module(f"gymnasium_robotics.envs.{module}"), name)
            return env_class(**kwargs)
    except Exception as error:
        raise gym.error.DependencyNotInstalled(
            "This task needs gymnasium-robotics, and one that works with the installed MuJoCo "
            f"{mujoco.__version__}; found {error!r}. With Gymnasium 0.29, pip install "
            "gymnasium-robotics==1.2.3; with Gymnasium 1.x, pip install gymnasium-robotics==1.4.2."
        ) from error
