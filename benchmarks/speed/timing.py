"""Timing in turns, and ratios with an interval."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Block(NamedTuple):
    """What is timed in one go.

    Attributes:
        run: does it.
        units: updates (or actions, or passes) that it makes.
    """

    run: Callable[[], object]
    units: int

    def seconds_per_unit(self) -> float:
        """Runs it once."""
        began = time.perf_counter()
        self.run()
        return (time.perf_counter() - began) / self.units


class Turns:
    """Stands in for the logger of a critic's fit and times others whenever the fit evaluates.

    So the fit is timed as it is, its evaluations included, and still alternates with the others.
    The first block, which contains the fit's preparations, warms all of them up.
    """

    def __init__(self, others: Mapping[str, Block]) -> None:
        self._others = others
        self._seconds: dict[str, list[float]] = {name: [] for name in ("fit", *others)}
        self.steps = 0
        self._since = time.perf_counter()

    def record(self, name: str, value: float) -> None:
        """Takes what the fit logs, which nobody needs here."""

    def dump(self, step: int) -> None:
        """Ends a block of the fit and runs one of each other."""
        seconds = time.perf_counter() - self._since
        self._seconds["fit"].append(seconds / (step - self.steps))
        for name, block in self._others.items():
            self._seconds[name].append(block.seconds_per_unit())
        self.steps = step
        self._since = time.perf_counter()

    def per_unit(self) -> dict[str, np.ndarray]:
        """Seconds per unit of each block, without the first."""
        return {name: np.array(seconds[1:]) for name, seconds in self._seconds.items()}


@contextlib.contextmanager
def without_gc() -> Iterator[None]:
    """Keeps Python's garbage collector out of what is timed."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def in_turns(contestants: Mapping[str, Block], blocks: int) -> dict[str, np.ndarray]:
    """Seconds per unit of each contestant's blocks, which alternate.

    A machine whose speed drifts then favours none. Whoever goes first does so in every other
    round only. Each contestant runs a block beforehand, which is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for block in contestants.values():
        block.run()
    for number in range(blocks):
        order = list(contestants)[:: 1 if number % 2 == 0 else -1]
        with without_gc():
            for name in order:
                seconds[name].append(contestants[name].seconds_per_unit())
    return {name: np.array(values) for name, values in seconds.items()}


def interval_of_median(values: Any, confidence_level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval (percentiles) of a median; the same for the same values."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,),
        np.median,
        confidence_level=confidence_level,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summary(values: Any) -> dict[str, Any]:
    """Median of ratios, its 95 % interval and their number."""
    return {
        "median": float(np.median(values)),
        "interval": list(interval_of_median(values)),
        "n": len(values),
    }


def milliseconds(seconds: np.ndarray) -> float:
    """The median, in ms."""
    return float(np.median(seconds) * 1e3)
