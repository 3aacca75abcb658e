"""What the figures show."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from synthetic_records import comparison, table

pytest.importorskip("rliable")

from matplotlib import pyplot as plt

from benchmarks.report import figures
from benchmarks.report.frame import read_frame
from benchmarks.report.summaries import summarise


@pytest.fixture
def frame(tmp_path: Path) -> Iterator[pd.DataFrame]:
    near = {"bc": [86.0, 88.0], "bc_paired": [95.0, 96.0], "diffusion_bc": [96.0, 98.0]}
    scores = {"maze": near | {"gail": [3.0, 5.0], "implicit_bc": [90.0, 92.0]}, "walker": near}
    yield read_frame(table(tmp_path, *comparison(scores)))
    plt.close("all")


def test_the_axis_of_scores_shows_the_difference_between_the_good_ones(
    frame: pd.DataFrame,
) -> None:
    maze, walker, *_ = figures.scores(frame, summarise(frame)).axes
    low, high = maze.get_xlim()
    assert 80 < low < 86
    assert 98 < high <= 103
    assert [text.get_text() for text in maze.texts] == ["◂ 4"]
    assert [text.get_text() for text in walker.texts] == []
    assert [axes.get_xlabel() for axes in (maze, walker)] == ["success %", "return"]


def test_learning_curves_are_of_a_few_methods(frame: pd.DataFrame) -> None:
    figure = figures.learning_curves(frame)
    assert figure is not None
    for axes in figure.axes:
        assert len(axes.lines) == 3
        assert axes.get_xlabel()
        assert axes.get_ylabel()
    means = figure.axes[0].lines[2].get_ydata()
    assert list(means) == pytest.approx([48.5, 97.0])
