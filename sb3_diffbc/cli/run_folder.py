"""The folder of a run: what ``train`` writes and the other commands read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from sb3_diffbc.checkpoints.file import package_versions
from sb3_diffbc.cli.options import read_yaml, write_yaml
from sb3_diffbc.evaluation import EvaluationResult

_RECORDED = ("torch", "stable-baselines3", "imitation", "gymnasium", "mujoco", "numpy")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run's folder and the names in it."""

    path: Path

    @property
    def config(self) -> Path:
        """Settings and versions, YAML."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the training while it runs, a folder."""
        return self.path / "checkpoints"

    @property
    def trainer(self) -> Path:
        """The trainer when it has finished."""
        return self.path / "trainer.safetensors"

    @property
    def policy(self) -> Path:
        """The policy when the trainer has finished."""
        return self.path / "policy.safetensors"

    @property
    def results(self) -> Path:
        """The policy's scores, JSON."""
        return self.path / "results.json"

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder and writes the settings with the versions of what ran."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = {"settings": dict(settings), "versions": versions()}
        self.config.write_text(write_yaml(content), encoding="utf-8")


def read_settings(path: Path, known: Collection[str]) -> dict[str, Any]:
    """Reads settings from YAML: a run's config.yaml, or a mapping of your own.

    Args:
        path: the file.
        known: names of all settings there are.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML or no mapping of known names to plain values.
    """
    try:
        content = read_yaml(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if isinstance(content, dict) and isinstance(content.get("settings"), dict):
        content = content["settings"]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: found {content!r}, expected settings by name.")
    unknown = sorted(map(str, content.keys() - known))
    if unknown:
        raise ValueError(f"{path}: found {', '.join(unknown)}, expected of {sorted(known)}.")
    return content


def id_from_file(env: Any) -> str:
    """Returns an environment's id that a file names.

    Raises:
        ValueError: if Gymnasium would import a module for it: only options may name one.
    """
    if not isinstance(env, str) or ":" in env:
        raise ValueError(f"env: found {env!r} in a file; give an id with a module as --env.")
    return env


def versions() -> dict[str, str]:
    """Returns the versions of what results depend on."""
    return package_versions(*_RECORDED)


def report(result: EvaluationResult, path: Path | None) -> None:
    """Prints scores, and writes them to a JSON file where there is a path."""
    print(result)
    if path is None:
        return
    scores = {
        name: value.tolist() if hasattr(value, "tolist") else value
        for name in ("returns", "lengths", "successes", "seeds")
        for value in [getattr(result, name)]
    }
    document = {"summary": str(result), **scores, "versions": versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
