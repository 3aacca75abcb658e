"""Checkpoints taken apart and put together again, with the checksum that fits."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from typing import Any

from fuzzing import mutations

_PLACE = hashlib.blake2b(b"where the checksum goes", digest_size=32).hexdigest()


def taken_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A file's header, and what follows it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def put_together(header: dict[str, Any], rest: bytes) -> bytes:
    """A file whose header has the checksum: BLAKE2b of all bytes but its own."""
    metadata = {**header["__metadata__"], "checksum": _PLACE}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    before, after = (len(text).to_bytes(8, "little") + text + rest).split(_PLACE.encode())
    checksum = hashlib.blake2b(before + after, digest_size=32).hexdigest()
    return before + checksum.encode() + after


def signed(data: bytes) -> bytes:
    """A damaged file with a checksum as if it were whole; what has no header stays as it is."""
    try:
        return put_together(*taken_apart(data))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return data


def checkpoint_mutations(data: bytes, seed: int, n: int) -> Iterator[bytes]:
    """``n`` damaged copies: anywhere, or in one part with a checksum that hides the damage."""
    rng = random.Random(seed)
    header, rest = taken_apart(data)
    text = json.dumps(header).encode()
    content = header["__metadata__"]["content"].encode()
    for number in range(n):
        part = ("all", "tensors", "header", "header", "content", "content", "place")[number % 7]
        if part == "place":
            document = json.loads(content)
            parent, key = rng.choice([*places(document)])
            parent[key] = rng.choice((None, True, -1, 10**400, 0.5, "Infinity", [], [2], {}))
            metadata = {**header["__metadata__"], "content": json.dumps(document)}
            yield put_together({**header, "__metadata__": metadata}, rest)
            continue
        whole = {"all": data, "tensors": rest, "header": text, "content": content}[part]
        [damaged] = mutations(whole, rng.getrandbits(32), 1)
        if part == "all":
            yield damaged
        elif part == "tensors":
            yield put_together(header, damaged)
        elif part == "header":
            yield signed(len(damaged).to_bytes(8, "little") + damaged + rest)
        else:
            metadata = {**header["__metadata__"], "content": damaged.decode(errors="replace")}
            yield put_together({**header, "__metadata__": metadata}, rest)


def places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yields every container in a JSON document, with each of its keys."""
    for key in document if isinstance(document, dict) else range(len(document)):
        yield document, key
        if isinstance(document[key], dict | list):
            yield from places(document[key])
