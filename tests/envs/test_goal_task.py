"""What every task with a goal promises, on AntReach and on a puck that is pushed to a wall."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from graphics import draw
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sb3_diffbc.envs.ant_reach import AntReachEnv
from sb3_diffbc.envs.goal_task import Doubles, GoalTask

# The wall gives the solver a memory, and the actuator's filter gives the model an inner state.
PUCK = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <geom name="wall" type="box" pos="1.15 0 0" size="0.05 3 1"/>
    <body>
      <joint name="x" type="slide" axis="1 0 0" damping="1"/>
      <joint name="y" type="slide" axis="0 1 0" damping="1"/>
      <geom type="sphere" size="0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator>
    <general joint="x" dyntype="filter" dynprm="0.05" gainprm="20"/>
    <general joint="y" dyntype="filter" dynprm="0.05" gainprm="20"/>
  </actuator>
</mujoco>
"""


class PuckEnv(GoalTask):
    """Push a puck to a goal; starts left of the origin are drawn again."""

    tolerance = 0.1

    def __init__(
        self,
        noise_ratio: float = 1.0,
        goal_noise_ratio: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        model = mujoco.MjModel.from_xml_string(PUCK)
        super().__init__(
            model,
            mujoco.MjData(model),
            action_size=2,
            goal_size=2,
            noise_ratio=noise_ratio,
            goal_noise_ratio=goal_noise_ratio,
            render_mode=render_mode,
        )
        self.refused = 0

    def _place(self) -> bool:
        noise = self.np_random.uniform(-0.5, 0.5, 2)
        self._data.qpos[:] += self.noise_ratio * noise
        self._advance(np.array([1.0, 0.0]))
        if noise[0] < 0:
            self.refused += 1
            return False
        return True

    def _draw_goal(self) -> Doubles:
        return np.array([0.0, 2.0]) + self.goal_noise_ratio * self.np_random.uniform(-1, 1, 2)

    def _advance(self, action: Doubles) -> None:
        self._data.ctrl[:] = action
        mujoco.mj_step(self._model, self._data, nstep=5)

    def _observe(self, goal: Doubles) -> Doubles:
        return np.concatenate([self._data.qpos, self._data.qvel, goal])

    def _distance(self, goal: Doubles) -> float:
        return float(np.linalg.norm(goal - self._data.qpos))


PUCK_ENV_ID = "sb3_diffbc_tests/Puck-v0"
if PUCK_ENV_ID not in gym.registry:
    gym.register(PUCK_ENV_ID, entry_point=PuckEnv, max_episode_steps=5)

TASKS = (AntReachEnv, PuckEnv)
CLONES = (copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env)))
Steps: TypeAlias = list[tuple[Any, ...]]


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Callable[..., GoalTask]:
    made: Callable[..., GoalTask] = request.param
    return made


@pytest.fixture
def env(task: Callable[..., GoalTask]) -> GoalTask:
    env = task()
    env.reset(seed=0)
    return env


@pytest.fixture
def puck() -> PuckEnv:
    env = PuckEnv()
    env.reset(seed=0)
    return env


def actions_for(env: GoalTask, steps: int, seed: int = 0) -> NDArray[np.float32]:
    """Random actions with a pull along the first axis, which takes the puck into the wall."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, *env.action_space.shape)).astype(np.float32)
    actions[:, 0] = 1.0
    return actions


def play(env: GoalTask, actions: NDArray[Any]) -> Steps:
    """What a number of steps gave, with the observations as bytes."""
    steps = []
    for action in actions:
        obs, *rest = env.step(action)
        steps.append((obs.tobytes(), *rest))
    return steps


def still(env: GoalTask) -> NDArray[np.float32]:
    """The action that does nothing."""
    return np.zeros(env.action_space.shape, dtype=np.float32)


# --- reset --------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_episode_to_the_bit_whatever_happened_before(
    task: Callable[..., GoalTask],
) -> None:
    fresh, used = task(), task()
    used.reset(seed=9)
    play(used, actions_for(used, 40, seed=1))
    used.set_state(used.state)
    used.reset()
    play(used, -actions_for(used, 3))
    starts = []
    for env in (fresh, used):
        obs, info = env.reset(seed=3)
        starts.append((obs.tobytes(), info, play(env, actions_for(env, 40))))
    assert starts[0] == starts[1]


def test_resets_after_a_seed_follow_from_it_and_differ(task: Callable[..., GoalTask]) -> None:
    runs = []
    for steps in (0, 7):
        env = task()
        rows = [env.reset(seed=3)[0]]
        for _ in range(3):
            play(env, actions_for(env, steps))
            rows.append(env.reset()[0])
        runs.append(np.stack(rows))
    np.testing.assert_array_equal(*runs)
    assert len(np.unique(runs[0], axis=0)) == 4
    assert not np.array_equal(task().reset(seed=4)[0], runs[0][0])


def test_a_start_that_is_refused_is_drawn_again_and_leaves_no_trace() -> None:
    env = PuckEnv()
    env.reset(seed=0)
    starts = np.stack([env.reset()[0] for _ in range(30)])
    assert env.refused > 10
    assert (starts[:, 0] > 0).all()
    # Every start is given the same push; one that began from a refused start would be faster.
    assert len(np.unique(starts[:, 2:4], axis=0)) == 1


@pytest.mark.parametrize("name", ["noise_ratio", "goal_noise_ratio"])
@given(ratio=st.floats(0, 2))
@settings(max_examples=20, deadline=None)
def test_each_ratio_scales_its_own_noise_and_leaves_the_other_draw_alone(
    name: str, ratio: float
) -> None:
    drawn = []
    for value in (0.0, 1.0, ratio):
        env = PuckEnv(**{name: value})
        obs, _ = env.reset(seed=1)
        start, goal = obs[:2], obs[4:]
        drawn.append((start, goal) if name == "noise_ratio" else (goal, start))
    (none, other), (one, other_at_one), (scaled, other_at_ratio) = drawn
    np.testing.assert_allclose(scaled - none, ratio * (one - none), rtol=0, atol=1e-6)
    assert not np.array_equal(one, none)
    np.testing.assert_array_equal(other_at_one, other)
    np.testing.assert_array_equal(other_at_ratio, other)


@given(ratio=st.floats(0, allow_infinity=False) | st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_any_finite_ratio_from_0_is_accepted(ratio: float) -> None:
    env = PuckEnv(noise_ratio=ratio, goal_noise_ratio=np.float64(ratio))
    assert (env.noise_ratio, env.goal_noise_ratio) == (ratio, ratio)
    assert type(env.noise_ratio) is float


# --- state and set_state ------------------------------------------------------------------------


def test_the_same_actions_from_a_state_give_the_same_steps_to_the_bit(env: GoalTask) -> None:
    actions = actions_for(env, 60)
    play(env, actions[:30])
    state = env.state
    expected = play(env, actions[30:])
    env.reset()
    env.set_state(state)
    assert play(env, actions[30:]) == expected
    other = type(env)()
    other.set_state(state)
    assert play(other, actions[30:]) == expected


@given(seed=st.integers(0, 1000), before=st.integers(0, 60), away=st.integers(0, 60))
@settings(max_examples=20, deadline=None)
def test_any_moment_of_an_episode_can_be_gone_back_to(seed: int, before: int, away: int) -> None:
    env = PuckEnv()
    env.reset(seed=seed)
    actions = actions_for(env, 80, seed)
    play(env, actions[:before])
    state = env.state
    expected = play(env, actions[before:])
    play(env, -actions[:away])
    env.set_state(state)
    assert play(env, actions[before:]) == expected


def test_going_back_gives_the_state_and_the_observation_there(env: GoalTask) -> None:
    obs = env.step(actions_for(env, 1)[0])[0]
    state = env.state
    play(env, actions_for(env, 5))
    np.testing.assert_array_equal(env.set_state(state), obs)
    np.testing.assert_array_equal(env.state, state)


def test_states_are_copies(env: GoalTask) -> None:
    state = env.state
    kept = state.copy()
    obs = env.set_state(state)
    expected = play(env, actions_for(env, 3))
    np.testing.assert_array_equal(state, kept)
    env.set_state(state)
    state[:] = 0.0
    assert play(env, actions_for(env, 3)) == expected
    assert obs.any()


def test_a_state_begins_with_the_goal(env: GoalTask) -> None:
    state = env.state
    np.testing.assert_array_equal(state[: len(env.goal)], env.goal)
    state[: len(env.goal)] += 1.0
    env.set_state(state)
    np.testing.assert_array_equal(env.goal, state[: len(env.goal)])


def test_a_state_makes_up_for_a_reset(env: GoalTask) -> None:
    other = type(env)()
    other.set_state(env.state)
    assert play(other, actions_for(other, 2)) == play(env, actions_for(env, 2))


# --- step ---------------------------------------------------------------------------------------


def test_observations_are_float32_of_the_space_and_never_written_again(env: GoalTask) -> None:
    obs, *_ = env.step(actions_for(env, 1)[0])
    assert obs in env.observation_space
    assert obs.dtype == np.float32
    before = obs.copy()
    play(env, actions_for(env, 3))
    np.testing.assert_array_equal(obs, before)


def test_rewards_come_with_success_alone_and_end_the_episode(puck: PuckEnv) -> None:
    obs, info = puck.reset(seed=0)
    success, distances = False, [info["distance"]]
    while not success:
        action = np.clip(5 * (obs[4:] - obs[:2]) - obs[2:4], -1, 1).astype(np.float32)
        obs, reward, terminated, truncated, info = puck.step(action)
        distances.append(info["distance"])
        success = info["is_success"]
        assert (reward, terminated, truncated) == (float(success), success, False)
        assert success == (info["distance"] < puck.tolerance)
    assert len(distances) > 5
    assert distances[-2] >= puck.tolerance > distances[-1]


def test_info_tells_the_distance_and_success_in_plain_types(env: GoalTask) -> None:
    for info in (env.reset()[1], env.step(still(env))[-1]):
        assert info.keys() == {"is_success", "distance"}
        assert type(info["is_success"]) is bool
        assert type(info["distance"]) is float


def test_distance_is_that_to_the_goal(puck: PuckEnv) -> None:
    obs, info = puck.reset()
    assert info["distance"] == pytest.approx(math.dist(obs[:2], puck.goal), rel=1e-6)
    obs, *_, info = puck.step(np.ones(2, dtype=np.float32))
    assert info["distance"] == pytest.approx(math.dist(obs[:2], puck.goal), rel=1e-6)


@pytest.mark.parametrize(("offset", "success"), [(0.099, True), (0.101, False)])
def test_success_begins_at_the_tolerance(offset: float, success: bool) -> None:
    env = PuckEnv(noise_ratio=0.0)
    env.reset(seed=0)
    state = env.state
    state[5:] = 0.0  # at rest, actuators included
    state[:2] = state[3:5]
    state[1] += offset
    env.set_state(state)
    _, reward, terminated, _, info = env.step(still(env))
    assert (reward, terminated, info["is_success"]) == (float(success), success, success)


def test_actions_are_clipped_to_the_box(env: GoalTask) -> None:
    action = actions_for(env, 1)[0]
    action[:2] = (1.0, -1.0)
    state = env.state
    bound = env.step(action)[0]
    env.set_state(state)
    beyond = action.copy()
    beyond[:2] = (7.0, -1e30)
    np.testing.assert_array_equal(env.step(beyond)[0], bound)
    assert beyond[0] == 7.0


def test_a_made_environment_is_truncated_at_its_time_limit() -> None:
    env = gym.make(PUCK_ENV_ID)
    env.reset(seed=0)
    for step in range(1, 6):
        *_, terminated, truncated, _ = env.step(np.array([0.0, -1.0], dtype=np.float32))
        assert (terminated, truncated) == (False, step == 5)


# --- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clone", CLONES, ids=["deepcopy", "pickle"])
def test_copies_in_the_middle_of_an_episode_continue_alike_and_apart(
    env: GoalTask, clone: Callable[[GoalTask], GoalTask]
) -> None:
    actions = actions_for(env, 40)
    play(env, actions[:30])
    twin = clone(env)
    expected = [play(env, actions[30:]), env.reset()[0].tobytes(), play(env, actions[:5])]
    assert [play(twin, actions[30:]), twin.reset()[0].tobytes(), play(twin, actions[:5])] == (
        expected
    )


@pytest.mark.parametrize("clone", CLONES, ids=["deepcopy", "pickle"])
def test_copies_keep_arguments_spaces_and_spec(
    task: Callable[..., GoalTask], clone: Callable[[GoalTask], GoalTask]
) -> None:
    env = task(noise_ratio=0.5, goal_noise_ratio=2.0, render_mode="rgb_array")
    env.spec = gym.spec(PUCK_ENV_ID)
    env.action_space.seed(5)
    twin = clone(env)
    assert (twin.noise_ratio, twin.goal_noise_ratio, twin.render_mode) == (0.5, 2.0, "rgb_array")
    assert twin.spec is not None
    assert twin.spec.id == PUCK_ENV_ID
    np.testing.assert_array_equal(twin.action_space.sample(), env.action_space.sample())
    with pytest.raises(gym.error.ResetNeeded):
        twin.step(still(twin))


# --- drawing ------------------------------------------------------------------------------------


def test_render_draws_the_scene_and_changes_nothing(tmp_path: Path) -> None:
    shown = draw(
        """
from sb3_diffbc.envs import AntReachEnv
env = AntReachEnv(render_mode="rgb_array")
env.reset(seed=0)
before = env.state
shown["start"] = env.render()
shown["again"] = env.render()
shown["changed"] = env.state != before
for _ in range(10):
    env.step(np.ones(8, dtype=np.float32))
shown["moved"] = env.render()
state = env.state
state[0] += 1.0
env.set_state(state)
shown["other_goal"] = env.render()
env.close()
env.close()
shown["reopened"] = env.render()
env.set_state(before)
shown["back"] = env.render()
env.close()
""",
        tmp_path,
    )
    start = shown["start"]
    assert (start.shape, start.dtype) == ((480, 480, 3), np.uint8)
    assert start.std() > 10
    np.testing.assert_array_equal(start, shown["again"])
    assert not shown["changed"].any()
    assert (start != shown["moved"]).any(axis=2).sum() > 100
    # The goal is a green disc, which goes from one place to another.
    different = (shown["moved"] != shown["other_goal"]).any(axis=2)
    assert different.sum() > 100
    red, green, blue = shown["other_goal"][different].astype(int).mean(axis=0)
    assert green > max(red, blue)
    np.testing.assert_array_equal(shown["reopened"], shown["other_goal"])
    np.testing.assert_array_equal(shown["back"], start)


def test_render_without_a_mode_warns_and_gives_none(env: GoalTask) -> None:
    with pytest.warns(UserWarning, match="render mode"):
        assert env.render() is None


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"noise_ratio": -1.0}, r"noise_ratio: found -1.0, expected a finite number"),
        ({"noise_ratio": "much"}, r"noise_ratio: found 'much', expected a finite number"),
        ({"noise_ratio": None}, r"noise_ratio: found None, expected a finite number"),
        ({"goal_noise_ratio": math.nan}, r"goal_noise_ratio: found nan, expected"),
        ({"goal_noise_ratio": math.inf}, r"goal_noise_ratio: found inf, expected"),
        ({"render_mode": "human"}, r"render_mode: found 'human', expected None or .*rgb_array"),
    ],
)
def test_bad_arguments_are_named(
    task: Callable[..., GoalTask], kwargs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task(**kwargs)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ([0.0, 0.0, 0.0], r"action: found shape \(3,\), expected shape \(2,\)"),
        ([[0.0, 0.0]], r"action: found shape \(1, 2\), expected shape \(2,\)"),
        (0.0, r"action: found shape \(\), expected shape \(2,\)"),
        ([0.0, math.nan], r"action: found \[0.0, nan\], expected finite"),
        ([math.inf, 0.0], r"action: found \[inf, 0.0\], expected finite"),
        ("up", r"action: found 'up', expected 2 numbers"),
        ([[0.0], [0.0, 0.0]], r"action: found .*, expected 2 numbers"),
    ],
)
def test_bad_actions_are_named_and_move_nothing(puck: PuckEnv, action: Any, message: str) -> None:
    state = puck.state
    with pytest.raises(ValueError, match=message):
        puck.step(action)
    np.testing.assert_array_equal(puck.state, state)


def test_bad_states_are_named_and_move_nothing(env: GoalTask) -> None:
    state = env.state
    with pytest.raises(ValueError, match=rf"state: found shape \({len(state) - 1},\), expected"):
        env.set_state(state[:-1])
    broken = state.copy()
    broken[3] = math.nan
    with pytest.raises(ValueError, match=r"state: found .*, expected finite"):
        env.set_state(broken)
    np.testing.assert_array_equal(env.state, state)


def test_options_are_refused(env: GoalTask) -> None:
    with pytest.raises(ValueError, match=r"options: found \['goal'\], expected none"):
        env.reset(options={"goal": (1.0, 2.0)})
    env.reset(options={})


@pytest.mark.parametrize(
    "use", [lambda env: env.step(still(env)), lambda env: env.state, lambda env: env.goal]
)
def test_nothing_is_known_before_the_first_reset(
    task: Callable[..., GoalTask], use: Callable[[GoalTask], object]
) -> None:
    with pytest.raises(gym.error.ResetNeeded, match=r"reset\(\)"):
        use(task())
