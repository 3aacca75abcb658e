"""The table of tasks: consistent in itself, with Gymnasium's registry, and with the paper."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import subprocess
import sys
from typing import Any

import gymnasium as gym
import pytest

from sb3_diffbc import tasks
from sb3_diffbc.tasks import TASKS, LearnedExpert, ScriptedExpert, Task, find_task

OWN = [task for task in TASKS.values() if task.entry_point is not None]
GYMNASIUMS = [task for task in TASKS.values() if task.entry_point is None]

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def load(entry_point: str) -> Any:
    module, name = entry_point.split(":")
    return getattr(importlib.import_module(module), name)


# --- the table ----------------------------------------------------------------------------------


def test_the_tasks_are_the_papers_in_its_order() -> None:
    titles = ["Maze", "FetchPick", "HandRotate", "Cheetah", "Walker", "AntReach"]
    assert [task.title for task in TASKS.values()] == titles


@every_task
def test_a_tasks_name_is_its_key_and_a_file_name(task: Task) -> None:
    assert TASKS[task.name] is task
    assert task.name == task.name.lower()
    assert task.name.isidentifier()


def test_no_two_tasks_share_an_environment() -> None:
    assert len({task.env_id for task in TASKS.values()}) == len(TASKS)


@every_task
def test_the_environment_is_registered_with_the_tasks_horizon(task: Task) -> None:
    spec = gym.spec(task.env_id)
    assert spec.max_episode_steps == task.horizon
    if task.entry_point is not None:
        assert spec.entry_point == task.entry_point
        assert spec.namespace == "sb3_diffbc"


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
def test_the_entry_point_is_an_environment(task: Task) -> None:
    assert issubclass(load(str(task.entry_point)), gym.Env)


@pytest.mark.parametrize(
    "task",
    [task for task in TASKS.values() if isinstance(task.expert, ScriptedExpert)],
    ids=lambda task: task.name,
)
def test_a_scripted_expert_is_a_policy(task: Task) -> None:
    from stable_baselines3.common.policies import BasePolicy

    assert isinstance(task.expert, ScriptedExpert)
    assert issubclass(load(task.expert.entry_point), BasePolicy)


@every_task
def test_a_goal_is_what_successes_are_counted_by(task: Task) -> None:
    # Of the environments only this package's have goals.
    assert task.metric == ("return" if task.entry_point is None else "success")
    progress = isinstance(task.expert, LearnedExpert) and task.expert.progress_reward
    assert not progress or task.metric == "success"


@every_task
def test_noise_ratios_begin_with_the_demonstrations_own_and_hold_the_papers(task: Task) -> None:
    assert task.noise_ratios[0] == 1.0
    assert list(task.noise_ratios) == sorted(set(task.noise_ratios))
    assert task.paper_noise_ratio in task.noise_ratios
    assert len(task.noise_ratios) == 1 or task.entry_point is not None


@every_task
def test_tasks_cannot_be_changed(task: Task) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.horizon = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        TASKS[task.name] = task  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "bc", "dbc"),
    [
        ("maze", (92.1, 3.6), (95.4, 1.7)),
        ("fetch_pick", (91.6, 5.8), (97.5, 1.9)),
        ("hand_rotate", (57.5, 4.7), (60.1, 4.4)),
        ("cheetah", (4873.3, 69.7), (4909.5, 73.0)),
        ("walker", (6954.4, 73.5), (7034.6, 33.7)),
        ("ant_reach", (56.2, 4.9), (70.1, 4.9)),
    ],
)
def test_scores_are_those_of_the_papers_table_1(
    name: str, bc: tuple[float, float], dbc: tuple[float, float]
) -> None:
    paper = TASKS[name].paper
    assert dataclasses.astuple(paper["bc"]) == bc
    assert dataclasses.astuple(paper["dbc"]) == dbc
    assert set(paper) == {"bc", "implicit_bc", "diffusion_policy", "dbc"}


def test_papers_files_are_those_in_its_repository() -> None:
    named = {task.paper_file for task in TASKS.values() if task.paper_file is not None}
    assert {"maze.pt", "halfcheetah.pt", "walker.pt"} <= named


def test_papers_files_exist_where_its_data_is(paper_data: Any) -> None:
    for task in TASKS.values():
        if task.paper_file is not None:
            assert (paper_data / task.paper_file).is_file()


# --- finding tasks and making their environments ------------------------------------------------


def test_a_task_is_found_by_its_name() -> None:
    assert find_task("ant_reach") is TASKS["ant_reach"]


def test_an_unknown_task_is_named_beside_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"task: found 'Maze', expected one of maze, fetch_pick,"):
        find_task("Maze")


@pytest.mark.parametrize("task", OWN, ids=lambda task: task.name)
def test_a_spec_carries_the_noise_ratio_and_leaves_the_registry_alone(task: Task) -> None:
    registered = gym.spec(task.env_id)
    before = copy.deepcopy(registered)
    spec = task.spec(1.75)
    assert spec is not registered
    assert spec.kwargs == {"noise_ratio": 1.75, "goal_noise_ratio": 1.75}
    assert spec.max_episode_steps == task.horizon
    assert gym.spec(task.env_id) == before
    assert task.spec().kwargs == {}


def test_the_made_environment_has_the_noise_ratio() -> None:
    for task in (TASKS["maze"], TASKS["ant_reach"]):
        made: Any = gym.make(task.spec(1.25)).unwrapped
        assert (made.noise_ratio, made.goal_noise_ratio) == (1.25, 1.25)
        made = gym.make(task.spec()).unwrapped
        assert (made.noise_ratio, made.goal_noise_ratio) == (1.0, 1.0)


@pytest.mark.parametrize("task", GYMNASIUMS, ids=lambda task: task.name)
def test_gymnasiums_environments_have_no_noise_to_scale(task: Task) -> None:
    with pytest.raises(ValueError, match=rf"noise_ratio: found 2.0, .* {task.env_id}"):
        task.spec(2.0)
    assert task.spec().id == task.env_id
    assert task.spec(1.0) is not gym.spec(task.env_id)


# --- what importing costs -----------------------------------------------------------------------


def test_the_table_itself_needs_nothing_but_the_standard_library() -> None:
    # Gymnasium 0.29 reads it in the middle of its own import.
    code = (
        "import runpy, sys; before = set(sys.modules);"
        f"runpy.run_path({tasks.__file__!r});"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize(
    "script",
    [
        "import sb3_diffbc.tasks",
        "import gymnasium, sb3_diffbc.tasks",
        "import sb3_diffbc.tasks, gymnasium",
    ],
)
def test_the_table_can_be_imported_first_or_last_and_loads_no_torch(script: str) -> None:
    code = (
        f"{script}; import sys, gymnasium;"
        "from sb3_diffbc.tasks import TASKS;"
        "[gymnasium.spec(task.env_id) for task in TASKS.values()];"
        "print([name for name in ('torch', 'stable_baselines3', 'imitation') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
