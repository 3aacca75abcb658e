"""Time of an update and memory at many transitions, in memory and on disk."""

import dataclasses
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from imitation.data import types

from benchmarks.speed.settings import Settings, spaces_of
from benchmarks.speed.timing import Measurement, in_turns, relative_times
from sb3_diffbc import DiffusionBC

REFERENCE = 10_000
OBS_DIM, ACT_DIM, BATCH_SIZE = 17, 6, 128
_STATUS = Path("/proc/self/status")
# Caches are cold after another trainer had its turn.
_UNCOUNTED = 10


def anonymous_memory() -> float:
    """Returns the process's resident bytes that no file stands behind; NaN except on Linux."""
    if not _STATUS.exists():
        return float("nan")
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


class PeakMemory:
    """Watches the anonymous memory inside a ``with`` statement, from a thread of its own."""

    def __enter__(self) -> "PeakMemory":
        self._before = self._peak = anonymous_memory()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, anonymous_memory())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def bytes(self) -> float:
        """The peak above what was there before."""
        return self._peak - self._before


def random_transitions(n: int, folder: Path | None) -> types.TransitionsMinimal:
    """Returns float32 arrays in a folder or in memory, made without temporaries of their size."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for name, dim in {"obs": OBS_DIM, "acts": ACT_DIM}.items():
        array = np.empty((n, dim), np.float32)
        if folder is not None:
            array = np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=(n, dim)
            )
        for start in range(0, n, 10**6):
            rng.standard_normal(dtype=np.float32, out=array[start : start + 10**6])
        if folder is not None:
            array = np.load(folder / f"{name}.npy", mmap_mode="r")
        arrays[name] = array
    # One dictionary for all rows, and one reference to it.
    return types.TransitionsMinimal(**arrays, infos=np.broadcast_to(np.array({}, dtype=object), n))


class Trainer:
    """A trainer whose updates are timed from within its training, so many in a block."""

    def __init__(self, transitions: types.TransitionsMinimal, updates: int) -> None:
        self._per_pass = len(transitions) // BATCH_SIZE
        self._updates = updates
        # The memory that the critic's fit takes does not depend on how long it is.
        self._trainer = DiffusionBC(
            demonstrations=transitions,
            **spaces_of(transitions),
            batch_size=BATCH_SIZE,
            critic_kwargs={"n_steps": 25},
            verbose=0,
            seed=0,
            device="cpu",
        )

    def block(self) -> float:
        """Trains, and returns the seconds of an update, a share of a pass's start included."""
        times = [time.perf_counter()]
        self._trainer.train(
            n_batches=_UNCOUNTED + self._updates,
            on_batch_end=lambda: times.append(time.perf_counter()),
            progress_bar=False,
            log_interval=10**9,
        )
        seconds = (times[-1] - times[_UNCOUNTED]) / self._updates
        if self._per_pass <= self._updates:
            return seconds  # passes started in the middle of the block
        return seconds + (times[1] - times[0]) / self._per_pass


def measure_data(settings: Settings) -> list[Measurement]:
    """Times updates, and watches the memory from the arrays to the end of the first block."""
    reference = Trainer(random_transitions(REFERENCE, None), settings.data_updates)
    reference.block()  # libraries take memory on first use, which is not the demonstrations'
    rows = []
    for size in settings.data_sizes:
        for on_disk in (False, True):
            case = f"{size:,} transitions {'on disk' if on_disk else 'in memory'}"
            print(f"  {case}", flush=True)
            rows += _measure_size(size, on_disk, case, reference, settings)
    return rows


def _measure_size(
    size: int, on_disk: bool, case: str, reference: Trainer, settings: Settings
) -> list[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        with PeakMemory() as peak:
            transitions = random_transitions(size, Path(folder) if on_disk else None)
            trainer = Trainer(transitions, settings.data_updates)
            trainer.block()
        blocks = {"update": trainer.block, f"update at {REFERENCE:,}": reference.block}
        seconds = in_turns(blocks, settings.rounds)
    arrays = types.assert_not_dictobs(transitions.obs).nbytes + transitions.acts.nbytes
    update = relative_times("data", case, seconds, f"update at {REFERENCE:,}")[0]
    ratio = peak.bytes / arrays
    memory = dataclasses.replace(
        update,
        what="peak anonymous memory",
        relative_to="the arrays",
        milliseconds=None,
        ratio=ratio,
        low=ratio,
        high=ratio,
        rounds=1,
        remark=f"{peak.bytes / 1e6:.0f} MB of {arrays / 1e6:.0f} MB",
    )
    return [update, memory]
