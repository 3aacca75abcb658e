"""When DAgger asks the expert."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.demonstrations import load_demonstrations, validate_demonstrations
from sb3_diffbc.diffusion_bc import DiffusionBC
from sb3_diffbc.monitor import conformal_threshold
from sb3_diffbc.schema import Fraction, checked_arguments

Gate: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Says for each row of observations, ``(n, *obs_shape)``, and of the learner's actions,
``(n, *act_shape)``, whether the expert is asked: a bool array of shape ``(n,)``."""


def ask_always(obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
    """The gate of plain DAgger: the expert is asked at each step."""
    return np.ones(len(acts), dtype=bool)


class CriticGate:
    """Asks the expert where the learner's own critic finds its observation or action unfamiliar.

    L_diff of the critic of p(s, a) (:meth:`~sb3_diffbc.DiffusionCritic.mean_denoising_loss`) is
    compared with a threshold: the conformal quantile of L_diff over the transitions of held-out
    demonstrations. In each round of DAgger the critic is fitted again, to all labels so far, and
    the threshold is taken anew from the same held-out demonstrations. What the expert was asked
    about is no part of them: it is what the learner does not know, and would raise the threshold
    until nobody is asked any more.

    Args:
        trainer: the learner, whose critic models p(s, a).
        held_out: the expert's own demonstrations that the learner is *not* trained on, as from
            :func:`~sb3_diffbc.hold_out`; what :func:`~sb3_diffbc.load_demonstrations` takes.
        false_alarm_rate: share of the held-out transitions above the threshold, about. Larger
            values ask more often.

    Raises:
        ValueError: if the learner has no critic of p(s, a), the demonstrations do not fit its
            spaces or are too few for the rate, or an argument is out of its range.
        TypeError: if an argument is of another type.
    """

    def __init__(
        self,
        trainer: DiffusionBC,
        held_out: Any,
        *,
        false_alarm_rate: Fraction = 0.1,
    ) -> None:
        checked_arguments(CriticGate.__init__, locals())
        models = trainer.critic_models if trainer.critic is None else trainer.critic.models
        if models != "state_action" or not trainer.dm_coef:
            raise ValueError(
                f"trainer: found dm_coef={trainer.dm_coef:g} and a critic of {models!r}, expected "
                "dm_coef above 0 and critic_models='state_action': p(a | s) says nothing of states."
            )
        self.held_out = load_demonstrations(held_out)
        validate_demonstrations(
            self.held_out,
            observation_space=trainer.observation_space,
            action_space=trainer.action_space,
        )
        conformal_threshold(np.zeros(len(self.held_out)), false_alarm_rate)  # are they enough?
        self.trainer = trainer
        self.false_alarm_rate = false_alarm_rate
        self.threshold = np.inf
        self._critic: DiffusionCritic | None = None

    def __call__(self, obs: np.ndarray, acts: np.ndarray) -> np.ndarray:
        """Returns where the critic's loss is above the threshold, shape ``(n,)``.

        Raises:
            ValueError: if the learner was not trained yet.
        """
        critic = self.trainer.critic
        if critic is None:
            raise ValueError("trainer: expected one that was trained, found no fitted critic.")
        if critic is not self._critic:
            losses = critic.mean_denoising_loss(self.held_out.obs, self.held_out.acts)
            self.threshold = conformal_threshold(losses.cpu().numpy(), self.false_alarm_rate)
            self._critic = critic
        return critic.mean_denoising_loss(obs, acts).cpu().numpy() > self.threshold
