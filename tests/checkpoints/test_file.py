"""The file as a whole: round trips, atomic writing, and every bad file that comes to mind."""

import json
import math
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch as th
from checkpoint_files import put_together, signed
from hypothesis import HealthCheck, given, settings
from toys import Payload

from sb3_diffbc.checkpoints import (
    CheckpointError,
    load_checkpoint,
    reading_content,
    save_checkpoint,
)
from sb3_diffbc.schema import AnyFloat, Model


class Nothing(Model):
    """No content."""


class Content(Model):
    """Content of many types."""

    name: str
    numbers: tuple[AnyFloat, ...]
    inner: dict[str, bool | None]


TENSORS = {"weight": th.arange(6.0).reshape(2, 3), "steps": th.tensor(7)}
CONTENT = Content(name="λ\n", numbers=(0.1, math.inf, -math.inf, -0.0), inner={"a": None})
METADATA = {"format": "sb3_diffbc", "format_version": "3", "kind": "trainer", "content": "{}"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "good", kind="trainer", tensors=TENSORS, content=CONTENT)


def save(path: Path | str, **tensors: Any) -> Path:
    return save_checkpoint(path, kind="trainer", tensors=tensors, content=Nothing())


def load(path: Path | str, content: Any = Nothing) -> Any:
    return load_checkpoint(path, kind="trainer", content=content)


def write_raw(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def write_metadata(path: Path, **changes: str | None) -> Path:
    kept = {key: value for key, value in {**METADATA, **changes}.items() if value is not None}
    path.write_bytes(put_together({"__metadata__": kept}, b""))
    return path


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.builds(
        Content,
        name=st.text(),
        numbers=st.lists(st.floats(allow_nan=False)).map(tuple),
        inner=st.dictionaries(st.text(), st.none() | st.booleans()),
    ),
    names=st.sets(st.text().filter(lambda name: name != "__metadata__"), max_size=4),
    shape=st.lists(st.integers(0, 3), max_size=3),
    dtype=st.sampled_from([th.float16, th.bfloat16, th.float64, th.uint8, th.int64, th.bool]),
)
def test_any_content_and_any_tensors_come_back(
    tmp_path: Path, content: Content, names: set[str], shape: list[int], dtype: th.dtype
) -> None:
    tensors = {name: th.rand(shape).mul(5).to(dtype) for name in names}
    path = save_checkpoint(tmp_path / "any", kind="trainer", tensors=tensors, content=content)
    loaded, read = load(path, Content)
    assert repr(read) == repr(content)
    assert loaded.keys() == names
    for name, tensor in tensors.items():
        assert loaded[name].dtype == dtype
        assert th.equal(loaded[name], tensor)


def test_shared_strided_and_trainable_tensors_can_be_saved(tmp_path: Path) -> None:
    base = th.nn.Parameter(th.arange(12.0).reshape(3, 4))
    tensors = {
        "base": base,
        "alias": base,
        "view": base[1:, ::2],
        "transposed": base.T,
        "expanded": th.ones(1).expand(5),
        "conjugate": th.tensor([1 + 2j]).conj(),
    }
    loaded, _ = load(save(tmp_path / "x", **tensors))
    for name, tensor in tensors.items():
        assert th.equal(loaded[name], tensor.detach()), name
        assert not loaded[name].requires_grad


def test_loaded_tensors_do_not_depend_on_the_file(saved: Path) -> None:
    tensors, _ = load(saved, Content)
    tensors["weight"].add_(1)
    saved.write_bytes(b"")
    assert th.equal(tensors["weight"], TENSORS["weight"] + 1)


def test_it_is_an_ordinary_safetensors_file_with_the_versions_that_wrote_it(saved: Path) -> None:
    assert th.equal(safetensors.torch.load_file(saved)["weight"], TENSORS["weight"])
    with safetensors.safe_open(saved, "pt") as stream:
        versions = json.loads(stream.metadata()["versions"])
    assert {"python", "torch", "stable-baselines3", "sb3-diffbc"} <= versions.keys()
    assert versions["torch"] in th.__version__


def test_a_suffix_is_appended_unless_there_is_one(tmp_path: Path) -> None:
    assert save(tmp_path / "new" / "a") == tmp_path / "new" / "a.safetensors"
    assert save(str(tmp_path / "b.ckpt")) == tmp_path / "b.ckpt"
    load(tmp_path / "new" / "a")
    load(tmp_path / "new" / "a.safetensors")


def test_content_too_long_for_a_header_is_not_saved(tmp_path: Path) -> None:
    content = Content(name="x" * 2**24, numbers=(), inner={})
    with pytest.raises(ValueError, match="store large arrays as tensors"):
        save_checkpoint(tmp_path / "x", kind="policy", tensors={}, content=content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensor", [[1.0], th.zeros(2, 2).to_sparse(), th.empty(2, device="meta")])
def test_what_is_not_a_dense_tensor_is_refused(tmp_path: Path, tensor: Any) -> None:
    with pytest.raises(TypeError, match="'weight' is"):
        save(tmp_path / "x", weight=tensor)


def test_unknown_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of trainer, critic, policy"):
        save_checkpoint(tmp_path / "x", kind="model", tensors={}, content=Nothing())


def test_a_new_file_has_the_usual_mode_and_a_replaced_one_keeps_its_own(saved: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask
    saved.chmod(0o640)
    save(saved)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o640
    assert list(saved.parent.iterdir()) == [saved]


def test_a_link_stays_a_link(saved: Path) -> None:
    link = saved.with_name("latest.safetensors")
    link.symlink_to(saved)
    save(link)
    assert link.is_symlink()
    assert load(saved)[0] == {}


def test_missing_files_and_directories(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        load(tmp_path / "nothing_here")
    with pytest.raises(CheckpointError, match=r"sb3_diffbc trainer .* is not a file"):
        load(tmp_path)
    (tmp_path / "d.x").mkdir()
    with pytest.raises(IsADirectoryError):
        save(tmp_path / "d.x")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_is_neither_waited_for_nor_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.x")
    with pytest.raises(CheckpointError, match="something that is not a file"):
        load(tmp_path / "pipe.x")
    with pytest.raises(OSError, match="not a regular file"):
        save(tmp_path / "pipe.x")
    assert stat.S_ISFIFO((tmp_path / "pipe.x").stat().st_mode)


def test_every_byte_less_or_more_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for changed in (*(whole[:n] for n in range(0, len(whole), 5)), whole[:-1], whole + b"\0"):
        saved.write_bytes(changed)
        with pytest.raises(CheckpointError, match="truncated or damaged") as caught:
            load(saved, Content)
        assert str(saved) in str(caught.value)


@pytest.mark.parametrize(
    "write",
    [
        lambda attack, path: path.write_bytes(pickle.dumps(attack)),
        lambda attack, path: th.save(attack, path),
        lambda attack, path: th.save(attack, path, _use_new_zipfile_serialization=False),
    ],
    ids=["pickle", "torch", "old torch"],
)
def test_a_pickle_in_place_of_weights_is_not_opened(
    tmp_path: Path, write: Callable[[Any, Path], Any]
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.safetensors"
    write({"weights": Payload(marker)}, path)
    with pytest.raises(CheckpointError, match=r"not safetensors.*Pickles .* not opened"):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"{not json}", "not safetensors"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not safetensors"),
        (b'{"__metadata__": {"format": 1}}', "not safetensors"),
        (b'{"t": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}', "damaged"),
        (b'{"t": {"dtype": "O", "shape": [1], "data_offsets": [0, 4]}}', "damaged"),
        (b"{}", "of another program"),
        (b'{"__metadata__": {"format": "pt"}}', "of another program"),
    ],
)
def test_a_foreign_header_is_refused(tmp_path: Path, header: bytes, found: str) -> None:
    data = b"\0\0\0\0" if b"offsets" in header else b""
    with pytest.raises(CheckpointError, match=found):
        load(write_raw(tmp_path / "x", header, data))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"format_version": None}, "format version ''"),
        ({"format_version": "1"}, "format version '1' instead of 3"),
        ({"kind": "critic"}, "expected an sb3_diffbc trainer .* of kind 'critic'"),
        ({"content": None}, "content: invalid JSON"),
        ({"content": '{"a":' + "[" * 100_000}, "content: invalid JSON"),
        ({"content": '{"a": 1}'}, "content.a: extra inputs"),
    ],
)
def test_wrong_metadata_is_refused(
    tmp_path: Path, changes: dict[str, str | None], found: str
) -> None:
    with pytest.raises(CheckpointError, match=found) as caught:
        load(write_metadata(tmp_path / "x", **changes))
    assert len(str(caught.value)) < 500


def test_every_changed_byte_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    for place in range(len(whole)):
        for bit in (1, 32):
            saved.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with pytest.raises(CheckpointError):
                load(saved, Content)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [th.float16, th.bfloat16, th.float32, th.float64, th.complex64])
def test_what_is_not_finite_is_neither_saved_nor_loaded(
    saved: Path, value: float, dtype: th.dtype
) -> None:
    before = saved.read_bytes()
    odd = th.tensor([0.0, value]).to(dtype)
    with pytest.raises(ValueError, match="not saved: 'odd'"):
        save(saved, odd=odd, fine=th.zeros(2))
    assert saved.read_bytes() == before
    saved.write_bytes(signed(safetensors.torch.save({"odd": odd}, METADATA)))
    with pytest.raises(CheckpointError, match=r"good.*infinite values in 'odd'"):
        load(saved)


def test_errors_in_use_name_the_file() -> None:
    with pytest.raises(CheckpointError, match=r"^a/b: too wide$"), reading_content("a/b", "policy"):
        raise CheckpointError("too wide")
    with (
        pytest.raises(CheckpointError, match=r"^a/b: .* policy checkpoint is damaged: KeyError"),
        reading_content(Path("a/b"), "policy"),
    ):
        raise KeyError("x")
