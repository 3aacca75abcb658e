"""How fast updates, the critic's fit and actions are, and how they grow, in one run.

    python -m benchmarks.speed --paper-data FOLDER
    python -m benchmarks.speed --parts steps growth     # the others stay as they were
    python -m benchmarks.speed --quick                  # shows that everything runs, no figures

Contestants alternate, and what counts are ratios. Writes ``speed.json``, ``speed.md`` and
``speed.png``, and the critics' curves as ``speed-denoisers.png``. The curves of ``critic`` and
``denoisers``, which take minutes, are kept in ``speed/``, a file for each fit, until ``--again``.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch as th

from benchmarks.json_files import write_json
from benchmarks.provenance import command_line, package_versions, processor_name
from benchmarks.readme_parts import with_part
from benchmarks.speed import (
    critic,
    denoisers,
    floor,
    growth,
    inference,
    precision,
    report,
    steps,
)
from benchmarks.speed.settings import QUICK, Settings
from sb3_diffbc.demonstrations import DemonstrationWarning

RESULTS = Path(__file__).parents[1] / "results"
PARTS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "steps": steps.measure,
    "critic": critic.measure,
    "denoisers": denoisers.measure,
    "floor": floor.measure,
    "precision": precision.measure,
    "inference": inference.measure,
    "growth": growth.measure,
}


def run_parts(names: Sequence[str], settings: Settings, command: str) -> dict[str, Any]:
    """Measures parts and replaces them in the results; returns all parts there are."""
    path = settings.results / "speed.json"
    parts = json.loads(path.read_text())["parts"] if path.is_file() else {}
    for name in names:
        print(f"measuring: {name}", flush=True)
        began = time.perf_counter()
        found = PARTS[name](settings)
        parts[name] = found | {
            "run": {
                "command": command,
                "processor": processor_name(),
                "threads": settings.threads,
                "blocks": settings.blocks,
                "seconds": time.perf_counter() - began,
                "versions": package_versions("torch", "numpy", "imitation", "stable-baselines3"),
            }
        }
        # After each part, so that a run that is stopped loses little.
        write_json(path, {"parts": {n: parts[n] for n in PARTS if n in parts}}, indent=1)
        write_report(settings.results)
    return parts


def write_report(results: Path) -> None:
    """Table and picture from the results."""
    parts = json.loads((results / "speed.json").read_text())["parts"]
    (results / "speed.md").write_text(report.markdown(parts))
    report.draw(parts, results / "speed.png")
    if "denoisers" in parts:
        report.draw_denoisers(parts["denoisers"], results / "speed-denoisers.png")


def with_targets(readme: str, results: Path) -> str:
    """Puts the table of targets between the README's marks named "speed"; see ``with_part``."""
    parts = json.loads((results / "speed.json").read_text())["parts"]
    return with_part(readme, "speed", report.target_table(parts))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--paper-data", type=Path, help="folder with the authors' .pt files")
    parser.add_argument("--results", type=Path, help="folder to write to")
    parser.add_argument("--blocks", type=int, help="of each contestant")
    parser.add_argument("--threads", type=int, default=Settings.threads, help="of torch")
    parser.add_argument("--release-steps", type=int, help="limit of the release's curves")
    parser.add_argument("--again", action="store_true", help="run the kept curves again")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, into a temporary folder")
    parser.add_argument("--report", action="store_true", help="only write table and picture again")
    parser.add_argument("--readme", type=Path, help="README to write the table of targets into")
    given = parser.parse_args(arguments)
    # Toy figures must not take the place of real ones.
    default_results = Path(tempfile.mkdtemp()) if given.quick else RESULTS
    sizes = {
        name: value
        for name, value in {"blocks": given.blocks, "release_steps": given.release_steps}.items()
        if value is not None
    }
    settings = Settings(
        **(QUICK if given.quick else {}) | sizes,
        results=given.results or default_results,
        paper_data=given.paper_data,
        threads=given.threads,
        again=given.again,
    )
    if not given.report:
        th.set_num_threads(settings.threads)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DemonstrationWarning)
            # imitation logs a loss that way at the start of every training.
            warnings.filterwarnings("ignore", message="Converting a tensor with requires_grad")
            folders = (settings.paper_data, settings.results)
            command = command_line("benchmarks.speed", arguments, folders)
            run_parts(given.parts, settings, command)
    write_report(settings.results)
    if given.readme is not None:
        written = with_targets(given.readme.read_text(encoding="utf-8"), settings.results)
        given.readme.write_text(written, encoding="utf-8")
    print(f"{settings.results}/speed.md")
    print((settings.results / "speed.md").read_text())


if __name__ == "__main__":
    main()
