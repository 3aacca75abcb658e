"""What users without a working gymnasium-robotics are told."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest

from sb3_diffbc.envs.robotics import make_robotics
from sb3_diffbc.tasks import TASKS

ROBOTICS_TASKS = [name for name, task in TASKS.items() if task.extra == "robotics"]
MODULE = "gymnasium_robotics.envs.broken"
ADVICE = r'pip install "sb3-diffbc\[robotics\]"'


@pytest.fixture
def without_robotics(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "gymnasium_robotics"]:
        monkeypatch.delitem(sys.modules, name)
    # Python's own mark of a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType(MODULE)
    for name in ("gymnasium_robotics", "gymnasium_robotics.envs"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, MODULE, module)
    return module


@pytest.mark.usefixtures("without_robotics")
@pytest.mark.parametrize("name", ROBOTICS_TASKS)
def test_a_missing_package_is_named_with_the_way_to_get_it(name: str) -> None:
    with pytest.raises(gym.error.DependencyNotInstalled, match=ADVICE) as caught:
        gym.make(TASKS[name].env_id)
    assert "gymnasium-robotics" in str(caught.value)
    assert "cannot be imported" in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize("error", [AssertionError(), TypeError("no such field"), ValueError("x")])
def test_versions_that_do_not_work_together_are_named_with_the_way_out(
    broken: ModuleType, error: Exception
) -> None:
    def make(**_: Any) -> None:
        raise error

    broken.Task = make  # type: ignore[attr-defined]
    with pytest.raises(gym.error.DependencyNotInstalled, match=ADVICE) as caught:
        make_robotics("broken", "Task")
    assert "does not work with the installed MuJoCo" in str(caught.value)
    assert repr(error) in str(caught.value)
    assert caught.value.__cause__ is error


def test_arguments_are_passed_on(broken: ModuleType) -> None:
    broken.Task = dict  # type: ignore[attr-defined]
    assert make_robotics("broken", "Task", reward="sparse") == {"reward": "sparse"}
