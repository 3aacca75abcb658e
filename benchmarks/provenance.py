"""What a result says of where it comes from: command, revision, versions and machine."""

import os
import platform
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def processor_name() -> str:
    """Returns the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_versions(*names: str) -> dict[str, str]:
    """Returns Python's version and those of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def git_revision() -> tuple[str | None, bool | None]:
    """Returns the repository's revision and whether the code differs; None outside of one."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", os.fspath(ROOT), *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return None, None


def command_line(module: str, arguments: Sequence[str], folders: Iterable[Path | None] = ()) -> str:
    """Returns the command that made a result, quoted for a shell.

    Args:
        module: what was run with ``python -m``.
        arguments: of the command line.
        folders: those among the arguments that differ from machine to machine; they are shown as
            ``FOLDER``.
    """
    hidden = {str(folder) for folder in folders if folder is not None}
    shown = ("FOLDER" if argument in hidden else argument for argument in arguments)
    return shlex.join(["python", "-m", module, *shown])
