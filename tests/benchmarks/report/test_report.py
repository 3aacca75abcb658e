"""From a suite's records to its page, figures and the README's table."""

import math
import re
from pathlib import Path

import pytest
from PIL import Image
from synthetic_records import comparison, record, table

pytest.importorskip("rliable")
pytest.importorskip("tabulate")
pytest.importorskip("tyro")

from benchmarks.record import RESULTS
from benchmarks.report import figures, over_tasks
from benchmarks.report.frame import read_frame
from benchmarks.report.studies import STUDIES
from benchmarks.report.summaries import summarise
from benchmarks.report.writing import _PAGES, MAIN_TABLES, PAGES, Report, fill

SCORES = {
    "maze-paper": {
        "bc_paired": [88.0, 90.0, 92.0],
        "diffusion_bc": [89.0, 91.0, 92.0],
        "gail": [3.0, 5.0],
    },
    "walker": {"bc_paired": [3000.0, 3500.0, 3600.0], "diffusion_bc": [4000.0, 4400.0, 4600.0]},
    "own": {"diffusion_bc": [7.0]},
}
MARKED = "# Title\n\n<!-- comparison -->\nold\n<!-- /comparison -->\n\nMore.\n"


@pytest.fixture(autouse=True)
def _few_repetitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_tasks, "REPETITIONS", 20)


def write_report(table: Path, output: Path | None = None) -> Path:
    Report(str(table), output).run()
    return (output or table.parent) / f"{table.stem}.md"


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading, without its header."""
    section = page.split(f"## {heading}", 1)[1]
    lines = re.findall(r"^\|.*\|$", section.split("\n## ", 1)[0], re.MULTILINE)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_a_comparison_becomes_a_page_with_small_figures(tmp_path: Path) -> None:
    path = table(tmp_path, *comparison(SCORES))
    page = write_report(path)
    assert page == tmp_path / "synthetic.md"
    text = page.read_text()
    linked = re.findall(r"!\[.*\]\((.*)\)", text)
    assert {tmp_path / link for link in linked} == set(tmp_path.glob("synthetic-figures/*.png"))
    assert len(linked) == 2
    for link in linked:
        assert (tmp_path / link).stat().st_size < 150_000
        with Image.open(tmp_path / link) as picture:
            assert picture.width == 950
    assert not re.search(r"\bnan\b", text)
    frame = summarise(read_frame(path))
    details = rows(text, "Scores and costs")
    assert [row[:2] for row in details] == [
        list(row) for row in frame[["title", "method"]].astype(str).to_numpy()
    ]
    assert [float(row[3].split()[0]) for row in details] == pytest.approx(
        list(frame["value"]), abs=0.05
    )


def test_the_page_says_what_is_shown_and_what_is_not(tmp_path: Path) -> None:
    page = write_report(table(tmp_path, *comparison(SCORES))).read_text()
    (main, gail) = rows(page, "All differences")
    assert main[0] == "DiffusionBC with L_DM − BC (DiffusionBC's network)"
    assert main[1].startswith("0.7 [")
    assert main[2].startswith("**better**: 966.7 [")
    assert gail[1].startswith("**better**: 86.7 [")
    assert gail[2] == "–"
    ((task, target, reached, verdict),) = rows(page, "The paper's score of DBC")
    assert (task, target) == ("Title of maze-paper, success %", "95.4")
    assert reached.startswith("90.7 [")
    assert verdict == "is below"
    assert "python -m benchmarks run synthetic" in page


def test_another_page_gets_the_table_of_the_main_pair(tmp_path: Path) -> None:
    text = fill(MARKED, "comparison", read_frame(table(tmp_path, *comparison(SCORES))))
    assert text.startswith("# Title\n\n<!-- comparison -->\n|")
    assert text.endswith("|\n<!-- /comparison -->\n\nMore.\n")
    body = rows("## Title" + text, "Title")
    assert [row[0].split(",")[0] for row in body] == [
        "Title of maze-paper",
        "Title of walker",
        "Title of own",
    ]
    assert body[2][1:] == ["–", "7.0", "–"]


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!-- labels zeros25: mse, BC -->", "1 marks of tables and 0 times"),
        (
            "<!-- labels a: mse, BC --><!-- labels zeros25: mse, BC --><!-- /labels -->",
            "2 marks .* 1 times",
        ),
        ("<!-- labels zeros10: mse, BC --><!-- /labels -->", "found the part 'zeros10', .*zeros25"),
        ("<!-- labels zeros25: mse; mse, BC --><!-- /labels -->", "found no runs of mse"),
    ],
)
def test_a_page_that_asks_for_what_there_is_not_is_refused(
    tmp_path: Path, page: str, message: str
) -> None:
    frame = read_frame(table(tmp_path, *comparison({"maze+zeros25": {"mse, BC": [10.0]}})))
    with pytest.raises(ValueError, match=message):
        fill(page, "labels", frame)


@pytest.mark.parametrize("suite", sorted({"comparison", *MAIN_TABLES, *STUDIES}))
def test_our_pages_show_the_committed_records(suite: str, tmp_path: Path) -> None:
    frame = read_frame(RESULTS / f"{suite}.parquet")
    for path in PAGES:
        assert fill(text := path.read_text(), suite, frame) == text, path.name
    if suite in _PAGES:
        page = _PAGES[suite](frame, tmp_path / f"{suite}-figures")
        assert (RESULTS / f"{suite}.md").read_text() == page


def test_nothing_is_written_without_records(tmp_path: Path) -> None:
    path = table(tmp_path)
    with pytest.raises(ValueError, match="found no records"):
        write_report(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_one_run_alone_is_reported(tmp_path: Path) -> None:
    path = table(tmp_path, record("bc", 100, 50.0, curve=[]))
    stale = tmp_path / "synthetic-figures" / "learning-curves.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of results that are gone")
    page = write_report(path).read_text()
    assert re.findall(r"\]\((.*\.png)\)", page) == ["synthetic-figures/scores.png"]
    assert not stale.exists()
    assert rows(page, "Scores and costs")[0][3] == "50.0 [40.4, 59.6]"


def test_committed_results_have_a_score_for_every_method(tmp_path: Path) -> None:
    summary = summarise(read_frame(RESULTS / "comparison.parquet"))
    counts = summary.groupby("title", observed=True)["method"].nunique()
    assert (counts == 9).all()
    assert len(counts) == 6
    assert not math.isnan(summary["value"].sum())


def test_the_axis_of_scores_shows_the_difference_between_the_good_ones(tmp_path: Path) -> None:
    near = {"bc": [86.0, 88.0], "bc_paired": [95.0, 96.0], "diffusion_bc": [96.0, 98.0]}
    frame = read_frame(table(tmp_path, *comparison({"maze": near | {"gail": [3.0, 5.0]}})))
    figure = figures.scores(frame, summarise(frame))
    [axes] = figure.axes
    low, high = axes.get_xlim()
    assert 80 < low < 86
    assert 98 < high <= 103
    assert [text.get_text() for text in axes.texts] == ["◂ 4"]
    assert axes.get_xlabel() == "success %"
    figures.plt.close(figure)
