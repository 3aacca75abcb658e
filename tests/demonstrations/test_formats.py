"""Files that are damaged, of the wrong kind, or made to attack whoever reads them."""

from __future__ import annotations

import builtins
import pickle
import zipfile
from pathlib import Path
from typing import Any

import datasets
import h5py
import jsonpickle
import numpy as np
import pyarrow as pa
import pytest
import torch as th
from imitation.data import serialize
from imitation.data.types import Trajectory, TrajectoryWithRew
from toys import Payload

from sb3_diffbc.demonstrations import load_demonstrations


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "attacked"


def trajectories(n: int = 2, length: int = 3, info: Any = None) -> list[Trajectory]:
    rng = np.random.default_rng(0)
    return [
        TrajectoryWithRew(
            obs=rng.normal(size=(length + 1, 2)).astype(np.float32),
            acts=rng.normal(size=(length, 1)).astype(np.float32),
            infos=np.array([info or {}] * length),
            terminal=True,
            rews=np.zeros(length),
        )
        for _ in range(n)
    ]


def refused(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_demonstrations(path)
    assert str(path) in str(caught.value)


class TestPayloads:
    def test_the_payload_is_live(self, trace: Path) -> None:
        pickle.loads(pickle.dumps(Payload(trace)))
        assert trace.exists()
        trace.unlink()
        jsonpickle.decode(jsonpickle.encode({"x": Payload(trace)}))
        assert trace.exists()

    def test_object_array_that_is_not_needed_is_not_touched(
        self, tmp_path: Path, trace: Path
    ) -> None:
        path = tmp_path / "a.npz"
        infos = np.array([Payload(trace)] * 2, dtype=object)
        obs = np.eye(2)
        np.savez(path, obs=obs, next_obs=obs + 1, acts=obs, dones=[0, 1], infos=infos)
        assert load_demonstrations(path).infos.tolist() == [{}, {}]
        assert not trace.exists()

    def test_object_in_torch_file(self, tmp_path: Path, trace: Path) -> None:
        path = tmp_path / "a.pt"
        content = {"obs": th.ones(2, 2), "actions": Payload(trace)}
        for is_zip in (True, False):
            th.save(content, path, _use_new_zipfile_serialization=is_zip)
            refused(path, "more than a dictionary of tensors.*can run code")
        path.write_bytes(pickle.dumps(Payload(trace)))
        refused(path, "pickled Python objects")
        assert not trace.exists()

    def test_torch_program(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt"
        th.save({"obs": th.ones(2, 2), "actions": th.ones(2)}, path)
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("a/constants.pkl", b"")
        refused(path, "damaged, or holds more")

    def test_python_objects_in_infos_of_a_directory(self, tmp_path: Path, trace: Path) -> None:
        info = {"steps": 3, "x": Payload(trace), "TimeLimit.truncated": True}
        path = tmp_path / "data"
        serialize.save(path, trajectories(info=info))
        assert load_demonstrations(path).infos.tolist() == [{}] * 6
        assert not trace.exists()

    def test_python_objects_in_infos_of_what_imitation_loads(
        self, tmp_path: Path, trace: Path
    ) -> None:
        path = tmp_path / "data"
        serialize.save(path, trajectories(info={"x": Payload(trace)}))
        loaded = load_demonstrations(serialize.load(path))
        assert loaded.infos.tolist() == [{}] * 6
        assert not trace.exists()

    def test_pickle_bytes_in_hdf5(self, tmp_path: Path, trace: Path) -> None:
        path = tmp_path / "a.hdf5"
        with h5py.File(path, "w") as file:
            file["observations"] = np.void(pickle.dumps(Payload(trace)))
            file["actions"] = np.ones((2, 1))
        refused(path, "must hold real numbers")
        assert not trace.exists()

    @pytest.mark.parametrize("in_memory", [True, False])
    def test_objects_and_pickles_in_a_directory_of_arrays(
        self, in_memory: bool, tmp_path: Path, trace: Path
    ) -> None:
        np.save(tmp_path / "obs.npy", np.eye(1))
        path = tmp_path / "acts.npy"
        contents = [pickle.dumps(Payload(trace)), b"no array", b""]
        np.save(path, np.array([Payload(trace)], dtype=object), allow_pickle=True)
        for content in [path.read_bytes(), *contents]:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"acts.npy is no NumPy array"):
                load_demonstrations(tmp_path, in_memory=in_memory)
        with path.open("wb") as file:
            np.savez(file, acts=np.eye(1))
        with pytest.raises(ValueError, match=r"acts.npy is no NumPy array"):
            load_demonstrations(tmp_path, in_memory=in_memory)
        assert not trace.exists()


class TestOlderImitationFormats:
    @pytest.mark.filterwarnings("ignore:Loading old:DeprecationWarning")
    @pytest.mark.parametrize("name", ["old.npz", "old.pkl"])
    def test_the_advice_in_the_refusal_works(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, old = tmp_path / name, trajectories()
        if path.suffix == ".npz":
            joined = {
                field: np.concatenate([getattr(t, field) for t in old])
                for field in ("obs", "acts", "infos", "rews")
            }
            indices = np.cumsum([len(t) for t in old[:-1]])
            np.savez(path, terminal=[t.terminal for t in old], indices=indices, **joined)
        else:
            path.write_bytes(pickle.dumps(old))
        with pytest.raises(ValueError, match="older versions of imitation") as caught:
            load_demonstrations(path)
        monkeypatch.chdir(tmp_path)
        advice = [line.strip() for line in str(caught.value).splitlines()[1:]]
        exec("\n".join(advice))
        loaded = load_demonstrations("./demonstrations")
        np.testing.assert_array_equal(loaded.acts, np.concatenate([t.acts for t in old]))


def save_good(path: Path) -> None:
    """Writes a sound file of the format that the suffix names."""
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    arrays = {"obs": obs, "next_obs": obs + 1, "actions": obs, "done": np.eye(50)[-1]}
    if path.suffix == ".npz":
        np.savez_compressed(path, **arrays)
    elif path.suffix == ".pt":
        th.save({name: th.from_numpy(array) for name, array in arrays.items()}, path)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
    else:
        serialize.save(path, trajectories())


class TestDamage:
    @pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.h5"])
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
    def test_truncated_file(self, name: str, share: float, tmp_path: Path) -> None:
        path = tmp_path / name
        save_good(path)
        assert len(load_demonstrations(path)) == 50
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        refused(path, "cannot be read|damaged")

    def test_something_else_in_the_place_of_an_array(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, acts=np.eye(2))
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("obs", b"no array")
        refused(path, "must have an array named obs .*, found \\['acts', 'obs'\\]")

    def test_torch_file_without_a_dictionary(self, tmp_path: Path) -> None:
        th.save(th.ones(3), tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "must hold a dictionary of tensors, found Tensor")
        th.save({"obs": [1.0], "actions": th.ones(1)}, tmp_path / "b.pt")
        refused(tmp_path / "b.pt", "'obs' must be an array, found something else")
        th.save({"obs": th.eye(2).to_sparse(), "acts": th.ones(2)}, tmp_path / "c.pt")
        refused(tmp_path / "c.pt", "cannot be read")

    def test_hdf5_with_groups_names_what_it_found(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file["episode/observations"] = np.ones((3, 2))
        refused(tmp_path / "a.hdf5", r"named obs or observations .*, found \['episode'\]")
        with h5py.File(tmp_path / "b.hdf5", "w") as file:
            file["observations/state/deep"] = np.ones((3, 2))
        refused(tmp_path / "b.hdf5", "'state' must be an array")

    def test_hdf5_without_h5py_says_how_to_install_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_good(tmp_path / "a.h5")
        import_module = builtins.__import__

        def without_h5py(name: str, *args: Any) -> Any:
            if name == "h5py":
                raise ImportError(name)
            return import_module(name, *args)

        monkeypatch.setattr(builtins, "__import__", without_h5py)
        with pytest.raises(ImportError, match="pip install h5py"):
            load_demonstrations(tmp_path / "a.h5")

    def test_directory_of_something_else(self, tmp_path: Path) -> None:
        refused(tmp_path, r"no format known here .*found directory, holding \[\]")
        (tmp_path / "state.json").write_text("[]")
        refused(tmp_path, "cannot be read")

    @pytest.mark.parametrize("name", ["data-00000-of-00001.arrow", "state.json"])
    def test_directory_with_a_damaged_file(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / "data"
        save_good(path)
        content = (path / name).read_bytes()
        for damaged in (content[: len(content) // 2], b"nothing of the kind"):
            (path / name).write_bytes(damaged)
            refused(path, "cannot be read")

    @staticmethod
    def save_columns(path: Path, columns: dict[str, Any]) -> None:
        datasets.Dataset(pa.table(columns)).save_to_disk(str(path))

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"text": ["a"]}, r"must have an array named obs .*found \['text'\]"),
            (
                {"obs": [[1.0, 2.0]], "acts": [[1, 2]], "terminal": [True]},
                "one observation more than actions",
            ),
            (
                {
                    "obs": [[1.0]],
                    "acts": pa.array([[]], pa.list_(pa.int64())),
                    "terminal": [True],
                },
                "trajectories of at least one action",
            ),
            (
                {"obs": [[[1.0], [1.0, 2.0]]], "acts": [[1]], "terminal": [True]},
                r"rows differ in their sizes, \[1, 2\]",
            ),
            ({"obs": [[1.0, None]], "acts": [[1]], "terminal": [True]}, "1 values are missing"),
            ({"obs": [1.0], "acts": [[1]], "terminal": [True]}, "cannot be read"),
        ],
    )
    def test_directory_with_unusable_columns(
        self, columns: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        self.save_columns(tmp_path / "data", columns)
        refused(tmp_path / "data", message)

    def test_old_pyarrow_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save_good(tmp_path / "data")
        monkeypatch.setattr(pa, "__version__", "14.0.0")
        with pytest.raises(ImportError, match=r"needs pyarrow 14\.0\.1"):
            load_demonstrations(tmp_path / "data")
