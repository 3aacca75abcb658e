"""What a suite consists of, and the cells that it asks for."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cell import Cell, Evaluation
from benchmarks.methods.base import Variant
from benchmarks.problems import Problem, find_problem
from sb3_diffbc.demonstrations import DemonstrationWarning


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is run on what, how often, and how it is scored.

    Attributes:
        name: of the suite, its records and its table.
        variants: what can be run.
        evaluation: how all of it is scored.
        default_tasks: keys of the problems that run without being asked for, given the folder of
            the authors' data.
        default_variants: names of those that run without being asked for; all if None.
        first_seed: the first training seed; the others count up from it.
        n_seeds: number of seeds.
        n_interactive_seeds: the same for methods that learn in the environment.
        problem: makes a problem of its key and the folder of the authors' data; a study of other
            demonstrations or environments has its own.
    """

    name: str
    variants: Sequence[Variant]
    evaluation: Evaluation
    default_tasks: Callable[[Path | None], Sequence[str]]
    default_variants: Sequence[str] | None = None
    first_seed: int = 0
    n_seeds: int = 1
    n_interactive_seeds: int = 1
    problem: Callable[[str, Path | None], Problem] = find_problem

    def cells(
        self,
        origin: Mapping[str, Any],
        *,
        tasks: Sequence[str] = (),
        variants: Sequence[str] = (),
        n_seeds: int | None = None,
        paper_data: Path | None = None,
    ) -> tuple[list[Cell], list[str]]:
        """Checks what is asked for, the suite's defaults where nothing is, and returns its cells.

        Returns:
            The cells, and one sentence for each variant that does not suit a problem.

        Raises:
            ValueError: for an unknown name, or demonstrations that cannot be read.
        """
        by_name = {variant.name: variant for variant in self.variants}
        unknown = [name for name in variants if name not in by_name]
        if unknown:
            raise ValueError(
                f"variants: found {', '.join(map(repr, unknown))}, expected some of "
                f"{', '.join(map(repr, by_name))}."
            )
        names = variants or self.default_variants or list(by_name)
        problems = [
            self.problem(key, paper_data)
            for key in dict.fromkeys(tasks or self.default_tasks(paper_data))
        ]
        cells: list[Cell] = []
        notes: list[str] = []
        for problem in problems:
            transitions = problem.demonstrations()
            demonstrations = problem.describe(transitions)
            for name in dict.fromkeys(names):
                variant = by_name[name]
                cell = Cell(
                    suite=self.name,
                    problem=problem,
                    variant=variant,
                    seed=self.first_seed,
                    evaluation=self.evaluation,
                    transitions=transitions,
                    demonstrations=demonstrations,
                    config={},
                    origin=origin,
                )
                try:
                    config = _config(cell)
                except (TypeError, ValueError) as error:
                    notes.append(f"{name} on {problem.key}: {error}")
                    continue
                is_interactive = variant.method.is_interactive
                count = n_seeds or (self.n_interactive_seeds if is_interactive else self.n_seeds)
                cells += [
                    dataclasses.replace(cell, seed=seed, config=config)
                    for seed in range(self.first_seed, self.first_seed + count)
                ]
        # Seed after seed, so that a run that is stopped has something of everything.
        return sorted(cells, key=lambda cell: cell.seed), notes


def _config(cell: Cell) -> Any:
    """Returns the settings of a cell's method and evaluation as JSON, classes by their names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DemonstrationWarning)
        method = cell.variant.make(cell.setup())
    evaluation: dict[str, Any] = cell.evaluation.config(cell.problem.metric)
    if cell.problem.further_envs:
        envs = {name: [env.id, env.kwargs] for name, env in cell.problem.further_envs.items()}
        evaluation["further_envs"] = envs
    config = {**method.config, "evaluation": evaluation}
    return json.loads(json.dumps(config, default=lambda value: value.__name__))
