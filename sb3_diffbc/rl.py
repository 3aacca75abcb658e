"""From a cloned policy to reinforcement learning with Stable-Baselines3."""

import itertools
from collections.abc import Mapping
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common import policies, vec_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.nn import functional

from sb3_diffbc.checkpoints.policies import constructor_arguments
from sb3_diffbc.evaluation import check_spaces
from sb3_diffbc.export import check_actor_critic, example_observations, observations_of
from sb3_diffbc.schema import NonNegativeInt, Number, checked_arguments

AlgorithmT = TypeVar("AlgorithmT", bound=OnPolicyAlgorithm)

VALUE_NET_ARCH = (64, 64)
"""Layers of the value network where the actor has none of its own: SB3's default."""

_VALUE = ("value_net", "mlp_extractor.value_net", "vf_features_extractor")
_OF_VALUE_OR_OPTIMIZER = {"net_arch", "optimizer_class", "optimizer_kwargs"}
_N_UPDATES = 1500
_BATCH_SIZE = 256
_LEARNING_RATE = 1e-3


def to_rl(
    policy: policies.ActorCriticPolicy,
    algorithm: type[AlgorithmT],
    env: str | gym.Env | vec_env.VecEnv,
    *,
    value_timesteps: NonNegativeInt = 0,
    log_std: Number | None = None,
    policy_kwargs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> AlgorithmT:
    """Makes an SB3 algorithm whose actor is a copy of a cloned policy.

    Its actions are those of the policy, whose statistics stay inside. The value network is new,
    as large as the actor's, and shares no parameters with it: it has a features extractor of its
    own, with the actor's statistics and weights to start from.

    Args:
        policy: an SB3 actor-critic policy; it is not changed.
        algorithm: ``PPO``, ``A2C``, or ``TRPO`` of sb3-contrib.
        env: where to learn. Of a ``VecNormalize``, only rewards may still be normalised.
        value_timesteps: steps in ``env`` to which the value network is fitted before the actor
            learns anything. ``learn`` counts them only with ``reset_num_timesteps=False``.
        log_std: logarithm of the standard deviation of a Gaussian policy's actions; None keeps
            the policy's, the spread of the demonstrations around it.
        policy_kwargs: ``net_arch={"vf": [...]}``, ``optimizer_class`` and ``optimizer_kwargs``;
            the rest is the policy's.
        **kwargs: further arguments of the algorithm.

    Returns:
        The algorithm, ready to ``learn``. ``save`` and ``load`` are its own.

    Raises:
        TypeError: if it is no such policy, the algorithm does not take SB3's actor-critic
            policies, or the policy's class cannot be built from what it says its arguments
            are.
        ValueError: if the environment has other spaces or goes on normalising observations, or
            an argument does not fit the policy.
    """
    check_actor_critic(policy)
    checked_arguments(to_rl, {"value_timesteps": value_timesteps, "log_std": log_std})
    name = getattr(algorithm, "__name__", repr(algorithm))
    if getattr(algorithm, "policy_aliases", {}).get("MlpPolicy") is not policies.ActorCriticPolicy:
        raise TypeError(
            f"algorithm is {name}: expected one whose policies are SB3's ActorCriticPolicy, as "
            "of PPO, A2C and sb3-contrib's TRPO."
        )
    if log_std is not None and not hasattr(policy, "log_std"):
        raise ValueError(f"log_std={log_std}: expected None, because the actions have no spread.")
    model = algorithm(
        type(policy),
        env,
        policy_kwargs=_policy_kwargs(policy, policy_kwargs or {}),
        **{"use_sde": policy.use_sde, **kwargs, "_init_setup_model": False},
    )
    assert model.env is not None
    check_spaces(policy, model.env)
    normalize = model.get_vec_normalize_env()
    if normalize is not None and normalize.norm_obs and normalize.training:
        raise ValueError(
            "env normalises observations with statistics that change, which the policy has not "
            "learned from: expected VecNormalize(..., norm_obs=False)."
        )
    try:
        model._setup_model()
    except TypeError as error:
        raise TypeError(
            f"policy: a {type(policy).__name__} with a value network cannot be made: {error}"
        ) from error
    _take_actor(model.policy, policy)
    if log_std is not None:
        model.policy.log_std.data.fill_(log_std)
    if value_timesteps:
        _fit_value(model, value_timesteps)
    return model


def _policy_kwargs(policy: policies.ActorCriticPolicy, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the policy's class for the same actor beside a value network."""
    if unknown := sorted(given.keys() - _OF_VALUE_OR_OPTIMIZER):
        raise ValueError(
            f"policy_kwargs: found {unknown}, expected only {sorted(_OF_VALUE_OR_OPTIMIZER)}: "
            "the rest is the cloned policy's."
        )
    arguments = constructor_arguments(policy)
    # These the algorithm gives, or has defaults of its own for.
    for name in ("use_sde", "optimizer_class", "optimizer_kwargs"):
        arguments.pop(name, None)
    has_net_arch = "net_arch" in arguments
    arguments |= {"share_features_extractor": False, **given}
    actor = policy.net_arch["pi"] if isinstance(policy.net_arch, dict) else policy.net_arch
    wanted = given.get("net_arch", {})
    if not isinstance(wanted, Mapping) or wanted.keys() - {"vf"}:
        raise ValueError(f"policy_kwargs['net_arch'] is {wanted}: expected {{'vf': [...]}}.")
    if has_net_arch:
        value = wanted.get("vf", actor or VALUE_NET_ARCH)
        arguments["net_arch"] = {"pi": list(actor), "vf": list(value)}
    elif wanted:
        raise ValueError(
            f"policy_kwargs['net_arch']: {type(policy).__name__} sets the value network itself."
        )
    return arguments


def _take_actor(target: policies.ActorCriticPolicy, source: policies.ActorCriticPolicy) -> None:
    """Copies all but the value network, which gets the features extractor's weights too."""
    state = {k: v for k, v in source.state_dict().items() if not k.startswith(_VALUE)}
    state |= {
        k.replace("pi_", "vf_", 1): v for k, v in state.items() if k.startswith("pi_features")
    }
    own = target.state_dict()
    try:
        target.load_state_dict({**own, **state})
    except RuntimeError as error:
        raise ValueError(
            f"policy: a {type(source).__name__} that is made anew has other parameters: {error}"
        ) from error
    examples = observations_of(source, example_observations(source.observation_space))
    found, expected = (p.predict(examples, deterministic=True)[0] for p in (target, source))
    if not np.allclose(found, expected, rtol=1e-5, atol=1e-5):
        raise ValueError(
            f"policy: a {type(source).__name__} that is made anew chooses other actions with the "
            "same parameters: its constructor's arguments are not all in "
            "_get_constructor_parameters."
        )


def _fit_value(model: OnPolicyAlgorithm, timesteps: int) -> None:
    """Fits the value network to returns of the actor as it is."""
    assert model.env is not None
    assert model.rollout_buffer_class is not None
    n_steps = -(-timesteps // model.n_envs)
    buffer = model.rollout_buffer_class(
        n_steps,
        model.observation_space,
        model.action_space,
        device=model.device,
        gamma=model.gamma,
        gae_lambda=1.0,  # sums of rewards, whatever the network says in between
        n_envs=model.n_envs,
    )
    # No logs of a learning that has not begun.
    settings = model.verbose, model.tensorboard_log
    model.verbose, model.tensorboard_log = 0, None
    _, callback = model._setup_learn(timesteps)
    model.collect_rollouts(model.env, callback, buffer, n_steps)
    model.verbose, model.tensorboard_log = settings
    parameters = [p for name, p in model.policy.named_parameters() if name.startswith(_VALUE)]
    optimizer = th.optim.Adam(parameters, lr=_LEARNING_RATE)
    # Adam takes long to reach a mean that is far from 0.
    model.policy.value_net.bias.data.fill_(float(buffer.returns.mean()))
    n_left = _N_UPDATES
    while n_left > 0:
        for batch in itertools.islice(buffer.get(_BATCH_SIZE), n_left):
            values = model.policy.predict_values(batch.observations).flatten()
            loss = functional.mse_loss(values, batch.returns)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            n_left -= 1
