"""The file: safetensors weights, with one JSON document in the header.

A checkpoint is an ordinary safetensors file. Its ``__metadata__`` (a map from strings to strings)
holds ``format`` (always ``"sb3_diffbc"``), ``format_version``, ``kind`` (what the file restores),
``versions`` (of the libraries that wrote it, for people who read it), ``content``, a JSON
document with everything that is not a tensor, and ``checksum``, BLAKE2b of every other byte.

Reading one executes nothing: the safetensors library checks the header against the file's size
and gives the tensors, and the JSON is checked against declared types.
"""

import contextlib
import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import IO, NoReturn, TypeVar

import pydantic
import safetensors
import safetensors.torch
import torch as th

import sb3_diffbc
from sb3_diffbc.schema import parse_json

try:
    import fcntl
except ImportError:  # Windows, which itself keeps open files from being deleted
    fcntl = None  # type: ignore[assignment]

FORMAT = "sb3_diffbc"
FORMAT_VERSION = "3"
KINDS = ("trainer", "critic", "policy")
SUFFIX = ".safetensors"
MAX_CONTENT_BYTES = 16 * 2**20
"""Spaces and arguments need kilobytes; safetensors reads headers of up to 100 MB."""

_RECORDED = ("torch", "stable-baselines3", "imitation", "gymnasium", "numpy", "safetensors")

_ContentT = TypeVar("_ContentT", bound=pydantic.BaseModel)


class CheckpointError(ValueError):
    """A checkpoint, or a part of one, is damaged, foreign, unsafe or does not fit.

    The message names the file or the part, what was found there and what was expected.
    """


def save_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str,
    tensors: Mapping[str, th.Tensor],
    content: pydantic.BaseModel,
) -> Path:
    """Writes a checkpoint atomically: the path holds the old file or the whole new one.

    What killed writers of the same path left behind is removed.

    Args:
        path: where to write; ``.safetensors`` is appended to a path without a suffix, and
            missing parent directories are created. A file that is replaced keeps its mode.
        kind: what the file restores, one of ``KINDS``.
        tensors: the weights by name, of any shape and on any device; copied, so that tensors
            which share memory may be given.
        content: everything else; a :class:`~sb3_diffbc.schema.Model` writes infinities too.

    Returns:
        The path that was written, with its suffix.

    Raises:
        ValueError: if ``kind`` is unknown, a tensor holds NaN or an infinity, or the content is
            too long for a header.
        TypeError: if something in ``tensors`` is not a dense tensor.
        OSError: if the file cannot be written, or the path leads to something other than a
            file; no temporary file is left behind.
    """
    path = _with_suffix(Path(path))
    payload = _serialise(kind, tensors, content)
    # A link stays a link: the file that it points to is replaced.
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a directory; a checkpoint is a single file")
    if target.exists() and not target.is_file():
        raise OSError(f"{path} is not a regular file, and is not replaced by one")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, payload)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(error.errno, f"cannot write the checkpoint: {reason}", str(path)) from error
    return path


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    kind: str,
    content: type[_ContentT],
) -> tuple[dict[str, th.Tensor], _ContentT]:
    """Reads a checkpoint. Nothing in it is executed, unpickled or imported.

    The file is opened once, so that what is read is one version of it, whoever writes meanwhile.

    Args:
        path: the file; ``.safetensors`` is tried too if the path as given does not exist.
        kind: what the file must restore, one of ``KINDS``.
        content: the type of everything that is not a tensor.

    Returns:
        The tensors by name, on the CPU, and the content.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is not a whole checkpoint of this kind, content and format
            version, if its checksum is wrong, or if a tensor holds NaN or an infinity; the
            message says what was found.
    """
    found = _existing(Path(path))
    # A pipe would be waited for.
    if not found.is_file():
        _reject(found, kind, "something that is not a file")
    data = found.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (
        *(safetensors.SafetensorError, AssertionError, AttributeError, LookupError),
        *(RuntimeError, TypeError, ValueError),
    ) as error:
        _reject(
            found,
            kind,
            f"a truncated or damaged file, or one that is not safetensors ({error})",
            "Pickles and zip archives are not opened, because that can run code in them.",
        )
    _check_header(found, header, kind)
    _check_checksum(found, header, kind, data)
    if not_finite := non_finite(tensors):
        _reject(found, kind, f"NaN or infinite values in {not_finite}")
    n_elements = sum(tensor.numel() for tensor in tensors.values())
    document = parse_json(
        content, header.get("content", ""), f"{found}: content", CheckpointError, n_elements
    )
    return tensors, document


def non_finite(tensors: Mapping[str, th.Tensor]) -> str:
    """Names the first tensors that hold NaN or an infinity; empty if none does."""
    names = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")


@contextlib.contextmanager
def reading_content(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns errors that arise while a checkpoint's content is put to use into a clear one.

    Args:
        path: the file, for the message.
        kind: what it holds, for the message.

    Raises:
        CheckpointError: in the place of an error that unusable content causes.
    """
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{os.fspath(path)}: the content of this {kind} checkpoint is damaged: "
            f"{type(error).__name__}: {error}"
        ) from error


def package_versions(*names: str) -> dict[str, str]:
    """Returns the versions of installed packages, of Python and of this package."""
    versions = {name: metadata.version(name) for name in names}
    return versions | {"python": platform.python_version(), "sb3-diffbc": sb3_diffbc.__version__}


def _with_suffix(path: Path) -> Path:
    return path if path.suffix else path.with_name(path.name + SUFFIX)


def _serialise(kind: str, tensors: Mapping[str, th.Tensor], content: pydantic.BaseModel) -> bytes:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "versions": json.dumps(package_versions(*_RECORDED)),
        "content": content.model_dump_json(),
    }
    length = len(header["content"].encode())
    if length > MAX_CONTENT_BYTES:
        raise ValueError(
            f"the checkpoint's content takes {length} bytes as JSON, more than "
            f"{MAX_CONTENT_BYTES}; store large arrays as tensors"
        )
    storable = {name: _storable(name, tensor) for name, tensor in tensors.items()}
    if not_finite := non_finite(storable):
        raise ValueError(f"what holds NaN or infinite values is not saved: {not_finite}")
    placeholder = secrets.token_hex(32)
    payload = safetensors.torch.save(storable, metadata={**header, "checksum": placeholder})
    return payload.replace(placeholder.encode(), _digest(payload, placeholder).encode(), 1)


def _digest(data: bytes, without: str) -> str:
    """Hashes a file but for the checksum in its header."""
    view, left_out = memoryview(data), without.encode()
    place = max(data.find(left_out), 0)
    digest = hashlib.blake2b(view[:place], digest_size=32)
    digest.update(view[place + len(left_out) :])
    return digest.hexdigest()


def _storable(name: str, tensor: th.Tensor) -> th.Tensor:
    if not isinstance(tensor, th.Tensor):
        raise TypeError(f"tensor {name!r} is a {type(tensor).__qualname__}, not a tensor")
    if tensor.layout is not th.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(f"tensor {name!r} is not a plain dense tensor and cannot be stored")
    # A copy in every case: safetensors refuses tensors that share memory, and a writer must not
    # see a training step change the weights half-way.
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.to(device="cpu", copy=True, memory_format=th.contiguous_format)


def _replace(target: Path, payload: bytes) -> None:
    # By a hash, because a name may be as long as names can be.
    prefix = f".{FORMAT}-{hashlib.blake2b(target.name.encode(), digest_size=8).hexdigest()}-"
    _remove_leftovers(target.parent, prefix)
    temporary, stream = _locked_file(target.parent, prefix)
    try:
        with stream:
            if target.exists():
                shutil.copymode(target, temporary)
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
            if fcntl is None:  # Windows moves no open file.
                stream.close()
            os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _locked_file(folder: Path, prefix: str) -> tuple[Path, IO[bytes]]:
    """Creates a temporary file, locked for as long as it is open: its writer lives."""
    # Created by name rather than by `tempfile`, whose files nobody else could read afterwards.
    path = folder / f"{prefix}{secrets.token_hex(8)}.tmp"
    stream = path.open("xb")
    if fcntl is None:
        return path, stream
    with contextlib.suppress(OSError):  # Some network drives have no locks, and keep leftovers.
        fcntl.flock(stream, fcntl.LOCK_EX)
    if path.exists():
        return path, stream
    # Another writer took it for a leftover before it was locked.
    stream.close()
    return _locked_file(folder, prefix)


def _remove_leftovers(folder: Path, prefix: str) -> None:
    for leftover in folder.glob(f"{prefix}*.tmp"):
        with contextlib.suppress(OSError):  # A living writer's.
            if fcntl is None:
                leftover.unlink()
            else:
                with leftover.open("rb") as stream:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    leftover.unlink()


def _existing(path: Path) -> Path:
    for candidate in (path, _with_suffix(path)):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"there is no checkpoint at {path}")


def _reject(path: Path, kind: str, found: str, advice: str = "") -> NoReturn:
    message = f"{path}: expected an {FORMAT} {kind} checkpoint, found {found}"
    raise CheckpointError(f"{message}. {advice}" if advice else message)


def _check_header(path: Path, found: Mapping[str, str], kind: str) -> None:
    if found.get("format") != FORMAT:
        _reject(path, kind, "a safetensors file of another program (no format marker)")
    version = found.get("format_version", "")[:20]
    if version != FORMAT_VERSION:
        _reject(path, kind, f"format version {version!r} instead of {FORMAT_VERSION}")
    if found.get("kind") != kind:
        _reject(path, kind, f"a checkpoint of kind {found.get('kind', '')[:20]!r}")


def _check_checksum(path: Path, header: Mapping[str, str], kind: str, data: bytes) -> None:
    checksum = header.get("checksum")
    if not checksum or _digest(data, checksum) != checksum:
        _reject(path, kind, "damage: its checksum is not that of what it holds")
