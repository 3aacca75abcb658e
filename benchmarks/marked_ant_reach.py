"""AntReach that observes the body which marks its goal, as the authors' release does."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import mujoco
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from sb3_diffbc.envs.ant_reach import ANT, VELOCITY_NOISE, AntReachEnv
from sb3_diffbc.envs.goal_task import Doubles
from sb3_diffbc.tasks import TASKS

_MARKER_POSE = (0.15, 1.0, 1.0, 0.0, 0.0)
"""Height and orientation at the start: the pole is upright, and the base is in the floor."""
_MARKER_GEOMS = (
    {"type": "box", "size": "0.5 0.5 0.5"},
    {"type": "cylinder", "size": "0.08", "fromto": "0 -0.3 0 0 1.3 0"},
    {"type": "box", "size": "0.4 0.25 0.05", "pos": "0.4 0.95 0"},
)
"""Base, pole and flag, of 0.2 kg each."""
_TOUCHES_FLOOR_ONLY = {"contype": "1", "conaffinity": "2", "mass": "0.2"}


class MarkedAntReachEnv(AntReachEnv):
    """AntReach whose observation ends with pose and velocity of the goal's marker, shape (42,).

    In the release (``ant.xml`` and ``AntGoalEnv``) the marker is a free body that starts half a
    box deep in the floor, from which it jumps. The start's noise is on its pose, too. Without
    noise it flies the same way in each episode; with it, it turns. It never touches the ant.
    Velocities have their noise at every ratio, as there.
    """

    def _load(self) -> None:
        xml = ElementTree.parse(ANT).getroot()
        world = xml.find("worldbody")
        assert world is not None
        marker = ElementTree.SubElement(world, "body")
        ElementTree.SubElement(marker, "freejoint")
        for geom in _MARKER_GEOMS:
            ElementTree.SubElement(marker, "geom", geom | _TOUCHES_FLOOR_ONLY)
        text = ElementTree.tostring(xml, encoding="unicode")
        self._model = mujoco.MjModel.from_xml_string(text)
        self._data = mujoco.MjData(self._model)
        self._data.qpos[:-7] = self._model.numeric("init_qpos").data
        self._data.qpos[-5:] = _MARKER_POSE
        mujoco.mj_forward(self._model, self._data)
        self.observation_space = spaces.Box(-np.inf, np.inf, (42,), np.float32)

    def _place(self) -> bool:
        super()._place()
        self._data.qvel[:] = self.np_random.uniform(-1, 1, self._model.nv) * VELOCITY_NOISE
        return True

    def _draw_goal(self) -> Doubles:
        goal = super()._draw_goal()
        self._data.qpos[-7:-5] = goal
        mujoco.mj_forward(self._model, self._data)
        return goal

    def _observe(self, goal: Doubles) -> Doubles:
        position, velocity = self._data.qpos, self._data.qvel
        own = position[2:-7], velocity[:-6], goal - position[:2]
        return np.concatenate([*own, position[-7:], velocity[-6:]])


def marked_spec(noise_ratio: float) -> EnvSpec:
    """Returns the spec of the environment with so much noise at the start."""
    kwargs: dict[str, Any] = {"noise_ratio": noise_ratio, "goal_noise_ratio": 1.0}
    return EnvSpec(
        "benchmarks/MarkedAntReach-v0",
        entry_point=f"{__name__}:{MarkedAntReachEnv.__name__}",
        max_episode_steps=TASKS["ant_reach"].horizon,
        kwargs=kwargs,
    )
