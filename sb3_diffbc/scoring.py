"""How expert-like demonstrations are."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_diffbc.critic.encoder import Observations, PairEncoder, Pairs
from sb3_diffbc.critic.score import MAX_PAIRS, checked_inputs, quantiles_of, share_below
from sb3_diffbc.demonstrations import validate_demonstrations
from sb3_diffbc.demonstrations.batches import as_transitions
from sb3_diffbc.label_noise import MAX_ROWS, codes_of

_N_OTHERS = 32
_SEED = 0


class PolicyResidual:
    """How far actions are from a cloned policy's, in the units of the critic's score.

    That is :meth:`~sb3_diffbc.DiffusionCritic.score`.

    It is the critic's rival: a policy that was cloned from demonstrations tells actions that do not
    fit by their absolute error, with no diffusion model.

    Attributes:
        policy: as given.
        encoder: codes of actions, in units of the demonstrations' standard deviations.

    Args:
        policy: cloned from these or from other demonstrations of the expert.
        demonstrations: the expert's pairs that :meth:`score` counts; transitions, or what
            ``load_demonstrations`` takes. Best such as the policy has not seen.
        observation_space: of the demonstrations, where it is not the policy's own: the policy has
            images channels first.

    Raises:
        TypeError: if ``policy`` is no actor-critic policy of SB3, or the demonstrations are of an
            unknown kind.
        ValueError: if the demonstrations do not fit the policy's spaces.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        demonstrations: Any,
        *,
        observation_space: gym.Space | None = None,
    ) -> None:
        if not isinstance(policy, ActorCriticPolicy):
            raise TypeError(
                "policy: expected an actor-critic policy of Stable-Baselines3, found "
                f"{type(policy).__name__}."
            )
        transitions = as_transitions(demonstrations)
        self.policy = policy
        self.observation_space = observation_space or policy.observation_space
        self.action_space = policy.action_space
        spaces = self.observation_space, self.action_space
        validate_demonstrations(transitions, observation_space=spaces[0], action_space=spaces[1])
        self.encoder = PairEncoder(*spaces).to(policy.device)
        self.encoder.fit(transitions.obs, transitions.acts)
        pairs = Pairs(self.encoder, transitions.obs, transitions.acts)
        generator = th.Generator().manual_seed(_SEED)
        rows = th.randperm(len(transitions), generator=generator)[:MAX_PAIRS]
        self._others = self._codes(pairs, rows[:_N_OTHERS])[1]
        self._quantiles = quantiles_of(self._raw(pairs, rows))

    def score(
        self, obs: Observations, acts: th.Tensor | np.ndarray, *, raw: bool = False
    ) -> th.Tensor:
        """Tells how expert-like pairs are, as the share of the expert's pairs that score lower.

        It compares the policy's error with that of its actions at other observations of the
        expert's, which is large for an action that stands out and small for one that is common.

        Args:
            obs: observations, ``(n, *obs_shape)``, or a mapping of such.
            acts: actions of the space, ``(n, *act_shape)``.
            raw: return the difference of errors that is ranked: the mean absolute error of the
                policy's actions at other observations minus that at the pair's own, per dimension
                in standard deviations.

        Returns:
            Scores of shape ``(n,)`` as of :meth:`~sb3_diffbc.DiffusionCritic.score`.

        Raises:
            ValueError: if the pairs do not fit the policy's spaces, are none, or hold NaN.
        """
        pairs = Pairs(self.encoder, *checked_inputs(self, obs, acts))
        values = self._raw(pairs, th.arange(len(acts)))
        return values if raw else share_below(values, self._quantiles)

    def _codes(self, pairs: Pairs, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return codes_of(self.policy, self.encoder, pairs, rows)

    def _raw(self, pairs: Pairs, rows: th.Tensor) -> th.Tensor:
        values = []
        for part in rows.split(MAX_ROWS):
            codes, predicted = self._codes(pairs, part)
            elsewhere = (codes.unsqueeze(1) - self._others).abs().mean(dim=(1, 2))
            values.append(elsewhere - (codes - predicted).abs().mean(dim=1))
        return th.cat(values)
