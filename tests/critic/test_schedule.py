"""The noise schedule: diffusers' numbers, the forward process, antithetic levels."""

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
from hypothesis import given, settings

from sb3_diffbc.critic.schedule import BETA_SCHEDULES, NoiseSchedule

TABLE = json.loads(Path(__file__).with_name("diffusers_schedules.json").read_text())
# Ours are computed in double precision and rounded once, diffusers' in single precision
# throughout: the betas differ by a few units in the last place (2**-24, relatively).
BETA_RTOL = 5e-7
# A cumulative product inherits its factors' errors. The capped cosine ends with 1 - 0.999, which
# single precision knows to 1.3e-5 only; all other levels of all schedules are within 8e-7.
ALPHA_RTOL = 2e-5
ALPHA_ATOL = 5e-7
# diffusers takes sqrt(1 - alphas_cumprod) after rounding alphas_cumprod, near 1 at first levels.
NOISY_ATOL = 1e-5

names = st.sampled_from(sorted(BETA_SCHEDULES))
sizes = st.integers(1, 300)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=f"{row['beta_schedule']}-{row['num_train_timesteps']}")
        for row in TABLE["schedules"]
    ],
)
def test_schedules_equal_the_table_of_diffusers(row: dict[str, Any]) -> None:
    schedule = NoiseSchedule(row["beta_schedule"], row["num_train_timesteps"])
    betas, alphas, levels = schedule.betas, schedule.alphas_cumprod, th.tensor(row["levels"])
    np.testing.assert_allclose(betas[levels], row["betas"], rtol=BETA_RTOL)
    np.testing.assert_allclose(betas.double().sum(), row["sum_of_betas"], rtol=BETA_RTOL)
    np.testing.assert_allclose(alphas[levels], row["alphas_cumprod"], rtol=ALPHA_RTOL)
    np.testing.assert_allclose(alphas[levels], row["alphas_cumprod"], rtol=0, atol=ALPHA_ATOL)
    np.testing.assert_allclose(alphas.double().sum(), row["sum_of_alphas_cumprod"], rtol=5e-7)
    clean, noise = (th.full((len(levels), 1), TABLE[name]) for name in ("clean", "noise"))
    noisy = schedule.add_noise(clean, noise, levels).squeeze(-1)
    np.testing.assert_allclose(noisy, row["noisy"], rtol=0, atol=NOISY_ATOL)


def test_cosine_is_another_name_of_squaredcos_cap_v2() -> None:
    cosine, squaredcos = NoiseSchedule("cosine", 77), NoiseSchedule("squaredcos_cap_v2", 77)
    assert th.equal(cosine.betas, squaredcos.betas)


@settings(deadline=None, max_examples=40)
@given(name=names, size=sizes)
def test_every_level_adds_noise_and_removes_signal(name: str, size: int) -> None:
    schedule = NoiseSchedule(name, size)
    assert schedule.betas.shape == schedule.alphas_cumprod.shape == (size,)
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == th.float32
    assert ((schedule.betas > 0) & (schedule.betas < 1)).all()
    assert ((schedule.alphas_cumprod > 0) & (schedule.alphas_cumprod < 1)).all()
    assert (schedule.alphas_cumprod.diff() < 0).all()
    slow = [np.prod(1 - schedule.betas[: n + 1].double().numpy()) for n in range(size)]
    # The betas were rounded after the product was taken: 1 - 0.999 amplifies that (see above).
    np.testing.assert_allclose(schedule.alphas_cumprod, slow, rtol=5e-5)


# --- bad arguments ------------------------------------------------------------------------------


def test_less_than_one_level_is_refused() -> None:
    with pytest.raises(ValueError, match="num_train_timesteps=0 must be at least 1"):
        NoiseSchedule("linear", 0)
