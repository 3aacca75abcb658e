"""Records of a suite that nobody ran, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import Record, write_table
from sb3_diffbc.tasks import TASKS

INTERACTIVE = ("gail", "airl")


def episodes(metric: str, score: float, n: int = 100) -> list[float]:
    """Scores of episodes whose mean is ``score``: percent of successes, or a return."""
    if metric == "return":
        return [score - 10.0, score + 10.0] * (n // 2)
    successes = round(score * n / 100)
    return [1.0] * successes + [0.0] * (n - successes)


def record(variant: str, seed: int, score: float, task: str = "maze", **changes: Any) -> Record:
    """A record with this score.

    Args:
        variant: the method.
        seed: training seed.
        score: in percent for success rates.
        task: a key of the comparison, as ``"maze-paper"``, perhaps with a condition, as
            ``"maze+zeros25"``; any other is a user's own, of returns.
        **changes: fields with other values.
    """
    known = TASKS.get(task.partition("+")[0].removesuffix("-paper"))
    metric = known.metric if known else "return"
    source = (known.paper_file if task.endswith("-paper") else known.name) if known else "own.npz"
    share = score / 100 if metric == "success" else score
    fields = {
        "suite": "synthetic",
        "task": task,
        "variant": variant,
        "seed": seed,
        "title": f"Title of {task}",
        "env": known.env_id if known else "Own-v0",
        "noise_ratio": 1.0,
        "metric": metric,
        "demonstrations": {"source": source, "sha256": "ab" * 32, "transitions": 9, "episodes": 3},
        "config": {"batch_size": 32},
        "scores": episodes(metric, score),
        "first_episode_seed": 0,
        "curve": [
            {"updates": n, "env_steps": 0, "score": share * n / 2000, "episodes": 20}
            for n in (1000, 2000)
        ],
        "measures": {
            "cpu_seconds/training": 20.0 + seed % 10,
            "updates": 2000.0,
            "env_steps": 98_304.0 if variant in INTERACTIVE else 0.0,
            "inference_ms": 0.125,
        }
        | ({"cpu_seconds/critic": 5.0} if variant.startswith("diffusion_bc") else {}),
        "command": "python -m benchmarks run synthetic",
        "git_revision": "0123456789abcdef",
        "git_dirty": False,
        "versions": {"torch": "2.13.0"},
        "machine": {"processor": "A processor"},
    }
    return Record.model_validate(fields | changes)


def comparison(scores: Mapping[str, Mapping[str, Iterable[float]]], **changes: Any) -> list[Record]:
    """Records of tasks and methods by the scores of the training seeds 100, 101, ..."""
    return [
        record(variant, 100 + place, score, task, **changes)
        for task, methods in scores.items()
        for variant, values in methods.items()
        for place, score in enumerate(values)
    ]


def table(folder: Path, *records: Record, name: str = "synthetic") -> Path:
    """Writes records as a suite's table."""
    path = folder / f"{name}.parquet"
    write_table(records, path)
    return path
