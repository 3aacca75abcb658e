"""Parts of the README that commands write."""

from __future__ import annotations


def marks(name: str) -> tuple[str, str]:
    """The two lines between which a part stands."""
    return f"<!-- {name} -->", f"<!-- /{name} -->"


def with_part(text: str, name: str, part: str) -> str:
    """Puts a part between the two marks that are there for it.

    Args:
        text: of a README with both marks.
        name: of the part.
        part: what goes between them.

    Returns:
        The text with that part in the place of what was there.

    Raises:
        ValueError: if a mark is missing.
    """
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"README: expected the lines {begin} and {end}.")
    return f"{before}{begin}\n{part}\n{end}{after}"
