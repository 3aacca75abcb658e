"""Records in, page, figures and the README's table out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.record import RESULTS
from benchmarks.report import figures, pages
from benchmarks.report.frame import read_frame
from benchmarks.report.summaries import work_out


def replace_part(text: str, name: str, part: str) -> str:
    """Returns a page with other text between ``<!-- name -->`` and ``<!-- /name -->``.

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


def write_report(suite: str | Path, output: Path | None = None, readme: Path | None = None) -> Path:
    """Writes the page of a suite, which may be incomplete, and its figures.

    Args:
        suite: a suite's name, or the path of a table or of a folder of cells.
        output: folder for the page, ``<suite>.md``, and the figures, ``<suite>-figures/``; by
            default ``benchmarks/results`` for a name, and beside the records for a path.
        readme: a page whose part ``comparison`` is replaced by a table of this suite.

    Returns:
        The page's path.

    Raises:
        ValueError: if there are no records, they cannot be put together, or the README lacks its
            marks; nothing is written then.
    """
    frame = read_frame(suite)
    statistics = work_out(frame)
    readme_text = None
    if readme is not None:
        part = pages.main_table(statistics)
        readme_text = replace_part(readme.read_text(encoding="utf-8"), "comparison", part)
    folder = output or (RESULTS if isinstance(suite, str) else suite.parent)
    folder.mkdir(parents=True, exist_ok=True)
    name = suite if isinstance(suite, str) else suite.stem
    page = folder / f"{name}.md"
    if name == "defaults":
        text = pages.defaults_page(frame, statistics)
    elif name == "diagnosis":
        text = pages.diagnosis_page(frame, statistics)
    else:
        pictures = folder / f"{name}-figures"
        drawn = figures.draw(frame, statistics, pictures)
        text = pages.comparison_page(frame, statistics, drawn, pictures.name)
    page.write_text(text, encoding="utf-8")
    if readme is not None and readme_text is not None:
        readme.write_text(readme_text, encoding="utf-8")
    return page


@dataclasses.dataclass
class Report:
    """Writes the page of a suite, its tables and figures."""

    suite: Annotated[str, tyro.conf.Positional]
    """Name of a suite, or the path of a table (``.parquet``) or of a folder of cells."""
    output: Path | None = None
    """Folder to write to; by default that of the table."""
    readme: Path | None = None
    """A page whose part ``comparison`` gets the table of DiffusionBC and its paired BC."""

    def run(self) -> int:
        """Writes the files and prints where the page is."""
        is_path = os.sep in self.suite or self.suite.endswith(".parquet")
        print(write_report(Path(self.suite) if is_path else self.suite, self.output, self.readme))
        return 0
