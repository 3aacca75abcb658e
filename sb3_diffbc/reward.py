"""A fitted critic as a reward, so that reinforcement learning needs none of the environment's."""

import warnings
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from imitation.data import types
from imitation.rewards.reward_function import RewardFn
from imitation.rewards.reward_wrapper import RewardVecEnvWrapper
from stable_baselines3.common import vec_env

from sb3_diffbc.critic import DiffusionCritic
from sb3_diffbc.critic.encoder import Observations, check_spaces_of
from sb3_diffbc.demonstrations import DemonstrationWarning, validate_demonstrations
from sb3_diffbc.demonstrations.batches import as_transitions
from sb3_diffbc.demonstrations.validation import by_key
from sb3_diffbc.schema import PositiveFloat, checked_arguments

OFFSETS = {"survival": 0.0, "neutral": -0.5, "termination": -1.0}
"""What is added to the expert-likeness, which is between 0 and 1, by the reward's bias."""

_N_PAIRS = 4096  # of the demonstrations, to calibrate with
_MIN_SCALE = 0.01
_MIN_VALUE = 1e-30  # has a logarithm


class CriticReward(RewardFn):
    """How much a pair (s, a) looks like the expert's to a frozen critic of p(s, a), as a reward.

    The reward is ``1 / (1 + (L_diff(s, a) / m)^(1 / (scale · temperature)))`` plus an offset that
    ``bias`` chooses. m is the median of L_diff over the demonstrations, and ``scale`` the spread
    of its logarithm there: with ``temperature=1``, the first term is about the share of the
    demonstrations' pairs that look less like the expert's than this one. It is about 0.5 for the
    expert and between 0 and 1 for all.

    It is a ``RewardFn`` of imitation (``imitation.rewards.reward_function``), for
    ``RewardVecEnvWrapper`` in particular, which :meth:`wrap` makes. L_diff
    (:meth:`~sb3_diffbc.DiffusionCritic.mean_denoising_loss`) is a mean over noise levels and draws
    that never change, the same for all pairs: a pair's reward depends neither on the rest of the
    batch nor on the call.

    Rewards from fixed models of the expert's pairs go back to Random Expert Distillation
    (https://arxiv.org/abs/1905.06750). In DiffAIL (https://arxiv.org/abs/2312.06348) and DRAIL
    (https://arxiv.org/abs/2405.16194) they come from diffusion models that go on learning to tell
    the policy from the expert. A fixed one does not, and can be fooled: look at the environment's
    own score, too.

    Attributes:
        critic: the critic.
        bias: as given.
        temperature: as given.
        location: log m.
        scale: spread of log L_diff over the demonstrations: the scale of a logistic distribution
            with the same quartiles' distance.

    Args:
        critic: a fitted critic of p(s, a). One of p(a | s) has no opinion on states, so that a
            policy would lose nothing by leaving those of the demonstrations.
        demonstrations: to calibrate with: what the critic was fitted to, or pairs of the same
            expert that it has not seen. Transitions, or what :func:`load_demonstrations` takes.
        bias: what the end of an episode is worth, since no reward follows it (Kostrikov et al.,
            2019, https://arxiv.org/abs/1809.02925). ``"survival"``: rewards in [0, 1], for tasks
            that end by a failure, such as a fall. ``"termination"``: in [-1, 0], for tasks that
            end by a success, where each step costs. ``"neutral"``: in [-0.5, 0.5], so that an
            end loses what the expert's pairs are worth and saves what others are. Where no episode
            ends before its time limit, all three come to the same.
        temperature: larger values tell pairs far from the expert's better apart, and near ones
            less.

    Raises:
        ValueError: if the critic is not fitted or models p(a | s), the demonstrations do not fit
            its spaces or have actions out of bounds, or an argument has another value.
        TypeError: if an argument is of another type.
    """

    def __init__(
        self,
        critic: DiffusionCritic,
        demonstrations: Any,
        *,
        bias: Literal["survival", "neutral", "termination"],
        temperature: PositiveFloat = 1.0,
    ) -> None:
        checked_arguments(CriticReward.__init__, locals())
        critic._check_judges_states()
        self.critic = critic
        self.bias = bias
        self.temperature = temperature
        transitions = as_transitions(demonstrations)
        check_reachable(critic, transitions)
        some = transitions[:: -(-len(transitions) // _N_PAIRS)]
        values = _log_losses(critic, some.obs, some.acts)
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        self.location = float(median)
        # Alike pairs, or a single one, have no spread that could divide.
        self.scale = max(float(high - low) / (2 * np.log(3)), _MIN_SCALE)

    def __call__(
        self,
        state: Observations,
        action: np.ndarray,
        next_state: Observations | None = None,
        done: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the rewards of a batch of transitions.

        Args:
            state: observations, ``(batch, *obs_shape)``, or a mapping of such.
            action: actions as the environment executes them, ``(batch, *act_shape)``.
            next_state: not used.
            done: not used; whether an end is good is what ``bias`` says.

        Returns:
            Float32 rewards of shape ``(batch,)``.

        Raises:
            ValueError: if shapes are not those of the critic's spaces, or a value is NaN or
                infinite.
        """
        for where, found, space in _arrays(self.critic, state, action):
            if np.shape(found)[1:] != space.shape:
                raise ValueError(
                    f"{where}: found rows of shape {np.shape(found)[1:]}, expected {space.shape}."
                )
            if not np.isfinite(found).all():
                raise ValueError(f"{where}: found NaN or infinite values, expected finite ones.")
        values = _log_losses(self.critic, state, action)
        distance = (values - self.location) / (self.scale * self.temperature)
        expert_likeness = 1 / (1 + np.exp(np.clip(distance, -50, 50)))
        return (expert_likeness + OFFSETS[self.bias]).astype(np.float32)

    def wrap(self, venv: vec_env.VecEnv) -> RewardVecEnvWrapper:
        """Puts this reward in the place of an environment's own.

        Args:
            venv: the environment; it is reset. Its own rewards are in the wrapper's infos, under
                ``"original_env_rew"``.

        Returns:
            imitation's wrapper.

        Raises:
            ValueError: if the environment has other spaces than the critic.
            TypeError: if it is not a ``VecEnv``.
        """
        if not isinstance(venv, vec_env.VecEnv):
            raise TypeError(f"venv is a {type(venv).__name__}: expected a VecEnv.")
        check_spaces_of("critic", self.critic, venv.observation_space, venv.action_space)
        return RewardVecEnvWrapper(venv, self)


def _arrays(
    critic: DiffusionCritic, state: Any, action: Any
) -> list[tuple[str, np.ndarray, gym.Space]]:
    """Returns what a reward is computed from: names in messages, arrays, and their spaces."""
    space = critic.observation_space
    parts: dict[Any, gym.Space] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    arrays = by_key(state)
    if arrays.keys() != parts.keys():
        found = ["one array" if key is None else key for key in arrays]
        raise ValueError(f"state: found {found}, expected what fits {space}.")
    names = {key: "state" if key is None else f"state[{key!r}]" for key in parts}
    observed = [(names[key], arrays[key], part) for key, part in parts.items()]
    return [*observed, ("action", action, critic.action_space)]


def check_reachable(critic: DiffusionCritic, transitions: types.TransitionsMinimal) -> None:
    """Raises if the demonstrations have pairs that no policy can reach in the environment."""
    space = critic.action_space
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DemonstrationWarning)  # the critic's fit has told
        validate_demonstrations(
            transitions, observation_space=critic.observation_space, action_space=space
        )
    if not isinstance(space, spaces.Box):
        return
    acts = transitions.acts.reshape(-1, *space.shape).astype(np.float32)
    beyond = np.maximum(acts - space.high, space.low - acts).max()
    if beyond > 1e-3:
        raise ValueError(
            f"demonstrations: acts leave the bounds of {space} by up to {beyond:.3g}, expected "
            "actions as the environment executes them. SB3 clips those of a policy, which would "
            "then look unlike the expert's: clip them with np.clip, for the critic's fit too."
        )


def _log_losses(critic: DiffusionCritic, obs: Observations, acts: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the pairs' L_diff, shape ``(batch,)``."""
    return np.log(np.maximum(critic.mean_denoising_loss(obs, acts).cpu().numpy(), _MIN_VALUE))
