"""Damaged files, and whether what reads them survives: no crash, hang, hunger or foreign code.

Files are read in forked children with limits on memory and time, one child for as many files as it
survives. Linux only.
"""

from __future__ import annotations

import gc
import io
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_NUMBERS = sorted({edge + step for edge in (0, 2**7, 2**15, 2**31, 2**63) for step in (-1, 0, 1)})
_VALUES = (b"null", b"true", b"-1", b"1e999", b"[]", b"{}", b'""', b'"\xff"', b"[" * 5_000)
_FOREIGN_CODE = (
    "ctypes.dlopen",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "pickle.find_class",
    "socket.connect",
    "subprocess.Popen",
)
"""Python's audit events that no reader of data has a reason for."""


def mutations(data: bytes, seed: int, n: int) -> Iterator[bytes]:
    """Yields ``n`` damaged copies of a file: bytes, lengths, numbers, names and structure."""
    rng = random.Random(seed)
    kinds: list[Callable[[bytes, random.Random], bytes]] = [
        _bits,
        _edge_number,
        _digits,
        _token,
        _truncated,
        _moved,
    ]
    for _ in range(n):
        damaged = data
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            damaged = rng.choice(kinds)(damaged, rng)
        yield damaged


def zip_mutations(data: bytes, seed: int, n: int) -> Iterator[bytes]:
    """Yields ``n`` copies of a zip file with one damaged member each, whose checksum is right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    rng = random.Random(seed)
    for _ in range(n):
        victim = rng.choice(sorted(members))
        [damaged] = mutations(members[victim], rng.getrandbits(32), 1)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, damaged if name == victim else content)
        yield stream.getvalue()


def survives(
    load: Callable[[Path], object],
    files: Iterable[bytes],
    suffix: str,
    allowed: tuple[type[Exception], ...],
    memory_bytes: int,
    seconds: float,
) -> list[str]:
    """Loads damaged files and returns what went wrong, one text per file; empty if nothing did.

    Args:
        load: reads a file; what it returns is dropped.
        files: their contents.
        suffix: of the path that ``load`` is given.
        allowed: exceptions that say a file is unusable.
        memory_bytes: how much more memory than before the process may take for one file.
        seconds: CPU time that one file may take; waiting may take 20 times as long.
    """
    contents, failures, start = list(files), [], 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"damaged{suffix}"
        while start < len(contents):
            reading, writing = os.pipe()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # libraries keep idle threads
                child = os.fork()
            if child == 0:
                os.close(reading)
                _load_all(load, contents, start, path, allowed, memory_bytes, seconds, writing)
            os.close(writing)
            with os.fdopen(reading) as stream:
                for line in stream:
                    index, failure = json.loads(line)
                    start = index + 1
                    if failure:
                        failures.append(f"file {index}: {failure}")
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status) or os.WEXITSTATUS(status):
                name = (
                    signal.Signals(os.WTERMSIG(status)).name
                    if os.WIFSIGNALED(status)
                    else f"exit status {os.WEXITSTATUS(status)}"
                )
                failures.append(f"file {start}: killed by {name} (SIGPROF, SIGALRM: out of time)")
                start += 1
    return failures


def _load_all(
    load: Callable[[Path], object],
    contents: list[bytes],
    start: int,
    path: Path,
    allowed: tuple[type[Exception], ...],
    memory_bytes: int,
    seconds: float,
    writing: int,
) -> None:
    """Is the child: loads the files from number ``start`` on, reports each, and ends."""
    status = 1
    try:
        for number in (signal.SIGPROF, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)  # ends the process wherever it is
        foreign: list[str] = []
        sys.addaudithook(lambda event, _: foreign.append(event) if event in _FOREIGN_CODE else None)
        warnings.simplefilter("ignore")
        # What is imported and cached once counts less.
        _limited(10 * memory_bytes, 10 * seconds, load, path, contents[start], allowed)
        foreign.clear()
        gc.freeze()  # so that collecting what a file leaves behind takes no time
        for index in range(start, len(contents)):
            gc.collect()
            peak = _memory("VmRSS") + memory_bytes
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
            failure = _limited(memory_bytes, seconds, load, path, contents[index], allowed)
            if _memory("VmHWM") > peak:
                failure = f"took more than {memory_bytes:,} bytes of memory"
            if foreign:
                failure = f"did {foreign}"
                foreign.clear()
            os.write(writing, f"{json.dumps([index, failure])}\n".encode())
        status = 0
    finally:
        os._exit(status)


def _limited(memory_bytes: int, seconds: float, *arguments: Any) -> str | None:
    """Loads one file with limits; returns what is wrong with what happened."""
    unlimited = resource.RLIM_INFINITY
    limit = _memory("VmSize") + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20 * seconds)
    failure = _load(*arguments)
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    resource.setrlimit(resource.RLIMIT_AS, (unlimited, unlimited))
    return failure


def _load(
    load: Callable[[Path], object], path: Path, content: bytes, allowed: tuple[type[Exception], ...]
) -> str | None:
    path.write_bytes(content)
    try:
        load(path)
    except allowed:
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:500]
    return None


def _memory(field: str) -> int:
    """Returns one of the process's own sizes in bytes."""
    [found] = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found)


def _position(data: bytes, rng: random.Random) -> int:
    """Returns a position, more often near the ends, where headers and footers are."""
    near = min(len(data), 1024)
    return max(
        0,
        rng.choice(
            (
                rng.randrange(near or 1),
                len(data) - 1 - rng.randrange(near or 1),
                rng.randrange(len(data) or 1),
            )
        ),
    )


def _bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = _position(changed, rng)
        changed[place] = rng.choice((changed[place] ^ 1 << rng.randrange(8), rng.randrange(256)))
    return bytes(changed)


def _edge_number(data: bytes, rng: random.Random) -> bytes:
    size, place = rng.choice((1, 2, 4, 8)), _position(data, rng)
    place -= rng.choice((0, place % size))
    number = rng.choice(_NUMBERS) % 2 ** (8 * size)
    return (
        data[:place] + number.to_bytes(size, rng.choice(("little", "big"))) + data[place + size :]
    )


def _digits(data: bytes, rng: random.Random) -> bytes:
    return _replaced(
        rb"\d+", data, rng, lambda: str(rng.choice(_NUMBERS) * rng.choice((1, 1, 1000))).encode()
    )


def _token(data: bytes, rng: random.Random) -> bytes:
    pattern = rb"\"[^\"]{1,40}\"|'[^']{1,40}'|[A-Za-z_]{3,40}"
    others: list[Any] = re.findall(pattern, data) or [b""]
    return _replaced(
        pattern, data, rng, lambda: rng.choice((rng.choice(others), rng.choice(_VALUES)))
    )


def _replaced(pattern: bytes, data: bytes, rng: random.Random, new: Callable[[], bytes]) -> bytes:
    """Replaces one place that matches; flips bits where there is none."""
    places = [found.span() for found in re.finditer(pattern, data)]
    if not places:
        return _bits(data, rng)
    start, end = rng.choice(places)
    return data[:start] + new() + data[end:]


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: _position(data, rng)]


def _moved(data: bytes, rng: random.Random) -> bytes:
    """Removes, repeats or overwrites a part."""
    start, length = _position(data, rng), rng.choice((1, 4, 8, 64, 1024))
    part, there = data[start : start + length], _position(data, rng)
    rest = data[:start] + data[start + length :]
    return rng.choice(
        (rest, data[:there] + part + data[there:], data[:there] + part + data[there + length :])
    )
