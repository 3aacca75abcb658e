"""What the package offers at its top, and what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import pytest

import sb3_diffbc
from sb3_diffbc import envs, tasks

# MuJoCo is what sb3_diffbc.envs.maze needs; gymnasium-robotics may import it for its own sake.
HEAVY = ("torch", "stable_baselines3", "imitation", "scipy", "h5py", "sb3_diffbc.envs.maze")


def run(script: str, *options: str) -> str:
    """Runs a script in a Python of its own; returns the last line that it printed."""
    done = subprocess.run([sys.executable, *options, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def type_checking_imports() -> dict[str, str]:
    """Names and home modules that type checkers see in the package's __init__.py."""
    tree = ast.parse(Path(sb3_diffbc.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


@pytest.mark.parametrize("package", [sb3_diffbc, envs], ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_documented(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name).__doc__, name
        assert package is envs or name in dir(package)


def test_type_checkers_see_the_same_names_from_the_same_homes() -> None:
    seen = type_checking_imports()
    assert {*seen, "envs"} == set(sb3_diffbc.__all__)
    for name, module in seen.items():
        assert getattr(sb3_diffbc, name) is getattr(import_module(module), name)


@pytest.mark.parametrize("package", [sb3_diffbc, envs], ids=lambda package: package.__name__)
def test_an_unknown_name_is_an_attribute_error(package: object) -> None:
    with pytest.raises(AttributeError, match=r"'sb3_diffbc.*' has no attribute 'DiffusionBS'"):
        package.DiffusionBS  # type: ignore[attr-defined] # noqa: B018


def test_the_version_is_written_once_and_is_a_version() -> None:
    written = (Path(sb3_diffbc.__file__).parent / "version.txt").read_text().strip()
    assert sb3_diffbc.__version__ == written
    assert re.fullmatch(r"\d+\.\d+\.\d+([abrc.]\S*)?", written)
    try:
        assert importlib.metadata.version("sb3-diffbc") == written
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("sb3-diffbc is not installed, only on the path")


def test_typed_marker_is_shipped() -> None:
    assert (Path(sb3_diffbc.__file__).parent / "py.typed").is_file()


# --- importing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", ["import sb3_diffbc.envs", "import gymnasium, sb3_diffbc.tasks, sb3_diffbc"]
)
def test_importing_registers_the_environments_and_loads_no_heavy_library(script: str) -> None:
    # Gymnasium 0.29 imports the package whenever it is imported itself, for the environments.
    script += (
        "; import sys, gymnasium; from sb3_diffbc.tasks import TASKS;"
        "[gymnasium.spec(task.env_id) for task in TASKS.values()];"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert run(script) == "[]"


@pytest.mark.slow
@pytest.mark.parametrize("module", ["gymnasium", "sb3_diffbc", "imitation.algorithms.bc"])
def test_the_entry_point_works_whatever_is_imported_first(module: str) -> None:
    points = importlib.metadata.entry_points(group="gymnasium.envs")
    if not any("sb3_diffbc" in point.value for point in points):
        pytest.skip("the package is not installed, so it has no entry point")
    script = f"import {module}, gymnasium; print('{envs.MAZE_ENV_ID}' in gymnasium.registry)"
    # Gymnasium 1.x reads no entry points; there the import of this package registers.
    automatic = gym.__version__.startswith("0.") or module == "sb3_diffbc"
    assert run(script) == str(automatic)


def test_registering_again_changes_nothing() -> None:
    spec = gym.spec(envs.MAZE_ENV_ID)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs.register_envs()
    assert gym.spec(envs.MAZE_ENV_ID) is spec


def test_the_table_of_tasks_needs_nothing_but_the_standard_library() -> None:
    # Gymnasium 0.29 reads it in the middle of its own import.
    script = (
        "import runpy, sys; before = set(sys.modules);"
        f"runpy.run_path({tasks.__file__!r});"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new - sys.stdlib_module_names))"
    )
    assert run(script, "-I") == "[]"


@pytest.mark.parametrize(
    ("hashed", "sources"),
    [("pinned", ["pinned"]), ("current", ["current", "current-dev"])],
)
def test_what_is_hashed_is_what_is_pinned_without_torch(hashed: str, sources: list[str]) -> None:
    folder = Path(__file__).parents[1] / "constraints"
    pin = re.compile(r"^([a-z0-9-]+==[^\s;]+)", re.MULTILINE)
    pins = {
        found for name in sources for found in pin.findall((folder / f"{name}.txt").read_text())
    }
    text = (folder / "hashes" / f"{hashed}.txt").read_text()
    assert set(pin.findall(text)) == {found for found in pins if not found.startswith("torch==")}, (
        "make hashes writes them again"
    )
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=[a-z])", text)[1:])
