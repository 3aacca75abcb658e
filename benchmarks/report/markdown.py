"""Numbers and tables in Markdown, and the parts of pages that commands write."""

from __future__ import annotations

import math

import pandas as pd

NOTHING = "–"


def number(value: float, digits: int = 1) -> str:
    """Returns a number with so many decimals, without a negative zero; a dash for NaN."""
    return NOTHING if math.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def short(value: float) -> str:
    """Returns a measured number with at least three digits; a dash for NaN."""
    if math.isnan(value):
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def with_interval(value: float, low: float, high: float, *, digits: int = 1) -> str:
    """Returns a value followed by its interval in brackets, where it has one."""
    text = number(value, digits)
    if math.isnan(low):
        return text
    return f"{text} [{number(low, digits)}, {number(high, digits)}]"


def table(frame: pd.DataFrame) -> str:
    """Returns a frame as a Markdown table.

    Args:
        frame: the columns and rows to show; its index is left out.

    Returns:
        The table, without a line break at its end; a sentence if there are no rows.
    """
    if frame.empty:
        return "There are no results for this table."
    cells = frame.astype(object).where(frame.notna(), NOTHING)
    escaped = cells.apply(lambda column: column.map(lambda cell: str(cell).replace("|", r"\|")))
    return str(escaped.to_markdown(index=False, disable_numparse=True))


def replace_part(text: str, name: str, part: str) -> str:
    """Replaces what stands between the two marks of a part.

    Args:
        text: of a page with the marks ``<!-- name -->`` and ``<!-- /name -->``.
        name: of the part.
        part: the new content.

    Returns:
        The text with the new part between its marks.

    Raises:
        ValueError: if a mark is missing.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(
            f"{name}: expected the marks {begin} and {end} in the page, in this order."
        )
    return f"{before}{begin}\n{part}\n{end}{after}"
