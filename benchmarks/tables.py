"""Markdown tables, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Gives a Markdown table, whatever the cells hold.

    Args:
        header: titles of the columns.
        rows: as many cells each.

    Returns:
        The table, without a line break at its end.
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )
