"""The file: safetensors weights, with one JSON document in the header.

A checkpoint is an ordinary safetensors file. Its ``__metadata__`` (a map from strings to strings)
holds ``format`` (always ``"sb3_diffbc"``), ``format_version``, ``kind`` (what the file restores)
and ``content``, a JSON document with everything that is not a tensor.

Reading one executes nothing: the header is checked against the file's real size before it is
read, parsed as strict JSON, and the tensors come from the safetensors library.
"""

import json
import math
import os
import platform
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch

from sb3_diffbc.checkpoints.errors import CheckpointError
from sb3_diffbc.checkpoints.values import describe

FORMAT = "sb3_diffbc"
FORMAT_VERSION = "1"
KINDS = ("trainer", "critic", "policy", "expert")
SUFFIX = ".safetensors"
MAX_HEADER_BYTES = 16 * 2**20
"""Spaces and arguments need kilobytes; a header beyond this is a mistake or an attack."""

_LENGTH_BYTES = 8  # safetensors: the header's length, unsigned, little-endian
_RECORDED_DISTRIBUTIONS = {
    "sb3_diffbc": "sb3-diffbc",
    "torch": "torch",
    "stable_baselines3": "stable-baselines3",
    "imitation": "imitation",
    "gymnasium": "gymnasium",
    "numpy": "numpy",
    "safetensors": "safetensors",
}


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    content: Mapping[str, Any],
) -> Path:
    """Write a checkpoint in one piece: the path holds the old file or the whole new one.

    Args:
        path: where to write; ``.safetensors`` is appended to a path without a suffix, and
            missing parent directories are created.
        kind: what the file restores, one of ``KINDS``.
        tensors: the weights by name, of any shape and on any device; copied, so that tensors
            which share memory may be given.
        content: a JSON object with string keys. Tuples come back as lists. ``"versions"`` is
            added: the Python and library versions that wrote the file.

    Returns:
        The path that was written, with its suffix.

    Raises:
        ValueError: if ``kind`` is unknown, a float in ``content`` is not finite, or the
            content is too long for a header.
        TypeError: if something in ``content`` is not JSON (the message names its key path), or
            something in ``tensors`` is not a dense tensor.
        OSError: if the file cannot be written; no temporary file is left behind.
    """
    path = _with_suffix(Path(path))
    if hasattr(content, "model_dump"):
        content = content.model_dump(mode="json")
    payload = _serialise(kind, tensors, content)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory; a checkpoint is a single file")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path, payload)
    return path


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str,
    device: str | torch.device = "cpu",
    content: Any = None,
) -> tuple[dict[str, torch.Tensor], Any]:
    """Read a checkpoint. Nothing in it is executed, unpickled or imported.

    Args:
        path: the file; ``.safetensors`` is tried too if the path as given does not exist.
        kind: what the file must restore, one of ``KINDS``.
        device: where to put the tensors.

    Returns:
        The tensors by name (fresh copies) and the content, with ``"versions"``.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is not a whole checkpoint of this kind and of a format
            version that this release reads; the message says what was found.
    """
    found = _existing(Path(path))
    header = _read_metadata(found, kind)
    read = _check_metadata(found, header, kind)
    if content is not None:
        read.pop("versions", None)
        from sb3_diffbc.schema import parse_json

        read = parse_json(content, json.dumps(read), f"{found}: {kind}", CheckpointError)
    return _read_tensors(found, kind, device), read


# --- writing ------------------------------------------------------------------------------------


@contextmanager
def reading_content(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns what goes wrong while a checkpoint's content is put to use into a clear error.

    Args:
        path: the file, for the message.
        kind: what it holds, for the message.

    Raises:
        CheckpointError: instead of an error that missing or ill-typed content causes.
    """
    try:
        yield
    except CheckpointError as e:
        raise CheckpointError(f"{os.fspath(path)}: {e}") from e
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        raise CheckpointError(
            f"{os.fspath(path)}: the content of this {kind} checkpoint is damaged: "
            f"{type(e).__name__}: {e}"
        ) from e


def _with_suffix(path: Path) -> Path:
    return path if path.suffix else path.with_name(path.name + SUFFIX)


def _serialise(kind: str, tensors: Mapping[str, torch.Tensor], content: Mapping[str, Any]) -> bytes:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    _require_json(content, "content")
    document = {**content, "versions": library_versions()}
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "content": json.dumps(document, allow_nan=False),
    }
    storable = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    payload = safetensors.torch.save(storable, metadata=header)
    length = int.from_bytes(payload[:_LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(
            f"the checkpoint's content takes {length} bytes as JSON, more than the "
            f"{MAX_HEADER_BYTES} that are read back; store large arrays as tensors"
        )
    return payload


def library_versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries that matter here (None: not installed)."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _RECORDED_DISTRIBUTIONS.items():
        try:
            versions[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _require_json(value: Any, where: str) -> None:
    """Raise for what JSON cannot hold, naming its place; `json` itself would not name it."""
    if value is None or isinstance(value, (bool, int, str)):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}, which JSON cannot hold")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            _require_json(item, f"{where}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; JSON keys are strings")
            _require_json(item, f"{where}[{key!r}]")
    else:
        raise TypeError(f"{where} is a {type(value).__qualname__}, which JSON cannot hold")


def _storable(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(name, str):
        raise TypeError(f"tensor names are strings, got {name!r}")
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor {name!r} is a {type(tensor).__qualname__}, not a tensor")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(f"tensor {name!r} is not a plain dense tensor and cannot be stored")
    # A copy in every case: safetensors refuses tensors that share memory, and a writer must not
    # see a training step change the weights half-way.
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.to(device="cpu", copy=True, memory_format=torch.contiguous_format)


def _write_atomically(path: Path, payload: bytes) -> None:
    # A link stays a link: the file that it points to is replaced.
    target = Path(os.path.realpath(path))
    # Created by name rather than by `tempfile`, whose files nobody else could read afterwards.
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# --- reading ------------------------------------------------------------------------------------


def _existing(path: Path) -> Path:
    if not path.exists() and not path.suffix and _with_suffix(path).exists():
        return _with_suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    return path


def _reject(path: Path, kind: str, found: str, advice: str = "") -> NoReturn:
    message = f"{path}: expected an {FORMAT} {kind} checkpoint, found {found}"
    raise CheckpointError(f"{message}. {advice}" if advice else message)


def _read_metadata(path: Path, kind: str) -> dict[str, str]:
    """Read the header's ``__metadata__``, trusting no length in the file before it is checked."""
    if path.is_dir():
        _reject(path, kind, "a directory")
    if not stat.S_ISREG(path.stat().st_mode):
        _reject(path, kind, "something that is not a regular file")
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        start = stream.read(_LENGTH_BYTES + 1)
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        if start[_LENGTH_BYTES:] != b"{" or length > min(MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            _reject(path, kind, *_diagnose(start, length, size))
        stream.seek(_LENGTH_BYTES)
        raw = stream.read(length)
    try:
        header = _strict_json(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        _reject(path, kind, f"a header that is not JSON ({type(error).__name__})")
    found = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        _reject(path, kind, "a safetensors file without this library's metadata")
    return found


def _diagnose(start: bytes, length: int, size: int) -> tuple[str, str]:
    """Say what a file that does not begin like a checkpoint is, from its first nine bytes."""
    unopened = "It was not opened: loading such a file can run code that it contains."
    if size == 0:
        return "an empty file", ""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip archive, as torch.save, SB3's save and numpy.savez write", unopened
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file", ""
    if start[_LENGTH_BYTES:] == b"{" and length <= MAX_HEADER_BYTES:
        return f"a header of {length} bytes in a file of {size}", "The file is truncated."
    # Protocol 2 to 5, then an opcode; a header's length can begin with the same two bytes.
    if size > 2 and start[0] == 0x80 and 2 <= start[1] <= 5 and start[2] != 0:
        return "what looks like a Python pickle", unopened
    if size <= _LENGTH_BYTES:
        return f"{size} bytes, too few for a header", "The file may be truncated."
    if start[_LENGTH_BYTES:] != b"{":
        return "a file that is not in the safetensors format", ""
    return f"a header of {length} bytes, beyond the limit of {MAX_HEADER_BYTES}", ""


def _strict_json(text: str) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _check_metadata(path: Path, header: dict[str, str], kind: str) -> dict[str, Any]:
    if header.get("format") != FORMAT:
        _reject(path, kind, "a safetensors file of another program (no format marker)")
    version = header.get("format_version")
    if version != FORMAT_VERSION:
        advice = f"This release reads version {FORMAT_VERSION}"
        if version is not None and version.isdecimal():
            advice += "; a newer release of sb3-diffbc may read the file"
        _reject(path, kind, f"format version {describe(version)}", advice + ".")
    if header.get("kind") != kind:
        _reject(path, kind, f"a checkpoint of kind {describe(header.get('kind'))}")
    try:
        content = _strict_json(header.get("content", ""))
    except (ValueError, RecursionError) as error:
        _reject(path, kind, f"content that is not JSON ({type(error).__name__})")
    if not isinstance(content, dict):
        _reject(path, kind, f"content that is not a JSON object ({describe(content)})")
    return content


def _read_tensors(path: Path, kind: str, device: str | torch.device) -> dict[str, torch.Tensor]:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as stream:
            # Copied, because the library may map the file into memory, and the file may change.
            names = stream.keys()
            tensors = {name: stream.get_tensor(name).clone() for name in names}
    except (safetensors.SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        _reject(path, kind, f"damaged tensors ({error})", "The file may be truncated.")
    return {name: tensor.to(device) for name, tensor in tensors.items()}
