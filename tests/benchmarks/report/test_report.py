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
from benchmarks.report.studies import STUDIES, study_page
from benchmarks.report.summaries import summarise
from benchmarks.report.writing import MAIN_TABLES, PAGES, Report, fill

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


def test_another_page_names_the_part_and_the_variants_it_shows(tmp_path: Path) -> None:
    scores = {"mse, BC": [10.0, 30.0], "mse, p(a|s) 3": [50.0], "l1, BC": [70.0]}
    frame = read_frame(table(tmp_path, *comparison({"maze+zeros25": scores})))
    page = "<!-- labels zeros25: mse, p(a|s) 3; mse, BC -->\n<!-- /labels -->\n"
    text = fill(page, "labels", frame)
    assert fill(text, "labels", frame) == text
    assert fill(text, "few", frame) == text
    first, second = rows("## Title\n" + text, "Title")
    assert [first[0], second[0]] == [r"mse, p(a\|s) 3", "mse, BC"]
    assert first[1].startswith("50.0 [")
    assert second[1].startswith("20.0 [")


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
def test_our_pages_show_the_committed_records(suite: str) -> None:
    frame = read_frame(RESULTS / f"{suite}.parquet")
    for path in PAGES:
        assert fill(text := path.read_text(), suite, frame) == text, path.name
    if suite in STUDIES:
        page = study_page(frame, suite, f"{suite}-figures")
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


def test_the_page_of_the_defaults_has_variants_by_tasks(tmp_path: Path) -> None:
    scores = {"maze": {"3 x 128, p(a|s)": [90.0, 92.0]}, "walker": {"BC": [500.0]}}
    path = table(tmp_path, *comparison(scores), name="defaults")
    page = write_report(path).read_text()
    assert rows(page, "Scores") == [
        [r"3 x 128, p(a\|s)", "91.0 [78.3, 100.0] (2)", "–"],
        ["BC", "–", "500 (1)"],
    ]


def test_the_page_of_the_diagnosis_has_a_table_for_each_measure(tmp_path: Path) -> None:
    measures = dict.fromkeys(
        (
            "cloning_error/train",
            "cloning_error/held_out",
            "l_diff/held_out/agent",
            "l_diff/held_out/expert",
            "active/train",
            "active_in_mean/train",
            "gradient/norm_ratio",
            "gradient/cosine",
        ),
        0.25,
    ) | {"score/averaged_weights": 0.5, "episodes": 100.0}
    cloning = {name: measures[name] for name in measures if name.startswith(("cloning", "score"))}
    runs = [
        record("nll, BC", 0, 50.0, measures=cloning, scores=[0.5]),
        record("nll, p(a|s), 1", 0, 50.0, measures=measures, scores=[0.5]),
    ]
    page = write_report(table(tmp_path, *runs, name="diagnosis")).read_text()
    scores = rows(page, "Scores")
    assert scores[:2] == [["nll, BC", "50.0 (1)"], [r"nll, p(a\|s), 1", "50.0 [40.4, 59.6] (1)"]]
    # Averaged weights and cloning errors are known of both, the rest of one.
    assert scores.count(["nll, BC", "0.25"]) == 2
    assert scores.count([r"nll, p(a\|s), 1", "0.25"]) == 8
    assert scores.count(["nll, BC", "50"]) == scores.count([r"nll, p(a\|s), 1", "50"]) == 1


def test_the_page_of_lengths_counts_settings_near_the_best(tmp_path: Path) -> None:
    policy = "3 x 64, lr 0.001"
    scores = {
        f"mse, BC, {policy}, 5k": [100.0, 96.0],
        f"mse, BC, {policy}, 20k": [50.0, 90.0],
        f"mse, BC, {policy}, 80k": [10.0, 10.0],  # which the other loss lacks
        f"l1, BC, {policy}, 5k": [70.0, 60.0],
        f"l1, BC, {policy}, 20k": [98.0],  # of one seed: it counts alone, for both
    }
    path = table(tmp_path, *comparison({"maze": scores}), name="forgiveness")
    page = write_report(path).read_text()
    assert "![Scores](forgiveness-figures/scores.png)" in page
    frame = read_frame(path)
    settings = STUDIES["forgiveness"].parts(frame)["settings"]
    found = {
        (variant, title.split(", ")[-2]): runs.sort_values("seed")["score"].tolist()
        for (variant, title), runs in settings.groupby(["variant", "title"], observed=True)
    }
    assert found == {
        ("mse, BC", "5,000 updates"): [98.0],
        ("l1, BC", "5,000 updates"): [65.0],
        ("mse, BC", "20,000 updates"): [50.0],
        ("l1, BC", "20,000 updates"): [98.0],
        ("mse, BC", "0.9 of the best score"): [100.0, 0.0],
        ("l1, BC", "0.9 of the best score"): [0.0, 100.0],
    }
    [of_l1, *_] = rows(page, "Settings")
    assert [cell.split(" ")[0] for cell in of_l1] == ["l1,", "65.0", "98.0", "50.0"]
    [of_mse] = rows(page, f"mse, BC on {frame['title'].iloc[0]}")
    assert [cell.split(" ")[0] for cell in of_mse[1:]] == ["98.0", "70.0", "10.0"]


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
