"""The command: result files in, report and figures out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import synthetic_records as synthetic

pytest.importorskip("rliable")

from benchmarks.report import __main__ as module
from benchmarks.report import figures, statistics, write_report
from benchmarks.report.__main__ import main
from benchmarks.report.comparisons import Scaled
from benchmarks.report.readme import MARKS, readme_part, with_comparison
from benchmarks.report.results import Results, read_results

SCORES = {
    "maze": {"bc_paired": [90.0, 92.0, 91.0], "diffusion_bc": [95.0, 97.0, 94.0]},
    "hand_rotate": {"bc_paired": [50.0, 58.0], "diffusion_bc": [60.0, 55.0], "gail": [9.0]},
}


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_SAMPLES", 50)


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds, and what is drawn has tests of its own."""

    def draw(results: Results, tasks: Sequence[Scaled], folder: Path) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        return ["scores"]

    monkeypatch.setattr(figures, "draw", draw)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    synthetic.write(folder, *synthetic.comparison(SCORES))
    return folder


def test_the_report_lies_beside_the_results(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--results", str(results)])
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "mine.md", "mine-figures"}
    assert capsys.readouterr().out == f"{tmp_path / 'mine.md'}\n"
    text = (tmp_path / "mine.md").read_text()
    for picture in (tmp_path / "mine-figures").iterdir():
        assert f"](mine-figures/{picture.name})" in text


@pytest.mark.usefixtures("_no_pictures")
def test_the_report_can_go_elsewhere(results: Path, tmp_path: Path) -> None:
    main(["--results", str(results), "--output", str(tmp_path / "new" / "folder")])
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {"mine.md", "mine-figures"}
    assert not (tmp_path / "mine.md").exists()


@pytest.mark.usefixtures("_no_pictures")
def test_the_same_results_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    first = write_report(results, tmp_path / "a").read_bytes()
    assert write_report(results, tmp_path / "b").read_bytes() == first


@pytest.mark.usefixtures("_no_pictures")
def test_the_readme_is_filled_in_only_on_request(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("# T\n" + "\n".join(MARKS) + "\nend\n")
    main(["--results", str(results)])
    assert readme.read_text() == "# T\n" + "\n".join(MARKS) + "\nend\n"
    main(["--results", str(results), "--readme", str(readme)])
    text = readme.read_text()
    assert text.startswith(f"# T\n{MARKS[0]}\n| method | Maze, % | HandRotate, % | seeds |\n")
    assert text.endswith(f"\n{MARKS[1]}\nend\n")
    assert "](mine-figures/scores.png)" in text


@pytest.mark.parametrize("content", ["no marks", None])
def test_a_readme_that_cannot_be_filled_in_stops_before_anything_is_written(
    results: Path, tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    if content is not None:
        readme.write_text(content)
    with pytest.raises(SystemExit) as stop:
        main(["--results", str(results), "--readme", str(readme)])
    assert stop.value.code == 1
    assert "README" in capsys.readouterr().err
    assert not (tmp_path / "mine.md").exists()


def test_no_results_end_with_a_message_and_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(SystemExit) as stop:
            main(["--results", str(folder)])
        assert stop.value.code == 1
        error = capsys.readouterr().err
        assert f"{folder}: found no results, expected TASK/METHOD/SEED.json." in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_pictures")
def test_damaged_files_are_named_and_do_not_stop_the_report(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / "maze" / "diffusion_bc" / "101.json").write_text("{}")
    main(["--results", str(results)])
    captured = capsys.readouterr()
    assert "left out: maze/diffusion_bc/101.json: format: not there, expected 1" in captured.err
    assert "101.json" in results.with_name("mine.md").read_text()


def test_only_damaged_files_are_no_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(SystemExit, match="1"):
        main(["--results", str(tmp_path)])
    assert "left out: x.json" in capsys.readouterr().err


def test_the_committed_readme_shows_what_the_results_say() -> None:
    readme = Path(module.__file__).parents[2] / "README.md"
    text = readme.read_text(encoding="utf-8")
    results = read_results(module.RESULTS)
    if MARKS[0] not in text or not results.tasks:
        pytest.skip("the README has no comparison yet")
    assert results.problems == ()
    page = module.RESULTS.with_suffix(".md")
    picture = page.with_name("comparison-figures") / "scores.png"
    assert picture.is_file()
    assert with_comparison(text, readme_part(results, page, picture, readme.parent)) == text


@pytest.mark.slow
def test_the_committed_report_says_what_the_results_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = module.RESULTS.with_suffix(".md")
    if not page.is_file():
        pytest.skip("there is no report yet")
    monkeypatch.undo()
    assert write_report(module.RESULTS, tmp_path).read_bytes() == page.read_bytes()
