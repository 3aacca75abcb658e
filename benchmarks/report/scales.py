"""Scores on a scale that tasks share, for what is said over all of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.report.results import TaskResults

EXPERTS = Path(__file__).parents[1] / "results" / "experts"


@dataclasses.dataclass(frozen=True)
class Scale:
    """A linear scale.

    Attributes:
        zero: The score that becomes 0.
        one: The score that becomes 1.
        meaning: What the two are.
    """

    zero: float
    one: float
    meaning: str

    def normalised(self, scores: Iterable[float]) -> list[float]:
        """Puts scores on the scale."""
        return [(score - self.zero) / (self.one - self.zero) for score in scores]


def scale_of(results: TaskResults, experts: Path = EXPERTS) -> Scale | None:
    """Gives the scale of a task's scores.

    A success rate is its own scale. For returns 0 is random actions' mean return, as measured
    beside the experts. 1 is the expert's where the demonstrations are the bundled ones. The
    authors' demonstrations do not tell their return, and 1 is the paper's BC there.

    Args:
        results: The task.
        experts: Folder with the scores of experts and random actions.

    Returns:
        The scale; None where too little is known for one.
    """
    if results.metric == "success":
        return Scale(0.0, 100.0, "the success rate")
    task = results.task
    path = experts / f"{task.name}.json" if task else None
    if task is None or path is None or not path.is_file():
        return None
    measured = json.loads(path.read_text(encoding="utf-8"))
    random = measured["random"]["mean"]
    if results.is_on_bundled_data:
        return Scale(random, measured["expert"][0]["mean"], "random actions 0, the expert 1")
    if results.is_on_paper_data:
        return Scale(random, task.paper["bc"].mean, "random actions 0, the paper's BC 1")
    return None
