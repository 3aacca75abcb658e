"""The bundled demonstrations, played again in their environments."""

from __future__ import annotations

import platform
import sys
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from numpy.typing import NDArray
from toys import assert_replays_to_the_bit

from sb3_diffbc.demonstrations import (
    Card,
    bundled_names,
    check_card,
    load_demonstrations,
    loading,
    read_card,
)
from sb3_diffbc.tasks import TASKS

EPISODES = 10
STEPS = 1000

every_set = pytest.mark.parametrize("name", bundled_names())


def make(card: Card) -> gym.Env:
    """Makes a set's environment; skips the test where its package is missing."""
    try:
        return gym.make(card.env_id, **card.env_kwargs)
    except gym.error.DependencyNotInstalled as error:
        pytest.skip(str(error))


def skip_if_starts_differ(card: Card) -> None:
    """Skips a replay where the robots rest otherwise than they did when they were recorded."""
    recorded = card.versions["mujoco"]
    if "gymnasium-robotics" in card.versions and recorded != mujoco.__version__:
        pytest.skip(f"recorded with MuJoCo {recorded}; newer ones settle the robots otherwise")


def arrays_of(name: str) -> dict[str, NDArray[Any]]:
    with np.load(loading.bundled_path(name), allow_pickle=False) as arrays:
        return dict(arrays)


def episode_slices(name: str) -> list[slice]:
    arrays = arrays_of(name)
    ends = np.flatnonzero(arrays["dones"] | arrays.get("timeouts", False)) + 1
    return [slice(*ends) for ends in zip([0, *ends[:-1]], ends, strict=True)]


@every_set
def test_a_set_is_what_its_card_says(name: str) -> None:
    assert check_card(name) == []
    card, task = read_card(name), TASKS[name]
    assert (card.env_id, card.task) == (task.env_id, task.title)
    assert card.score.metric == task.metric
    assert card.episodes >= task.size.episodes
    assert card.transitions >= task.size.transitions
    assert card.expert == task.expert.summary
    assert card.licence == "MIT"
    assert {array.dtype.kind for array in arrays_of(name).values()} <= set("fiub")
    assert all(a.dtype == np.float32 for a in arrays_of(name).values() if a.dtype.kind == "f")


def test_the_sets_are_small_and_no_card_is_without_its_set() -> None:
    paths = [loading.bundled_path(name) for name in bundled_names()]
    assert sum(path.stat().st_size for path in paths) < 12e6
    assert {card.stem for card in paths[0].parent.glob("*.json")} == set(bundled_names())


@every_set
def test_a_set_lies_in_the_spaces_of_its_environment(name: str) -> None:
    env, demonstrations = make(read_card(name)), load_demonstrations(name)
    for space, rows in (
        (env.observation_space, demonstrations.obs),
        (env.observation_space, demonstrations.next_obs),
        (env.action_space, demonstrations.acts),
    ):
        assert isinstance(space, gym.spaces.Box)
        assert rows.shape[1:] == space.shape
        assert (rows >= space.low).all()
        assert (rows <= space.high).all()


@every_set
def test_episodes_are_numbered_as_they_were_rolled_out(name: str) -> None:
    card, numbers = read_card(name), arrays_of(name)["episode"]
    assert len(numbers) == card.episodes == len(episode_slices(name))
    assert (np.diff(numbers) > 0).all()
    assert numbers[0] >= 1
    assert numbers[-1] == card.episodes_tried


@every_set
def test_whole_episodes_replay_from_the_cards_seed(name: str) -> None:
    card, arrays, slices = read_card(name), arrays_of(name), episode_slices(name)
    skip_if_starts_differ(card)
    # Other versions of MuJoCo, and other processors, may round otherwise, and contacts amplify
    # that until the episodes differ.
    exact = (card.versions["mujoco"], sys.platform, platform.machine()) == (
        mujoco.__version__,
        "linux",
        "x86_64",
    )
    env = make(card)
    env.reset(seed=card.seed)
    resets = steps = 0
    for number, rows, final in zip(
        arrays["episode"][:EPISODES], slices, arrays["final_obs"], strict=False
    ):
        while resets < number:
            obs, _ = env.reset()
            resets += 1
        if not exact:
            np.testing.assert_allclose(obs, arrays["obs"][rows][0], rtol=0, atol=1e-5)
            continue
        assert_replays_to_the_bit(env, obs, arrays, rows, final)
        steps += rows.stop - rows.start
        if steps > STEPS:
            break
    assert resets > 0
