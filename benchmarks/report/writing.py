"""Records in, page, figures and tables of other pages out."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from benchmarks.record import RESULTS, ROOT
from benchmarks.report import dagger, figures, monitor, pages, scores, studies
from benchmarks.report.frame import read_frame, scores_at
from benchmarks.report.summaries import summarise, work_out
from benchmarks.suites import SUITES


def fill(text: str, suite: str, frame: pd.DataFrame) -> str:
    """Returns a page with the suite's tables of now between their marks.

    ``<!-- labels --><!-- /labels -->`` get the main table of the suite ``labels``, and
    ``<!-- labels zeros25: mse, BC; defaults --><!-- /labels -->`` the scores of two variants in
    the part ``zeros25`` of its study.

    Raises:
        ValueError: if a mark has no end, or the study no such part or variant.
    """

    def table(found: re.Match[str]) -> str:
        part, variants = found["part"], found["variants"]
        if part is None:
            shown = MAIN_TABLES.get(suite, pages.main_table)(frame)
        else:
            shown = studies.part_table(frame, suite, part, variants.split("; "))
        return f"{found['begin']}\n{shown}\n{end}"

    end = f"<!-- /{suite} -->"
    begin = rf"<!-- {re.escape(suite)}(?: (?P<part>[^:\n]+): (?P<variants>[^\n]+?))? -->"
    n_begins, n_ends = len(re.findall(begin, text)), text.count(end)
    if n_begins != n_ends:
        raise ValueError(
            f"{suite}: found {n_begins} marks of tables and {n_ends} times {end}, expected one "
            "after each mark."
        )
    return re.sub(rf"(?P<begin>{begin}).*?{end}", table, text, flags=re.DOTALL)


def _comparison(frame: pd.DataFrame, figures_folder: Path) -> str:
    statistics = work_out(frame)
    drawn = figures.save(
        {
            "scores": figures.scores(frame, statistics.methods),
            "learning-curves": figures.curves(figures.checkpoints(frame), "updates of the policy"),
        },
        figures_folder,
    )
    return pages.comparison_page(frame, statistics, drawn, figures_folder.name)


def _dagger(frame: pd.DataFrame, figures_folder: Path) -> str:
    points = scores_at(frame, "labels")
    figures.save({"labels": figures.curves(points, "labels of the expert")}, figures_folder)
    return dagger.dagger_page(frame, figures_folder.name)


def _study(suite: str, frame: pd.DataFrame, figures_folder: Path) -> str:
    study = studies.STUDIES[suite]
    parts = study.parts(frame)
    if study.axis is None:
        drawn = {key: figures.scores(runs, summarise(runs)) for key, runs in parts.items()}
        figures.save(drawn, figures_folder)
    else:
        found = pd.concat([runs for runs in parts.values() if "at" in runs])
        of_all = figures.curves(found, study.axis)
        figures.save({"scores": of_all}, figures_folder)
    return studies.study_page(frame, suite, figures_folder.name)


_PAGES: Mapping[str, Callable[[pd.DataFrame, Path], str]] = {
    "scores": lambda frame, _: scores.scores_page(frame),
    "monitor": lambda frame, _: monitor.monitor_page(frame),
    "dagger": _dagger,
    **{suite: functools.partial(_study, suite) for suite in studies.STUDIES},
}
"""What writes the page of a suite, and draws its figures; the others have the comparison's."""
MAIN_TABLES: Mapping[str, Callable[[pd.DataFrame], str]] = {
    "scores": scores.main_table,
    "monitor": monitor.main_table,
    "dagger": dagger.main_table,
    "labels": lambda frame: studies.over_conditions(frame, SUITES["labels"].default_variants),
}
"""What other pages show of a suite; of the others it is the comparison's."""
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
"""Where tables of suites may be asked for."""


@dataclasses.dataclass
class Report:
    """Writes the page of a suite, which may be incomplete, and its figures and tables elsewhere.

    The tables in ``README.md`` and ``docs/`` are those between the suite's marks.
    """

    suite: Annotated[str, tyro.conf.Positional]
    """Name of a suite, or the path of a table (``.parquet``) or of a folder of cells, whose page is
    written alone."""
    output: Path | None = None
    """Folder to write the page to; by default that of the table."""

    def run(self) -> None:
        """Writes the files and prints where the page is; writes nothing where it raises.

        Raises:
            ValueError: if there are no records, they cannot be put together, or a page asks for a
                table that cannot be made.
        """
        is_path = os.sep in self.suite or self.suite.endswith(".parquet")
        frame = read_frame(Path(self.suite) if is_path else self.suite)
        folder = self.output or (Path(self.suite).parent if is_path else RESULTS)
        name = Path(self.suite).stem if is_path else self.suite
        others = () if is_path else PAGES
        texts = {path: fill(path.read_text(encoding="utf-8"), name, frame) for path in others}
        page = _PAGES.get(name, _comparison)
        texts[folder / f"{name}.md"] = page(frame, folder / f"{name}-figures")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        print(folder / f"{name}.md")
