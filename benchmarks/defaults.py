"""How DiffusionBC's defaults were chosen: every variant on every task, one result file a cell.

    python -m benchmarks.defaults --paper-data FOLDER   # run what is missing, then summarise
    python -m benchmarks.defaults --summary             # only summarise the committed results

Episodes start from seeds of their own (``TUNING_SEED`` and up), which no reported comparison
uses. A run that is stopped goes on where it was: finished cells are skipped.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch as th
from scipy import stats

from sb3_diffbc import DiffusionBC, load_demonstrations

TUNING_SEED = 1_000_000
RESULTS = Path(__file__).parent / "results" / "defaults"
SUMMARY = RESULTS.parent / "defaults.md"


@dataclass(frozen=True)
class Task:
    """Where a variant is tried: demonstrations (bundled name or the authors' file) and episodes."""

    env: str
    demonstrations: str
    n_episodes: int


@dataclass(frozen=True)
class Variant:
    """Arguments that differ from DiffusionBC's defaults, and the length of training."""

    arguments: dict[str, Any] = field(default_factory=dict)
    n_batches: int | None = None


TASKS = {
    "maze-bundled": Task("sb3_diffbc/Maze-v0", "maze", 200),
    "maze-paper": Task("sb3_diffbc/Maze-v0", "maze.pt", 200),
    "walker": Task("Walker2d-v4", "walker.pt", 20),
    "cheetah": Task("HalfCheetah-v4", "halfcheetah.pt", 10),
}

VARIANTS = {
    "default": Variant(),
    "dm_coef=0": Variant({"dm_coef": 0.0}),
    "dm_coef=0.1": Variant({"dm_coef": 0.1}),
    "dm_coef=1": Variant({"dm_coef": 1.0}),
    "dm_coef=3": Variant({"dm_coef": 3.0}),
    "dm_coef=10": Variant({"dm_coef": 10.0}),
    "dm_coef=30": Variant({"dm_coef": 30.0}),
    "action dm_coef=0.1": Variant({"dm_coef": 0.1, "critic_models": "action"}),
    "action dm_coef=1": Variant({"dm_coef": 1.0, "critic_models": "action"}),
    "action dm_coef=3": Variant({"dm_coef": 3.0, "critic_models": "action"}),
    "action dm_coef=10": Variant({"dm_coef": 10.0, "critic_models": "action"}),
    "mse dm_coef=0": Variant({"dm_coef": 0.0, "bc_loss": "mse"}),
    "mse dm_coef=0.2": Variant({"dm_coef": 0.2, "bc_loss": "mse"}),
    "mse dm_coef=3": Variant({"dm_coef": 3.0, "bc_loss": "mse"}),
    "batch clamp dm_coef=1": Variant({"dm_coef": 1.0, "dm_clamp": "batch"}),
    "no clamp dm_coef=1": Variant({"dm_coef": 1.0, "dm_clamp": "none"}),
    "batch 128, dm_coef=0": Variant({"dm_coef": 0.0, "batch_size": 128}),
    "batch 128, dm_coef=1": Variant({"dm_coef": 1.0, "batch_size": 128}),
    "half the updates, dm_coef=0": Variant({"dm_coef": 0.0}, 10_000),
    "twice the updates, dm_coef=0": Variant({"dm_coef": 0.0}, 40_000),
}


def run_cell(task_name: str, variant_name: str, seed: int, paper_data: Path) -> None:
    """Trains and evaluates one variant and writes its result file, unless it exists."""
    slug = variant_name.replace(" ", "_").replace(",", "").replace("=", "-")
    path = RESULTS / task_name / f"{slug}-{seed}.json"
    if path.exists():
        return
    th.set_num_threads(1)
    task, variant = TASKS[task_name], VARIANTS[variant_name]
    source = task.demonstrations
    demonstrations = load_demonstrations(paper_data / source if source.endswith(".pt") else source)
    trainer = DiffusionBC(
        demonstrations=demonstrations,
        env=task.env,
        seed=seed,
        verbose=0,
        device="cpu",
        **variant.arguments,
    )
    if variant.n_batches is not None:
        # The recipe of another length, its learning rate included.
        trainer.DEFAULT_N_BATCHES = variant.n_batches
    started = time.perf_counter()
    trainer.train(progress_bar=False, log_interval=10**9)
    seconds = time.perf_counter() - started
    result = trainer.evaluate(task.n_episodes, seed=TUNING_SEED)
    scores = result.returns if result.successes is None else result.successes.astype(float)
    record = {
        "task": task_name,
        "variant": variant_name,
        "seed": seed,
        "score": float(scores.mean()),
        "scores": scores.tolist(),
        "first_episode_seed": TUNING_SEED,
        "train_seconds": seconds,
        "critic_validation_loss": None
        if trainer.critic is None
        else min(trainer.critic.history.validation_loss),
        "arguments": variant.arguments,
        "n_batches": trainer.DEFAULT_N_BATCHES,
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("torch", "stable-baselines3", "imitation", "gymnasium", "mujoco")
            },
        },
        "command": " ".join(["python -m benchmarks.defaults", *sys.argv[1:]]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(unfinished, path)


def summarise() -> str:
    """Mean scores over training seeds, with Student's 95 % interval, as a Markdown table."""
    cells: dict[tuple[str, str], list[float]] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        record = json.loads(path.read_text())
        cells.setdefault((record["variant"], record["task"]), []).append(record["score"])
    tasks = [task for task in TASKS if any(task == key[1] for key in cells)]
    lines = [
        "| variant | " + " | ".join(tasks) + " |",
        "|---" * (len(tasks) + 1) + "|",
    ]
    for variant in VARIANTS:
        if any(variant == key[0] for key in cells):
            entries = [_entry(cells.get((variant, task), []), task) for task in tasks]
            lines.append(f"| {variant} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def _entry(scores: list[float], task: str) -> str:
    if not scores:
        return "–"
    scale, unit = (100, " %") if task.startswith("maze") else (1, "")
    text = f"{np.mean(scores) * scale:.1f}{unit}"
    if len(scores) > 1:
        half = stats.t.ppf(0.975, len(scores) - 1) * stats.sem(scores) * scale
        text += f" ± {half:.1f}"
    return f"{text} ({len(scores)})"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--paper-data", type=Path, help="folder with the authors' .pt files")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--summary", action="store_true", help="only summarise what is there")
    arguments = parser.parse_args()
    if not arguments.summary:
        needs_files = [t for t in arguments.tasks if TASKS[t].demonstrations.endswith(".pt")]
        if needs_files and arguments.paper_data is None:
            parser.error(f"--paper-data is needed for {', '.join(needs_files)}")
        joblib.Parallel(n_jobs=arguments.jobs, verbose=10)(
            joblib.delayed(run_cell)(task, variant, seed, arguments.paper_data)
            for seed in arguments.seeds
            for variant in arguments.variants
            for task in arguments.tasks
        )
    SUMMARY.write_text(
        "Mean score (95 % interval over training seeds) and number of seeds, on episodes kept for\n"
        "tuning: success rate for the mazes, return otherwise. Written by\n"
        "`python -m benchmarks.defaults --summary` from the files in `defaults/`.\n\n" + summarise()
    )
    print(SUMMARY.read_text())


if __name__ == "__main__":
    main()
