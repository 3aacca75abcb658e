"""The report's text, on complete and on incomplete results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from scipy import stats

pytest.importorskip("rliable")

from benchmarks.report import statistics
from benchmarks.report.markdown import report
from benchmarks.report.results import Results, read_results
from benchmarks.report.scales import scale_of

FIRST = [94.0, 90.0, 97.0, 93.0, 99.0]
SECOND = [81.0, 78.0, 85.0, 82.0, 81.0]
FULL = {
    "maze": {"bc": SECOND, "bc_paired": SECOND, "diffusion_bc": FIRST, "gail": [1.0, 9.0, 20.0]},
    "hand_rotate": {"bc": FIRST, "bc_paired": FIRST, "diffusion_bc": FIRST},
}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 50)


def text_of(results: Results, figures: Iterable[str] = ()) -> str:
    tasks = [(task, scale) for task in results.tasks if (scale := scale_of(task))]
    return report(results, tasks, list(figures), "pictures")


def written(folder: Path, scores: Mapping[str, Any], **further: Any) -> str:
    synthetic.write(folder, *synthetic.comparison(scores, **further))
    return text_of(read_results(folder))


def section(text: str, title: str) -> str:
    (found,) = [part for part in f"\n{text}".split("\n## ") if part.startswith(title + "\n")]
    return found


def of_task(text: str, title: str) -> str:
    return text.split(f"\n### {title}\n\n")[1]


def tables(text: str) -> list[list[dict[str, str]]]:
    """The rows of all Markdown tables by the names of their columns."""
    found = []
    for block in text.split("\n\n"):
        lines = [[c.strip() for c in line.strip("|").split(" | ")] for line in block.splitlines()]
        if block.startswith("| ") and set(lines[1]) == {"---"}:
            assert {len(line) for line in lines} == {len(lines[0])}
            found.append([dict(zip(lines[0], line, strict=True)) for line in lines[2:]])
    return found


def test_the_verdicts_come_first_with_their_intervals(tmp_path: Path) -> None:
    text = written(tmp_path, FULL)
    part = section(text, "DiffusionBC against the same training without L_DM")
    assert text.split("\n## ")[1] == part
    low, high = stats.ttest_rel(FIRST, SECOND).confidence_interval(0.95)
    assert (
        f"**Maze**: DiffusionBC is **better** than BC (DiffusionBC's network): a mean "
        f"difference of 13.2 percentage points, whose 95 % interval [{low:.1f}, {high:.1f}]" in part
    )
    assert "**HandRotate**: DiffusionBC is **equal** to" in part
    assert "- **Mean over 2 tasks** on the shared scale: DiffusionBC is **better**" in part
    assert "2 tasks: mean at or above on 2; better on 1, equal on 1, worse on 0." in part


def test_a_tasks_table_has_the_figures_of_its_files(tmp_path: Path) -> None:
    part = of_task(written(tmp_path, FULL), "Maze")
    rows = {row["method"]: row for row in tables(part)[0]}
    row = rows["DiffusionBC"]
    low, high = stats.ttest_1samp(FIRST, 0).confidence_interval(0.95)
    assert row["seeds"] == "5"
    assert row["mean ± std"] == f"{np.mean(FIRST):.1f} ± {np.std(FIRST, ddof=1):.1f}"
    assert row["mean's 95 % interval"] == f"[{low:.1f}, {high:.1f}]"
    assert row["IQM, 95 % interval"].startswith(f"{stats.trim_mean(FIRST, 0.25):.1f} [")
    assert row["paper, other demonstrations"] == "95.4 ± 1.7"
    assert row["CPU s, critic + training"] == "5.0 + 22.0"
    assert row["wall-clock s"] == "10.0 + 44.0"
    assert (row["environment steps"], row["updates"]) == ("0", "20,000")
    assert (row["peak memory, MB"], row["ms per action"]) == ("512", "0.125")
    gail = rows["GAIL"]
    assert gail["CPU s, critic + training"] == "21.0"
    assert (gail["environment steps"], gail["seeds"]) == ("200,000", "3")
    assert gail["paper, other demonstrations"] == "–"


def test_the_mean_over_the_last_checkpoints_has_its_own_column(tmp_path: Path) -> None:
    curve = [{"updates": n, "env_steps": 0, "scores": [n % 2, 1]} for n in range(4)]
    synthetic.write(tmp_path, synthetic.record("bc", 1, 10.0, curve=curve))
    (row,) = tables(of_task(text_of(read_results(tmp_path)), "Maze"))[0]
    assert row["last checkpoints, mean ± std"] == "75.0"
    assert row["mean ± std"] == "10.0"


def test_provenance_names_every_value_that_records_differ_in(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path,
        synthetic.record("bc", 100, 50.0),
        synthetic.record(
            "bc",
            101,
            50.0,
            git_revision="fedcba9876543210",
            git_dirty=True,
            command="python -m benchmarks.compare --again",
            versions={"python": "3.12.1", "torch": "2.13.0"},
        ),
        synthetic.record("bc", 102, 50.0, git_revision=None, git_dirty=None),
    )
    part = of_task(text_of(read_results(tmp_path)), "Maze")
    assert "- training seeds: 100, 101, 102\n" in part
    assert "- revisions: `abc1234`; `fedcba987654` with uncommitted changes; unknown\n" in part
    assert "`python -m benchmarks.compare --again`; `python -m benchmarks.compare`" in part
    assert "- versions: python 3.11.7, python 3.12.1, torch 2.13.0\n" in part
    assert "- evaluation: 100 episodes, environment seeds from 0\n" in part
    assert (
        "- learning curves: 20 episodes for each checkpoint, environment seeds from 500000" in part
    )
    assert "- demonstrations: `maze` (bundled), 5,000 transitions" in part
    assert "Take care" not in part


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"first_episode_seed": 7}, "not all runs were scored on the same episodes"),
        ({"scores": [1.0]}, "not all runs were scored on the same episodes"),
        ({"config": {"batch_size": 64}}, "runs of DiffusionBC differ in their settings"),
        (
            {"machine": {"processor": "another"}},
            "not all runs had the same machine, so their times compare only roughly",
        ),
    ],
)
def test_runs_that_are_not_comparable_are_told(
    tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    synthetic.write(
        tmp_path,
        synthetic.record("diffusion_bc", 1, 50.0),
        synthetic.record("diffusion_bc", 2, 50.0, **change),
    )
    assert f"**Take care**: {text}." in text_of(read_results(tmp_path))


def test_one_seed_has_no_interval_and_no_verdict(tmp_path: Path) -> None:
    text = written(tmp_path, {"maze": {"bc_paired": [80.0], "diffusion_bc": [90.0]}})
    assert (
        "cannot be judged yet against BC (DiffusionBC's network): a mean difference of 10.0 "
        "percentage points, without an interval (1 seed, paired)." in text
    )
    (row, _) = tables(of_task(text, "Maze"))[0]
    assert row["mean ± std"] == "80.0"
    assert row["mean's 95 % interval"] == "(one seed, no interval)"
    (comparison,) = tables(section(text, "All comparisons"))[0]
    assert comparison["verdict"] == "no verdict"
    assert "nan" not in text


def test_without_the_main_pair_the_report_says_so(tmp_path: Path) -> None:
    text = written(tmp_path, {"maze": {"bc": FIRST}})
    assert "No task has runs of both with the same seed." in text
    assert "## All comparisons" not in text
    assert "## Over tasks" not in text
    assert "## Targets" not in text


def test_targets_are_listed_with_the_measured_mean_and_its_interval(tmp_path: Path) -> None:
    scores = {"maze": {"diffusion_bc": FIRST}, "walker": {"diffusion_bc": [7100.0, 7200.0]}}
    maze, cheetah, walker = tables(section(written(tmp_path, scores, paper_data=True), "Targets"))[
        0
    ]
    low, high = stats.ttest_1samp(FIRST, 0).confidence_interval(0.95)
    assert maze == {
        "task": "Maze",
        "target": "≥ 95.4 %",
        "measured, 95 % interval": f"94.6 [{low:.1f}, {high:.1f}]",
        "seeds": "5",
        "target is": "missed",
    }
    assert (cheetah["target"], cheetah["target is"]) == ("≥ 4909.5", "not measured")
    assert (walker["target"], walker["target is"]) == ("≥ 7034.6", "met")


def test_all_comparisons_have_a_row_for_each_task_and_one_over_tasks(tmp_path: Path) -> None:
    (rows,) = tables(section(written(tmp_path, FULL), "All comparisons"))
    found = [(row["method"], row["against"], row["task"]) for row in rows]
    assert found == [
        ("DiffusionBC", "BC (DiffusionBC's network)", "Maze"),
        ("DiffusionBC", "BC (DiffusionBC's network)", "HandRotate"),
        ("DiffusionBC", "BC (DiffusionBC's network)", "mean over 2 tasks"),
        ("DiffusionBC", "BC (imitation's defaults)", "Maze"),
        ("DiffusionBC", "BC (imitation's defaults)", "HandRotate"),
        ("DiffusionBC", "BC (imitation's defaults)", "mean over 2 tasks"),
        ("DiffusionBC", "GAIL", "Maze"),
    ]
    assert rows[0]["seeds"] == "5 seeds, paired"
    assert rows[3]["P, 95 % interval"] == "1.00 [1.00, 1.00]"
    assert rows[6]["seeds"] == "5 and 3 seeds"
    assert {row["verdict"] for row in rows} == {"better", "equal"}


def test_what_is_left_out_over_tasks_is_named(tmp_path: Path) -> None:
    scores = FULL | {"Hopper-v4": {"bc": [3000.0, 3100.0]}}
    part = section(written(tmp_path, scores), "Over tasks")
    scale, rows = tables(part)
    assert [row["task"] for row in scale] == ["Maze", "HandRotate"]
    assert scale[0]["scale"] == "the success rate (0.0 and 100.0 %)"
    by_method = {row["method"]: row for row in rows}
    assert "GAIL" not in by_method
    expected = stats.trim_mean(np.array(FIRST * 2) / 100, 0.25)
    both = by_method["DiffusionBC"]
    assert both["IQM, 95 % interval"].startswith(f"{expected:.3f} [")
    assert (both["mean"], both["seeds × tasks"]) == (f"{np.mean(FIRST) / 100:.3f}", "5 × 2")
    assert "Left out because they miss some of these tasks: GAIL." in part
    assert "Tasks left out, without a scale or with too few methods: Hopper-v4." in part


def test_a_users_own_task_has_no_column_for_the_paper(tmp_path: Path) -> None:
    text = written(tmp_path, {"Hopper-v4": {"bc": [3000.0, 3100.0], "diffusion_bc": [3200.0] * 2}})
    rows = tables(of_task(text, "Hopper-v4"))[0]
    assert not any("paper" in column for column in rows[0])
    assert rows[0]["mean ± std"] == "3050.0 ± 70.7"
    assert rows[0]["CPU s, critic + training"] == "20.5"
    assert "- demonstrations: `own.npz`, 5,000" in text


def test_the_papers_noise_is_told_where_it_differs(tmp_path: Path) -> None:
    text = written(tmp_path, {"fetch_pick": {"bc": FIRST}})
    assert "noise ratio 1 (the paper's numbers are at 1.25)" in text
    assert "numbers are at" not in written(tmp_path / "b", {"maze": {"bc": FIRST}})


def test_figures_are_linked_with_their_seeds(tmp_path: Path) -> None:
    synthetic.write(tmp_path, *synthetic.comparison(FULL))
    text = text_of(read_results(tmp_path), ["scores", "training-cost"])
    part = section(text, "Figures")
    assert part.count("](pictures/") == 2
    assert "![Scores](pictures/scores.png)" in part
    assert "DiffusionBC: 5; GAIL: 3; 100 evaluation episodes" in part


def test_files_left_out_are_listed(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.record("bc", 1, 50.0))
    (tmp_path / "maze" / "bc" / "2.json").write_text("{")
    text = text_of(read_results(tmp_path))
    assert "- maze/bc/2.json: cannot be read as JSON" in section(text, "Files left out")
    assert "Files left out" not in written(tmp_path / "whole", {"maze": {"bc": FIRST}})
