"""JSON files that are whole or not there."""

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any, *, indent: int = 2) -> None:
    """Writes JSON in one piece: the path holds the old document or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")
    temporary.replace(path)
