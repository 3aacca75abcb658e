"""``sb3-diffbc evaluate``, ``export`` and ``record``: what is done with a policy."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import safetensors
import stable_baselines3
import tyro
from stable_baselines3.common import utils
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import is_image_space

from sb3_diffbc.checkpoints.policies import ACTIVATIONS, FEATURES_EXTRACTORS
from sb3_diffbc.cli.options import check_output
from sb3_diffbc.cli.run_folder import RunFolder, id_from_file, read_settings, report
from sb3_diffbc.cli.train import Train
from sb3_diffbc.demonstrations.fields import SizeLimit
from sb3_diffbc.demonstrations.formats import load_state_dict
from sb3_diffbc.demonstrations.recording import Episode, roll_out, write_episodes
from sb3_diffbc.diffusion_bc import DiffusionBC
from sb3_diffbc.envs import make_env
from sb3_diffbc.evaluation import evaluate_episodes
from sb3_diffbc.experts import load_expert
from sb3_diffbc.export import export_onnx
from sb3_diffbc.policies import load_policy
from sb3_diffbc.schema import parse_json
from sb3_diffbc.tasks import TASKS

_MAX_TRIES = 10
"""Episodes per success after which recording gives up."""


@dataclasses.dataclass
class _OfAPolicy:
    """Options of the commands that take a policy."""

    policy: tyro.conf.Positional[str]
    """A run's folder, a .safetensors file, an SB3 model's .zip, or the name of a bundled expert."""
    env: str | None = None
    """Id of the environment; a run and an expert know theirs."""
    algorithm: str = "PPO"
    """Which of SB3's or sb3-contrib's algorithms an SB3 model's .zip holds."""

    def environment(self) -> str:
        """Returns the environment's id."""
        if self.env is not None:
            return self.env
        if self.policy in TASKS:
            return TASKS[self.policy].env_id
        if Path(self.policy).is_dir():
            config = RunFolder(Path(self.policy)).config
            known = {field.name for field in dataclasses.fields(Train)}
            return id_from_file(read_settings(config, known).get("env"))
        raise ValueError("--env is missing: expected the id of an environment.")

    def read(self) -> BasePolicy:
        """Returns the policy. Nothing in its file is unpickled or executed."""
        path = Path(self.policy)
        if self.policy in TASKS and not path.exists():
            return load_expert(self.policy)
        if path.is_dir():
            return load_policy(RunFolder(path).policy)
        if path.suffix == ".zip":
            return self._read_sb3(path)
        try:
            with safetensors.safe_open(path, "pt") as file:
                kind = (file.metadata() or {}).get("kind")
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path}: expected a checkpoint or an SB3 model: {error}") from None
        return DiffusionBC.load(path, verbose=0).policy if kind == "trainer" else load_policy(path)

    def _read_sb3(self, path: Path) -> BasePolicy:
        """Reads an SB3 model's weights and policy_kwargs; what is pickled is left alone."""
        algorithm: Any = getattr(stable_baselines3, self.algorithm, None)
        if algorithm is None:
            algorithm = getattr(importlib.import_module("sb3_contrib"), self.algorithm, None)
        if not (isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm)):
            raise ValueError(f"--algorithm: found {self.algorithm!r}, expected one such as PPO.")
        try:
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
                limit = SizeLimit(path)
                for name in ("policy.pth", "data"):
                    limit.take(name, archive.getinfo(name).file_size)
                weights = load_state_dict(archive.extract("policy.pth", folder))
                settings = parse_json(dict[str, Any], archive.read("data"), "data")
                policy_kwargs = _plain_kwargs(settings)
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a model that SB3 saved: {error}") from None
        env = make_env(self.environment())
        # Only the policy is of use: no memory for replays.
        options: dict[str, Any] = (
            {"buffer_size": 1} if issubclass(algorithm, OffPolicyAlgorithm) else {}
        )
        if settings.get("use_sde"):
            options["use_sde"] = True
        try:
            policy = algorithm(
                _policy_name(env.observation_space),
                env,
                policy_kwargs=policy_kwargs,
                device="cpu",
                **options,
            ).policy
            policy.load_state_dict(weights)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ValueError(
                f"--algorithm: {path} is no {self.algorithm} for this environment: {error}"
            ) from None
        return policy


def _plain_kwargs(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns a policy's arguments from what SB3 writes beside their pickle, as plain text.

    Raises:
        ValueError: if the policy's class is not SB3's, or an argument has no plain value.
    """
    module = str(settings["policy_class"]["__module__"])
    if not module.startswith(("stable_baselines3.", "sb3_contrib.")):
        raise ValueError(f"its policy's class is of {module}: use Python")
    classes = {str(each): each for each in (*ACTIVATIONS, *FEATURES_EXTRACTORS)}
    found = {}
    for name, value in dict(settings.get("policy_kwargs") or {}).items():
        # Optimisers are for training alone; names in colons are SB3's own, the pickle among them;
        # the model itself knows about gSDE.
        if name.startswith((":", "optimizer")) or name == "use_sde":
            continue
        if isinstance(value, str) and value in classes:
            value = classes[value]
        elif isinstance(value, str):
            try:
                value = json.loads(value)  # a NumPy number
            except ValueError:
                raise ValueError(f"{name} is {value}, no plain value: use Python") from None
        found[name] = value
    return found


def _policy_name(space: gym.Space) -> str:
    if isinstance(space, gym.spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


@dataclasses.dataclass
class Evaluate(_OfAPolicy):
    """Plays episodes that are fixed by their seeds and prints the scores with intervals."""

    n_episodes: int = 100
    """Number of episodes."""
    seed: int = 0
    """Seed of the first episode; episode i has seed + i."""
    deterministic: bool = True
    """Whether to take the policy's mode rather than a sample."""
    video: Path | None = None
    """A folder for videos of the first episodes."""
    output: Path | None = None
    """A JSON file for the scores."""

    def run(self) -> int:
        """Evaluates."""
        utils.set_random_seed(self.seed)  # for actions that are drawn
        result = evaluate_episodes(
            self.read(),
            self.environment(),
            n_episodes=self.n_episodes,
            seed=self.seed,
            deterministic=self.deterministic,
            video_folder=self.video,
        )
        report(result, self.output)
        return 0


@dataclasses.dataclass
class Export(_OfAPolicy):
    """Writes a policy to an ONNX file, which needs no Python to run."""

    output: Path = Path("policy.onnx")
    """The file to write."""

    def run(self) -> int:
        """Exports."""
        policy: Any = self.read()  # whose kind is checked there
        print(export_onnx(policy, self.output))
        return 0


@dataclasses.dataclass
class Record(_OfAPolicy):
    """Rolls a policy out and writes the episodes to a file of demonstrations."""

    output: Path = Path("demonstrations.npz")
    """The file to write; must not exist. With the suffix .hdf5 it is as robomimic's, which holds
    observations by key, too."""
    n_episodes: int = 100
    """Number of episodes to keep."""
    seed: int = 0
    """Seed of the first episode; episode i has seed + i."""
    deterministic: bool = True
    """Whether to take the policy's mode rather than a sample."""
    successes_only: bool = False
    """Keep successful episodes only, where the environment says."""

    def run(self) -> int:
        """Records."""
        if self.n_episodes < 1:
            raise ValueError(f"--n-episodes: found {self.n_episodes}, expected at least 1.")
        policy, env = self.read(), make_env(self.environment())
        check_output("--output", self.output, env.observation_space)
        utils.set_random_seed(self.seed)  # for actions that are drawn
        episodes: list[Episode] = []
        for tried in itertools.count(1):
            episode = roll_out(
                env, policy, seed=self.seed + tried - 1, deterministic=self.deterministic
            )
            if self.successes_only and episode.success is None:
                raise ValueError("--successes-only: the environment does not report is_success.")
            if not self.successes_only or episode.success:
                episodes.append(episode)
            if len(episodes) == self.n_episodes:
                break
            if tried >= _MAX_TRIES * (len(episodes) + 1):
                raise ValueError(
                    f"--successes-only: {len(episodes)} of {tried} episodes succeeded; gave up."
                )
        write_episodes(self.output, episodes)
        n_steps = sum(len(episode.acts) for episode in episodes)
        mean = np.mean([episode.total_reward for episode in episodes])
        print(
            f"{self.output}: {len(episodes):,} of {tried:,} episodes, {n_steps:,} transitions, "
            f"mean return {mean:.2f}"
        )
        return 0
