"""Methods that learn from demonstrations alone: what pairs them, and what they are set to."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from comparing import TINY, line_task, make_cell, setup_of
from gymnasium import spaces
from imitation.policies.base import FeedForward32Policy
from toys import CRITIC_KWARGS, VECTOR, transitions, weights

from benchmarks.compare import offline
from benchmarks.compare.learners import Learner, Setup
from benchmarks.compare.methods import METHODS
from benchmarks.compare.phases import Phases
from sb3_diffbc import DiffusionBC, DiffusionCritic
from sb3_diffbc.tasks import TASKS

OFFLINE = [method.key for method in METHODS.values() if not method.is_interactive]


def train(learner: Learner) -> Phases:
    phases = Phases()
    with phases("training"):
        learner.train(phases, lambda done: None)
    return phases


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Setup]:
    def make_setup(**changes: Any) -> Setup:
        return dataclasses.replace(setup_of(make_cell(tmp_path)), **changes)

    return make_setup


class TestEveryMethod:
    @pytest.mark.parametrize("key", OFFLINE)
    def test_counts_every_update_and_says_what_it_is_set_to(
        self, key: str, make: Callable[..., Setup]
    ) -> None:
        learner = METHODS[key].make(make())
        seen: list[tuple[int, int]] = []
        learner.train(Phases(), lambda done: seen.append((done, learner.updates)))
        assert seen == [(n, n) for n in range(1, 13)]
        assert learner.length == 12
        assert learner.env_steps == 0
        assert learner.n_parameters > 0
        assert learner.config["n_batches"] == 12
        assert json.loads(json.dumps(learner.config)) == learner.config

    @pytest.mark.parametrize("key", OFFLINE)
    def test_a_seed_gives_one_policy_and_settings_do_not_depend_on_it(
        self, key: str, make: Callable[..., Setup]
    ) -> None:
        learners = [METHODS[key].make(make(seed=seed)) for seed in (100, 100, 101)]
        assert learners[0].config == learners[2].config
        found = []
        for learner in learners:
            # A cell makes its learner right before it trains.
            fresh = METHODS[key].make(make(seed=100 if learner is not learners[2] else 101))
            train(fresh)
            found.append(weights(fresh.policy))
        assert th.equal(found[0], found[1])
        assert not th.equal(found[0], found[2])


class TestPair:
    def test_starts_from_the_same_weights_and_sees_the_same_batches(
        self, make: Callable[..., Setup], losses: list[tuple[th.Tensor, Any]]
    ) -> None:
        starts, batches = [], []
        for build in (offline.bc_paired, offline.diffusion_bc):
            learner = build(make())
            starts.append(weights(learner.policy))
            losses.clear()
            train(learner)
            batches.append(th.stack([acts for acts, _ in losses]))
        assert th.equal(*starts)
        assert len(batches[0]) == 12
        assert th.equal(*batches)

    def test_differs_in_the_diffusion_loss_alone(self, make: Callable[..., Setup]) -> None:
        paired, full = offline.bc_paired(make()), offline.diffusion_bc(make())
        assert (paired.config["dm_coef"], full.config["dm_coef"]) == (0.0, 1.0)
        assert full.config["critic"]["models"] == "action"
        common = full.config.keys() - {"dm_coef", "critic"}
        assert {name: paired.config[name] for name in common} == {
            name: full.config[name] for name in common
        }

    def test_ends_apart_and_only_one_fits_a_critic(self, make: Callable[..., Setup]) -> None:
        paired, full = offline.bc_paired(make()), offline.diffusion_bc(make())
        with_bc = train(paired := offline.bc_paired(make()))
        end = weights(paired.policy)
        with_critic = train(full := offline.diffusion_bc(make()))
        assert not th.equal(end, weights(full.policy))
        assert "critic" not in with_bc.seconds
        assert with_critic.seconds["critic"] > 0

    def test_is_diffusion_bc_with_nothing_but_defaults(self, make: Callable[..., Setup]) -> None:
        setup = make(protocol=dataclasses.replace(TINY, critic_kwargs={}))
        learner = offline.diffusion_bc(setup)
        expected = DiffusionBC(
            demonstrations=setup.demonstrations,
            observation_space=setup.observation_space,
            action_space=setup.action_space,
            verbose=0,
        )
        for name in ("bc_coef", "dm_coef", "bc_loss", "dm_clamp", "critic_kwargs"):
            assert learner.config[name] == getattr(expected, name)
        critic = DiffusionCritic(setup.observation_space, setup.action_space, models="action")
        assert learner.config["critic"] == critic.config

    def test_runs_the_default_recipe_to_its_end(
        self, make: Callable[..., Setup], losses: list[tuple[th.Tensor, Any]]
    ) -> None:
        learner = offline.bc_paired(make())
        rates: list[float] = []
        optimizer = learner.trainer.optimizer
        optimizer.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        train(learner)
        first = learner.config["first_learning_rate"]
        assert rates == pytest.approx([first * (1 - n / 12) for n in range(12)])
        assert {len(acts) for acts, _ in losses} == {learner.config["batch_size"]}


class TestPlainBC:
    def test_has_imitations_defaults(self, make: Callable[..., Setup]) -> None:
        learner = offline.PlainBC(make())
        assert isinstance(learner.policy, FeedForward32Policy)
        assert learner.config["batch_size"] == 32
        assert learner.config["ent_weight"] == 1e-3
        assert learner.config["optimizer"]["learning_rate"] == 1e-3


class TestPaperSettings:
    def test_there_are_some_for_every_task(self) -> None:
        assert offline.PAPER_SETTINGS.keys() == TASKS.keys()

    def test_are_those_of_the_task(self, make: Callable[..., Setup]) -> None:
        config = offline.WithPaperSettings(make()).config
        assert config["policy"]["net_arch"]["pi"] == [256, 256, 256]
        assert config["policy"]["activation"] == "Tanh"
        assert (config["dm_coef"], config["dm_clamp"], config["bc_loss"]) == (30, "batch", "mse")
        assert config["batch_size"] == 128
        assert config["optimizer"]["learning_rate"] == 5e-5
        critic = config["critic"]
        assert (critic["denoiser"], critic["models"]) == ("release", "state_action")
        assert (critic["width"], critic["depth"], critic["learning_rate"]) == (128, 3, 1e-4)

    def test_of_a_users_task_are_walkers(self, make: Callable[..., Setup], tmp_path: Path) -> None:
        setup = make(task=line_task(tmp_path, name="sb3_diffbc_tests_Line-v0"))
        config = offline.WithPaperSettings(setup).config
        assert config["policy"]["net_arch"]["pi"] == [1024, 1024]
        assert config["dm_coef"] == 0.2

    def test_the_learning_rate_falls_to_0_and_gradients_are_clipped(
        self, make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rates, before, after = [], [], []
        clip = offline._clip_gradients

        def watched(optimizer: th.optim.Optimizer, *_: Any) -> None:
            [group] = optimizer.param_groups
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            rates.append(group["lr"])
            before.append(float(th.stack([g.norm() for g in gradients]).norm()))
            clip(optimizer)
            after.append(float(th.stack([g.norm() for g in gradients]).norm()))

        monkeypatch.setattr(offline, "_clip_gradients", watched)
        train(offline.WithPaperSettings(make()))
        assert rates == pytest.approx([5e-5 * (1 - n / 12) for n in range(12)])
        assert max(before) > 0.5
        assert after == pytest.approx([min(norm, 0.5) for norm in before], rel=1e-4)

    def test_the_policy_is_deterministic(self, make: Callable[..., Setup]) -> None:
        learner = offline.WithPaperSettings(make())
        before = weights(learner.policy)
        train(learner)
        after = learner.policy.log_std
        assert not after.requires_grad
        assert th.equal(after, offline.WithPaperSettings(make()).policy.log_std)
        assert not th.equal(weights(learner.policy), before)

    def test_trains_in_half_precision_and_is_looked_at_in_full(
        self, make: Callable[..., Setup], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        halved: dict[str, list[bool]] = {"fit": [], "training": [], "progress": []}

        def watch(cls: type, name: str, key: str) -> None:
            method = getattr(cls, name)

            def watched(*args: Any, **kwargs: Any) -> Any:
                halved[key].append(th.is_autocast_enabled("cpu"))
                return method(*args, **kwargs)

            monkeypatch.setattr(cls, name, watched)

        watch(DiffusionCritic, "fit", "fit")
        watch(DiffusionCritic, "guidance", "training")
        learner = offline.WithPaperSettings(make())
        learner.train(Phases(), lambda _: halved["progress"].append(th.is_autocast_enabled("cpu")))
        assert halved == {"fit": [True], "training": [True] * 12, "progress": [False] * 12}

    def test_one_critic_serves_all_seeds_and_each_counts_its_fit(
        self, make: Callable[..., Setup], tmp_path: Path, fits: list[Any]
    ) -> None:
        task = line_task(tmp_path)
        first, second = (
            offline.WithPaperSettings(make(task=task, seed=seed)) for seed in (100, 101)
        )
        phases = [train(first), train(second)]
        assert len(fits) == 1
        assert phases[0].seconds["critic"] == phases[1].seconds["critic"] > 0
        assert th.equal(weights(first.trainer.critic), weights(second.trainer.critic))
        assert phases[0].seconds["prepare"] < phases[0].seconds["critic"] + 5

    def test_other_demonstrations_need_another_critic(
        self, make: Callable[..., Setup], tmp_path: Path, fits: list[Any]
    ) -> None:
        for seed in (0, 1):
            task = line_task(tmp_path, seed)
            train(offline.WithPaperSettings(make(task=task, demonstrations=task.demonstrations())))
        assert len(fits) == 2

    def test_a_fit_that_was_stopped_is_made_again(
        self, make: Callable[..., Setup], tmp_path: Path, fits: list[Any]
    ) -> None:
        setup = make()
        train(offline.WithPaperSettings(setup))
        for path in setup.cache.glob("*.json"):  # written last
            path.unlink()
        train(offline.WithPaperSettings(setup))
        assert len(fits) == 2


class TestOtherMethods:
    def test_sample_as_their_names_say(self, make: Callable[..., Setup]) -> None:
        ddpm, ddim = offline.diffusion_policy(make()), offline.diffusion_policy_ddim(make())
        assert ddpm.config["sampler"] == "ddpm"
        assert (ddim.config["sampler"], ddim.config["n_inference_steps"]) == ("ddim", 10)
        assert ddpm.config["num_train_timesteps"] == 100

    def test_say_what_was_reduced(self, make: Callable[..., Setup]) -> None:
        config = offline.implicit_bc(make()).config
        for name, value in offline.IMPLICIT_BC.items():
            assert config[name] == value

    @pytest.mark.parametrize("key", ["implicit_bc", "diffusion_policy", "diffusion_policy_ddim"])
    def test_refuse_discrete_actions_before_training(
        self, key: str, make: Callable[..., Setup]
    ) -> None:
        space = spaces.Discrete(3)
        setup = make(
            observation_space=VECTOR,
            action_space=space,
            demonstrations=transitions(VECTOR, space),
        )
        with pytest.raises(TypeError, match="expected a Box"):
            METHODS[key].make(setup)

    @pytest.mark.parametrize("key", OFFLINE)
    def test_too_few_demonstrations_are_refused_before_training(
        self, key: str, make: Callable[..., Setup]
    ) -> None:
        setup = make()
        few = dataclasses.replace(setup, demonstrations=setup.demonstrations[:10])
        with pytest.raises(ValueError, match=r"batch|smaller"):
            METHODS[key].make(few)


def test_toy_critics_are_small() -> None:
    # Otherwise these tests would be slow, which nobody would notice.
    assert TINY.critic_kwargs == CRITIC_KWARGS
    assert np.prod([CRITIC_KWARGS["n_steps"], CRITIC_KWARGS["width"]]) < 1000
