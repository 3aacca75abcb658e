"""Runs the cells of a suite in parallel and writes their records."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import joblib

import benchmarks
import sb3_diffbc
from benchmarks.cell import Cell, run_cell
from benchmarks.record import Record, write_record

LOCAL_RAY = "local"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a cell ended: with a record, which is written, or with an error."""

    cell: Cell
    record: Record | None
    error: str | None = None


def attempt(cell: Cell) -> Outcome:
    """Runs a cell, whatever becomes of it."""
    try:
        return Outcome(cell, run_cell(cell))
    except Exception as error:
        return Outcome(cell, None, "".join(traceback.format_exception(error)))


def run_grid(
    cells: Sequence[Cell], folder: Path, n_jobs: int = 2, ray_address: str | None = None
) -> Generator[Outcome, None, None]:
    """Runs cells and writes their records as they come; one that fails does not stop the others.

    Args:
        cells: in the order in which to start them.
        folder: of the suite's records.
        n_jobs: how many at a time; with Ray, -1 for as many as it has processors.
        ray_address: of a Ray cluster, ``"local"`` to start one here; None for processes on this
            machine.

    Yields:
        One outcome for each cell.

    Raises:
        RuntimeError: if a process is killed, for lack of memory for instance. Finished cells are
            kept.
    """
    with _backend(n_jobs, ray_address) as backend, warnings.catch_warnings():
        # Whoever stops reading outcomes, by Ctrl-C for instance, stops the cells.
        warnings.filterwarnings("ignore", message=".*still being processed by the workers")
        parallel = joblib.Parallel(
            n_jobs=n_jobs,
            backend=backend,
            batch_size=1,
            pre_dispatch="n_jobs",
            return_as="generator_unordered",
        )
        with contextlib.closing(parallel(map(joblib.delayed(attempt), cells))) as outcomes:
            for outcome in outcomes:
                yield _kept(outcome, folder)


def _kept(outcome: Outcome, folder: Path) -> Outcome:
    if outcome.record is None:
        return outcome
    try:
        write_record(outcome.record, folder)
    except OSError as error:
        return Outcome(outcome.cell, None, f"its record cannot be written: {error}")
    return outcome


@contextlib.contextmanager
def _backend(n_jobs: int, ray_address: str | None) -> Iterator[Any]:
    """Gives joblib's backend: processes here, or those of a Ray cluster (the extra ``ray``).

    The nodes need the same packages as this machine, but not this repository: the project's own
    packages travel with the cells.
    """
    if ray_address is None:
        yield "loky"
        return
    import ray
    from ray.util.joblib.ray_backend import RayBackend

    class ReturningBackend(RayBackend):
        # joblib does not let the class that it is derived from do so; Ray's pool can.
        supports_return_generator = True

    try:
        ray.init(
            address=ray_address,
            runtime_env={"py_modules": [p.__path__[0] for p in (benchmarks, sb3_diffbc)]},
            log_to_driver=False,
            num_cpus=n_jobs if ray_address == LOCAL_RAY and n_jobs > 0 else None,
        )
        # Without a processor of its own, all of the pool could end up on one node.
        yield ReturningBackend(ray_remote_args={"num_cpus": 1})
    finally:
        ray.shutdown()
