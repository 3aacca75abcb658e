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
# Actions of other observations are about 0.8 standard deviations from their median.
_ALIKE = 0.25


@dataclasses.dataclass(frozen=True)
class BadLabels:
    """Actions of demonstrations that are not the expert's.

    Attributes:
        share: of all actions, from 0 to 1.
        are_alike: whether most of them are one action or near it, such as an idle operator's. A
            model of the actions then takes that one for a likely one.
    """

    share: float
    are_alike: bool


def is_bad(of_pairs: np.ndarray, of_mismatched: np.ndarray) -> np.ndarray:
    """Tells which actions are not the expert's by the errors of a cloned policy.

    Bad are pairs that outlie the others, and are nearer to a mismatched pair than to none.
    Where every action is uncertain there is no telling, and none are bad.

    Args:
        of_pairs: mean absolute errors against the actions of the demonstrations, shape ``(n,)``.
        of_mismatched: against the actions of other observations, shape ``(n,)``.

    Returns:
        Booleans of shape ``(n,)``.
    """
    if np.median(of_pairs) > _UNCERTAIN * np.median(of_mismatched):
        return np.zeros(len(of_pairs), dtype=bool)
    outlying = of_pairs > _OUTLYING * np.median(of_pairs)
    foreign = of_pairs > _FOREIGN * np.median(of_mismatched)
    return outlying & foreign


@th.no_grad()
def bad_labels(
    policy: policies.ActorCriticPolicy,
    encoder: PairEncoder,
    transitions: types.TransitionsMinimal,
) -> BadLabels:
    """Finds the demonstrations' actions that are not the expert's.

    Args:
        policy: cloned from them; evaluated in evaluation mode, and its mode is put back.
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
    bad = is_bad(*((predicted - each).abs().mean(dim=-1).cpu().numpy() for each in (codes, others)))
    if not bad.any():
        return BadLabels(0.0, are_alike=False)
    of_bad = codes.cpu()[th.from_numpy(bad)]
    distances = (of_bad - of_bad.median(dim=0).values).abs().mean(dim=-1)
    return BadLabels(float(bad.mean()), are_alike=float(distances.median()) < _ALIKE)


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
