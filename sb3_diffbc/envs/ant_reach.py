"""The AntReach task: an ant runs from the centre to a goal on a half circle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium.envs.mujoco
import mujoco
import numpy as np
from gymnasium import spaces

from sb3_diffbc.envs.goal_task import Doubles, GoalTask, add_marker

GOAL_DISTANCE = 5.0
GOAL_RADIUS = 0.5
POSITION_NOISE = 0.01
VELOCITY_NOISE = 0.005

ANT = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"
"""Gymnasium's model."""

_FRAME_SKIP = 5


class AntReachEnv(GoalTask):
    """Run with an ant to a goal 5 m away within 100 steps (5 s).

    The task of "Diffusion Model-Augmented Behavioral Cloning" (https://arxiv.org/abs/2302.13335)
    on Gymnasium's ant. The authors' release also gives 5 s, in 50 steps of 0.1 s on an ant that is
    simulated twice as coarsely.

    - **Observation**, shape (29,): height and orientation of the torso (1 + 4), angles of the 8
      joints, velocity and angular velocity of the torso (3 + 3), velocities of the joints (8), and
      the horizontal vector from the torso to the goal (2), in metres, radians and seconds.
    - **Action**, shape (8,): torques of the hips and ankles, as in Gymnasium's Ant. A step lasts
      0.05 s.
    - **Start**: the model's own crouched pose, with uniform noise of ±0.01 on the position of
      every degree of freedom and ±0.005 on its velocity.
    - **Goal**: on the circle of radius 5 around the origin, at a uniform angle of 0 to π; with a
      goal noise ratio r, at π/2 ± r · π/2.
    - **Success** within 0.5 m of the goal; ``distance`` is in metres.

    See ``GoalTask`` for the arguments, reward, end and info.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    camera: ClassVar[dict[str, Any]] = {
        "lookat": np.array([0.0, 2.3, 0.0]),
        "distance": 9.5,
        "azimuth": 90.0,
        "elevation": -35.0,
    }
    action_size = 8
    goal_size = 2
    tolerance = GOAL_RADIUS

    def _load(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (29,), np.float32)
        self._model = mujoco.MjModel.from_xml_path(str(ANT))
        self._data = mujoco.MjData(self._model)
        # The pose that the model's author stored for resets: crouched, feet on the ground.
        self._data.qpos[:] = self._model.numeric("init_qpos").data
        mujoco.mj_forward(self._model, self._data)

    def _place(self) -> bool:
        position = self.np_random.uniform(-POSITION_NOISE, POSITION_NOISE, self._model.nq)
        velocity = self.np_random.uniform(-VELOCITY_NOISE, VELOCITY_NOISE, self._model.nv)
        self._data.qpos[:] += self.noise_ratio * position
        self._data.qvel[:] += self.noise_ratio * velocity
        # Only older versions of MuJoCo do this by themselves.
        mujoco.mj_normalizeQuat(self._model, self._data.qpos)
        mujoco.mj_forward(self._model, self._data)
        return True

    def _draw_goal(self) -> Doubles:
        share = self.np_random.uniform(-1.0, 1.0)
        angle = np.pi / 2 * (1.0 + self.goal_noise_ratio * share)
        return GOAL_DISTANCE * np.array([np.cos(angle), np.sin(angle)])

    def _advance(self, action: Doubles) -> None:
        self._data.ctrl[:] = action
        mujoco.mj_step(self._model, self._data, nstep=_FRAME_SKIP)

    def _observe(self, goal: Doubles) -> Doubles:
        position, velocity = self._data.qpos, self._data.qvel
        return np.concatenate([position[2:], velocity, goal - position[:2]])

    def _distance(self, goal: Doubles) -> float:
        return float(np.linalg.norm(goal - self._data.qpos[:2]))

    def _mark_goal(self, scene: mujoco.MjvScene) -> None:
        add_marker(
            scene, mujoco.mjtGeom.mjGEOM_CYLINDER, [GOAL_RADIUS, 0.01, 0.0], [*self.goal, 0.01]
        )
