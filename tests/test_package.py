"""What the package offers at its top, and what importing it costs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import sb3_diffbc

# MuJoCo is what sb3_diffbc.envs.maze needs; gymnasium-robotics may import it for its own sake.
HEAVY = ("torch", "stable_baselines3", "imitation", "scipy", "h5py", "sb3_diffbc.envs.maze")


def run(script: str) -> str:
    """Runs a script in a Python of its own; returns what it printed."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


@pytest.mark.parametrize("name", sb3_diffbc.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(sb3_diffbc, name)
    assert value.__doc__
    assert name in dir(sb3_diffbc)


def test_public_names_are_sorted_and_listed_once() -> None:
    assert sb3_diffbc.__all__ == sorted(set(sb3_diffbc.__all__))


def test_public_names_are_those_of_their_homes() -> None:
    for name, module in type_checking_imports().items():
        assert getattr(sb3_diffbc, name) is getattr(import_module(module), name)


def test_type_checkers_see_the_same_names() -> None:
    assert {*type_checking_imports(), "envs"} == set(sb3_diffbc.__all__)


def test_the_name_of_the_trainer_is_easy_to_import() -> None:
    from imitation.algorithms import bc

    from sb3_diffbc import DiffusionBC

    assert issubclass(DiffusionBC, bc.BC)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'sb3_diffbc' has no attribute 'DiffusionBS'"):
        sb3_diffbc.DiffusionBS  # noqa: B018


def test_the_version_is_written_once_and_is_a_version() -> None:
    written = (Path(sb3_diffbc.__file__).parent / "version.txt").read_text().strip()
    assert sb3_diffbc.__version__ == written
    assert re.fullmatch(r"\d+\.\d+\.\d+([abrc.]\S*)?", written)


def test_the_installed_version_is_that_of_the_package() -> None:
    try:
        installed = importlib.metadata.version("sb3-diffbc")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("sb3-diffbc is not installed, only on the path")
    assert installed == sb3_diffbc.__version__


def test_importing_the_package_loads_no_heavy_library() -> None:
    # Gymnasium 0.29 imports the package whenever it is imported itself, for the environments.
    script = (
        "import sys, sb3_diffbc, sb3_diffbc.envs;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert run(script).splitlines()[-1] == "[]"


def test_importing_the_package_registers_its_environments() -> None:
    script = "import sb3_diffbc, gymnasium; print(gymnasium.spec('sb3_diffbc/Maze-v0').id)"
    assert run(script).splitlines()[-1] == "sb3_diffbc/Maze-v0"


def test_typed_marker_is_shipped() -> None:
    assert (Path(sb3_diffbc.__file__).parent / "py.typed").is_file()
