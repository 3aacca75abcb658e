"""Damaged and foreign files in the place of a saved trainer: a clear error and nothing else."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch as th
from toys import train, trainer, transitions

from sb3_diffbc import CheckpointError, DiffusionBC
from sb3_diffbc.checkpoints import load_checkpoint, save_checkpoint

DATA = transitions()
AnyContent = pydantic.RootModel[dict[str, Any]]
Parts = tuple[dict[str, th.Tensor], dict[str, Any]]


def load(path: Path) -> DiffusionBC:
    return DiffusionBC.load(path, demonstrations=DATA, verbose=0, device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """The parts of a trainer in the middle of a pass, with an own critic."""
    algorithm = trainer(demonstrations=DATA, policy=None, seed=3, critic_kwargs={"n_steps": 2})
    train(algorithm, n_batches=3)
    path = algorithm.save(tmp_path_factory.mktemp("saved") / "trainer")
    tensors, content = load_checkpoint(path, kind="trainer", content=AnyContent)
    return tensors, content.root


def changed(content: dict[str, Any], place: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy with another value at a place; ``KeyError`` as the value removes it."""
    result = copy.deepcopy(content)
    parent: Any = result
    for key in place[:-1]:
        parent = parent[key]
    if value is KeyError:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return result


def load_parts(folder: Path, tensors: dict[str, th.Tensor], content: dict[str, Any]) -> DiffusionBC:
    path = save_checkpoint(
        folder / "damaged", kind="trainer", tensors=tensors, content=AnyContent(content)
    )
    return load(path)


def test_a_file_cannot_have_modules_imported(
    saved: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Gymnasium imports what stands before the colon of an environment's id.
    (tmp_path / "intruder.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    tensors, content = saved
    with pytest.raises(CheckpointError):
        load_parts(tmp_path, tensors, changed(content, ("arguments", "env"), "intruder:Env-v0"))
    assert "intruder" not in sys.modules


@pytest.mark.parametrize(
    "name",
    [
        *("policy/log_std", "encoder/obs_mean", "critic/denoiser.out.bias"),
        *("optimizer/1/exp_avg", "rng/torch", "rng/noise"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "another type", "too short", "another shape"])
def test_damaged_tensors_are_checkpoint_errors(
    damage: str, name: str, saved: Parts, tmp_path: Path
) -> None:
    tensors, content = saved
    original = tensors[name]
    damaged = {key: value for key, value in tensors.items() if key != name}
    if damage != "missing":
        damaged[name] = {
            "another type": original.double(),
            "too short": original.reshape(-1)[:-1].clone(),
            "another shape": th.zeros(7, 5, 3),
        }[damage]
    # Noise then starts anew, as it does in a run without L_DM.
    if (damage, name) == ("missing", "rng/noise"):
        load_parts(tmp_path, damaged, content)
        return
    with pytest.raises(CheckpointError):
        load_parts(tmp_path, damaged, content)


def test_a_failed_load_leaves_the_random_state_alone(saved: Parts, tmp_path: Path) -> None:
    tensors, content = saved
    path = save_checkpoint(
        tmp_path / "damaged",
        kind="trainer",
        tensors=tensors,
        content=AnyContent(changed(content, ("state",), KeyError)),
    )
    th.manual_seed(4)
    before = th.get_rng_state()
    with pytest.raises(CheckpointError):
        DiffusionBC.load(path, verbose=0, device="cpu")
    assert th.equal(th.get_rng_state(), before)
