"""The bundled demonstrations, played again in their environments."""

from __future__ import annotations

import dataclasses
import functools
import platform
import sys
from collections.abc import Callable
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
ROWS = 200

every_set = pytest.mark.parametrize("name", bundled_names())


@dataclasses.dataclass(frozen=True)
class Replay:
    """How to go where a demonstration was.

    Attributes:
        place: Puts an environment into the state that an observation tells.
        tolerance: The error that a step may have, in the observation's units.
        is_whole: Says of each observation whether it tells the whole state.
    """

    place: Callable[[Any, NDArray[Any]], object]
    tolerance: float
    is_whole: Callable[[NDArray[Any]], NDArray[Any]] = lambda obs: np.ones(len(obs), dtype=bool)


def place_maze(env: Any, obs: NDArray[Any]) -> None:
    env.set_observation(obs)


def place_runner(env: Any, obs: NDArray[Any]) -> None:
    # Where the runner is along its track is not observed and changes nothing.
    joints = env.model.nq - 1
    env.set_state(np.append(0.0, obs[:joints]), obs[joints:])


def place_ant(env: Any, obs: NDArray[Any]) -> None:
    state = fresh_state(type(env)).copy()
    state[:2] = obs[27:]
    state[3:18] = np.concatenate([[0.0, 0.0], obs[:13]])
    state[18:32] = obs[13:27]
    env.set_state(state)


def place_hand(env: Any, obs: NDArray[Any]) -> None:
    state = fresh_state(type(env)).copy()
    state[:7] = obs[61:]
    state[8:39] = np.concatenate([obs[:24], obs[54:61]])
    state[46:76] = obs[24:54]
    env.set_state(state)


@functools.cache
def fresh_state(env_class: Any) -> NDArray[np.float64]:
    """A state at the beginning of an episode, for what no observation tells: time, warm start."""
    env = env_class()
    env.reset(seed=0)
    state: NDArray[np.float64] = env.state
    return state


# Contacts amplify the rounding of the observations to float32, most where one begins or slips. The
# largest errors over whole sets, and those that one step in a thousand exceeds, were 5e-7 and 5e-7
# for maze, 5e-5 and 3e-5 for cheetah, 7e-6 and 6e-6 for walker, 1e-5 and 3e-6 for ant_reach, and
# 0.5 and 8e-5 for hand_rotate.
REPLAYS = {
    "maze": Replay(place_maze, 2e-6),
    "hand_rotate": Replay(place_hand, 1e-3),
    "cheetah": Replay(place_runner, 5e-4),
    # Walker2d clips the velocities that it shows.
    "walker": Replay(place_runner, 1e-4, lambda obs: np.abs(obs[:, 8:]).max(axis=1) < 10.0),
    "ant_reach": Replay(place_ant, 1e-4),
}
EXACT_SHARE = 0.98


@functools.cache
def margins_add_up() -> bool:
    """Whether MuJoCo finds a contact once two bodies are closer than the sum of their margins.

    Older versions wait until they are closer than the larger of the two.
    """
    model = mujoco.MjModel.from_xml_string(
        """
        <mujoco>
          <worldbody>
            <geom type="plane" size="1 1 1" margin="0.01"/>
            <body pos="0 0 0.115"><freejoint/><geom size="0.1" margin="0.01"/></body>
          </worldbody>
        </mujoco>
        """
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return bool(data.ncon > 0)


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


@pytest.mark.parametrize("name", [name for name in bundled_names() if name in REPLAYS])
def test_each_step_replays_from_the_recorded_observation(name: str) -> None:
    if name == "ant_reach" and margins_add_up():
        pytest.skip("the ant's feet have margins, and MuJoCo used to find their contacts later")
    skip_if_starts_differ(read_card(name))
    replay, demonstrations = REPLAYS[name], load_demonstrations(name)
    env: Any = make(read_card(name)).unwrapped
    env.reset(seed=0)
    rows = np.flatnonzero(replay.is_whole(demonstrations.obs))
    rows = rows[np.linspace(0, len(rows) - 1, ROWS).astype(int)]
    assert len(np.unique(rows)) == ROWS
    errors = []
    for row in rows:
        replay.place(env, demonstrations.obs[row])
        found, *_ = env.step(demonstrations.acts[row])
        errors.append(np.abs(found - demonstrations.next_obs[row]).max())
    assert np.quantile(errors, EXACT_SHARE) < replay.tolerance
