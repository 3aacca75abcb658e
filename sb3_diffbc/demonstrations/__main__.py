"""Lists the bundled demonstration sets and checks each against its card.

    python -m sb3_diffbc.demonstrations [SET ...]

The exit status is 0 if all are sound, 1 if one is not (what is wrong goes to the standard error),
and 2 if a set on the command line is unknown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_diffbc.demonstrations.cards import check_card, locate, read_card
from sb3_diffbc.demonstrations.loading import bundled_names

HEADER = ("name", "task", "env_id", "episodes", "transitions", "score", "kB", "check", "expert")
RIGHT_ALIGNED = ("episodes", "transitions", "score", "kB")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and the findings to the standard error.

    Args:
        argv: Arguments; those of the process where None.

    Returns:
        The exit status, 0 or 1.

    Raises:
        SystemExit: With status 2, if a set is unknown.
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
    rows = [_row(path, not found) for path, found in zip(paths, findings, strict=True)]
    print(_table([HEADER, *rows]))
    sys.stdout.flush()  # before the findings, where both streams end up in one file
    for source, found in zip(sources, findings, strict=True):
        for finding in found:
            print(f"{source}: {finding}", file=sys.stderr)
    return 1 if any(findings) else 0


def _existing(source: str) -> Path:
    path = locate(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no demonstration file at {path}.")
    return path


def _row(path: Path, sound: bool) -> tuple[str, ...]:
    """Returns the cells of one set; dashes where its card cannot be read."""
    try:
        card: dict[str, Any] = read_card(path)
        card["score"] = _score(card["score"])
    except (OSError, ValueError):
        card = {}
    known = {
        **card,
        "name": path.stem,
        "kB": f"{path.stat().st_size / 1000:.0f}",
        "check": "ok" if sound else "FAILED",
    }
    return tuple(_printable(str(known.get(column, "-"))) for column in HEADER)


def _score(score: Mapping[str, Any]) -> str:
    number = f"{score['mean']:.1%}" if score["metric"] == "success" else f"{score['mean']:.1f}"
    return f"{score['metric']} {number}"


def _printable(text: str) -> str:
    """Keeps line breaks and control codes in a card out of the table and the terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    """Aligns the columns; the last, which may be long, is neither padded nor cut."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.rjust(width) if name in RIGHT_ALIGNED else cell.ljust(width)
            for name, cell, width in zip(HEADER, row, widths, strict=True)
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
