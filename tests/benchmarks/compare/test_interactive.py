"""GAIL and AIRL: what they are given, and what they count."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from comparing import TINY, make_cell, setup_of
from gymnasium import spaces
from imitation.data.types import Transitions
from toys import MAPPING, LineEnv, transitions, weights

from benchmarks.compare import interactive
from benchmarks.compare.learners import Setup
from benchmarks.compare.methods import METHODS
from benchmarks.compare.phases import Phases
from sb3_diffbc import StandardizedActorPolicy

both = pytest.mark.parametrize("key", ["gail", "airl"])


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Setup]:
    def make_setup(**changes: Any) -> Setup:
        return dataclasses.replace(setup_of(make_cell(tmp_path, "gail")), **changes)

    return make_setup


@both
class TestAdversarial:
    def test_counts_steps_updates_and_rounds(self, key: str, make: Callable[..., Setup]) -> None:
        protocol = dataclasses.replace(TINY, interactive_steps=5_000)
        learner = METHODS[key].make(make(protocol=protocol))
        seen: list[tuple[int, int, int]] = []
        learner.train(Phases(), lambda n: seen.append((n, learner.env_steps, learner.updates)))
        # A round is 8 environments with 256 steps, learnt from 10 times in batches of 128.
        assert seen == [(1, 2048, 160), (2, 4096, 320)]
        assert learner.length == 2
        assert learner.config["interactive_steps"] == 4096

    def test_learns_and_is_the_same_again(self, key: str, make: Callable[..., Setup]) -> None:
        ends = []
        for _ in range(2):
            learner = METHODS[key].make(make())
            start = weights(learner.policy)
            learner.train(Phases(), lambda n: None)
            ends.append(weights(learner.policy))
            assert not th.equal(start, ends[-1])
        assert th.equal(*ends)

    def test_says_what_it_is_set_to(self, key: str, make: Callable[..., Setup]) -> None:
        config = METHODS[key].make(make()).config
        assert json.loads(json.dumps(config)) == config
        assert config["allow_variable_horizon"] is True
        assert config["ppo"].items() >= {"n_steps": 256, "batch_size": 128}.items()

    def test_starts_with_the_demonstrations_statistics(
        self, key: str, make: Callable[..., Setup]
    ) -> None:
        setup = make()
        policy = METHODS[key].make(setup).policy
        assert isinstance(policy, StandardizedActorPolicy)
        mean = policy.features_extractor.mean
        assert np.allclose(mean, setup.demonstrations.obs.mean(axis=0), atol=1e-5)

    def test_less_than_a_round_is_refused(self, key: str, make: Callable[..., Setup]) -> None:
        protocol = dataclasses.replace(TINY, interactive_steps=100)
        with pytest.raises(ValueError, match=r"interactive_steps=100 must be at least .* 2048"):
            METHODS[key].make(make(protocol=protocol))

    def test_dict_observations_are_refused(self, key: str, make: Callable[..., Setup]) -> None:
        space = spaces.Box(-1, 1, (1,), np.float32)
        demonstrations = transitions(MAPPING, space)
        with pytest.raises(TypeError, match="Dict observations"):
            METHODS[key].make(make(observation_space=MAPPING, demonstrations=demonstrations))


class TestExpertActions:
    def test_are_clipped_as_the_environment_clips_them(self, make: Callable[..., Setup]) -> None:
        setup = make()
        wild = dataclasses.replace(setup.demonstrations, acts=setup.demonstrations.acts * 10)
        space = setup.action_space
        executed = interactive._executed(wild, space)
        assert np.array_equal(executed.acts, np.clip(wild.acts, -1, 1))
        assert np.abs(wild.acts).max() > 1
        assert np.array_equal(executed.obs, wild.obs)

    def test_stay_as_they_are_where_they_are_discrete(self) -> None:
        space = spaces.Discrete(3)
        demonstrations = transitions(action_space=space)
        assert interactive._executed(demonstrations, space) is demonstrations


def rollouts(n_episodes: int) -> Transitions:
    """Demonstrations of an expert that steps towards 2."""
    env = LineEnv()
    rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, bool]] = []
    for seed in range(n_episodes):
        obs, _ = env.reset(seed=seed)
        done = False
        while not done:
            act = np.clip(2 - obs[:1], -0.9, 0.9).astype(np.float32)
            next_obs, _, done, _, _ = env.step(act)
            rows.append((obs, act, next_obs, done))
            obs = next_obs
    columns = [np.stack(column) for column in zip(*rows, strict=True)]
    return Transitions(*columns[:2], np.full(len(rows), {}), *columns[2:])


@pytest.mark.slow
@both
def test_comes_closer_to_the_experts_actions(key: str, tmp_path: Path) -> None:
    protocol = dataclasses.replace(TINY, interactive_steps=30_000)
    demonstrations = rollouts(100)
    setup = setup_of(make_cell(tmp_path, key, protocol=protocol))
    learner = METHODS[key].make(dataclasses.replace(setup, demonstrations=demonstrations))

    def distance() -> float:
        acts, _ = learner.policy.predict(demonstrations.obs, deterministic=True)
        return float(np.square(acts - demonstrations.acts).mean())

    before = distance()
    learner.train(Phases(), lambda n: None)
    assert distance() < 0.6 * before
