"""What Implicit BC and Diffusion Policy share: training, reproducibility, actions in bounds."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.data.types import DictObs, TransitionsMinimal

from benchmarks.methods.base import Setup
from benchmarks.methods.diffusion_policy import DiffusionPolicy
from benchmarks.methods.implicit_bc import ImplicitBC
from benchmarks.methods.sampling import ActionRange, SamplingMethod
from sb3_diffbc.demonstrations import DemonstrationWarning
from sb3_diffbc.demonstrations.batches import TransitionBatches

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(-2, 2, (2,), np.float32)

SMALL: dict[type[SamplingMethod], dict[str, Any]] = {
    ImplicitBC: {"width": 16, "depth": 2, "batch_size": 16, "n_counter_examples": 4}
    | {"n_samples": 32},
    DiffusionPolicy: {"width": 16, "depth": 1, "batch_size": 16, "num_train_timesteps": 10},
}
# What the two toys need; the second network is enough for both.
TOY: dict[type[SamplingMethod], dict[str, Any]] = {
    ImplicitBC: {"width": 64, "depth": 2, "batch_size": 64, "n_counter_examples": 32}
    | {"n_samples": 256, "learning_rate": 3e-3},
    DiffusionPolicy: {"width": 64, "depth": 2, "batch_size": 128, "learning_rate": 3e-3}
    | {"num_train_timesteps": 50},
}

both = pytest.mark.parametrize("method_class", [ImplicitBC, DiffusionPolicy])


def transitions_of(obs: Any, acts: np.ndarray) -> TransitionsMinimal:
    return TransitionsMinimal(obs=obs, acts=acts, infos=np.full(len(acts), {}))


def random_transitions(n: int = 50, seed: int = 0) -> TransitionsMinimal:
    rng = np.random.default_rng(seed)
    obs = rng.normal(3, 5, (n, 2)).astype(np.float32)
    return transitions_of(obs, rng.uniform(-1, 1, (n, 2)).astype(np.float32))


def setup_of(data: Any, seed: int = 0, **spaces: gym.Space) -> Setup:
    fields = {"observation_space": OBSERVATIONS, "action_space": ACTIONS, **spaces}
    return Setup(demonstrations=data, seed=seed, **fields)


def make(
    method_class: type[SamplingMethod],
    n_updates: int = 20,
    *,
    data: Any = None,
    seed: int = 0,
    **arguments: Any,
) -> SamplingMethod:
    data = random_transitions() if data is None else data
    sizes = SMALL[method_class] | arguments
    return method_class(setup_of(data, seed), n_updates=n_updates, **sizes)


def train(method: SamplingMethod) -> None:
    method.train(lambda: None)


# --- learning -----------------------------------------------------------------------------------


@both
def test_an_action_is_near_one_of_two_modes_and_not_at_their_mean(
    method_class: type[SamplingMethod],
) -> None:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(2000, 1)).astype(np.float32)
    modes = rng.choice([-1.0, 1.0], (2000, 1))
    acts = (modes + rng.normal(scale=0.03, size=(2000, 1))).astype(np.float32)
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (1,), np.float32)
    data = transitions_of(obs, acts)
    setup = setup_of(data, observation_space=observation_space, action_space=action_space)
    method = method_class(setup, n_updates=600, **TOY[method_class])
    train(method)
    found, _ = method.policy.predict(obs[:200], deterministic=True)
    features = np.hstack([obs, np.ones_like(obs)])
    regression = features @ np.linalg.lstsq(features, acts, rcond=None)[0]
    assert np.abs(regression).max() < 0.3
    near_a_mode = np.abs(np.abs(found) - 1) < 0.25
    assert near_a_mode.mean() > 0.9


# --- fitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method_class", "expected"),
    [
        (ImplicitBC, [1e-2, 7.5e-3, 5e-3, 2.5e-3]),
        (DiffusionPolicy, [1e-2, 8.535534e-3, 5e-3, 1.464466e-3]),
    ],
)
def test_the_learning_rate_falls_to_zero_and_the_callback_sees_every_update(
    method_class: type[SamplingMethod], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(method_class, 4, learning_rate=1e-2)
    optimizer = method._make_optimizer()
    monkeypatch.setattr(method, "_make_optimizer", lambda: optimizer)
    rates: list[float] = []
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    counts = []

    def on_progress() -> None:
        counts.append(method.updates)
        method.policy.predict(np.zeros((1, 2), np.float32))

    method.train(on_progress)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert counts == [1, 2, 3, 4]


@both
def test_batches_are_those_of_the_library_for_the_same_seed(
    method_class: type[SamplingMethod], monkeypatch: pytest.MonkeyPatch
) -> None:
    transitions = random_transitions()
    method = make(method_class, 8, data=transitions, seed=7)
    seen = []
    original = method._loss

    def watched(obs: th.Tensor, acts: th.Tensor, generator: th.Generator) -> th.Tensor:
        seen.append((method.encoder.decode_obs(obs), method.action_range.decode(acts)))
        return original(obs, acts, generator)

    monkeypatch.setattr(method, "_loss", watched)
    train(method)
    th.manual_seed(7)
    batches = TransitionBatches(transitions, 16)
    expected = [batch for _ in range(3) for batch in batches][:8]
    for (obs, acts), batch in zip(seen, expected, strict=True):
        np.testing.assert_allclose(obs, batch["obs"], atol=1e-4)
        np.testing.assert_allclose(acts, batch["acts"], atol=1e-5)


@both
def test_a_seed_decides_everything_and_leaves_the_global_state_alone(
    method_class: type[SamplingMethod],
) -> None:
    obs = random_transitions(seed=1).obs
    actions = []
    for seed in (3, 3, 4):
        before = th.get_rng_state()
        method = make(method_class, seed=seed)
        train(method)
        actions.append(method.policy.predict(obs)[0])
        assert th.equal(before, th.get_rng_state())
        th.manual_seed(seed + 100)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert not np.allclose(actions[0], actions[2])


# --- the policy ---------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_stay_within_the_action_space(
    method_class: type[SamplingMethod], deterministic: bool
) -> None:
    transitions = random_transitions()
    # What was recorded may exceed what the environment executes.
    outside = transitions_of(transitions.obs, transitions.acts * 4)
    with pytest.warns(DemonstrationWarning, match="leave the bounds"):
        method = make(method_class, 5, data=outside)
    train(method)
    observations = np.random.default_rng(2).normal(0, 100, (300, 2)).astype(np.float32)
    actions, state = method.policy.predict(observations, deterministic=deterministic)
    assert state is None
    assert actions.shape == (300, 2)
    assert all(ACTIONS.contains(action) for action in actions)


@both
def test_the_same_calls_after_a_reset_give_the_same_actions(
    method_class: type[SamplingMethod],
) -> None:
    policy = make(method_class).policy
    obs = random_transitions().obs
    first, second = policy.predict(obs)[0], policy.predict(obs)[0]
    assert not np.allclose(first, second)
    policy.reset_noise()
    np.testing.assert_array_equal(policy.predict(obs)[0], first)
    np.testing.assert_array_equal(policy.predict(obs)[0], second)


@both
def test_dict_observations_and_matrix_actions_work(method_class: type[SamplingMethod]) -> None:
    observation_space = spaces.Dict({"place": OBSERVATIONS, "kind": spaces.Discrete(3)})
    action_space = spaces.Box(-1, 1, (2, 2), np.float32)
    rng = np.random.default_rng(0)
    obs = {"place": rng.normal(size=(40, 2)).astype(np.float32), "kind": rng.integers(3, size=40)}
    acts = rng.uniform(-1, 1, (40, 2, 2)).astype(np.float32)
    data = transitions_of(DictObs(obs), acts)
    setup = setup_of(data, observation_space=observation_space, action_space=action_space)
    method = method_class(setup, n_updates=3, **SMALL[method_class])
    train(method)
    assert method.policy.predict(obs)[0].shape == (40, 2, 2)


# --- the range of actions -----------------------------------------------------------------------


def test_codes_span_minus_one_to_one_and_go_back() -> None:
    acts = th.tensor([[0.0, -2.0], [1.0, 1.0], [0.5, -0.5]])
    action_range = ActionRange(ACTIONS).fit(acts)
    codes = action_range.encode(acts)
    np.testing.assert_allclose(codes, [[-1, -1], [1, 1], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(action_range.decode(codes), acts, atol=1e-6)


def test_a_dimension_that_does_not_vary_is_decoded_to_its_value_whatever_the_code() -> None:
    action_range = ActionRange(ACTIONS).fit(th.tensor([[0.7, -2.0], [0.7, 1.0]]))
    np.testing.assert_allclose(action_range.encode(th.tensor([[0.7, 1.0]])), [[0, 1]], atol=1e-6)
    np.testing.assert_allclose(action_range.decode(th.tensor([[5.0, 1.0]])), [[0.7, 1.0]])
    low, high = action_range.code_limits(0.05)
    assert low[0] == high[0] == 0


def test_limits_widen_the_range_but_not_beyond_the_space() -> None:
    action_range = ActionRange(ACTIONS).fit(th.tensor([[0.0, -2.0], [1.0, 1.0]]))
    low, high = action_range.code_limits(0.05)
    # 5 % of the range is 0.1 of its half; the second dimension already starts at its bound.
    np.testing.assert_allclose(low, [-1.1, -1.0], atol=1e-6)
    np.testing.assert_allclose(high, [1.1, 1.1], atol=1e-6)


# --- bad arguments ------------------------------------------------------------------------------


@both
def test_other_actions_than_box_are_refused(method_class: type[SamplingMethod]) -> None:
    with pytest.raises(TypeError, match=r"action_space=.*expected a Box"):
        method_class(setup_of(random_transitions(), action_space=spaces.Discrete(3)))
