"""Result files of a comparison that nobody ran, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.records import Record, record_path, write_record
from sb3_diffbc.tasks import TASKS

N_EPISODES = 100
INTERACTIVE = ("gail", "airl")


def episodes(metric: str, score: float, n: int = N_EPISODES) -> list[float]:
    """Scores of episodes whose mean is `score`: percent of successes, or return."""
    if metric == "return":
        return [score - 10.0, score + 10.0] * (n // 2)
    successes = round(score * n / 100)
    return [1.0] * successes + [0.0] * (n - successes)


def record(
    method: str,
    seed: int,
    score: float,
    task: str = "maze",
    *,
    paper_data: bool = False,
    **changes: Any,
) -> Record:
    """A complete record with this score; of a task that is not the library's, a return.

    Args:
        method: Key of the method.
        seed: Training seed.
        score: In percent for success rates.
        task: Name of one of the library's tasks, or any other.
        paper_data: Whether it is about the authors' demonstrations.
        **changes: Fields with other values.
    """
    known = TASKS.get(task)
    metric = known.metric if known else "return"
    length = 200_000 if method in INTERACTIVE else 20_000
    curve = [
        {
            "updates": length // 10 if method in INTERACTIVE else length * part // 5,
            "env_steps": length * part // 5 if method in INTERACTIVE else 0,
            "scores": episodes(metric, score * (4 + part) / 9, 20),
        }
        for part in range(1, 6)
    ]
    times = {"prepare": 0.5, "training": 20.0 + seed % 10, "curve": 9.0, "evaluation": 12.0}
    if method.startswith("diffusion_bc"):
        times["critic"] = 5.0
    source = task if known else "own.npz"
    if paper_data and known:
        source = known.paper_file
    return {
        "format": 1,
        "task": f"{task}-paper" if paper_data else task,
        "title": f"{known.title if known else task}{' (authors)' if paper_data else ''}",
        "env": known.env_id if known else task,
        "noise_ratio": 1.0,
        "metric": metric,
        "demonstrations": {
            "source": source,
            "sha256": "0123456789abcdef",
            "transitions": 5000,
            "episodes": 5,
        },
        "method": method,
        "seed": seed,
        "config": {"batch_size": 32, "seed": seed},
        "scores": episodes(metric, score),
        "first_episode_seed": 0,
        "curve": curve,
        "first_curve_episode_seed": 500_000,
        "last_checkpoints": 2,
        "seconds": {name: 2 * value for name, value in times.items()},
        "cpu_seconds": times,
        "env_steps": length if method in INTERACTIVE else 0,
        "updates": curve[-1]["updates"],
        "n_parameters": 12_345,
        "peak_memory_mb": 512.25,
        "inference_ms": 0.125,
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git_revision": "abc1234",
        "git_dirty": False,
        "machine": {"processor": "A processor", "cores": 2, "threads_per_cell": 1},
        "command": "python -m benchmarks.compare",
    } | changes


def write(folder: Path, *records: Record) -> None:
    """Writes records to their places."""
    for one in records:
        write_record(record_path(folder, one["task"], one["method"], one["seed"]), one)


def runs(method: str, scores: Iterable[float], task: str = "maze", **further: Any) -> list[Record]:
    """Records of training seeds 100, 101, ... with these scores."""
    return [record(method, 100 + n, score, task, **further) for n, score in enumerate(scores)]


def comparison(scores: Mapping[str, Mapping[str, Iterable[float]]], **further: Any) -> list[Record]:
    """Records of several tasks and methods, by their scores."""
    return [
        one
        for task, methods in scores.items()
        for method, values in methods.items()
        for one in runs(method, values, task, **further)
    ]
