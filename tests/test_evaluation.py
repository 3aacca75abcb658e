"""Evaluation: the same episodes for every policy, counted and scored one by one."""

from __future__ import annotations

import sys
from pathlib import Path
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
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from toys import IMAGE, LINE_ENV_ID, LineEnv, policy

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


class SaysSoOnlyOfSuccess(LineEnv):
    def step(self, action: np.ndarray) -> Any:
        *others, info = super().step(action)
        return *others, {key: value for key, value in info.items() if value}


def test_successes_of_some_episodes_are_no_rate() -> None:
    for env in (SaysSoOnlyOfSuccess(), DummyVecEnv([SaysSoOnlyOfSuccess])):
        assert evaluate_episodes(TowardsZero(), env, n_episodes=20).successes is None


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


# --- what an environment may do -----------------------------------------------------------------


def test_a_vec_normalize_keeps_its_statistics_and_returns_are_not_normalised() -> None:
    expected = evaluate_episodes(TowardsZero(), DummyVecEnv([LineEnv]), n_episodes=9, seed=3)
    inner = VecNormalize(DummyVecEnv([LineEnv]), norm_obs=False)
    env = VecFrameStack(inner, 1)
    inner.ret_rms.mean, inner.ret_rms.var = np.array(5.0), np.array(100.0)
    found = evaluate_episodes(TowardsZero(), env, n_episodes=9, seed=3)
    np.testing.assert_array_equal(found.returns, expected.returns)
    assert (inner.ret_rms.mean, inner.ret_rms.var) == (5.0, 100.0)
    assert inner.training
    assert inner.norm_reward


def test_a_vec_normalize_gives_the_policy_observations_by_its_statistics() -> None:
    env = VecNormalize(DummyVecEnv([LineEnv]))
    env.obs_rms.mean = np.array([50.0, 0.0])  # from where a walk to the middle leads right
    found = evaluate_episodes(TowardsZero(), env, n_episodes=9, seed=3)
    expected = evaluate_episodes(TowardsZero(), DummyVecEnv([LineEnv]), n_episodes=9, seed=3)
    assert found.returns.mean() > expected.returns.mean() + 3
    assert env.obs_rms.mean.tolist() == [50.0, 0.0]


class Faulty(LineEnv):
    """The line, with a wrong number in its second episode's step of a number."""

    def __init__(self, step: int, reward: float = 0.0, entry: float = 0.0) -> None:
        super().__init__()
        self.wrong = step, reward, entry
        self.episode = -1

    def reset(self, **kwargs: Any) -> Any:
        self.episode += 1
        self.n_steps = 0
        _, info = super().reset(**kwargs)
        self.steps_left = 3
        return self._faulty(), info

    def step(self, action: np.ndarray) -> Any:
        self.n_steps += 1
        _, reward, *rest = super().step(np.clip(np.nan_to_num(action), -1, 1))
        return self._faulty(), self.wrong[1] if self._is_wrong else reward, *rest

    @property
    def _is_wrong(self) -> bool:
        return (self.episode, self.n_steps) == (1, self.wrong[0])

    def _faulty(self) -> np.ndarray:
        return self._observation() + np.float32(self.wrong[2] if self._is_wrong else 0.0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"step": 2, "reward": float("nan")}, "step 2: reward has nan"),
        ({"step": 3, "reward": float("-inf")}, "step 3: reward has -inf"),
        ({"step": 0, "entry": float("inf")}, "step 0: observation has inf"),
        ({"step": 1, "entry": float("nan")}, "step 1: observation has nan"),
        ({"step": 3, "entry": float("inf")}, "step 3: observation has inf"),
    ],
)
def test_numbers_that_are_not_finite_are_errors_with_their_place(fault: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"episode 1 \(seed 8\), {message}, expected finite"):
        evaluate_episodes(TowardsZero(), Faulty(**fault), n_episodes=3, seed=7)
    for env in (
        DummyVecEnv([lambda: Faulty(**fault)]),
        DummyVecEnv([LineEnv, lambda: Monitor(Faulty(**fault))]),
    ):
        number = env.num_envs - 1
        where = f"environment {number}, its episode 1, {message}"
        # A VecEnv resets once before the first episode that counts.
        for faulty in [env.envs[number].unwrapped]:
            faulty.episode = -1
        with pytest.raises(ValueError, match=where):
            evaluate_episodes(TowardsZero(), env, n_episodes=6)


def test_infinite_observations_are_found_behind_vec_normalize() -> None:
    env = VecNormalize(DummyVecEnv([lambda: Faulty(1, entry=float("inf"))]))
    with pytest.raises(ValueError, match="episode 1, step 1: observation has inf"):
        evaluate_episodes(TowardsZero(), env, n_episodes=6)


def test_other_spaces_than_the_policys_are_refused() -> None:
    other = policy(spaces.Box(-1, 1, (2,), np.float32), LineEnv.action_space)
    for env in (LINE_ENV_ID, LineEnv(), DummyVecEnv([LineEnv])):
        with pytest.raises(ValueError, match=r"env.observation_space is .*: expected the policy's"):
            evaluate_episodes(other, env, n_episodes=1)
    other = policy(LineEnv.observation_space, spaces.Discrete(2))
    with pytest.raises(ValueError, match=r"env.action_space is Box"):
        evaluate_episodes(other, LINE_ENV_ID, n_episodes=1)


class ImageEnv(LineEnv):
    """The line, seen as an image with its channels last, and drawn."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def _observation(self) -> np.ndarray:
        return np.full((36, 36, 3), int(100 + 10 * self.position), np.uint8)

    def render(self) -> Any:
        return self._observation()


IMAGE_ENV_ID = "sb3_diffbc_tests/Image-v0"
if IMAGE_ENV_ID not in gym.registry:
    gym.register(IMAGE_ENV_ID, entry_point=ImageEnv)


def image_policy() -> Any:
    return policy(IMAGE, ImageEnv.action_space, cls=ActorCriticCnnPolicy)


def test_videos_show_every_step_of_the_first_episodes(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    found = evaluate_episodes(
        image_policy(), IMAGE_ENV_ID, n_episodes=4, seed=5, video_folder=tmp_path / "v", n_videos=2
    )
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == [
        "episode-5.mp4",
        "episode-6.mp4",
    ]
    for seed, length in zip((5, 6), found.lengths, strict=False):
        with imageio.get_reader(tmp_path / "v" / f"episode-{seed}.mp4") as video:
            assert video.count_frames() == length + 1
            assert video.get_meta_data()["fps"] == 10
    given = ImageEnv(render_mode="rgb_array")
    evaluate_episodes(image_policy(), given, n_episodes=1, video_folder=tmp_path / "given")
    assert (tmp_path / "given" / "episode-0.mp4").is_file()


def test_videos_need_an_environment_that_can_be_filmed(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(ValueError, match="env renders as None, expected 'rgb_array'"):
        evaluate_episodes(image_policy(), ImageEnv(), video_folder=tmp_path / "v")
    env = DummyVecEnv([ImageEnv])
    with pytest.raises(ValueError, match="wrap it in SB3's VecVideoRecorder"):
        evaluate_episodes(image_policy(), env, video_folder=tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_videos_without_their_package_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'imageio\[ffmpeg\]'"):
        evaluate_episodes(image_policy(), IMAGE_ENV_ID, video_folder=tmp_path)


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
