"""Records in, page, figures and the README's table out."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.record import RESULTS
from benchmarks.report import dagger, figures, pages, scores, studies
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


@dataclasses.dataclass
class Report:
    """Writes the page of a suite, which may be incomplete, its tables and figures."""

    suite: Annotated[str, tyro.conf.Positional]
    """Name of a suite, or the path of a table (``.parquet``) or of a folder of cells."""
    output: Path | None = None
    """Folder to write to; by default that of the table."""
    readme: Path | None = None
    """A page whose part ``comparison`` gets the table of DiffusionBC and its paired BC, or whose
    part ``scores`` or ``dagger`` gets the main table of this suite."""

    def run(self) -> None:
        """Writes the files and prints where the page is; writes nothing where it raises.

        Raises:
            ValueError: if there are no records, they cannot be put together, or the README lacks
                its marks.
        """
        is_path = os.sep in self.suite or self.suite.endswith(".parquet")
        frame = read_frame(Path(self.suite) if is_path else self.suite)
        statistics = work_out(frame)
        texts: dict[Path, str] = {}
        folder = self.output or (Path(self.suite).parent if is_path else RESULTS)
        name = Path(self.suite).stem if is_path else self.suite
        if self.readme is not None:
            text = self.readme.read_text(encoding="utf-8")
            if name == "scores":
                part = "scores", scores.main_table(frame)
            elif name == "dagger":
                part = "dagger", dagger.main_table(frame)
            else:
                part = "comparison", pages.main_table(statistics)
            texts[self.readme] = replace_part(text, *part)
        if name == "defaults":
            text = pages.defaults_page(frame, statistics)
        elif name == "diagnosis":
            text = pages.diagnosis_page(frame, statistics)
        elif name == "scores":
            text = scores.scores_page(frame)
        elif name == "dagger":
            figures.draw_labels(frame, folder / f"{name}-figures")
            text = dagger.dagger_page(frame, f"{name}-figures")
        elif name in studies.STUDIES:
            figures.draw_studies(studies.by_condition(frame, name), folder / f"{name}-figures")
            text = studies.study_page(frame, name, f"{name}-figures")
        else:
            drawn = figures.draw(frame, statistics.methods, folder / f"{name}-figures")
            text = pages.comparison_page(frame, statistics, drawn, f"{name}-figures")
        folder.mkdir(parents=True, exist_ok=True)
        texts[folder / f"{name}.md"] = text
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        print(folder / f"{name}.md")
