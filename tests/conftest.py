"""Fixtures shared by all tests."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch as th
from hypothesis import settings

# How long an example takes says more about the machine than about the code.
settings.register_profile("without deadlines", deadline=None)
settings.load_profile("without deadlines")

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


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[th.Tensor, Any]]:
    """Fills up with the actions and the metrics of every (mini)batch that is trained on."""
    from sb3_diffbc.losses import DiffusionBCLoss

    seen: list[tuple[th.Tensor, Any]] = []
    original = DiffusionBCLoss.__call__

    def call(self: DiffusionBCLoss, policy: Any, obs: Any, acts: Any) -> Any:
        metrics = original(self, policy, obs, acts)
        seen.append((acts, metrics))
        return metrics

    monkeypatch.setattr(DiffusionBCLoss, "__call__", call)
    return seen


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fills up with the demonstrations of every fit of a critic."""
    from sb3_diffbc.critic.fitting import CriticFit

    seen: list[Any] = []
    original = CriticFit.run

    def run(self: CriticFit, transitions: Any, **kwargs: Any) -> Any:
        seen.append(transitions)
        return original(self, transitions, **kwargs)

    monkeypatch.setattr(CriticFit, "run", run)
    return seen
