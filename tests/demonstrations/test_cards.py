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


def make_set(
    path: Path,
    arrays: dict[str, np.ndarray] | None = None,
    /,
    described: dict[str, np.ndarray] | None = None,
    **fields: Any,
) -> Path:
    """Writes a set and its card.

    Args:
        path: The `.npz`.
        arrays: What the set holds; sound arrays by default.
        described: The arrays that the card describes, if they are others.
        **fields: What the card says that differs from the truth or is added to it.
    """
    arrays = make_arrays() if arrays is None else arrays
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
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
            for name, array in (described or arrays).items()
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
    folder = tmp_path / "bundled"
    folder.mkdir()
    monkeypatch.setattr(loading, "_bundled", folder)
    return folder


def only_finding(path: Path) -> str:
    (finding,) = check_card(path)
    return finding


class TestBundledSets:
    @pytest.mark.parametrize("name", bundled_names())
    def test_each_is_what_its_card_says(self, name: str) -> None:
        assert check_card(name) == []

    def test_there_are_some_and_they_are_small(self) -> None:
        sizes = [loading.bundled_path(name).stat().st_size for name in bundled_names()]
        assert sizes
        assert sum(sizes) < 12e6

    def test_no_card_is_without_its_set(self) -> None:
        folder = loading.bundled_path("any").parent
        assert {card.stem for card in folder.glob("*.json")} == set(bundled_names())


class TestSources:
    def test_a_sound_set_by_each_way_to_name_it(self, bundle: Path) -> None:
        path = make_set(bundle / "toy.npz")
        for source in ("toy", path, str(path), path.with_suffix(".json")):
            assert check_card(source) == []
            assert read_card(source).name == "toy"

    def test_home_and_capitals(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        make_set(tmp_path / "TOY.npz", file="TOY.NPZ").rename(tmp_path / "TOY.NPZ")
        assert check_card("~/TOY.NPZ") == []

    @pytest.mark.parametrize("read", [read_card, check_card])
    def test_unknown_names(self, read: Callable[[Any], Any], bundle: Path) -> None:
        make_set(bundle / "toy.npz")
        for source in ("tyo", "toy.pt", "./toy", ""):
            with pytest.raises(
                ValueError, match=r"must be the name .* one of \['toy'\], or a path"
            ):
                read(source)

    @pytest.mark.parametrize("read", [read_card, check_card])
    @pytest.mark.parametrize("source", [None, 3, b"toy", {}])
    def test_other_objects(self, read: Callable[[Any], Any], source: Any) -> None:
        with pytest.raises(TypeError, match="`source` must be the name of a bundled set or a path"):
            read(source)


class TestCard:
    def test_it_is_read_as_it_is_written(self, path: Path) -> None:
        make_set(path, action_noise=0.5)
        card = read_card(path).model_dump()
        assert card["action_noise"] == 0.5
        assert card["score"]["episodes"] == 3
        assert card == json.loads(path.with_suffix(".json").read_text())

    def test_without_a_card(self, path: Path) -> None:
        make_set(path).with_suffix(".json").unlink()
        with pytest.raises(FileNotFoundError, match="no card at"):
            read_card(path)
        assert "There is no card at" in only_finding(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "toy.json: card: invalid JSON"),
            (b'{"name": "\xff"}', "invalid JSON"),
            (b"[" * 100_000, "invalid JSON"),
            (pickle.dumps({"name": "toy"}), "invalid JSON"),
            (b"null", "card: input should be an object, found None"),
            (b"{}", r"card\.name: field required, found {}; .*; and 15 more"),
        ],
    )
    def test_damaged_ones(self, content: bytes, message: str, path: Path) -> None:
        make_set(path).with_suffix(".json").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_card(path)
        assert re.search(message, only_finding(path))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"score": {"mean": 1.0}}, "card.score.metric: field required"),
            (
                {"score": {"metric": "return", "mean": float("nan")}},
                "score.mean: input should be",
            ),
            ({"score": {"metric": "return", "mean": 10**400}}, "score.mean: input should be"),
            ({"score": {"metric": "reward", "mean": 1.0}}, "'success' or 'return', found 'reward'"),
            ({"score": {"metric": "success", "mean": 97.5}}, "a share from 0 to 1, got 97.5"),
            ({"episodes_tried": 2}, "must be at least episodes, got 2 and 3"),
            ({"seed": 0.5}, "card.seed: input should be a valid integer"),
            ({"transitions": True}, "card.transitions: input should be a valid integer"),
            ({"episode_length": {"mean": 3.33, "min": 2}}, "episode_length.max: field required"),
            ({"arrays": {"obs": {"shape": 10, "dtype": "f4"}}}, "arrays.obs.shape: "),
            ({"licence": ["MIT"] * 10**6}, "card.licence: input should be a valid string, found ["),
        ],
    )
    def test_fields_that_say_nothing(
        self, fields: dict[str, Any], message: str, path: Path
    ) -> None:
        finding = only_finding(make_set(path, **fields))
        assert message in finding
        assert len(finding) < 600

    @settings(max_examples=100, deadline=None)
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
    def test_without_the_file(self, path: Path) -> None:
        make_set(path).unlink()
        assert only_finding(path) == f"There is no demonstration file at {path}."

    def test_a_renamed_set(self, path: Path) -> None:
        make_set(path).rename(path.with_name("other.npz"))
        path.with_suffix(".json").rename(path.with_name("other.json"))
        assert check_card(path.with_name("other.npz")) == [
            "the card says `name` 'toy', the file has 'other'",
            "the card says `file` 'toy.npz', the file has 'other.npz'",
        ]

    def test_another_file_than_the_one_described(self, path: Path) -> None:
        make_set(path, sha256="0" * 64)
        assert only_finding(path).startswith("the card says `sha256` '000")

    @pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
    def test_a_truncated_file(self, share: float, path: Path) -> None:
        content = make_set(path).read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        first, second = check_card(path)
        assert "`sha256`" in first
        assert "cannot be read" in second

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"more": np.ones(1, np.float32)}, "`arrays` ['acts', 'dones'"),
            ({"episode": None}, "`arrays` ['acts', 'dones'"),
            (
                {"episode": np.array([[0, 1, 3]], np.int32)},
                "says `arrays.episode.shape` [3], the file has [1, 3]",
            ),
            (
                {"episode": np.array([0, 1, 3], np.int16)},
                "says `arrays.episode.dtype` 'int32', the file has 'int16'",
            ),
        ],
    )
    def test_other_arrays_than_described(
        self, changes: dict[str, Any], message: str, path: Path
    ) -> None:
        arrays = {k: v for k, v in {**make_arrays(), **changes}.items() if v is not None}
        make_set(path, arrays, described=make_arrays())
        assert message in only_finding(path)

    @pytest.mark.parametrize("dtype", ["f8", "f2", ">f4", "c8", "U3"])
    def test_float32_only(self, dtype: str, path: Path) -> None:
        arrays = {**make_arrays(), "rewards": np.ones(10).astype(dtype)}
        make_set(path, arrays)
        assert "array 'rewards' must be of dtype float32, int or bool" in only_finding(path)

    @pytest.mark.parametrize("name", ["obs", "unused"])
    def test_pickled_objects(self, name: str, path: Path, tmp_path: Path) -> None:
        trace = tmp_path / "attacked"

        class Payload:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
                return Path.touch, (trace,)

        make_set(path, {**make_arrays(), name: np.array([Payload()], dtype=object)})
        assert "holds pickled Python objects" in only_finding(path)
        assert not trace.exists()

    def test_what_the_loader_warns_about(self, path: Path) -> None:
        arrays = make_arrays()
        del arrays["final_obs"]
        make_set(path, arrays)
        assert "`next_obs` is missing" in only_finding(path)

    def test_what_the_loader_refuses(self, path: Path) -> None:
        arrays = make_arrays()
        arrays["final_obs"] = arrays["final_obs"][:2]
        make_set(path, arrays)
        assert "`final_obs` must have one observation for each of 3" in only_finding(path)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"transitions": 11}, "`transitions` 11, the file has 10"),
            ({"episodes": 4}, "`episodes` 4, the file has 3"),
            ({"episode_length": {"mean": 3.33, "min": 1, "max": 5}}, "_length.min` 1, .* has 2"),
            ({"episode_length": {"mean": 3.33, "min": 2, "max": 6}}, "_length.max` 6, .* has 5"),
            ({"episode_length": {"mean": 3.35, "min": 2, "max": 5}}, "mean` 3.35, .* has 3.33"),
            ({"episode_length": {"mean": -1e300, "min": 2, "max": 5}}, r"mean` -1e\+300, .* 3.33"),
        ],
    )
    def test_other_counts_than_stated(
        self, fields: dict[str, Any], message: str, path: Path
    ) -> None:
        assert re.search(message, only_finding(make_set(path, **fields)))

    def test_all_findings_are_reported_together(self, path: Path) -> None:
        make_set(path, sha256="0" * 64, transitions=11, episodes=2)
        assert len(check_card(path)) == 3
