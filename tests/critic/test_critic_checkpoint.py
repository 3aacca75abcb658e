"""Saving and loading a critic: the same critic comes back, anything else is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch as th
from checkpoint_files import put_together, signed, taken_apart
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
    assert th.equal(*(c.score(data.obs, data.acts, raw=True) for c in (critic, loaded)))
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


def test_a_file_chooses_no_device(saved: Path) -> None:
    header, rest = taken_apart(saved.read_bytes())
    content = json.loads(header["__metadata__"]["content"])
    content["config"]["device"] = "cpu"
    header["__metadata__"]["content"] = json.dumps(content)
    saved.write_bytes(put_together(header, rest))
    with pytest.raises(CheckpointError, match=r"critic\.safetensors"):
        DiffusionCritic.load(saved, device="cpu")


def test_a_file_that_lacks_what_the_score_is_measured_against_is_refused(saved: Path) -> None:
    with safe_open(saved, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(saved)
    del tensors["calibration.quantiles"]
    save_file(tensors, saved, metadata)
    saved.write_bytes(signed(saved.read_bytes()))
    with pytest.raises(CheckpointError, match="missing calibration"):
        DiffusionCritic.load(saved)
