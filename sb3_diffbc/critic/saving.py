"""Saving and restoring a critic."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch as th
from pydantic import JsonValue
from torch import nn
from typing_extensions import Self

from sb3_diffbc import checkpoints
from sb3_diffbc.critic.encoder import resolve_device, space_name
from sb3_diffbc.critic.fitting import CriticHistory
from sb3_diffbc.critic.score import Calibration
from sb3_diffbc.schema import Model, NonNegativeInt


class CriticContent(Model):
    """What a checkpoint says of a critic beside its weights."""

    observation_space: checkpoints.SpaceRecord
    action_space: checkpoints.SpaceRecord
    config: dict[str, JsonValue]
    is_fitted: bool
    fit_seed: NonNegativeInt
    history: CriticHistory | None


class SavedCritic(nn.Module):
    """The part of :class:`DiffusionCritic` that saves a critic and restores it.

    Attributes:
        saved_settings: names of the constructor's arguments that a checkpoint holds.
        config: these arguments.
    """

    saved_settings: ClassVar[frozenset[str]]
    observation_space: gym.Space
    action_space: gym.Space
    config: dict[str, Any]
    is_fitted: bool
    history: CriticHistory | None
    calibration: Calibration
    _fit_seed: int

    def __repr__(self) -> str:
        state = "fitted" if self.is_fitted else "not fitted"
        pair = f"{space_name(self.observation_space)}, {space_name(self.action_space)}"
        settings = (f"{name}={self.config[name]!r}" for name in ("models", "width", "depth"))
        return f"{type(self).__name__}({pair}, {', '.join(settings)}, {state})"

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise ValueError("critic is not fitted: call critic.fit(demonstrations) first.")

    def to_content(self) -> CriticContent:
        """Returns what a checkpoint says of a critic beside its weights."""
        return CriticContent(
            observation_space=checkpoints.SpaceRecord.of(self.observation_space),
            action_space=checkpoints.SpaceRecord.of(self.action_space),
            config=self.config,
            is_fitted=self.is_fitted,
            fit_seed=self._fit_seed,
            history=self.history,
        )

    @classmethod
    def from_content(
        cls,
        content: CriticContent,
        tensors: Mapping[str, th.Tensor],
        prefix: str = "",
        device: th.device | str = "auto",
    ) -> Self:
        """Builds a critic from a checkpoint's content and the tensors whose names have a prefix."""
        settings: dict[str, Any] = dict(content.config)
        spaces = content.observation_space.build(), content.action_space.build()
        critic = checkpoints.build_module(
            lambda: cls(*spaces, device=device, **settings), tensors, prefix
        )
        critic.is_fitted = content.is_fitted
        critic.history = content.history
        critic._fit_seed = content.fit_seed
        return critic

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the critic to one safetensors file, atomically.

        Args:
            path: where to; ``.safetensors`` is appended if there is no suffix.

        Returns:
            The path written.

        Raises:
            ValueError: if the critic is not fitted, or a weight is NaN or infinite.
            OSError: if the file cannot be written.
        """
        self._check_fitted()
        return checkpoints.save_checkpoint(
            path,
            kind="critic",
            tensors=checkpoints.module_state(self, ""),
            content=self.to_content(),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: th.device | str = "auto") -> Self:
        """Reads what :meth:`save` wrote. Nothing in the file is executed or imported.

        Args:
            path: the file.
            device: where to put the critic.

        Returns:
            The critic.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: a ``ValueError``, if it is not a critic's checkpoint.
            ValueError: if there is no such device.
        """
        device = resolve_device(device)
        tensors, content = checkpoints.load_checkpoint(path, kind="critic", content=CriticContent)
        with checkpoints.reading_content(path, "critic"):
            return cls.from_content(content, tensors, device=device)
