"""The examples and the documentation's code run, and its links lead somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sb3_diffbc import CriticHistory, DiffusionBC, DiffusionCritic

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")
_PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    # As in conftest.py: threads that wait for each other on busy cores can take minutes.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.slow
def test_quickstart_writes_its_picture_and_the_table_that_it_prints(tmp_path: Path) -> None:
    output = _run(
        "quickstart.py", "--updates", 16, "--critic-steps", 25, "--episodes", 4, "--out", tmp_path
    )
    table = (tmp_path / "quickstart.md").read_text()
    assert table in output
    assert [line.split(" | ")[:3] for line in table.splitlines()[2:]] == [
        ["| BC", "16", "4"],
        ["| DiffusionBC", "16", "4"],
    ]
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_dagger_accepts_diffusion_bc() -> None:
    output = _run("dagger.py", "--rounds", 2, "--steps", 300, "--epochs", 1, "--episodes", 4)
    assert output.count("after round") == 2


@pytest.mark.slow
def test_a_saved_critic_serves_the_next_run(tmp_path: Path) -> None:
    critic = tmp_path / "critic.safetensors"
    options = ["--critic", critic, "--critic-steps", 25, "--updates", 10, "--episodes", 4]
    first = _run("shared_critic.py", *options, "--dm-coefs", 0, 1)
    written = critic.stat().st_mtime_ns
    second = _run("shared_critic.py", *options, "--dm-coefs", 0, 1)
    assert critic.stat().st_mtime_ns == written
    assert [line for line in first.splitlines() if "dm_coef" in line] == [
        line for line in second.splitlines() if "dm_coef" in line
    ]


@pytest.mark.slow
def test_ppo_goes_on_from_a_clone_and_writes_its_picture_and_tables(tmp_path: Path) -> None:
    sizes = {"seeds": 2, "evaluations": 1, "rollouts": 1, "value-rollouts": 1, "updates": 20}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    output = _run("clone_then_ppo.py", *options, "--episodes", 2, "--out", tmp_path)
    assert (tmp_path / "clone_then_ppo.md").read_text() in output
    rows = [line.split(",") for line in (tmp_path / "clone_then_ppo.csv").read_text().splitlines()]
    assert [row[2] for row in rows[1:]] == ["0", "8192"] * 4
    assert (tmp_path / "clone_then_ppo.png").read_bytes().startswith(b"\x89PNG")


def test_the_readme_shows_the_table_that_the_quickstart_wrote() -> None:
    table = (ROOT / "examples" / "results" / "quickstart.md").read_text()
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if _PYTHON.search(page.read_text(encoding="utf-8"))],
    ids=lambda page: page.name,
)
def test_the_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, train, evaluate = DiffusionCritic.fit, DiffusionBC.train, DiffusionBC.evaluate

    def short_fit(self: DiffusionCritic, *args: Any, **kwargs: Any) -> CriticHistory:
        self.config["n_steps"] = 3
        return fit(self, *args, **kwargs)

    monkeypatch.setattr(DiffusionCritic, "fit", short_fit)
    monkeypatch.setattr(
        DiffusionBC, "train", lambda self, **_: train(self, n_batches=3, progress_bar=False)
    )
    monkeypatch.setattr(
        DiffusionBC, "evaluate", lambda self, env=None, **_: evaluate(self, n_episodes=2, env=env)
    )
    monkeypatch.chdir(tmp_path)
    if page.name == "onnx.md":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    namespace: dict[str, Any] = {}
    for code in _PYTHON.findall(page.read_text(encoding="utf-8")):
        exec(compile(code, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), target
            assert not anchor or anchor in _anchors(file), f"{target}#{anchor}"
