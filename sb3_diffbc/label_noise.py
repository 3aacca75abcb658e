"""How many of the demonstrations' actions are not the expert's."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from imitation.data import types

from sb3_diffbc.critic.encoder import PairEncoder, channels_first, relaxed_action, to_tensor_obs
from sb3_diffbc.demonstrations.batches import to_tensor

if TYPE_CHECKING:
    from stable_baselines3.common import policies

_MAX_ROWS = 4096
_SEED = 0
# A Gaussian's absolute error is beyond 2.5 times its median in 9 of 100 cases along one dimension,
# and the mean over several is so far less often.
_OUTLYING = 2.5
# Errors may be heavy-tailed and yet harmless, where all of them are small.
_FOREIGN = 0.5
# Half of all pairs being hardly nearer than mismatched ones, nothing tells which ones are bad.
_UNCERTAIN = 0.6


@dataclasses.dataclass(frozen=True)
class Residuals:
    """Mean absolute errors of a policy's encoded actions.

    Attributes:
        of_pairs: against the actions of the demonstrations, shape ``(n,)``.
        of_mismatched: against the actions of other observations, shape ``(n,)``.
    """

    of_pairs: np.ndarray
    of_mismatched: np.ndarray

    def bad_share(self) -> float:
        """Estimates the share of actions that are not the expert's, from 0 to 1.

        Counted are pairs that outlie the others, and are nearer to a mismatched pair than to none.
        Where every action is uncertain there is no telling, and none are counted.
        """
        if np.median(self.of_pairs) > _UNCERTAIN * np.median(self.of_mismatched):
            return 0.0
        outlying = self.of_pairs > _OUTLYING * np.median(self.of_pairs)
        foreign = self.of_pairs > _FOREIGN * np.median(self.of_mismatched)
        return float(np.mean(outlying & foreign))


@th.no_grad()
def residuals(
    policy: policies.ActorCriticPolicy,
    encoder: PairEncoder,
    transitions: types.TransitionsMinimal,
) -> Residuals:
    """Computes a policy's residuals on demonstrations.

    Args:
        policy: evaluated in evaluation mode; its mode is put back.
        encoder: fitted to the demonstrations' actions.
        transitions: the demonstrations; of more than 4096 rows, as many random ones count.
    """
    rng = np.random.default_rng(_SEED)
    rows = np.sort(rng.permutation(len(transitions))[:_MAX_ROWS])
    obs = types.map_maybe_dict(lambda part: part[rows], transitions.obs)
    predicted = predicted_codes(policy, encoder, to_tensor_obs(obs, policy.device))
    acts = encoder.conform_acts(to_tensor(transitions.acts[rows], policy.device))
    codes = encoder.encode_acts(acts)
    others = codes[rng.permutation(len(rows))]
    of_pairs, of_mismatched = (
        (predicted - each).abs().mean(dim=-1).cpu().numpy() for each in (codes, others)
    )
    return Residuals(of_pairs, of_mismatched)


@th.no_grad()
def predicted_codes(
    policy: policies.ActorCriticPolicy,
    encoder: PairEncoder,
    obs: th.Tensor | dict[str, th.Tensor],
) -> th.Tensor:
    """Returns the codes of a policy's most likely actions, of discrete ones their probabilities.

    Args:
        policy: evaluated in evaluation mode; its mode is put back.
        encoder: fitted to the demonstrations' actions.
        obs: observations as the environment has them, on the policy's device.
    """
    was_training = policy.training
    policy.set_training_mode(False)
    distribution = policy.get_distribution(channels_first(obs, policy.observation_space))
    policy.set_training_mode(was_training)
    return encoder.encode_acts(relaxed_action(distribution))
