"""The study of the critic's settings: levels, draws, what the critic sees, coefficients."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch as th

pytest.importorskip("pandas")

from comparing import ORIGIN, line_suite
from toys import CONTINUOUS, CRITIC_KWARGS, VECTOR, critic, trainer, transitions, weights

from benchmarks.methods.base import Setup
from benchmarks.methods.studied_bc import StudiedLoss, StudiedMethod
from benchmarks.suites.critic_settings import COEFFICIENTS, SUITE
from sb3_diffbc import DiffusionBC
from sb3_diffbc.critic import Noise

DATA = transitions(n=64)
OBS, ACTS = th.as_tensor(DATA.obs.copy()), th.as_tensor(DATA.acts.copy())


def studied_loss(clamp: str = "sample", **arguments: Any) -> StudiedLoss:
    phi = critic(models="action", num_train_timesteps=1000)
    return StudiedLoss(phi, th.Generator().manual_seed(0), clamp, **arguments)


def trained(**arguments: Any) -> StudiedMethod:
    arguments = {"bc_loss": "mse", "critic_kwargs": CRITIC_KWARGS, "n_updates": 12, **arguments}
    method = StudiedMethod(Setup(DATA, VECTOR, CONTINUOUS), **arguments)
    method.train(lambda: None)
    return method


def test_nothing_is_studied_unless_it_is_asked_for() -> None:
    plain = trainer(demonstrations=DATA, policy=None, bc_loss="mse", batch_size=None, seed=0)
    assert isinstance(plain, DiffusionBC)
    plain.DEFAULT_N_BATCHES = 12
    plain.train(progress_bar=False)
    assert th.equal(weights(trained().policy), weights(plain.policy))


@pytest.mark.parametrize("noise_std", [(0.0, 0.3), (0.5, 1.0), (0.0, 1.0)])
def test_levels_are_drawn_evenly_between_both_bounds(noise_std: tuple[float, float]) -> None:
    loss = studied_loss(noise_std=noise_std)
    std = loss.critic.schedule.sqrt_one_minus_alphas_cumprod
    allowed = {n for n, value in enumerate(std.tolist()) if noise_std[0] <= value <= noise_std[1]}
    drawn = loss.draw_noise(40_000).timesteps
    assert set(drawn.tolist()) == allowed
    middle = sum(allowed) / len(allowed)
    assert float(drawn.float().mean()) == pytest.approx(middle, abs=1)
    assert float(drawn.float().std()) == pytest.approx(len(allowed) / 12**0.5, rel=0.02)


def test_the_clamp_sees_the_mean_over_a_pairs_draws() -> None:
    loss, agent_acts = studied_loss(n_draws=4), ACTS.flip(0)
    noise = loss.draw_noise(len(OBS))
    differences = th.stack(
        [
            loss.critic.denoising_loss(OBS, agent_acts, noise=draw)
            - loss.critic.denoising_loss(OBS, ACTS, noise=draw)
            for draw in map(Noise, *(part.split(len(OBS)) for part in noise))
        ]
    )
    found = loss(OBS, agent_acts, ACTS, noise).loss
    assert found == pytest.approx(differences.mean(dim=0).clamp(min=0).mean().item(), rel=1e-4)
    assert found < 0.99 * differences.clamp(min=0).mean(), "not the mean of clamped draws"


def test_a_contrast_gives_nothing_to_what_is_as_likely_at_other_observations() -> None:
    def slope(is_contrast: bool, obs: th.Tensor) -> float:
        loss = studied_loss("none", is_contrast=is_contrast)
        agent_acts = ACTS.flip(0).clone().requires_grad_()
        loss(obs, agent_acts, ACTS).loss.backward()
        assert agent_acts.grad is not None
        return float(agent_acts.grad.norm())

    everywhere = OBS[:1].expand_as(OBS)
    assert slope(is_contrast=True, obs=everywhere) == pytest.approx(0, abs=1e-6)
    assert slope(is_contrast=False, obs=everywhere) > 1e-3
    assert slope(is_contrast=True, obs=OBS) > 1e-3
    assert studied_loss(is_contrast=True)(OBS, ACTS, ACTS).loss == 0


def test_a_critic_of_actions_alone_knows_no_observation() -> None:
    phi = trained(critic_sees_obs=False).trainer.critic
    assert phi is not None
    noise = phi.draw_noise(len(OBS), th.Generator().manual_seed(0))
    one, other = (phi.denoising_loss(obs, ACTS, noise=noise) for obs in (OBS, OBS.flip(0)))
    assert th.equal(one, other)
    assert not th.equal(one, phi.denoising_loss(OBS, ACTS.flip(0), noise=noise))


def test_there_is_one_variant_for_each_ratio_of_the_coefficients(tmp_path: Path) -> None:
    values = (0.0, 0.1, 0.5, 1.0, 2.0, 10.0, 30.0)
    wanted = {dm / bc if bc else math.inf for bc in values for dm in values if bc or dm}
    found = [dm / bc if bc else math.inf for bc, dm in (*COEFFICIENTS, (1.0, 3.0))]  # the base
    assert sorted(found) == pytest.approx(sorted({round(ratio, 9) for ratio in wanted}))
    cells, notes = line_suite(tmp_path, *SUITE.variants, n_seeds=1).cells(ORIGIN)
    assert not notes
    assert len({json.dumps(cell.config) for cell in cells}) == len(cells) == len(SUITE.variants)
