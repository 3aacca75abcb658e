"""What docs/checkpoints.md promises of killed processes, full disks and several writers.

The processes are forked, on Unix alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch as th
import tqdm
from toys import train, trainer, transitions, weights

from sb3_diffbc import DiffusionBC
from sb3_diffbc.checkpoints import file as file_module
from sb3_diffbc.checkpoints import load_checkpoint, save_checkpoint
from sb3_diffbc.schema import Model

resource = pytest.importorskip("resource", reason="this platform has no limits on processes")

N_KILLS = 50
N_LOADS = 1_000
INTERVAL = 2
DATA = transitions()


class Content(Model):
    """A number that the tensors repeat."""

    number: int


@contextlib.contextmanager
def forked(action: Callable[[], object]) -> Iterator[int]:
    """Another process that does something, and is killed in the end if it still does."""
    pid = os.fork()
    if pid == 0:
        # tqdm's lock is shared between processes: a child killed while it holds the lock would
        # leave everybody after it waiting for ever.
        tqdm.tqdm.set_lock(threading.RLock())
        try:
            action()
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the process failed before it was killed"


def new_trainer() -> DiffusionBC:
    th.manual_seed(3)
    return trainer(demonstrations=DATA, dm_coef=0, seed=3)


def load(path: Path) -> DiffusionBC:
    return DiffusionBC.load(path, demonstrations=DATA, verbose=0, device="cpu")


def state_of(algorithm: DiffusionBC) -> th.Tensor:
    moments = [
        th.as_tensor(value).double().reshape(-1)
        for entries in algorithm.optimizer.state_dict()["state"].values()
        for value in entries.values()
    ]
    return th.cat([weights(algorithm.policy), *moments])


def test_a_killed_training_loses_at_most_an_interval_and_goes_on_to_the_bit(
    tmp_path: Path,
) -> None:
    path = new_trainer().save(tmp_path / "trainer")
    rng = random.Random(0)
    states = {0: state_of(load(path))}
    newest = 0
    for _ in range(N_KILLS):
        reading, writing = os.pipe()

        def train_on(writing: int = writing) -> None:
            algorithm = load(path)
            while True:
                os.write(writing, b"s")
                train(algorithm, n_batches=INTERVAL, on_batch_end=lambda: os.write(writing, b"."))
                os.write(writing, b"!")
                algorithm.save(path)

        n_events = rng.choice((4, 8, rng.randint(1, 12)))  # four an interval, a save the fourth
        with os.fdopen(reading, "rb") as stream:
            with forked(train_on):
                os.close(writing)
                before = stream.read(n_events)
                time.sleep(rng.uniform(0, 0.02))
            n_updates = newest + (before + stream.read()).count(b".")
        found = load(path)
        assert n_updates - INTERVAL <= found.n_updates <= n_updates
        # Each save was followed by an event.
        assert found.n_updates >= newest + INTERVAL * (before.count(b"s") - 1)
        newest = found.n_updates
        states[newest] = state_of(found)
    uninterrupted = new_trainer()
    for n_updates in range(INTERVAL, newest + 1, INTERVAL):
        train(uninterrupted, n_batches=INTERVAL)
        if n_updates in states:
            assert th.equal(states[n_updates], state_of(uninterrupted))
    load(path).save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_and_a_reader_never_mix_versions(tmp_path: Path) -> None:
    path = tmp_path / "shared.safetensors"

    def write(number: int) -> Path:
        tensors = {name: th.full((500,), float(number)) for name in ("a", "b", "c")}
        return save_checkpoint(path, kind="critic", tensors=tensors, content=Content(number=number))

    def keep_writing(first: int) -> None:
        for number in range(first, 10**9, 2):
            write(number)

    write(0)
    seen = set()
    with forked(lambda: keep_writing(1)), forked(lambda: keep_writing(2)):
        n_loads = 0
        while n_loads < N_LOADS or len(seen) < 10:
            tensors, content = load_checkpoint(path, kind="critic", content=Content)
            assert {n for part in tensors.values() for n in part.tolist()} == {content.number}
            seen.add(content.number)
            n_loads += 1
    write(0)
    assert list(tmp_path.iterdir()) == [path]


def fail(*_: Any, **__: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("step", ["write", "open", "copymode", "fsync", "replace"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_and_a_read_only_folder_leave_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, exists: bool
) -> None:
    path = tmp_path / "file.safetensors"
    if exists:
        new_trainer().save(path)
    elif step == "copymode":
        pytest.skip("there is no mode to keep")
    before = path.read_bytes() if exists else None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        if step == "write":  # what a full disk does: a part of the file is written
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
        elif step == "open":
            real = Path.open
            patch.setattr(Path, "open", lambda *a, **k: fail() if "xb" in a else real(*a, **k))
        else:
            owner = shutil if step == "copymode" else file_module.os
            patch.setattr(owner, step, fail)
        try:
            with pytest.raises(
                OSError, match=r"cannot write the checkpoint: .*file\.safetens"
            ) as e:
                new_trainer().save(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert e.value.errno == (errno.EFBIG if step == "write" else errno.EROFS)
    assert list(tmp_path.iterdir()) == ([path] if exists else [])
    assert before is None or path.read_bytes() == before


def write_small(path: Path) -> Path:
    return save_checkpoint(path, kind="critic", tensors={}, content=Content(number=1))


def leave_behind(path: Path) -> Path:
    """A temporary file of a writer that was killed."""
    pid = os.fork()
    if pid == 0:
        file_module.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        try:
            write_small(path)
        finally:
            os._exit(1)  # never on into pytest
    os.waitpid(pid, 0)
    [leftover] = path.parent.glob(".*.tmp")
    return leftover


def test_the_next_save_of_the_same_file_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    leftover = leave_behind(path)
    write_small(other)
    assert leftover.exists()
    write_small(path)
    assert sorted(tmp_path.iterdir()) == [path, other]


def test_a_living_writers_file_is_not_taken_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    fsync, n_files = os.fsync, []

    def meanwhile(descriptor: int) -> None:
        monkeypatch.setattr(file_module.os, "fsync", fsync)
        write_small(path)
        n_files.append(len(list(tmp_path.glob(".*.tmp"))))
        fsync(descriptor)

    monkeypatch.setattr(file_module.os, "fsync", meanwhile)
    write_small(path)
    assert n_files == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_writer_whose_file_is_taken_before_it_is_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    flock, taken = file_module.fcntl.flock, []

    def late(stream: Any, operation: int) -> None:
        if not taken:
            taken.extend(tmp_path.glob(".*.tmp"))
            taken[0].unlink()
        flock(stream, operation)

    monkeypatch.setattr(file_module.fcntl, "flock", late)
    write_small(path)
    assert list(tmp_path.iterdir()) == [path]
    assert taken
