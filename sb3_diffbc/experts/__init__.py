"""The experts that the bundled demonstrations come from."""

from __future__ import annotations

import importlib
from importlib import resources

from stable_baselines3.common.policies import BasePolicy

from sb3_diffbc.policies import load_policy
from sb3_diffbc.tasks import ScriptedExpert, find_task


def load_expert(task: str) -> BasePolicy:
    """Returns a task's expert, to label states (DAgger) or to roll out more demonstrations.

    Args:
        task: name of a task in ``sb3_diffbc.tasks.TASKS``.

    Returns:
        A Stable-Baselines3 policy on the CPU, for ``predict``, ``evaluate_episodes`` or imitation's
        ``rollout``. Use ``deterministic=True``: a learned expert's own noise is that of training.

    Raises:
        ValueError: if there is no such task.
        FileNotFoundError: if the task's expert was learned and is not bundled.
    """
    expert = find_task(task).expert
    if isinstance(expert, ScriptedExpert):
        module, name = expert.entry_point.split(":")
        scripted: BasePolicy = getattr(importlib.import_module(module), name)()
        return scripted
    with resources.as_file(resources.files(__name__) / f"{task}.safetensors") as path:
        return load_policy(path, device="cpu")
