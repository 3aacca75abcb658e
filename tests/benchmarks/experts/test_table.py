"""The table of tasks and the page about them, with and without results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experts import table as module
from benchmarks.experts.table import HEADER, README_COLUMNS, page, shown, table, with_table
from sb3_diffbc.demonstrations import loading
from sb3_diffbc.tasks import TASKS

SUCCESS = {"metric": "success", "mean": 0.875, "interval": [0.6, 0.95]}
RANDOM = {"metric": "success", "mean": 0.0, "interval": [0.0, 0.037]}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the committed results."""
    folder = tmp_path / "results"
    folder.mkdir()
    monkeypatch.setattr(module, "RESULTS", folder)
    return folder


@pytest.fixture
def without_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the bundled demonstrations."""
    folder = tmp_path / "bundled"
    folder.mkdir()
    monkeypatch.setattr(loading, "_bundled", folder)
    return folder


def cells(text: str) -> list[dict[str, str]]:
    """The rows of a Markdown table by the names of their columns."""
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()]
    header, rule, *rows = lines
    assert set(rule) == {"---"}
    assert all(len(row) == len(header) for row in lines)
    return [dict(zip(header, row, strict=True)) for row in rows]


def write_result(folder: Path, name: str, **further: Any) -> None:
    entries = [{**SUCCESS, "noise_ratio": ratio} for ratio in TASKS[name].noise_ratios]
    content = {"expert": entries, "random": RANDOM, **further}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.usefixtures("results", "without_sets")
def test_every_task_has_a_row_even_where_nothing_is_known_of_it() -> None:
    rows = cells(table())
    assert list(rows[0]) == list(HEADER)
    assert [row["task"] for row in rows] == [task.title for task in TASKS.values()]
    for row, task in zip(rows, TASKS.values(), strict=True):
        assert row["environment"] == f"`{task.env_id}`"
        assert row["steps"] == str(task.horizon)
        assert row["expert's score"] == row["random actions"] == "not scored"
        assert (row["demonstrations"], row["cost of the expert"]) == ("none", "none")


@pytest.mark.usefixtures("without_sets")
def test_a_row_shows_the_scores_and_what_the_expert_cost(results: Path) -> None:
    training = {"timesteps": 1_540_000, "seconds": 1290.0}
    write_result(results, "hand_rotate", training=training)
    write_result(results, "maze")
    rows = {row["task"]: row for row in cells(table())}
    learned, scripted = rows["HandRotate"], rows["Maze"]
    assert learned["expert's score"] == "87.5 % [60.0, 95.0]"
    assert learned["random actions"] == "0.0 % [0.0, 3.7]"
    assert learned["cost of the expert"] == "1.5 M steps, 22 min"
    assert (learned["expert"], scripted["expert"]) == ("PPO", "scripted")
    assert scripted["cost of the expert"] == "none"


@pytest.mark.usefixtures("results")
def test_a_row_tells_of_the_bundled_demonstrations() -> None:
    row = cells(table())[0]
    assert row["demonstrations"] == "100 episodes, 12,094 steps"
    assert row["their score"] == "100.0 %"
    assert (row["observation"], row["action"]) == ("6", "2")


@pytest.mark.usefixtures("results")
def test_a_card_that_cannot_be_read_counts_as_none(without_sets: Path) -> None:
    (without_sets / "maze.npz").write_bytes(b"")
    (without_sets / "maze.json").write_text("{")
    assert cells(table())[0]["demonstrations"] == "none"


@pytest.mark.usefixtures("results")
def test_columns_can_be_chosen() -> None:
    chosen = cells(table(README_COLUMNS))
    assert list(chosen[0]) == list(README_COLUMNS)
    assert chosen == [{name: row[name] for name in README_COLUMNS} for row in cells(table())]


@pytest.mark.parametrize(
    ("score", "interval", "text"),
    [
        (SUCCESS, True, "87.5 % [60.0, 95.0]"),
        (SUCCESS, False, "87.5 %"),
        ({"metric": "return", "mean": 4873.3, "interval": [4800.1, 4950.6]}, True,
         "4873 [4800, 4951]"),
        ({"metric": "return", "mean": -281.5, "interval": [-300.0, -260.0]}, True,
         "-282 [-300, -260]"),
    ],
)  # fmt: skip
def test_scores_are_shown_in_the_units_of_their_metric(
    score: dict[str, Any], interval: bool, text: str
) -> None:
    assert shown(score, interval=interval) == text


def test_the_readmes_table_is_replaced_between_its_marks_and_nothing_else() -> None:
    readme = "# Title\n\n<!-- tasks -->\nold\n<!-- /tasks -->\n\nThe end.\n"
    written = with_table(readme)
    before, rest = written.split("<!-- tasks -->\n")
    found, after = rest.split("\n<!-- /tasks -->")
    assert (before, after) == ("# Title\n\n", "\n\nThe end.\n")
    assert found == table(README_COLUMNS)
    assert with_table(written) == written


@pytest.mark.parametrize(
    "readme", ["", "<!-- tasks -->", "<!-- /tasks -->", "<!-- /tasks -->\n<!-- tasks -->"]
)
def test_a_readme_without_marks_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="README: expected the lines <!-- tasks -->"):
        with_table(readme)


def test_the_page_has_a_section_for_each_task(results: Path) -> None:
    write_result(results, "fetch_pick")
    text = page()
    assert table() in text
    assert text.endswith("\n")
    sections = text.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [t.title for t in TASKS.values()]
    for section, task in zip(sections, TASKS.values(), strict=True):
        assert task.summary in section
        assert f"Expert: {task.expert.summary}." in section
        assert f"](experts/{task.name}.png)" in section
    assert all(f"| {ratio} | 87.5 % [60.0, 95.0] |" in sections[1] for ratio in (1, 1.25, 2))
    assert "noise ratio" not in sections[0]


def test_the_committed_results_can_all_be_shown() -> None:
    for row, task in zip(cells(table()), TASKS.values(), strict=True):
        if module.result_path(task).exists():
            assert "[" in row["expert's score"]
            assert "[" in row["random actions"]


def test_the_readme_and_the_page_show_what_the_results_say() -> None:
    readme = module.README.read_text(encoding="utf-8")
    assert module.with_table(readme) == readme
    assert module.PAGE.read_text(encoding="utf-8") == module.page()
