"""Small critics and demonstrations that the critic's tests share."""

import functools
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
import toys
from gymnasium import spaces
from imitation.data.types import TransitionsMinimal

from sb3_diffbc.critic import DiffusionCritic

TINY: dict[str, Any] = {"width": 8, "depth": 1, "num_train_timesteps": 20, "device": "cpu"}
# T = 50 levels of a schedule that ends in pure noise, as sampling needs.
CLUSTERS: dict[str, Any] = {
    "width": 32,
    "depth": 2,
    "beta_schedule": "cosine",
    "num_train_timesteps": 50,
    "learning_rate": 5e-3,
    "n_steps": 500,
    "seed": 0,
    "device": "cpu",
}

both_models = pytest.mark.parametrize("models", ["state_action", "action"])
both_denoisers = pytest.mark.parametrize("denoiser", ["residual", "release"])
ignore_demonstration_warnings = pytest.mark.filterwarnings(
    "ignore::sb3_diffbc.demonstrations.DemonstrationWarning"
)


def real_box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def minimal(obs: np.ndarray, acts: np.ndarray) -> TransitionsMinimal:
    return TransitionsMinimal(obs=obs, acts=acts, infos=np.full(len(acts), {}))


def random_critic(
    observation_space: gym.Space = toys.VECTOR,
    action_space: gym.Space = toys.CONTINUOUS,
    *,
    seed: int = 0,
    **kwargs: Any,
) -> DiffusionCritic:
    """A critic with random weights and the statistics of random demonstrations."""
    critic = DiffusionCritic(observation_space, action_space, **{**TINY, **kwargs})
    data = toys.transitions(observation_space, action_space, seed=seed)
    critic.encoder.fit(data.obs, data.acts)
    with th.no_grad():  # an untrained network predicts 0 whatever it is shown
        for parameter in critic.denoiser.parameters():
            parameter.normal_(std=0.5, generator=generator(seed))
    critic.is_fitted = True
    return critic


def two_clusters(n: int = 400, seed: int = 0) -> TransitionsMinimal:
    """Pairs around (10, 0) → (3, -3) and (14, 0.2) → (-3, 3): far from standardised."""
    rng = np.random.default_rng(seed)
    side = rng.choice([-1.0, 1.0], size=(n, 1))
    obs = np.hstack([12 - 2 * side, 0.1 - 0.1 * side]) + rng.normal(size=(n, 2)) * [0.1, 0.005]
    acts = side * [[3.0, -3.0]] + rng.normal(size=(n, 2)) * 0.15
    return minimal(obs.astype(np.float32), acts.astype(np.float32))


@functools.cache
def cluster_critic(models: str) -> DiffusionCritic:
    """A critic fitted to the two clusters; tests only read it."""
    critic = DiffusionCritic(real_box(2), real_box(2), models=models, **CLUSTERS)  # type: ignore[arg-type]
    critic.fit(two_clusters(), progress_bar=False)
    return critic


def tiny_critic(**kwargs: Any) -> DiffusionCritic:
    """An unfitted critic of the two clusters' spaces."""
    return DiffusionCritic(real_box(2), real_box(2), **{**TINY, **kwargs})


def state_of(critic: DiffusionCritic) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in critic.state_dict().items()}


def assert_same_state(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(th.equal(one[name], other[name]) for name in one)
