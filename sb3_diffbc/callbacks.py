"""SB3's callbacks with DiffusionBC, and checkpoints while it trains."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
from stable_baselines3.common import vec_env
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    EventCallback,
)

from sb3_diffbc.checkpoints.file import SUFFIX
from sb3_diffbc.envs import make_env
from sb3_diffbc.schema import PositiveFloat, PositiveInt, checked_arguments

AnyCallback = (
    BaseCallback | list[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool] | None
)
"""What ``learn(callback=...)`` of SB3 takes."""


class TrainingCheckpoints(BaseCallback):
    """Saves the trainer every now and then, also in the middle of the critic's fit.

    Each file is a whole trainer's checkpoint, written atomically; older ones are removed once
    it is complete. A run that was killed goes on from the newest::

        newest = TrainingCheckpoints.newest("run")
        if newest is None:
            trainer = DiffusionBC(demonstrations=demonstrations, env=env)
        else:
            trainer = DiffusionBC.load(newest, demonstrations=demonstrations, env=env)
        trainer.train(callback=TrainingCheckpoints("run", every_minutes=10))

    The default recipe goes on where it was; with ``n_batches``, ask for those that remain
    (``trainer.num_timesteps`` are done).

    Args:
        folder: where to; made if it is missing.
        every_updates: updates of the policy, or steps of the critic's fit, between two files.
        every_minutes: minutes between two files.
        keep: how many of the newest files are kept.
        verbose: 1 prints the paths.

    Raises:
        ValueError: if an argument is outside its range, or neither interval is given.
        TypeError: if an argument is of another type.
    """

    _PREFIX = "trainer_"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        every_updates: PositiveInt | None = None,
        every_minutes: PositiveFloat | None = None,
        keep: PositiveInt = 3,
        verbose: int = 0,
    ) -> None:
        checked_arguments(TrainingCheckpoints.__init__, locals())
        if every_updates is None and every_minutes is None:
            raise ValueError("TrainingCheckpoints needs every_updates or every_minutes.")
        super().__init__(verbose)
        self.folder = pathlib.Path(folder)
        self.every_updates = every_updates
        self.every_minutes = every_minutes
        self.keep = keep
        self._critic_steps = 0

    @classmethod
    def newest(cls, folder: str | os.PathLike[str]) -> pathlib.Path | None:
        """Returns the newest checkpoint in a folder, None if there is none."""
        return next(iter(cls._newest_first(pathlib.Path(folder))), None)

    @classmethod
    def _newest_first(cls, folder: pathlib.Path) -> list[pathlib.Path]:
        found = folder.glob(f"{cls._PREFIX}*{SUFFIX}")
        # By name where files are equally old: numbers in it have a fixed width.
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)

    def _on_training_start(self) -> None:
        self._last_time = time.monotonic()
        self._critic_steps = 0

    def _on_step(self) -> bool:
        self._save_if_due(self.n_calls, "")
        return True

    def on_critic_step(self, step: int) -> None:
        """Called by :meth:`DiffusionBC.train` after each step of the critic's fit."""
        self.num_timesteps = self.model.num_timesteps
        self._critic_steps += 1
        self._save_if_due(self._critic_steps, f"_critic_{step:06d}")

    def _save_if_due(self, n: int, suffix: str) -> None:
        is_due = self.every_updates is not None and n % self.every_updates == 0
        if not is_due and self.every_minutes is not None:
            is_due = time.monotonic() - self._last_time >= 60 * self.every_minutes
        if not is_due:
            return
        path = self.folder / f"{self._PREFIX}{self.num_timesteps:09d}{suffix}{SUFFIX}"
        self.model.save(path)
        self._last_time = time.monotonic()
        if self.verbose:
            print(f"Saved {path}")
        # The new one is kept whatever the clock says.
        others = [each for each in self._newest_first(self.folder) if each != path]
        for old in others[self.keep - 1 :]:
            old.unlink(missing_ok=True)


class StopTraining(Exception):  # noqa: N818  (nothing went wrong)
    """Leaves imitation's loop.

    Args:
        is_complete: whether the training is at its end, and not to be continued.
    """

    def __init__(self, is_complete: bool) -> None:
        super().__init__()
        self.is_complete = is_complete


def as_callback(callback: AnyCallback) -> BaseCallback | None:
    """Turns what SB3's ``learn`` takes into a callback, as it does."""
    if callback is None or isinstance(callback, BaseCallback):
        return callback
    if isinstance(callback, list):
        return CallbackList(callback)
    if not callable(callback):
        raise TypeError(
            f"callback is a {type(callback).__name__}: expected a BaseCallback, a list of them, "
            "or a function of locals and globals."
        )
    return ConvertCallback(callback)


def checkpoint_callbacks(callback: BaseCallback | None) -> Iterator[TrainingCheckpoints]:
    """Yields the callbacks that are called during the critic's fit, inside of lists too."""
    if isinstance(callback, TrainingCheckpoints):
        yield callback
    elif isinstance(callback, CallbackList):
        for each in callback.callbacks:
            yield from checkpoint_callbacks(each)
    elif isinstance(callback, EventCallback):
        yield from checkpoint_callbacks(callback.callback)


class CallbackModel:
    """What SB3's callbacks ask of their ``model``, beside ``save``, ``predict``, ``logger``."""

    env: str | gym.Env | vec_env.VecEnv | None
    logger: Any
    num_timesteps: int
    _made_env: tuple[str, vec_env.VecEnv] | None = None

    def get_env(self) -> vec_env.VecEnv | None:
        """Returns the trainer's environment as a ``VecEnv``; None if it has none."""
        if self.env is None or isinstance(self.env, vec_env.VecEnv):
            return self.env
        if not isinstance(self.env, str):
            env = self.env
            return vec_env.DummyVecEnv([lambda: env])
        if self._made_env is None or self._made_env[0] != self.env:
            name = self.env
            self._made_env = (name, vec_env.DummyVecEnv([lambda: make_env(name)]))
        return self._made_env[1]

    def get_vec_normalize_env(self) -> vec_env.VecNormalize | None:
        """Returns the ``VecNormalize`` around the trainer's environment, None without one."""
        env = self.get_env()
        return None if env is None else vec_env.unwrap_vec_normalize(env)

    def dump_logs(self) -> None:
        """Writes what was recorded to the logs."""
        self.logger.dump(self.num_timesteps)
