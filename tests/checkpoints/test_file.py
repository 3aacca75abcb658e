"""The file as a whole: round trips, atomic writing, and every bad file that comes to mind."""

import contextlib
import json
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings

from sb3_diffbc.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from sb3_diffbc.checkpoints import file as file_module

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}
CONTENT = {"bc_coef": 0.1, "names": ["a", "b"], "nested": {"none": None, "yes": True}}


class MakesAMarker:
    """Unpickling this creates the file: the usual shape of an attack."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "good", kind="trainer", tensors=TENSORS, content=CONTENT)


def write_raw(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    length = len(header) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + header + data)
    return path


def write_metadata(path: Path, **changes: str | None) -> Path:
    metadata = {"format": "sb3_diffbc", "format_version": "1", "kind": "trainer", "content": "{}"}
    kept = {key: value for key, value in {**metadata, **changes}.items() if value is not None}
    return write_raw(path, json.dumps({"__metadata__": kept}).encode())


# --- round trips --------------------------------------------------------------------------------


def test_tensors_and_content_come_back(saved: Path) -> None:
    tensors, content = load_checkpoint(saved, kind="trainer")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    versions = content.pop("versions")
    assert content == CONTENT
    assert {"python", "torch", "stable_baselines3", "imitation", "gymnasium", "numpy"} <= set(
        versions
    )
    assert versions["torch"]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**130), 2**130)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.dictionaries(st.text().filter(lambda key: key != "versions"), JSON_VALUES),
    names=st.sets(st.text().filter(lambda name: name != "__metadata__"), max_size=4),
    shape=st.lists(st.integers(0, 3), max_size=3),
)
def test_any_json_and_any_names_come_back(
    tmp_path: Path, content: dict[str, Any], names: set[str], shape: list[int]
) -> None:
    tensors = {name: torch.rand(shape) for name in names}
    path = save_checkpoint(tmp_path / "any", kind="critic", tensors=tensors, content=content)
    loaded, read = load_checkpoint(path, kind="critic")
    del read["versions"]
    assert read == content
    assert all(torch.equal(loaded.pop(name), tensor) for name, tensor in tensors.items())
    assert not loaded


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int64,
        torch.bool,
    ],
)
def test_dtypes_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1], [1, 1]]).to(dtype)
    path = save_checkpoint(tmp_path / "x", kind="policy", tensors={"t": tensor}, content={})
    loaded = load_checkpoint(path, kind="policy")[0]["t"]
    assert loaded.dtype == dtype
    assert torch.equal(loaded, tensor)


def test_shared_strided_and_trainable_tensors_can_be_saved(tmp_path: Path) -> None:
    base = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    tensors = {
        "base": base,
        "alias": base,
        "view": base[1:, ::2],
        "transposed": base.T,
        "expanded": torch.ones(1).expand(5),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    path = save_checkpoint(tmp_path / "x", kind="policy", tensors=tensors, content={})
    loaded, _ = load_checkpoint(path, kind="policy")
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor.detach()), name
        assert not loaded[name].requires_grad


def test_loaded_tensors_do_not_depend_on_the_file(saved: Path) -> None:
    tensors, _ = load_checkpoint(saved, kind="trainer")
    tensors["weight"].add_(1)
    saved.write_bytes(b"")
    assert torch.equal(tensors["weight"], TENSORS["weight"] + 1)


def test_the_weights_are_an_ordinary_safetensors_file(saved: Path) -> None:
    assert torch.equal(safetensors.torch.load_file(saved)["weight"], TENSORS["weight"])


def test_suffix_is_appended_unless_there_is_one(tmp_path: Path) -> None:
    plain = save_checkpoint(tmp_path / "new" / "a", kind="policy", tensors={}, content={})
    dotted = save_checkpoint(str(tmp_path / "b.ckpt"), kind="policy", tensors={}, content={})
    assert plain == tmp_path / "new" / "a.safetensors"
    assert dotted == tmp_path / "b.ckpt"
    load_checkpoint(tmp_path / "new" / "a", kind="policy")
    load_checkpoint(plain, kind="policy")


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "error", "place"),
    [
        ({"a": {"b": [0, {1, 2}]}}, TypeError, r"content\['a'\]\['b'\]\[1\] is a set"),
        ({"a": torch.zeros(1)}, TypeError, r"content\['a'\] is a Tensor"),
        ({"a": {1: 2}}, TypeError, r"content\['a'\] has the key 1"),
        ({"a": [float("nan")]}, ValueError, r"content\['a'\]\[0\] is nan"),
        ({"a": "x" * 2**24}, ValueError, "store large arrays as tensors"),
    ],
)
def test_content_that_is_not_json_is_named(
    tmp_path: Path, content: dict[str, Any], error: type[Exception], place: str
) -> None:
    with pytest.raises(error, match=place):
        save_checkpoint(tmp_path / "x", kind="policy", tensors={}, content=content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "tensor", [[1.0], torch.zeros(2, 2).to_sparse(), torch.empty(2, device="meta")]
)
def test_what_is_not_a_dense_tensor_is_refused(tmp_path: Path, tensor: Any) -> None:
    with pytest.raises(TypeError, match="'weight' is"):
        save_checkpoint(tmp_path / "x", kind="policy", tensors={"weight": tensor}, content={})


def test_unknown_kinds_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kind must be one of trainer, critic, policy"):
        save_checkpoint(tmp_path / "x", kind="model", tensors={}, content={})
    (tmp_path / "d.x").mkdir()
    with pytest.raises(IsADirectoryError):
        save_checkpoint(tmp_path / "d.x", kind="policy", tensors={}, content={})


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_while_writing_keeps_the_old_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    before = saved.read_bytes()
    monkeypatch.setattr(file_module.os, step, fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(saved, kind="trainer", tensors={}, content={})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_writing_leaves_one_readable_file(saved: Path) -> None:
    save_checkpoint(saved, kind="critic", tensors={}, content={})
    assert list(saved.parent.iterdir()) == [saved]
    assert load_checkpoint(saved, kind="critic")[0] == {}
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link(saved: Path) -> None:
    link = saved.with_name("latest.safetensors")
    link.symlink_to(saved)
    save_checkpoint(link, kind="critic", tensors={}, content={})
    assert link.is_symlink()
    load_checkpoint(saved, kind="critic")


# --- bad files ----------------------------------------------------------------------------------


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        load_checkpoint(tmp_path / "nothing_here", kind="policy")
    with pytest.raises(
        CheckpointError, match=r"expected an sb3_diffbc policy .* found a directory"
    ):
        load_checkpoint(tmp_path, kind="policy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(tmp_path / "pipe", kind="policy")


@pytest.mark.parametrize("eighth", range(8))
def test_a_truncated_file_is_refused(saved: Path, eighth: int) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: len(whole) * eighth // 8])
    with pytest.raises(CheckpointError, match=r"truncated|empty|too few") as caught:
        load_checkpoint(saved, kind="trainer")
    assert str(saved) in str(caught.value)


def test_every_single_byte_less_or_more_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for changed in (whole[:-1], whole + b"\0", whole[:8], whole[:9], whole[:1]):
        saved.write_bytes(changed)
        with pytest.raises(CheckpointError):
            load_checkpoint(saved, kind="trainer")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_in_place_of_weights_is_not_opened(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.safetensors"
    path.write_bytes(pickle.dumps({"weights": MakesAMarker(marker)}, protocol=protocol))
    with pytest.raises(CheckpointError, match=r"Python pickle.*not opened"):
        load_checkpoint(path, kind="policy")
    assert not marker.exists()


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_torch_file_in_place_of_weights_is_not_opened(tmp_path: Path, as_zip: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.pt"
    torch.save([MakesAMarker(marker)], path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"(zip archive|Python pickle).*not opened"):
        load_checkpoint(path, kind="policy")
    assert not marker.exists()


def test_a_zip_with_absolute_paths_is_not_opened(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "attack.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(str(marker), "written outside")
        archive.writestr("../marker", "written outside")
    with pytest.raises(CheckpointError, match="zip archive"):
        load_checkpoint(path, kind="policy")
    assert not marker.exists()


@pytest.mark.parametrize("length", [10 * 2**30, 2**64 - 1, 2**24 + 1, 2**20])
@pytest.mark.parametrize("start", [b"{", b"x"])
def test_a_huge_header_is_refused_before_it_is_read(
    tmp_path: Path, length: int, start: bytes
) -> None:
    path = write_raw(tmp_path / "attack", start + b'"__metadata__":{}}', length=length)
    with pytest.raises(CheckpointError, match=r"header of|not in the safetensors format"):
        load_checkpoint(path, kind="policy")


def test_a_header_beyond_the_limit_is_refused_even_if_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as stream:
        stream.write((2**25).to_bytes(8, "little") + b"{")
        stream.truncate(2**26)  # takes no space on disk
    with pytest.raises(CheckpointError, match="beyond the limit"):
        load_checkpoint(path, kind="policy")


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"{\xff\xfe}", "header that is not JSON"),
        (b"{not json}", "header that is not JSON"),
        (b'{"__metadata__": {"format": NaN}}', "header that is not JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "header that is not JSON"),
        (b"{}", "without this library's metadata"),
        (b'{"__metadata__": [1]}', "without this library's metadata"),
        (b'{"__metadata__": {"format": 1}}', "without this library's metadata"),
        (b'{"__metadata__": {"format": "pt"}}', "no format marker"),
    ],
)
def test_a_foreign_header_is_refused(tmp_path: Path, header: bytes, found: str) -> None:
    path = write_raw(tmp_path / "x", header)
    with pytest.raises(CheckpointError, match=found):
        load_checkpoint(path, kind="policy")


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"format": None}, "no format marker"),
        ({"format_version": None}, "format version None. This release reads version 1."),
        ({"format_version": "2"}, "format version str '2'.*newer release"),
        ({"format_version": "x" * 999}, "format version str 'xxx"),
        ({"kind": "critic"}, "expected an sb3_diffbc trainer .* kind str 'critic'"),
        ({"kind": None}, "of kind None"),
        ({"content": None}, "content that is not JSON"),
        ({"content": "[]"}, "content that is not a JSON object"),
        ({"content": "NaN"}, "content that is not JSON"),
        ({"content": '{"a": Infinity}'}, "content that is not JSON"),
        ({"content": '{"a":' + "[" * 100_000}, "content that is not JSON"),
        ({"content": "9" * 10_000}, "content that is not JSON"),
    ],
)
def test_wrong_metadata_is_refused(
    tmp_path: Path, changes: dict[str, str | None], found: str
) -> None:
    path = write_metadata(tmp_path / "x", **changes)
    with pytest.raises(CheckpointError, match=found):
        load_checkpoint(path, kind="trainer")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4 * 10**12]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "O", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]},
        ["F32"],
    ],
)
def test_a_tensor_that_is_not_in_the_file_is_refused(tmp_path: Path, entry: Any) -> None:
    metadata = {"format": "sb3_diffbc", "format_version": "1", "kind": "policy", "content": "{}"}
    header = json.dumps({"__metadata__": metadata, "t": entry}).encode()
    path = write_raw(tmp_path / "x", header, b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="damaged tensors"):
        load_checkpoint(path, kind="policy")


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    for data, found in {
        b"": "an empty file",
        b"\x89HDF\r\n\x1a\n" + bytes(20): "an HDF5 file",
        b"some text in a file": "not in the safetensors format",
        b"abc": "3 bytes, too few",
    }.items():
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(CheckpointError, match=found):
            load_checkpoint(tmp_path / "x", kind="policy")


def test_a_header_length_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    # A header of 640 bytes begins with 0x80 0x02, as a pickle of protocol 2 does.
    metadata = {"format": "sb3_diffbc", "format_version": "1", "kind": "policy", "content": "{}"}
    header = json.dumps({"__metadata__": metadata}).encode().ljust(0x280)
    path = write_raw(tmp_path / "x", header)
    assert path.read_bytes().startswith(b"\x80\x02")
    load_checkpoint(path, kind="policy")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="The file is truncated"):
        load_checkpoint(path, kind="policy")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_bytes_give_a_checkpoint_or_a_clear_error(saved: Path, data: Any) -> None:
    damaged = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = saved.with_name("damaged")
    path.write_bytes(damaged)
    with contextlib.suppress(CheckpointError):
        load_checkpoint(path, kind="trainer")
