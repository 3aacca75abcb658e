"""Which cells there are, which of them are missing, and what they will cost."""

import dataclasses
import statistics
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from imitation.data import types

from benchmarks import records
from benchmarks.compare.cells import Cell, Origin, identity, make_learner
from benchmarks.compare.learners import as_json
from benchmarks.compare.methods import ComparedMethod
from benchmarks.compare.protocol import Protocol
from benchmarks.compare.tasks import ComparedTask, described
from sb3_diffbc.demonstrations import DemonstrationWarning

_START_SECONDS = 5.0
_STEP_MS = 0.15
_NOT_COMPARED = frozenset({"title"})
_NEUTRAL_SETTINGS = frozenset({"compile"})
"""Settings that change results by rounding at most."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        cells: all cells asked for.
        missing: those that have no valid result, the cheapest first.
        notes: what runs again although there is a result, or is left out, and why.
        seconds: estimated cost of each missing cell, in the order of ``missing``.
    """

    cells: tuple[Cell, ...]
    missing: tuple[Cell, ...]
    notes: tuple[str, ...]
    seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """A task with a method, for all seeds.

    Attributes:
        task: the task.
        method: the method.
        seeds: of training.
        demonstrations: the task's.
    """

    task: ComparedTask
    method: ComparedMethod
    seeds: Sequence[int]
    demonstrations: types.Transitions


def make_plan(
    rows: Iterable[Row],
    protocol: Protocol,
    results: Path,
    cache: Path,
    origin: Origin,
    leave_out_unsuitable: bool = False,
) -> Plan:
    """Checks every row and finds out what is missing.

    Args:
        rows: what is asked for.
        protocol: of all cells.
        results: folder of the result files.
        cache: folder for what seeds of a task share.
        origin: for the records.
        leave_out_unsuitable: whether to leave out what cannot be run, rather than to refuse.

    Returns:
        The plan.

    Raises:
        ValueError: if demonstrations do not suit a method.
        TypeError: if a method does not take a task's spaces.
    """
    cells: list[Cell] = []
    notes: list[str] = []
    missing: list[Cell] = []
    done: list[records.Record] = []
    for row in rows:
        sha256 = described(row.task, row.demonstrations)["sha256"]
        row_cells = [
            Cell(row.task, row.method, seed, protocol, sha256, cache, origin) for seed in row.seeds
        ]
        try:
            config = _config(row_cells[0], row.demonstrations)
        except (TypeError, ValueError) as error:
            if not leave_out_unsuitable:
                raise
            notes.append(f"left out: {error}")
            continue
        for cell in row_cells:
            record, fault = _existing(cell, config, results)
            if fault is not None:
                notes.append(f"runs again: {fault}")
            if record is None:
                missing.append(cell)
            else:
                done.append(record)
        cells += row_cells
    costs = {id(cell): estimated_seconds(cell, done) for cell in missing}
    missing.sort(key=lambda cell: costs[id(cell)])
    return Plan(
        tuple(cells), tuple(missing), tuple(notes), tuple(costs[id(cell)] for cell in missing)
    )


def _config(cell: Cell, demonstrations: types.Transitions) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DemonstrationWarning)
        try:
            return as_json(make_learner(cell, demonstrations).config)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{cell.method.key} on {cell.task.key}: {error}") from error


def _existing(
    cell: Cell, config: dict[str, object], results: Path
) -> tuple[records.Record | None, str | None]:
    """A cell's valid result, or what is wrong with the one that is there."""
    path = records.record_path(results, cell.task.key, cell.method.key, cell.seed)
    if not path.exists():
        return None, None
    try:
        record = records.read_record(path)
    except records.RecordError as error:
        return None, str(error)
    fault = difference(record, cell, config)
    return (record, None) if fault is None else (None, f"{path}: {fault}")


def difference(record: records.Record, cell: Cell, config: dict[str, object]) -> str | None:
    """How a result differs from what the cell would give now; None if it is as good as new.

    Args:
        record: a valid result of the cell.
        cell: the cell.
        config: the settings with which it would run.

    Returns:
        One sentence.
    """
    if record["demonstrations"]["sha256"] != cell.sha256:
        return "made with other demonstrations"
    for name, expected in identity(cell, config).items():
        changes = _changes(record[name], expected)
        if name not in _NOT_COMPARED and changes:
            return f"made with another {name}: {'; '.join(changes)}"
    protocol = cell.protocol
    n_curve = protocol.curve_episodes[cell.task.metric]
    lengths = [len(record["scores"]), *(len(entry["scores"]) for entry in record["curve"])]
    n_checkpoints = len(record["curve"])
    if lengths != [protocol.n_episodes] + [n_curve] * n_checkpoints or not n_checkpoints:
        return "made with other numbers of episodes"
    return None


def _changes(found: object, expected: object) -> list[str]:
    """What differs, entry by entry where both are objects."""
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return [] if found == expected else [f"{found} (now {expected})"]
    return [
        f"{name} {found.get(name)} (now {expected.get(name)})"
        for name in sorted((found.keys() | expected.keys()) - _NEUTRAL_SETTINGS)
        if found.get(name) != expected.get(name)
    ]


def estimated_seconds(cell: Cell, done: Iterable[records.Record]) -> float:
    """Guesses what a cell costs, from results of its row or else from its method's rough cost.

    Args:
        cell: which.
        done: results that are there.

    Returns:
        Wall-clock seconds on one core.
    """
    row = (cell.method.key, cell.task.key)
    same_row = [record for record in done if (record["method"], record["task"]) == row]
    if same_row:
        return statistics.fmean(sum(record["seconds"].values()) for record in same_row)
    protocol, task, method = cell.protocol, cell.task, cell.method
    share = (
        protocol.interactive_steps / Protocol.interactive_steps
        if method.is_interactive
        else protocol.updates / Protocol.updates
    )
    n_episodes = protocol.n_episodes + protocol.n_checkpoints * protocol.curve_episodes[task.metric]
    acting = n_episodes * task.horizon * (_STEP_MS + method.act_ms) / 1000
    return _START_SECONDS + method.training_seconds * share + acting
