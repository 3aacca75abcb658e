"""On a GPU: the same losses as on the CPU, and trainings that can be left and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from toys import (
    ACTION_SPACES,
    CRITIC_KWARGS,
    LINE_ENV_ID,
    MAPPING,
    VECTOR,
    space_id,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import DiffusionBC, DiffusionCritic, load_policy

pytestmark = pytest.mark.skipif(not th.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=space_id)
@pytest.mark.parametrize("observation_space", [VECTOR, MAPPING], ids=space_id)
def test_losses_are_those_of_the_cpu(observation_space: gym.Space, action_space: gym.Space) -> None:
    data = transitions(observation_space, action_space)
    critic = DiffusionCritic(observation_space, action_space, device="cpu", **CRITIC_KWARGS)
    critic.fit(data, progress_bar=False)
    noise = critic.draw_noise(len(data), th.Generator().manual_seed(0))
    on_cpu = critic.denoising_loss(data.obs, data.acts, noise=noise)
    critic.to("cuda")
    moved = type(noise)(*(part.cuda() for part in noise))
    on_gpu = critic.denoising_loss(data.obs, data.acts, noise=moved)
    th.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"bc_loss": "mse"}, {"compile": True}], ids=str)
def test_a_policy_trains_and_goes_on_from_a_file(tmp_path: Path, arguments: dict[str, Any]) -> None:
    whole = trainer(device="cuda", seed=0, **arguments)
    train(whole, n_batches=20)
    assert {p.device.type for p in whole.policy.parameters()} == {"cuda"}
    cut = trainer(device="cuda", seed=0, **arguments)
    train(cut, n_batches=10)
    saved = cut.save(tmp_path / "trainer")
    resumed = DiffusionBC.load(
        saved,
        demonstrations=transitions(),
        device="cuda",
        verbose=0,
        compile=arguments.get("compile", False),
    )
    train(resumed, n_batches=10)
    th.testing.assert_close(
        weights(resumed.policy).cpu(), weights(whole.policy).cpu(), rtol=1e-3, atol=1e-4
    )


def test_a_policy_of_the_gpu_runs_on_the_cpu(tmp_path: Path) -> None:
    data = transitions(gym.make(LINE_ENV_ID).observation_space, gym.make(LINE_ENV_ID).action_space)
    algorithm = DiffusionBC(
        demonstrations=data, env=LINE_ENV_ID, device="cuda", critic_kwargs=CRITIC_KWARGS, verbose=0
    )
    train(algorithm, n_batches=10)
    assert len(algorithm.evaluate(3).returns) == 3
    policy = load_policy(algorithm.save_policy(tmp_path / "policy"), device="cpu")
    found = policy.predict(data.obs, deterministic=True)[0]
    np.testing.assert_allclose(
        found, algorithm.predict(data.obs, deterministic=True)[0], rtol=1e-4, atol=1e-5
    )
