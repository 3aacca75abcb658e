"""Which of the demonstrations' actions are not the expert's, and a clone without them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
from imitation.data import types

from sb3_diffbc.critic.encoder import PairEncoder, Pairs, channels_first, relaxed_action
from sb3_diffbc.demonstrations import DemonstrationWarning

if TYPE_CHECKING:
    from stable_baselines3.common import policies

MAX_ROWS = 4096
"""Rows that a policy sees at once."""
N_LOOKS = 3
"""At the labels, after each of which a clone goes on without those that look bad."""

_N_PERMUTATIONS = 64
_SEED = 0
_MIN_SHARE = 0.02
# Of the actions that are not bad, so many have to be nearer to the policy's than at nine of ten
# other observations. Otherwise the expert is uncertain, or the policy has not learnt enough.
_MIN_FITTING = 0.9
_FITTING = 0.1


def robust_clone(
    transitions: types.TransitionsMinimal,
    observation_space: gym.Space,
    action_space: gym.Space,
    *,
    n_updates: int,
    seed: int,
    device: th.device,
    policy: policies.ActorCriticPolicy | None = None,
    on_update: Callable[[], None] | None = None,
    to_the_end: bool = False,
) -> tuple[policies.ActorCriticPolicy, np.ndarray]:
    """Clones by the absolute error, which bad actions pull least, and without what looks bad.

    Batches and learning rate are the default recipe's. The global random state stays as it is.

    Args:
        transitions: all demonstrations.
        observation_space: of them.
        action_space: of them.
        n_updates: before each of the ``N_LOOKS`` looks.
        seed: of weights and batches.
        device: where to.
        policy: what learns; the default policy if None.
        on_update: called after each update.
        to_the_end: whether to go on although all labels look good.

    Returns:
        The clone, and what the last look flagged, shape ``(n,)``.
    """
    from sb3_diffbc.diffusion_bc import DiffusionBC  # which looks at labels by this function

    with th.random.fork_rng(devices=[]), warnings.catch_warnings():
        # What is odd in them has just been said.
        warnings.simplefilter("ignore", DemonstrationWarning)
        warnings.filterwarnings("ignore", "save will refuse")
        th.default_generator.manual_seed(seed)
        trainer = DiffusionBC(
            demonstrations=transitions,
            observation_space=observation_space,
            action_space=action_space,
            rng=np.random.default_rng(seed),
            policy=policy,
            dm_coef=0.0,
            bc_loss="l1",
            # At most half of them are ever left out.
            batch_size=min(DiffusionBC.DEFAULT_BATCH_SIZE, -(-len(transitions) // 2)),
            learning_rate=lambda remaining: DiffusionBC.DEFAULT_LEARNING_RATE * remaining,
            verbose=0,
            device=device,
        )
        batches: Any = trainer._batches
        for _ in range(N_LOOKS):
            trainer.train(n_batches=n_updates, on_batch_end=on_update)
            is_bad, all_good = bad_labels(trainer.policy, trainer._encoder, transitions)
            if is_bad.any():
                batches.leave_out(is_bad)
            elif all_good and not to_the_end:
                break
    return trainer.policy, is_bad


@th.no_grad()
def bad_labels(
    policy: policies.ActorCriticPolicy,
    encoder: PairEncoder,
    transitions: types.TransitionsMinimal,
) -> tuple[np.ndarray, bool]:
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
        Booleans of shape ``(n,)``, at most half of them true, and whether all labels look good:
        less than 2 % seem to be bad. None is flagged either where more than a tenth of the other
        actions do not fit their observations, which leaves it open.
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
    is_bad, all_good = np.zeros(len(rows), dtype=bool), share <= _MIN_SHARE
    if not all_good and fitting >= _MIN_FITTING * (1 - share):
        worst = (error / elsewhere).argsort(descending=True)
        n_bad = min(round(share * len(rows)), len(rows) // 2)
        is_bad[worst[:n_bad].cpu().numpy()] = True
    return is_bad, all_good


@th.no_grad()
def codes_of(
    policy: policies.ActorCriticPolicy, encoder: PairEncoder, pairs: Pairs, rows: th.Tensor
) -> tuple[th.Tensor, th.Tensor]:
    """Returns the codes of the actions of some rows, and of the policy's, ``(rows, act_dim)``.

    The policy's are its most likely actions, of discrete ones the probabilities. It is evaluated in
    evaluation mode, and its mode is put back.
    """
    codes, predicted = [], []
    was_training = policy.training
    policy.set_training_mode(False)
    for part in rows.split(MAX_ROWS):
        obs, acts = pairs.gather(part)
        codes.append(encoder.encode_acts(encoder.conform_acts(acts)))
        distribution = policy.get_distribution(channels_first(obs, policy.observation_space))
        predicted.append(encoder.encode_acts(relaxed_action(distribution)))
    policy.set_training_mode(was_training)
    return th.cat(codes), th.cat(predicted)
