"""Time of an update and memory while the demonstrations grow.

Each size lives in a process of its own. Two of them, a size and the reference, run their blocks in
turns: one waits at a pipe in the middle of its training while the other works.
"""

import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from imitation.data import types

from benchmarks.speed.settings import Settings, no_logger, spaces_of
from benchmarks.speed.timing import milliseconds, summary, without_gc
from sb3_diffbc import DiffusionBC
from sb3_diffbc.demonstrations.batches import TransitionBatches

REFERENCE = 10_000
OBS_DIM, ACT_DIM, BATCH_SIZE = 17, 6, 128
# Caches are cold after the other process had its turn.
_UNCOUNTED = 10
_STATUS = Path("/proc/self/status")


def memory() -> tuple[int, int]:
    """Resident bytes now and at their peak; the peak for both where there is no ``/proc``."""
    if not _STATUS.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return peak, peak
    fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    now, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak


def forget_peak() -> None:
    """Lets the peak start again at what is resident now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


class Phases:
    """Peak memory above a baseline, and seconds, of one phase after the other."""

    def __init__(self) -> None:
        forget_peak()
        self._baseline, _ = memory()
        self._began = time.perf_counter()
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """Says what just ended; the next phase begins."""
        self.seconds[name] = time.perf_counter() - self._began
        self.peaks[name] = memory()[1] - self._baseline
        forget_peak()
        self._began = time.perf_counter()


def random_transitions(n: int) -> types.TransitionsMinimal:
    """Float32 arrays, made without temporaries of their size."""
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal((n, dim), dtype=np.float32)
        for name, dim in {"obs": OBS_DIM, "acts": ACT_DIM}.items()
    }
    # One dictionary for all rows, and one reference to it.
    return types.TransitionsMinimal(**arrays, infos=np.broadcast_to(np.array({}, dtype=object), n))


def _trainer(transitions: types.TransitionsMinimal) -> DiffusionBC:
    # The memory that the critic's fit takes does not depend on how long it is.
    return DiffusionBC(
        demonstrations=transitions,
        **spaces_of(transitions),
        batch_size=BATCH_SIZE,
        critic_kwargs={"n_steps": 25},
        custom_logger=no_logger(),
        seed=0,
        device="cpu",
    )


class _Finished(Exception):  # noqa: N818  (not an error)
    """Leaves a training."""


class _Player:
    """Runs updates whenever it is asked to, from within one training."""

    def __init__(self, updates: int, phases: Phases) -> None:
        self._updates, self._phases = updates, phases
        self._made = 0
        self._since = 0.0

    def on_batch_end(self) -> None:
        """Counts an update; between two blocks it waits for its turn."""
        self._made += 1
        if self._made == 1:
            self._phases.end("first update")
        elif self._made == _UNCOUNTED + 1:
            self._since = time.perf_counter()
        elif self._made == _UNCOUNTED + self._updates + 1:
            say({"seconds": (time.perf_counter() - self._since) / self._updates})
            self._made = 1
        if self._made == 1:
            self._wait()

    def _wait(self) -> None:
        if sys.stdin.readline().strip() != "go":
            self._phases.end("updates")
            raise _Finished


def say(message: dict[str, Any]) -> None:
    """One line for the parent."""
    print(json.dumps(message), flush=True)


def _seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def play(size: int, updates: int, threads: int) -> None:
    """What a process does: prepares, plays its turns, and reports its memory."""
    th.set_num_threads(threads)
    warnings.simplefilter("ignore")
    # Libraries take memory on first use, which is not the demonstrations'.
    _trainer(random_transitions(BATCH_SIZE)).train(n_batches=2, progress_bar=False)
    phases = Phases()
    transitions = random_transitions(size)
    phases.end("arrays")
    trainer = _trainer(transitions)
    phases.end("checks")
    trainer._take_statistics()
    phases.end("statistics")
    trainer._fit_critic(progress_bar=False)
    phases.end("critic")
    player = _Player(updates, phases)
    try:
        with without_gc():
            trainer.train(
                n_batches=10**9,
                progress_bar=False,
                log_interval=10**9,
                on_batch_end=player.on_batch_end,
            )
    except _Finished:
        pass
    batches = TransitionBatches(transitions, BATCH_SIZE)
    say(
        {
            "array_bytes": types.assert_not_dictobs(transitions.obs).nbytes
            + transitions.acts.nbytes,
            "peak_bytes": phases.peaks,
            "seconds": phases.seconds,
            "pass_start_seconds": _seconds_of(lambda: next(iter(batches))),
            "updates_per_pass": len(batches),
        }
    )


class Process:
    """A size at work, seen from the parent."""

    def __init__(self, size: int, settings: Settings) -> None:
        arguments = [size, settings.growth_updates, settings.threads]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def _ask(self, message: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(message + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a process of the growth part ended: {self._process.wait()}")
        return json.loads(answer)

    def block(self) -> float:
        """Seconds per update."""
        return self._ask("go")["seconds"]

    def finish(self) -> dict[str, Any]:
        """Ends it and takes its report."""
        report = self._ask("stop")
        self._process.wait()
        return report


def measure_size(size: int, settings: Settings) -> dict[str, Any]:
    """A size and the reference in turns."""
    process, reference = Process(size, settings), Process(REFERENCE, settings)
    process.block(), reference.block()  # both are ready, and warm
    pairs = [(process.block(), reference.block()) for _ in range(settings.blocks)]
    report, reference_report = process.finish(), reference.finish()
    seconds, reference_seconds = np.array(pairs).T
    seconds = seconds + _share_of_pass_start(report, settings)
    reference_seconds = reference_seconds + _share_of_pass_start(reference_report, settings)
    peaks = report["peak_bytes"]
    return {
        "transitions": size,
        "ms": milliseconds(seconds),
        "time_to_reference": summary(seconds / reference_seconds),
        "memory_to_arrays": {name: peak / report["array_bytes"] for name, peak in peaks.items()},
        "peak_memory_to_arrays": max(peaks.values()) / report["array_bytes"],
        **report,
    }


def _share_of_pass_start(report: dict[str, Any], settings: Settings) -> float:
    """What shuffling adds to an update of a pass so long that no block saw its start."""
    n_seen = (settings.blocks + 1) * (settings.growth_updates + _UNCOUNTED)
    if report["updates_per_pass"] <= n_seen:
        return 0.0
    return report["pass_start_seconds"] / report["updates_per_pass"]


def measure(settings: Settings) -> dict[str, Any]:
    """All sizes."""
    rows = []
    for size in settings.growth_sizes:
        print(f"growth: {size:,} transitions")
        rows.append(measure_size(size, settings))
    return {"reference": REFERENCE, "obs_dim": OBS_DIM, "act_dim": ACT_DIM, "rows": rows}


if __name__ == "__main__":
    play(*map(int, sys.argv[1:]))
