"""Whole runs with small budgets, on the bundled demonstrations and on the authors' files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.data.types import TransitionsMinimal
from imitation.policies.base import RandomPolicy

from sb3_diffbc import (
    DemonstrationWarning,
    DiffusionBC,
    DiffusionCritic,
    evaluate_episodes,
    load_demonstrations,
)

pytestmark = pytest.mark.slow

LOCOMOTION = {
    "observation_space": spaces.Box(-np.inf, np.inf, (17,), np.float32),
    "action_space": spaces.Box(-1, 1, (6,), np.float32),
}


def split(data: TransitionsMinimal, n_held_out: int) -> tuple[Any, Any]:
    """The demonstrations without, and with nothing but, their last rows."""
    cut = len(data) - n_held_out
    return tuple(
        TransitionsMinimal(obs=data.obs[rows], acts=data.acts[rows], infos=data.infos[rows])
        for rows in (slice(cut), slice(cut, None))
    )


def explained_variance(algorithm: DiffusionBC, data: TransitionsMinimal) -> float:
    """Share of the actions' variance that the policy accounts for."""
    with th.no_grad():
        distribution = algorithm.policy.get_distribution(th.tensor(data.obs))
    error = np.mean((distribution.mode().numpy() - data.acts) ** 2, axis=0)
    return float(1 - np.mean(error / data.acts.var(axis=0)))


@pytest.mark.parametrize("bc_loss", ["nll", "mse"])
@pytest.mark.parametrize("name", ["walker", "halfcheetah"])
def test_the_authors_locomotion_files_are_learnt(
    name: str, bc_loss: str, paper_data: Path, losses: list[tuple[th.Tensor, Any]]
) -> None:
    with warnings.catch_warnings(record=True) as reported:
        warnings.simplefilter("always")
        data = load_demonstrations(paper_data / f"{name}.pt")
        training, held_out = split(data, 500)
        algorithm = DiffusionBC(
            demonstrations=training,
            **LOCOMOTION,
            bc_loss=bc_loss,
            batch_size=128,
            critic_kwargs={"n_steps": 500},
            seed=0,
            verbose=0,
            device="cpu",
        )
    messages = " ".join(str(warning.message) for warning in reported)
    assert all(issubclass(warning.category, DemonstrationWarning) for warning in reported)
    assert "`acts` leave the bounds of `action_space`" in messages
    algorithm.train(n_batches=700, progress_bar=False)
    values = [float(m.neglogp if bc_loss == "nll" else m.regression) for _, m in losses]
    assert np.mean(values[-50:]) < np.mean(values[:10]) - 0.5
    assert explained_variance(algorithm, held_out) > 0.5
    assert algorithm.critic is not None
    assert algorithm.critic.history is not None
    # 1 is what predicting no noise scores.
    assert algorithm.critic.history.validation_loss[-1] < 0.7
    assert all(np.isfinite(float(m.dm.loss)) for _, m in losses)


def maze_trainer(seed: int, **kwargs: Any) -> DiffusionBC:
    with warnings.catch_warnings():
        # The goal is at rest in every demonstration, say.
        warnings.simplefilter("ignore", DemonstrationWarning)
        return DiffusionBC(
            demonstrations="maze",
            env="sb3_diffbc/Maze-v0",
            critic_kwargs={"n_steps": 500},
            batch_size=128,
            seed=seed,
            verbose=0,
            device="cpu",
            **kwargs,
        )


def test_the_maze_is_learnt_from_the_bundled_demonstrations() -> None:
    algorithm = maze_trainer(seed=0)
    algorithm.train(n_batches=2000, progress_bar=False)
    learnt = algorithm.evaluate(20, seed=1000)
    random_policy = RandomPolicy(algorithm.observation_space, algorithm.action_space)
    aimless = evaluate_episodes(random_policy, "sb3_diffbc/Maze-v0", n_episodes=20, seed=1000)
    assert learnt.success_rate is not None
    assert aimless.success_rate is not None
    assert learnt.success_rate >= aimless.success_rate + 0.4


def test_the_authors_critic_alone_pulls_a_policy_towards_the_expert(
    paper_data: Path, losses: list[tuple[th.Tensor, Any]]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DemonstrationWarning)
        data = load_demonstrations(paper_data / "maze.pt")
        observation_space = spaces.Box(-np.inf, np.inf, (6,), np.float32)
        action_space = spaces.Box(-1, 1, (2,), np.float32)
        phi = DiffusionCritic.from_release(
            paper_data / "maze_ddpm.pt", data, observation_space, action_space, device="cpu"
        )
        algorithm = DiffusionBC(
            demonstrations=data,
            observation_space=observation_space,
            action_space=action_space,
            critic=phi,
            bc_coef=0.0,
            dm_coef=30.0,
            ent_weight=0.0,
            batch_size=128,
            optimizer_kwargs={"lr": 1e-3},
            seed=0,
            verbose=0,
            device="cpu",
        )
    algorithm.train(n_batches=600, progress_bar=False)
    gaps = [float((m.dm.agent - m.dm.expert).mean()) for _, m in losses]
    assert np.mean(gaps[-100:]) < 0.6 * np.mean(gaps[:20])


def test_a_discrete_policy_learns_beside_the_default_critic() -> None:
    # A teacher without noise makes the sharpest critic there is.
    obs = np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32)
    acts = (obs @ np.array([0.1, 0.5, 3.0, 1.2]) > 0).astype(np.int64)
    demonstrations = TransitionsMinimal(obs=obs, acts=acts, infos=np.full(len(obs), {}))
    algorithm = DiffusionBC(
        demonstrations=demonstrations,
        observation_space=spaces.Box(-np.inf, np.inf, (4,), np.float32),
        action_space=spaces.Discrete(2),
        batch_size=50,
        seed=0,
        verbose=0,
        device="cpu",
    )
    algorithm.train(n_batches=150, progress_bar=False)
    predicted, _ = algorithm.predict(obs, deterministic=True)
    assert np.mean(predicted == acts) > 0.95
