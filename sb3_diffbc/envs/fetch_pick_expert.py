"""A scripted expert for the FetchPick task."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from imitation.policies.base import NonTrainablePolicy
from numpy.typing import NDArray

from sb3_diffbc.envs.checks import checked_box

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


class FetchPickExpert(NonTrainablePolicy):
    """Goes above the block, down to it, grasps it and carries it straight to the goal.

    The hand moves towards a target with a speed that is proportional to the distance when near and
    constant when far. The target is the block while the fingers do not hold it, raised as long as
    the hand is not above it, and such that the block comes to the goal while they do. All of this
    fades over instead of switching, and is a function of the observation alone: a block that slips
    or falls is fetched again, and the expert can label any state, as DAgger asks for.

    It is a Stable-Baselines3 policy: use it with `evaluate_policy`, imitation's `rollout` or as the
    `expert_policy` of `SimpleDAggerTrainer`. It does not need gymnasium-robotics.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        speed: float = 0.6,
        gain: float = 30.0,
    ) -> None:
        """Takes the numbers of the controller.

        Args:
            observation_space: The FetchPick task's space, which is the default.
            action_space: The FetchPick task's space, which is the default.
            speed: Length of the hand's action far from its target, in (0, 1].
            gain: Length of the hand's action near its target, per metre and relative to `speed`.

        Raises:
            ValueError: If a space has another shape than the FetchPick task's or a number is out
                of range.
        """
        task_observations = spaces.Box(-np.inf, np.inf, shape=(28,), dtype=np.float32)
        task_actions = spaces.Box(-1.0, 1.0, shape=(4,), dtype=np.float32)
        observation_space = checked_box(
            "observation_space", observation_space, task_observations, "FetchPick"
        )
        action_space = checked_box("action_space", action_space, task_actions, "FetchPick")
        if not 0 < speed <= 1:
            raise ValueError(f"speed: found {speed}, expected a number in (0, 1].")
        if not (math.isfinite(gain) and gain > 0):
            raise ValueError(f"gain: found {gain}, expected a positive number.")
        super().__init__(observation_space, action_space)
        self.speed = speed
        self.gain = gain

    def _choose_action(  # type: ignore[override]
        self, obs: NDArray[np.floating]
    ) -> NDArray[np.float32]:
        """Gives the expert's action for one observation.

        Args:
            obs: One observation, shape (28,).

        Returns:
            The action, shape (4,), float32, within ±1.
        """
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
        pull = self.gain * ((1.0 - held) * approach + held * (goal - block))
        hand = self.speed * pull / math.sqrt(1.0 + pull @ pull)
        return np.append(hand, 1.0 - 2.0 * within).astype(np.float32)


def _fade(value: float, start: float, end: float) -> float:
    """Rises smoothly from 0 at `start` to 1 at `end`."""
    share = min(max((value - start) / (end - start), 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)
