"""The trainer: its environment, critic, default recipe, randomness, and what it tells."""

from __future__ import annotations

import functools
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from toys import (
    CONTINUOUS,
    CRITIC_KWARGS,
    LINE_ENV_ID,
    MAPPING,
    VECTOR,
    LineEnv,
    batches_of,
    critic,
    every_batch,
    policy,
    recipe_of,
    train,
    trainer,
    transitions,
    weights,
)

from sb3_diffbc import DiffusionBC, DiffusionCritic

DATA = transitions()
ShortRecipe, FortyUpdates = recipe_of(7), recipe_of(40)


@pytest.mark.parametrize(
    "make_env",
    [lambda: LINE_ENV_ID, LineEnv, lambda: DummyVecEnv([LineEnv] * 2)],
    ids=["id", "environment", "vectorised"],
)
def test_an_environment_is_enough(make_env: Any) -> None:
    algorithm = DiffusionBC(
        demonstrations=transitions(LineEnv.observation_space, LineEnv.action_space),
        env=make_env(),
        critic_kwargs=CRITIC_KWARGS,
        verbose=0,
    )
    assert algorithm.observation_space == LineEnv.observation_space
    assert algorithm.action_space == LineEnv.action_space
    train(algorithm, n_batches=2)
    assert len(algorithm.evaluate(3).returns) == 3


def test_spaces_given_beside_an_environment_must_agree() -> None:
    spaces_of_env = {
        "observation_space": LineEnv.observation_space,
        "action_space": LineEnv.action_space,
    }
    DiffusionBC(env=LineEnv(), verbose=0, **spaces_of_env)
    for name in spaces_of_env:
        with pytest.raises(ValueError, match=f"{name} is .* but env has"):
            DiffusionBC(env=LineEnv(), **{**spaces_of_env, name: spaces.Discrete(2)})


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_without_an_environment_both_spaces_are_needed(missing: str) -> None:
    given_spaces = {"observation_space": VECTOR, "action_space": CONTINUOUS, missing: None}
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        DiffusionBC(**given_spaces, verbose=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("env", [3, LineEnv, object()], ids=["number", "class", "object"])
def test_something_that_is_no_environment_is_refused(env: Any) -> None:
    with pytest.raises(TypeError, match=r"env: .*a valid string or an instance of Env.*found"):
        DiffusionBC(env=env, verbose=0)


@pytest.mark.parametrize(
    ("env", "suggested"),
    [
        ("Maze", "sb3_diffbc/Maze-v0"),
        ("FetchPick", "sb3_diffbc/FetchPick-v0"),
        ("walker", "Walker2d-v4"),
        ("Hoper-v4", "Hopper-v4"),
        ("Walker2d-v99", "Walker2d-v[45]"),
        ("Ant-v4 ", "Ant-v4"),
    ],
)
def test_an_unknown_environment_is_refused_with_a_suggestion(env: str, suggested: str) -> None:
    message = f"^env='{env}': .*Did you mean '{suggested}'\\?$"
    with pytest.raises(ValueError, match=message):
        DiffusionBC(env=env, verbose=0)
    algorithm = trainer(LineEnv.observation_space, LineEnv.action_space)
    with pytest.raises(ValueError, match=message):
        algorithm.evaluate(1, env=env)


def test_an_environment_like_no_other_is_refused_without_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"^env='xyz': [^?]*$"):
        DiffusionBC(env="xyz", verbose=0)


def test_a_trainer_says_in_one_line_what_it_is() -> None:
    algorithm = trainer(env=LINE_ENV_ID, demonstrations=None, policy=None, dm_coef=0.5)
    assert repr(algorithm) == (
        f"DiffusionBC({LINE_ENV_ID}: Box(2,) -> Box(1,), policy=StandardizedActorPolicy, "
        "bc_coef=1, bc_loss='nll', dm_coef=0.5, demonstrations=none, n_updates=0, "
        "critic=not fitted)"
    )
    algorithm = trainer(MAPPING)
    train(algorithm, n_batches=2)
    assert "Dict(bits: MultiBinary(2), choice: Discrete(3), vector: Box(2,))" in repr(algorithm)
    assert "demonstrations=64 transitions, n_updates=2, critic=fitted)" in repr(algorithm)
    assert "critic=off)" in repr(trainer(dm_coef=0.0))
    assert repr(algorithm.critic).endswith("models='action', width=16, depth=1, fitted)")


def test_an_environment_made_for_its_spaces_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[LineEnv] = []
    monkeypatch.setattr(LineEnv, "close", lambda env: closed.append(env))
    DiffusionBC(env=LINE_ENV_ID, verbose=0)
    assert len(closed) == 1
    DiffusionBC(env=LineEnv(), verbose=0)
    assert len(closed) == 1


def test_new_demonstrations_get_a_new_own_critic(fits: list[Any]) -> None:
    algorithm = trainer()
    train(algorithm, n_batches=1)
    first = algorithm.critic
    algorithm.set_demonstrations(transitions(seed=1, n=48))
    algorithm.set_demonstrations(transitions(seed=2, n=32))
    assert len(fits) == 1, "only training fits"
    train(algorithm, n_batches=1)
    train(algorithm, n_batches=1)
    assert [len(data) for data in fits] == [64, 32]
    assert algorithm.critic is not first


def test_new_demonstrations_start_a_recipe_that_was_left_anew() -> None:
    algorithm = trainer(cls=recipe_of(9))
    train(algorithm, callback=lambda locals_, _: locals_["self"].n_updates < 6)
    algorithm.set_demonstrations(transitions(seed=1))
    train(algorithm)
    assert algorithm.n_updates == 6 + 9


def test_an_injected_critic_is_shared_and_never_changed(fits: list[Any]) -> None:
    shared = critic()
    fits.clear()
    before = weights(shared)
    first, second = (trainer(critic=shared, policy=policy(seed=seed)) for seed in (0, 1))
    for algorithm in (first, second, first):
        train(algorithm, n_batches=3)
    second.set_demonstrations(transitions(seed=1))
    train(second, n_batches=3)
    assert first.critic is second.critic is shared
    assert fits == []
    assert th.equal(weights(shared), before)
    assert not any(parameter.requires_grad for parameter in shared.parameters())
    assert not th.equal(weights(first.policy), weights(second.policy))


def test_a_critic_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="critic is not fitted"):
        trainer(critic=DiffusionCritic(VECTOR, CONTINUOUS, **CRITIC_KWARGS))
    with pytest.raises(ValueError, match="critic_kwargs are for the trainer's own critic"):
        trainer(critic=critic(), critic_kwargs={"width": 8})
    for name, kwargs in {
        "observation_space": {"observation_space": spaces.Box(-1, 1, (3,))},
        "action_space": {"action_space": spaces.Discrete(2)},
    }.items():
        with pytest.raises(ValueError, match=f"critic.{name} is .*expected"):
            trainer(critic=critic(**kwargs))  # type: ignore[arg-type]


def test_the_critic_pulls_the_policy(losses: list[Any]) -> None:
    shared = critic(n_steps=200)
    results = {}
    for dm_coef in (0.0, 30.0):
        algorithm = trainer(
            critic=shared,
            dm_coef=dm_coef,
            bc_coef=1.0 if dm_coef == 0 else 0.0,
            optimizer_kwargs={"lr": 1e-2},
        )
        losses.clear()
        th.manual_seed(0)
        train(algorithm, n_epochs=40)
        results[dm_coef] = [metrics for _, metrics in losses]
        # Both ways of learning bring the actions towards the expert's, who follows obs[0].
        data = transitions()
        means = algorithm.predict(data.obs, deterministic=True)[0]
        untrained = policy().predict(data.obs, deterministic=True)[0]
        assert np.abs(means - data.acts).mean() < 0.7 * np.abs(untrained - data.acts).mean()
    dm = [float(metrics.dm.loss) for metrics in results[30.0]]
    assert np.mean(dm[-20:]) < 0.5 * np.mean(dm[:4])
    assert all(metrics.dm is None for metrics in results[0.0])


@pytest.mark.parametrize("clamp", ["sample", "batch", "none"])
def test_the_clamp_that_is_asked_for_is_the_losss(clamp: Any) -> None:
    diffusion = trainer(dm_clamp=clamp, critic=critic())._make_loss().diffusion
    assert diffusion is not None
    assert diffusion.clamp == clamp


def rate(algorithm: DiffusionBC) -> float:
    return algorithm.optimizer.param_groups[0]["lr"]


Losses = list[tuple[th.Tensor, Any]]


def sizes_of(losses: Losses, algorithm: DiffusionBC, **length: Any) -> list[int]:
    """The sizes of the batches of a training."""
    losses.clear()
    train(algorithm, **length)
    return [len(acts) for acts, _ in losses]


@pytest.mark.parametrize(
    ("arguments", "n_rows", "in_recipe", "otherwise"),
    [
        ({"batch_size": None}, 300, 128, 32),
        ({"batch_size": None}, 100, 100, 32),
        ({"batch_size": 50}, 300, 50, 50),
        ({"batch_size": None, "minibatch_size": 16}, 300, 16, 16),
    ],
)
def test_the_recipe_has_a_batch_size_of_its_own_where_none_is_given(
    arguments: dict[str, Any], n_rows: int, in_recipe: int, otherwise: int, losses: Losses
) -> None:
    algorithm = trainer(
        cls=ShortRecipe, critic=critic(), demonstrations=transitions(n=n_rows), **arguments
    )
    updates = algorithm.batch_size // algorithm.minibatch_size
    assert sizes_of(losses, algorithm) == [in_recipe] * 7 * updates
    assert sizes_of(losses, algorithm, n_batches=3) == [otherwise] * 3 * updates
    assert sizes_of(losses, algorithm, n_epochs=1) == [otherwise] * (n_rows // otherwise)
    # What comes after has the size that BC would have.
    assert algorithm.minibatch_size == otherwise
    algorithm.set_demonstrations(transitions(n=otherwise))


def test_the_batches_of_an_iterable_stay_as_they_are(losses: Losses) -> None:
    data = batches_of(transitions(n=128), 32)
    assert (
        sizes_of(losses, trainer(cls=ShortRecipe, batch_size=None, demonstrations=data)) == [32] * 7
    )


def test_a_recipe_that_was_left_does_not_leave_its_batches_behind(losses: Losses) -> None:
    data = transitions(n=300)
    algorithm = trainer(cls=ShortRecipe, batch_size=None, demonstrations=data)
    with pytest.raises(KeyboardInterrupt):
        train(algorithm, on_batch_end=every_batch(2, _interrupt))
    assert sizes_of(losses, algorithm, n_batches=3) == [32] * 3
    assert sizes_of(losses, algorithm) == [128] * 5, "the rest of the recipe"
    with pytest.raises(KeyboardInterrupt):
        train(algorithm, on_batch_end=every_batch(2, _interrupt))
    algorithm.set_demonstrations(transitions(n=40))
    assert sizes_of(losses, algorithm) == [40] * 7


@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        ({}, DiffusionBC.DEFAULT_LEARNING_RATE),
        ({"optimizer_kwargs": {"lr": 1e-3}}, 1e-3),
        ({"optimizer_cls": th.optim.AdamW}, 1e-3),
    ],
)
def test_the_recipe_has_a_learning_rate_of_its_own_where_none_is_given(
    arguments: dict[str, Any], first: float
) -> None:
    algorithm = trainer(cls=ShortRecipe, dm_coef=0, **arguments)
    own = rate(algorithm)
    used: list[float] = []
    algorithm.optimizer.register_step_pre_hook(lambda *_: used.append(rate(algorithm)))
    train(algorithm)
    np.testing.assert_allclose(used, [first * (1 - i / 7) for i in range(7)])
    assert rate(algorithm) == own
    train(algorithm, n_batches=1)
    assert used[-1] == own


def _interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("minibatch_size", [16, 8])
def test_two_calls_are_one_long_call(minibatch_size: int) -> None:
    # 64 rows make 4 batches: the calls end in the middle and at the end of a pass.
    results = []
    for lengths in ([11], [3, 8], [4, 7], [1, 3, 4, 2, 1]):
        algorithm = trainer(critic=critic(), policy=policy(), minibatch_size=minibatch_size)
        th.manual_seed(3)
        for n_batches in lengths:
            train(algorithm, n_batches=n_batches)
        results.append(weights(algorithm.policy))
        assert algorithm.n_updates == 11
    assert all(th.equal(result, results[0]) for result in results[1:])


def test_a_call_with_epochs_starts_with_a_new_pass(losses: list[tuple[th.Tensor, Any]]) -> None:
    data = transitions()
    algorithm = trainer(demonstrations=data, dm_coef=0)
    train(algorithm, n_batches=3)
    losses.clear()
    train(algorithm, n_epochs=1)
    seen = np.concatenate([acts.numpy() for acts, _ in losses])
    assert len(seen) == 64
    assert {row.tobytes() for row in seen} == {row.tobytes() for row in data.acts}


def test_a_seed_fixes_everything() -> None:
    def run(seed: int) -> tuple[th.Tensor, th.Tensor]:
        algorithm = trainer(policy=None, seed=seed)
        train(algorithm, n_batches=5)
        assert algorithm.critic is not None
        return weights(algorithm.policy), weights(algorithm.critic)

    first, again, other = run(7), run(7), run(8)
    assert all(th.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(th.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_seed_seeds_what_sb3_seeds() -> None:
    states = []
    for _ in range(2):
        algorithm = trainer(seed=3)
        numbers = (random.random(), np.random.rand(), float(th.rand(())), algorithm.rng.random())  # noqa: NPY002
        states.append(numbers)
    assert states[0] == states[1]


def test_without_a_seed_nothing_global_is_seeded() -> None:
    th.manual_seed(1)
    before = random.getstate(), str(np.random.get_state())  # noqa: NPY002
    train(trainer(), n_batches=1)
    assert (random.getstate(), str(np.random.get_state())) == before  # noqa: NPY002
    assert th.initial_seed() == 1


def test_a_given_generator_is_used() -> None:
    rng = np.random.default_rng(0)
    assert trainer(rng=rng, seed=3).rng is rng


def test_first_weights_and_order_of_demonstrations_are_the_same_with_and_without_l_dm(
    losses: list[tuple[th.Tensor, Any]],
) -> None:
    orders, starts = [], []
    shared = critic()
    for kwargs in ({"dm_coef": 0}, {}, {"critic": shared}, {"dm_clamp": "none", "bc_loss": "mse"}):
        losses.clear()
        algorithm = trainer(policy=None, seed=5, **kwargs)
        starts.append(weights(algorithm.policy))
        train(algorithm, n_batches=6)
        train(algorithm, n_epochs=1)
        orders.append(th.cat([acts for acts, _ in losses]))
    assert all(th.equal(order, orders[0]) for order in orders[1:])
    assert all(th.equal(start, starts[0]) for start in starts[1:])


def test_a_compiled_trainer_ends_with_the_same_policy_and_can_be_pickled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    th.compiler.reset()
    monkeypatch.setattr(th, "compile", functools.partial(th.compile, backend="aot_eager"))
    plain, compiled = trainer(seed=1), trainer(seed=1, compile=True)
    for algorithm in (plain, compiled):
        th.manual_seed(2)
        train(algorithm, n_batches=5)
    assert compiled.compile
    th.testing.assert_close(weights(compiled.policy), weights(plain.policy), rtol=1e-4, atol=1e-5)
    restored = pickle.loads(pickle.dumps(compiled))
    saved = compiled.save(tmp_path / "trainer")
    arguments = {"demonstrations": transitions(), "verbose": 0, "device": "cpu"}
    # How a model is computed is not part of it.
    assert not DiffusionBC.load(saved, **arguments).compile
    loaded = DiffusionBC.load(saved, compile=True, **arguments)
    for algorithm in (compiled, restored, loaded):
        th.manual_seed(3)
        train(algorithm, n_epochs=1)
        assert algorithm.compile
        assert th.equal(weights(algorithm.policy), weights(compiled.policy))


def test_training_is_in_training_mode_also_after_a_prediction() -> None:
    algorithm = trainer()
    modes = []

    def note_and_predict() -> None:
        modes.append(algorithm.policy.training)
        algorithm.predict(DATA.obs[:1])

    algorithm.predict(DATA.obs[:1])
    train(algorithm, n_batches=3, on_batch_end=note_and_predict)
    assert modes == [True] * 3


def test_predictions_are_the_policys() -> None:
    algorithm = trainer()
    obs = transitions().obs
    np.testing.assert_array_equal(
        algorithm.predict(obs, deterministic=True)[0],
        algorithm.policy.predict(obs, deterministic=True)[0],
    )
    assert not np.array_equal(algorithm.predict(obs)[0], algorithm.predict(obs)[0])


def line_trainer(**kwargs: Any) -> DiffusionBC:
    line = (LineEnv.observation_space, LineEnv.action_space)
    return trainer(*line, **{"policy": policy(*line), "env": LINE_ENV_ID, **kwargs})


def test_evaluation_is_repeatable_and_seeded() -> None:
    algorithm = line_trainer()
    first, again, other = (algorithm.evaluate(5, seed=seed) for seed in (0, 0, 100))
    np.testing.assert_array_equal(first.returns, again.returns)
    assert not np.array_equal(first.returns, other.returns)
    assert first.seeds == (0, 1, 2, 3, 4)
    elsewhere = algorithm.evaluate(5, env=LineEnv(reports_success=False))
    assert elsewhere.successes is None
    assert first.successes is not None


def test_evaluation_needs_an_environment() -> None:
    with pytest.raises(ValueError, match="env is missing"):
        trainer().evaluate(5)
    assert len(line_trainer(env=None, policy=None).evaluate(2, env=LINE_ENV_ID).returns) == 2


@pytest.mark.parametrize("length", [{"n_batches": 40}, {"n_epochs": 10}, {}])
def test_a_training_prints_a_line_per_tenth_and_one_bar(
    length: dict[str, int], capfd: pytest.CaptureFixture[str]
) -> None:
    patient = {**CRITIC_KWARGS, "patience": 50}
    algorithm = trainer(cls=FortyUpdates, verbose=1, critic_kwargs=patient)
    algorithm.train(**length)
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [int(line.split("%")[0]) for line in lines] == list(range(10, 101, 10))
    # 20 steps of the critic, and 40 updates.
    assert ["critic" in line for line in lines] == [True] * 3 + [False] * 7
    assert "step 18 of 20" in lines[2]
    assert lines[-1].startswith("100 %: policy, update 40 of 40, loss ")
    assert "60/60" in err
    assert err.count("\n") == 1


def test_a_quiet_trainer_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    trainer(cls=FortyUpdates).train(progress_bar=True)
    assert capfd.readouterr() == ("", "")
    trainer(verbose=1).train(n_batches=3, progress_bar=False)
    assert capfd.readouterr().err == ""


def test_tables_are_shown_where_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    train(trainer(verbose=2), n_batches=2)
    out = capfd.readouterr().out
    assert all(part in out for part in ("bc/", "neglogp", "dm/", "critic/"))


@pytest.fixture
def _torch_repeats_its_warnings() -> Iterator[None]:
    th.set_warn_always(True)
    yield
    th.set_warn_always(False)


@pytest.mark.usefixtures("_torch_repeats_its_warnings")
def test_no_warnings_reach_the_user(recwarn: pytest.WarningsRecorder) -> None:
    train(trainer(policy=None, seed=0), n_batches=2)
    train(trainer(policy=None, bc_loss="mse", l2_weight=1e-3), n_batches=2)
    train(trainer(MAPPING, spaces.Discrete(3), policy=None), n_batches=2)
    assert [str(warning.message) for warning in recwarn] == []


def critic_steps(algorithm: DiffusionBC) -> int:
    assert algorithm.critic is not None
    assert algorithm.critic.history is not None
    return algorithm.critic.history.steps[-1]


def test_the_critics_fit_is_no_longer_than_the_training_it_serves(fits: list[Any]) -> None:
    kwargs = {name: value for name, value in CRITIC_KWARGS.items() if name != "n_steps"}
    kwargs["patience"] = 100
    algorithm = trainer(critic_kwargs=kwargs)
    train(algorithm, n_epochs=2)
    assert critic_steps(algorithm) == 8
    train(algorithm, n_batches=7)
    assert len(fits) == 1
    # Twice as many updates as the critic had steps: it is fitted on.
    train(algorithm, n_batches=1)
    assert critic_steps(algorithm) == 16
    # A number that was asked for is not reduced.
    algorithm = trainer(critic_kwargs={**kwargs, "n_steps": 20})
    train(algorithm, n_batches=1)
    assert critic_steps(algorithm) == 20


def test_a_fit_that_came_to_the_end_of_its_epochs_is_not_made_again(fits: list[Any]) -> None:
    kwargs = {name: value for name, value in CRITIC_KWARGS.items() if name != "n_steps"}
    algorithm = trainer(critic_kwargs={**kwargs, "max_epochs": 1, "batch_size": 32})
    train(algorithm, n_batches=5)
    assert critic_steps(algorithm) == 2
    train(algorithm, n_batches=20)
    assert len(fits) == 1


def test_a_critic_of_new_demonstrations_goes_on_from_the_last_one() -> None:
    algorithm = trainer(critic_kwargs={**CRITIC_KWARGS, "n_steps": 200, "patience": 100})
    train(algorithm, n_batches=1)
    assert algorithm.critic is not None
    first = algorithm.critic.history
    algorithm.set_demonstrations(transitions(seed=1))
    train(algorithm, n_batches=1)
    second = algorithm.critic.history
    assert first is not None
    assert second is not None
    assert second.train_loss[0] < 0.9 * first.train_loss[0]
