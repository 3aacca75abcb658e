"""Writes the files beside it, each by the library whose format it is.

    python tests/demonstrations/files/make_files.py

It was run once, with Python 3.11, minari 0.5.4, robomimic 0.3.0, lerobot 0.4.4, datasets 4.8.5,
h5py 3.16.0, pyarrow 26.0.1, numpy 2.2.6 and torch 2.13.0. torchvision, which robomimic and lerobot
import for images alone, was not installed; a stand-in without content takes its place.

- Minari: ``DataCollector`` and its ``create_dataset``.
- robomimic: its script ``dataset_states_to_obs``, which plays the states of a raw file of ours back
  in an environment. The environment is the toy below, in the place of a robosuite one.
- LeRobot: ``LeRobotDataset.create``, ``add_frame``, ``save_episode`` and ``finalize``.
- Hugging Face: ``Dataset.save_to_disk``.

A point moves: ``position`` + ``action`` is the next position, and ``time`` counts steps. All follow
from the episode and the step, so that the tests can compute what a reader must give.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import datasets  # noqa: F401 (before the stand-in, which it would take for real)
import gymnasium as gym
import h5py
import numpy as np
from gymnasium import spaces

HERE = Path(__file__).parent
LENGTHS = (3, 5, 4)
for _name in ("", ".transforms", ".transforms.v2", ".transforms.functional", ".models", ".io"):
    sys.modules[f"torchvision{_name}"] = mock.MagicMock(__version__="0.0", __spec__=None)


def position(episode, step):
    """The point at the beginning of a step."""
    return np.array([episode + 0.05 * step**2, -0.1 * step * episode])


def action(episode, step):
    """What moves it."""
    return position(episode, step + 1) - position(episode, step)


class Point(gym.Env):
    """The toy, with observations as one array or as a dictionary."""

    action_space = spaces.Box(-1, 1, (2,), np.float64)

    def __init__(self, as_dict):
        parts = {
            "position": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            "time": spaces.Box(0, np.inf, (1,), np.float64),
        }
        self.as_dict = as_dict
        whole = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict(parts) if as_dict else whole
        self.episode = -1

    def _obs(self):
        parts = {"position": position(self.episode, self.time), "time": np.array([1.0 * self.time])}
        return parts if self.as_dict else np.concatenate([*parts.values()])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.time += 1
        is_last = self.time == LENGTHS[self.episode % len(LENGTHS)]
        return self._obs(), 0.0, is_last and self.episode % 2 == 0, is_last, {}


def write_minari(name, as_dict):
    os.environ["MINARI_DATASETS_PATH"] = str(HERE / "minari_root")
    import minari

    collector = minari.DataCollector(Point(as_dict), record_infos=False)
    for episode, length in enumerate(LENGTHS):
        collector.reset(seed=0)
        for step in range(length):
            collector.step(action(episode, step))
    collector.create_dataset(f"toy/{name}-v0", algorithm_name="scripted", description="a toy")
    shutil.move(HERE / "minari_root" / "toy" / f"{name}-v0", HERE / f"minari_{name}")
    shutil.rmtree(HERE / "minari_root")


def write_robomimic():
    from robomimic.envs.env_base import EnvBase
    from robomimic.scripts import dataset_states_to_obs as script

    with h5py.File(HERE / "raw.hdf5", "w") as raw:
        data = raw.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Toy", "type": 2, "env_kwargs": {}})
        for episode, length in enumerate(LENGTHS):
            demo = data.create_group(f"demo_{episode}")
            demo["states"] = np.array([[episode, step] for step in range(length)], dtype=float)
            demo["actions"] = np.array([action(episode, step) for step in range(length)])

    methods = {name: (lambda self, *_, **__: None) for name in EnvBase.__abstractmethods__}

    def reset_to(self, state):
        self.state = np.array(state["states"])
        return self.get_observation()

    def get_observation(self):
        episode, step = self.state
        return {"position": position(episode, step), "time": np.array([step])}

    def play(self, _):
        self.state = [self.state[0], self.state[1] + 1]
        return self.get_observation(), 0.0, False, {}

    methods |= {
        "reset_to": reset_to,
        "get_observation": get_observation,
        "step": play,
        "get_reward": lambda self: 0.0,
        "is_success": lambda self: {"task": False},
        "serialize": lambda self: {"env_name": "Toy", "type": 2, "env_kwargs": {}},
    }
    toy = type("Toy", (EnvBase,), methods)()
    arguments = argparse.Namespace(
        dataset=str(HERE / "raw.hdf5"),
        output_name="robomimic.hdf5",
        n=None,
        shaped=False,
        camera_names=[],
        camera_height=84,
        camera_width=84,
        done_mode=2,
        copy_rewards=False,
        copy_dones=False,
        exclude_next_obs=False,
        compress=True,
    )
    with mock.patch.object(script.EnvUtils, "create_env_for_data_processing", return_value=toy):
        script.dataset_states_to_obs(arguments)
    (HERE / "raw.hdf5").unlink()


def write_lerobot():
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "observation.environment_state": {"dtype": "float32", "shape": (1,), "names": ["time"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
    }
    dataset = LeRobotDataset.create(
        "toy/toy", fps=10, features=features, root=HERE / "lerobot", use_videos=False
    )
    for episode, length in enumerate(LENGTHS):
        for step in range(length):
            dataset.add_frame(
                {
                    "observation.state": position(episode, step).astype(np.float32),
                    "observation.environment_state": np.array([step], dtype=np.float32),
                    "action": action(episode, step).astype(np.float32),
                    "task": "move",
                }
            )
        dataset.save_episode()
    dataset.finalize()
    dataset = LeRobotDataset("toy/toy", root=HERE / "lerobot")
    dataset.hf_dataset.with_format(None).save_to_disk(HERE / "lerobot_columns")


if __name__ == "__main__":
    for path in HERE.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    write_minari("array", as_dict=False)
    write_minari("dict", as_dict=True)
    write_robomimic()
    write_lerobot()
