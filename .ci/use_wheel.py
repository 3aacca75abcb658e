"""Trains and evaluates briefly on the bundled sets, with nothing but the installed wheel."""

import importlib.metadata
import importlib.util
import sys
import time
from pathlib import Path

import gymnasium

HAS_ENTRY_POINTS = gymnasium.__version__ < "1"
assert not HAS_ENTRY_POINTS or "sb3_diffbc/Maze-v0" in gymnasium.registry

import sb3_diffbc  # noqa: E402
from sb3_diffbc.tasks import TASKS  # noqa: E402

assert Path(sb3_diffbc.__file__).is_relative_to(Path.cwd()), sb3_diffbc.__file__
assert sb3_diffbc.__version__ == importlib.metadata.version("sb3-diffbc")

# First those that need no extra: Gymnasium's entry points alone may load what they do not need.
for task in sorted(TASKS.values(), key=lambda task: task.extra is not None):
    expert = sb3_diffbc.load_expert(task.name)
    expert.predict(sb3_diffbc.load_demonstrations(task.name).obs[:1])
    if task.extra is None:
        assert HAS_ENTRY_POINTS or "gymnasium_robotics" not in sys.modules
    elif importlib.util.find_spec("gymnasium_robotics") is None:
        print(f"{task.name}: can be loaded; its environment needs the extra {task.extra!r}")
        continue
    began = time.monotonic()
    trainer = sb3_diffbc.DiffusionBC(
        demonstrations=task.name,
        env=task.env_id,
        critic_kwargs={"n_steps": 50},
        seed=0,
        verbose=0,
    )
    trainer.train(n_batches=50, progress_bar=False)
    result = trainer.evaluate(n_episodes=1)
    print(f"{task.name}: return {result.returns[0]:.1f}, {time.monotonic() - began:.1f} s")
print(f"The wheel of sb3-diffbc {sb3_diffbc.__version__} works.")
