"""The critic: the denoising loss, guidance, fitting, sampling, checkpoints, the release's φ."""

import copy
import json
import logging
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch as th
import toys
from gymnasium import spaces
from hypothesis import given, settings
from imitation.data.types import TransitionsMinimal
from imitation.util import logger as imit_logger
from torch import nn

from sb3_diffbc.checkpoints import CheckpointError, save_checkpoint
from sb3_diffbc.critic import DiffusionCritic, Noise
from sb3_diffbc.critic import critic as critic_module
from sb3_diffbc.demonstrations import load_demonstrations

pytestmark = pytest.mark.filterwarnings("ignore::sb3_diffbc.demonstrations.DemonstrationWarning")

MODELS = ("state_action", "action")
DENOISERS = ("residual", "release")
TINY: dict[str, Any] = {"width": 8, "depth": 1, "num_train_timesteps": 20, "device": "cpu"}
# Codes of ±1, so that samples can be told apart; T = 50 levels that end in pure noise.
CLUSTERS: dict[str, Any] = {
    "width": 32,
    "depth": 2,
    "beta_schedule": "cosine",
    "num_train_timesteps": 50,
    "learning_rate": 5e-3,
    "n_steps": 500,
    "seed": 0,
    "device": "cpu",
}

both_models = pytest.mark.parametrize("models", MODELS)
both_denoisers = pytest.mark.parametrize("denoiser", DENOISERS)
models_strategy = st.sampled_from(MODELS)
seeds = st.integers(0, 2**31)


def real_box(*shape: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, shape, np.float32)


def generator(seed: int = 0) -> th.Generator:
    return th.Generator().manual_seed(seed)


def minimal(obs: np.ndarray, acts: np.ndarray) -> TransitionsMinimal:
    return TransitionsMinimal(obs=obs, acts=acts, infos=np.full(len(acts), {}))


def with_random_weights(critic: DiffusionCritic, seed: int = 0) -> DiffusionCritic:
    """Fills the network as training would: an untrained one predicts 0 whatever it is shown."""
    with th.no_grad():
        for parameter in critic.denoiser.parameters():
            parameter.normal_(std=0.5, generator=generator(seed))
    return critic


def random_critic(
    observation_space: Any = toys.VECTOR,
    action_space: Any = toys.CONTINUOUS,
    *,
    seed: int = 0,
    **kwargs: Any,
) -> DiffusionCritic:
    """A critic with random weights and the statistics of random demonstrations."""
    critic = DiffusionCritic(observation_space, action_space, **{**TINY, **kwargs})
    data = toys.transitions(observation_space, action_space, seed=seed)
    critic.encoder.fit(data.obs, data.acts)
    return with_random_weights(critic, seed)


def two_clusters(n: int = 400, seed: int = 0) -> TransitionsMinimal:
    """Pairs around (10, 0) → (3, -3) and (14, 0.2) → (-3, 3): far from standardised."""
    rng = np.random.default_rng(seed)
    side = rng.choice([-1.0, 1.0], size=(n, 1))
    obs = np.hstack([12 - 2 * side, 0.1 - 0.1 * side]) + rng.normal(size=(n, 2)) * [0.1, 0.005]
    acts = side * [[3.0, -3.0]] + rng.normal(size=(n, 2)) * 0.15
    return minimal(obs.astype(np.float32), acts.astype(np.float32))


@pytest.fixture(scope="module")
def cluster_critics() -> dict[str, DiffusionCritic]:
    """Critics of both models, fitted to the two clusters; tests only read them."""
    critics = {}
    for models in MODELS:
        critic = DiffusionCritic(real_box(2), real_box(2), models=models, **CLUSTERS)
        critic.fit(two_clusters(), progress_bar=False)
        critics[models] = critic
    return critics


def state_of(critic: DiffusionCritic) -> dict[str, th.Tensor]:
    return {name: value.clone() for name, value in critic.state_dict().items()}


def assert_same_state(one: dict[str, th.Tensor], other: dict[str, th.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(th.equal(one[name], other[name]) for name in one)


class Recorder:
    """Stands in for a logger: keeps what is recorded, and looks at something at each dump."""

    def __init__(self, look: Callable[[], Any] = lambda: None) -> None:
        self.pending: dict[str, Any] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.seen: dict[int, Any] = {}
        self.look = look

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.pending[key] = value

    def dump(self, step: int = 0) -> None:
        self.rows[step], self.pending = self.pending, {}
        self.seen[step] = self.look()


# --- the denoising loss -------------------------------------------------------------------------


def slow_code(space: Any, values: np.ndarray, data: np.ndarray) -> np.ndarray:
    """The code of one action or observation, written out."""
    if isinstance(space, spaces.Discrete):
        return 2 * np.eye(int(space.n))[int(values)] - 1
    mean, std = data.mean(axis=0, dtype=np.float64), data.std(axis=0, dtype=np.float64)
    return np.clip((values - mean) / std, -10, 10)


def slow_denoising_loss(
    critic: DiffusionCritic, data: TransitionsMinimal, row: int, level: int, epsilon: np.ndarray
) -> float:
    """‖ε̂_φ(s, a, n) − ε‖² / dim of one pair of the data that the critic's statistics come from.

    Everything but the network's forward pass is written out.
    """
    state = slow_code(critic.observation_space, data.obs[row], data.obs)
    action = slow_code(critic.action_space, data.acts[row], data.acts)
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, 20))) * (0.02 - 1e-4) + 1e-4
    alpha_bar = np.prod(1 - betas[: level + 1])
    if critic.models == "state_action":
        clean = np.concatenate([state, action])
        noisy = np.sqrt(alpha_bar) * clean + np.sqrt(1 - alpha_bar) * epsilon
        state, action = noisy[: len(state)], noisy[len(state) :]
    else:
        action = np.sqrt(alpha_bar) * action + np.sqrt(1 - alpha_bar) * epsilon
    network = critic.denoiser
    state_row, action_row = (th.as_tensor(x, dtype=th.float32)[None] for x in (state, action))
    predicted = network(network.embed_state(state_row), action_row, th.tensor([level]))
    return float(np.mean((predicted.numpy()[0] - epsilon) ** 2))


@both_models
@both_denoisers
@pytest.mark.parametrize("action_space", [real_box(2), spaces.Discrete(3)], ids=toys.space_id)
@settings(deadline=None, max_examples=8)
@given(batch=st.integers(1, 5), seed=seeds)
def test_the_denoising_loss_equals_its_formula_written_out(
    models: str, denoiser: str, action_space: Any, batch: int, seed: int
) -> None:
    critic = random_critic(
        real_box(3), action_space, models=models, denoiser=denoiser, seed=seed % 100
    )
    data = toys.transitions(real_box(3), action_space, seed=seed % 100)
    noise = critic.draw_noise(batch, generator(seed))
    rows = np.random.default_rng(seed).integers(len(data), size=batch)
    found = critic.denoising_loss(data.obs[rows], data.acts[rows], noise=noise)
    assert found.shape == (batch,)
    expected = [
        slow_denoising_loss(
            critic, data, int(row), int(noise.timesteps[i]), noise.epsilon[i].double().numpy()
        )
        for i, row in enumerate(rows)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@both_models
def test_an_untrained_critic_loses_the_variance_of_the_noise(models: str) -> None:
    critic = DiffusionCritic(toys.VECTOR, toys.CONTINUOUS, models=models, **TINY)
    data = toys.transitions(n=32)
    noise = critic.draw_noise(32, generator())
    losses = critic.denoising_loss(data.obs, data.acts, noise=noise)
    th.testing.assert_close(losses, noise.epsilon.square().mean(dim=-1))


@settings(deadline=None, max_examples=30)
@given(
    observation_space=toys.observation_spaces(),
    action_space=toys.action_spaces(),
    models=models_strategy,
    batch=st.integers(1, 6),
    seed=seeds,
)
def test_arrays_and_tensors_of_all_spaces_give_the_same_finite_losses(
    observation_space: Any, action_space: Any, models: str, batch: int, seed: int
) -> None:
    critic = random_critic(observation_space, action_space, models=models, seed=seed % 100)
    data = toys.transitions(observation_space, action_space, n=batch, seed=seed)
    noise = critic.draw_noise(batch, generator(seed))
    from_arrays = critic.denoising_loss(data.obs, data.acts, noise=noise)
    if isinstance(data.obs, np.ndarray):
        obs: Any = th.tensor(data.obs)
    else:
        obs = {key: th.tensor(value) for key, value in data.obs.items()}
    from_tensors = critic.denoising_loss(obs, th.tensor(data.acts), noise=noise)
    assert th.equal(from_arrays, from_tensors)
    assert from_arrays.isfinite().all()
    assert (from_arrays >= 0).all()


@both_models
def test_what_gets_noise_depends_on_the_model(models: str) -> None:
    critic = random_critic(models=models)
    noise = critic.draw_noise(5, generator())
    assert critic.noise_dim == noise.epsilon.shape[1] == (5 if models == "state_action" else 2)
    assert noise.timesteps.shape == (5,)
    # The first half of the batch and the mirrored levels of the second.
    assert (noise.timesteps[:2] + noise.timesteps[3:] == 19).all()


def test_the_conditional_model_sees_the_state_without_noise() -> None:
    # With pure noise in the actions, all that can tell two observations apart is the condition.
    critic = random_critic(models="action", beta_schedule="cosine")
    data = toys.transitions(n=6)
    noise = Noise(th.full((6,), 19), critic.draw_noise(6, generator()).epsilon)
    here = critic.denoising_loss(data.obs, data.acts, noise=noise)
    elsewhere = critic.denoising_loss(data.obs + 0.5, data.acts, noise=noise)
    assert ((here - elsewhere).abs() > 1e-3).all()


@both_models
def test_the_draw_follows_the_generator_or_the_global_state(models: str) -> None:
    critic = random_critic(models=models)
    data = toys.transitions(n=8)

    def draw(seed: int, use_global: bool) -> th.Tensor:
        if not use_global:
            return critic.denoising_loss(data.obs, data.acts, generator=generator(seed))
        with th.random.fork_rng(devices=[]):
            th.manual_seed(seed)
            return critic.denoising_loss(data.obs, data.acts)

    for use_global in (False, True):
        assert th.equal(draw(1, use_global), draw(1, use_global))
        assert not th.equal(draw(1, use_global), draw(2, use_global))


# --- guidance -----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    observation_space=toys.observation_spaces(),
    action_space=toys.action_spaces(),
    models=models_strategy,
    denoiser=st.sampled_from(DENOISERS),
    batch=st.integers(1, 9),
    seed=seeds,
)
def test_equal_actions_have_equal_losses_up_to_rounding(
    observation_space: Any,
    action_space: Any,
    models: str,
    denoiser: str,
    batch: int,
    seed: int,
) -> None:
    critic = random_critic(
        observation_space, action_space, models=models, denoiser=denoiser, seed=seed % 100
    )
    data = toys.transitions(observation_space, action_space, n=batch, seed=seed)
    acts = th.tensor(data.acts)
    if isinstance(action_space, spaces.Box):
        acts.requires_grad_()  # as a policy's are: the two passes differ in their bookkeeping
    guidance = critic.guidance(data.obs, acts, data.acts, generator=generator(seed))
    assert guidance.agent.shape == (batch,)
    # Rows of one matrix product, which may be summed in another order.
    th.testing.assert_close(guidance.agent, guidance.expert, rtol=1e-5, atol=1e-6)


@both_models
@both_denoisers
def test_guidance_is_the_denoising_loss_of_both_pairs_under_the_same_noise(
    models: str, denoiser: str
) -> None:
    critic = random_critic(models=models, denoiser=denoiser)
    data = toys.transitions(n=16)
    agent_acts = th.tensor(data.acts) + 0.3
    noise = critic.draw_noise(16, generator(5))
    guidance = critic.guidance(data.obs, agent_acts, data.acts, noise=noise)
    agent = critic.denoising_loss(data.obs, agent_acts, noise=noise)
    expert = critic.denoising_loss(data.obs, data.acts, noise=noise)
    th.testing.assert_close(guidance.agent, agent)
    th.testing.assert_close(guidance.expert, expert)
    drawn = critic.guidance(data.obs, agent_acts, data.acts, generator=generator(5))
    assert th.equal(drawn.agent, guidance.agent)
    assert th.equal(drawn.expert, guidance.expert)


@both_models
def test_the_gradient_of_the_agents_loss_equals_finite_differences(models: str) -> None:
    critic = random_critic(models=models, width=6, depth=2).double()
    data = toys.transitions(n=5)
    # The encoder takes actions in single precision. Multiples of 1/256 and steps of 1/4096 are
    # exact in it, so all the rounding that is left is that of double precision.
    acts = (th.tensor(data.acts) * 256).round().div(256)
    step = 2.0**-12
    levels, epsilon = critic.draw_noise(5, generator())
    noise = Noise(levels, epsilon.double())

    def losses(agent_acts: th.Tensor) -> th.Tensor:
        return critic.guidance(data.obs, agent_acts, data.acts, noise=noise).agent

    agent_acts = acts.clone().requires_grad_()
    losses(agent_acts).sum().backward()
    assert agent_acts.grad is not None
    for dimension in range(2):
        shift = step * th.eye(2)[dimension]
        # Each loss depends on its own row only, so one difference serves all rows.
        slope = (losses(acts + shift) - losses(acts - shift)) / (2 * step)
        np.testing.assert_allclose(agent_acts.grad[:, dimension], slope, rtol=1e-4, atol=1e-6)


@both_models
def test_gradients_stay_out_of_the_critic_and_of_the_experts_term(models: str) -> None:
    critic = random_critic(models=models)
    data = toys.transitions(n=8)
    agent_acts = th.tensor(data.acts + 0.1).requires_grad_()
    expert_acts = th.tensor(data.acts).requires_grad_()
    guidance = critic.guidance(data.obs, agent_acts, expert_acts, generator=generator())
    assert guidance.agent.requires_grad
    assert not guidance.expert.requires_grad
    (guidance.agent - guidance.expert).sum().backward()
    assert agent_acts.grad is not None
    assert (agent_acts.grad.abs().sum(dim=-1) > 0).all()
    assert expert_acts.grad is None
    assert all(p.grad is None and not p.requires_grad for p in critic.parameters())


def test_the_experts_actions_do_not_change_the_agents_term() -> None:
    critic = random_critic()
    data = toys.transitions(n=8)
    noise = critic.draw_noise(8, generator())
    gradients, losses = [], []
    for expert_acts in (data.acts, data.acts + 1):
        agent_acts = th.tensor(data.acts + 0.1).requires_grad_()
        agent = critic.guidance(data.obs, agent_acts, expert_acts, noise=noise).agent
        agent.sum().backward()
        gradients.append(agent_acts.grad)
        losses.append(agent.detach())
    assert th.equal(losses[0], losses[1])
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert th.equal(gradients[0], gradients[1])


@both_models
@both_denoisers
def test_both_passes_share_the_state_half_of_the_first_layer(
    models: str, denoiser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = random_critic(models=models, denoiser=denoiser)
    calls: list[int] = []
    embed = critic.denoiser.embed_state

    def counting(state: th.Tensor) -> th.Tensor:
        calls.append(len(state))
        return embed(state)

    monkeypatch.setattr(critic.denoiser, "embed_state", counting)
    data = toys.transitions(n=8)
    critic.guidance(data.obs, th.tensor(data.acts), data.acts)
    assert calls == [8]


# --- fitting ------------------------------------------------------------------------------------


@both_models
def test_the_loss_falls(models: str, cluster_critics: dict[str, DiffusionCritic]) -> None:
    history = cluster_critics[models].history
    assert history is not None
    # The first mean covers the first 20 steps.
    assert history.train_loss[-1] < 0.6 * history.train_loss[0]
    assert min(history.validation_loss) < 0.6 * history.validation_loss[0]


@both_models
@both_denoisers
def test_a_fitted_critic_ranks_pairs_above_mismatched_ones(models: str, denoiser: str) -> None:
    settings_ = {**CLUSTERS, "denoiser": denoiser, "n_steps": 200}
    critic = DiffusionCritic(real_box(2), real_box(2), models=models, **settings_)
    critic.fit(two_clusters(), progress_bar=False)
    unseen = two_clusters(n=200, seed=1)
    noise = critic.draw_noise(200, generator())
    right = critic.denoising_loss(unseen.obs, unseen.acts, noise=noise)
    wrong = critic.denoising_loss(unseen.obs, -unseen.acts, noise=noise)
    assert right.mean() < 0.9 * wrong.mean()


@pytest.mark.parametrize(
    ("n_steps", "expected"),
    [
        (1, [1]),
        (7, [1, 2, 3, 4, 5, 6, 7]),
        (53, [*range(2, 53, 2), 53]),
        (75, list(range(3, 76, 3))),
    ],
)
def test_the_history_has_one_entry_per_evaluation(n_steps: int, expected: list[int]) -> None:
    # Next to no learning, so every mean of training losses is about 1, whatever it covers.
    critic = DiffusionCritic(
        toys.VECTOR,
        toys.CONTINUOUS,
        **TINY,
        n_steps=n_steps,
        learning_rate=1e-12,
        validation_fraction=0,
        seed=0,
    )
    history = critic.fit(toys.transitions(n=128), progress_bar=False)
    assert history is critic.history
    assert list(history.steps) == expected
    assert history.validation_loss == ()
    assert history.best_step == n_steps
    assert history.seconds > 0
    np.testing.assert_allclose(history.train_loss, np.ones(len(expected)), atol=0.3)


def test_held_out_losses_are_compared_under_the_same_noise() -> None:
    critic = DiffusionCritic(
        toys.VECTOR,
        toys.CONTINUOUS,
        **TINY,
        n_steps=50,
        learning_rate=1e-12,
        validation_fraction=0.25,
        patience=50,
        seed=0,
    )
    history = critic.fit(toys.transitions(n=64), progress_bar=False)
    assert len(history.validation_loss) == 25
    assert np.ptp(history.validation_loss) < 1e-6
    assert np.ptp(history.train_loss) > 1e-3


def overfitting_critic(patience: int = 2, ema_decay: float = 0.0) -> DiffusionCritic:
    return DiffusionCritic(
        real_box(3),
        real_box(3),
        width=64,
        depth=2,
        num_train_timesteps=20,
        beta_schedule="cosine",
        n_steps=1500,
        learning_rate=1e-2,
        validation_fraction=0.5,
        patience=patience,
        ema_decay=ema_decay,
        seed=0,
        device="cpu",
    )


def unlearnable(n: int = 24) -> TransitionsMinimal:
    rng = np.random.default_rng(0)
    obs, acts = rng.normal(size=(2, n, 3)).astype(np.float32)
    return minimal(obs, acts)


@pytest.mark.parametrize("patience", [1, 3])
def test_fitting_stops_early_and_keeps_the_best_weights(patience: int) -> None:
    critic = overfitting_critic(patience)
    recorder = Recorder(lambda: copy.deepcopy(critic.denoiser.state_dict()))
    history = critic.fit(unlearnable(), progress_bar=False, logger=recorder)  # type: ignore[arg-type]
    losses = history.validation_loss
    assert len(history.steps) == len(history.train_loss) == len(losses)
    assert history.steps[-1] < 1500
    best = int(np.argmin(losses))
    assert history.best_step == history.steps[best]
    assert len(losses) - 1 - best == patience
    # Without averaging, what was evaluated are the raw weights, which the recorder saw.
    assert_same_state(critic.denoiser.state_dict(), recorder.seen[history.best_step])
    logged = {step: row["critic/validation_loss"] for step, row in recorder.rows.items()}
    assert logged == dict(zip(history.steps, losses, strict=True))


def test_averaged_weights_are_what_is_kept() -> None:
    decay = 0.8
    critic = DiffusionCritic(
        real_box(2),
        real_box(2),
        **TINY,
        n_steps=20,
        learning_rate=1e-2,
        ema_decay=decay,
        patience=20,
        seed=0,
    )
    # Up to 25 steps, every one is an evaluation, so the recorder sees all raw weights.
    recorder = Recorder(lambda: copy.deepcopy(critic.denoiser.state_dict()))
    history = critic.fit(two_clusters(), progress_bar=False, logger=recorder)  # type: ignore[arg-type]
    averaged: dict[str, th.Tensor] = {}
    for step in range(1, history.best_step + 1):
        raw = recorder.seen[step]
        # The decay grows to its value, so that the first weights do not linger. The first
        # update only copies.
        weight = min(decay, step / (9 + step))
        averaged = {
            name: weight * averaged.get(name, value) + (1 - weight) * value
            for name, value in raw.items()
        }
    kept = critic.denoiser.state_dict()
    for name, value in averaged.items():
        th.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
    assert not th.equal(kept["out.weight"], recorder.seen[history.best_step]["out.weight"])


def test_the_best_weights_have_the_least_held_out_loss_when_fitting_goes_on() -> None:
    # A second fit starts from the kept weights; with next to no learning, its held-out loss is
    # that of the weights that the first fit kept.
    critic = overfitting_critic()
    first = critic.fit(unlearnable(), progress_bar=False)
    critic.config |= {"n_steps": 1, "learning_rate": 1e-12}
    second = critic.fit(unlearnable(), progress_bar=False)
    np.testing.assert_allclose(second.validation_loss, [min(first.validation_loss)], rtol=1e-4)
    assert first.validation_loss[-1] > min(first.validation_loss)


def test_a_second_fit_takes_new_statistics_and_keeps_the_weights() -> None:
    critic = DiffusionCritic(real_box(2), real_box(2), **CLUSTERS)
    critic.config["n_steps"] = 100
    first = critic.fit(two_clusters(), progress_bar=False)
    moved = two_clusters()
    moved = minimal(moved.obs * 3 + 7, moved.acts * 2 - 1)
    second = critic.fit(moved, progress_bar=False)
    th.testing.assert_close(critic.encoder.obs_mean, th.as_tensor(moved.obs.mean(axis=0)))
    # The same standardised pairs are learnt on from where the first fit ended.
    assert second.train_loss[0] < 0.8 * first.train_loss[0]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("validation_fraction", [0, 0.1, 0.5, 0.99])
def test_a_handful_of_pairs_is_enough_to_run(n: int, validation_fraction: float) -> None:
    critic = DiffusionCritic(
        real_box(2),
        real_box(2),
        **TINY,
        n_steps=6,
        batch_size=128,
        validation_fraction=validation_fraction,
        seed=0,
    )
    history = critic.fit(two_clusters(n), progress_bar=False)
    assert np.isfinite(history.train_loss).all()
    assert bool(history.validation_loss) == (int(n * validation_fraction) > 0)
    assert critic.denoising_loss(two_clusters(n).obs, two_clusters(n).acts).isfinite().all()


@pytest.mark.parametrize("space", toys.ACTION_SPACES, ids=toys.space_id)
@both_models
def test_all_action_spaces_can_be_fitted_and_sampled(space: Any, models: str) -> None:
    critic = toys.critic(toys.MAPPING, space, models=models)
    data = toys.transitions(toys.MAPPING, space, n=5)
    obs, acts = critic.sample(
        **({"n": 5} if models == "state_action" else {"obs": data.obs}), generator=generator()
    )
    assert obs.shape == (5, critic.encoder.obs_dim)
    assert acts.shape == data.acts.shape
    assert acts.isfinite().all()
    if not isinstance(space, spaces.Box):
        assert all(space.contains(row.astype(space.dtype)) for row in acts.numpy())


def test_images_can_be_fitted() -> None:
    data = toys.transitions(toys.IMAGE, toys.CONTINUOUS, n=8)
    critic = toys.critic(toys.IMAGE, toys.CONTINUOUS, data=data, width=4)
    assert critic.denoising_loss(data.obs, data.acts, generator=generator()).isfinite().all()


def test_fitting_freezes_the_critic_again() -> None:
    critic = DiffusionCritic(real_box(2), real_box(2), **TINY, n_steps=3)
    for expected in (False, True):
        assert critic.is_fitted is expected
        assert not critic.training
        assert not any(p.requires_grad for p in critic.parameters())
        critic.fit(two_clusters(), progress_bar=False)


def test_anything_that_loads_as_demonstrations_can_be_fitted(tmp_path: Path) -> None:
    data = two_clusters(30)
    np.savez(tmp_path / "pairs.npz", obs=data.obs, acts=data.acts)
    states = []
    for demonstrations in (data, tmp_path / "pairs.npz"):
        critic = DiffusionCritic(real_box(2), real_box(2), **TINY, n_steps=5, seed=0)
        critic.fit(demonstrations, progress_bar=False)
        states.append(state_of(critic))
    assert_same_state(*states)


def test_the_read_only_arrays_of_imitation_are_taken_without_a_warning() -> None:
    data = two_clusters(20)
    data.obs.flags.writeable = data.acts.flags.writeable = False
    critic = DiffusionCritic(real_box(2), real_box(2), **TINY, n_steps=2)
    shown_once = not th.is_warn_always_enabled()
    th.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            critic.fit(data, progress_bar=False)
            critic.denoising_loss(data.obs, data.acts)
    finally:
        th.set_warn_always(not shown_once)


def test_inside_autocast_every_step_sees_its_own_weights() -> None:
    histories = []
    for cache_enabled in (False, True):
        critic = DiffusionCritic(
            real_box(2), real_box(2), width=8, depth=1, n_steps=25, seed=0, device="cpu"
        )
        with th.autocast("cpu", th.bfloat16, cache_enabled=cache_enabled):
            histories.append(fitted_history(critic, two_clusters()))
    assert histories[0] == histories[1]


def test_progress_is_shown_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    critic = DiffusionCritic(real_box(2), real_box(2), **TINY, n_steps=3)
    critic.fit(two_clusters(), progress_bar=False)
    assert capfd.readouterr().err == ""
    critic.fit(two_clusters(), progress_bar=True)
    shown = capfd.readouterr().err
    assert "critic" in shown
    assert "3/3" in shown
    assert "validation_loss" in shown


def test_curves_are_logged(tmp_path: Path) -> None:
    logger = imit_logger.configure(tmp_path, ["json"])
    critic = DiffusionCritic(real_box(2), real_box(2), **TINY, n_steps=4, patience=9, seed=0)
    history = critic.fit(two_clusters(), progress_bar=False, logger=logger)
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert len(rows) == len(history.steps)
    for row, train_loss, validation_loss in zip(
        rows, history.train_loss, history.validation_loss, strict=True
    ):
        assert row["critic/loss"] == pytest.approx(train_loss)
        assert row["critic/validation_loss"] == pytest.approx(validation_loss)
        assert row["critic/best_step"] in history.steps


def fitted_history(critic: DiffusionCritic, data: TransitionsMinimal) -> tuple[Any, ...]:
    history = critic.fit(data, progress_bar=False)
    return history.train_loss, history.validation_loss


def test_a_few_demonstrations_on_disk_are_fitted_like_those_in_memory(tmp_path: Path) -> None:
    for space in (toys.VECTOR, toys.MAPPING):
        data = toys.transitions(space)
        found, expected = (
            fitted_history(DiffusionCritic(space, toys.CONTINUOUS, seed=0, n_steps=20, **TINY), d)
            for d in (toys.pairs_on_disk(data, tmp_path / str(space.shape)), data)
        )
        assert found == expected


def test_many_demonstrations_on_disk_are_fitted_to_a_subset_that_the_seed_fixes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(critic_module, "_MAX_PAIRS_IN_MEMORY", 256)
    data = toys.transitions(n=1000)
    mapped = toys.pairs_on_disk(data, tmp_path)

    def fit(seed: int) -> DiffusionCritic:
        critic = DiffusionCritic(toys.VECTOR, toys.CONTINUOUS, seed=seed, n_steps=20, **TINY)
        critic.fit(mapped, progress_bar=False)
        return critic

    with caplog.at_level(logging.INFO, logger="sb3_diffbc"):
        first = fit(0)
    assert caplog.messages == ["The critic is fitted to 256 of 1000 pairs on disk."]
    assert_same_state(state_of(first), state_of(fit(0)))
    assert not th.equal(first.encoder.obs_mean, fit(1).encoder.obs_mean)
    np.testing.assert_allclose(first.encoder.obs_mean, data.obs.mean(axis=0), atol=0.2)


# --- randomness ---------------------------------------------------------------------------------


def fit_small(seed: int | None) -> DiffusionCritic:
    critic = DiffusionCritic(
        real_box(2), real_box(2), **TINY, n_steps=8, learning_rate=1e-2, seed=seed
    )
    critic.fit(two_clusters(), progress_bar=False)
    return critic


@both_denoisers
def test_a_seed_fixes_the_initial_weights(denoiser: str) -> None:
    made = []
    for seed, global_seed in ((3, 0), (3, 1), (4, 0)):
        with th.random.fork_rng(devices=[]):
            th.manual_seed(global_seed)
            critic = DiffusionCritic(real_box(2), real_box(2), **TINY, denoiser=denoiser, seed=seed)
        made.append(state_of(critic))
    assert_same_state(made[0], made[1])
    assert not all(th.equal(made[0][name], made[2][name]) for name in made[0])


def test_a_seed_fixes_the_fit() -> None:
    fitted = []
    for seed, global_seed in ((3, 0), (3, 1), (4, 0)):
        with th.random.fork_rng(devices=[]):
            th.manual_seed(global_seed)
            fitted.append(fit_small(seed))
    histories = [critic.history for critic in fitted]
    assert_same_state(state_of(fitted[0]), state_of(fitted[1]))
    assert histories[0].train_loss == histories[1].train_loss
    # At its first step the network predicts 0, so this loss shows the batch and the noise alone.
    assert histories[0].train_loss[0] != histories[2].train_loss[0]


def test_without_a_seed_the_global_state_decides() -> None:
    states = []
    for global_seed in (3, 3, 4):
        with th.random.fork_rng(devices=[]):
            th.manual_seed(global_seed)
            states.append(state_of(fit_small(None)))
    assert_same_state(states[0], states[1])
    assert not all(th.equal(states[0][name], states[2][name]) for name in states[0])


def test_critics_without_a_seed_differ_from_each_other() -> None:
    with th.random.fork_rng(devices=[]):
        th.manual_seed(3)
        first, second = state_of(fit_small(None)), state_of(fit_small(None))
    assert not all(th.equal(first[name], second[name]) for name in first)


def test_a_critic_with_a_seed_leaves_global_random_states_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reseeded: list[int] = []
    monkeypatch.setattr(th.cuda, "manual_seed_all", reseeded.append)
    before = th.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    critic = fit_small(7)
    critic.sample(3, generator=generator())
    data = two_clusters(4)
    critic.denoising_loss(data.obs, data.acts, generator=generator())
    DiffusionCritic.load(critic.save(tmp_path / "critic"), device="cpu")
    assert th.equal(th.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert reseeded == []  # GPUs have states of their own


# --- sampling -----------------------------------------------------------------------------------


class GaussianDenoiser(nn.Module):
    """The best possible noise prediction where the data is normal: E[ε | x_n] in closed form."""

    def __init__(self, critic: DiffusionCritic, mean: th.Tensor, covariance: th.Tensor) -> None:
        super().__init__()
        self.schedule, self.mean, self.covariance = critic.schedule, mean, covariance

    def embed_state(self, state: th.Tensor) -> th.Tensor:
        return state

    def forward(self, state: th.Tensor, action: th.Tensor, timesteps: th.Tensor) -> th.Tensor:
        share = self.schedule.alphas_cumprod[timesteps[0]]
        noisy = th.cat([state, action], dim=-1)
        spread = share * self.covariance + (1 - share) * th.eye(len(self.mean))
        deviation = noisy - share.sqrt() * self.mean
        return (1 - share).sqrt() * th.linalg.solve(spread, deviation.T).T


def test_sampling_turns_a_perfect_prediction_into_the_datas_distribution() -> None:
    critic = DiffusionCritic(
        real_box(2), real_box(1), beta_schedule="cosine", num_train_timesteps=300, device="cpu"
    )
    data = two_clusters()
    critic.encoder.fit(data.obs, data.acts[:, :1])
    mean = th.tensor([0.5, -1.0, 0.2])
    covariance = th.tensor([[0.5, 0.3, 0.0], [0.3, 0.8, -0.4], [0.0, -0.4, 0.6]])
    critic.denoiser = GaussianDenoiser(critic, mean, covariance)  # type: ignore[assignment]
    obs, acts = critic.sample(20_000, generator=generator())
    codes = th.cat([critic.encoder.encode_obs(obs), critic.encoder.encode_acts(acts)], dim=-1)
    np.testing.assert_allclose(codes.mean(dim=0), mean, atol=0.02)
    np.testing.assert_allclose(codes.T.cov(), covariance, atol=0.03)


def test_samples_of_pairs_lie_in_both_clusters(
    cluster_critics: dict[str, DiffusionCritic],
) -> None:
    obs, acts = cluster_critics["state_action"].sample(400, generator=generator())
    side = acts[:, 0].sign()
    distance = (obs - th.stack([12 - 2 * side, 0.1 - 0.1 * side], dim=-1)).abs() / th.tensor(
        [2, 0.1]
    )
    assert (distance < 0.5).all(dim=-1).float().mean() > 0.9
    assert ((acts - th.stack([3 * side, -3 * side], dim=-1)).abs() < 1).all(
        dim=-1
    ).float().mean() > 0.9
    assert 0.35 < (side > 0).float().mean() < 0.65


def test_samples_of_actions_lie_in_the_cluster_of_their_observation(
    cluster_critics: dict[str, DiffusionCritic],
) -> None:
    unseen = two_clusters(300, seed=1)
    obs, acts = cluster_critics["action"].sample(obs=unseen.obs, generator=generator())
    np.testing.assert_allclose(obs, unseen.obs, rtol=1e-4, atol=1e-4)
    side = np.sign(unseen.acts[:, :1])
    near = np.abs(acts.numpy() - side * [[3.0, -3.0]]).max(axis=1) < 1
    assert near.mean() > 0.95


def test_samples_of_discrete_actions_follow_the_observation() -> None:
    obs = np.repeat(np.float32([[-1.0], [1.0]]), 50, axis=0)
    acts = np.repeat([2, 0], 50)
    critic = DiffusionCritic(real_box(1), spaces.Discrete(3), models="action", **CLUSTERS)
    critic.fit(minimal(obs, acts), progress_bar=False)
    _, sampled = critic.sample(obs=obs, generator=generator())
    assert sampled.dtype == th.int64
    assert (sampled.numpy() == acts).mean() > 0.95


@both_models
def test_samples_follow_the_generator(
    models: str, cluster_critics: dict[str, DiffusionCritic]
) -> None:
    critic = cluster_critics[models]
    arguments: dict[str, Any] = (
        {"n": 4} if models == "state_action" else {"obs": two_clusters(4).obs}
    )
    draws = [critic.sample(**arguments, generator=generator(seed))[1] for seed in (1, 1, 2)]
    assert th.equal(draws[0], draws[1])
    assert not th.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("models", "arguments", "message"),
    [
        ("state_action", {}, "n=None"),
        ("state_action", {"n": 0}, "n=0"),
        ("state_action", {"n": -3}, "n=-3"),
        ("state_action", {"n": 2, "obs": np.zeros((2, 2), np.float32)}, "obs"),
        ("state_action", {"obs": np.zeros((2, 2), np.float32)}, "n=None and obs"),
        ("action", {}, "no obs"),
        ("action", {"n": 2}, "n=2"),
        ("action", {"n": 2, "obs": np.zeros((2, 2), np.float32)}, "n=2"),
    ],
)
def test_sampling_refuses_what_its_model_does_not_take(
    models: str, arguments: dict[str, Any], message: str
) -> None:
    critic = DiffusionCritic(real_box(2), real_box(2), models=models, **TINY)
    with pytest.raises(ValueError, match=message):
        critic.sample(**arguments)


# --- checkpoints --------------------------------------------------------------------------------


@both_models
def test_a_loaded_critic_has_the_same_losses_and_samples(
    models: str, cluster_critics: dict[str, DiffusionCritic], tmp_path: Path
) -> None:
    critic = cluster_critics[models]
    path = critic.save(tmp_path / "critic")
    assert path == tmp_path / "critic.safetensors"
    loaded = DiffusionCritic.load(path, device="cpu")
    assert_same_state(state_of(loaded), state_of(critic))
    assert loaded.config == critic.config
    assert loaded.history == critic.history
    assert loaded.is_fitted
    assert loaded.observation_space == critic.observation_space
    assert loaded.action_space == critic.action_space
    assert not any(p.requires_grad for p in loaded.parameters())
    data = two_clusters(20)
    losses = [
        c.denoising_loss(data.obs, data.acts, generator=generator()) for c in (critic, loaded)
    ]
    assert th.equal(*losses)
    arguments: dict[str, Any] = {"n": 3} if models == "state_action" else {"obs": data.obs}
    samples = [c.sample(**arguments, generator=generator()) for c in (critic, loaded)]
    assert all(th.equal(*parts) for parts in zip(*samples, strict=True))


@pytest.mark.parametrize("seed", [None, 5])
def test_a_loaded_critic_is_fitted_on_as_the_saved_one(seed: int | None, tmp_path: Path) -> None:
    critic = fit_small(seed)
    loaded = DiffusionCritic.load(critic.save(tmp_path / "critic"), device="cpu")
    for each in (critic, loaded):
        each.fit(two_clusters(seed=1), progress_bar=False)
    assert_same_state(state_of(loaded), state_of(critic))


def test_an_unfitted_critic_can_be_saved(tmp_path: Path) -> None:
    critic = DiffusionCritic(toys.MAPPING, spaces.MultiDiscrete([2, 3]), **TINY, seed=1)
    loaded = DiffusionCritic.load(critic.save(tmp_path / "critic"), device="cpu")
    assert not loaded.is_fitted
    assert loaded.history is None
    assert_same_state(state_of(loaded), state_of(critic))


@pytest.mark.parametrize("kind", ["policy", "trainer"])
def test_checkpoints_of_another_kind_are_refused(kind: str, tmp_path: Path) -> None:
    tensors, content = random_critic().checkpoint_content()
    path = save_checkpoint(tmp_path / "other", kind=kind, tensors=tensors, content=content)
    with pytest.raises(CheckpointError, match=f"expected an sb3_diffbc critic.*{kind}"):
        DiffusionCritic.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        DiffusionCritic.load(tmp_path / "nowhere")


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    th.save(random_critic().state_dict(), tmp_path / "critic.pt")
    with pytest.raises(CheckpointError, match=r"critic\.pt"):
        DiffusionCritic.load(tmp_path / "critic.pt")


DELETED = object()


def changed(document: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    document = copy.deepcopy(document)
    *parents, last = keys
    inner = document
    for key in parents:
        inner = inner[key]
    if value is DELETED:
        del inner[last]
    else:
        inner[last] = value
    return document


MALFORMED: list[tuple[str, Any]] = [
    ("observation_space", DELETED),
    ("observation_space", None),
    ("observation_space", {"type": "Box"}),
    ("observation_space", "os.system"),
    ("action_space", DELETED),
    ("action_space", []),
    ("action_space", {"type": "Tuple", "spaces": []}),
    ("config", DELETED),
    ("config", None),
    ("config", ["width", 8]),
    ("config", {"hidden": 3}),
    ("config/unknown", 1),
    ("config/device", "cpu"),
    ("config/models", "everything"),
    ("config/models", None),
    ("config/models", ["state_action"]),
    ("config/models", "action"),
    ("config/denoiser", "release"),
    ("config/denoiser", {}),
    ("config/width", "8"),
    ("config/width", 8.5),
    ("config/width", 0),
    ("config/width", 16),
    ("config/width", None),
    ("config/depth", [1]),
    ("config/depth", 2),
    ("config/beta_schedule", 1),
    ("config/beta_schedule", []),
    ("config/num_train_timesteps", 0),
    ("config/num_train_timesteps", "20"),
    ("config/learning_rate", "fast"),
    ("config/validation_fraction", 1),
    ("config/ema_decay", None),
    ("config/seed", "x"),
    ("config/seed", 2**80),
    ("is_fitted", DELETED),
    ("fit_seed", DELETED),
    ("fit_seed", None),
    ("fit_seed", "abc"),
    ("fit_seed", [1]),
    ("history", DELETED),
    ("history", 3),
    ("history", []),
    ("history", {}),
    ("history/steps", DELETED),
    ("history/steps", 3),
    ("history/train_loss", None),
    ("history/best_step", DELETED),
]


@pytest.fixture(scope="module")
def small_checkpoint() -> tuple[dict[str, th.Tensor], dict[str, Any]]:
    tensors, content = fit_small(0).checkpoint_content()
    return tensors, json.loads(json.dumps(content))


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        pytest.param(k, v, id=f"{k}-{'deleted' if v is DELETED else json.dumps(v)}")
        for k, v in MALFORMED
    ],
)
def test_malformed_content_is_refused(
    keys: str,
    value: Any,
    small_checkpoint: tuple[dict[str, th.Tensor], dict[str, Any]],
    tmp_path: Path,
) -> None:
    tensors, content = small_checkpoint
    path = save_checkpoint(
        tmp_path / "bad",
        kind="critic",
        tensors=tensors,
        content=changed(content, tuple(keys.split("/")), value),
    )
    with pytest.raises(CheckpointError):
        DiffusionCritic.load(path, device="cpu")


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "dtype"])
def test_weights_that_do_not_fit_the_content_are_refused(
    change: str,
    small_checkpoint: tuple[dict[str, th.Tensor], dict[str, Any]],
    tmp_path: Path,
) -> None:
    tensors, content = dict(small_checkpoint[0]), small_checkpoint[1]
    name = "denoiser.out.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["denoiser.extra"] = th.zeros(1)
    else:
        tensors[name] = tensors[name].double() if change == "dtype" else tensors[name][:1]
    path = save_checkpoint(tmp_path / "bad", kind="critic", tensors=tensors, content=content)
    with pytest.raises(CheckpointError, match="do not fit"):
        DiffusionCritic.load(path, device="cpu")


# --- the release's φ ----------------------------------------------------------------------------


def release_weights(pair_dim: int = 4, width: int = 6, n_levels: int = 15) -> dict[str, th.Tensor]:
    """Weights as the release's network of depth 4 has them."""
    sizes = [pair_dim, width, width, width, width, pair_dim]
    weights: dict[str, th.Tensor] = {}
    for i in range(5):
        weights[f"linears.{2 * i}.weight"] = th.randn(
            sizes[i + 1], sizes[i], generator=generator(i)
        )
        weights[f"linears.{2 * i}.bias"] = th.randn(sizes[i + 1], generator=generator(9 + i))
    for i in range(3):
        table = th.randn(n_levels, width, generator=generator(20 + i))
        weights[f"step_embeddings.{i}.weight"] = table
    return weights


def from_release(source: Any, obs_dim: int = 2, act_dim: int = 2) -> DiffusionCritic:
    return DiffusionCritic.from_release(
        source, two_clusters(), real_box(obs_dim), real_box(act_dim), device="cpu"
    )


def test_the_release_is_taken_over_with_its_sizes_and_schedule(tmp_path: Path) -> None:
    weights = release_weights()
    th.save(weights, tmp_path / "phi.pt")
    critics = [from_release(weights), from_release(tmp_path / "phi.pt")]
    assert_same_state(state_of(critics[0]), state_of(critics[1]))
    critic = critics[0]
    assert critic.is_fitted
    assert critic.models == "state_action"
    assert critic.schedule.beta_schedule == "sigmoid"
    assert critic.schedule.num_train_timesteps == 15
    assert th.equal(critic.denoiser.out.weight, weights["linears.8.weight"])
    data = two_clusters()
    th.testing.assert_close(critic.encoder.act_std, th.as_tensor(data.acts.std(axis=0)))
    assert not any(p.requires_grad for p in critic.parameters())


def test_the_releases_critic_can_be_saved_and_fitted_on(tmp_path: Path) -> None:
    critic = from_release(release_weights())
    loaded = DiffusionCritic.load(critic.save(tmp_path / "critic"), device="cpu")
    assert_same_state(state_of(loaded), state_of(critic))
    loaded.config["n_steps"] = 50
    history = loaded.fit(two_clusters(), progress_bar=False)
    assert history.train_loss[-1] < history.train_loss[0]


class Attack:
    """Unpickling this creates the file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_weights_are_read_without_unpickling_objects(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    th.save({"linears.0.weight": Attack(marker)}, tmp_path / "attack.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Attack(marker), protocol=2))
    for name in ("attack.pt", "bare.pt"):
        with pytest.raises(ValueError, match=f"{name} is not a file of plain weights"):
            from_release(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param([th.zeros(2)], id="list"),
        pytest.param(th.zeros(2), id="tensor"),
        pytest.param({0: th.zeros(2)}, id="numbered"),
        pytest.param({}, id="empty"),
        pytest.param({"net.0.weight": th.zeros(2, 2)}, id="another network"),
        pytest.param({**release_weights(), "linears.0.weight": "x"}, id="text for a tensor"),
        pytest.param({**release_weights(), "step_embeddings.0.weight": th.zeros(3)}, id="vector"),
    ],
)
def test_files_without_the_releases_weights_are_refused(content: Any, tmp_path: Path) -> None:
    th.save(content, tmp_path / "phi.pt")
    with pytest.raises(ValueError, match=r"."):
        from_release(tmp_path / "phi.pt")


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut off"])
def test_files_that_torch_cannot_read_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "phi.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"phi\.pt"):
        from_release(tmp_path / "phi.pt")


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        from_release(tmp_path / "nowhere.pt")


@pytest.mark.parametrize("pair_dim", [3, 5])
def test_weights_of_another_size_than_the_spaces_are_refused(pair_dim: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        from_release(release_weights(pair_dim))


@pytest.mark.parametrize(("obs_dim", "act_dim"), [(3, 1), (1, 3)])
def test_demonstrations_that_do_not_fit_the_spaces_are_refused(obs_dim: int, act_dim: int) -> None:
    # The pair's size is that of the weights, but the demonstrations split it another way.
    with pytest.raises(ValueError, match=r"obs|acts"):
        from_release(release_weights(), obs_dim, act_dim)


def test_the_authors_critic_prefers_expert_actions_on_maze(paper_data: Path) -> None:
    data = load_demonstrations(paper_data / "maze.pt")
    critic = DiffusionCritic.from_release(
        paper_data / "maze_ddpm.pt", data, real_box(6), real_box(2), device="cpu"
    )
    rng = np.random.default_rng(0)
    rows = rng.choice(len(data), size=4000, replace=False)
    obs, acts = data.obs[rows], data.acts[rows]
    noise = critic.draw_noise(len(rows), generator())
    guidance = critic.guidance(obs, th.as_tensor(rng.permutation(acts)), acts, noise=noise)
    assert guidance.agent.mean() > 1.05 * guidance.expert.mean()
    assert (guidance.agent > guidance.expert).float().mean() > 0.53
    # Far below the loss of predicting nothing: statistics and schedule are those of its training.
    assert guidance.expert.mean() < 0.5


# --- the paper's demonstrations -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "models"),
    [
        ("maze", "state_action"),
        ("walker", "state_action"),
        ("halfcheetah", "state_action"),
        ("walker", "action"),
    ],
)
def test_a_small_critic_ranks_expert_actions_above_perturbed_ones(
    name: str, models: str, paper_data: Path
) -> None:
    data = load_demonstrations(paper_data / f"{name}.pt")
    critic = DiffusionCritic(
        real_box(data.obs.shape[1]),
        real_box(data.acts.shape[1]),
        models=models,
        width=64,
        depth=2,
        n_steps=250,
        seed=0,
        device="cpu",
    )
    critic.fit(data, progress_bar=False)
    rng = np.random.default_rng(0)
    rows = rng.integers(len(data), size=4000)
    obs, acts = data.obs[rows], data.acts[rows]
    perturbed = acts + data.acts.std(axis=0) * rng.normal(size=acts.shape).astype(np.float32)
    noise = critic.draw_noise(len(rows), generator())
    guidance = critic.guidance(obs, th.as_tensor(perturbed), acts, noise=noise)
    assert guidance.agent.mean() > 1.02 * guidance.expert.mean()
    assert (guidance.agent > guidance.expert).float().mean() > 0.55


# --- bad arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("models", "states"),
        ("denoiser", "unet"),
        ("beta_schedule", "quadratic"),
        ("num_train_timesteps", 0),
        ("width", 0),
        ("depth", 0),
        ("batch_size", 0),
        ("n_steps", 0),
        ("patience", 0),
        ("width", -3),
        ("learning_rate", 0.0),
        ("learning_rate", -1e-3),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("validation_fraction", 1.0),
        ("validation_fraction", -0.1),
        ("validation_fraction", float("nan")),
        ("ema_decay", 1.0),
        ("ema_decay", -0.1),
    ],
)
def test_an_argument_outside_its_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        DiffusionCritic(toys.VECTOR, toys.CONTINUOUS, **{**TINY, name: value})


def test_an_unsupported_action_space_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="action_space="):
        DiffusionCritic(toys.VECTOR, spaces.Dict({"a": toys.CONTINUOUS}), **TINY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (minimal(np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32)), "at least one"),
        (minimal(np.full((4, 2), np.nan, np.float32), np.zeros((4, 2), np.float32)), "obs"),
        (minimal(np.zeros((4, 2), np.float32), np.full((4, 2), np.inf, np.float32)), "acts"),
        (minimal(np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32)), "obs"),
        (minimal(np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32)), "acts"),
    ],
    ids=["empty", "NaN", "infinite", "observations of another size", "actions of another size"],
)
def test_demonstrations_that_cannot_be_learnt_leave_the_critic_as_it_was(
    data: TransitionsMinimal, message: str
) -> None:
    critic = DiffusionCritic(real_box(2), real_box(2), **TINY)
    before = state_of(critic)
    with pytest.raises(ValueError, match=message):
        critic.fit(data, progress_bar=False)
    assert_same_state(state_of(critic), before)
    assert not critic.is_fitted
    assert not any(p.requires_grad for p in critic.parameters())
