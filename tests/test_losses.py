"""The loss: both terms, their gradients and metrics, and where the noise comes from."""

from __future__ import annotations

import functools
import pickle
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.algorithms import bc
from imitation.data.types import Transitions
from imitation.policies.base import FeedForward32Policy
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from toys import (
    ACTION_SPACES,
    CONTINUOUS,
    IMAGE,
    MAPPING,
    VECTOR,
    action_spaces,
    critic,
    observation_spaces,
    policy,
    space_id,
    transitions,
    weights,
)

from sb3_diffbc.critic import DiffusionCritic, Guidance, Noise, PairEncoder, relaxed_action
from sb3_diffbc.losses import (
    DM_CLAMPS,
    CompiledLoss,
    DiffusionBCLoss,
    DiffusionBCMetrics,
    DiffusionLoss,
    NoiseSource,
    half_squared_norm,
)

N = 16
quick = settings(max_examples=25, deadline=None)


class StubCritic:
    """Gives the losses that a test wants, as functions of the actions."""

    device = th.device("cpu")

    def __init__(self, agent: Any, expert: Any) -> None:
        self.agent, self.expert = agent, expert

    def draw_noise(self, n: int, generator: th.Generator | None = None) -> Noise:
        return Noise(th.zeros(n, dtype=th.int64), th.randn(n, 1, generator=generator))

    def guidance(
        self, obs: th.Tensor, agent_acts: th.Tensor, expert_acts: th.Tensor, *, noise: Noise
    ) -> Guidance:
        return Guidance(self.agent(agent_acts), self.expert(expert_acts))


@functools.cache
def fitted_for(index: int) -> DiffusionCritic:
    return critic(action_space=ACTION_SPACES[index])


def fitted(action_space: gym.Space) -> DiffusionCritic:
    """A critic that tests may share, since they do not change it."""
    return fitted_for(ACTION_SPACES.index(action_space))


def plain_loss(
    encoder: PairEncoder | None = None,
    action_space: gym.Space = CONTINUOUS,
    **kwargs: Any,
) -> DiffusionBCLoss:
    """The loss without L_DM and regularisation, unless told otherwise."""
    defaults = {"bc_coef": 1.0, "ent_weight": 0.0, "l2_weight": 0.0, "bc_loss": "nll"}
    encoder = encoder or PairEncoder(VECTOR, action_space)
    return DiffusionBCLoss(**{**defaults, "encoder": encoder, **kwargs})


def gradients(module: th.nn.Module, loss: th.Tensor) -> th.Tensor:
    """Of all parameters, in one vector; 0 where there is none."""
    parameters = list(module.parameters())
    parts = th.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return th.cat([part.reshape(-1) for part in parts])


def tensors(data: Transitions) -> tuple[Any, th.Tensor]:
    """Observations and actions as BC.train hands them to the loss."""
    obs = data.obs
    if isinstance(obs, np.ndarray):
        return th.as_tensor(obs.copy()), th.as_tensor(data.acts.copy())
    return {k: th.as_tensor(v.copy()) for k, v in obs.items()}, th.as_tensor(data.acts.copy())


# --- L_DM ---------------------------------------------------------------------------------------


def slow_denoising_loss(
    phi: DiffusionCritic, obs: np.ndarray, act: np.ndarray, n: int, epsilon: np.ndarray
) -> float:
    """L_diff(s, a) of one pair, from the formulas, with nothing shared but φ's weights."""
    steps = np.linspace(-6, 6, phi.schedule.num_train_timesteps)
    betas = 1 / (1 + np.exp(-steps)) * (0.02 - 1e-4) + 1e-4
    signal = np.sqrt(np.prod(1 - betas[: n + 1]))
    sigma = np.sqrt(1 - np.prod(1 - betas[: n + 1]))
    statistics = {name: value.double().numpy() for name, value in phi.encoder.named_buffers()}
    state = (obs.reshape(-1) - statistics["obs_mean"]) / statistics["obs_std"]
    action = (act.reshape(-1) - statistics["act_mean"]) / statistics["act_std"]
    state, action = np.clip(state, -10, 10), np.clip(action, -10, 10)
    if phi.models == "state_action":
        noisy_state = signal * state + sigma * epsilon[: len(state)]
        noisy_action = signal * action + sigma * epsilon[len(state) :]
    else:
        noisy_state, noisy_action = state, signal * action + sigma * epsilon
    rows = [th.as_tensor(row, dtype=th.float32)[None] for row in (noisy_state, noisy_action)]
    predicted = phi.denoiser(phi.denoiser.embed_state(rows[0]), rows[1], th.tensor([n]))
    return float(np.mean((predicted.double().numpy()[0] - epsilon) ** 2))


def slow_dm_loss(agent: list[float], expert: list[float], clamp: str) -> float:
    """max(., 0) where the clamp's name says."""
    if clamp == "sample":
        return sum(max(a - e, 0.0) for a, e in zip(agent, expert, strict=True)) / len(agent)
    difference = sum(agent) / len(agent) - sum(expert) / len(expert)
    return max(difference, 0.0) if clamp == "batch" else difference


@pytest.mark.parametrize("clamp", list(DM_CLAMPS))
@pytest.mark.parametrize("denoiser", ["residual", "release"])
@pytest.mark.parametrize("models", ["state_action", "action"])
def test_dm_loss_is_the_formula(models: str, denoiser: str, clamp: str) -> None:
    phi = critic(models=models, denoiser=denoiser)
    data = transitions(n=N, seed=1)
    obs, acts = tensors(data)
    agent_acts = policy().get_distribution(obs).mode().detach()
    noise = NoiseSource(phi, N, seed=3)
    metrics = DiffusionLoss(phi, noise, clamp)(obs, agent_acts, acts)
    drawn = NoiseSource(phi, N, seed=3).take(N)
    agent, expert = (
        [
            slow_denoising_loss(phi, o, a, int(n), e)
            for o, a, n, e in zip(
                data.obs, chosen, drawn.timesteps, drawn.epsilon.double().numpy(), strict=True
            )
        ]
        for chosen in (agent_acts.numpy(), data.acts)
    )
    assert 0 < sum(a > e for a, e in zip(agent, expert, strict=True)) < N, "a case of both kinds"
    assert float(metrics.loss) == pytest.approx(slow_dm_loss(agent, expert, clamp), abs=1e-5)
    assert float(metrics.agent) == pytest.approx(np.mean(agent), abs=1e-5)
    assert float(metrics.expert) == pytest.approx(np.mean(expert), abs=1e-5)
    assert float(metrics.active) == np.mean(np.array(agent) > np.array(expert))


@quick
@given(
    pairs=st.lists(
        st.tuples(st.floats(0, 100, width=32), st.floats(0, 100, width=32)),
        min_size=1,
        max_size=20,
    ),
    clamp=st.sampled_from(list(DM_CLAMPS)),
)
def test_clamps_and_metrics_agree_with_plain_arithmetic(
    pairs: list[tuple[float, float]], clamp: str
) -> None:
    agent, expert = (list(side) for side in zip(*pairs, strict=True))
    stub = StubCritic(lambda acts: acts, lambda acts: acts)
    metrics = DiffusionLoss(stub, NoiseSource(stub, len(pairs), 0), clamp)(  # type: ignore[arg-type]
        th.zeros(len(pairs), 1), th.tensor(agent), th.tensor(expert)
    )
    assert float(metrics.loss) == pytest.approx(slow_dm_loss(agent, expert, clamp), abs=1e-3)
    assert float(metrics.active) == pytest.approx(np.mean([a > e for a, e in pairs]))
    if clamp == "none":
        assert float(metrics.loss) == pytest.approx(
            float(metrics.agent) - float(metrics.expert), abs=1e-3
        )
    else:
        assert float(metrics.loss) >= 0


def test_per_sample_clamp_is_never_below_the_clamp_on_means() -> None:
    phi = fitted(CONTINUOUS)
    for seed in range(5):
        obs, acts = tensors(transitions(n=N, seed=seed))
        agent_acts = policy(seed=seed).get_distribution(obs).mode()
        losses = {
            clamp: float(
                DiffusionLoss(phi, NoiseSource(phi, N, seed), clamp)(obs, agent_acts, acts).loss
            )
            for clamp in DM_CLAMPS
        }
        rounding = 1e-6
        assert losses["sample"] + rounding >= losses["batch"] >= losses["none"] - rounding


def test_only_samples_above_the_clamp_have_gradients() -> None:
    phi = fitted(CONTINUOUS)
    obs, acts = tensors(transitions(n=N, seed=1))
    agent_acts = policy().get_distribution(obs).mode().detach().requires_grad_()
    guidance = phi.guidance(obs, agent_acts, acts, noise=NoiseSource(phi, N, 3).take(N))
    above = guidance.agent > guidance.expert
    loss = DiffusionLoss(phi, NoiseSource(phi, N, 3), "sample")(obs, agent_acts, acts).loss
    (gradient,) = th.autograd.grad(loss, agent_acts)
    assert 0 < int(above.sum()) < N, "a case of both kinds"
    assert th.equal(gradient.abs().sum(dim=1) > 0, above)


@pytest.mark.parametrize("clamp", ["sample", "batch"])
def test_no_gradient_when_every_sample_is_below_the_clamp(clamp: str) -> None:
    phi = fitted(CONTINUOUS)
    obs, acts = tensors(transitions(n=N, seed=1))
    others = policy().get_distribution(obs).mode().detach()
    noise = NoiseSource(phi, N, 3).take(N)
    first, second = (phi.denoising_loss(obs, side, noise=noise) for side in (acts, others))
    lower = (first < second).unsqueeze(-1)
    agent_acts = th.where(lower, acts, others).requires_grad_()
    expert_acts = th.where(lower, others, acts)
    metrics = DiffusionLoss(phi, NoiseSource(phi, N, 3), clamp)(obs, agent_acts, expert_acts)
    (gradient,) = th.autograd.grad(metrics.loss, agent_acts)
    assert float(metrics.active) == float(metrics.loss) == 0
    assert not gradient.any()
    # Without a clamp the same batch pushes on.
    loss = DiffusionLoss(phi, NoiseSource(phi, N, 3), "none")(obs, agent_acts, expert_acts).loss
    assert th.autograd.grad(loss, agent_acts)[0].any()


def test_unclamped_gradient_is_the_agent_losses_gradient() -> None:
    phi = fitted(CONTINUOUS)
    obs, acts = tensors(transitions(n=N, seed=1))
    agent_acts = policy().get_distribution(obs).mode().detach().requires_grad_()
    loss = DiffusionLoss(phi, NoiseSource(phi, N, 3), "none")(obs, agent_acts, acts).loss
    alone = phi.denoising_loss(obs, agent_acts, noise=NoiseSource(phi, N, 3).take(N)).mean()
    th.testing.assert_close(
        th.autograd.grad(loss, agent_acts)[0], th.autograd.grad(alone, agent_acts)[0]
    )


def test_an_agent_that_does_what_the_expert_did_has_no_dm_loss() -> None:
    phi = fitted(CONTINUOUS)
    obs, acts = tensors(transitions(n=N))
    for clamp in DM_CLAMPS:
        metrics = DiffusionLoss(phi, NoiseSource(phi, N, 0), clamp)(obs, acts.clone(), acts)
        assert float(metrics.loss) == float(metrics.active) == 0
        assert float(metrics.agent) == float(metrics.expert) > 0


@pytest.mark.parametrize("clamp", list(DM_CLAMPS))
@pytest.mark.parametrize("action_space", [CONTINUOUS, spaces.Discrete(3)], ids=space_id)
@pytest.mark.parametrize("bc_coef", [0.0, 0.7])
def test_gradient_agrees_with_finite_differences(
    bc_coef: float, action_space: gym.Space, clamp: str
) -> None:
    phi = critic(action_space=action_space).double()
    learner = policy(action_space=action_space, net_arch=[3]).double()
    obs, acts = tensors(transitions(action_space=action_space, n=N, seed=1))

    def loss() -> DiffusionBCMetrics:
        diffusion = DiffusionLoss(phi, NoiseSource(phi, N, 1), clamp)
        return plain_loss(
            phi.encoder, bc_coef=bc_coef, ent_weight=0.1, dm_coef=3.0, diffusion=diffusion
        )(learner, obs, acts)

    metrics = loss()
    assert metrics.dm is not None
    assert float(metrics.dm.loss.detach()) != 0, "a case with a gradient"
    parameters = [p for name, p in learner.named_parameters() if "value" not in name]
    exact = th.autograd.grad(metrics.loss, parameters)
    # Actions pass through single precision on their way to the critic, which bounds the accuracy.
    step = 2e-3
    for parameter, gradient in zip(parameters, exact, strict=True):
        entries = parameter.data.view(-1)
        for i, slope in enumerate(gradient.reshape(-1)):
            before = entries[i].item()
            with th.no_grad():
                entries[i] = before + step
                above = float(loss().loss)
                entries[i] = before - step
                below = float(loss().loss)
                entries[i] = before
            assert (above - below) / (2 * step) == pytest.approx(float(slope), rel=0.02, abs=1e-3)


# --- the total ----------------------------------------------------------------------------------


@quick
@given(
    bc_coef=st.floats(0, 10),
    dm_coef=st.floats(0, 10),
    ent_weight=st.floats(0, 1),
    l2_weight=st.sampled_from([0.0, 1e-3]),
    bc_loss=st.sampled_from(["nll", "mse"]),
    action_space=st.sampled_from(ACTION_SPACES),
)
def test_total_is_the_weighted_sum_of_its_terms(
    bc_coef: float,
    dm_coef: float,
    ent_weight: float,
    l2_weight: float,
    bc_loss: str,
    action_space: gym.Space,
) -> None:
    phi = fitted(action_space)
    learner = policy(action_space=action_space)
    obs, acts = tensors(transitions(action_space=action_space, n=N, seed=1))
    metrics = DiffusionBCLoss(
        bc_coef=bc_coef,
        ent_weight=ent_weight,
        l2_weight=l2_weight,
        bc_loss=bc_loss,
        encoder=phi.encoder,
        dm_coef=dm_coef,
        diffusion=DiffusionLoss(phi, NoiseSource(phi, N, 3)),
    )(learner, obs, acts)
    assert metrics.dm is not None
    assert metrics.neglogp is not None
    cloning = metrics.neglogp if bc_loss == "nll" else metrics.mse
    assert cloning is not None
    if bc_loss == "mse" and isinstance(action_space, spaces.Box):
        cloning = cloning + metrics.neglogp  # by which the spread learns
    total = bc_coef * cloning + metrics.ent_loss + metrics.l2_loss + dm_coef * metrics.dm.loss
    assert float(metrics.loss) == pytest.approx(float(total), rel=1e-5, abs=1e-6)
    assert metrics.entropy is not None
    entropy_bonus = ent_weight * metrics.entropy if bc_loss == "nll" else th.zeros(())
    assert float(metrics.ent_loss) == pytest.approx(-float(entropy_bonus), rel=1e-6)
    assert float(metrics.l2_loss) == pytest.approx(l2_weight * float(half_squared_norm(learner)))


def test_weights_scale_gradients_and_leave_each_other_alone() -> None:
    phi = fitted(CONTINUOUS)
    learner = policy()
    obs, acts = tensors(transitions(n=N, seed=1))

    def gradient(bc_coef: float, dm_coef: float) -> th.Tensor:
        diffusion = DiffusionLoss(phi, NoiseSource(phi, N, 3))
        loss = plain_loss(phi.encoder, bc_coef=bc_coef, dm_coef=dm_coef, diffusion=diffusion)
        return gradients(learner, loss(learner, obs, acts).loss)

    cloning, diffusion_only = gradient(1, 0), gradient(0, 1)
    assert diffusion_only.any()
    th.testing.assert_close(gradient(2.5, 7), 2.5 * cloning + 7 * diffusion_only)


def test_critic_gets_no_gradient() -> None:
    phi = critic()
    for parameter in phi.parameters():
        parameter.grad = None
    before = {name: value.clone() for name, value in phi.state_dict().items()}
    obs, acts = tensors(transitions(n=N))
    diffusion = DiffusionLoss(phi, NoiseSource(phi, N, 3), "none")
    loss = plain_loss(phi.encoder, dm_coef=1.0, diffusion=diffusion)(policy(), obs, acts).loss
    loss.backward()
    assert all(parameter.grad is None for parameter in phi.parameters())
    assert all(th.equal(value, before[name]) for name, value in phi.state_dict().items())


def test_parts_of_the_metrics_carry_no_graph_beside_the_losses() -> None:
    phi = fitted(CONTINUOUS)
    obs, acts = tensors(transitions(n=N))
    diffusion = DiffusionLoss(phi, NoiseSource(phi, N, 3))
    metrics = plain_loss(phi.encoder, dm_coef=1.0, diffusion=diffusion)(policy(), obs, acts)
    assert metrics.dm is not None
    assert metrics.loss.requires_grad
    assert metrics.dm.loss.requires_grad
    for name in ("agent", "expert", "active"):
        assert not getattr(metrics.dm, name).requires_grad


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=space_id)
def test_every_action_head_is_reached_by_the_dm_gradient(action_space: gym.Space) -> None:
    phi = fitted(action_space)
    learner = policy(action_space=action_space)
    obs, acts = tensors(transitions(action_space=action_space, n=N, seed=1))
    diffusion = DiffusionLoss(phi, NoiseSource(phi, N, 3), "none")
    loss = plain_loss(phi.encoder, bc_coef=0.0, dm_coef=1.0, diffusion=diffusion)
    loss(learner, obs, acts).loss.backward()
    for name, parameter in learner.action_net.named_parameters():
        assert parameter.grad is not None, name
        # Each output has its row: none is left out by the relaxation.
        rows = parameter.grad.reshape(len(parameter), -1).abs().sum(dim=1)
        assert (rows > 0).all(), name


# --- L_BC ---------------------------------------------------------------------------------------

POLICIES: list[tuple[type[ActorCriticPolicy], gym.Space, gym.Space, dict[str, Any]]] = [
    *((FeedForward32Policy, VECTOR, space, {}) for space in ACTION_SPACES),
    (FeedForward32Policy, spaces.Discrete(4), CONTINUOUS, {}),
    (FeedForward32Policy, spaces.MultiDiscrete([2, 3]), spaces.Discrete(2), {}),
    (ActorCriticPolicy, VECTOR, CONTINUOUS, {"use_sde": True}),
    (ActorCriticPolicy, VECTOR, CONTINUOUS, {"use_sde": True, "squash_output": True}),
    (ActorCriticPolicy, VECTOR, CONTINUOUS, {"share_features_extractor": False}),
    (MultiInputActorCriticPolicy, MAPPING, CONTINUOUS, {}),
    (MultiInputActorCriticPolicy, MAPPING, spaces.MultiDiscrete([2, 3]), {}),
    (
        ActorCriticCnnPolicy,
        IMAGE,
        spaces.Discrete(3),
        {"features_extractor_kwargs": {"features_dim": 8}},
    ),
]


@pytest.mark.parametrize(("ent_weight", "l2_weight"), [(1e-3, 0.0), (0.0, 0.0), (0.3, 1e-2)])
@pytest.mark.parametrize(
    ("cls", "observation_space", "action_space", "kwargs"),
    POLICIES,
    ids=[f"{p[0].__name__}-{space_id(p[1])}-{space_id(p[2])}-{'-'.join(p[3])}" for p in POLICIES],
)
def test_without_l_dm_it_is_imitations_loss_to_the_bit(
    cls: type[ActorCriticPolicy],
    observation_space: gym.Space,
    action_space: gym.Space,
    kwargs: dict[str, Any],
    ent_weight: float,
    l2_weight: float,
) -> None:
    th.manual_seed(0)
    learner = cls(observation_space, action_space, lambda _: 1.0, **kwargs)
    obs, acts = tensors(transitions(observation_space, action_space, n=N))
    encoder = PairEncoder(observation_space, action_space)
    found = plain_loss(encoder, ent_weight=ent_weight, l2_weight=l2_weight)(learner, obs, acts)
    expected = bc.BehaviorCloningLossCalculator(ent_weight, l2_weight)(learner, obs, acts)
    assert isinstance(found, bc.BCTrainingMetrics)
    assert found.dm is None
    assert found.mse is None
    assert float(found.neglogp.detach()) == float(expected.neglogp.detach())
    assert float(found.prob_true_act) == float(expected.prob_true_act.detach())
    assert (found.entropy is None) == (expected.entropy is None)
    # The order of summation over parameters may differ, which the gradient does not see.
    assert float(found.loss.detach()) == pytest.approx(
        float(expected.loss.detach()), rel=1e-6 if l2_weight else 0
    )
    # imitation's unweighted norm gives the unused value network a gradient of 0, ours none.
    assert th.equal(gradients(learner, found.loss), gradients(learner, expected.loss))
    if l2_weight:
        assert found.l2_norm is not None
        assert float(found.l2_norm.detach()) == pytest.approx(float(expected.l2_norm.detach()))
    else:
        assert found.l2_norm is None


@quick
@given(observation_spaces(), action_spaces(), st.integers(1, 20), st.integers(0, 100))
def test_without_l_dm_it_is_imitations_loss_for_any_space(
    observation_space: gym.Space, action_space: gym.Space, n: int, seed: int
) -> None:
    learner = policy(observation_space, action_space, seed=seed)
    obs, acts = tensors(transitions(observation_space, action_space, n=n, seed=seed))
    encoder = PairEncoder(observation_space, action_space)
    found = plain_loss(encoder, ent_weight=0.1)(learner, obs, acts).loss
    expected = bc.BehaviorCloningLossCalculator(0.1, 0.0)(learner, obs, acts).loss
    assert float(found) == float(expected)
    assert th.equal(gradients(learner, found), gradients(learner, expected))


def test_arrays_and_dict_observations_are_taken_as_tensors_are() -> None:
    for observation_space in (VECTOR, MAPPING):
        learner = policy(observation_space)
        data = transitions(observation_space, n=N)
        loss = plain_loss(PairEncoder(observation_space, CONTINUOUS))
        assert float(loss(learner, data.obs, data.acts).loss) == float(
            loss(learner, *tensors(data)).loss
        )


def test_discrete_actions_may_come_as_a_column_or_as_floats() -> None:
    # validate_demonstrations lets both pass.
    space = spaces.Discrete(3)
    learner = policy(action_space=space)
    phi = fitted(space)
    obs, acts = tensors(transitions(action_space=space, n=N))
    for bc_loss in ("nll", "mse"):
        results = []
        for form in (acts, acts.reshape(-1, 1), acts.float(), acts.float().reshape(-1, 1)):
            diffusion = DiffusionLoss(phi, NoiseSource(phi, N, 0))
            loss = plain_loss(phi.encoder, bc_loss=bc_loss, dm_coef=1.0, diffusion=diffusion)
            results.append(float(loss(learner, obs, form).loss))
        assert results == [results[0]] * 4


def test_bits_may_come_in_any_dtype() -> None:
    # Those that a space samples are int8.
    space = spaces.MultiBinary(3)
    learner = policy(action_space=space)
    obs, acts = tensors(transitions(action_space=space, n=N))
    results = []
    for dtype in (th.float32, th.int8, th.int64, th.bool):
        diffusion = DiffusionLoss(fitted(space), NoiseSource(fitted(space), N, 0))
        loss = plain_loss(fitted(space).encoder, dm_coef=1.0, diffusion=diffusion)
        results.append(float(loss(learner, obs, acts.to(dtype)).loss))
    assert results == [results[0]] * 4


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=space_id)
def test_mse_is_the_squared_error_of_codes(action_space: gym.Space) -> None:
    data = transitions(action_space=action_space, n=N)
    encoder = PairEncoder(VECTOR, action_space).fit(data.obs, data.acts)
    learner = policy(action_space=action_space)
    obs, acts = tensors(data)
    metrics = plain_loss(encoder, bc_loss="mse", bc_coef=2.0)(learner, obs, acts)
    relaxed = relaxed_action(learner.get_distribution(obs)).detach().numpy()
    if isinstance(action_space, spaces.Box):
        expected = np.mean(((relaxed - data.acts) / data.acts.std(axis=0)) ** 2)
    else:
        if isinstance(action_space, spaces.Discrete):
            target = np.eye(action_space.n)[data.acts]
        elif isinstance(action_space, spaces.MultiDiscrete):
            columns = zip(action_space.nvec, data.acts.T, strict=True)
            target = np.concatenate([np.eye(n)[column] for n, column in columns], axis=1)
        else:
            target = data.acts
        expected = np.mean((2 * relaxed - 2 * target) ** 2)
    assert metrics.mse is not None
    assert float(metrics.mse) == pytest.approx(expected, rel=1e-5)
    spread = float(metrics.neglogp) if isinstance(action_space, spaces.Box) else 0.0
    assert float(metrics.loss) == pytest.approx(2 * (expected + spread), rel=1e-5)
    assert float(metrics.ent_loss) == 0


def test_beside_the_squared_error_the_likelihood_trains_the_spread_and_nothing_else() -> None:
    learner = policy()
    with th.no_grad():
        learner.log_std.copy_(th.tensor([-0.7, 0.4]))
    batch = tensors(transitions(n=N))

    def found(bc_loss: str) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        metrics = plain_loss(bc_loss=bc_loss, ent_weight=0.0)(learner, *batch)
        spread, weight = th.autograd.grad(
            metrics.loss, [learner.log_std, learner.action_net[0].weight], retain_graph=True
        )
        assert metrics.neglogp is not None
        return metrics.neglogp, spread, weight

    likelihood, squared = found("nll"), found("mse")
    th.testing.assert_close(likelihood[:2], squared[:2])
    metrics = plain_loss(bc_loss="mse")(learner, *batch)
    of_error_alone = th.autograd.grad(metrics.mse, learner.action_net[0].weight)[0]
    th.testing.assert_close(squared[2], of_error_alone)


def test_with_the_squared_error_the_spread_becomes_that_of_the_residuals() -> None:
    learner = policy()
    obs, acts = tensors(transitions(n=N))
    optimizer = th.optim.Adam([learner.log_std], lr=5e-2)
    loss = plain_loss(bc_loss="mse")
    for _ in range(300):
        optimizer.zero_grad()
        loss(learner, obs, acts).loss.backward()
        optimizer.step()
    residuals = acts - relaxed_action(learner.get_distribution(obs)).detach()
    expected = residuals.square().mean(dim=0).sqrt()
    th.testing.assert_close(learner.log_std.detach().exp(), expected, rtol=1e-3, atol=1e-4)


def test_half_squared_norm_is_half_the_sum_of_squares() -> None:
    learner = policy()
    expected = sum(float((p.detach().double() ** 2).sum()) for p in learner.parameters()) / 2
    assert float(half_squared_norm(learner)) == pytest.approx(expected)


# --- torch.compile ------------------------------------------------------------------------------


def whole_loss(phi: DiffusionCritic, **kwargs: Any) -> DiffusionBCLoss:
    """Both terms; every call makes the same one with the same noise."""
    return plain_loss(
        phi.encoder,
        ent_weight=1e-2,
        dm_coef=0.7,
        diffusion=DiffusionLoss(phi, NoiseSource(phi, N, seed=3)),
        **kwargs,
    )


def outcomes(loss: Any, learner: ActorCriticPolicy, n: int = 3) -> list[th.Tensor]:
    """Values, metrics and gradients over several batches, and the noise that would come next."""
    found = []
    for seed in range(n):
        data = transitions(learner.observation_space, learner.action_space, n=N, seed=seed)
        metrics = loss(learner, *tensors(data))
        values = [metrics.loss, metrics.neglogp, metrics.prob_true_act]
        if metrics.dm is not None:
            values += [metrics.dm.loss, metrics.dm.agent, metrics.dm.expert, metrics.dm.active]
        found += [value.detach() for value in values] + [gradients(learner, metrics.loss)]
    plain = loss.loss if isinstance(loss, CompiledLoss) else loss
    if plain.diffusion is not None:
        found.append(plain.diffusion.noise.take(N).epsilon)
    return found


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets torch.compile trace both ways and run what it traced, without a C++ compiler."""
    th.compiler.reset()
    monkeypatch.setattr(th, "compile", functools.partial(th.compile, backend="aot_eager"))


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("action_space", "arguments", "kwargs"),
    [
        (CONTINUOUS, {"models": "action"}, {}),
        (CONTINUOUS, {"denoiser": "release"}, {"bc_loss": "mse", "l2_weight": 1e-2}),
        (spaces.Discrete(3), {}, {}),
    ],
    ids=str,
)
def test_a_compiled_loss_is_the_same_up_to_rounding(
    action_space: gym.Space, arguments: dict[str, Any], kwargs: dict[str, Any]
) -> None:
    phi = critic(action_space=action_space, **arguments)
    learner = policy(action_space=action_space)
    before = th.get_rng_state()
    compiled = CompiledLoss(whole_loss(phi, **kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = outcomes(compiled, learner)
    assert not compiled.has_failed
    assert th.equal(th.get_rng_state(), before)
    th.testing.assert_close(found, outcomes(whole_loss(phi, **kwargs), learner))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_truly_compiled_loss_is_the_same_up_to_rounding() -> None:
    phi, learner = critic(models="action"), policy()
    th.compiler.reset()
    compiled = CompiledLoss(whole_loss(phi))
    found = outcomes(compiled, learner)
    assert not compiled.has_failed
    th.testing.assert_close(found, outcomes(whole_loss(phi), learner), rtol=1e-4, atol=1e-5)


def no_compiler(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("no working compiler")


def no_way_back(of_batch: Callable[..., DiffusionBCMetrics], **kwargs: Any) -> Any:
    """Compiles what has no gradient."""

    def compiled(*args: Any) -> Any:
        with th.no_grad():
            return of_batch(*args)

    return compiled


def breaks_down(of_batch: Callable[..., DiffusionBCMetrics], **kwargs: Any) -> Any:
    """Works for the trial and the first batch."""
    left = [2]

    def compiled(*args: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("compiling anew failed")
        return of_batch(*args)

    return compiled


@pytest.mark.parametrize("fails", [no_compiler, no_way_back, breaks_down])
def test_where_compiling_fails_a_warning_says_so_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[..., Any]
) -> None:
    attempts: list[Any] = []

    def attempt(*args: Any, **kwargs: Any) -> Any:
        attempts.append(args)
        return fails(*args, **kwargs)

    monkeypatch.setattr(th, "compile", attempt)
    phi, learner = critic(models="action"), policy()
    compiled = CompiledLoss(whole_loss(phi))
    with pytest.warns(RuntimeWarning, match="compile=True has no effect") as caught:
        found = outcomes(compiled, learner)
    assert len(caught) == len(attempts) == 1
    assert "RuntimeError: " in str(caught[0].message)
    assert compiled.has_failed
    expected = outcomes(whole_loss(phi), learner)
    assert all(map(th.equal, found, expected))


def test_a_batch_that_is_wrong_is_an_error_compiled_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th, "compile", lambda of_batch, **kwargs: of_batch)
    compiled = CompiledLoss(plain_loss())
    with pytest.warns(RuntimeWarning), pytest.raises(RuntimeError):
        compiled(policy(), th.zeros(N, 7), th.zeros(N, 2))


@pytest.mark.usefixtures("traced")
def test_a_compiled_loss_goes_on_after_pickling() -> None:
    phi, learner = critic(models="action"), policy()
    compiled = CompiledLoss(whole_loss(phi))
    outcomes(compiled, learner, n=1)
    copy = pickle.loads(pickle.dumps(compiled))
    th.testing.assert_close(outcomes(copy, learner), outcomes(compiled, learner))


# --- autocast -----------------------------------------------------------------------------------


def test_inside_autocast_every_update_sees_its_own_weights() -> None:
    phi = critic(models="action")
    results = []
    for cache_enabled in (False, True):
        learner, loss = policy(), whole_loss(phi)
        optimizer = th.optim.SGD(learner.parameters(), lr=0.1)
        with th.autocast("cpu", th.bfloat16, cache_enabled=cache_enabled):
            for seed in range(3):
                optimizer.zero_grad()
                loss(learner, *tensors(transitions(n=N, seed=seed))).loss.backward()
                optimizer.step()
        results.append(weights(learner))
    assert th.equal(*results)


# --- noise --------------------------------------------------------------------------------------


def joined(parts: list[Noise]) -> Noise:
    return Noise(th.cat([p.timesteps for p in parts]), th.cat([p.epsilon for p in parts]))


def assert_same_noise(one: Noise, other: Noise) -> None:
    assert th.equal(one.timesteps, other.timesteps)
    assert th.equal(one.epsilon, other.epsilon)


@pytest.fixture(scope="module")
def phi() -> DiffusionCritic:
    return critic(n_steps=1)


@quick
@given(
    minibatch_size=st.integers(1, 6),
    n_minibatches=st.integers(1, 5),
    n_batches=st.integers(1, 4),
)
def test_minibatches_get_the_noise_of_their_batch(
    minibatch_size: int, n_minibatches: int, n_batches: int
) -> None:
    batch_size = minibatch_size * n_minibatches
    stub: Any = StubCritic(None, None)
    whole, parts = (NoiseSource(stub, batch_size, seed=5) for _ in range(2))
    for _ in range(n_batches):
        taken = [parts.take(minibatch_size) for _ in range(n_minibatches)]
        assert all(len(part.timesteps) == minibatch_size for part in taken)
        assert_same_noise(joined(taken), whole.take(batch_size))


def test_noise_levels_of_a_batch_are_antithetic(phi: DiffusionCritic) -> None:
    levels = NoiseSource(phi, 10, seed=0).take(10).timesteps
    assert th.equal(levels[:5] + levels[5:], th.full((5,), 19))


def test_batches_get_noise_of_their_own(phi: DiffusionCritic) -> None:
    source = NoiseSource(phi, 8, seed=0)
    assert not th.equal(source.take(8).epsilon, source.take(8).epsilon)


def test_start_batch_drops_what_an_incomplete_batch_left(phi: DiffusionCritic) -> None:
    interrupted, whole = (NoiseSource(phi, 8, seed=0) for _ in range(2))
    interrupted.take(3)
    interrupted.start_batch()
    whole.take(8)
    assert_same_noise(interrupted.take(8), whole.take(8))


def test_a_batch_may_be_larger_than_announced(phi: DiffusionCritic) -> None:
    taken = NoiseSource(phi, 4, seed=0).take(10)
    assert taken.epsilon.shape == (10, phi.noise_dim)


def test_noise_leaves_the_global_random_state_alone(phi: DiffusionCritic) -> None:
    before = th.get_rng_state()
    NoiseSource(phi, 8, seed=0).take(8)
    assert th.equal(th.get_rng_state(), before)


def test_noise_goes_on_from_a_restored_state(phi: DiffusionCritic) -> None:
    source = NoiseSource(phi, 8, seed=0)
    source.take(8)
    other = NoiseSource(phi, 8, seed=99)
    other.take(3)
    other.state = source.state
    assert_same_noise(other.take(8), source.take(8))


def test_noise_goes_on_after_pickling(phi: DiffusionCritic) -> None:
    source = NoiseSource(phi, 8, seed=0)
    source.take(8)
    copy = pickle.loads(pickle.dumps(source))
    for _ in range(2):
        assert_same_noise(copy.take(8), source.take(8))
