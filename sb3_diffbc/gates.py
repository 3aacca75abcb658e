"""When DAgger asks the expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import Field

from sb3_diffbc.diffusion_bc import DiffusionBC
from sb3_diffbc.monitor import conformal_threshold
from sb3_diffbc.schema import Number, checked_arguments

Gate: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Says for each row of observations, ``(n, *obs_shape)``, and of the learner's actions,
``(n, *act_shape)``, whether the expert is asked: a bool array of shape ``(n,)``."""


def ask_always(obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
    """The gate of plain DAgger: the expert is asked at each step."""
    return np.ones(len(acts), dtype=bool)


class CriticGate:
    """Asks the expert where the learner's own critic finds its observation or action unfamiliar.

    L_diff of the critic of p(s, a) (:meth:`~sb3_diffbc.DiffusionCritic.mean_denoising_loss`) is
    compared with a threshold: the conformal quantile of L_diff over the transitions that the
    learner holds out. Both change in each round of DAgger, when the critic is fitted again to all
    labels so far, and the gate follows.

    Args:
        trainer: the learner, whose critic models p(s, a), with a ``validation_fraction``.
        false_alarm_rate: share of the held-out transitions above the threshold, about. Larger
            values ask more often.

    Raises:
        ValueError: if the learner has no critic of p(s, a) or holds nothing out, or an argument
            is out of its range.
        TypeError: if an argument is of another type.
    """

    def __init__(
        self, trainer: DiffusionBC, *, false_alarm_rate: Annotated[Number, Field(gt=0, lt=1)] = 0.1
    ) -> None:
        checked_arguments(CriticGate.__init__, locals())
        models = trainer.critic_models if trainer.critic is None else trainer.critic.models
        if models != "state_action" or not trainer.dm_coef:
            raise ValueError(
                f"trainer: found dm_coef={trainer.dm_coef:g} and a critic of {models!r}, expected "
                "dm_coef above 0 and critic_models='state_action': p(a | s) says nothing of states."
            )
        if not trainer.validation_fraction:
            raise ValueError(
                "trainer: expected a validation_fraction, as the threshold is taken from "
                "transitions that the critic was not fitted to."
            )
        self.trainer = trainer
        self.false_alarm_rate = false_alarm_rate
        self.threshold = np.inf
        self._seen: tuple[Any, Any] = None, None

    def __call__(self, obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
        """Returns where the critic's loss is above the threshold, shape ``(n,)``.

        Raises:
            ValueError: if the learner was not trained yet.
        """
        critic, held_out = self.trainer.critic, self.trainer.held_out
        if critic is None or held_out is None:
            raise ValueError("trainer: expected one that was trained, found no fitted critic.")
        if self._seen[0] is not critic or self._seen[1] is not held_out:
            losses = critic.mean_denoising_loss(held_out.obs, held_out.acts)
            self.threshold = conformal_threshold(losses.cpu().numpy(), self.false_alarm_rate)
            self._seen = critic, held_out
        return critic.mean_denoising_loss(obs, acts).cpu().numpy() > self.threshold
