"""Runs cells in fresh processes, side by side on this machine or on a Ray cluster."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import joblib

from benchmarks import records
from benchmarks.compare.cells import Cell, run_cell

_POLL_SECONDS = 0.1


class ClusterError(RuntimeError):
    """The Ray cluster cannot be reached or has failed."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a cell ended.

    Attributes:
        cell: the cell.
        record: its result; None if it failed.
        error: why it failed; None if it did not.
    """

    cell: Cell
    record: records.Record | None
    error: str | None = None


def run(
    cells: Sequence[Cell], n_jobs: int, ray_address: str | None = None
) -> Generator[Outcome, None, None]:
    """Runs cells here or on a Ray cluster and gives their outcomes as they come.

    Args:
        cells: in the order in which to start them.
        n_jobs: how many at a time; with Ray, -1 for as many as it has processors.
        ray_address: of the cluster, ``"local"`` to start one here, None for this machine alone.

    Returns:
        A generator of one outcome for each cell.

    Raises:
        ClusterError: while it is iterated, if the cluster fails.
    """
    if ray_address is None:
        return run_here(cells, n_jobs)
    from benchmarks.compare.cluster import run_on_ray

    return run_on_ray(cells, n_jobs, ray_address)


def run_here(cells: Sequence[Cell], n_jobs: int) -> Generator[Outcome, None, None]:
    """Runs cells on this machine and gives their outcomes as they come.

    Args:
        cells: in the order in which to start them.
        n_jobs: how many at a time.

    Yields:
        One outcome for each cell.
    """
    slots, stopping = threading.Semaphore(n_jobs), threading.Event()

    def in_slot(cell: Cell) -> Outcome:
        with slots:
            return Outcome(cell, None, "stopped") if stopping.is_set() else attempt(cell)

    # Threads, because all that they do is wait for the cells' processes.
    parallel = joblib.Parallel(
        n_jobs=n_jobs, backend="threading", batch_size=1, return_as="generator_unordered"
    )
    try:
        yield from hand_on(parallel(joblib.delayed(in_slot)(cell) for cell in cells))
    finally:
        stopping.set()
        for _ in range(n_jobs):
            # A thread may have been about to start a process.
            while not slots.acquire(timeout=_POLL_SECONDS):
                stop_processes()


def hand_on(outcomes: Generator[Outcome, None, None]) -> Generator[Outcome, None, None]:
    """Hands on what joblib returns, and stops it without a warning when it is not used up.

    Args:
        outcomes: joblib's generator.

    Yields:
        What it yields.
    """
    try:
        # Not "yield from", which would close it before the filter is there.
        for outcome in outcomes:  # noqa: UP028
            yield outcome
    finally:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*still being processed by the workers")
            outcomes.close()


def attempt(cell: Cell, run: Callable[[Cell], records.Record] = run_cell) -> Outcome:
    """Runs a cell in a process of its own, whatever becomes of it.

    Peak memory is then the cell's alone, and a crash takes nothing else along.

    Args:
        cell: which.
        run: does it; a function that can be imported.

    Returns:
        The outcome.
    """
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=_fresh_processes(), initializer=_start_process
    ) as pool:
        try:
            return Outcome(cell, pool.submit(run, cell).result())
        except BrokenProcessPool:
            return Outcome(cell, None, "its process was killed, perhaps for lack of memory")
        except Exception as error:
            return Outcome(cell, None, "".join(traceback.format_exception(error)))
        except BaseException:
            stop_processes()
            raise


def _fresh_processes() -> Any:
    # A server that has imported everything and done nothing else: its forks start at once and
    # have no threads or memory of this process.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.compare.running"])
    return context


def _start_process() -> None:
    # Ctrl-C reaches the whole group of processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # only called in a child
    parent.join()
    os._exit(1)


def stop_processes() -> None:
    """Ends the processes of all cells that are running."""
    for process in multiprocessing.active_children():
        process.kill()
