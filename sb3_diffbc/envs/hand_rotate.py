"""The HandRotate task: turn a block in the palm of a dexterous hand."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import mujoco
import numpy as np
from gymnasium import spaces

from sb3_diffbc.envs.goal_task import Doubles, GoalTask, make_robotics

ROTATION_TOLERANCE = 0.1
POSITION_NOISE = 0.005
START_ANGLE = math.pi / 6
GOAL_ANGLE = math.pi / 2
GOAL_ANGLE_RANGE = math.pi / 6

_SETTLING_STEPS = 10
_PALM_HEIGHT = 0.04
_BLOCK = slice(24, 31)  # of qpos: position and quaternion, after the hand's 24 joints
_BLOCK_VELOCITY = slice(24, 30)  # of qvel
_GOAL_BLOCK = slice(31, 38)  # of qpos: shows the goal beside the hand
_GOAL_OFFSET = np.array([0.13, 0.0, 0.02])


class HandRotateEnv(GoalTask):
    """Turn a block lying in the palm of a Shadow hand to a given angle within 50 steps (2 s).

    gymnasium-robotics' HandManipulateBlockRotateZ with the starts and goals, and the end at
    success, of "Diffusion Model-Augmented Behavioral Cloning"
    (https://arxiv.org/abs/2302.13335).

    - **Observation**, shape (68,): angles and velocities of the hand's joints (24 + 24), velocity
      and angular velocity of the block (3 + 3), its position and quaternion (3 + 4), and the goal's
      (3 + 4; its position is that of the block at the start and does not enter the distance). In
      metres, radians and seconds.
    - **Action**, shape (20,): target angles of the joints, relative to their control range. A step
      lasts 0.04 s.
    - **Start**: the block turned about the vertical by an angle in ±π/6, its position with normal
      noise of 0.005 m; it then settles for 10 steps. A start noise ratio scales both.
    - **Goal**: turned by an angle in π/2 ± π/6, the half-range scaled by the goal noise ratio. With
      both ratios at 6, start and goal are those of upstream's task.
    - **Success** when the block's rotation, tilt included, is within 0.1 rad of the goal's;
      ``distance`` is in radians.

    See ``GoalTask`` for the arguments, reward, end and info.
    """

    camera: ClassVar[dict[str, Any]] = {
        "lookat": np.array([1.04, 0.9, 0.17]),
        "distance": 0.42,
        "azimuth": 55.0,
        "elevation": -35.0,
    }
    action_size = 20
    goal_size = 7
    tolerance = ROTATION_TOLERANCE

    def _load(self) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (68,), np.float32)
        upstream = make_robotics(
            "shadow_dexterous_hand.manipulate_block",
            "MujocoHandBlockEnv",
            target_position="ignore",
            target_rotation="z",
        )
        self._model, self._data = upstream.model, upstream.data
        low, high = self._model.actuator_ctrlrange.T
        self._control_centre, self._control_reach = (high + low) / 2, (high - low) / 2
        self._block_site = self._model.site("object:center").id

    def _place(self) -> bool:
        angle = self.np_random.uniform(-START_ANGLE, START_ANGLE) * self.noise_ratio
        offset = self.np_random.normal(size=3) * (POSITION_NOISE * self.noise_ratio)
        block = self._data.qpos[_BLOCK]
        block[:3] += offset
        mujoco.mju_mulQuat(block[3:], block[3:].copy(), _turn(angle))
        for _ in range(_SETTLING_STEPS):
            self._advance(np.zeros(self._model.nu))
        mujoco.mj_forward(self._model, self._data)
        return bool(self._data.site_xpos[self._block_site, 2] > _PALM_HEIGHT)

    def _draw_goal(self) -> Doubles:
        share = self.np_random.uniform(-1.0, 1.0)
        angle = GOAL_ANGLE + GOAL_ANGLE_RANGE * self.goal_noise_ratio * share
        return np.concatenate([self._data.qpos[_BLOCK][:3], _turn(angle)])

    def _advance(self, action: Doubles) -> None:
        self._data.ctrl[:] = self._control_centre + self._control_reach * action
        mujoco.mj_step(self._model, self._data, nstep=20)

    def _observe(self, goal: Doubles) -> Doubles:
        position, velocity = self._data.qpos, self._data.qvel
        return np.concatenate(
            [position[:24], velocity[:24], velocity[_BLOCK_VELOCITY], position[_BLOCK], goal]
        )

    def _distance(self, goal: Doubles) -> float:
        # Upstream's measure; the absolute value makes both quaternions of a rotation the same.
        cosine = abs(float(self._data.qpos[_BLOCK][3:] @ goal[3:]))
        return 2.0 * math.acos(min(cosine, 1.0))

    def _data_to_draw(self) -> mujoco.MjData:
        # The model has a second block for the goal, which would fall if it were simulated here.
        drawn = mujoco.MjData(self._model)
        drawn.qpos[:] = self._data.qpos
        drawn.qpos[_GOAL_BLOCK] = self.goal
        drawn.qpos[_GOAL_BLOCK][:3] += _GOAL_OFFSET
        mujoco.mj_forward(self._model, drawn)
        return drawn


def _turn(angle: float) -> Doubles:
    """Returns the quaternion of a rotation about the vertical."""
    return np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])
