"""A suite's records as a frame: units, order, titles and scales."""

import math
from pathlib import Path

import pytest
from synthetic_records import comparison, record, table

from benchmarks.report.frame import read_frame
from sb3_diffbc.tasks import TASKS


def test_success_rates_are_percent_and_returns_are_as_they_are(tmp_path: Path) -> None:
    maze = record("bc", 100, 80.0, measures={"score/averaged_weights": 0.5})
    frame = read_frame(table(tmp_path, maze, record("bc", 100, 400.0, "walker")))
    success, returns = frame.iloc[0], frame.iloc[1]
    assert success["score"] == pytest.approx(80.0)
    assert success["score/averaged_weights"] == pytest.approx(50.0)
    assert [checkpoint["score"] for checkpoint in success["curve"]] == pytest.approx([40.0, 80.0])
    assert returns["score"] == pytest.approx(400.0)
    assert [checkpoint["score"] for checkpoint in returns["curve"]] == pytest.approx([200.0, 400.0])


def test_rows_are_in_the_order_of_tasks_methods_and_seeds(tmp_path: Path) -> None:
    scores = {"own": {"bc": [1.0]}, "walker": {"zzz": [1.0], "bc": [1.0]}, "maze": {"gail": [1, 2]}}
    scores["maze"] |= {"diffusion_bc": [3.0], "new variant": [4.0]}
    frame = read_frame(table(tmp_path, *comparison(scores)))
    assert list(zip(frame["task"], frame["variant"], frame["seed"], strict=True)) == [
        ("maze", "diffusion_bc", 100),
        ("maze", "gail", 100),
        ("maze", "gail", 101),
        ("maze", "new variant", 100),
        ("walker", "bc", 100),
        ("walker", "zzz", 100),
        ("own", "bc", 100),
    ]
    assert list(frame["method"].cat.categories[-2:]) == ["new variant", "zzz"]


def test_the_papers_scores_are_beside_ours(tmp_path: Path) -> None:
    scores = {"maze-paper": {"diffusion_bc": [50.0], "gail": [50.0]}, "maze": {"bc": [50.0]}}
    frame = read_frame(table(tmp_path, *comparison(scores))).set_index(["task", "variant"])
    ours = frame.loc[("maze-paper", "diffusion_bc")]
    paper = TASKS["maze"].paper["dbc"]
    assert (ours["paper_mean"], ours["paper_std"]) == (paper.mean, paper.std)
    assert math.isnan(frame.loc[("maze-paper", "gail"), "paper_mean"])
    assert frame["authors_data"].to_dict() == {
        ("maze-paper", "diffusion_bc"): True,
        ("maze-paper", "gail"): True,
        ("maze", "bc"): False,
    }


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("noise_ratio", {"noise_ratio": 2.0}),
        (
            "demonstrations",
            {"demonstrations": {"source": "a", "sha256": "c", "transitions": 9, "episodes": 3}},
        ),
    ],
)
def test_runs_about_different_problems_are_refused(
    tmp_path: Path, field: str, changes: dict[str, object]
) -> None:
    path = table(tmp_path, record("bc", 100, 50.0), record("bc", 101, 50.0, **changes))
    with pytest.raises(ValueError, match=f"Title of maze.* runs with different .*{field}"):
        read_frame(path)
