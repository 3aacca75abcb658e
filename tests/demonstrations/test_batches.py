"""Batches: the same as torch's DataLoader gives, resumable, and nothing of an iterable lost."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
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
from toys import IMAGE, MAPPING, Endless, batches_of, pairs_on_disk, transitions

from sb3_diffbc.demonstrations import load_demonstrations
from sb3_diffbc.demonstrations.batches import (
    PassState,
    PrefetchedBatches,
    TransitionBatches,
    as_transitions,
    fingerprint,
    make_batches,
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


@pytest.mark.parametrize("batch_size", [1, 7, 50])
@pytest.mark.parametrize("name", DATASETS)
def test_batches_are_those_of_imitations_data_loader(name: str, batch_size: int) -> None:
    data = DATASETS[name]

    def drawing(batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            th.rand(3)  # a rollout for the log, say
            yield batch

    th.manual_seed(3)
    loader = make_data_loader(data, batch_size)
    expected = [list(drawing(loader)) for _ in range(3)]
    state = th.get_rng_state()
    th.manual_seed(3)
    batches = TransitionBatches(data, batch_size)
    for epoch in expected:
        assert len(batches) == len(epoch)
        assert_same_batches(drawing(batches), epoch)
    assert th.equal(th.get_rng_state(), state)


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
@given(stop=st.integers(0, 7), seed=st.integers(0, 100), elsewhere=st.booleans())
def test_a_pass_left_in_the_middle_is_continued(stop: int, seed: int, elsewhere: bool) -> None:
    th.manual_seed(seed)
    whole = rows_of(TransitionBatches(numbered(30), 4))
    th.manual_seed(seed)
    batches = TransitionBatches(numbered(30), 4)
    begun = rows_of(itertools.islice(batches, stop))
    if elsewhere:
        state, batches = batches.state, TransitionBatches(numbered(30), 4)
        batches.state = dataclasses.replace(state)
    before = th.get_rng_state()
    continued = rows_of(batches)
    assert begun == whole[:stop]
    if 0 < stop < len(whole):
        assert begun + continued == whole
        assert th.equal(th.get_rng_state(), before), "continuing draws nothing"
    else:
        assert len(continued) == len(whole), "nothing was left, so a new pass has begun"
    assert batches.state.position == len(whole)
    assert len(rows_of(batches)) == len(whole), "only one pass is continued"
    list(itertools.islice(batches, stop))
    batches.state = PassState()
    assert len(rows_of(batches)) == len(whole), "a pass can be given up"


@pytest.mark.parametrize("name", DATASETS)
def test_memory_mapped_arrays_give_the_batches_of_arrays_in_memory(
    name: str, tmp_path: Path
) -> None:
    orders = []
    for data in (DATASETS[name], pairs_on_disk(DATASETS[name], tmp_path)):
        th.manual_seed(0)
        orders.append(list(TransitionBatches(data, 8)))
    assert_same_batches(orders[1], orders[0])


TRAINING = """
import pathlib, re, resource, sys, warnings
import numpy as np
from gymnasium import spaces
from imitation.data.types import TransitionsMinimal
from sb3_diffbc import DiffusionBC, load_demonstrations

warnings.simplefilter("ignore")
boxes = [spaces.Box(-np.inf, np.inf, (17,), np.float32), spaces.Box(-2, 2, (6,), np.float32)]

def train(data):
    trainer = DiffusionBC(
        demonstrations=data, observation_space=boxes[0], action_space=boxes[1],
        critic_kwargs={"n_steps": 5}, device="cpu", seed=0,
    )
    trainer.train(n_batches=3, progress_bar=False)

data = load_demonstrations(sys.argv[1], in_memory=False)
# Libraries take memory on first use, which is not the demonstrations'.
few = np.array(data.obs[:20_000])
train(TransitionsMinimal(few, few[:, :6], data.infos[:20_000]))
status = pathlib.Path("/proc/self/status").read_text()
limit = int(re.search(r"VmData:\\s+(\\d+)", status)[1]) * 1024 + data.obs.nbytes * 9 // 10
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    np.array(data.obs)
except MemoryError:
    train(data)
    print("trained")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on a process's data")
def test_training_from_a_mapped_folder_takes_less_memory_than_the_arrays(tmp_path: Path) -> None:
    obs = np.random.default_rng(0).random((2 * 10**6, 17), dtype=np.float32)
    np.save(tmp_path / "obs.npy", obs)  # 130 MiB, more than training may allocate
    np.save(tmp_path / "acts.npy", obs[:, :6])
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.endswith("trained\n"), done.stderr


# --- fingerprint --------------------------------------------------------------------------------


def test_fingerprint_of_a_bundled_set_is_the_one_that_committed_results_name() -> None:
    assert fingerprint(load_demonstrations("hand_rotate")) == (
        "e0b0665b4acdc23979aecee396512ce8028b9b056c306db6b44708e6d104f821"
    )


def test_fingerprint_tells_whether_observations_and_actions_are_the_same(tmp_path: Path) -> None:
    data = transitions(n=8)
    changed = data.obs.copy()
    changed[5, 1] += 1e-6
    same = [
        transitions(n=8),
        dataclasses.replace(data, dones=np.ones(8, dtype=bool)),
        TransitionsMinimal(obs=np.asfortranarray(data.obs), acts=data.acts, infos=data.infos),
        pairs_on_disk(data, tmp_path),
    ]
    different = [
        dataclasses.replace(data, obs=changed, next_obs=changed),
        dataclasses.replace(data, acts=data.acts.reshape(8, 2, 1)),
        dataclasses.replace(data, acts=data.acts.astype(np.float64)),
        dataclasses.replace(data, acts=data.acts[::-1].copy()),
    ]
    assert {fingerprint(other) for other in same} == {fingerprint(data)}
    assert len({fingerprint(other) for other in [data, *different]}) == 5


def test_fingerprint_sees_every_key_of_a_mapping() -> None:
    data = DATASETS["mappings"]
    fingerprints = {fingerprint(data)}
    for key, values in data.obs.items():
        parts = {**dict(data.obs.items()), key: values[::-1].copy()}
        changed = dataclasses.replace(data, obs=DictObs(parts), next_obs=DictObs(parts))
        fingerprints.add(fingerprint(changed))
    assert len(fingerprints) == 4


# --- PrefetchedBatches --------------------------------------------------------------------------


def one_shot(n: int) -> Iterator[Any]:
    yield from batches_of(numbered(2 * n), 2)


def all_rows(n: int) -> list[list[int]]:
    return [[2 * i, 2 * i + 1] for i in range(n)]


@quick
@given(
    n=st.integers(1, 8), peeks=st.lists(st.integers(1, 20), max_size=3), n_read=st.integers(0, 8)
)
def test_a_one_shot_iterable_loses_nothing_to_peeking(
    n: int, peeks: list[int], n_read: int
) -> None:
    batches = PrefetchedBatches(one_shot(n))
    for most in peeks:
        seen = batches.peek(most)
        assert rows_of([{"obs": seen.obs}])[0] == list(range(len(seen)))
        assert len(seen) == min(2 * n, most + most % 2), "whole batches"
    # As without peeking: a generator goes on where it was left.
    begun = rows_of(itertools.islice(batches, n_read))
    assert begun + rows_of(batches) == all_rows(n)
    assert rows_of(batches) == []


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


@pytest.mark.parametrize("form", [th.as_tensor, np.ndarray.tolist])
def test_peeking_takes_tensors_and_lists(form: Any) -> None:
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


def test_trajectories_become_batches_in_memory() -> None:
    batches = make_batches(iter(trajectories()), 4)
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


def negated(rows: Any) -> Any:
    batch = transitions_collate_fn(rows)
    return {**batch, "acts": -batch["acts"]}


LOADERS: dict[str, Callable[[], dict[str, Any]]] = {
    "no shuffle": lambda: {"drop_last": True},
    "own sampler": lambda: {"sampler": Reversed(DATASETS["vectors"]), "drop_last": True},
    "replacement": lambda: {
        "sampler": th_data.RandomSampler(DATASETS["vectors"], replacement=True),
        "drop_last": True,
    },
    "fewer samples": lambda: {
        "sampler": th_data.RandomSampler(DATASETS["vectors"], num_samples=20),
        "drop_last": True,
    },
    "own generator": lambda: {
        "shuffle": True,
        "drop_last": True,
        "generator": th.Generator().manual_seed(7),
    },
    "last batch kept": lambda: {"shuffle": True},
    "own collation": lambda: {"shuffle": True, "drop_last": True, "collate_fn": negated},
}


@pytest.mark.parametrize("name", LOADERS)
def test_loaders_that_do_something_else_are_left_alone(name: str) -> None:
    def loader() -> th_data.DataLoader:
        kwargs = {"collate_fn": transitions_collate_fn, **LOADERS[name]()}
        return th_data.DataLoader(DATASETS["vectors"], 10, **kwargs)

    th.manual_seed(0)
    plain = make_data_loader(loader(), 10)
    expected = [list(plain) for _ in range(2)]
    th.manual_seed(0)
    batches = make_batches(loader(), 10)
    assert isinstance(batches, PrefetchedBatches)
    for epoch in expected:
        assert_same_batches(batches, epoch)


def test_only_what_is_not_transitions_yet_is_loaded() -> None:
    data = transitions(n=8)
    assert as_transitions(data) is data
    assert as_transitions(trajectories()).obs.dtype == np.float32


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


def test_unusable_arguments_are_refused() -> None:
    too_small = th_data.DataLoader(
        transitions(n=8), 9, shuffle=True, drop_last=True, collate_fn=transitions_collate_fn
    )
    for demonstrations in (numbered(8), too_small):
        with pytest.raises(ValueError, match="`demonstrations` 8 is smaller than batch size 9"):
            make_batches(demonstrations, 9)
    with pytest.raises(ValueError, match="batch_size"):
        make_batches(numbered(8), 0)
    with pytest.raises(TypeError, match="found int"):
        make_batches(3, 4)
    with pytest.raises(ValueError, match="no elements"):
        make_batches([], 4)
