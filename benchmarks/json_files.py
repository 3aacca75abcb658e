"""Files that are whole or not there."""

import json
import uuid
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Writes a text in one piece: the path holds the old text or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Writes JSON in one piece."""
    write_whole(path, json.dumps(content, indent=indent) + "\n")
