"""The table of tasks: consistent in itself, with Gymnasium's registry, and with the paper."""

from __future__ import annotations

import copy
import dataclasses
import importlib
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.policies import BasePolicy

from sb3_diffbc.tasks import TASKS, LearnedExpert, ScriptedExpert, Task, find_task

OWN = [task for task in TASKS.values() if task.entry_point is not None]

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def load(entry_point: str) -> Any:
    module, name = entry_point.split(":")
    return getattr(importlib.import_module(module), name)


def test_the_tasks_are_the_papers_in_its_order() -> None:
    titles = ["Maze", "FetchPick", "HandRotate", "Cheetah", "Walker", "AntReach"]
    assert [task.title for task in TASKS.values()] == titles
    assert len({task.env_id for task in TASKS.values()}) == len(TASKS)


@every_task
def test_a_task_agrees_with_gymnasiums_registry_and_names_classes_that_exist(task: Task) -> None:
    assert TASKS[task.name] is task
    spec = gym.spec(task.env_id)
    assert spec.max_episode_steps == task.horizon
    if task.entry_point is not None:
        assert (spec.entry_point, spec.namespace) == (task.entry_point, "sb3_diffbc")
        assert issubclass(load(task.entry_point), gym.Env)
    if isinstance(task.expert, ScriptedExpert):
        assert issubclass(load(task.expert.entry_point), BasePolicy)


@every_task
def test_a_goal_is_what_successes_are_counted_by(task: Task) -> None:
    # Of the environments only this package's have goals, and noise that can be scaled.
    assert task.metric == ("return" if task.entry_point is None else "success")
    progress = isinstance(task.expert, LearnedExpert) and task.expert.progress_reward
    assert not progress or task.metric == "success"
    assert task.noise_ratios[0] == 1.0
    assert task.paper_noise_ratio in task.noise_ratios
    assert len(task.noise_ratios) == 1 or task.entry_point is not None


def test_scores_are_those_of_the_papers_table_1() -> None:
    expected = {
        "maze": ((92.1, 3.6), (95.4, 1.7)),
        "fetch_pick": ((91.6, 5.8), (97.5, 1.9)),
        "hand_rotate": ((57.5, 4.7), (60.1, 4.4)),
        "cheetah": ((4873.3, 69.7), (4909.5, 73.0)),
        "walker": ((6954.4, 73.5), (7034.6, 33.7)),
        "ant_reach": ((56.2, 4.9), (70.1, 4.9)),
    }
    for name, task in TASKS.items():
        assert set(task.paper) == {"bc", "implicit_bc", "diffusion_policy", "dbc"}
        bc, dbc = (dataclasses.astuple(task.paper[method]) for method in ("bc", "dbc"))
        assert (bc, dbc) == expected[name]


def test_a_task_is_found_by_its_name() -> None:
    assert find_task("ant_reach") is TASKS["ant_reach"]
    with pytest.raises(ValueError, match=r"task: found 'Maze', expected one of maze, fetch_pick,"):
        find_task("Maze")


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
def test_a_spec_carries_the_noise_ratio_and_leaves_the_registry_alone(task: Task) -> None:
    before = copy.deepcopy(gym.spec(task.env_id))
    spec = task.spec(1.75)
    assert spec.kwargs == {"noise_ratio": 1.75, "goal_noise_ratio": 1.75}
    assert spec.max_episode_steps == task.horizon
    assert gym.spec(task.env_id) == before
    assert task.spec().kwargs == {}
    assert task.spec(3.0, 1.0).kwargs == {"noise_ratio": 3.0, "goal_noise_ratio": 1.0}
    if task.extra is None:
        made: Any = gym.make(spec).unwrapped
        assert (made.noise_ratio, made.goal_noise_ratio) == (1.75, 1.75)


def test_gymnasiums_environments_have_no_noise_to_scale() -> None:
    task = TASKS["cheetah"]
    with pytest.raises(ValueError, match=r"noise_ratio: found 2.0, .* HalfCheetah-v4"):
        task.spec(2.0)
    with pytest.raises(ValueError, match=r"goal_noise_ratio: found 2.0, .* HalfCheetah-v4"):
        task.spec(1.0, 2.0)
    assert task.spec(1.0) is not gym.spec(task.env_id)
