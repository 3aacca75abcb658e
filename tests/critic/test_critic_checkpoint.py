"""Saving and loading a critic: the same critic comes back, anything else is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from checkpoint_files import signed
from critics import (
    assert_same_state,
    both_models,
    cluster_critic,
    generator,
    ignore_demonstration_warnings,
    state_of,
    tiny_critic,
    two_clusters,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sb3_diffbc.checkpoints import CheckpointError
from sb3_diffbc.critic import DiffusionCritic

pytestmark = ignore_demonstration_warnings


@both_models
def test_a_loaded_critic_has_the_same_losses_and_samples(models: str, tmp_path: Path) -> None:
    critic = cluster_critic(models)
    path = critic.save(tmp_path / "critic")
    assert path == tmp_path / "critic.safetensors"
    loaded = DiffusionCritic.load(path, device="cpu")
    assert_same_state(state_of(loaded), state_of(critic))
    for name in ("config", "history", "is_fitted", "observation_space", "action_space"):
        assert getattr(loaded, name) == getattr(critic, name)
    assert not any(p.requires_grad for p in loaded.parameters())
    data = two_clusters(20)
    losses = [
        c.denoising_loss(data.obs, data.acts, generator=generator()) for c in (critic, loaded)
    ]
    assert th.equal(*losses)
    arguments: dict[str, Any] = {"n": 3} if models == "state_action" else {"obs": data.obs}
    samples = [c.sample(**arguments, generator=generator()) for c in (critic, loaded)]
    assert all(th.equal(*parts) for parts in zip(*samples, strict=True))


@pytest.mark.parametrize("seed", [None, 5])
def test_a_loaded_critic_is_fitted_on_as_the_saved_one(seed: int | None, tmp_path: Path) -> None:
    critic = tiny_critic(n_steps=8, seed=seed)
    critic.fit(two_clusters(), progress_bar=False)
    loaded = DiffusionCritic.load(critic.save(tmp_path / "critic"), device="cpu")
    for each in (critic, loaded):
        each.fit(two_clusters(seed=1), progress_bar=False)
    assert_same_state(state_of(loaded), state_of(critic))


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    critic = tiny_critic(n_steps=4, seed=0)
    critic.fit(two_clusters(), progress_bar=False)
    return critic.save(tmp_path / "critic")


def rewrite(path: Path, **changes: Any) -> None:
    """Changes a file's tensors or, in its header, entries of the metadata or of the content."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stream:
        metadata = stream.metadata()
    content = json.loads(metadata["content"])
    for keys, value in changes.pop("content", {}).items():
        *parents, last = keys.split("/")
        inner = content
        for key in parents:
            inner = inner[key]
        if value is DELETED:
            del inner[last]
        else:
            inner[last] = value
    metadata |= {"content": json.dumps(content), **changes.pop("metadata", {})}
    for name, value in changes.items():
        tensors[name.replace("__", ".")] = value
    save_file({k: v for k, v in tensors.items() if v is not DELETED}, path, metadata)
    path.write_bytes(signed(path.read_bytes()))


DELETED: Any = object()
MALFORMED: list[tuple[str, Any]] = [
    ("observation_space", DELETED),
    ("action_space", {"type": "Tuple", "spaces": []}),
    ("config/device", "cpu"),
    ("config/width", 2**40),
    ("history/steps", 3),
]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        pytest.param(k, v, id=f"{k}-{'deleted' if v is DELETED else json.dumps(v)}")
        for k, v in MALFORMED
    ],
)
def test_malformed_content_is_refused(keys: str, value: Any, saved: Path) -> None:
    rewrite(saved, content={keys: value})
    with pytest.raises(CheckpointError, match=r"critic\.safetensors"):
        DiffusionCritic.load(saved, device="cpu")


def test_a_file_that_lacks_what_the_score_is_measured_against_is_refused(saved: Path) -> None:
    rewrite(saved, calibration__quantiles=DELETED)
    with pytest.raises(CheckpointError, match="missing calibration"):
        DiffusionCritic.load(saved)


def test_files_that_are_no_critic_are_refused(saved: Path, tmp_path: Path) -> None:
    th.save(cluster_critic("action").state_dict(), tmp_path / "critic.pt")
    np.savez(tmp_path / "critic.npz", weight=np.zeros(3))
    rewrite(saved, metadata={"kind": "policy"})
    for name in ("critic.pt", "critic.npz", saved.name):
        with pytest.raises(CheckpointError, match=name):
            DiffusionCritic.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DiffusionCritic.load(tmp_path / "nowhere")
