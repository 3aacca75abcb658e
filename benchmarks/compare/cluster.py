"""Runs cells on a Ray cluster, through joblib's Ray backend; needs the extra ``ray``.

The nodes need the same packages as this machine, but neither its files nor this repository: the
project's own packages and demonstrations travel with the cells, and results come back here.
"""

import dataclasses
import socket
import tempfile
import urllib.parse
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import joblib
import ray
from imitation.data import types
from ray.util.joblib.ray_backend import RayBackend

import benchmarks
import sb3_diffbc
from benchmarks.compare.cells import Cell
from benchmarks.compare.running import ClusterError, Outcome, attempt, hand_on
from sb3_diffbc.demonstrations.loading import bundled_names

LOCAL = "local"
_RETRIES = 2
_REACH_SECONDS = 10.0


class _ReturningBackend(RayBackend):
    """joblib's Ray backend, handing out each result as it comes.

    joblib does not let the class that it is derived from do so; Ray's pool can.
    """

    supports_return_generator = True


def run_on_ray(cells: Sequence[Cell], n_jobs: int, address: str) -> Generator[Outcome, None, None]:
    """Runs cells on a cluster and gives their outcomes as they come.

    A cell whose worker dies runs again on another one.

    Args:
        cells: in the order in which to start them.
        n_jobs: how many at a time; -1 for as many as the cluster has processors.
        address: as ``ray.init`` takes it, or ``"local"`` for a cluster on this machine.

    Yields:
        One outcome for each cell.

    Raises:
        ClusterError: if there is no cluster at the address, or it fails.
    """
    _check_reachable(address)
    packages = [package.__path__[0] for package in (benchmarks, sb3_diffbc)]
    try:
        ray.init(
            address=address,
            runtime_env={"py_modules": packages},
            log_to_driver=False,
            num_cpus=n_jobs if address == LOCAL and n_jobs > 0 else None,
        )
        parallel = _parallel(n_jobs)
        yield from hand_on(parallel(joblib.delayed(attempt)(cell) for cell in _portable(cells)))
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise ClusterError(f"Ray at {address}: {error}") from error
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuses an address where nobody listens, which Ray itself would try for many minutes."""
    parts = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    try:
        if parts.hostname and parts.port:
            socket.create_connection((parts.hostname, parts.port), timeout=_REACH_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ClusterError(f"Ray at {address} cannot be reached: {error}") from error


def _parallel(n_jobs: int) -> joblib.Parallel:
    backend = _ReturningBackend(
        # Without a processor of its own, all of the pool could end up on one node.
        ray_remote_args={"num_cpus": 1, "max_restarts": -1, "max_task_retries": _RETRIES}
    )
    return joblib.Parallel(
        n_jobs=n_jobs, backend=backend, batch_size=1, return_as="generator_unordered"
    )


def _portable(cells: Sequence[Cell]) -> Iterator[Cell]:
    """Cells that need no files: with the demonstrations that do not come with the package."""
    loaded: dict[str, types.Transitions] = {}
    for cell in cells:
        task = cell.task
        if task.source not in bundled_names():
            if task.key not in loaded:
                loaded[task.key] = task.demonstrations()
            task = dataclasses.replace(task, source=loaded[task.key])
        cache = Path(tempfile.gettempdir()) / "sb3_diffbc_critics"
        yield dataclasses.replace(cell, task=task, cache=cache)
