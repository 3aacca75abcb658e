"""What each format's own library wrote is read, and trained on. See files/make_files.py."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch as th
from gymnasium import spaces
from imitation.data.huggingface_utils import trajectories_to_dataset
from imitation.data.types import DictObs, Trajectory, TrajectoryWithRew, Transitions
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer

from sb3_diffbc import DemonstrationWarning, load_demonstrations

FILES = Path(__file__).parent / "files"
LENGTHS = (3, 5, 4)
STEPS = [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]
POSITION = np.array([[e + 0.05 * step**2, -0.1 * step * e] for e, step in STEPS], np.float32)
TIME = np.array([[step] for _, step in STEPS], np.float32)
ACTS = np.array([[0.05 * (2 * step + 1), -0.1 * e] for e, step in STEPS], np.float32)
ENDS = np.cumsum(LENGTHS) - 1
PARTS = {"position": POSITION, "time": TIME}
BOTH = np.concatenate([POSITION, TIME], axis=1)
LEROBOT = {"position": "observation.state", "time": "observation.environment_state"}


@pytest.fixture(autouse=True)
def no_unexpected_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DemonstrationWarning)
        yield


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        assert isinstance(found, DictObs)
        assert list(found.keys()) == list(expected)
        return all(same(found.get(key), expected[key]) for key in expected)
    assert isinstance(found, np.ndarray)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-6)
    return True


def check(loaded: Transitions, obs: Any) -> None:
    assert same(loaded.obs, obs)
    assert same(loaded.acts, ACTS)
    assert np.flatnonzero(loaded.dones).tolist() == ENDS.tolist()
    if isinstance(loaded.next_obs, np.ndarray):
        before = np.setdiff1d(np.arange(len(STEPS)), ENDS)
        np.testing.assert_allclose(loaded.next_obs[before], obs[before + 1], atol=1e-6)


MINARI_PARTS = {key: PARTS[key] for key in sorted(PARTS)}
FRAMES = {key: PARTS[name] for name, key in LEROBOT.items()}
CASES: list[tuple[str, Any, Any]] = [
    ("minari_array", None, BOTH),
    ("minari_array/data", None, BOTH),
    ("minari_array/data/main_data.hdf5", None, BOTH),
    ("minari_dict", None, MINARI_PARTS),
    ("minari_dict", ["time", "position"], BOTH[:, [2, 0, 1]]),
    ("minari_dict", {"whole": ["position", "time"], "time": "time"}, {"whole": BOTH, "time": TIME}),
    ("robomimic.hdf5", None, MINARI_PARTS),
    ("robomimic.hdf5", ["position", "time"], BOTH),
    ("robomimic.hdf5", "position", POSITION),
    ("lerobot", None, FRAMES),
    ("lerobot", list(LEROBOT.values()), BOTH),
    ("lerobot", LEROBOT, PARTS),
    ("lerobot_columns", None, FRAMES),
    ("lerobot_columns", list(LEROBOT.values()), BOTH),
]


@pytest.mark.parametrize(("name", "obs_keys", "obs"), CASES)
def test_files_of_their_own_libraries(name: str, obs_keys: Any, obs: Any) -> None:
    for source in (FILES / name, str(FILES / name)):
        check(load_demonstrations(source, obs_keys=obs_keys), obs)


def test_minari_gives_the_true_successors() -> None:
    loaded = load_demonstrations(FILES / "minari_array")
    np.testing.assert_allclose(
        loaded.next_obs, loaded.obs + np.insert(ACTS, 2, 1, axis=1), atol=1e-6
    )
    truncated = [bool(info.get("TimeLimit.truncated")) for info in loaded.infos]
    assert np.flatnonzero(truncated).tolist() == [ENDS[1]]


def test_several_files_of_lerobot_are_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(FILES / "lerobot", folder)
    file = folder / "data" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(file)
    file.unlink()
    for name, rows in (("chunk-000/file-999", slice(0, 8)), ("chunk-001/file-000", slice(8, 12))):
        (folder / "data" / name).parent.mkdir(exist_ok=True)
        pq.write_table(table[rows], folder / "data" / f"{name}.parquet")
    check(load_demonstrations(folder, obs_keys=list(LEROBOT.values())), BOTH)


def test_images_of_lerobot_are_not_read_and_this_is_said(tmp_path: Path) -> None:
    shutil.copytree(FILES / "lerobot", tmp_path / "set")
    info = tmp_path / "set" / "meta" / "info.json"
    content = json.loads(info.read_text())
    content["features"]["observation.images.top"] = {"dtype": "video", "shape": [9, 9, 3]}
    info.write_text(json.dumps(content))
    with pytest.warns(DemonstrationWarning, match=r"not read, here \['observation.images.top'\]"):
        load_demonstrations(tmp_path / "set")
    load_demonstrations(tmp_path / "set", obs_keys="observation.state")
    with pytest.raises(ValueError, match=r"no observation 'observation.images.top'.*state"):
        load_demonstrations(tmp_path / "set", obs_keys=["observation.images.top"])


def test_encoded_images_of_minari_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        encoded = h5py.vlen_dtype(np.uint8)
        file.create_dataset("episode_0/observations", shape=(3,), dtype=encoded)
        file["episode_0/actions"] = np.zeros((2, 1))
    with pytest.raises(ValueError, match=r"'observations' must hold real numbers.*JPEG"):
        load_demonstrations(tmp_path / "a.hdf5")


@pytest.mark.parametrize("name", ["robomimic.hdf5", "minari_dict", "lerobot", "lerobot_columns"])
def test_a_key_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=r"no observation 'velocity', found \[.*'\]") as caught:
        load_demonstrations(FILES / name, obs_keys=["velocity"])
    assert str(FILES / name) in str(caught.value)
    with pytest.raises(ValueError, match="array named torque, found"):
        load_demonstrations(FILES / name, action_key="torque")


@pytest.mark.parametrize("keys", [3, [], {}, [None], {"a": []}])
def test_keys_of_another_kind(keys: Any) -> None:
    with pytest.raises(TypeError, match="`obs_keys` must be a name, a list of names"):
        load_demonstrations(FILES / "robomimic.hdf5", obs_keys=keys)
    with pytest.raises(TypeError, match="`action_key` must be a name"):
        load_demonstrations(FILES / "robomimic.hdf5", action_key=3)  # type: ignore[call-overload]


def test_a_source_of_two_formats(tmp_path: Path) -> None:
    shutil.copy(FILES / "robomimic.hdf5", tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        file["observations"] = np.eye(2)
    with pytest.raises(ValueError, match=r"more than one format \(D4RL's HDF5, robomimic's HDF5\)"):
        load_demonstrations(tmp_path / "a.hdf5")
    shutil.copytree(FILES / "lerobot", tmp_path / "set")
    shutil.copytree(FILES / "lerobot_columns", tmp_path / "set", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="LeRobot's directory, a directory written by imitation"):
        load_demonstrations(tmp_path / "set")


class TestDatasets:
    def test_imitations_trajectories(self) -> None:
        trajectories = [
            TrajectoryWithRew(
                np.concatenate([BOTH[[*rows]], BOTH[[rows[-1]]] + 1]),
                ACTS[[*rows]],
                np.array([{}] * len(rows)),
                True,
                np.zeros(len(rows)),
            )
            for rows in (range(end - n + 1, end + 1) for end, n in zip(ENDS, LENGTHS, strict=True))
        ]
        check(load_demonstrations(trajectories_to_dataset(trajectories)), BOTH)

    def test_rows_in_the_order_of_the_dataset(self) -> None:
        columns = {"obs": BOTH[::-1].tolist(), "actions": ACTS.tolist(), "done": np.eye(12)[-1]}
        dataset = datasets.Dataset.from_dict(columns).with_format("torch")
        loaded = load_demonstrations(dataset.select(range(11, -1, -1)))
        assert same(loaded.obs, BOTH)
        assert np.flatnonzero(loaded.dones).tolist() == [0]

    def test_numbers_become_vectors_of_one(self) -> None:
        columns = {"observation.state": [1.0, 2.0], "action": [0.5, 1.0], "note": ["a", "b"]}
        loaded = load_demonstrations(datasets.Dataset.from_dict(columns))
        assert same(loaded.obs, np.array([[1.0], [2.0]], np.float32))
        assert same(loaded.acts, np.array([[0.5], [1.0]], np.float32))
        with pytest.raises(ValueError, match=r"column 'note' must hold numbers.*string"):
            load_demonstrations(datasets.Dataset.from_dict(columns), action_key="note")

    def test_a_dictionary_of_splits_is_no_dataset(self) -> None:
        split = datasets.Dataset(pa.table({"obs": [1.0], "acts": [1.0]}))
        with pytest.raises(ValueError, match=r"found \['train'\]"):
            load_demonstrations(datasets.DatasetDict({"train": split}))


class TestReplayBuffers:
    @staticmethod
    def fill(buffer: ReplayBuffer, n: int, keyed: bool = False) -> None:
        """Adds steps of two environments; the observation says which environment and step."""
        for step in range(n):
            obs = np.array([[env, step] for env in (0, 1)], np.float32)
            ends = np.array([step % 3 == 2, step % 4 == 3])
            infos: Any = [{"TimeLimit.truncated": bool(end)} for end in (False, ends[1])]
            arrays = (obs, obs + np.array([0, 1]))
            parts = [{"a": array, "b": array[:, :1]} for array in arrays] if keyed else arrays
            buffer.add(*parts, np.full((2, 1), step / 10), np.zeros(2), ends, infos)

    @pytest.mark.parametrize("n", [7, 20, 25])
    @pytest.mark.parametrize("kind", ["plain", "frugal", "keyed"])
    def test_each_environment_in_order(self, kind: str, n: int) -> None:
        box = spaces.Box(-1, 100, (2,), np.float32)
        space: Any = box
        if kind == "keyed":
            space = spaces.Dict({"a": box, "b": spaces.Box(-1, 1, (1,), np.float32)})
        buffer = (DictReplayBuffer if kind == "keyed" else ReplayBuffer)(
            20,  # steps of both environments
            space,
            spaces.Box(-1, 1, (1,), np.float32),
            n_envs=2,
            optimize_memory_usage=kind == "frugal",
            handle_timeout_termination=kind != "frugal",
        )
        self.fill(buffer, n, kind == "keyed")
        loaded = load_demonstrations(buffer)
        obs: Any = loaded.obs.get("a") if kind == "keyed" else loaded.obs
        next_obs: Any = loaded.next_obs.get("a") if kind == "keyed" else loaded.next_obs
        # A buffer without successors of its own has lost the first step when it is full.
        steps = np.arange(max(0, n - 10) + (kind == "frugal" and n >= 10), n)
        assert obs.tolist() == [[env, step] for env in (0, 1) for step in steps]
        np.testing.assert_allclose(loaded.acts[:, 0], obs[:, 1] / 10)
        np.testing.assert_array_equal(next_obs, obs + np.array([0, 1]))
        ends = np.where(obs[:, 0] == 0, obs[:, 1] % 3 == 2, obs[:, 1] % 4 == 3)
        # What follows an environment's last step is another's.
        is_last = obs[:, 1] == n - 1
        np.testing.assert_array_equal(loaded.dones, ends | is_last)
        if kind != "frugal":
            truncated = [bool(info.get("TimeLimit.truncated")) for info in loaded.infos]
            expected = np.where(obs[:, 0] == 1, ends | is_last, is_last & ~ends)
            np.testing.assert_array_equal(truncated, expected)
        if kind == "keyed":
            assert load_demonstrations(buffer, obs_keys=["b", "a"]).obs.shape[1:] == (3,)

    def test_the_scale_of_actions_is_not_known(self) -> None:
        box = spaces.Box(-2, 2, (1,), np.float32)
        buffer = ReplayBuffer(20, spaces.Box(-1, 9, (2,), np.float32), box, n_envs=2)
        self.fill(buffer, 3)
        with pytest.warns(DemonstrationWarning, match=r"scaled to \[-1, 1\].*unscale_action"):
            load_demonstrations(buffer)


class TestDictionaries:
    def test_arrays_and_tensors(self) -> None:
        arrays = {"obs": BOTH.astype(np.float64), "acts": th.from_numpy(ACTS), "extra": "text"}
        loaded = load_demonstrations({**arrays, "dones": np.isin(np.arange(12), ENDS)})
        check(loaded, BOTH)

    def test_observations_by_key(self) -> None:
        ends = np.isin(np.arange(12), ENDS)
        nested = {"observations": PARTS, "actions": ACTS, "done": ends}
        flat = {**PARTS, "torque": ACTS, "done": ends}
        check(load_demonstrations(nested), PARTS)
        check(load_demonstrations(nested, obs_keys=["position", "time"]), BOTH)
        for keys, obs in ((["position", "time"], BOTH), ({key: key for key in PARTS}, PARTS)):
            check(load_demonstrations(flat, obs_keys=keys, action_key="torque"), obs)

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({}, r"must have an array named obs .*found \[\]"),
            ({"obs": 1, "acts": ACTS}, "'obs' must be an array"),
            ({"obs": [[1.0]], "acts": ACTS}, "'obs' must be an array"),
            ({"obs": {}, "acts": ACTS}, "found an empty dictionary"),
            ({"obs": BOTH[1:], "acts": ACTS}, "same length.*11 and 12"),
            ({"obs": BOTH, "acts": ACTS * np.nan}, "`acts` must be finite"),
        ],
    )
    def test_unusable(self, arrays: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_demonstrations(arrays)

    def test_trajectories_by_key(self) -> None:
        obs = DictObs({"position": np.zeros((3, 2)), "time": np.arange(3.0)[:, None]})
        trajectory = Trajectory(obs, np.zeros((2, 1)), None, True)
        assert load_demonstrations(trajectory, obs_keys="time").obs.tolist() == [[0], [1]]
