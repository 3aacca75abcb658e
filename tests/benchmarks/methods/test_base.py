"""What both methods promise: arguments, fitting, reproducibility and actions within bounds."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.data.types import DictObs, TransitionsMinimal
from stable_baselines3.common.policies import BasePolicy

from benchmarks.methods import DiffusionPolicy, ImplicitBC, Method
from benchmarks.methods.base import ActionRange
from sb3_diffbc import evaluate_episodes, load_demonstrations
from sb3_diffbc.demonstrations import DemonstrationWarning
from sb3_diffbc.demonstrations.batches import TransitionBatches

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(-2, 2, (2,), np.float32)

SMALL: dict[type[Method], dict[str, Any]] = {
    ImplicitBC: {"width": 16, "depth": 2, "batch_size": 16, "n_counter_examples": 4}
    | {"n_samples": 32, "device": "cpu"},
    DiffusionPolicy: {"width": 16, "depth": 1, "batch_size": 16, "num_train_timesteps": 10}
    | {"device": "cpu"},
}
# What the two toys need; the second network is enough for both.
TOY: dict[type[Method], dict[str, Any]] = {
    ImplicitBC: {"width": 64, "depth": 2, "batch_size": 64, "n_counter_examples": 32}
    | {"n_samples": 256, "learning_rate": 3e-3, "device": "cpu"},
    DiffusionPolicy: {"width": 64, "depth": 2, "batch_size": 128, "learning_rate": 3e-3}
    | {"num_train_timesteps": 50, "device": "cpu"},
}

both = pytest.mark.parametrize("method_class", [ImplicitBC, DiffusionPolicy])


def transitions_of(obs: Any, acts: np.ndarray) -> TransitionsMinimal:
    return TransitionsMinimal(obs=obs, acts=acts, infos=np.full(len(acts), {}))


def random_transitions(n: int = 50, seed: int = 0) -> TransitionsMinimal:
    rng = np.random.default_rng(seed)
    obs = rng.normal(3, 5, (n, 2)).astype(np.float32)
    return transitions_of(obs, rng.uniform(-1, 1, (n, 2)).astype(np.float32))


def make(method_class: type[Method], **arguments: Any) -> Method:
    return method_class(OBSERVATIONS, ACTIONS, **(SMALL[method_class] | arguments))


# --- learning -----------------------------------------------------------------------------------


@both
def test_an_action_is_near_one_of_two_modes_and_not_at_their_mean(
    method_class: type[Method],
) -> None:
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(2000, 1)).astype(np.float32)
    modes = rng.choice([-1.0, 1.0], (2000, 1))
    acts = (modes + rng.normal(scale=0.03, size=(2000, 1))).astype(np.float32)
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-2, 2, (1,), np.float32)
    method = method_class(observation_space, action_space, **TOY[method_class])
    method.fit(transitions_of(obs, acts), 600)
    found, _ = method.policy.predict(obs[:200], deterministic=True)
    features = np.hstack([obs, np.ones_like(obs)])
    regression = features @ np.linalg.lstsq(features, acts, rcond=None)[0]
    assert np.abs(regression).max() < 0.3
    near_a_mode = np.abs(np.abs(found) - 1) < 0.25
    assert near_a_mode.mean() > 0.9


@both
def test_a_function_is_recovered(method_class: type[Method]) -> None:
    def expert(obs: np.ndarray) -> np.ndarray:
        return np.stack([np.sin(2 * obs[:, 0]), 1.5 * obs[:, 1] ** 2], axis=1)

    rng = np.random.default_rng(1)
    obs = rng.uniform(-1, 1, (2000, 2)).astype(np.float32)
    new_obs = rng.uniform(-0.9, 0.9, (200, 2)).astype(np.float32)
    method = method_class(OBSERVATIONS, ACTIONS, **TOY[method_class])
    method.fit(transitions_of(obs, expert(obs).astype(np.float32)), 1000)
    found, _ = method.policy.predict(new_obs, deterministic=True)
    assert np.abs(found - expert(new_obs)).mean() < 0.1


# --- fitting ------------------------------------------------------------------------------------


@both
def test_the_record_holds_the_mean_loss_of_every_hundred_updates(
    method_class: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(method_class)
    seen: list[float] = []
    original = method._loss

    def watched(*arguments: Any) -> th.Tensor:
        loss = original(*arguments)
        seen.append(float(loss))
        return loss

    monkeypatch.setattr(method, "_loss", watched)
    assert method.record is None
    record = method.fit(random_transitions(), 230)
    assert method.record is record
    assert record.updates == (100, 200, 230)
    expected = [np.mean(seen[:100]), np.mean(seen[100:200]), np.mean(seen[200:])]
    np.testing.assert_allclose(record.losses, expected, rtol=1e-4)


@both
@pytest.mark.parametrize(
    ("lr_decay", "expected"),
    [("linear", [1e-2, 7.5e-3, 5e-3, 2.5e-3]), ("cosine", [1e-2, 8.535534e-3, 5e-3, 1.464466e-3])],
)
def test_the_learning_rate_falls_to_zero_and_the_callback_sees_every_update(
    method_class: type[Method],
    lr_decay: str,
    expected: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = make(method_class, learning_rate=1e-2, lr_decay=lr_decay)
    optimizer = method._make_optimizer()
    monkeypatch.setattr(method, "_make_optimizer", lambda: optimizer)
    rates = []

    def on_batch_end() -> None:
        rates.append(optimizer.param_groups[0]["lr"])
        method.policy.predict(np.zeros((1, 2), np.float32))

    method.fit(random_transitions(), 4, on_batch_end)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@both
def test_batches_are_those_of_the_library_for_the_same_seed(
    method_class: type[Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    transitions = random_transitions()
    method = make(method_class, seed=7)
    seen = []
    original = method._loss

    def watched(obs: th.Tensor, acts: th.Tensor, generator: th.Generator) -> th.Tensor:
        seen.append((method.encoder.decode_obs(obs), method.action_range.decode(acts)))
        return original(obs, acts, generator)

    monkeypatch.setattr(method, "_loss", watched)
    method.fit(transitions, 8)
    th.manual_seed(7)
    batches = TransitionBatches(transitions, 16)
    expected = [batch for _ in range(3) for batch in batches][:8]
    for (obs, acts), batch in zip(seen, expected, strict=True):
        np.testing.assert_allclose(obs, batch["obs"], atol=1e-4)
        np.testing.assert_allclose(acts, batch["acts"], atol=1e-5)


@both
def test_a_seed_decides_everything_and_leaves_the_global_state_alone(
    method_class: type[Method],
) -> None:
    obs = random_transitions(seed=1).obs
    actions, losses = [], []
    for seed in (3, 3, 4):
        before = th.get_rng_state()
        method = make(method_class, seed=seed)
        losses.append(method.fit(random_transitions(), 20).losses)
        actions.append(method.policy.predict(obs)[0])
        assert th.equal(before, th.get_rng_state())
        th.manual_seed(seed + 100)
    np.testing.assert_array_equal(actions[0], actions[1])
    assert losses[0] == losses[1]
    assert not np.allclose(actions[0], actions[2])
    assert losses[0] != losses[2]


@both
def test_a_diverging_fit_is_reported(method_class: type[Method]) -> None:
    with pytest.raises(RuntimeError, match=r"mean loss became .* by update .*learning_rate"):
        make(method_class, learning_rate=1e30).fit(random_transitions(), 100)


@both
def test_parameters_are_those_of_the_trained_network(method_class: type[Method]) -> None:
    method = make(method_class)
    assert method.n_parameters == sum(p.numel() for p in method.network.parameters())
    assert make(method_class, width=32).n_parameters > method.n_parameters


# --- the policy ---------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_stay_within_the_action_space(
    method_class: type[Method], deterministic: bool
) -> None:
    transitions = random_transitions()
    # What was recorded may exceed what the environment executes.
    outside = transitions_of(transitions.obs, transitions.acts * 4)
    method = make(method_class)
    with pytest.warns(DemonstrationWarning, match="leave the bounds"):
        method.fit(outside, 5)
    observations = np.random.default_rng(2).normal(0, 100, (300, 2)).astype(np.float32)
    actions, state = method.policy.predict(observations, deterministic=deterministic)
    assert state is None
    assert actions.shape == (300, 2)
    assert all(ACTIONS.contains(action) for action in actions)


@both
def test_the_same_calls_after_a_reset_give_the_same_actions(method_class: type[Method]) -> None:
    policy = make(method_class).policy
    obs = random_transitions().obs
    first, second = policy.predict(obs)[0], policy.predict(obs)[0]
    assert not np.allclose(first, second)
    policy.reset_noise()
    np.testing.assert_array_equal(policy.predict(obs)[0], first)
    np.testing.assert_array_equal(policy.predict(obs)[0], second)
    policy.reset_noise(seed=5)
    assert not np.allclose(policy.predict(obs)[0], first)


@both
def test_it_is_an_sb3_policy_for_single_and_batched_observations(
    method_class: type[Method],
) -> None:
    policy = make(method_class).policy
    assert isinstance(policy, BasePolicy)
    assert policy.predict(np.zeros(2, np.float32))[0].shape == (2,)
    assert policy.predict(np.zeros((3, 2), np.float32))[0].shape == (3, 2)


@both
def test_it_runs_in_the_maze_and_again_in_the_same_way(method_class: type[Method]) -> None:
    env = gym.make("sb3_diffbc/Maze-v0", max_episode_steps=5)
    method = method_class(env.observation_space, env.action_space, **SMALL[method_class])
    method.fit("maze", 3)
    results = []
    for _ in range(2):
        method.policy.reset_noise()
        results.append(
            evaluate_episodes(method.policy, env.spec, n_episodes=3, seed=0, keep_observations=True)
        )
    assert results[0].lengths.max() <= 5
    np.testing.assert_array_equal(*(np.concatenate(r.observations) for r in results))


@both
def test_dict_observations_and_matrix_actions_work(method_class: type[Method]) -> None:
    observation_space = spaces.Dict({"place": OBSERVATIONS, "kind": spaces.Discrete(3)})
    action_space = spaces.Box(-1, 1, (2, 2), np.float32)
    rng = np.random.default_rng(0)
    obs = {"place": rng.normal(size=(40, 2)).astype(np.float32), "kind": rng.integers(3, size=40)}
    acts = rng.uniform(-1, 1, (40, 2, 2)).astype(np.float32)
    method = method_class(observation_space, action_space, **SMALL[method_class])
    method.fit(transitions_of(DictObs(obs), acts), 3)
    assert method.policy.predict(obs)[0].shape == (40, 2, 2)


# --- the range of actions -----------------------------------------------------------------------


def test_codes_span_minus_one_to_one_and_go_back() -> None:
    acts = th.tensor([[0.0, -2.0], [1.0, 1.0], [0.5, -0.5]])
    action_range = ActionRange(ACTIONS).fit(acts)
    codes = action_range.encode(acts)
    np.testing.assert_allclose(codes, [[-1, -1], [1, 1], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(action_range.decode(codes), acts, atol=1e-6)


def test_decoded_actions_are_clipped_to_the_space_and_not_to_the_range() -> None:
    action_range = ActionRange(ACTIONS).fit(th.tensor([[0.0, -2.0], [1.0, 1.0]]))
    found = action_range.decode(th.tensor([[2.0, -1.5]]))
    np.testing.assert_allclose(found, [[1.5, -2.0]])


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
@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiBinary(2)])
def test_other_actions_than_box_are_refused(method_class: type[Method], space: gym.Space) -> None:
    with pytest.raises(TypeError, match=r"action_space=.*expected a Box"):
        method_class(OBSERVATIONS, space)


@both
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width=0 must be a finite number of at least 1"),
        ({"depth": 0}, "depth=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seed": -1}, "seed=-1 must be a finite number of at least 0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"lr_decay": "step"}, r"lr_decay='step' is unknown: expected one of \['cosine', 'linear'"),
    ],
)
def test_arguments_outside_their_range_are_refused(
    method_class: type[Method], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(method_class, **arguments)


@both
def test_unusable_demonstrations_and_budgets_are_refused(method_class: type[Method]) -> None:
    method = make(method_class)
    with pytest.raises(ValueError, match="n_batches=0"):
        method.fit(random_transitions(), 0)
    with pytest.raises(ValueError, match="16"):
        method.fit(random_transitions(15), 1)
    with pytest.raises(ValueError, match="acts"):
        method.fit(transitions_of(np.zeros((20, 2), np.float32), np.zeros((20, 3), np.float32)), 1)


def test_the_bundled_demonstrations_are_taken_by_name_or_as_transitions() -> None:
    env = gym.make("sb3_diffbc/Maze-v0")
    losses = [
        DiffusionPolicy(env.observation_space, env.action_space, **SMALL[DiffusionPolicy])
        .fit(demonstrations, 2)
        .losses
        for demonstrations in ("maze", load_demonstrations("maze"))
    ]
    assert losses[0] == losses[1]
