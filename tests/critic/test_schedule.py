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
ROWS = [
    pytest.param(row, id=f"{row['beta_schedule']}-{row['num_train_timesteps']}")
    for row in TABLE["schedules"]
]
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


def schedule_of(row: dict[str, Any]) -> NoiseSchedule:
    return NoiseSchedule(row["beta_schedule"], row["num_train_timesteps"])


# --- diffusers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_betas_equal_the_table_of_diffusers(row: dict[str, Any]) -> None:
    betas = schedule_of(row).betas
    np.testing.assert_allclose(betas[row["levels"]], row["betas"], rtol=BETA_RTOL)
    np.testing.assert_allclose(betas.double().sum(), row["sum_of_betas"], rtol=BETA_RTOL)


@pytest.mark.parametrize("row", ROWS)
def test_alphas_cumprod_equal_the_table_of_diffusers(row: dict[str, Any]) -> None:
    found = schedule_of(row).alphas_cumprod
    expected = np.array(row["alphas_cumprod"])
    np.testing.assert_allclose(found[row["levels"]], expected, rtol=ALPHA_RTOL)
    np.testing.assert_allclose(found[row["levels"]], expected, rtol=0, atol=ALPHA_ATOL)
    np.testing.assert_allclose(found.double().sum(), row["sum_of_alphas_cumprod"], rtol=5e-7)


@pytest.mark.parametrize("row", ROWS)
def test_noisy_samples_equal_the_table_of_diffusers(row: dict[str, Any]) -> None:
    levels = th.tensor(row["levels"])
    clean = th.full((len(levels), 1), TABLE["clean"])
    noise = th.full((len(levels), 1), TABLE["noise"])
    found = schedule_of(row).add_noise(clean, noise, levels).squeeze(-1)
    np.testing.assert_allclose(found, row["noisy"], rtol=0, atol=NOISY_ATOL)


def test_every_level_equals_diffusers_itself() -> None:
    diffusers = pytest.importorskip("diffusers")
    for row in TABLE["schedules"]:
        name, size = row["beta_schedule"], row["num_train_timesteps"]
        theirs = diffusers.DDPMScheduler(size, beta_schedule=name)
        ours = NoiseSchedule(name, size)
        np.testing.assert_allclose(ours.betas, theirs.betas, rtol=BETA_RTOL)
        for tolerance in ({"rtol": ALPHA_RTOL}, {"rtol": 0, "atol": ALPHA_ATOL}):
            np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, **tolerance)
        generator = th.Generator().manual_seed(0)
        clean, noise = th.randn(2, size, 5, generator=generator)
        levels = th.randperm(size, generator=generator)
        np.testing.assert_allclose(
            ours.add_noise(clean, noise, levels),
            theirs.add_noise(clean, noise, levels),
            rtol=0,
            atol=NOISY_ATOL,
        )


def test_the_sigmoid_schedule_is_the_one_of_the_authors_release() -> None:
    steps = np.linspace(-6, 6, 1000)
    expected = 1 / (1 + np.exp(-steps)) * (0.02 - 1e-4) + 1e-4
    np.testing.assert_allclose(NoiseSchedule("sigmoid", 1000).betas, expected, rtol=1e-7)


def test_cosine_is_another_name_of_squaredcos_cap_v2() -> None:
    cosine, squaredcos = NoiseSchedule("cosine", 77), NoiseSchedule("squaredcos_cap_v2", 77)
    assert th.equal(cosine.betas, squaredcos.betas)


# --- the forward process ------------------------------------------------------------------------


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


@settings(deadline=None, max_examples=40)
@given(name=names, size=sizes, batch=st.integers(1, 9), seed=st.integers(0, 2**32))
def test_noise_is_added_row_by_row_as_in_equation_4(
    name: str, size: int, batch: int, seed: int
) -> None:
    schedule = NoiseSchedule(name, size)
    generator = th.Generator().manual_seed(seed)
    clean, noise = th.randn(2, batch, 3, generator=generator)
    levels = th.randint(size, (batch,), generator=generator)
    found = schedule.add_noise(clean, noise, levels)
    for i, level in enumerate(levels.tolist()):
        share = float(schedule.alphas_cumprod[level])
        expected = np.sqrt(share) * clean[i].numpy() + np.sqrt(1 - share) * noise[i].numpy()
        np.testing.assert_allclose(found[i], expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(BETA_SCHEDULES))
def test_noise_keeps_the_variance_of_standardised_samples(name: str) -> None:
    schedule = NoiseSchedule(name, 1000)
    total = schedule.sqrt_alphas_cumprod**2 + schedule.sqrt_one_minus_alphas_cumprod**2
    np.testing.assert_allclose(total, np.ones(1000), atol=3e-7)


@pytest.mark.parametrize("name", ["linear", "sigmoid", "cosine", "scaled_linear"])
def test_a_thousand_levels_end_in_almost_pure_noise(name: str) -> None:
    assert NoiseSchedule(name, 1000).alphas_cumprod[-1] < 3e-3


def test_noise_passes_gradients_to_the_clean_sample_scaled_by_what_is_left_of_it() -> None:
    schedule = NoiseSchedule("sigmoid", 100)
    clean = th.zeros(3, 2, requires_grad=True)
    levels = th.tensor([0, 50, 99])
    schedule.add_noise(clean, th.ones(3, 2), levels).sum().backward()
    expected = schedule.sqrt_alphas_cumprod[levels].unsqueeze(-1).expand(3, 2)
    np.testing.assert_allclose(clean.grad, expected)


def test_a_schedule_adds_nothing_to_a_checkpoint() -> None:
    assert NoiseSchedule("linear", 10).state_dict() == {}


# --- levels -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(size=sizes, batch=st.integers(1, 65), seed=st.integers(0, 2**32))
def test_levels_come_in_pairs_that_mirror_each_other(size: int, batch: int, seed: int) -> None:
    schedule = NoiseSchedule("linear", size)
    levels = schedule.draw_timesteps(batch, th.Generator().manual_seed(seed))
    assert levels.shape == (batch,)
    assert levels.dtype == th.int64
    assert ((levels >= 0) & (levels < size)).all()
    # With an odd batch, the last draw of the first half stays single.
    first, mirrored = levels[: batch // 2], levels[(batch + 1) // 2 :]
    assert (first + mirrored == size - 1).all()


def test_all_levels_are_equally_likely() -> None:
    size, draws = 10, 40_000
    schedule = NoiseSchedule("linear", size)
    generator = th.Generator().manual_seed(0)
    # Only the first half is independent; the other follows from it.
    for half in (slice(None, draws), slice(draws, None)):
        counts = schedule.draw_timesteps(2 * draws, generator)[half].bincount(minlength=size)
        expected = draws / size
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        # The 99.99 % quantile with nine degrees of freedom.
        assert chi_squared < 33.7


def test_levels_follow_the_generator_and_leave_the_global_one_alone() -> None:
    schedule = NoiseSchedule("linear", 1000)
    before = th.get_rng_state()
    draws = [schedule.draw_timesteps(64, th.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert th.equal(draws[0], draws[1])
    assert not th.equal(draws[0], draws[2])
    assert th.equal(before, th.get_rng_state())


def test_levels_follow_the_global_state_without_a_generator() -> None:
    schedule = NoiseSchedule("linear", 1000)
    draws = []
    for _ in range(2):
        th.manual_seed(5)
        draws.append(schedule.draw_timesteps(64))
    assert th.equal(draws[0], draws[1])


# --- bad arguments ------------------------------------------------------------------------------


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"beta_schedule='quadratic'.*'cosine'.*'sigmoid'"):
        NoiseSchedule("quadratic", 10)


@pytest.mark.parametrize("size", [0, -1])
def test_less_than_one_level_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"num_train_timesteps={size} must be at least 1"):
        NoiseSchedule("linear", size)
