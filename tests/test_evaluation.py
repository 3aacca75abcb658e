"""Evaluation: the same episodes for every policy, counted and scored one by one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.policies.base import NonTrainablePolicy
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import LINE_ENV_ID, LineEnv, policy

from sb3_diffbc import EvaluationResult, evaluate_episodes
from sb3_diffbc.evaluation import Env

SPACES = (LineEnv.observation_space, LineEnv.action_space)


class TowardsZero(NonTrainablePolicy):
    """Walks to the middle of the line, and notes how many observations it gets at once."""

    def __init__(self) -> None:
        super().__init__(*SPACES)
        self.batch_sizes: list[int] = []

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        self.batch_sizes.append(len(observation))
        return super().predict(observation, *args, **kwargs)

    def _choose_action(self, obs: Any) -> np.ndarray:
        return np.clip(-obs[:1], -1, 1).astype(np.float32)


class MappingEnv(LineEnv):
    """The line, seen as a mapping."""

    observation_space = spaces.Dict({"state": LineEnv.observation_space})

    def _observation(self) -> Any:
        return {"state": super()._observation()}


def slow_episode(actor: NonTrainablePolicy, seed: int) -> tuple[float, list[np.ndarray], bool]:
    """One episode, stepped by hand."""
    env = LineEnv()
    observation, _ = env.reset(seed=seed)
    total, seen, done, info = 0.0, [observation], False, {}
    while not done:
        action, _ = actor.predict(observation[None], deterministic=True)
        observation, reward, done, _, info = env.step(action[0])
        seen.append(observation)
        total += reward
    return total, seen, info["is_success"]


@settings(max_examples=25, deadline=None)
@given(
    n_episodes=st.integers(1, 30), n_parallel=st.integers(1, 9), seed=st.integers(0, 2**31 - 100)
)
def test_episodes_are_those_of_their_seeds_however_many_run_at_once(
    n_episodes: int, n_parallel: int, seed: int
) -> None:
    found = evaluate_episodes(
        TowardsZero(),
        LINE_ENV_ID,
        n_episodes=n_episodes,
        seed=seed,
        n_parallel=n_parallel,
        keep_observations=True,
    )
    assert found.seeds == tuple(range(seed, seed + n_episodes))
    assert found.observations is not None
    assert found.successes is not None
    for i in range(n_episodes):
        total, seen, success = slow_episode(TowardsZero(), seed + i)
        assert found.returns[i] == pytest.approx(total)
        assert found.lengths[i] == len(seen) - 1
        assert found.successes[i] == success
        np.testing.assert_array_equal(found.observations[i], seen)


@pytest.mark.parametrize(
    "env",
    [gym.spec(LINE_ENV_ID), LineEnv(), Monitor(gym.make(LINE_ENV_ID))],
    ids=["spec", "environment", "wrapped"],
)
def test_every_form_of_an_environment_gives_the_same_episodes(env: Env) -> None:
    found = evaluate_episodes(TowardsZero(), env, n_episodes=7, seed=5)
    expected = evaluate_episodes(TowardsZero(), LINE_ENV_ID, n_episodes=7, seed=5)
    np.testing.assert_allclose(found.returns, expected.returns)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_array_equal(found.successes, expected.successes)
    assert found.observations is None


def test_copies_run_side_by_side_and_a_given_environment_alone() -> None:
    for env, n_episodes, together in (
        (LINE_ENV_ID, 20, 5),
        (LINE_ENV_ID, 3, 3),
        (LineEnv(), 20, 1),
    ):
        actor = TowardsZero()
        evaluate_episodes(actor, env, n_episodes=n_episodes, n_parallel=5)
        assert max(actor.batch_sizes) == together


def test_copies_are_closed_even_when_an_episode_fails_and_a_given_environment_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[LineEnv] = []

    def fail(self: LineEnv, action: Any) -> Any:
        raise RuntimeError("the simulator broke")

    monkeypatch.setattr(LineEnv, "close", lambda env: closed.append(env))
    monkeypatch.setattr(LineEnv, "step", fail)
    with pytest.raises(RuntimeError, match="the simulator broke"):
        evaluate_episodes(TowardsZero(), LINE_ENV_ID, n_episodes=4, n_parallel=2)
    assert len(closed) == 2
    with pytest.raises(RuntimeError, match="the simulator broke"):
        evaluate_episodes(TowardsZero(), LineEnv(), n_episodes=4)
    assert len(closed) == 2


def test_deterministic_means_the_policys_mode_also_for_mapping_observations() -> None:
    actor = policy(MappingEnv.observation_space, MappingEnv.action_space)
    first, second = (evaluate_episodes(actor, MappingEnv(), n_episodes=9) for _ in range(2))
    np.testing.assert_array_equal(first.returns, second.returns)
    sampled = evaluate_episodes(actor, MappingEnv(), n_episodes=9, deterministic=False)
    assert not np.array_equal(sampled.returns, first.returns)


def test_without_success_in_the_infos_there_are_no_successes() -> None:
    for env in (LineEnv(reports_success=False), DummyVecEnv([lambda: LineEnv(False)])):
        found = evaluate_episodes(TowardsZero(), env, n_episodes=3)
        assert found.successes is found.success_rate is found.success_interval() is None
        assert "success" not in str(found)


def test_a_vec_env_is_stepped_as_a_whole_and_agrees_with_sb3() -> None:
    def make() -> DummyVecEnv:
        return DummyVecEnv([lambda: Monitor(LineEnv())] * 3)

    found = evaluate_episodes(TowardsZero(), make(), n_episodes=10, seed=3)
    env = make()
    env.seed(3)
    returns, lengths = evaluate_policy(
        TowardsZero(), env, n_eval_episodes=10, return_episode_rewards=True
    )
    np.testing.assert_array_equal(found.returns, returns)
    np.testing.assert_array_equal(found.lengths, lengths)
    assert found.seeds is None
    env = DummyVecEnv([lambda: gym.wrappers.TimeLimit(LineEnv(), max_episode_steps=1)] * 2)
    short = evaluate_episodes(TowardsZero(), env, n_episodes=20)
    # The last reward is the final position, so the sign of the return tells here.
    np.testing.assert_array_equal(short.successes, short.returns > 0)
    again = evaluate_episodes(TowardsZero(), make(), n_episodes=10, seed=3)
    np.testing.assert_array_equal(again.successes, found.successes)


def test_progress_is_shown_only_if_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    evaluate_episodes(TowardsZero(), LINE_ENV_ID, n_episodes=4)
    assert capfd.readouterr() == ("", "")
    evaluate_episodes(TowardsZero(), LINE_ENV_ID, n_episodes=4, progress_bar=True)
    assert "4/4" in capfd.readouterr().err


def test_counts_below_one_and_things_that_are_no_environment_are_refused() -> None:
    with pytest.raises(ValueError, match=r"n_parallel: .* greater than or equal to 1, found 0"):
        evaluate_episodes(TowardsZero(), LINE_ENV_ID, n_parallel=0)
    env: Any = LineEnv
    with pytest.raises(TypeError, match="env is a"):
        evaluate_episodes(TowardsZero(), env)


# --- the result ---------------------------------------------------------------------------------


def result(returns: list[float], successes: list[bool] | None = None) -> EvaluationResult:
    return EvaluationResult(
        returns=np.array(returns),
        lengths=np.ones(len(returns), dtype=int),
        successes=None if successes is None else np.array(successes),
    )


def test_equal_returns_have_a_point_for_an_interval() -> None:
    assert result([3.0, 3.0, 3.0]).return_interval() == (3.0, 3.0)


def test_one_episode_has_no_interval() -> None:
    one = result([3.0], [True])
    assert one.return_interval() is one.success_interval() is None
    assert str(one) == "success 100.0%, return 3.00 over one episode, no interval"


def test_success_has_wilsons_interval_and_return_students() -> None:
    found = result([1.0, 2.0, 3.0, 4.0], [True, True, False, True])
    # Wilson (1927): rates p that are z = 1.95996 standard errors sqrt(p (1 - p) / 4) from 3 / 4.
    for bound in found.success_interval() or ():
        assert (bound - 0.75) ** 2 == pytest.approx(1.95996**2 * bound * (1 - bound) / 4, rel=1e-4)
    # Mean 2.5, standard error 0.6455, 97.5 % quantile of t with 3 degrees of freedom 3.1824.
    expected = (2.5 - 3.18245 * 0.645497, 2.5 + 3.18245 * 0.645497)
    assert found.return_interval() == pytest.approx(expected, abs=1e-4)
    assert str(found) == (
        "success 75.0% [30.1%, 95.4%], return 2.50 [0.45, 4.55] over 4 episodes (95 % intervals)"
    )
