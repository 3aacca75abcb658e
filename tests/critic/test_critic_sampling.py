"""Ancestral sampling: the distribution of the samples, their randomness, and bad arguments."""

from typing import Any

import numpy as np
import pytest
import torch as th
import toys
from critics import (
    both_models,
    cluster_critic,
    generator,
    ignore_demonstration_warnings,
    real_box,
    tiny_critic,
    two_clusters,
)
from gymnasium import spaces
from torch import nn

from sb3_diffbc.critic import DiffusionCritic

pytestmark = ignore_demonstration_warnings


class GaussianDenoiser(nn.Module):
    """The best possible noise prediction where the data is normal: E[ε | x_n] in closed form."""

    def __init__(self, critic: DiffusionCritic, mean: th.Tensor, covariance: th.Tensor) -> None:
        super().__init__()
        self.schedule, self.mean, self.covariance = critic.schedule, mean, covariance

    def forward(self, state: th.Tensor, action: th.Tensor, timesteps: th.Tensor) -> th.Tensor:
        share = self.schedule.alphas_cumprod[timesteps[0]]
        noisy = th.cat([state, action], dim=-1)
        spread = share * self.covariance + (1 - share) * th.eye(len(self.mean))
        deviation = noisy - share.sqrt() * self.mean
        return (1 - share).sqrt() * th.linalg.solve(spread, deviation.T).T


def test_sampling_turns_a_perfect_prediction_into_the_datas_distribution() -> None:
    critic = DiffusionCritic(
        real_box(2), real_box(1), beta_schedule="cosine", num_train_timesteps=300, device="cpu"
    )
    data = two_clusters()
    critic.encoder.fit(data.obs, data.acts[:, :1])
    mean = th.tensor([0.5, -1.0, 0.2])
    covariance = th.tensor([[0.5, 0.3, 0.0], [0.3, 0.8, -0.4], [0.0, -0.4, 0.6]])
    critic.denoiser = GaussianDenoiser(critic, mean, covariance)  # type: ignore[assignment]
    critic.is_fitted = True
    obs, acts = critic.sample(20_000, generator=generator())
    codes = th.cat([critic.encoder.encode_obs(obs), critic.encoder.encode_acts(acts)], dim=-1)
    np.testing.assert_allclose(codes.mean(dim=0), mean, atol=0.02)
    np.testing.assert_allclose(codes.T.cov(), covariance, atol=0.03)


def test_samples_of_actions_lie_in_the_cluster_of_their_observation() -> None:
    unseen = two_clusters(300, seed=1)
    obs, acts = cluster_critic("action").sample(obs=unseen.obs, generator=generator())
    np.testing.assert_allclose(obs, unseen.obs, rtol=1e-4, atol=1e-4)
    side = np.sign(unseen.acts[:, :1])
    near = np.abs(acts.numpy() - side * [[3.0, -3.0]]).max(axis=1) < 1
    assert near.mean() > 0.95


@pytest.mark.parametrize("space", toys.ACTION_SPACES, ids=toys.space_id)
@both_models
def test_samples_are_actions_of_the_space(space: Any, models: str) -> None:
    critic = toys.critic(toys.MAPPING, space, models=models, n_steps=2)
    data = toys.transitions(toys.MAPPING, space, n=5)
    arguments: dict[str, Any] = {"n": 5} if models == "state_action" else {"obs": data.obs}
    obs, acts = critic.sample(**arguments, generator=generator())
    assert obs.shape == (5, critic.encoder.obs_dim)
    assert acts.shape == data.acts.shape
    assert acts.isfinite().all()
    if not isinstance(space, spaces.Box):
        assert all(space.contains(row.astype(space.dtype)) for row in acts.numpy())


@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        ("state_action", {}, "n=None"),
        ("state_action", {"n": 0}, "n=0"),
        ("state_action", {"n": 2, "obs": np.zeros((2, 2), np.float32)}, "n=2 and obs"),
        ("action", {}, "no obs"),
        ("action", {"n": 2, "obs": np.zeros((2, 2), np.float32)}, "n=2"),
    ],
)
def test_sampling_refuses_what_its_model_does_not_take(
    models: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_critic(models=models).sample(**arguments)
