"""Lists the bundled demonstration sets and checks each against its card.

    python -m sb3_diffbc.demonstrations [SET ...]

The exit status is 0 if all are sound, 1 if one is not (what is wrong goes to the standard error),
and 2 if a set on the command line is unknown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sb3_diffbc.demonstrations.cards import Card, check_card, locate, read_card
from sb3_diffbc.demonstrations.loading import bundled_names

_PIPE_WIDTH = 10_000
"""Columns of the table where it does not go to a terminal, so that nothing is cut."""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and the findings to the standard error.

    Args:
        argv: arguments; those of the process where None.

    Returns:
        The exit status, 0 or 1.

    Raises:
        SystemExit: with status 2, if a set is unknown.
    """
    parser = argparse.ArgumentParser(
        prog="python -m sb3_diffbc.demonstrations",
        description="List the bundled demonstration sets and check each against its card.",
    )
    parser.add_argument(
        "sets", nargs="*", metavar="SET", help="bundled set's name or path to an .npz; default: all"
    )
    sources = parser.parse_args(argv).sets or bundled_names()
    try:
        paths = [_existing(source) for source in sources]
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))

    findings = [check_card(path) for path in paths]
    table = Table("name", "task", "env_id", box=None)
    for column in ("episodes", "transitions", "score", "kB"):
        table.add_column(column, justify="right")
    table.add_column("check")
    table.add_column("expert")
    for path, found in zip(paths, findings, strict=True):
        table.add_row(*(Text(_printable(cell)) for cell in _cells(path, sound=not found)))
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)
    sys.stdout.flush()  # before the findings, where both streams end up in one file
    for source, found in zip(sources, findings, strict=True):
        for finding in found:
            print(f"{source}: {_printable(finding)}", file=sys.stderr)
    return 1 if any(findings) else 0


def _existing(source: str) -> Path:
    path = locate(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no demonstration file at {path}.")
    return path


def _cells(path: Path, sound: bool) -> list[str]:
    """Returns the row of one set; dashes where its card cannot be read."""
    size, check = f"{path.stat().st_size / 1000:.0f}", "ok" if sound else "FAILED"
    try:
        card = read_card(path)
    except (OSError, ValueError):
        return [path.stem, *"-----", size, check, "-"]
    counts = [str(card.episodes), str(card.transitions), _score(card)]
    return [path.stem, card.task, card.env_id, *counts, size, check, card.expert]


def _score(card: Card) -> str:
    metric, mean = card.score.metric, card.score.mean
    return f"{metric} {mean:.1%}" if metric == "success" else f"{metric} {mean:.1f}"


def _printable(text: str) -> str:
    """Keeps line breaks and control codes in a card out of the table and the terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


if __name__ == "__main__":
    sys.exit(main())
