"""Methods on PPO: where they start, what they count, and what the critic's reward leaves behind."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

pytest.importorskip("pandas")

from comparing import line_setup, tiny
from toys import CRITIC_KWARGS, weights

from benchmarks.methods.base import Method, Setup, Variant
from benchmarks.methods.critic_reward import CriticRewardMethod, measured_reward
from benchmarks.methods.on_policy import OnPolicyMethod
from benchmarks.suites.reward import SUITE
from sb3_diffbc import rl

CLONE = {"from_clone": True, "clone_updates": 12}
# A rollout is 8 environments with 32 steps, learnt from once in two batches.
SHORT: dict[str, Any] = {"n_env_steps": 512, "ppo": {"n_steps": 32, "n_epochs": 1}}
CRITIC = {"critic_kwargs": CRITIC_KWARGS, "measured_episodes": 3}


def critic_reward(setup: Setup, **arguments: Any) -> CriticRewardMethod:
    return CriticRewardMethod(setup, **{**SHORT, **CRITIC, **arguments})


def interactive(name: str, setup: Setup, **arguments: Any) -> OnPolicyMethod:
    if name == "critic":
        return critic_reward(setup, **arguments)
    method = tiny(name, **SHORT, **arguments).make(setup)
    assert isinstance(method, OnPolicyMethod)
    return method


def train(method: Method) -> Any:
    method.train(lambda: None)
    return method


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return line_setup(tmp_path)


@pytest.mark.parametrize("name", ["critic", "gail", "airl"])
def test_all_go_on_from_the_clone_of_the_seed(
    name: str, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = train(tiny("bc_paired").make(setup))
    method = interactive(name, setup, **CLONE)
    starts = []

    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = make(self, *args, **kwargs)
        starts.append(weights(made.policy.action_net))
        return made

    make = OnPolicyMethod.make_ppo
    monkeypatch.setattr(OnPolicyMethod, "make_ppo", start)
    train(method)
    assert len(starts) == 1
    assert th.equal(starts[0], weights(clone.policy.action_net))
    assert not th.equal(starts[0], weights(method.ppo.policy.action_net))
    assert th.equal(weights(method.further_policies()["clone"]), weights(clone.policy))


@pytest.mark.parametrize("start", [{}, CLONE], ids=["scratch", "clone"])
def test_steps_and_updates_are_those_of_clone_value_network_and_rounds(
    start: dict[str, Any], setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "_N_UPDATES", 3)
    method = critic_reward(setup, n_env_steps=768, value_timesteps=250, **start)
    seen: list[tuple[int, int]] = []
    method.train(lambda: seen.append((method.env_steps, method.updates)))
    if start:
        assert seen == [(512, 12 + 2), (768, 12 + 4)]
    else:
        assert seen == [(256, 2), (512, 4), (768, 6)]
    assert method.length == len(seen)
    assert method.config["interactive_steps"] == 768
    assert {"cpu_seconds/critic"} | ({"cpu_seconds/clone"} if start else set()) <= (
        method.clock.measures.keys()
    )


def test_what_the_critic_says_of_the_first_and_the_last_policy_is_kept(setup: Setup) -> None:
    method = train(critic_reward(setup, **CLONE))
    measures = method.measures()
    assert measures.keys() == {
        f"reward_per_{unit}/{when}" for unit in ("step", "episode") for when in ("first", "last")
    }
    for when in ("first", "last"):
        assert -1 < measures[f"reward_per_step/{when}"] < 0
        assert measures[f"reward_per_episode/{when}"] < measures[f"reward_per_step/{when}"]


def test_a_policy_is_measured_by_the_reward_and_not_by_the_environments_own(setup: Setup) -> None:
    policy = critic_reward(setup).policy
    found = measured_reward(policy, lambda state, *_: np.full(len(state), 2.0), setup, 5)
    assert found["reward_per_step"] == 2
    assert 4 <= found["reward_per_episode"] <= 12  # the line has 2 to 6 steps


def test_a_constant_reward_has_no_critic(setup: Setup) -> None:
    method = train(critic_reward(setup, reward="constant"))
    assert method.measures()["reward_per_step/last"] == -0.5
    assert not method.critic.is_fitted


def test_a_seed_gives_one_policy_and_settings_are_json_that_do_not_depend_on_it(
    setup: Setup,
) -> None:
    methods = [
        train(critic_reward(dataclasses.replace(setup, seed=seed), **CLONE))
        for seed in (100, 100, 101)
    ]
    first, again, other = (weights(method.policy) for method in methods)
    assert th.equal(first, again)
    assert not th.equal(first, other)
    assert methods[0].config == methods[2].config
    assert json.loads(json.dumps(methods[0].config)).keys() == methods[0].config.keys()


def test_too_few_steps_for_the_value_network_are_refused(setup: Setup) -> None:
    with pytest.raises(ValueError, match=r"n_env_steps: .* value_timesteps=500"):
        critic_reward(setup, value_timesteps=500, **CLONE)


def test_the_suite_has_all_rewards_from_both_starts_with_as_many_steps(setup: Setup) -> None:
    methods = {variant.name: variant.make(setup) for variant in SUITE.variants}
    assert methods.pop("clone").config["n_batches"] == 10_000
    assert {method.config["interactive_steps"] for method in methods.values()} == {98_304}
    for name, method in methods.items():
        assert isinstance(method, OnPolicyMethod)
        assert (method.clone is not None) == ("clone" in name)
        if method.clone is not None:
            assert method.clone.config["n_batches"] == 10_000
    assert all(isinstance(variant, Variant) and variant.title for variant in SUITE.variants)
