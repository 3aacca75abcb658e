"""Cards of demonstration sets: what they must hold, and whether the sets are as they say."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Payload

from sb3_diffbc.cli.__main__ import main
from sb3_diffbc.demonstrations import bundled_names, check_card, loading, read_card


def make_arrays() -> dict[str, np.ndarray]:
    """Three episodes of 2, 5 and 3 steps; the last is cut short."""
    rng = np.random.default_rng(0)
    return {
        "obs": rng.normal(size=(10, 4)).astype(np.float32),
        "acts": rng.normal(size=(10, 2)).astype(np.float32),
        "dones": np.isin(np.arange(10), [1, 6]),
        "timeouts": np.arange(10) == 9,
        "final_obs": rng.normal(size=(3, 4)).astype(np.float32),
        "episode": np.array([0, 1, 3], dtype=np.int32),
    }


def make_set(path: Path, arrays: dict[str, np.ndarray] | None = None, /, **fields: Any) -> Path:
    """Writes a set and its card.

    Args:
        path: the ``.npz``.
        arrays: what the set holds; the sound arrays that the card describes, where None.
        **fields: what the card says that differs from the truth or is added to it.
    """
    described = make_arrays()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **(described if arrays is None else arrays))  # type: ignore[arg-type]
    card = {
        "name": path.stem,
        "task": "Toy",
        "env_id": "sb3_diffbc/Toy-v0",
        "env_kwargs": {},
        "expert": "scripted: goes there",
        "expert_score": {"metric": "success", "mean": 0.75},
        "score": {"metric": "success", "mean": 1.0, "episodes": 3},
        "kept": "successful episodes only",
        "seed": 0,
        "episodes": 3,
        "episodes_tried": 4,
        "transitions": 10,
        "episode_length": {"mean": 3.33, "min": 2, "max": 5},
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype), "meaning": f"the {name}"}
            for name, array in described.items()
        },
        "command": "python -m somewhere.toy",
        "versions": {"python": "3.11.7"},
        "licence": "MIT",
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        **fields,
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2), encoding="utf-8")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "toy.npz"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the place of the bundled sets."""
    monkeypatch.setattr(loading, "_bundled", tmp_path / "bundled")
    return tmp_path / "bundled"


def only_finding(path: Path) -> str:
    (finding,) = check_card(path)
    return finding


class TestSources:
    def test_a_sound_set_by_each_way_to_name_it(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(bundle))
        path = make_set(bundle / "toy.npz", action_noise=0.5)
        for source in ("toy", path, str(path), path.with_suffix(".json"), "~/toy.npz"):
            assert check_card(source) == []
            card = read_card(source).model_dump()
            assert card == json.loads(path.with_suffix(".json").read_text())

    @pytest.mark.parametrize("read", [read_card, check_card])
    def test_unknown_names_and_other_objects(
        self, read: Callable[[Any], Any], bundle: Path
    ) -> None:
        make_set(bundle / "toy.npz")
        for source in ("tyo", "toy.pt", "./toy", ""):
            with pytest.raises(ValueError, match=r"name .* one of \['toy'\], or a path"):
                read(source)
        for other in (None, b"toy"):
            with pytest.raises(TypeError, match="`source` must be the name of a bundled set or"):
                read(other)


class TestCard:
    def test_without_a_card_or_a_set(self, path: Path) -> None:
        make_set(path).unlink()
        assert str(path) in only_finding(path)
        path.with_suffix(".json").unlink()
        assert str(path.with_suffix(".json")) in only_finding(path)
        with pytest.raises(FileNotFoundError):
            read_card(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b'{"name": "\xff"}', "invalid JSON"),
            (b"[" * 100_000, "invalid JSON"),
            (pickle.dumps({"name": "toy"}), "toy.json: card: invalid JSON"),
            (b"{}", r"card\.name: field required, found {}; .*; and 15 more"),
        ],
    )
    def test_damaged_ones(self, content: bytes, message: str, path: Path) -> None:
        make_set(path).with_suffix(".json").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_card(path)
        assert re.search(message, only_finding(path))

    @settings(max_examples=50, deadline=None)
    @given(data=st.data())
    def test_no_damage_raises(self, data: st.DataObject) -> None:
        anything = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda part: (
                st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3)
            ),
            max_leaves=5,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = make_set(Path(folder) / "toy.npz")
            card = json.loads(path.with_suffix(".json").read_text())
            place: Any = card
            key = data.draw(st.sampled_from(sorted(card)))
            while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
                place = place[key]
                key = data.draw(st.sampled_from(sorted(place)))
            place[key] = data.draw(anything)
            path.with_suffix(".json").write_text(json.dumps(card))
            findings = check_card(path)
        assert all(isinstance(finding, str) and finding for finding in findings)


class TestSet:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"name": "other"}, "`name` 'other', the file has 'toy'"),
            ({"file": "other.npz"}, "`file` 'other.npz', the file has 'toy.npz'"),
            ({"sha256": "0" * 64}, "`sha256` '000"),
            ({"transitions": 11}, "`transitions` 11, the file has 10"),
            ({"episodes": 4}, "`episodes` 4, the file has 3"),
            ({"episode_length": {"mean": 3.33, "min": 1, "max": 5}}, "`episode_length`.* min=2"),
            ({"episode_length": {"mean": 3.35, "min": 2, "max": 5}}, "`episode_length`.*mean=3.33"),
        ],
    )
    def test_other_facts_than_stated(
        self, fields: dict[str, Any], message: str, path: Path
    ) -> None:
        assert re.search(message, only_finding(make_set(path, **fields)))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"episode": None}, "`arrays` ['acts', 'dones'"),
            ({"episode": np.array([[0, 1, 3]], np.int32)}, "the file has ([1, 3], 'int32')"),
            ({"episode": np.array([0, 1, 3], np.int16)}, "the file has ([3], 'int16')"),
        ],
    )
    def test_other_arrays_than_described(
        self, changes: dict[str, Any], message: str, path: Path
    ) -> None:
        arrays = {k: v for k, v in {**make_arrays(), **changes}.items() if v is not None}
        assert message in only_finding(make_set(path, arrays))

    @pytest.mark.parametrize("name", ["obs", "unused"])
    def test_pickled_objects_are_refused_and_not_touched(
        self, name: str, path: Path, tmp_path: Path
    ) -> None:
        trace = tmp_path / "attacked"
        make_set(path, {**make_arrays(), name: np.array([Payload(trace)], dtype=object)})
        assert "holds pickled Python objects" in only_finding(path)
        assert not trace.exists()

    def test_what_the_loader_refuses(self, path: Path) -> None:
        arrays = make_arrays()
        arrays["final_obs"] = arrays["final_obs"][:2]
        assert "`final_obs` must have one observation for" in only_finding(make_set(path, arrays))


class TestCommand:
    def test_it_lists_the_bundled_sets(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demos", "list"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert [line.split()[0] for line in out.splitlines()] == list(bundled_names())

    def test_findings_fail_and_say_of_which_set(
        self, bundle: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        make_set(bundle / "sound.npz")
        make_set(bundle / "toy.npz", transitions=11)
        assert main(["demos", "check"]) == 1
        out, err = capsys.readouterr()
        assert out.startswith("sound: ")
        assert err == "toy: the card says `transitions` 11, the file has 10\n"
