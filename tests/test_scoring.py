"""A clone's residual as a score, in the critic's units."""

from typing import Any

import numpy as np
import pytest
import torch as th
import toys
from gymnasium import spaces

from sb3_diffbc.scoring import PolicyResidual

DATA = toys.transitions()


def residual(data: Any = DATA, **kwargs: Any) -> PolicyResidual:
    return PolicyResidual(toys.policy(), data, **kwargs)


def test_the_raw_score_compares_errors_here_and_at_other_observations() -> None:
    made, policy = residual(), toys.policy()
    std = DATA.acts.std(axis=0)
    own = policy.get_distribution(th.tensor(DATA.obs)).mode().detach().numpy()
    errors = (DATA.acts - own) / std
    found = made.score(DATA.obs, DATA.acts, raw=True).numpy()
    # All other observations in place of some of them.
    elsewhere = np.abs((DATA.acts[:, None] - own) / std).mean(axis=(1, 2))
    expected = elsewhere - np.abs(errors).mean(axis=1)
    assert np.corrcoef(found, expected)[0, 1] > 0.95
    # Where policies act alike everywhere, no action tells anything.
    with_one_action = toys.policy()
    for parameter in with_one_action.action_net.parameters():
        parameter.data.zero_()
    made = PolicyResidual(with_one_action, DATA)
    np.testing.assert_allclose(made.score(DATA.obs, DATA.acts, raw=True), 0, atol=1e-6)


def test_the_expert_s_pairs_score_evenly_and_what_the_policy_would_not_do_scores_low() -> None:
    made = residual()
    scores = np.sort(made.score(DATA.obs, DATA.acts))
    np.testing.assert_allclose(scores, np.linspace(0, 1, len(scores)), atol=0.05)
    own = toys.policy().predict(DATA.obs, deterministic=True)[0]
    assert made.score(DATA.obs, own).mean() > made.score(DATA.obs, -own).mean() + 0.3


def test_a_pair_scores_the_same_whatever_it_comes_with() -> None:
    made = residual()
    of_all = made.score(DATA.obs, DATA.acts)
    for rows in (slice(0, 1), slice(3, 40)):
        found = made.score(DATA.obs[rows], DATA.acts[rows])
        np.testing.assert_allclose(found, of_all[rows], atol=1e-4)


@pytest.mark.parametrize("action_space", toys.ACTION_SPACES, ids=toys.space_id)
@pytest.mark.parametrize("observation_space", [toys.MAPPING, spaces.Discrete(4)], ids=toys.space_id)
def test_all_spaces_are_scored(observation_space: Any, action_space: Any) -> None:
    data = toys.transitions(observation_space, action_space)
    made = PolicyResidual(toys.policy(observation_space, action_space), data)
    scores = made.score(data.obs, data.acts)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.mean() == pytest.approx(0.5, abs=0.05)


def test_images_may_have_their_channels_last() -> None:
    space = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    data = toys.transitions(space, toys.CONTINUOUS, n=8)
    policy = toys.policy(toys.IMAGE, toys.CONTINUOUS)
    scores = PolicyResidual(policy, data, observation_space=space).score(data.obs, data.acts)
    assert scores.mean() == pytest.approx(0.5, abs=0.05)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TypeError, match="policy: expected an actor-critic policy"):
        PolicyResidual(object(), DATA)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Each row of `obs` must have shape"):
        residual(toys.transitions(toys.MATRIX))
    with pytest.raises(ValueError, match="same length"):
        residual().score(DATA.obs[:3], DATA.acts)
