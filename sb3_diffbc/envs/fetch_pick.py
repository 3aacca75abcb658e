"""The FetchPick task: grasp a block on a table and lift it to a goal in the air."""

from __future__ import annotations

from typing import Any, ClassVar, TypeAlias

import mujoco
import numpy as np
from gymnasium import spaces

from sb3_diffbc.envs.goal_task import Doubles, GoalTask, add_marker, make_robotics

Spot: TypeAlias = tuple[float, float]

GOAL_RADIUS = 0.05
BLOCK_OFFSET = (0.0, 0.1)
GOAL_OFFSET = (0.0, -0.1)
GOAL_HEIGHT = 0.15
BLOCK_NOISE = ((-0.05, 0.0), (0.05, 0.04))
"""Lowest and highest (x, y) of the noise on the block's start, in metres."""
GOAL_NOISE = ((-0.05, -0.04), (0.05, 0.0))
"""The same of the goal: both noises lead away from the hand in y."""

_FRAME_SKIP = 20
_STEP_SECONDS = 0.04
_HAND_REACH = 0.05
_POINTING_DOWN = (1.0, 0.0, 1.0, 0.0)  # as upstream adds it to the hand's quaternion
_BLOCK_HALF_SIZE = 0.025
_BLOCK_COLOR = (0.85, 0.4, 0.1, 1.0)
_FINGERS = slice(13, 15)  # of qpos and qvel: the right and the left one
_BLOCK = slice(15, 17)  # of qpos: x and y


class FetchPickEnv(GoalTask):
    """Grasp a block with a Fetch robot and lift it to a goal within 50 steps (2 s).

    gymnasium-robotics' FetchPickAndPlace with the starts and goals, and the end at success, of
    "Diffusion Model-Augmented Behavioral Cloning" (https://arxiv.org/abs/2302.13335).

    - **Observation**, shape (28,): the 25 values of FetchPickAndPlace, then the goal (3). The
      values are the positions of the hand and of the block, and the way from the hand to the block
      (3 + 3 + 3); how far the right and left finger are open (2); the block's Euler angles (3); its
      velocity relative to the hand's, its angular velocity and the hand's velocity (3 + 3 + 3); the
      fingers' velocities (2). In metres and radians, velocities per step.
    - **Action**, shape (4,): where to move the hand, in units of 0.05 m (3); by how many metres to
      open both fingers, negative to close them (1). A finger's whole way is 0.05 m. A step lasts
      0.04 s.
    - **Start**: the block on the table, 0.1 m beside the hand (at larger y) and 0.11 m below it,
      with uniform noise of ±0.05 m along x and 0 to 0.04 m along y. The fingers are closed.
    - **Goal**: 0.1 m to the other side of the hand and 0.15 m above the block's start, with uniform
      noise of ±0.05 m along x and -0.04 to 0 m along y. Both noises thus lead away from the hand,
      but never beyond the edge of the table.
    - **Success** when the block's centre is within 0.05 m of the goal; ``distance`` is in metres.

    See ``GoalTask`` for the arguments, reward, end and info.
    """

    camera: ClassVar[dict[str, Any]] = {
        "lookat": np.array([1.28, 0.75, 0.52]),
        "distance": 1.1,
        "azimuth": 160.0,
        "elevation": -30.0,
    }
    action_size = 4
    goal_size = 3
    tolerance = GOAL_RADIUS

    def _load(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (28,), np.float32)
        upstream = make_robotics("fetch.pick_and_place", "MujocoFetchPickAndPlaceEnv")
        self._model, self._data = upstream.model, upstream.data
        self._hand_start = upstream.initial_gripper_xpos.copy()
        self._block_height = float(upstream.height_offset)
        self._hand = self._model.body("robot0:gripper_link").id
        self._hand_site = self._model.site("robot0:grip").id
        self._block_site = self._model.site("object0").id
        table = self._model.body("table0")
        self._table_centre = table.pos[:2].copy()
        self._table_half_size = self._model.geom_size[table.geomadr[0], :2].copy()
        # Upstream's visual aids, a cross at the hand and a stray goal, would be drawn as well.
        aids = self._model.geom_bodyid == self._model.body("robot0:mocap").id
        self._model.geom_rgba[aids, 3] = 0.0
        self._model.site("target0").rgba[3] = 0.0
        self._model.geom("object0").rgba[:] = _BLOCK_COLOR
        self._simulate(1)

    def _place(self) -> bool:
        self._data.qpos[_BLOCK] = self._draw_spot(BLOCK_OFFSET, BLOCK_NOISE, self.noise_ratio)
        self._simulate(1)
        return True

    def _draw_goal(self) -> Doubles:
        spot = self._draw_spot(GOAL_OFFSET, GOAL_NOISE, self.goal_noise_ratio)
        return np.append(spot, self._block_height + GOAL_HEIGHT)

    def _draw_spot(self, offset: Spot, noise_range: tuple[Spot, Spot], ratio: float) -> Doubles:
        """Draws where a block could lie, shape (2,)."""
        noise = ratio * self.np_random.uniform(*noise_range)
        reach = self._table_half_size - _BLOCK_HALF_SIZE
        spot = self._hand_start[:2] + offset + noise
        return np.clip(spot, self._table_centre - reach, self._table_centre + reach)

    def _advance(self, action: Doubles) -> None:
        # The hand is welded to a mocap body, which leads it; orders are relative to where it is.
        self._data.mocap_pos[0] = self._data.xpos[self._hand] + _HAND_REACH * action[:3]
        self._data.mocap_quat[0] = self._data.xquat[self._hand] + _POINTING_DOWN
        self._data.ctrl[:] = self._data.qpos[_FINGERS][::-1] + action[3]
        self._simulate(_FRAME_SKIP)

    def _simulate(self, steps: int) -> None:
        # MuJoCo computes positions at the beginning of a step, so that what upstream observes and
        # acts on is one step behind the joints. A state that is to bring it back, to the bit, has
        # to be that before the last step.
        mujoco.mj_step(self._model, self._data, nstep=steps - 1)
        self._state_before_last_step = super()._simulation_state()
        mujoco.mj_step(self._model, self._data)

    def _simulation_state(self) -> Doubles:
        return self._state_before_last_step

    def _restore(self, state: Doubles) -> None:
        super()._restore(state)
        self._simulate(1)

    def _observe(self, goal: Doubles) -> Doubles:
        hand = self._data.site_xpos[self._hand_site]
        block = self._data.site_xpos[self._block_site]
        hand_velocity, _ = self._velocities(self._hand_site)
        block_velocity, block_turning = self._velocities(self._block_site)
        return np.concatenate(
            [
                hand,
                block,
                block - hand,
                self._data.qpos[_FINGERS],
                _euler_angles(self._data.site_xmat[self._block_site].reshape(3, 3)),
                block_velocity - hand_velocity,
                block_turning,
                hand_velocity,
                _STEP_SECONDS * self._data.qvel[_FINGERS],
                goal,
            ]
        )

    def _velocities(self, site: int) -> tuple[Doubles, Doubles]:
        """Returns how a site moves and turns per step, shapes (3,) and (3,)."""
        jacobian = np.empty((2, 3, self._model.nv))
        mujoco.mj_jacSite(self._model, self._data, jacobian[0], jacobian[1], site)
        velocity, turning = _STEP_SECONDS * (jacobian @ self._data.qvel)
        return velocity, turning

    def _distance(self, goal: Doubles) -> float:
        return float(np.linalg.norm(goal - self._data.site_xpos[self._block_site]))

    def _mark_goal(self, scene: mujoco.MjvScene) -> None:
        add_marker(scene, mujoco.mjtGeom.mjGEOM_SPHERE, [GOAL_RADIUS] * 3, [*self.goal])


def _euler_angles(rotation: Doubles) -> Doubles:
    """Returns the angles of successive turns about the body's x, y and z, shape (3,)."""
    cosine = np.hypot(rotation[1, 2], rotation[2, 2])
    about_y = np.arctan2(rotation[0, 2], cosine)
    if cosine > 4 * np.finfo(np.float64).eps:
        about_x = np.arctan2(-rotation[1, 2], rotation[2, 2])
        about_z = np.arctan2(-rotation[0, 1], rotation[0, 0])
    else:
        # Looking along x after a quarter turn, the first and the last turn are the same one.
        about_x, about_z = 0.0, np.arctan2(rotation[1, 0], rotation[1, 1])
    return np.array([about_x, about_y, about_z])
