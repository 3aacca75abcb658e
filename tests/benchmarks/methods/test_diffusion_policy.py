"""Diffusion Policy: the loss, both samplers against closed forms, and the averaged weights."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.data.types import TransitionsMinimal
from torch import nn

from benchmarks.methods.base import Setup
from benchmarks.methods.diffusion_policy import (
    DiffusionPolicy,
    denoise,
    reverse_steps,
)
from sb3_diffbc.critic.schedule import NoiseSchedule

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
SCHEDULE = NoiseSchedule("squaredcos_cap_v2", 100)
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "batch_size": 16}


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def small_method(
    data: TransitionsMinimal | None = None, n_updates: int = 20, **arguments: Any
) -> DiffusionPolicy:
    setup = Setup(transitions() if data is None else data, OBSERVATIONS, ACTIONS)  # type: ignore[arg-type]
    return DiffusionPolicy(setup, n_updates=n_updates, **(SMALL | arguments))


def transitions(n: int = 40) -> TransitionsMinimal:
    rng = np.random.default_rng(0)
    return TransitionsMinimal(
        obs=rng.normal(size=(n, 2)).astype(np.float32),
        acts=rng.uniform(-1, 1, (n, 2)).astype(np.float32),
        infos=np.full(n, {}),
    )


class PerfectNoise:
    """E[ε | x_n] where clean samples are normal with this mean and standard deviation."""

    def __init__(self, schedule: NoiseSchedule, mean: float, std: float) -> None:
        self.shares = schedule.alphas_cumprod.double()
        self.mean, self.std = mean, std

    def __call__(self, noisy: th.Tensor, level: int) -> th.Tensor:
        share = float(self.shares[level])
        variance = share * self.std**2 + 1 - share
        return (1 - share) ** 0.5 * (noisy - share**0.5 * self.mean) / variance


# --- the loss -----------------------------------------------------------------------------------


def test_the_loss_is_the_mean_squared_error_of_the_noise() -> None:
    th.manual_seed(0)
    method = small_method()
    nn.init.normal_(method.network.out.weight)
    obs, acts = th.randn(6, 2), th.rand(6, 2)
    found = method._loss(obs, acts, source := generator())
    source.manual_seed(0)
    timesteps = th.randint(100, (6,), generator=source)
    noise = th.randn(6, 2, generator=source)
    share = SCHEDULE.alphas_cumprod[timesteps].unsqueeze(-1)
    noisy = share.sqrt() * acts + (1 - share).sqrt() * noise
    expected = ((method.network(obs, noisy, timesteps) - noise) ** 2).sum() / 12
    np.testing.assert_allclose(found.detach(), expected.detach(), rtol=1e-5)


# --- coefficients of the reverse process --------------------------------------------------------


def test_all_levels_with_all_the_noise_are_ddpm_with_the_smaller_variance() -> None:
    betas, shares = SCHEDULE.betas.double(), SCHEDULE.alphas_cumprod.double()
    previous = th.cat([th.ones(1).double(), shares[:-1]])
    variance = (1 - previous) / (1 - shares) * betas
    clean_weight = previous.sqrt() * betas / (1 - shares)
    noisy_weight = (1 - betas).sqrt() * (1 - previous) / (1 - shares)
    steps = reverse_steps(SCHEDULE, 100, eta=1.0)
    assert [step.level for step in steps] == list(range(99, -1, -1))
    for step in steps:
        level = step.level
        found = [step.sigma**2, step.clean_weight, step.noisy_weight]
        expected = [variance[level], clean_weight[level], noisy_weight[level]]
        # The schedule was rounded to single precision, of which 1 - ᾱ keeps less at first levels.
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("n_steps", [1, 7, 10, 100])
def test_ddim_steps_go_from_the_noisiest_level_to_the_clean_sample(n_steps: int) -> None:
    steps = reverse_steps(SCHEDULE, n_steps, eta=0.0)
    assert len(steps) == n_steps
    assert steps[0].level == 99
    levels = [step.level for step in steps]
    gaps = -np.diff([*levels, -1])
    assert set(gaps) <= {100 // n_steps, -(-100 // n_steps)}
    assert all(step.sigma == 0 for step in steps)
    assert steps[-1].clean_weight == 1
    assert steps[-1].noisy_weight == 0


def test_ddim_keeps_the_noise_and_changes_its_share() -> None:
    clean, noise = th.tensor([[0.4, -0.7]]), th.tensor([[1.3, 0.2]])
    steps = reverse_steps(SCHEDULE, 10, eta=0.0)
    for step, following in pairwise(steps):
        noisy = step.signal * clean + step.noise * noise
        found = step.clean_weight * clean + step.noisy_weight * noisy
        np.testing.assert_allclose(
            found, following.signal * clean + following.noise * noise, atol=1e-6
        )


# --- samples of a perfect model -----------------------------------------------------------------


def test_ddpm_reproduces_a_gaussian() -> None:
    start = th.randn(8_000, 1, generator=generator())
    fresh = th.randn(100, 8_000, 1, generator=generator(1))
    steps = reverse_steps(SCHEDULE, 100, eta=1.0)
    found = denoise(PerfectNoise(SCHEDULE, 0.5, 0.2), steps, start, fresh, clip=None)
    np.testing.assert_allclose(found.mean(), 0.5, atol=0.02)
    # A hundred steps with the smaller variance lose a little of the spread.
    np.testing.assert_allclose(found.std(), 0.2, rtol=0.06)
    standardised = ((found - found.mean()) / found.std()).squeeze(-1)
    quantiles = th.tensor([0.025, 0.25, 0.75, 0.975])
    expected = [-1.96, -0.674, 0.674, 1.96]
    np.testing.assert_allclose(th.quantile(standardised, quantiles), expected, atol=0.08)


def test_ddim_maps_the_noise_to_the_same_quantile() -> None:
    schedule = NoiseSchedule("squaredcos_cap_v2", 1000)
    start = th.linspace(-2.5, 2.5, 21).unsqueeze(-1)
    steps = reverse_steps(schedule, 1000, eta=0.0)
    found = denoise(PerfectNoise(schedule, -0.3, 0.6), steps, start, clip=None)
    np.testing.assert_allclose(found, -0.3 + 0.6 * start, atol=0.005)


def test_the_clean_estimate_is_clipped() -> None:
    start = th.randn(200, 2, generator=generator()) * 3
    steps = reverse_steps(SCHEDULE, 10, eta=0.0)
    found = denoise(lambda noisy, level: -noisy, steps, start)
    assert found.abs().max() <= 1
    assert denoise(lambda noisy, level: -noisy, steps, start, clip=None).abs().max() > 1


# --- the policy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler", [{"sampler": "ddpm"}, {"sampler": "ddim", "n_inference_steps": 10}], ids=str
)
def test_either_sampler_draws_what_was_demonstrated(sampler: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (2000, 2)).astype(np.float32)
    acts = (obs * 0.6 + rng.normal(scale=0.05, size=obs.shape)).astype(np.float32)
    data = TransitionsMinimal(obs=obs, acts=acts, infos=np.full(2000, {}))
    sizes: dict[str, Any] = {"width": 32, "batch_size": 128, "learning_rate": 3e-3}
    method = small_method(data, 500, **sizes, **sampler)
    method.train(lambda: None)
    errors = method.policy.predict(obs[:500])[0] - obs[:500] * 0.6
    assert np.abs(errors.mean()) < 0.03
    assert 0 < np.sqrt((errors**2).mean()) < 0.12


def test_the_policy_acts_with_averaged_weights() -> None:
    method = small_method(n_updates=12, learning_rate=1e-2)
    current: list[th.Tensor] = []
    averaged: list[th.Tensor] = []

    def on_progress() -> None:
        current.append(nn.utils.parameters_to_vector(method.network.parameters()).detach())
        averaged.append(nn.utils.parameters_to_vector(method.averaged.parameters()).detach())

    method.train(on_progress)
    expected = current[0]
    for n, weights in enumerate(current):
        decay = 1 - max(n, 1) ** -0.75
        expected = decay * expected + (1 - decay) * weights
        np.testing.assert_allclose(averaged[n], expected, atol=1e-6)
    assert not th.allclose(averaged[-1], current[-1], atol=1e-4)
    method.policy.reset_noise()
    before, _ = method.policy.predict(np.ones((5, 2), np.float32))
    with th.no_grad():
        for parameter in method.network.parameters():
            parameter.zero_()
    method.policy.reset_noise()
    np.testing.assert_array_equal(method.policy.predict(np.ones((5, 2), np.float32))[0], before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "euler"}, r"sampler: found 'euler', expected one of ddpm, ddim"),
        ({"n_inference_steps": 0}, "n_steps=0"),
        ({"n_inference_steps": 101}, "n_steps=101"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_method(**arguments)
