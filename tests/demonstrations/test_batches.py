"""Batches: the same as torch's DataLoader gives, resumable, and nothing of an iterable lost."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.algorithms.base import make_data_loader
from imitation.data.types import (
    DictObs,
    Trajectory,
    Transitions,
    TransitionsMinimal,
    transitions_collate_fn,
)
from torch.utils import data as th_data
from toys import IMAGE, MAPPING, Endless, batches_of, on_disk, pairs_on_disk, transitions

from sb3_diffbc.demonstrations.batches import (
    BlockBatches,
    PrefetchedBatches,
    TransitionBatches,
    make_batches,
    subset_in_memory,
)

quick = settings(max_examples=40, deadline=None)
DATASETS = {
    "vectors": transitions(n=50),
    "images and classes": transitions(IMAGE, spaces.Discrete(3), n=50),
    "mappings": transitions(MAPPING, spaces.MultiBinary(3), n=50),
}


def array(values: Any) -> np.ndarray:
    return np.asarray(values)


def assert_same_batch(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(array(found["acts"]), array(expected["acts"]))
    assert array(found["acts"]).dtype == array(expected["acts"]).dtype
    if not isinstance(expected["obs"], DictObs):
        np.testing.assert_array_equal(array(found["obs"]), array(expected["obs"]))
        assert array(found["obs"]).dtype == array(expected["obs"]).dtype
        return
    assert isinstance(found["obs"], DictObs)
    assert set(found["obs"].keys()) == set(expected["obs"].keys())
    for key, values in expected["obs"].items():
        np.testing.assert_array_equal(found["obs"].get(key), values)


def assert_same_batches(found: Iterable[Any], expected: Iterable[Any]) -> None:
    for one, other in itertools.zip_longest(found, expected):
        assert one is not None
        assert other is not None
        assert_same_batch(one, other)


def numbered(n: int) -> TransitionsMinimal:
    """Transitions whose observation and action say which row they are."""
    rows = np.arange(n, dtype=np.float32)
    return TransitionsMinimal(obs=rows[:, None], acts=10 * rows[:, None], infos=np.full(n, {}))


def rows_of(batches: Iterable[Any]) -> list[list[int]]:
    return [[int(row) for row in array(batch["obs"]).reshape(-1)] for batch in batches]


# --- TransitionBatches --------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("batch_size", [1, 7, 25, 50])
def test_batches_are_those_of_imitations_data_loader(name: str, batch_size: int) -> None:
    data = DATASETS[name]
    th.manual_seed(3)
    loader = make_data_loader(data, batch_size)
    expected = [list(loader) for _ in range(3)]
    state = th.get_rng_state()
    th.manual_seed(3)
    batches = TransitionBatches(data, batch_size)
    for epoch in expected:
        assert len(batches) == len(epoch)
        assert_same_batches(batches, epoch)
    assert th.equal(th.get_rng_state(), state)


@quick
@given(n=st.integers(1, 60), n_epochs=st.integers(1, 3), data=st.data())
def test_order_is_the_data_loaders_even_if_others_draw_in_between(
    n: int, n_epochs: int, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, n))
    seed = data.draw(st.integers(0, 1000))

    def run(batches: Iterable[Any]) -> list[Any]:
        th.manual_seed(seed)
        found = []
        for _ in range(n_epochs):
            for batch in batches:
                th.rand(3)  # a rollout for the log, say
                found.append(array(batch["obs"]))
        return found

    loader = th_data.DataLoader(
        numbered(n),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=lambda rows: {"obs": np.stack([row["obs"] for row in rows])},
    )
    expected, found = run(loader), run(TransitionBatches(numbered(n), batch_size))
    np.testing.assert_array_equal(np.array(found), np.array(expected))


@quick
@given(n=st.integers(1, 60), data=st.data())
def test_a_pass_takes_whole_batches_of_different_aligned_rows(n: int, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, n))
    found = list(TransitionBatches(numbered(n), batch_size))
    assert len(found) == n // batch_size
    rows = rows_of(found)
    assert all(len(batch) == batch_size for batch in rows)
    flat = [row for batch in rows for row in batch]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(n))
    for batch in found:
        th.testing.assert_close(batch["acts"], 10 * batch["obs"])


def test_passes_differ() -> None:
    batches = TransitionBatches(numbered(50), 50)
    assert rows_of(batches) != rows_of(batches)


def test_demonstrations_are_not_copied() -> None:
    memory = np.zeros((8, 2), dtype=np.float32)
    data = TransitionsMinimal(obs=memory[:], acts=memory[:], infos=np.full(8, {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # imitation's arrays are read-only, which torch may mention
        batches = TransitionBatches(data, 4)
    memory += 1
    assert all((batch["obs"] == 1).all() and (batch["acts"] == 1).all() for batch in batches)
    assert batches.transitions is data


def test_views_that_torch_cannot_share_are_taken_all_the_same() -> None:
    data = numbered(8)
    backwards = TransitionsMinimal(obs=data.obs[::-1], acts=data.acts[::-1], infos=data.infos)
    assert sorted(rows_of(TransitionBatches(backwards, 8))[0]) == list(range(8))


def test_changing_a_batch_does_not_change_the_demonstrations() -> None:
    data = transitions(n=16)
    before = data.obs.copy()
    for batch in TransitionBatches(data, 8):
        batch["obs"].zero_()
        batch["acts"].zero_()
    np.testing.assert_array_equal(data.obs, before)


@quick
@given(stop=st.integers(0, 7), seed=st.integers(0, 100))
def test_a_pass_left_in_the_middle_can_be_taken_up_elsewhere(stop: int, seed: int) -> None:
    th.manual_seed(seed)
    whole = rows_of(TransitionBatches(numbered(30), 4))
    th.manual_seed(seed)
    left = TransitionBatches(numbered(30), 4)
    begun = rows_of(itertools.islice(left, stop))
    other = TransitionBatches(numbered(30), 4)
    other.resume_at(left.pass_seed, left.position)
    resumed = rows_of(other)
    if 0 < stop < len(whole):
        assert begun + resumed == whole
        assert other.position == len(whole)
    else:
        # Nothing was left, so a new pass has begun.
        assert begun == whole[:stop]
        assert len(resumed) == len(whole)
    # Only one pass is resumed.
    assert len(rows_of(other)) == len(whole)


def test_resuming_draws_nothing_from_the_global_random_state() -> None:
    batches = TransitionBatches(numbered(30), 4)
    list(itertools.islice(batches, 3))
    batches.resume_next()
    before = th.get_rng_state()
    assert len(list(batches)) == 4
    assert th.equal(th.get_rng_state(), before)


def test_without_being_asked_a_pass_is_not_resumed() -> None:
    batches = TransitionBatches(numbered(30), 4)
    list(itertools.islice(batches, 3))
    assert len(list(batches)) == 7


def test_the_position_counts_a_batch_as_soon_as_it_is_out() -> None:
    batches = TransitionBatches(numbered(30), 4)
    assert [batches.position for _ in batches] == [1, 2, 3, 4, 5, 6, 7]


def test_fingerprint_tells_whether_observations_and_actions_are_the_same() -> None:
    def fingerprint(data: TransitionsMinimal) -> str:
        return TransitionBatches(data, 4).fingerprint()

    data = transitions(n=8)
    changed = data.obs.copy()
    changed[5, 1] += 1e-6
    same = [
        transitions(n=8),
        dataclasses.replace(data, dones=np.ones(8, dtype=bool)),
        TransitionsMinimal(obs=np.asfortranarray(data.obs), acts=data.acts, infos=data.infos),
    ]
    different = [
        transitions(n=9),
        dataclasses.replace(data, obs=changed, next_obs=changed),
        dataclasses.replace(data, acts=data.acts.reshape(8, 2, 1)),
        dataclasses.replace(data, acts=data.acts.astype(np.float64)),
        dataclasses.replace(data, acts=data.acts[::-1].copy()),
    ]
    assert {fingerprint(other) for other in same} == {fingerprint(data)}
    assert len({fingerprint(other) for other in [data, *different]}) == 6


def test_fingerprint_sees_every_key_of_a_mapping() -> None:
    data = DATASETS["mappings"]
    fingerprints = {TransitionBatches(data, 4).fingerprint()}
    for key, values in data.obs.items():
        parts = {**dict(data.obs.items()), key: values[::-1].copy()}
        changed = dataclasses.replace(data, obs=DictObs(parts), next_obs=DictObs(parts))
        fingerprints.add(TransitionBatches(changed, 4).fingerprint())
    assert len(fingerprints) == 4


# --- BlockBatches -------------------------------------------------------------------------------

ROW_BYTES = 8  # of `numbered`
cuts = st.tuples(st.integers(0, 9 * ROW_BYTES), st.integers(0, 50 * ROW_BYTES))


@pytest.fixture(scope="module")
def on_disk_numbered(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TransitionsMinimal]:
    """Makes `numbered` transitions on disk, which begin somewhere in the middle of their files."""
    folder, data = tmp_path_factory.mktemp("numbered"), numbered(100)
    obs = on_disk(np.concatenate([data.obs[:7], data.obs]), folder, "obs")
    acts = on_disk(np.concatenate([data.acts[:3], data.acts]), folder, "acts")

    def make(n: int) -> TransitionsMinimal:
        return TransitionsMinimal(obs=obs[7:][:n], acts=acts[3 : n + 3], infos=np.full(n, {}))

    return make


def in_blocks(data: TransitionsMinimal, batch_size: int, cut: tuple[int, int]) -> BlockBatches:
    return BlockBatches(data, batch_size, block_bytes=cut[0], buffer_bytes=cut[1])


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 100), cut=cuts, data=st.data())
def test_a_pass_in_blocks_takes_every_row_once_and_pairs_stay_pairs(
    on_disk_numbered: Callable[..., TransitionsMinimal],
    n: int,
    cut: tuple[int, int],
    data: st.DataObject,
) -> None:
    batch_size = data.draw(st.integers(1, n))
    batches = in_blocks(on_disk_numbered(n), batch_size, cut)
    for _ in range(2):
        found = list(batches)
        rows = rows_of(found)
        assert [len(batch) for batch in rows] == [batch_size] * (n // batch_size)
        flat = [row for batch in rows for row in batch]
        assert len(set(flat)) == len(flat)
        assert set(flat) <= set(range(n))
        for batch in found:
            th.testing.assert_close(batch["acts"], 10 * batch["obs"])


@settings(max_examples=100, deadline=None)
@given(stop=st.integers(0, 25), cut=cuts, seed=st.integers(0, 100))
def test_a_pass_in_blocks_can_be_taken_up_elsewhere(
    on_disk_numbered: Callable[..., TransitionsMinimal],
    stop: int,
    cut: tuple[int, int],
    seed: int,
) -> None:
    def make() -> BlockBatches:
        return in_blocks(on_disk_numbered(99), 4, cut)

    th.manual_seed(seed)
    whole = rows_of(make())
    th.manual_seed(seed)
    left = make()
    begun = rows_of(itertools.islice(left, stop))
    other = make()
    other.resume_at(left.pass_seed, left.position)
    state = th.get_rng_state()
    resumed = rows_of(other)
    if 0 < stop < len(whole):
        assert begun + resumed == whole
        assert th.equal(th.get_rng_state(), state)
    else:
        assert begun == whole[:stop]
        assert len(resumed) == len(whole)
    assert len(rows_of(other)) == len(whole)


def test_blocks_draw_from_the_global_random_state_what_batches_in_memory_do(
    on_disk_numbered: Callable[..., TransitionsMinimal],
) -> None:
    states = []
    for batches in (TransitionBatches(numbered(50), 4), BlockBatches(on_disk_numbered(50), 4)):
        th.manual_seed(0)
        list(batches)
        states.append(th.get_rng_state())
    assert th.equal(*states)


def test_a_buffer_mixes_blocks_from_all_over(
    on_disk_numbered: Callable[..., TransitionsMinimal],
) -> None:
    th.manual_seed(0)
    first, *others = rows_of(in_blocks(on_disk_numbered(100), 10, (2 * ROW_BYTES, 50 * ROW_BYTES)))
    assert max(first) - min(first) > 50
    assert first != sorted(first)
    # No more than the buffer was read: its rows are 25 blocks of 2.
    assert len({row // 2 for batch in [first, *others[:4]] for row in batch}) == 25


@pytest.mark.parametrize("name", DATASETS)
def test_blocks_keep_the_form_of_every_space(name: str, tmp_path: Path) -> None:
    data = DATASETS[name]
    th.manual_seed(0)
    (expected,) = TransitionBatches(data, 50)
    (found,) = BlockBatches(pairs_on_disk(data, tmp_path), 50, block_bytes=1)
    order = [np.argsort(array(batch["acts"]).sum(axis=-1)) for batch in (found, expected)]
    if name == "vectors":
        np.testing.assert_array_equal(found["obs"][order[0]], expected["obs"][order[1]])
    assert type(found["obs"]) is type(expected["obs"])
    assert found["obs"].shape == expected["obs"].shape
    assert found["obs"].dtype == expected["obs"].dtype
    assert found["acts"].dtype == expected["acts"].dtype


def test_batches_from_disk_are_single_precision(tmp_path: Path) -> None:
    data = TransitionsMinimal(
        obs=on_disk(np.eye(4), tmp_path, "obs"),
        acts=on_disk(np.arange(4, dtype=">i4"), tmp_path, "acts"),
        infos=np.full(4, {}),
    )
    (batch,) = BlockBatches(data, 4)
    assert batch["obs"].dtype == th.float32
    assert batch["acts"].dtype == th.int32
    np.testing.assert_array_equal(batch["obs"].argmax(dim=1), batch["acts"])


def test_changing_a_batch_from_disk_does_not_change_the_next(
    on_disk_numbered: Callable[..., TransitionsMinimal],
) -> None:
    seen = set()
    for batch in BlockBatches(on_disk_numbered(40), 4):
        seen |= set(rows_of([batch])[0])
        batch["obs"].zero_()
    assert seen == set(range(40))


def test_the_fingerprint_of_blocks_tells_data_and_cut(
    on_disk_numbered: Callable[..., TransitionsMinimal], tmp_path: Path
) -> None:
    def fingerprint(data: TransitionsMinimal, cut: tuple[int, int] = (16, 160)) -> str:
        return in_blocks(data, 4, cut).fingerprint()

    data = numbered(40)
    copy = dataclasses.replace(data, obs=on_disk(data.obs, tmp_path, "copy"))
    changed = dataclasses.replace(data, acts=on_disk(data.acts + 1, tmp_path, "changed"))
    assert fingerprint(on_disk_numbered(40)) == fingerprint(copy)
    others = {
        fingerprint(copy),
        fingerprint(changed),
        fingerprint(on_disk_numbered(39)),
        fingerprint(copy, (32, 160)),
        fingerprint(copy, (16, 320)),
        TransitionBatches(data, 4).fingerprint(),
    }
    assert len(others) == 6


def test_the_fingerprint_of_blocks_reads_the_files_once(
    on_disk_numbered: Callable[..., TransitionsMinimal], monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = BlockBatches(on_disk_numbered(40), 4)
    first = batches.fingerprint()
    monkeypatch.setattr(np, "fromfile", None)
    assert batches.fingerprint() == first


@pytest.mark.parametrize("part", ["obs", "acts", "key"])
def test_arrays_on_disk_become_batches_in_blocks(part: str, tmp_path: Path) -> None:
    data = transitions(MAPPING) if part == "key" else transitions()
    mapped = pairs_on_disk(data, tmp_path)
    some = DictObs({**data.obs.unwrap(), "bits": mapped.obs.get("bits")}) if part == "key" else None
    change = {"key": {"obs": some}}.get(part, {part: getattr(mapped, part, None)})
    minimal = TransitionsMinimal(obs=data.obs, acts=data.acts, infos=data.infos)
    batches = make_batches(dataclasses.replace(minimal, **change), 8)
    assert isinstance(batches, BlockBatches)
    assert len(list(batches)) == 8


MEMORY = """
import sys
import numpy as np
from sb3_diffbc.demonstrations import batches, load_demonstrations

def kilobytes(name):
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith(name)).split()[1])

data = load_demonstrations(sys.argv[1], in_memory=False)
blocks = batches.BlockBatches(data, 100, buffer_bytes=2**23)
seen, before = np.zeros(len(data), dtype=np.uint8), kilobytes("VmRSS")
for batch in eval(sys.argv[2]):
    seen[batch["obs"][:, 0].long().numpy()] += 1
    assert (batch["acts"][:, 0] == batch["obs"][:, 0]).all()
assert (seen == 1).all()
print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_a_pass_in_blocks_takes_little_memory(tmp_path: Path) -> None:
    """A million rows, 88 MiB, in a process of their own: its largest growth during a pass."""
    obs = np.tile(np.arange(10**6, dtype=np.float32)[:, None], 17)
    np.save(tmp_path / "obs.npy", obs)
    np.save(tmp_path / "acts.npy", obs[:, :6])

    def growth(batches: str) -> float:
        command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path), batches]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])

    assert growth("blocks") < 40
    # Through the map, everything ends up in memory.
    assert growth("batches.TransitionBatches(data, 100)") > 80


# --- subset_in_memory ---------------------------------------------------------------------------


def test_a_subset_is_everything_if_that_is_little(
    on_disk_numbered: Callable[..., TransitionsMinimal],
) -> None:
    found = subset_in_memory(on_disk_numbered(100), 100, th.Generator())
    np.testing.assert_array_equal(found.obs, numbered(100).obs)
    np.testing.assert_array_equal(found.acts, numbered(100).acts)
    assert not isinstance(found.obs, np.memmap)


def test_a_subset_is_of_different_rows_from_all_over(tmp_path: Path) -> None:
    data = numbered(10_000)
    data = TransitionsMinimal(on_disk(data.obs, tmp_path, "o"), data.acts, data.infos)

    def draw(seed: int) -> TransitionsMinimal:
        return subset_in_memory(data, 1000, th.Generator().manual_seed(seed))

    found = draw(0)
    assert len(found) == 960  # 15 stretches of 64
    assert len(np.unique(found.obs)) == 960
    assert found.obs.max() - found.obs.min() > 5000
    np.testing.assert_array_equal(found.acts, 10 * found.obs)
    np.testing.assert_array_equal(found.obs, draw(0).obs)
    assert not np.array_equal(found.obs, draw(1).obs)


def test_a_subset_keeps_mappings(tmp_path: Path) -> None:
    data = transitions(MAPPING)
    found = subset_in_memory(pairs_on_disk(data, tmp_path), 64, th.Generator())
    for key, values in data.obs.items():
        np.testing.assert_array_equal(found.obs.get(key), values)


# --- PrefetchedBatches --------------------------------------------------------------------------


def one_shot(n: int) -> Iterator[Any]:
    yield from batches_of(numbered(2 * n), 2)


def all_rows(n: int) -> list[list[int]]:
    return [[2 * i, 2 * i + 1] for i in range(n)]


@quick
@given(n=st.integers(1, 8), peeks=st.lists(st.integers(1, 20), max_size=3))
def test_a_one_shot_iterable_loses_nothing_to_peeking(n: int, peeks: list[int]) -> None:
    batches = PrefetchedBatches(one_shot(n))
    for i, most in enumerate(peeks):
        seen = batches.peek(most)
        assert rows_of([{"obs": seen.obs}])[0] == list(range(len(seen)))
        # Whole batches, and what was read before is still there.
        assert len(seen) == min(2 * n, max(p + p % 2 for p in peeks[: i + 1]))
    assert rows_of(batches) == all_rows(n)
    assert rows_of(batches) == []


@quick
@given(n=st.integers(1, 8), most=st.integers(1, 20), n_read=st.integers(0, 8))
def test_what_a_pass_left_of_a_one_shot_iterable_comes_in_the_next(
    n: int, most: int, n_read: int
) -> None:
    # As without peeking: a generator goes on where it was left.
    batches = PrefetchedBatches(one_shot(n))
    batches.peek(most)
    begun = rows_of(itertools.islice(batches, n_read))
    assert begun + rows_of(batches) == all_rows(n)


def test_an_iterable_that_can_start_again_does_so_for_each_pass() -> None:
    batches = PrefetchedBatches(batches_of(numbered(8), 2))
    batches.peek(3)
    assert [rows_of(batches) for _ in range(3)] == [all_rows(4)] * 3
    batches.peek(100)
    assert rows_of(itertools.islice(batches, 1)) == all_rows(1)
    assert rows_of(batches) == all_rows(4)


def test_peeking_reads_no_more_of_an_endless_iterable_than_asked() -> None:
    endless = Endless(batches_of(numbered(8), 2))
    batches = PrefetchedBatches(endless)
    assert len(batches.peek(5)) == 6
    assert len(batches.peek(5)) == 6
    assert endless.n_read == 3
    assert len(batches.peek(100)) == 100
    assert rows_of(itertools.islice(batches, 5)) == [*all_rows(4), [0, 1]]


def test_without_peeking_nothing_is_read_ahead() -> None:
    endless = Endless(batches_of(numbered(8), 2))
    batches = PrefetchedBatches(endless)
    list(itertools.islice(batches, 2))
    assert endless.n_read == 2


def test_a_loader_that_runs_dry_stays_dry() -> None:
    class RunsDry:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            return iter(batches_of(numbered(8), 2) if self.passes == 1 else [])

    loader = RunsDry()
    batches = PrefetchedBatches(loader)
    batches.peek(100)
    assert loader.passes == 1, "peeking uses up the pass that training is about to make"
    assert rows_of(batches) == all_rows(4)
    assert rows_of(batches) == []
    with pytest.raises(ValueError, match="demonstrations is an iterable without batches"):
        batches.peek(100)


@pytest.mark.parametrize("form", [np.asarray, th.as_tensor, np.ndarray.tolist])
def test_peeking_takes_arrays_tensors_and_lists(form: Any) -> None:
    parts = batches_of(numbered(8), 2)
    batches = [{"obs": form(b["obs"].copy()), "acts": form(b["acts"].copy())} for b in parts]
    seen = PrefetchedBatches(batches).peek(100)
    np.testing.assert_array_equal(seen.obs, numbered(8).obs)
    np.testing.assert_array_equal(seen.acts, numbered(8).acts)


@pytest.mark.parametrize("form", [dict, DictObs])
def test_peeking_joins_mappings_by_key(form: Any) -> None:
    data = DATASETS["mappings"]
    batches = [
        {"obs": form(dict(batch["obs"].items())), "acts": batch["acts"]}
        for batch in batches_of(data, 10)
    ]
    seen = PrefetchedBatches(batches).peek(1000)
    assert isinstance(seen.obs, DictObs)
    for key, values in data.obs.items():
        np.testing.assert_array_equal(seen.obs.get(key), values)


# --- make_batches -------------------------------------------------------------------------------


def trajectories() -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [
        Trajectory(
            obs=rng.normal(size=(n + 1, 3)), acts=rng.normal(size=(n, 2)), infos=None, terminal=True
        )
        for n in (5, 9, 6)
    ]


@pytest.mark.parametrize("source", [list, tuple, iter], ids=["list", "tuple", "generator"])
def test_trajectories_become_batches_in_memory(source: Any) -> None:
    batches = make_batches(source(trajectories()), 4)
    assert isinstance(batches, TransitionBatches)
    np.testing.assert_array_equal(
        batches.transitions.obs, np.concatenate([t.obs[:-1] for t in trajectories()])
    )
    assert len(batches) == 5


def test_the_loader_that_dagger_makes_becomes_batches_in_memory() -> None:
    data = transitions(n=30)

    def loader() -> th_data.DataLoader:
        return th_data.DataLoader(
            data, 8, drop_last=True, shuffle=True, collate_fn=transitions_collate_fn
        )

    batches = make_batches(loader(), 8)
    assert isinstance(batches, TransitionBatches)
    assert batches.transitions is data
    th.manual_seed(0)
    expected = [list(loader()) for _ in range(2)]
    th.manual_seed(0)
    for epoch in expected:
        assert_same_batches(batches, epoch)


class Reversed(th_data.Sampler):
    """A user's sampler."""

    def __init__(self, data: Transitions) -> None:
        self.data = data

    def __iter__(self) -> Iterator[int]:
        return iter(reversed(range(len(self.data))))

    def __len__(self) -> int:
        return len(self.data)


LOADERS: dict[str, dict[str, Any]] = {
    "no shuffle": {"drop_last": True},
    "own sampler": {"sampler": Reversed(DATASETS["vectors"]), "drop_last": True},
    "replacement": {
        "sampler": th_data.RandomSampler(DATASETS["vectors"], replacement=True),
        "drop_last": True,
    },
    "weights": {
        "sampler": th_data.WeightedRandomSampler([1.0, 9.0] * 25, 50),
        "drop_last": True,
    },
    "fewer samples": {
        "sampler": th_data.RandomSampler(DATASETS["vectors"], num_samples=20),
        "drop_last": True,
    },
    "own generator": {
        "shuffle": True,
        "drop_last": True,
        "generator": th.Generator().manual_seed(7),
    },
    "last batch kept": {"shuffle": True},
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_that_do_something_else_are_left_alone(name: str) -> None:
    def loader() -> th_data.DataLoader:
        kwargs = dict(LOADERS[name])
        if "generator" in kwargs:
            kwargs["generator"] = th.Generator().manual_seed(7)
        return th_data.DataLoader(
            DATASETS["vectors"], 10, collate_fn=transitions_collate_fn, **kwargs
        )

    th.manual_seed(0)
    plain = make_data_loader(loader(), 10)
    expected = [list(plain) for _ in range(2)]
    th.manual_seed(0)
    batches = make_batches(loader(), 10)
    for epoch in expected:
        assert_same_batches(batches, epoch)


def test_a_loader_with_a_collation_of_its_own_is_left_alone() -> None:
    def collate(rows: Any) -> Any:
        batch = transitions_collate_fn(rows)
        return {**batch, "obs": -batch["obs"]}

    data = numbered(8)
    full = Transitions(
        obs=data.obs, acts=data.acts, next_obs=data.obs, dones=np.zeros(8, bool), infos=data.infos
    )
    loader = th_data.DataLoader(full, 4, shuffle=True, drop_last=True, collate_fn=collate)
    assert all((array(batch["obs"]) <= 0).all() for batch in make_batches(loader, 4))


def test_an_iterable_of_batches_is_passed_through() -> None:
    batches = batches_of(numbered(8), 2)
    wrapped = make_batches(batches, 2)
    assert isinstance(wrapped, PrefetchedBatches)
    assert [found is given for found, given in zip(wrapped, batches, strict=True)] == [True] * 4


@pytest.mark.parametrize("key", ["obs", "acts"])
def test_batches_of_another_size_are_refused_when_they_come(key: str) -> None:
    batches = batches_of(numbered(8), 2)
    batches[2] = {**batches[2], key: batches[2][key][:1]}
    with pytest.raises(ValueError, match="Expected batch size 2 != 1"):
        list(make_batches(batches, 2))


def test_fewer_transitions_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="`demonstrations` 8 is smaller than batch size 9"):
        make_batches(numbered(8), 9)
    assert len(make_batches(numbered(8), 8)) == 1  # type: ignore[arg-type]


def test_fewer_transitions_than_a_batch_are_refused_from_a_loader_too() -> None:
    loader = th_data.DataLoader(
        transitions(n=8), 9, shuffle=True, drop_last=True, collate_fn=transitions_collate_fn
    )
    # It has no batches, so there is no first one to look at.
    with pytest.raises(ValueError, match=r"smaller than batch size|no elements"):
        make_batches(loader, 9)


def test_a_loader_with_batches_of_another_size_is_refused_as_by_bc() -> None:
    loader = th_data.DataLoader(
        transitions(n=8), 4, shuffle=True, drop_last=True, collate_fn=transitions_collate_fn
    )
    with pytest.raises(ValueError, match="Expected batch size 2"):
        list(make_batches(loader, 2))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_without_rows_is_refused(batch_size: int) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        make_batches(numbered(8), batch_size)


def test_something_else_is_refused() -> None:
    with pytest.raises(TypeError, match="`demonstrations` unexpected type"):
        make_batches(3, 4)  # type: ignore[arg-type]


def test_an_iterable_without_batches_is_refused() -> None:
    with pytest.raises(ValueError, match="no elements"):
        make_batches([], 4)
