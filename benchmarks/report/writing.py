"""Result files in, report, figures and the README's part out."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.report import figures
from benchmarks.report.markdown import report
from benchmarks.report.readme import readme_part, with_comparison
from benchmarks.report.results import read_results
from benchmarks.report.scales import scale_of


def write_report(results: Path, output: Path | None = None, readme: Path | None = None) -> Path:
    """Writes the report on a folder of results, which may be incomplete.

    Files that are left out are named, with the reason, on standard error and in the report.

    Args:
        results: Folder with `<task>/<method>/<seed>.json`.
        output: Folder for the report, `<name of results>.md`, and its figures,
            `<name of results>-figures/`; by default beside the results.
        readme: A file whose text between the comparison's marks is written anew.

    Returns:
        Where the report is.

    Raises:
        ValueError: If there is no result at all, or the README has no marks; nothing is written.
    """
    results = results.resolve()
    found = read_results(results)
    for problem in found.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if not found.tasks:
        raise ValueError(f"{results}: found no results, expected TASK/METHOD/SEED.json.")
    output = results.parent if output is None else output
    page, pictures = output / f"{results.name}.md", output / f"{results.name}-figures"
    readme_text = ""
    if readme is not None:
        part = readme_part(found, page, pictures / "scores.png", readme.parent)
        readme_text = with_comparison(readme.read_text(encoding="utf-8"), part)
    tasks = [(task, scale) for task in found.tasks if (scale := scale_of(task)) is not None]
    drawn = figures.draw(found, tasks, pictures)
    page.write_text(report(found, tasks, drawn, pictures.name), encoding="utf-8")
    if readme is not None:
        readme.write_text(readme_text, encoding="utf-8")
    return page
