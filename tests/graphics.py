"""Rendering in a process of its own, because MuJoCo chooses its graphics library when imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

_NO_GRAPHICS = 77
_PROBE = f"""
import sys
import mujoco
try:
    mujoco.Renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
except Exception as error:
    print(repr(error))
    sys.stdout.flush()
    import os
    os._exit({_NO_GRAPHICS})
import numpy as np
shown = {{}}
"""


def draw(script: str, folder: Path) -> dict[str, NDArray[Any]]:
    """Runs a script that renders without a screen; skips the test where nothing can be rendered.

    Args:
        script: Python that fills the dictionary `shown` with arrays.
        folder: Where the arrays may be written to.

    Returns:
        What is in `shown` at the end.
    """
    path = folder / "shown.npz"
    done = subprocess.run(
        [sys.executable, "-c", f"{_PROBE}\n{script}\nnp.savez({str(path)!r}, **shown)"],
        env={**os.environ, "MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")},
        capture_output=True,
        text=True,
    )
    if done.returncode == _NO_GRAPHICS:
        pytest.skip(f"MuJoCo finds no graphics library: {done.stdout.strip()}")
    assert done.returncode == 0, done.stderr
    with np.load(path) as arrays:
        return dict(arrays)
