"""Methods that wrap a trainer: what pairs them, what they are set to, and what they count."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

pytest.importorskip("pandas")

from comparing import line_setup, tiny
from gymnasium import spaces
from toys import MAPPING, VECTOR, transitions, weights

from benchmarks import record
from benchmarks.methods import METHOD_TITLES, METHODS, diffusion_bc_paper, on_policy
from benchmarks.methods.base import Clock, Method, Setup
from benchmarks.methods.diffusion_bc_paper import PaperDiffusionBC
from benchmarks.methods.regularised_bc import REMEDIES
from benchmarks.methods.sampling import SamplingMethod
from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy
from sb3_diffbc.tasks import TASKS

OFFLINE = [name for name, variant in METHODS.items() if not variant.method.is_interactive]
INTERACTIVE = [name for name in METHODS if name not in OFFLINE]
WITH_TRAINER = [n for n, v in METHODS.items() if not issubclass(v.method, SamplingMethod)]


def train(method: Method) -> Method:
    method.train(lambda: None)
    return method


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return line_setup(tmp_path)


def test_the_table_has_a_title_for_every_method_and_interactive_ones_last() -> None:
    assert list(METHODS) == OFFLINE + INTERACTIVE
    assert all(METHOD_TITLES.values())
    assert len(set(METHOD_TITLES.values())) == len(METHODS)


@pytest.mark.parametrize("name", OFFLINE)
def test_every_update_is_counted_and_settings_are_json(name: str, setup: Setup) -> None:
    method = tiny(name).make(setup)
    seen: list[int] = []
    method.train(lambda: seen.append(method.updates))
    assert seen == list(range(1, 13))
    assert (method.length, method.env_steps) == (12, 0)
    assert method.n_parameters > 0
    assert method.config["n_batches"] == 12
    assert json.loads(json.dumps(method.config)).keys() == method.config.keys()
    assert all(np.isfinite(value) for value in method.measures().values())


@pytest.mark.parametrize("name", WITH_TRAINER)
def test_a_seed_gives_one_policy_and_settings_do_not_depend_on_it(name: str, setup: Setup) -> None:
    methods = [
        train(tiny(name).make(dataclasses.replace(setup, seed=seed))) for seed in (100, 100, 101)
    ]
    first, again, other = (weights(method.policy) for method in methods)
    assert th.equal(first, again)
    assert not th.equal(first, other)
    assert methods[0].config == methods[2].config


@pytest.mark.parametrize("name", OFFLINE)
def test_too_few_demonstrations_are_refused_before_training(name: str, setup: Setup) -> None:
    few = dataclasses.replace(setup, demonstrations=setup.demonstrations[:10])
    with pytest.raises(ValueError, match=r"batch|smaller"):
        tiny(name).make(few)


# --- DiffusionBC and its pair -------------------------------------------------------------------


def test_the_pair_starts_alike_sees_the_same_batches_and_ends_apart(
    setup: Setup, losses: list[tuple[th.Tensor, Any]]
) -> None:
    starts, batches, ends = [], [], []
    for variant in (tiny("bc_paired"), tiny("diffusion_bc")):
        method = variant.make(setup)
        starts.append(weights(method.policy))
        losses.clear()
        train(method)
        batches.append(th.stack([acts for acts, _ in losses]))
        ends.append(weights(method.policy))
        has_critic = "cpu_seconds/critic" in method.clock.measures
        assert has_critic == (variant.name == "diffusion_bc")
        assert ("critic/validation_loss" in method.measures()) == has_critic
    assert th.equal(*starts)
    assert len(batches[0]) == 12
    assert th.equal(*batches)
    assert not th.equal(*ends)


def test_diffusion_bc_has_nothing_but_defaults(setup: Setup) -> None:
    config = METHODS["diffusion_bc_default"].make(setup).config
    expected = DiffusionBC(demonstrations=setup.demonstrations, **setup.spaces, verbose=0)
    for name in ("bc_coef", "dm_coef", "dm_clamp", "critic_kwargs"):
        assert config[name] == getattr(expected, name)
    assert config["bc_loss"] == "auto"
    assert config["n_batches"] == DiffusionBC.DEFAULT_N_BATCHES


def test_with_l_dm_it_has_the_default_critic(setup: Setup) -> None:
    config = METHODS["diffusion_bc"].make(setup).config
    assert config["critic"] == DiffusionCritic(**setup.spaces, models="action").config
    assert (config["dm_coef"], config["bc_loss"]) == (1.0, "nll")


def test_the_default_recipe_runs_to_its_end(
    setup: Setup, losses: list[tuple[th.Tensor, Any]]
) -> None:
    method: Any = tiny("bc_paired", optimizer_kwargs={"lr": 0.1}, batch_size=16).make(setup)
    rates: list[float] = []
    optimizer = method.trainer.optimizer
    optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
    train(method)
    assert method.config["first_learning_rate"] == 0.1
    assert rates == pytest.approx([0.1 * (1 - n / 12) for n in range(12)])
    assert {len(acts) for acts, _ in losses} == {16} == {method.config["batch_size"]}


def test_a_network_of_other_size_has_the_demonstrations_statistics(setup: Setup) -> None:
    method = tiny("bc_paired", net_arch=(8, 4)).make(setup)
    assert method.config["policy"]["net_arch"] == {"pi": [8, 4], "vf": []}
    assert isinstance(method.policy, StandardizedActorPolicy)
    mean = method.policy.features_extractor.mean
    assert np.allclose(mean, setup.demonstrations.obs.mean(axis=0), atol=1e-5)


TINY_PAPER = {"n_updates": 12, "critic_steps": 10}

# --- the paper's settings -----------------------------------------------------------------------


def test_the_paper_s_settings_are_those_of_the_task(setup: Setup) -> None:
    assert diffusion_bc_paper.PAPER_SETTINGS.keys() == TASKS.keys()
    config = PaperDiffusionBC(setup, **TINY_PAPER).config
    assert config["policy"]["net_arch"]["pi"] == [256, 256, 256]
    assert (config["dm_coef"], config["dm_clamp"], config["bc_loss"]) == (30, "batch", "mse")
    assert (config["batch_size"], config["optimizer"]["learning_rate"]) == (128, 5e-5)
    critic = config["critic"]
    assert (critic["denoiser"], critic["models"]) == ("release", "state_action")
    assert (critic["width"], critic["depth"], critic["learning_rate"]) == (128, 3, 1e-4)


def test_the_paper_s_training_clips_gradients_and_lowers_the_rate_to_0(
    setup: Setup, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(record, "RUNS", tmp_path)
    rates, before, after = [], [], []
    clip = diffusion_bc_paper._clip_gradients

    def watched(optimizer: th.optim.Optimizer, *_: Any) -> None:
        [group] = optimizer.param_groups
        gradients = [p.grad for p in group["params"] if p.grad is not None]
        rates.append(group["lr"])
        before.append(float(th.stack([g.norm() for g in gradients]).norm()))
        clip(optimizer)
        after.append(float(th.stack([g.norm() for g in gradients]).norm()))

    monkeypatch.setattr(diffusion_bc_paper, "_clip_gradients", watched)
    method = PaperDiffusionBC(setup, **TINY_PAPER)
    train(method)
    assert rates == pytest.approx([5e-5 * (1 - n / 12) for n in range(12)])
    assert max(before) > 0.5
    assert after == pytest.approx([min(norm, 0.5) for norm in before], rel=1e-4)
    policy = method.policy
    assert isinstance(policy, StandardizedActorPolicy)
    assert not policy.log_std.requires_grad


def test_the_paper_s_recipe_takes_remedies(setup: Setup) -> None:
    decayed = PaperDiffusionBC(setup, n_updates=3, **REMEDIES["mse, weight decay"])
    assert (decayed.config["l2_weight"], decayed.config["patience"]) == (1e-4, None)
    stopped = PaperDiffusionBC(setup, n_updates=3, **REMEDIES["mse, early stopping"])
    assert (stopped.config["validation_fraction"], stopped.config["patience"]) == (0.1, 5)
    train(stopped)
    assert stopped.trainer.held_out is not None


# --- GAIL and AIRL ------------------------------------------------------------------------------

both = pytest.mark.parametrize("name", INTERACTIVE)


@both
def test_adversarial_training_counts_steps_updates_and_rounds(name: str, setup: Setup) -> None:
    method = tiny(name, n_env_steps=5_000).make(setup)
    start = weights(method.policy)
    seen: list[tuple[int, int]] = []
    method.train(lambda: seen.append((method.env_steps, method.updates)))
    # A round is 8 environments with 256 steps, learnt from 10 times in batches of 128.
    assert seen == [(2048, 160), (4096, 320)]
    assert method.length == 2
    assert method.config["interactive_steps"] == 4096
    assert not th.equal(start, weights(method.policy))


@both
def test_adversarial_training_refuses_what_it_cannot_do(name: str, setup: Setup) -> None:
    with pytest.raises(ValueError, match=r"n_env_steps: found 100, expected at least 2048"):
        tiny(name, n_env_steps=100).make(setup)
    demonstrations = transitions(MAPPING, spaces.Box(-1, 1, (1,), np.float32))
    with pytest.raises(TypeError, match="Dict observations"):
        tiny(name).make(
            dataclasses.replace(setup, observation_space=MAPPING, demonstrations=demonstrations)
        )


def test_expert_actions_are_clipped_as_the_environment_clips_them(setup: Setup) -> None:
    wild = dataclasses.replace(setup.demonstrations, acts=setup.demonstrations.acts * 10)
    executed = on_policy.executed(wild, setup.action_space)
    assert np.abs(wild.acts).max() > 1
    assert np.array_equal(executed.acts, np.clip(wild.acts, -1, 1))
    discrete = transitions(VECTOR, spaces.Discrete(3))
    assert on_policy.executed(discrete, spaces.Discrete(3)) is discrete


# --- the clock ----------------------------------------------------------------------------------


def test_every_second_belongs_to_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([{"seconds": t, "cpu_seconds": t / 2} for t in (0.0, 1.0, 3.0, 7.0, 8.0)])
    monkeypatch.setattr(Clock, "_now", staticmethod(lambda: next(times)))
    clock = Clock()
    assert clock.switch("training") == "prepare"
    phase = clock.switch("curve")
    clock.switch(phase)
    clock.switch("end")
    seconds = {"prepare": 1.0, "training": 3.0, "curve": 4.0}
    assert clock.measures == {
        **{f"seconds/{name}": value for name, value in seconds.items()},
        **{f"cpu_seconds/{name}": value / 2 for name, value in seconds.items()},
    }
