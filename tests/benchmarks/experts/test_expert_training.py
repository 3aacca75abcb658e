"""Training of experts: what it gives, and how it continues after an interruption."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from toys import LINE_ENV_ID, weights

from benchmarks.experts import training
from benchmarks.experts.training import ProgressReward, actor_of, train
from sb3_diffbc import load_policy, save_policy
from sb3_diffbc.tasks import TASKS, LearnedExpert, Task

pytestmark = pytest.mark.filterwarnings("ignore:rich is experimental")

ROLLOUT = 2 * 32
TIMESTEPS = 6 * ROLLOUT

EXPERT = LearnedExpert(
    "PPO, briefly",
    timesteps=TIMESTEPS,
    n_envs=2,
    net_arch=(8, 4),
    ppo={"n_steps": 32, "batch_size": 32, "n_epochs": 2, "gamma": 0.9},
)
LINE = dataclasses.replace(TASKS["cheetah"], name="line", env_id=LINE_ENV_ID, expert=EXPERT)
ANT = dataclasses.replace(
    TASKS["ant_reach"], expert=dataclasses.replace(EXPERT, progress_reward=True)
)


def task_with(task: Task = LINE, **changes: Any) -> Task:
    """A task with another expert."""
    return dataclasses.replace(task, expert=dataclasses.replace(task.expert, **changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "expert.pt"


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", -1.0)


def interrupt(monkeypatch: pytest.MonkeyPatch, task: Task, path: Path, timesteps: int) -> None:
    """Trains, and stops the process, as it were, after a number of timesteps."""

    def stop(callback: Any) -> bool:
        if callback.num_timesteps >= timesteps:
            raise KeyboardInterrupt
        return True

    with monkeypatch.context() as patch:
        patch.setattr(training._Checkpoint, "_on_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(task, 0, path)


# --- what training gives ------------------------------------------------------------------------


@pytest.mark.parametrize("task", [LINE, ANT], ids=["line", "ant_reach"])
def test_training_gives_a_policy_for_the_bare_environment(task: Task, path: Path) -> None:
    policy = train(task, 0, path)
    env = gym.make(task.env_id)
    assert policy.observation_space == env.observation_space
    observation, _ = env.reset(seed=0)
    action, _ = policy.predict(observation, deterministic=True)
    assert action in env.action_space
    assert path.is_file()


def test_training_learns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On the line, going right is all there is to learn.
    monkeypatch.setattr(training, "LEARNING_RATE", 3e-3)
    policy = train(task_with(timesteps=40 * ROLLOUT), 0, path)
    observations = np.array([[x, steps] for x in (-2, 0, 2) for steps in (1, 3, 5)], np.float32)
    actions, _ = policy.predict(observations, deterministic=True)
    assert actions.mean() > 0.2


def test_an_uninterrupted_run_is_reproducible_to_the_bit_and_saving_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again, other = (
        weights(train(LINE, seed, tmp_path / f"{name}.pt"))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", -1.0)
    saving = weights(train(LINE, 0, tmp_path / "saving.pt"))
    assert th.equal(first, again)
    assert th.equal(first, saving)
    assert not th.equal(first, other)


def test_a_task_whose_expert_is_scripted_cannot_be_trained(path: Path) -> None:
    with pytest.raises(ValueError, match="task: the expert of 'maze' is scripted"):
        train(TASKS["maze"], 0, path)


# --- after an interruption ----------------------------------------------------------------------


@pytest.mark.usefixtures("save_always")
def test_training_continues_with_weights_optimiser_statistics_and_learning_rate(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    rates: list[float] = []
    collect, update = PPO.collect_rollouts, PPO.train

    def state(model: PPO) -> dict[str, Any]:
        venv = model.get_vec_normalize_env()
        moments = model.policy.optimizer.state_dict()["state"].values()
        return {
            "weights": weights(model.policy),
            "moments": th.cat([moment["exp_avg_sq"].reshape(-1) for moment in moments]),
            "obs": np.concatenate([venv.obs_rms.mean, venv.obs_rms.var, [venv.obs_rms.count]]),
            "returns": np.array([venv.ret_rms.mean, venv.ret_rms.var, venv.ret_rms.count]),
        }

    def note_state(model: PPO, *args: Any, **kwargs: Any) -> bool:
        if model.num_timesteps == 4 * ROLLOUT:
            seen.append(state(model))
        return collect(model, *args, **kwargs)

    def note_rate(model: PPO) -> None:
        update(model)
        rates.append(model.policy.optimizer.param_groups[0]["lr"] / training.LEARNING_RATE)

    monkeypatch.setattr(PPO, "collect_rollouts", note_state)
    monkeypatch.setattr(PPO, "train", note_rate)
    interrupt(monkeypatch, LINE, path, 4 * ROLLOUT + 10)
    policy = train(LINE, 0, path)
    np.testing.assert_allclose(rates, [5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0], atol=1e-9)
    before, after = seen
    for name, value in before.items():
        # Each rollout begins with a reset, which adds the first observations to the statistics.
        tolerance = 0 if name in ("weights", "moments") else 0.1
        np.testing.assert_allclose(after[name], value, rtol=tolerance, atol=tolerance, err_msg=name)
    assert all(th.isfinite(value).all() for value in policy.state_dict().values())


@pytest.mark.usefixtures("save_always")
def test_continuing_does_not_repeat_the_first_episodes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = []

    def look(model: PPO, *_: Any, **__: Any) -> None:
        venv = model.get_vec_normalize_env()
        venv.reset()
        starts.append((venv.get_original_obs(), th.rand(3).numpy()))
        raise KeyboardInterrupt

    for rollouts in (0, 2, 3):
        if rollouts:
            interrupt(monkeypatch, LINE, path, rollouts * ROLLOUT + 10)
        with monkeypatch.context() as patch:
            patch.setattr(PPO, "learn", look)
            with pytest.raises(KeyboardInterrupt):
                train(LINE, 0, path)
    for drawn in zip(*starts, strict=True):
        assert len(np.unique(np.stack(drawn), axis=0)) == 3


def test_a_finished_training_returns_at_once_with_the_same_policy(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = train(LINE, 0, path)
    written = path.read_bytes()
    monkeypatch.delattr(PPO, "learn")
    assert th.equal(weights(policy), weights(train(LINE, 0, path)))
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("task", "seed"),
    [
        (LINE, 1),
        (task_with(timesteps=2 * TIMESTEPS), 0),
        (task_with(ppo={**EXPERT.ppo, "gamma": 0.5}), 0),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_kept(
    path: Path, task: Task, seed: int
) -> None:
    train(LINE, 0, path)
    written = path.read_bytes()
    with pytest.raises(ValueError, match=r"belongs to the settings .* move it away"):
        train(task, seed, path)
    assert path.read_bytes() == written


def test_the_words_about_an_expert_are_no_settings(path: Path) -> None:
    train(LINE, 0, path)
    train(task_with(summary="PPO, in other words"), 0, path)


# --- the policy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"activation": "relu", "net_arch": (16,)}], ids=str)
@pytest.mark.parametrize("task", [LINE, TASKS["walker"]], ids=["float32", "float64"])
def test_the_actor_acts_on_raw_observations_as_ppo_does_on_normalised_ones(
    task: Task, changes: dict[str, Any]
) -> None:
    expert = dataclasses.replace(EXPERT, **changes)
    model = training._make_model(task, expert, seed=0)
    venv = model.get_vec_normalize_env()
    size = model.observation_space.shape[0]
    rng = np.random.default_rng(0)
    venv.obs_rms.mean = rng.normal(scale=10, size=size)
    venv.obs_rms.var = rng.uniform(1e-4, 100, size=size)
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.5 * th.randn_like(parameter))
    policy = actor_of(model)
    spread = np.sqrt(venv.obs_rms.var)
    # As many as 20 standard deviations away, beyond where both clip.
    raw = venv.obs_rms.mean + spread * rng.normal(size=(200, size)) * rng.choice([1, 7], (200, 1))
    raw = raw.astype(model.observation_space.dtype)
    expected, _ = model.predict(venv.normalize_obs(raw), deterministic=True)
    found, _ = policy.predict(raw, deterministic=True)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.std(expected) > 0.1
    assert np.abs(venv.normalize_obs(raw)).max() == 10.0
    model.get_env().close()


def test_the_actor_carries_no_critic_and_survives_saving(path: Path, tmp_path: Path) -> None:
    policy = train(LINE, 0, path)
    assert not list(policy.mlp_extractor.value_net.parameters())
    assert not any(parameter.any() for parameter in policy.value_net.parameters())
    loaded = load_policy(save_policy(policy, tmp_path / "policy"), device="cpu")
    observations = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.predict(observations, deterministic=True)[0],
        policy.predict(observations, deterministic=True)[0],
    )


# --- the reward ---------------------------------------------------------------------------------


def test_progress_sums_to_the_way_made_good_and_the_tasks_reward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sb3_diffbc.envs import AntReachEnv

    # So near that random actions get there at times.
    monkeypatch.setattr(AntReachEnv, "tolerance", 4.9)
    env = ProgressReward(gym.make(ANT.env_id))
    env.action_space.seed(0)
    successes = 0
    env.reset(seed=0)
    for _ in range(20):
        _, info = env.reset()
        first, total, plain, done = info["distance"], 0.0, 0.0, False
        while not done:
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            total += float(reward)
            plain += float(terminated)
            done = terminated or truncated
        assert total == pytest.approx(first - info["distance"] + plain, abs=1e-9)
        successes += int(plain)
    assert 0 < successes < 20
