"""What a result says of where it comes from: processor, versions and command."""

import platform
import shlex
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path


def processor_name() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def package_versions(*names: str) -> dict[str, str]:
    """Python's version and those of installed packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def command_line(module: str, arguments: Sequence[str], folders: Iterable[Path | None] = ()) -> str:
    """The command that made a result.

    Args:
        module: what was run with ``python -m``.
        arguments: of the command line.
        folders: those among the arguments that differ from machine to machine; they are shown as
            ``FOLDER``.

    Returns:
        The command, quoted for a shell.
    """
    hidden = {str(folder) for folder in folders if folder is not None}
    shown = ("FOLDER" if argument in hidden else argument for argument in arguments)
    return shlex.join(["python", "-m", module, *shown])
