"""What `load_demonstrations` returns from every kind of source, and what it repairs."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imitation.data import rollout, serialize
from imitation.data.types import (
    DictObs,
    Trajectory,
    TrajectoryWithRew,
    Transitions,
    TransitionsMinimal,
    TransitionsWithRew,
)

from sb3_diffbc.demonstrations import (
    DemonstrationWarning,
    bundled_names,
    load_demonstrations,
    loading,
    validate_demonstrations,
)

TRUNCATED = "TimeLimit.truncated"
NO_NEXT: dict[str, Any] = {"next_obs": None}
quick = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@dataclasses.dataclass
class Episodes:
    """Whole episodes as flat arrays, one row per transition."""

    obs: np.ndarray
    acts: np.ndarray
    next_obs: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray
    lengths: list[int]

    @property
    def dones(self) -> np.ndarray:
        return self.terminals | self.timeouts

    def split(self) -> list[TrajectoryWithRew]:
        """The same episodes as imitation's trajectories; a time limit is noted in the infos."""
        trajectories = []
        for end, length in zip(np.cumsum(self.lengths), self.lengths, strict=True):
            rows = slice(end - length, end)
            infos = [{TRUNCATED: True} if timeout else {} for timeout in self.timeouts[rows]]
            trajectories.append(
                TrajectoryWithRew(
                    obs=np.concatenate([self.obs[rows], self.next_obs[end - 1 : end]]),
                    acts=self.acts[rows],
                    infos=np.array(infos, dtype=object),
                    terminal=True,
                    rews=np.zeros(length),
                )
            )
        return trajectories


def make_episodes(
    lengths: list[int],
    obs_shape: tuple[int, ...] = (3,),
    act_shape: tuple[int, ...] = (2,),
    discrete: bool = False,
    images: bool = False,
    cut_short: list[bool] | None = None,
    seed: int = 0,
) -> Episodes:
    rng = np.random.default_rng(seed)
    whole, obs, next_obs = sum(lengths), [], []
    for length in lengths:
        path = rng.normal(size=(length + 1, *obs_shape)).astype(np.float32)
        if images:
            path = rng.integers(0, 256, size=path.shape, dtype=np.uint8)
        obs.append(path[:-1])
        next_obs.append(path[1:])
    acts = rng.normal(size=(whole, *act_shape)).astype(np.float32)
    if discrete:
        acts = rng.integers(0, 5, size=acts.shape)
    last = np.cumsum(lengths) - 1
    timeouts = np.zeros(whole, dtype=bool)
    timeouts[last] = cut_short or False
    terminals = np.zeros(whole, dtype=bool)
    terminals[last] = ~timeouts[last]
    return Episodes(
        np.concatenate(obs), acts, np.concatenate(next_obs), terminals, timeouts, lengths
    )


@st.composite
def episodes(draw: st.DrawFn) -> Episodes:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    return make_episodes(
        lengths,
        obs_shape=tuple(draw(st.lists(st.integers(1, 4), max_size=3))),
        act_shape=tuple(draw(st.lists(st.integers(1, 3), max_size=2))),
        discrete=draw(st.booleans()),
        images=draw(st.booleans()),
        cut_short=draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))),
        seed=draw(st.integers(0, 2**16)),
    )


def write_npz(folder: Path, data: Episodes) -> Path:
    path = folder / "data.npz"
    np.savez(
        path,
        obs=data.obs,
        acts=data.acts,
        next_obs=data.next_obs,
        dones=data.dones,
        truncations=data.timeouts,
        rewards=np.zeros(len(data.acts)),
    )
    return path


def write_torch(folder: Path, data: Episodes) -> Path:
    path = folder / "data.pt"
    content = {
        "obs": data.obs,
        "actions": data.acts,
        "next_obs": data.next_obs,
        "done": data.dones.astype(np.float32),
        "timeouts": data.timeouts,
    }
    th.save({name: th.from_numpy(array) for name, array in content.items()}, path)
    return path


def write_hdf5(folder: Path, data: Episodes) -> Path:
    path = folder / "data.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = data.obs
        file["actions"] = data.acts
        file["next_observations"] = data.next_obs
        file["terminals"] = data.terminals
        file["timeouts"] = data.timeouts
        file["rewards"] = np.zeros(len(data.acts))
        file["infos/qpos"] = np.zeros((len(data.acts), 2))
        file["metadata/algorithm"] = "scripted"
    return path


def write_npy_directory(folder: Path, data: Episodes) -> Path:
    path = folder / "arrays"
    path.mkdir()
    for name in ("obs", "acts", "next_obs", "dones", "timeouts"):
        np.save(path / f"{name}.npy", getattr(data, name))
    np.save(path / "rewards.npy", np.zeros(len(data.acts)))
    return path


def write_directory(folder: Path, data: Episodes) -> Path:
    path = folder / "data"
    serialize.save(path, data.split())
    return path


def in_memory_trajectories(folder: Path, data: Episodes) -> list[TrajectoryWithRew]:
    return data.split()


def in_memory_transitions(folder: Path, data: Episodes) -> Transitions:
    infos = np.array([{TRUNCATED: True} if t else {} for t in data.timeouts], dtype=object)
    return Transitions(data.obs, data.acts, infos, data.next_obs, data.dones)


Writer = Callable[[Path, Episodes], Any]
WRITERS = [
    write_npz,
    write_torch,
    write_hdf5,
    write_npy_directory,
    write_directory,
    in_memory_trajectories,
    in_memory_transitions,
]


def save(folder: Path, **arrays: Any) -> Path:
    """Writes sound arrays of four rows to an `.npz`, with changes; None leaves an array out."""
    content = {
        "obs": np.arange(8.0).reshape(4, 2),
        "acts": np.ones((4, 1)),
        "next_obs": np.arange(8.0).reshape(4, 2) + 2,
        "dones": [0, 0, 0, 1],
        **arrays,
    }
    path = folder / "data.npz"
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.fixture(autouse=True)
def no_unexpected_warning() -> Iterator[None]:
    """Whatever a test does not expect, `load_demonstrations` must not warn about."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DemonstrationWarning)
        yield


class TestRoundTrips:
    @pytest.mark.parametrize("write", WRITERS)
    @quick
    @given(data=episodes())
    def test_every_source_gives_back_arrays_and_boundaries(
        self, write: Writer, data: Episodes
    ) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_demonstrations(write(Path(folder), data))
        assert isinstance(loaded, Transitions)
        assert not isinstance(loaded.obs, np.memmap)
        assert_same(loaded.obs, data.obs)
        assert_same(loaded.acts, data.acts)
        assert_same(loaded.next_obs, data.next_obs)
        assert_same(loaded.dones, data.dones)
        if write is not write_directory:  # whose infos are not read
            assert [bool(info.get(TRUNCATED)) for info in loaded.infos] == data.timeouts.tolist()

    @quick
    @given(data=episodes())
    def test_missing_successors_are_rebuilt_within_trajectories(self, data: Episodes) -> None:
        flags = {"terminals": data.terminals, "timeouts": data.timeouts}
        loaded = load_demonstrations({"observations": data.obs, "actions": data.acts, **flags})
        assert_same(loaded.next_obs[~data.dones], data.next_obs[~data.dones])
        assert_same(loaded.next_obs[data.dones], data.obs[data.dones])

    def test_directory_of_several_shards(self, tmp_path: Path) -> None:
        data = make_episodes([2, 3, 4, 1, 2])
        from imitation.data.huggingface_utils import trajectories_to_dataset

        trajectories_to_dataset(data.split()).save_to_disk(str(tmp_path / "data"), num_shards=3)
        loaded = load_demonstrations(tmp_path / "data")
        assert_same(loaded.obs, data.obs)
        assert_same(loaded.dones, data.dones)


class TestFinalObservations:
    @pytest.mark.parametrize("flags", [("dones", "timeouts"), ("terminals", "timeouts")])
    @quick
    @given(data=episodes())
    def test_with_them_imitations_transitions_come_back_exactly(
        self, flags: tuple[str, ...], data: Episodes
    ) -> None:
        trajectories = data.split()
        expected = rollout.flatten_trajectories(trajectories)
        arrays = {
            "obs": np.concatenate([t.obs[:-1] for t in trajectories]),
            "acts": data.acts,
            "final_obs": np.stack([t.obs[-1] for t in trajectories]),
            **{name: getattr(data, name) for name in flags},
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "data.npz"
            np.savez(path, **arrays)
            loaded = load_demonstrations(path)
        for name in ("obs", "acts", "next_obs", "dones"):
            assert_same(getattr(loaded, name), getattr(expected, name))
        assert loaded.infos.tolist() == expected.infos.tolist()

    def test_the_last_row_ends_an_episode_marked_or_not(self, tmp_path: Path) -> None:
        path = save(tmp_path, next_obs=None, dones=[0, 1, 0, 0], final_obs=[[10.0, 11], [12, 13]])
        loaded = load_demonstrations(path)
        assert loaded.next_obs[:, 0].tolist() == [2, 10, 6, 12]
        assert loaded.dones.tolist() == [False, True, False, False]


class TestDtypes:
    @pytest.mark.parametrize(
        ("dtype", "expected"),
        [
            ("f2", "f4"),
            (">f4", "f4"),
            ("longdouble", "f4"),
            ("u1", "u1"),
            (">i8", "i8"),
            ("?", "?"),
        ],
    )
    def test_floats_become_float32_and_the_rest_keeps_its_kind(
        self, dtype: str, expected: str, tmp_path: Path
    ) -> None:
        obs, next_obs = np.eye(3, 2, dtype=dtype), np.ones((3, 2), dtype)
        path = save(tmp_path, obs=obs, acts=obs, next_obs=next_obs, dones=[[0], [0], [1]])
        loaded = load_demonstrations(path)
        for found, given_values in (
            (loaded.obs, obs),
            (loaded.acts, obs),
            (loaded.next_obs, next_obs),
        ):
            assert_same(found, given_values.astype(expected))
        assert loaded.dones.tolist() == [False, False, True]


class TestInMemory:
    def test_sound_transitions_come_back_as_they_are(self, tmp_path: Path) -> None:
        transitions = in_memory_transitions(tmp_path, make_episodes([3, 2]))
        assert load_demonstrations(transitions) is transitions

    def test_repaired_transitions_keep_their_rewards(self) -> None:
        obs = np.arange(4.0).reshape(4, 1)
        source = TransitionsWithRew(
            obs, obs, np.full(4, {}), obs, np.array([0, 1, 0, 1], dtype=bool), np.ones(4)
        )
        loaded = load_demonstrations(source)
        assert isinstance(loaded, TransitionsWithRew)
        assert loaded.rews is source.rews
        assert loaded.next_obs.ravel().tolist() == [1, 1, 3, 3]
        assert source.next_obs.ravel().tolist() == [0, 1, 2, 3]

    def test_observations_that_never_change_are_left_as_they_are(self) -> None:
        same = np.ones((3, 1), "f4")
        source = Transitions(same, same, np.full(3, {}), same, np.array([False, False, True]))
        assert load_demonstrations(source) is source

    def test_minimal_transitions_get_successors(self) -> None:
        source = TransitionsMinimal(
            np.eye(3, dtype="f4"), np.ones((3, 1), "f4"), np.full(3, {"x": 1})
        )
        loaded = load_demonstrations(source)
        assert not loaded.dones.any()
        np.testing.assert_array_equal(loaded.next_obs, np.eye(3)[[1, 2, 2]])
        assert loaded.infos is source.infos

    def test_dictionary_observations_are_flattened_and_repaired(self) -> None:
        obs = {"a": np.arange(4.0), "b": np.arange(8, dtype=np.uint8).reshape(4, 2)}
        loaded = load_demonstrations(Trajectory(DictObs(obs), np.zeros((3, 1)), None, True))
        assert isinstance(loaded.obs, DictObs)
        assert loaded.obs.get("a").dtype == np.float32
        assert loaded.next_obs.get("b").tolist() == obs["b"][1:].tolist()

        stuck = dataclasses.replace(loaded, next_obs=loaded.obs)
        repaired = load_demonstrations(stuck)
        assert repaired.next_obs.get("b").tolist() == obs["b"][[1, 2, 2]].tolist()
        assert load_demonstrations(repaired) is repaired

    def test_a_fragment_ends_cut_short(self) -> None:
        fragment, whole = (
            Trajectory(np.eye(4, dtype="f4"), np.ones((3, 1), "f4"), None, terminal=terminal)
            for terminal in (False, True)
        )
        loaded = load_demonstrations([fragment, whole])
        assert np.flatnonzero(loaded.dones).tolist() == [2, 5]
        assert [bool(info.get(TRUNCATED)) for info in loaded.infos[[2, 5]]] == [True, False]

    @pytest.mark.parametrize("source", [3, b"maze", [{"obs": 1}]])
    def test_other_objects_are_refused(self, source: Any) -> None:
        with pytest.raises(TypeError, match=r"`source` must be .*trajectories"):
            load_demonstrations(source)

    @pytest.mark.parametrize(
        "other", [np.ones((3, 4)), DictObs({"a": np.arange(3.0)})], ids=["shape", "keys"]
    )
    def test_trajectories_of_different_kinds(self, other: Any) -> None:
        mixed = [*make_episodes([2]).split(), Trajectory(other, np.zeros((2, 2)), None, True)]
        with pytest.raises(ValueError, match="same kind and shape"):
            load_demonstrations(mixed)

    def test_no_trajectories(self) -> None:
        with pytest.raises(ValueError, match="at least one trajectory"):
            load_demonstrations([])


class TestArrays:
    """Findings that no format decides: they are made through `.npz`, the simplest."""

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"obs": None}, "must have an array named obs or observations .*, found"),
            ({"observations": np.ones((4, 2))}, "has obs and observations, which mean the same"),
            ({"acts": np.array([[1], [1], [np.nan], [1]])}, "in 1 of 4 rows, the first in row 2"),
            ({"obs": np.full((4, 2), 1e300)}, "infinite values in 4 of 4 rows"),
            ({"next_obs": np.ones((4, 3))}, r"`next_obs` must be as `obs`.* found .*\(4, 3\)"),
            ({"dones": [0, 1]}, r"`dones` must have one flag for each of 4 rows, found .*\(2,\)"),
            ({"dones": [0, 0, 0, 2]}, "`dones` must hold only zeros and ones"),
            ({"timeouts": ["a"] * 4}, "'timeouts' must hold real numbers .*<U1"),
            (
                {**NO_NEXT, "final_obs": np.ones((4, 2)), "dones": None},
                r"each of 1 episodes.* found .*\(4, 2\).* and at the last row",
            ),
            ({**NO_NEXT, "final_obs": np.array([[1.0, np.nan]])}, "`final_obs` must be finite"),
            (
                {"final_obs": np.ones((1, 2)), "next_obs": np.ones((4, 2))},
                "has `next_obs` and `final_obs`, .*; keep one",
            ),
        ],
    )
    def test_unusable_arrays(self, arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
        path = save(tmp_path, **arrays)
        with pytest.raises(ValueError, match=message) as caught:
            load_demonstrations(path)
        assert str(path) in str(caught.value)

    def test_a_terminal_state_at_the_time_limit_is_not_cut_short(self, tmp_path: Path) -> None:
        path = save(tmp_path, dones=None, terminals=[0, 1, 0, 0], timeouts=[0, 1, 0, 1])
        loaded = load_demonstrations(path)
        assert loaded.dones.tolist() == [False, True, False, True]
        assert loaded.infos.tolist() == [{}, {}, {}, {TRUNCATED: True}]


class TestOnDisk:
    @quick
    @given(data=episodes())
    def test_observations_and_actions_stay_where_they_are(self, data: Episodes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            loaded = load_demonstrations(write_npy_directory(Path(folder), data), in_memory=False)
            assert type(loaded) is TransitionsMinimal
            for found, expected in ((loaded.obs, data.obs), (loaded.acts, data.acts)):
                assert isinstance(found, np.memmap)
                assert_same(found, expected)
            assert loaded.infos.tolist() == [{}] * len(data.acts)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({}, r"named obs or observations .*, found \[\]"),
            ({"obs": np.eye(2), "acts": np.array([0, np.nan])}, "`acts` must be finite.*in row 1"),
            (
                {"obs": np.eye(2), "acts": np.eye(2, dtype=">f4")},
                "`acts` must be in .* byte order, .* >f4",
            ),
        ],
    )
    def test_unusable_arrays(
        self, arrays: dict[str, np.ndarray], message: str, tmp_path: Path
    ) -> None:
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=message) as caught:
            load_demonstrations(tmp_path, in_memory=False)
        assert str(tmp_path) in str(caught.value)

    def test_the_advice_for_files_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = make_episodes([5])
        path = write_npz(tmp_path, data)
        with pytest.raises(ValueError, match=r"needs a directory of \.npy files.*found") as caught:
            load_demonstrations(path, in_memory=False)
        monkeypatch.chdir(tmp_path)
        (arguments,) = re.findall("`python -m zipfile (.*)`", str(caught.value))
        arguments = arguments.replace("FILE.npz", path.name)
        zipfile.main(arguments.replace("DIRECTORY", "demonstrations").split())
        loaded = load_demonstrations("./demonstrations", in_memory=False)
        assert_same(loaded.obs, data.obs)
        assert_same(loaded.acts, data.acts)

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            (make_episodes([2]).split(), ValueError, "found list"),
            ("none.npy", FileNotFoundError, "no demonstration file or directory at"),
        ],
    )
    def test_only_existing_paths_can_stay_on_disk(
        self, source: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            load_demonstrations(source, in_memory=False)


class TestPaths:
    def test_the_content_decides_and_not_the_suffix(self, tmp_path: Path) -> None:
        path = write_npz(tmp_path, make_episodes([3])).rename(tmp_path / "data.csv")
        assert len(load_demonstrations(path)) == 3
        path.write_text("1,2,3")
        known = r"no format known here \(\.npz, \.pt, D4RL's HDF5.*directory of \.npy files"
        with pytest.raises(ValueError, match=rf"{known}.*begins with b'1,2,3'"):
            load_demonstrations(path)

    def test_home_and_capitals(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        write_npz(tmp_path, make_episodes([3])).rename(tmp_path / "DATA.NPZ")
        assert len(load_demonstrations("~/DATA.NPZ")) == 3

    def test_a_bundled_name_wins_over_a_file_unless_written_as_a_path(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loading, "_bundled", tmp_path / "bundled")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bundled").mkdir()
        write_npz(tmp_path, make_episodes([3])).rename(tmp_path / "bundled" / "tiny.npz")
        (tmp_path / "bundled" / "tiny.json").write_text("{}")
        assert bundled_names() == ("tiny",)
        serialize.save("tiny", make_episodes([2]).split())
        assert len(load_demonstrations("tiny")) == 3
        assert len(load_demonstrations("./tiny")) == 2
        assert len(load_demonstrations(Path("tiny"))) == 2
        with pytest.raises(ValueError, match=r"'tinny' must be .* one of \['tiny'\], or a path"):
            load_demonstrations("tinny")


class TestPaperFiles:
    def test_maze_needs_no_repair(self, paper_data: Path) -> None:
        loaded = load_demonstrations(paper_data / "maze.pt")
        assert loaded.obs.shape == (18525, 6)
        assert loaded.acts.shape == (18525, 2)
        assert loaded.dones.sum() == 100

    @pytest.mark.parametrize(
        ("name", "share"), [("walker.pt", "96.7%"), ("halfcheetah.pt", "84.7%")]
    )
    def test_successors_are_rebuilt(self, name: str, share: str, paper_data: Path) -> None:
        loaded = load_demonstrations(paper_data / name)
        assert np.flatnonzero(loaded.dones).tolist() == [999, 1999, 2999, 3999, 4999]
        inside = ~loaded.dones[:-1]
        np.testing.assert_array_equal(loaded.next_obs[:-1][inside], loaded.obs[1:][inside])
        np.testing.assert_array_equal(loaded.next_obs[loaded.dones], loaded.obs[loaded.dones])
        assert load_demonstrations(loaded) is loaded
        with pytest.warns(DemonstrationWarning, match=f"of 5000 rows .{share}"):
            validate_demonstrations(loaded, action_space=spaces.Box(-1, 1, (6,)))
