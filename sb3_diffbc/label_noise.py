"""Which of the demonstrations' actions are not the expert's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch as th
from imitation.data import types

from sb3_diffbc.critic.encoder import PairEncoder, Pairs, channels_first, relaxed_action

if TYPE_CHECKING:
    from stable_baselines3.common import policies

MAX_ROWS = 4096
"""Rows that a policy sees at once."""

_N_PERMUTATIONS = 64
_SEED = 0
_MIN_SHARE = 0.02
# Of the actions that are not bad, so many have to be nearer to the policy's than at nine of ten
# other observations. Otherwise the expert is uncertain, or the policy has not learnt enough.
_MIN_FITTING = 0.9
_FITTING = 0.1


@th.no_grad()
def bad_labels(
    policy: policies.ActorCriticPolicy,
    encoder: PairEncoder,
    transitions: types.TransitionsMinimal,
) -> np.ndarray:
    """Tells which actions look as if they had nothing to do with their observations.

    A cloned policy's error for an action is compared with its errors for the same action at other
    observations. Whatever a bad action is, a random one, an idle operator's or one of another
    moment, its place among these is uniform; an expert's is among the first. So twice the share of
    actions in the second half estimates how many are bad (Storey,
    2002, with λ = 1/2, https://doi.org/10.1111/1467-9868.00346). As many are flagged: those with
    the largest errors relative to the mean of the others.

    Args:
        policy: cloned from the demonstrations; evaluated in evaluation mode, and its mode is put
            back.
        encoder: fitted to the demonstrations' actions.
        transitions: the demonstrations.

    Returns:
        Booleans of shape ``(n,)``, at most half of them true. None is where less than 2 % seem to
        be bad, or more than a tenth of the other actions do not fit their observations either.
    """
    pairs = Pairs(encoder, transitions.obs, transitions.acts)
    rows = th.arange(len(transitions.acts))
    codes, predicted = codes_of(policy, encoder, pairs, rows)
    error = (codes - predicted).abs().mean(dim=1)
    place, elsewhere = th.ones_like(error), th.zeros_like(error)
    generator = th.Generator().manual_seed(_SEED)
    for _ in range(_N_PERMUTATIONS):
        others = th.randperm(len(rows), generator=generator).to(codes.device)
        error_there = (codes - predicted[others]).abs().mean(dim=1)
        place += error_there <= error
        elsewhere += error_there
    place /= _N_PERMUTATIONS + 1
    share = 2 * float((place > 0.5).float().mean())
    fitting = float((place <= _FITTING).float().mean()) - _FITTING * share
    is_bad = np.zeros(len(rows), dtype=bool)
    if share > _MIN_SHARE and fitting >= _MIN_FITTING * (1 - share):
        worst = (error / elsewhere).argsort(descending=True)
        is_bad[worst[: round(min(share, 0.5) * len(rows))].cpu().numpy()] = True
    return is_bad


def codes_of(
    policy: policies.ActorCriticPolicy, encoder: PairEncoder, pairs: Pairs, rows: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Returns the codes of the actions of some rows, and of the policy's, ``(rows, act_dim)``."""
    codes, predicted = [], []
    for part in rows.split(MAX_ROWS):
        obs, acts = pairs.gather(part)
        codes.append(encoder.encode_acts(encoder.conform_acts(acts)))
        predicted.append(predicted_codes(policy, encoder, obs))
    return th.cat(codes), th.cat(predicted)


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
