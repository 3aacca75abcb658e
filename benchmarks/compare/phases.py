"""Times of a cell's phases, and the random state that measuring must leave alone."""

import contextlib
import random
import time
from collections.abc import Iterator

import numpy as np
import torch as th


class Phases:
    """Wall-clock and process time by phase; a phase inside another one is charged alone.

    Attributes:
        seconds: wall-clock time by phase.
        cpu_seconds: process time by phase, which other programs on the machine do not lengthen.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._last = self._now()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Charges what happens in the ``with`` block to a phase."""
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def add(self, name: str, seconds: float, cpu_seconds: float) -> None:
        """Charges a phase with work that was done elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + cpu_seconds

    def _charge(self) -> None:
        now = self._now()
        if self._running:
            self.add(self._running[-1], now[0] - self._last[0], now[1] - self._last[1])
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()


@contextlib.contextmanager
def undisturbed_randomness() -> Iterator[None]:
    """Puts the global random states of Python, NumPy and torch back afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    with th.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
