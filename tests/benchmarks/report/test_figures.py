"""Figures: which are drawn of what there is, and what they show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic_records as synthetic

pytest.importorskip("rliable")

from matplotlib import colors
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.records import METHOD_TITLES
from benchmarks.report import figures, statistics
from benchmarks.report.results import Results, read_results
from benchmarks.report.scales import Scale

UNIT = Scale(0.0, 100.0, "")
SCORES = {
    "maze": {"bc": [90.0, 94.0], "diffusion_bc": [96.0, 97.0], "gail": [20.0, 80.0]},
    "hand_rotate": {"bc": [50.0, 55.0], "diffusion_bc": [60.0, 58.0]},
    "Hopper-v4": {"diffusion_bc": [3000.0]},
}


@pytest.fixture(autouse=True)
def _few_draws_and_no_open_figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 50)
    yield
    plt.close("all")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    synthetic.write(tmp_path / "results", *synthetic.comparison(SCORES))
    return read_results(tmp_path / "results")


def panel_titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_visible()]


def test_every_method_has_a_style_of_its_own() -> None:
    assert list(figures.STYLES) == list(METHOD_TITLES)
    for values in zip(*(style[:2] for style in figures.STYLES.values()), strict=True):
        assert len(set(values)) == len(METHOD_TITLES)


def test_all_figures_are_written_as_pictures(results: Results, tmp_path: Path) -> None:
    tasks = [(task, UNIT) for task in results.tasks[:2]]
    names = figures.draw(results, tasks, tmp_path / "figures")
    assert names == [
        "scores",
        "learning-curves",
        "learning-curves-interactive",
        "performance-profiles",
        "training-cost",
        "inference-latency",
    ]
    for name in names:
        picture = plt.imread(tmp_path / "figures" / f"{name}.png")
        assert picture.shape[1] > 1000
        assert np.ptp(picture) > 0
    assert plt.get_fignums() == []


def test_what_has_no_data_is_not_drawn_and_an_old_picture_goes(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.record("bc", 1, 50.0, curve=[]))
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "learning-curves.png").write_bytes(b"old")
    names = figures.draw(read_results(tmp_path), [], folder)
    assert names == ["scores", "training-cost", "inference-latency"]
    assert not (folder / "learning-curves.png").exists()


def test_bars_show_means_seeds_and_the_papers_score(results: Results) -> None:
    figure = figures.scores(results)
    assert panel_titles(figure) == ["Maze", "HandRotate", "Hopper-v4"]
    maze, rotate, hopper = figure.axes
    assert [bar.get_width() for bar in maze.patches] == pytest.approx([92.0, 96.5, 50.0])
    assert [label.get_text() for label in maze.get_yticklabels()] == [
        METHOD_TITLES[method] for method in ("bc", "diffusion_bc", "gail")
    ]
    drawn = {float(x) for line in maze.lines for x in np.atleast_1d(line.get_xdata())}
    assert {90.0, 94.0, 96.0, 97.0, 20.0, 80.0} <= drawn
    assert {92.1, 95.4} <= drawn  # the paper's
    assert [text.get_text() for text in rotate.texts] == ["no result"]
    assert [text.get_text() for text in hopper.texts] == ["no result"] * 2
    assert maze.get_xlim()[1] >= 100
    assert hopper.get_xlim()[1] > 3000


def test_learning_curves_show_means_over_updates_or_environment_steps(
    results: Results,
) -> None:
    offline = figures.learning_curves(results, interactive=False)
    interactive = figures.learning_curves(results, interactive=True)
    assert offline is not None
    assert interactive is not None
    assert panel_titles(offline) == ["Maze", "HandRotate", "Hopper-v4"]
    assert panel_titles(interactive) == ["Maze"]
    bc, diffusion_bc = offline.axes[0].lines
    np.testing.assert_array_equal(bc.get_xdata(), [4000, 8000, 12000, 16000, 20000])
    assert bc.get_ydata()[-1] == pytest.approx(92.5)  # of 20 episodes each: 90 and 95 %
    assert colors.to_hex(diffusion_bc.get_color()).upper() == figures.STYLES["diffusion_bc"].colour
    (gail,) = interactive.axes[0].lines
    np.testing.assert_array_equal(gail.get_xdata(), [40_000, 80_000, 120_000, 160_000, 200_000])


@pytest.mark.parametrize(("factor", "scale"), [(1, "linear"), (4, "linear"), (10, "log")])
def test_updates_of_very_different_number_share_a_logarithmic_axis(
    tmp_path: Path, factor: int, scale: str
) -> None:
    long = synthetic.record("diffusion_bc", 1, 90.0)
    for checkpoint in long["curve"]:
        checkpoint["updates"] *= factor
    synthetic.write(tmp_path, synthetic.record("bc", 1, 80.0), long)
    figure = figures.learning_curves(read_results(tmp_path), interactive=False)
    assert figure is not None
    assert figure.axes[0].get_xscale() == scale


def test_costs_are_on_a_logarithmic_axis_with_labels(results: Results) -> None:
    for figure in (figures.training_cost(results), figures.inference_latency(results)):
        for axes in figure.axes:
            low, high = axes.get_xlim()
            assert axes.get_xscale() == "log"
            assert sum(low <= tick <= high for tick in axes.get_xticks()) >= 2


def test_a_cost_of_zero_can_be_drawn(tmp_path: Path) -> None:
    synthetic.write(tmp_path, synthetic.record("bc", 1, 80.0, cpu_seconds={"training": 0.0}))
    (axes,) = figures.training_cost(read_results(tmp_path)).axes
    assert axes.get_xlim()[0] > 0


def test_profiles_end_at_the_highest_score(results: Results) -> None:
    figure = figures.performance_profiles([(task, UNIT) for task in results.tasks[:2]])
    assert figure is not None
    (axes,) = figure.axes
    assert len(axes.lines) == 2  # GAIL has no result on HandRotate
    for line in axes.lines:
        shares = line.get_ydata()
        assert np.all(np.diff(shares) <= 0)
        assert (shares[0], shares[-1]) == (1.0, 0.0)


def test_profiles_of_single_seeds_are_not_drawn(tmp_path: Path) -> None:
    scores = {"maze": {"bc": [90.0]}, "hand_rotate": {"bc": [50.0]}}
    synthetic.write(tmp_path, *synthetic.comparison(scores))
    tasks = [(task, UNIT) for task in read_results(tmp_path).tasks]
    assert figures.performance_profiles(tasks) is None


def test_a_score_axis_has_room_for_negative_returns(tmp_path: Path) -> None:
    synthetic.write(tmp_path, *synthetic.runs("gail", [-300.0, -200.0], "Hopper-v4"))
    results = read_results(tmp_path)
    low, high = figures.scores(results).axes[0].get_xlim()
    assert low < -300
    assert high >= 0
