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
from sb3_diffbc.critic.fitting import CriticHistory
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
    _fit_seed: int

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
        if not settings.keys() <= cls.saved_settings:
            unknown = sorted(settings.keys() - cls.saved_settings)
            raise checkpoints.CheckpointError(f"critic config: found the unknown {unknown}")
        with th.random.fork_rng(devices=[]):  # the first weights are overwritten
            spaces = (content.observation_space.build(), content.action_space.build())
            critic = cls(*spaces, device=device, **settings)
        checkpoints.load_module_state(critic, tensors, prefix)
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
            ValueError: if the critic is not fitted.
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
        """
        tensors, content = checkpoints.load_checkpoint(path, kind="critic", content=CriticContent)
        with checkpoints.reading_content(path, "critic"):
            return cls.from_content(content, tensors, device=device)
