"""`load_expert`, and the experts that come with the package."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.policies import BasePolicy
from toys import policy as make_policy

from sb3_diffbc import evaluate_episodes, experts, load_expert, save_policy
from sb3_diffbc.tasks import TASKS, Task

# Loose, because a few episodes say little and other versions of MuJoCo give other episodes: the
# share of solved episodes, or the mean return.
EXPECTED = {
    "maze": 0.9,
    "fetch_pick": 0.8,
    "hand_rotate": 0.6,
    "cheetah": 3000.0,
    "walker": 3000.0,
    "ant_reach": 0.5,
}


@pytest.fixture(params=TASKS.values(), ids=lambda task: task.name)
def task(request: pytest.FixtureRequest) -> Task:
    found: Task = request.param
    return found


@pytest.fixture
def env(task: Task) -> gym.Env:
    """A task's environment; skips the test where its package is missing."""
    try:
        return gym.make(task.env_id)
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


@pytest.fixture
def expert(env: gym.Env, task: Task) -> BasePolicy:
    return load_expert(task.name)


def test_an_expert_can_do_its_task(expert: BasePolicy, task: Task) -> None:
    episodes = 10 if task.metric == "success" else 3
    result = evaluate_episodes(expert, task.env_id, n_episodes=episodes, n_parallel=3)
    score = result.success_rate if task.metric == "success" else result.returns.mean()
    assert score is not None
    assert score >= EXPECTED[task.name]


def test_a_learned_expert_is_read_from_its_file_onto_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experts.resources, "files", lambda _: tmp_path)
    written = make_policy()
    save_policy(written, tmp_path / "cheetah.safetensors")
    loaded = load_expert("cheetah")
    observation = np.ones(3, dtype=np.float32)
    expected, _ = written.predict(observation, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    assert loaded.device.type == "cpu"
    assert not loaded.training
    with pytest.raises(FileNotFoundError, match="walker"):
        load_expert("walker")
