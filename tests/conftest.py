"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest
import torch as th

_BESIDE_THE_PROJECT = Path(__file__).resolve().parents[2] / "shared" / "paper"


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    # Small networks gain nothing from threads, and tests may run in several processes.
    th.set_num_threads(1)


@pytest.fixture(scope="session")
def paper_data() -> Path:
    """Folder with the authors' maze.pt, walker.pt, halfcheetah.pt and maze_ddpm.pt."""
    folder = Path(os.environ.get("SB3_DIFFBC_PAPER_DATA", _BESIDE_THE_PROJECT))
    if not (folder / "maze.pt").is_file():
        pytest.skip(
            f"the authors' data is not in {folder} (set SB3_DIFFBC_PAPER_DATA to its folder)"
        )
    return folder
