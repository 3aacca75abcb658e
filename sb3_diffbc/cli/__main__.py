"""The command ``sb3-diffbc``: train, evaluate, export, record, demos, score."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import tyro

from sb3_diffbc.cli.demos import Demos
from sb3_diffbc.cli.policies import Evaluate, Export, Record
from sb3_diffbc.cli.score import Score
from sb3_diffbc.cli.train import Train, with_settings

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "export": Export,
    "record": Record,
    "demos": Demos,
    "score": Score,
}
"""The subcommands: each a dataclass whose method ``run`` returns an exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: those of the process if None.

    Returns:
        The exit status: 0; 1 where ``demos check`` finds something wrong; 2 for wrong arguments or
        files, and for a training that diverged; 130 for an interruption.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["train"]:
            arguments = ["train", *with_settings(arguments[1:])]
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments,
            prog="sb3-diffbc",
            description="Diffusion model-augmented behavioral cloning, from demonstrations on.",
        )
        return int(command.run())
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, gym.error.Error) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; train --resume FOLDER goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
