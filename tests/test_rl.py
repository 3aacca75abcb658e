"""From a clone to reinforcement learning: the same actor, beside a value network of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.policies.base import FeedForward32Policy
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import (
    ACTION_SPACES,
    IMAGE,
    LINE_ENV_ID,
    MAPPING,
    VECTOR,
    AnyEnv,
    LineEnv,
    policy,
    space_id,
    trainer,
    weights,
)

from sb3_diffbc import StandardizedActorPolicy, to_rl
from sb3_diffbc.critic import PairEncoder
from sb3_diffbc.export import example_observations, observations_of

SMALL: dict[str, Any] = {"n_steps": 8, "seed": 0, "device": "cpu"}
PPO_SMALL = {**SMALL, "batch_size": 8, "n_epochs": 2}
VALUE = ("value_net", "mlp_extractor.value_net", "vf_features_extractor")


def clone(
    observation_space: gym.Space = LineEnv.observation_space,
    action_space: gym.Space = LineEnv.action_space,
    **kwargs: Any,
) -> ActorCriticPolicy:
    """A policy with statistics of demonstrations inside."""
    made = policy(observation_space, action_space, **kwargs)
    if isinstance(made, StandardizedActorPolicy):
        encoder = PairEncoder(observation_space, action_space)
        encoder.obs_mean.fill_(0.1)
        encoder.obs_std.fill_(3.0)
        encoder.act_std.fill_(0.5)
        made.set_statistics(encoder)
    return made


def actions(actor: Any) -> np.ndarray:
    examples = observations_of(actor, example_observations(actor.observation_space))
    return actor.predict(examples, deterministic=True)[0]


def value_state(actor: ActorCriticPolicy) -> dict[str, th.Tensor]:
    return {k: v for k, v in actor.state_dict().items() if k.startswith(VALUE)}


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning")
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=space_id)
@pytest.mark.parametrize("observation_space", [VECTOR, MAPPING], ids=space_id)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_actor_is_the_clone_and_learns(
    algorithm: Any, observation_space: gym.Space, action_space: gym.Space
) -> None:
    source = clone(observation_space, action_space)
    before = weights(source)
    model = to_rl(source, algorithm, AnyEnv(observation_space, action_space), **SMALL)
    np.testing.assert_array_equal(actions(model.policy), actions(source))
    if hasattr(source, "log_std"):
        assert th.equal(model.policy.log_std, source.log_std)
    model.learn(16)
    assert not th.equal(weights(model.policy.action_net), weights(source.action_net))
    assert th.equal(weights(source), before)


def test_trpo_goes_on_from_a_clone() -> None:
    trpo = pytest.importorskip("sb3_contrib").TRPO
    model = to_rl(clone(), trpo, LineEnv(), batch_size=8, value_timesteps=16, **SMALL)
    np.testing.assert_array_equal(actions(model.policy), actions(clone()))
    model.learn(8)


def test_the_value_network_is_as_large_as_the_actor_and_shares_nothing_with_it() -> None:
    made = to_rl(clone(net_arch={"pi": [8, 7], "vf": []}), PPO, LineEnv(), **PPO_SMALL).policy
    observation = made.obs_to_tensor(np.ones((4, 2), np.float32))[0]
    assert [p.shape for p in made.mlp_extractor.value_net.parameters()] == [
        p.shape for p in made.mlp_extractor.policy_net.parameters()
    ]
    made.predict_values(observation).sum().backward()
    reached = {name for name, p in made.named_parameters() if p.grad is not None}
    assert reached == {name for name, _ in made.named_parameters() if name.startswith(VALUE)}
    assert th.equal(made.vf_features_extractor.std, made.pi_features_extractor.std)
    assert float(made.pi_features_extractor.std[0]) == 3.0


def test_images_have_features_of_their_own_for_the_value_which_begin_as_the_actors() -> None:
    channels_last = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    action_space = spaces.Discrete(3)
    source = policy(IMAGE, action_space, cls=ActorCriticCnnPolicy)
    made = to_rl(source, PPO, AnyEnv(channels_last, action_space), **PPO_SMALL).policy
    np.testing.assert_array_equal(actions(made), actions(source))
    assert th.equal(weights(made.vf_features_extractor), weights(source.features_extractor))
    shared = {id(p) for p in made.pi_features_extractor.parameters()}
    assert shared.isdisjoint(map(id, made.vf_features_extractor.parameters()))


def test_the_result_is_saved_and_loaded_as_any_model(tmp_path: Path) -> None:
    model = to_rl(clone(), PPO, LineEnv(), **PPO_SMALL)
    model.learn(16)
    model.save(tmp_path / "model")
    loaded = PPO.load(tmp_path / "model", env=LineEnv(), device="cpu")
    assert th.equal(weights(loaded.policy), weights(model.policy))
    np.testing.assert_array_equal(actions(loaded), actions(model))
    loaded.learn(16)


def test_value_timesteps_fit_the_value_network_alone() -> None:
    source = clone()
    env = AnyEnv(LineEnv.observation_space, LineEnv.action_space)
    fresh, fitted = (
        to_rl(source, PPO, env, value_timesteps=n, gamma=0.5, **PPO_SMALL) for n in (0, 1500)
    )
    actor = [
        {k: v for k, v in model.policy.state_dict().items() if not k.startswith(VALUE)}
        for model in (fresh, fitted)
    ]
    assert all(th.equal(actor[0][name], actor[1][name]) for name in actor[0])
    # Rewards of 1 in three steps are worth 1.75, 1.5 and 1: their mean is the best constant.
    observations = example_observations(env.observation_space)["observation"]
    values = fitted.policy.predict_values(fitted.policy.obs_to_tensor(observations)[0])
    assert values.mean().item() == pytest.approx(4.25 / 3, abs=0.1)
    assert value_state(fresh.policy).keys() == value_state(fitted.policy).keys()
    fitted.learn(16)
    assert fitted.num_timesteps == 16


def test_log_std_and_the_value_networks_arguments_are_the_callers() -> None:
    kwargs = {"net_arch": {"vf": [5]}, "optimizer_kwargs": {"eps": 0.1}}
    model = to_rl(clone(), PPO, LINE_ENV_ID, log_std=-1.5, policy_kwargs=kwargs, **PPO_SMALL)
    assert model.policy.log_std.tolist() == [-1.5]
    assert model.policy.value_net.in_features == 5
    assert model.policy.optimizer.defaults["eps"] == 0.1


def test_a_trainer_gives_its_own_environment() -> None:
    cloner = trainer(env=LineEnv(), policy=clone(), demonstrations=None)
    model = cloner.to_rl(PPO, **PPO_SMALL)
    np.testing.assert_array_equal(actions(model.policy), actions(cloner.policy))
    without = trainer(LineEnv.observation_space, LineEnv.action_space, demonstrations=None)
    with pytest.raises(ValueError, match="env is missing: give it to to_rl"):
        without.to_rl(PPO)


def test_policies_of_other_classes_go_on_too() -> None:
    spaces_of_line = LineEnv.observation_space, LineEnv.action_space
    for source in (
        FeedForward32Policy(*spaces_of_line, lambda _: 1e-3),
        ActorCriticPolicy(*spaces_of_line, lambda _: 1e-3, use_sde=True),
    ):
        model = to_rl(source, PPO, LineEnv(), **PPO_SMALL)
        np.testing.assert_array_equal(actions(model.policy), actions(source))
        model.learn(8)
    assert model.use_sde


# --- what cannot go on --------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [SAC, "PPO", None])
def test_algorithms_with_other_policies_are_refused(algorithm: Any) -> None:
    with pytest.raises(TypeError, match=r"algorithm is .*: expected .* PPO, A2C .* TRPO"):
        to_rl(clone(), algorithm, LineEnv())


def test_a_model_is_no_policy() -> None:
    model: Any = to_rl(clone(), PPO, LineEnv(), **PPO_SMALL)
    with pytest.raises(TypeError, match=r"policy is a PPO: expected .* \.policy"):
        to_rl(model, PPO, LineEnv())


def test_other_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"env.observation_space is .*: expected the policy's"):
        to_rl(clone(VECTOR, LineEnv.action_space), PPO, LineEnv(), **PPO_SMALL)


def test_observations_may_not_go_on_being_normalised() -> None:
    def env(**kwargs: Any) -> VecNormalize:
        return VecNormalize(DummyVecEnv([LineEnv]), **kwargs)

    with pytest.raises(ValueError, match=r"expected VecNormalize\(..., norm_obs=False\)"):
        to_rl(clone(), PPO, env(), **PPO_SMALL)
    to_rl(clone(), PPO, env(norm_obs=False), **PPO_SMALL)
    to_rl(clone(), PPO, env(training=False), **PPO_SMALL)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy_kwargs": {"activation_fn": th.nn.ReLU}}, r"found \['activation_fn'\]"),
        ({"policy_kwargs": {"net_arch": [5]}}, r"expected \{'vf': \[...\]\}"),
        ({"policy_kwargs": {"net_arch": {"pi": [5]}}}, r"expected \{'vf': \[...\]\}"),
        ({"value_timesteps": -1}, "value_timesteps: .* found -1"),
        ({"log_std": float("nan")}, "log_std: .* found nan"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rl(clone(), PPO, LineEnv(), **kwargs, **PPO_SMALL)


def test_log_std_is_for_gaussians_only() -> None:
    source = clone(LineEnv.observation_space, spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"log_std=.*: expected None"):
        to_rl(source, PPO, LineEnv(), log_std=-1.0)


class NeedsMore(ActorCriticPolicy):
    """A policy with an argument that it does not tell of."""

    def __init__(self, *args: Any, factor: float, **kwargs: Any) -> None:
        self.factor = factor
        super().__init__(*args, **kwargs)


class Hidden(NeedsMore):
    """The same with a default, so that a new instance differs without a word."""

    def __init__(self, *args: Any, factor: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, factor=factor, **kwargs)

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return self.factor * super()._predict(observation, deterministic)


def test_a_policy_that_cannot_be_made_anew_says_why() -> None:
    with pytest.raises(TypeError, match=r"NeedsMore with a value network cannot be made: .*factor"):
        to_rl(clone(cls=NeedsMore, factor=0.5), PPO, LineEnv(), **PPO_SMALL)
    with pytest.raises(ValueError, match="Hidden that is made anew chooses other actions"):
        to_rl(clone(cls=Hidden, factor=0.5), PPO, LineEnv(), **PPO_SMALL)
