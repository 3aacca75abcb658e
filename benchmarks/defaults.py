"""How DiffusionBC's defaults were chosen: every variant on every task, one result file a cell.

    python -m benchmarks.defaults --paper-data FOLDER   # run what is missing of the deciding pair
    python -m benchmarks.defaults --list                # names for --variants
    python -m benchmarks.defaults --summary             # only summarise the committed results

Episodes start from seeds of their own (``TUNING_SEED`` and up), which no reported comparison
uses. A run that is stopped goes on where it was: finished cells are skipped.
"""

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import joblib
import numpy as np
import torch as th
from scipy import stats
from stable_baselines3.common.utils import set_random_seed

from benchmarks.json_files import write_json
from benchmarks.provenance import command_line, package_versions
from benchmarks.tables import table
from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy, load_demonstrations

TUNING_SEED = 1_000_000
RESULTS = Path(__file__).parent / "results" / "defaults"
SUMMARY = RESULTS.parent / "defaults.md"
PACKAGES = ("torch", "stable-baselines3", "imitation", "gymnasium", "mujoco")
"""What scores depend on."""


@dataclass(frozen=True)
class Task:
    """Where a variant is tried: demonstrations (bundled name or the authors' file) and episodes."""

    env: str
    demonstrations: str
    n_episodes: int


@dataclass(frozen=True)
class Variant:
    """Arguments that differ from DiffusionBC's defaults, and the length of training."""

    arguments: dict[str, Any]
    n_batches: int
    net_arch: tuple[int, ...]


TASKS = {
    "maze-bundled": Task("sb3_diffbc/Maze-v0", "maze", 200),
    "maze-paper": Task("sb3_diffbc/Maze-v0", "maze.pt", 200),
    "walker": Task("Walker2d-v4", "walker.pt", 100),
    "cheetah": Task("HalfCheetah-v4", "halfcheetah.pt", 100),
}

NETWORKS = {
    "3 x 128": (128, 128, 128),
    "3 x 256": (256, 256, 256),
    "4 x 128": (128, 128, 128, 128),
    "2 x 256": (256, 256),
    "2 x 512": (512, 512),
}
BUDGETS = {"20k": 20_000, "40k": 40_000, "80k": 80_000}
CRITICS: dict[str, dict[str, Any]] = {
    "BC": {"dm_coef": 0.0},
    **{
        f"{name} {width} x {depth} dm_coef={dm_coef:g}": {
            "dm_coef": dm_coef,
            "critic_models": models,
            "critic_kwargs": {"width": width, "depth": depth, "n_steps": n_steps},
        }
        for name, models in {"p(a|s)": "action", "p(s,a)": "state_action"}.items()
        for width, depth, n_steps in ((64, 2, 3000), (96, 2, 6000), (128, 3, 3000))
        for dm_coef in (0.3, 1.0, 3.0, 10.0, 30.0)
    },
}
STEPS: dict[str, dict[str, Any]] = {
    f"{batch}{rate}": {"batch_size": batch_size, "optimizer_kwargs": {"lr": lr}}
    for batch, batch_size in {"": 32, ", batch 128": 128}.items()
    for rate, lr in {"": 1e-3, ", lr 3e-4": 3e-4}.items()
}
VARIANTS = {
    f"{network}, {loss}, {critic}, {budget}{step}": Variant(
        {"bc_loss": loss, **arguments, **step_arguments}, n_batches, net_arch
    )
    for network, net_arch in NETWORKS.items()
    for loss in ("nll", "mse")
    for critic, arguments in CRITICS.items()
    for budget, n_batches in BUDGETS.items()
    for step, step_arguments in STEPS.items()
}


# The pair behind the defaults: the same network, budget and batches, with and without L_DM.
DECIDING = [
    "3 x 128, nll, BC, 20k, batch 128, lr 3e-4",
    "3 x 128, nll, p(a|s) 96 x 2 dm_coef=1, 20k, batch 128, lr 3e-4",
]


def run_cell(task_name: str, variant_name: str, seed: int, paper_data: Path) -> None:
    """Trains and evaluates one variant and writes its result file, unless it exists."""
    path = RESULTS / task_name / f"{slug(variant_name)}-{seed}.json"
    if path.exists():
        return
    th.set_num_threads(1)
    task, variant = TASKS[task_name], VARIANTS[variant_name]
    source = task.demonstrations
    demonstrations = load_demonstrations(paper_data / source if source.endswith(".pt") else source)
    set_random_seed(seed)
    env = gym.make(task.env)
    policy = StandardizedActorPolicy.from_demonstrations(
        demonstrations,
        env.observation_space,
        env.action_space,
        net_arch={"pi": list(variant.net_arch), "vf": []},
    )
    trainer = DiffusionBC(
        demonstrations=demonstrations,
        env=task.env,
        policy=policy,
        seed=seed,
        verbose=0,
        device="cpu",
        **variant.arguments,
    )
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
        "critic_validation_loss": _least_loss(trainer.critic),
        "arguments": variant.arguments,
        "n_batches": variant.n_batches,
        "net_arch": list(variant.net_arch),
        "versions": package_versions(*PACKAGES),
        "command": command_line("benchmarks.defaults", sys.argv[1:], [paper_data]),
    }
    write_json(path, record, indent=1)


def _least_loss(critic: DiffusionCritic | None) -> float | None:
    history = None if critic is None else critic.history
    return None if history is None else min(history.validation_loss)


def slug(variant_name: str) -> str:
    """The variant's name in those of its result files."""
    return re.sub(r"[^\w.=]+", "_", variant_name.replace(" x ", "x")).strip("_")


def summarise() -> str:
    """Mean scores over training seeds, with Student's 95 % interval, as a Markdown table."""
    cells: dict[tuple[str, str], list[float]] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        record = json.loads(path.read_text())
        cells.setdefault((record["variant"], record["task"]), []).append(record["score"])
    tasks = [task for task in TASKS if any(task == key[1] for key in cells)]
    tried = {variant for variant, _ in cells}
    rows = (
        [variant, *(_entry(cells.get((variant, task), []), task) for task in tasks)]
        for variant in VARIANTS
        if variant in tried
    )
    return table(["variant", *tasks], rows) + "\n"


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
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DECIDING, metavar="NAME")
    parser.add_argument("--list", action="store_true", help="list the variants' names")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--summary", action="store_true", help="only summarise what is there")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(VARIANTS))
        return
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
