"""The critic's score: its formula, its scale, what it is measured against, what is refused."""

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
import toys
from critics import (
    CLUSTERS,
    both_denoisers,
    both_models,
    cluster_critic,
    ignore_demonstration_warnings,
    minimal,
    random_critic,
    real_box,
    tiny_critic,
    two_clusters,
)
from hypothesis import given, settings

from sb3_diffbc.critic import DiffusionCritic, Noise
from sb3_diffbc.critic.score import N_DRAWS, quantiles_of, share_below

pytestmark = ignore_demonstration_warnings

RANDOM = toys.transitions()


def calibrated(**kwargs: Any) -> DiffusionCritic:
    """A critic with random weights that knows random demonstrations."""
    critic = random_critic(**kwargs)
    critic.calibrate(toys.transitions(critic.observation_space, critic.action_space))
    return critic


# --- the raw score ------------------------------------------------------------------------------


@both_models
@both_denoisers
def test_the_raw_score_equals_its_formula_written_out(models: str, denoiser: str) -> None:
    critic = calibrated(models=models, denoiser=denoiser)
    calibration, data = critic.calibration, toys.transitions(n=5, seed=1)

    def l_diff(state: th.Tensor, action: th.Tensor, k: int) -> np.ndarray:
        rows = max(len(state), len(action))
        epsilon = calibration.epsilon[k].expand(rows, -1)
        noise = Noise(calibration.timesteps[k].expand(rows), epsilon)
        return critic.l_diff(state.expand(rows, -1), action.expand(rows, -1), noise).numpy()

    state = critic.encoder.encode_obs(th.tensor(data.obs))
    action = critic.encoder.encode_acts(th.tensor(data.acts))
    expected = np.zeros(5)
    for k in range(N_DRAWS):
        other_state, other_action = calibration.state[k, None], calibration.action[k, None]
        expected += l_diff(other_state, action, k) - l_diff(state, action, k)
        if models == "state_action":
            expected += l_diff(state, other_action, k) - l_diff(other_state, other_action, k)
    found = critic.score(data.obs, data.acts, raw=True)
    np.testing.assert_allclose(found, expected / N_DRAWS, rtol=1e-4, atol=1e-5)


def test_the_levels_are_even_in_the_log_signal_to_noise_ratio() -> None:
    calibration = calibrated(num_train_timesteps=1000).calibration
    schedule = DiffusionCritic(toys.VECTOR, toys.CONTINUOUS, device="cpu").schedule
    signal = schedule.alphas_cumprod[calibration.timesteps]
    steps = (signal / (1 - signal)).log().diff()
    np.testing.assert_allclose(steps, steps.mean(), rtol=0.1)
    ends = (1 - signal).sqrt()[[0, -1]]
    np.testing.assert_allclose(ends, [0.2, 0.9], atol=0.01)


@both_models
@settings(deadline=None, max_examples=15)
@given(
    observation_space=toys.observation_spaces(),
    action_space=toys.action_spaces(),
    first=st.integers(0, 63),
    n=st.integers(1, 40),
)
def test_a_pair_scores_the_same_whatever_it_comes_with(
    models: str, observation_space: Any, action_space: Any, first: int, n: int
) -> None:
    critic = calibrated(
        observation_space=observation_space, action_space=action_space, models=models
    )
    data = toys.transitions(observation_space, action_space)
    rows = (first + np.arange(n)) % 64
    quantiles, raw = critic.calibration.quantiles, []
    for obs, acts in ((data.obs, data.acts), (data.obs[rows], data.acts[rows])):
        raw.append(critic.score(obs, acts, raw=True))
        assert th.equal(critic.score(obs, acts, raw=True), raw[-1])
        # The share depends on nothing else. How much of a rounding is seen in it, its slope says.
        assert th.equal(critic.score(obs, acts), share_below(raw[-1], quantiles))
    of_all, of_some = raw
    # Other processors may round products of small matrices in another way.
    np.testing.assert_allclose(of_some, of_all[rows], rtol=1e-4, atol=1e-5)


def test_arrays_and_tensors_score_the_same() -> None:
    critic = calibrated()
    tensors = th.tensor(RANDOM.obs), th.tensor(RANDOM.acts, requires_grad=True)
    found = critic.score(*tensors)
    assert th.equal(found, critic.score(RANDOM.obs, RANDOM.acts))
    assert not found.requires_grad


# --- the share ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    values=st.lists(st.integers(-5, 5), min_size=1, max_size=30),
    value=st.integers(-6, 6),
)
def test_the_share_below_a_value_counts_half_of_what_is_equal(
    values: list[int], value: int
) -> None:
    # Repeated until quantiles lie on values, as they do with demonstrations of some size.
    many = np.repeat(values, 200).astype(np.float32)
    expected = np.mean(many < value) + np.mean(many == value) / 2
    found = share_below(th.tensor([float(value)]), quantiles_of(th.tensor(many)))
    assert found.item() == pytest.approx(expected, abs=0.01)


def test_shares_rise_with_the_value_from_0_to_1() -> None:
    quantiles = quantiles_of(th.randn(300, generator=th.Generator().manual_seed(0)))
    values = th.linspace(-5, 5, 200)
    shares = share_below(values, quantiles)
    assert (shares.diff() >= 0).all()
    assert (shares[0], shares[-1]) == (0, 1)
    np.testing.assert_allclose(
        share_below(quantiles, quantiles), np.linspace(0, 1, 1001), atol=2e-3
    )


# --- what it tells ------------------------------------------------------------------------------


def auroc(scores: th.Tensor, is_bad: np.ndarray) -> float:
    """The share of pairs of a good and a bad row in which the good one scores higher."""
    good, bad = (scores.numpy()[rows] for rows in (~is_bad, is_bad))
    return float(np.mean(good[:, None] > bad) + np.mean(good[:, None] == bad) / 2)


@both_models
def test_the_experts_pairs_score_evenly_and_wrong_actions_score_0(models: str) -> None:
    critic, data = cluster_critic(models), two_clusters(1000, seed=1)
    scores = critic.score(data.obs, data.acts).numpy()
    # Of so few held-out pairs, the shares are not exact.
    np.testing.assert_allclose(np.quantile(scores, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.2)
    assert (critic.score(data.obs, -data.acts) == 0).all()


def test_a_wrong_action_is_told_even_where_it_is_the_likeliest_of_all() -> None:
    data, is_bad = two_clusters(800), np.arange(800) % 4 == 0
    acts = np.where(is_bad[:, None], 0, data.acts).astype(np.float32)
    critic = DiffusionCritic(real_box(2), real_box(2), models="action", **CLUSTERS)
    critic.fit(minimal(data.obs, acts), progress_bar=False)
    assert auroc(critic.score(data.obs, acts), is_bad) > 0.95


# --- what it is measured against ----------------------------------------------------------------


def test_pairs_that_were_held_out_are_what_counts() -> None:
    data = two_clusters(40)
    critic = tiny_critic(n_steps=4, seed=0, validation_fraction=0.25)
    critic.fit(data, progress_bar=False)
    raw = critic.score(data.obs, data.acts, raw=True)
    order = th.randperm(40, generator=th.Generator().manual_seed(critic._fit_seed))
    assert th.equal(critic.calibration.quantiles, quantiles_of(raw[order[:10]]))


def test_without_such_pairs_those_of_the_fit_count() -> None:
    data = two_clusters(40)
    critic = tiny_critic(n_steps=4, seed=0, validation_fraction=0)
    critic.fit(data, progress_bar=False)
    assert critic.score(data.obs, data.acts).mean() == pytest.approx(0.5, abs=0.03)


def test_other_pairs_can_take_their_place() -> None:
    critic = tiny_critic(n_steps=4, seed=0)
    critic.fit(two_clusters(40), progress_bar=False)
    others = toys.transitions(real_box(2), real_box(2))
    critic.calibrate({"obs": others.obs, "acts": others.acts})
    first = critic.score(others.obs, others.acts)
    assert first.mean() == pytest.approx(0.5, abs=0.03)
    critic.calibrate(others)
    assert th.equal(first, critic.score(others.obs, others.acts))


# --- checkpoints --------------------------------------------------------------------------------


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("obs", "acts", "message"),
    [
        (RANDOM.obs[:3], RANDOM.acts[:4], "same length.*found 3 and 4"),
        (RANDOM.obs[0], RANDOM.acts[0], "same length"),
        (RANDOM.obs[:, :2], RANDOM.acts, "Each row of `obs` must have shape"),
        (RANDOM.obs, RANDOM.acts * np.nan, "`acts` must be finite"),
        (RANDOM.obs[:0], RANDOM.acts[:0], "at least one"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(obs: Any, acts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrated().score(obs, acts)


def test_a_critic_that_has_diverged_is_not_calibrated() -> None:
    critic = random_critic()
    calibration = critic.calibration
    with th.no_grad():
        critic.denoiser.out.weight.fill_(1e38)
    with pytest.raises(ValueError, match="NaN or infinite"):
        critic.calibrate(RANDOM)
    assert critic.calibration is calibration
