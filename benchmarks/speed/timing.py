"""Timing in turns, and ratios of what was timed."""

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A row of the results: a contestant's ratio to another one.

    ``milliseconds`` is the median time of an update, a fit or whatever is compared, None where
    memory is measured; ``ratio``, ``low`` and ``high`` are the median, the smallest and the largest
    over so many ``rounds``.
    """

    part: str
    case: str
    what: str
    relative_to: str
    milliseconds: float | None
    ratio: float
    low: float
    high: float
    rounds: int
    remark: str = ""


def timed(run: Callable[[], object], units: int = 1) -> Callable[[], float]:
    """Returns a function that runs ``run``, which makes ``units``, and gives seconds per unit."""

    def block() -> float:
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) / units

    return block


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Seconds]:
    """Runs blocks of the contestants in turns, so that a drift of the machine favours none.

    Each contestant runs a block beforehand, which is not counted. The order is reversed in every
    other round, and Python's garbage collector waits until a round's end.

    Returns:
        Seconds per unit of each contestant's counted blocks, shape ``(rounds,)``.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for block in contestants.values():
        block()
    for number in range(rounds):
        gc.collect()
        gc.disable()
        try:
            for name in list(contestants)[:: 1 if number % 2 == 0 else -1]:
                seconds[name].append(contestants[name]())
        finally:
            gc.enable()
    return {name: np.array(values) for name, values in seconds.items()}


def relative_times(
    part: str,
    case: str,
    seconds: Mapping[str, Seconds],
    reference: str,
    remarks: Mapping[str, str] | None = None,
) -> list[Measurement]:
    """Relates times to those of the reference in the same round.

    Returns:
        A row for each contestant of :func:`in_turns`, the reference included.
    """
    rows = []
    for name, values in seconds.items():
        ratios = values / seconds[reference]
        rows.append(
            Measurement(
                part=part,
                case=case,
                what=name,
                relative_to=reference,
                milliseconds=float(np.median(values) * 1e3),
                ratio=float(np.median(ratios)),
                low=float(ratios.min()),
                high=float(ratios.max()),
                rounds=len(ratios),
                remark=(remarks or {}).get(name, ""),
            )
        )
    return rows
