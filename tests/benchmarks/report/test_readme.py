"""The README's part: between its marks, with the table, the verdicts and a figure."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic_records as synthetic
from scipy import stats

pytest.importorskip("rliable")

from benchmarks.report.readme import (
    MARKS,
    differences_table,
    readme_part,
    scores_table,
    with_comparison,
)
from benchmarks.report.results import read_results

SCORES = {
    "maze": {"bc": [90.0], "diffusion_bc": [94.0, 96.0], "bc_paired": [91.0, 93.0]},
    "walker": {"diffusion_bc": [5000.0, 5200.0, 5400.0], "gail": [100.0, 300.0]},
}


def test_the_part_is_put_between_its_marks_and_nothing_else_changes() -> None:
    readme = "# Title\n\n<!-- comparison -->\nold\n<!-- /comparison -->\n\nThe end.\n"
    found = with_comparison(readme, "new")
    assert found == "# Title\n\n<!-- comparison -->\nnew\n<!-- /comparison -->\n\nThe end.\n"
    assert with_comparison(found, "new") == found


@pytest.mark.parametrize("readme", ["", *MARKS, "\n".join(reversed(MARKS))])
def test_a_readme_without_marks_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="README: expected the lines <!-- comparison -->"):
        with_comparison(readme, "new")


def test_the_table_has_means_the_papers_and_the_seeds(tmp_path: Path) -> None:
    synthetic.write(tmp_path, *synthetic.comparison(SCORES))
    assert scores_table(read_results(tmp_path)).splitlines() == [
        "| method | Maze, % | Walker | seeds |",
        "| --- | --- | --- | --- |",
        "| BC (imitation's defaults) | 90.0 (92.1) | – | 1 |",
        "| BC (DiffusionBC's network) | 92.0 ± 1.4 (92.1) | – | 2 |",
        "| DiffusionBC | 95.0 ± 1.4 (95.4) | 5200.0 ± 200.0 (7034.6) | 2–3 |",
        "| GAIL | – | 200.0 ± 141.4 | 2 |",
    ]


def test_the_differences_are_those_to_each_other_method(tmp_path: Path) -> None:
    synthetic.write(tmp_path, *synthetic.comparison(SCORES))
    welch = stats.ttest_ind(
        SCORES["walker"]["diffusion_bc"], SCORES["walker"]["gail"], equal_var=False
    )
    low, high = welch.confidence_interval()
    assert differences_table(read_results(tmp_path)).splitlines() == [
        "| DiffusionBC against | Maze | Walker |",
        "| --- | --- | --- |",
        "| BC (DiffusionBC's network) | better: 3.0 [3.0, 3.0] | – |",
        "| BC (imitation's defaults) | no verdict: 5.0 (one seed, no interval) | – |",
        f"| GAIL | – | better: 5000.0 [{low:.1f}, {high:.1f}] |",
    ]


def test_the_part_has_verdict_figure_and_report(tmp_path: Path) -> None:
    results = tmp_path / "docs" / "results"
    synthetic.write(results, *synthetic.comparison(SCORES))
    found = read_results(results)
    folder = tmp_path / "docs"
    part = readme_part(found, folder / "results.md", folder / "pictures" / "scores.png", tmp_path)
    assert part.startswith(scores_table(found))
    assert differences_table(found) in part
    assert "from other demonstrations than here for Maze, Walker" in part
    assert "1 task: mean at or above on 1; better on 1, equal on 0, worse on 0." in part
    assert "](docs/pictures/scores.png)" in part
    assert "[results.md](docs/results.md)" in part


def test_without_the_main_pair_there_is_no_verdict(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.record("bc", 1, 50.0, "Hopper-v4"))
    found = read_results(tmp_path)
    part = readme_part(found, tmp_path / "r.md", tmp_path / "s.png", tmp_path)
    assert "compared, and none are there yet." in part
