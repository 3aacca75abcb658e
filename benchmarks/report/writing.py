"""Records in, page, figures and the README's table out."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

from benchmarks.record import RESULTS
from benchmarks.report import dagger, figures, monitor, pages, scores, studies
from benchmarks.report.frame import read_frame, scores_at
from benchmarks.report.summaries import summarise, work_out
from benchmarks.suites import SUITES


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
        of_all = figures.curves(pd.concat(parts.values()), study.axis)
        figures.save({"scores": of_all}, figures_folder)
    return studies.study_page(frame, suite, figures_folder.name)


_PAGES: Mapping[str, Callable[[pd.DataFrame, Path], str]] = {
    "scores": lambda frame, _: scores.scores_page(frame),
    "monitor": lambda frame, _: monitor.monitor_page(frame),
    "dagger": _dagger,
    **{suite: functools.partial(_study, suite) for suite in studies.STUDIES},
}
"""What writes the page of a suite, and draws its figures; the others have the comparison's."""
_MAIN_TABLES: Mapping[str, Callable[[pd.DataFrame], str]] = {
    "scores": scores.main_table,
    "monitor": monitor.main_table,
    "dagger": dagger.main_table,
    "labels": lambda frame: studies.over_conditions(frame, SUITES["labels"].default_variants),
}
"""What another page shows of a suite; of the others it is the comparison's."""


@dataclasses.dataclass
class Report:
    """Writes the page of a suite, which may be incomplete, its tables and figures."""

    suite: Annotated[str, tyro.conf.Positional]
    """Name of a suite, or the path of a table (``.parquet``) or of a folder of cells."""
    output: Path | None = None
    """Folder to write to; by default that of the table."""
    readme: Path | None = None
    """A page whose part ``comparison`` gets the table of DiffusionBC and its paired BC, or whose
    part ``scores``, ``monitor``, ``dagger`` or ``labels`` gets the main table of that suite."""

    def run(self) -> None:
        """Writes the files and prints where the page is; writes nothing where it raises.

        Raises:
            ValueError: if there are no records, they cannot be put together, or the README lacks
                its marks.
        """
        is_path = os.sep in self.suite or self.suite.endswith(".parquet")
        frame = read_frame(Path(self.suite) if is_path else self.suite)
        texts: dict[Path, str] = {}
        folder = self.output or (Path(self.suite).parent if is_path else RESULTS)
        name = Path(self.suite).stem if is_path else self.suite
        if self.readme is not None:
            text = self.readme.read_text(encoding="utf-8")
            if name in _MAIN_TABLES:
                part = name, _MAIN_TABLES[name](frame)
            else:
                part = "comparison", pages.main_table(work_out(frame))
            texts[self.readme] = replace_part(text, *part)
        page = _PAGES.get(name, _comparison)
        texts[folder / f"{name}.md"] = page(frame, folder / f"{name}-figures")
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")
        print(folder / f"{name}.md")
