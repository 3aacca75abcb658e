"""Runs the cells of a suite in parallel and writes their records."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
import warnings
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import joblib

import benchmarks
import sb3_diffbc
from benchmarks.cell import Cell, run_cell
from benchmarks.record import Key, Record, read_record, record_path, write_record

LOCAL_RAY = "local"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a cell ended: with a record, which is written, or with an error.

    It has neither where another run is at the cell.
    """

    cell: Cell
    record: Record | None = None
    error: str | None = None


def attempt(cell: Cell, known: Outcome | None = None) -> Outcome:
    """Runs a cell, whatever becomes of it, unless its outcome is known."""
    if known is not None:
        return known
    try:
        return Outcome(cell, run_cell(cell))
    except Exception as error:
        return Outcome(cell, error="".join(traceback.format_exception(error)))


def run_grid(
    cells: Sequence[Cell], folder: Path, n_jobs: int = 2, ray_address: str | None = None
) -> Generator[Outcome, None, None]:
    """Runs cells and writes their records as they come; one that fails does not stop the others.

    Runs that share a folder share its cells: one that another run is at, or has finished by the
    time it is its turn, is not run again. A killed run holds nothing.

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
    with (
        contextlib.closing(_Claims(folder)) as claims,
        _backend(n_jobs, ray_address) as backend,
        warnings.catch_warnings(),
    ):
        # Whoever stops reading outcomes, by Ctrl-C for instance, stops the cells.
        warnings.filterwarnings("ignore", message=".*still being processed by the workers")
        parallel = joblib.Parallel(
            n_jobs=n_jobs,
            backend=backend,
            batch_size=1,
            pre_dispatch="n_jobs",
            return_as="generator_unordered",
        )
        tasks = (joblib.delayed(attempt)(cell, claims.claim(cell)) for cell in cells)
        with contextlib.closing(parallel(tasks)) as outcomes:
            for outcome in outcomes:
                yield claims.keep(outcome)


class _Claims:
    """The cells that a run is at: locks on files, which end with the process that holds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.locks: dict[Key, filelock.FileLock] = {}

    def claim(self, cell: Cell) -> Outcome | None:
        """Locks a cell that is to be run; returns the outcome of any other."""
        path = record_path(self.folder, *cell.key)
        # joblib asks for cells from threads of its own.
        lock = filelock.FileLock(path.with_suffix(".lock"), thread_local=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            return Outcome(cell)
        except (OSError, NotImplementedError) as error:
            return Outcome(cell, error=f"it cannot be locked: {error}")
        with contextlib.suppress(ValueError):
            record = read_record(path)
            if not cell.difference(record):
                lock.release()
                return Outcome(cell, record)
        self.locks[cell.key] = lock
        return None

    def keep(self, outcome: Outcome) -> Outcome:
        """Writes the record of a cell that was run, and unlocks the cell."""
        lock = self.locks.pop(outcome.cell.key, None)
        if lock is None:
            return outcome
        try:
            if outcome.record is not None:
                write_record(outcome.record, self.folder)
        except OSError as error:
            return Outcome(outcome.cell, error=f"its record cannot be written: {error}")
        finally:
            lock.release()
        return outcome

    def close(self) -> None:
        """Unlocks the cells that are not to be run any more."""
        for lock in self.locks.values():
            lock.release()


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
