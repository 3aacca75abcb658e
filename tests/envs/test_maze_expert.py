"""The scripted Maze expert."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from imitation.algorithms import dagger
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import BasePolicy

from sb3_diffbc.envs import MAZE_ENV_ID, MazeEnv
from sb3_diffbc.envs.maze import cell_of, free_cells
from sb3_diffbc.envs.maze_expert import MazeExpert


@pytest.fixture(scope="module")
def expert() -> MazeExpert:
    return MazeExpert()


def test_reaches_the_goal_in_every_one_of_50_episodes(expert: MazeExpert) -> None:
    env = Monitor(gym.make(MAZE_ENV_ID))
    env.reset(seed=0)
    rewards, lengths = evaluate_policy(
        expert, env, n_eval_episodes=50, return_episode_rewards=True, warn=False
    )
    assert rewards == [1.0] * 50
    assert max(lengths) < 300


@pytest.mark.parametrize("ratio", [0.0, 2.0])
def test_reaches_the_goal_at_other_noise_ratios(expert: MazeExpert, ratio: float) -> None:
    env = gym.make(MAZE_ENV_ID, noise_ratio=ratio, goal_noise_ratio=ratio)
    env.reset(seed=0)
    rewards, _ = evaluate_policy(
        expert, Monitor(env), n_eval_episodes=20, return_episode_rewards=True, warn=False
    )
    assert rewards == [1.0] * 20


def test_reaches_every_cell_from_the_farthest_corner_without_touching_a_wall(
    expert: MazeExpert,
) -> None:
    env = MazeEnv()
    for goal in free_cells():
        obs, _ = env.reset(options={"position": (6, 6), "velocity": (0, 0), "goal": goal})
        success = False
        for _ in range(400):
            obs, _, success, _, _ = env.step(expert._choose_action(obs))
            # The walls begin 0.5 from a cell's centre and the ball's radius is 0.1.
            centre = np.array(cell_of(obs[:2])) - 0.2
            offset = obs[:2] - centre
            for axis in (0, 1):
                if abs(offset[axis]) > 0.4:
                    step = np.zeros(2)
                    step[axis] = np.sign(offset[axis])
                    assert cell_of(centre + step) in free_cells()
            if success:
                break
        assert success, goal


def test_action_depends_on_the_observation_alone(expert: MazeExpert) -> None:
    env = MazeEnv()
    env.reset(seed=0)
    observations = np.stack([env.reset()[0] for _ in range(20)])
    batch, _ = expert.predict(observations)
    singly = [MazeExpert().predict(obs)[0] for obs in observations[::-1]]
    np.testing.assert_array_equal(batch, np.stack(singly)[::-1])
    assert batch.dtype == np.float32
    assert np.abs(batch).max() <= 1.0


def test_action_varies_little_with_the_observation_across_a_border_of_cells(
    expert: MazeExpert,
) -> None:
    # Entering cell (3, 3) from (3, 2) on the way to (5, 3): the path turns after the border.
    before = np.array([2.8, 2.3 - 1e-4, 0, 2, 5.0, 3.0], dtype=np.float32)
    after = before + np.array([0, 2e-4, 0, 0, 0, 0], dtype=np.float32)
    assert cell_of(before[:2]) != cell_of(after[:2])
    np.testing.assert_allclose(
        expert.predict(before)[0], expert.predict(after)[0], rtol=0, atol=1e-2
    )


def test_any_observation_of_the_space_gets_an_action(expert: MazeExpert) -> None:
    space = MazeEnv().observation_space
    space.seed(0)
    for _ in range(200):
        assert MazeEnv().action_space.contains(expert.predict(space.sample())[0])


def test_labels_for_dagger(expert: MazeExpert, tmp_path: Any) -> None:
    from imitation.algorithms.bc import BC
    from imitation.data import rollout
    from stable_baselines3.common.vec_env import DummyVecEnv

    assert isinstance(expert, BasePolicy)
    venv = DummyVecEnv([lambda: gym.make(MAZE_ENV_ID)])
    rng = np.random.default_rng(0)
    trainer = dagger.SimpleDAggerTrainer(
        venv=venv,
        scratch_dir=tmp_path,
        expert_policy=expert,
        bc_trainer=BC(
            observation_space=venv.observation_space, action_space=venv.action_space, rng=rng
        ),
        rng=rng,
    )
    collector = trainer.create_trajectory_collector()
    trajectories = rollout.generate_trajectories(
        expert,
        collector,
        sample_until=rollout.make_sample_until(min_episodes=1),
        deterministic_policy=True,
        rng=rng,
    )
    assert len(trajectories) >= 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"observation_space": spaces.Box(-1, 1, (4,))}, "observation_space: found Box"),
        ({"action_space": spaces.Discrete(2)}, r"action_space: found Discrete\(2\), expected"),
        ({"look_ahead": 0.0}, r"look_ahead: found 0.0, expected a number in \(0, 1\]"),
        ({"stiffness": -1.0}, "stiffness: found -1.0, expected a positive number"),
        ({"damping": float("nan")}, "damping: found nan, expected a positive number"),
    ],
)
def test_bad_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MazeExpert(**kwargs)
