"""The loss: both terms, their gradients and metrics, and torch.compile."""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from imitation.data.types import Transitions
from stable_baselines3.common.policies import (
    ActorCriticPolicy,
)
from toys import (
    ACTION_SPACES,
    CONTINUOUS,
    VECTOR,
    critic,
    policy,
    space_id,
    transitions,
    weights,
)

from sb3_diffbc.critic import DiffusionCritic, PairEncoder, relaxed_action
from sb3_diffbc.losses import (
    BCLoss,
    DiffusionBCLoss,
    DiffusionBCMetrics,
    DiffusionLoss,
    half_squared_norm,
)

N = 16
quick = settings(max_examples=25, deadline=None)
CLAMPS = ("sample", "batch", "none")
every_clamp = pytest.mark.parametrize("clamp", CLAMPS)


@functools.cache
def fitted_for(index: int) -> DiffusionCritic:
    return critic(action_space=ACTION_SPACES[index])


def fitted(action_space: gym.Space = CONTINUOUS) -> DiffusionCritic:
    """A critic that tests may share, since they do not change it."""
    return fitted_for(ACTION_SPACES.index(action_space))


def dm_loss(phi: DiffusionCritic, clamp: str = "sample", seed: int = 3) -> DiffusionLoss:
    return DiffusionLoss(phi, th.Generator().manual_seed(seed), clamp)


def make_loss(encoder: PairEncoder | None = None, **kwargs: Any) -> DiffusionBCLoss:
    """The loss without L_DM and regularisation, unless told otherwise."""
    defaults = {"bc_coef": 1.0, "ent_weight": 0.0, "l2_weight": 0.0, "bc_loss": "nll"}
    encoder = encoder or PairEncoder(VECTOR, CONTINUOUS)
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


def batch_and_actions() -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Observations, the expert's actions, and those of a policy that knows nothing."""
    obs, acts = tensors(transitions(n=N, seed=1))
    return obs, acts, policy().get_distribution(obs).mode().detach()


# --- L_DM ---------------------------------------------------------------------------------------


def slow_dm_loss(agent: list[float], expert: list[float], clamp: str) -> float:
    """max(., 0) where the clamp's name says."""
    if clamp == "sample":
        return sum(max(a - e, 0.0) for a, e in zip(agent, expert, strict=True)) / len(agent)
    difference = sum(agent) / len(agent) - sum(expert) / len(expert)
    return max(difference, 0.0) if clamp == "batch" else difference


@every_clamp
def test_l_dm_compares_both_denoising_losses_under_the_same_noise(clamp: str) -> None:
    phi = fitted()
    obs, acts, agent_acts = batch_and_actions()
    noise = phi.draw_noise(N, th.Generator().manual_seed(3))
    # The other way round, the mean is on the other side of the clamp.
    for policys, experts in ((agent_acts, acts), (acts, agent_acts)):
        found = dm_loss(phi, clamp)(obs, policys, experts)
        agent = phi.denoising_loss(obs, policys, noise=noise)
        expert = phi.denoising_loss(obs, experts, noise=noise)
        assert th.equal(found.agent, agent)
        assert th.equal(found.expert, expert)
        assert 0 < int((agent > expert).sum()) < N, "a case of both kinds"
        expected = slow_dm_loss(agent.tolist(), expert.tolist(), clamp)
        dims = phi.noise_dim / phi.encoder.act_dim
        assert float(found.loss) == pytest.approx(dims * expected, rel=1e-5)
        given_noise = dm_loss(phi, clamp, seed=99)(obs, policys, experts, noise)
        assert th.equal(given_noise.loss, found.loss)
        assert found.summary() == {
            "loss": pytest.approx(float(found.loss)),
            "agent": pytest.approx(agent.mean().item()),
            "expert": pytest.approx(expert.mean().item()),
            "active": np.mean((agent > expert).numpy()),
        }
    assert dm_loss(phi, clamp)(obs, acts, acts).summary()["active"] == 0


@every_clamp
def test_the_gradient_reaches_neither_the_critic_nor_the_expert(clamp: str) -> None:
    phi = critic()
    for parameter in phi.parameters():
        parameter.grad = None  # those of its fit
    before = {name: value.clone() for name, value in phi.state_dict().items()}
    obs, acts, agent_acts = batch_and_actions()
    for each in (obs, acts, agent_acts):
        each.requires_grad_()
    metrics = dm_loss(phi, clamp)(obs, agent_acts, acts)
    metrics.loss.backward()
    assert agent_acts.grad is not None
    assert agent_acts.grad.any()
    assert not metrics.expert.requires_grad
    assert acts.grad is None
    assert all(p.grad is None and not p.requires_grad for p in phi.parameters())
    assert all(th.equal(value, before[name]) for name, value in phi.state_dict().items())


# --- the total ----------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", [CONTINUOUS, spaces.Discrete(3)], ids=space_id)
def test_the_gradient_to_the_policys_weights_equals_finite_differences(
    action_space: gym.Space,
) -> None:
    phi = critic(action_space=action_space).double()
    learner = policy(action_space=action_space, net_arch=[3]).double()
    obs, acts = tensors(transitions(action_space=action_space, n=N, seed=1))

    def loss() -> DiffusionBCMetrics:
        loss = make_loss(phi.encoder, ent_weight=0.1, dm_coef=3.0, diffusion=dm_loss(phi))
        return loss(learner, obs, acts)

    parameters = [p for name, p in learner.named_parameters() if "value" not in name]
    exact = th.autograd.grad(loss().loss, parameters)
    assert any(gradient.any() for gradient in exact), "a case with a gradient"
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


@quick
@given(
    bc_coef=st.floats(0, 10),
    dm_coef=st.floats(0, 10),
    ent_weight=st.floats(0, 1),
    l2_weight=st.sampled_from([0.0, 1e-3]),
    bc_loss=st.sampled_from(["nll", "mse", "l1", "huber"]),
    action_space=st.sampled_from(ACTION_SPACES),
)
def test_the_total_is_the_weighted_sum_of_its_terms(
    bc_coef: float,
    dm_coef: float,
    ent_weight: float,
    l2_weight: float,
    bc_loss: BCLoss,
    action_space: gym.Space,
) -> None:
    phi = fitted(action_space)
    learner = policy(action_space=action_space)
    metrics = DiffusionBCLoss(
        bc_coef=bc_coef,
        ent_weight=ent_weight,
        l2_weight=l2_weight,
        bc_loss=bc_loss,
        encoder=phi.encoder,
        dm_coef=dm_coef,
        diffusion=dm_loss(phi),
    )(learner, *tensors(transitions(action_space=action_space, n=N, seed=1)))
    assert metrics.dm is not None
    cloning = metrics.neglogp if bc_loss == "nll" else metrics.regression
    assert cloning is not None
    if bc_loss != "nll" and isinstance(action_space, spaces.Box):
        cloning = cloning + metrics.neglogp  # by which the spread learns
    total = bc_coef * cloning + metrics.ent_loss + metrics.l2_loss + dm_coef * metrics.dm.loss
    assert float(metrics.loss) == pytest.approx(float(total), rel=1e-5, abs=1e-6)
    assert metrics.entropy is not None
    entropy_bonus = ent_weight * metrics.entropy if bc_loss == "nll" else th.zeros(())
    assert float(metrics.ent_loss) == pytest.approx(-float(entropy_bonus), rel=1e-6)
    squares = sum(float((p.detach().double() ** 2).sum()) for p in learner.parameters()) / 2
    assert float(half_squared_norm(learner)) == pytest.approx(squares)
    assert float(metrics.l2_loss) == pytest.approx(l2_weight * squares)
    # The norm costs a pass over all parameters, so it is left out where it has no weight.
    assert (metrics.l2_norm is None) == (l2_weight == 0)


# --- L_BC ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=space_id)
def test_mse_is_the_squared_error_of_codes(action_space: gym.Space) -> None:
    data = transitions(action_space=action_space, n=N)
    encoder = PairEncoder(VECTOR, action_space).fit(data.obs, data.acts)
    learner = policy(action_space=action_space)
    obs, acts = tensors(data)
    metrics = make_loss(encoder, bc_loss="mse", bc_coef=2.0)(learner, obs, acts)
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
    assert float(metrics.regression) == pytest.approx(expected, rel=1e-5)
    spread = float(metrics.neglogp) if isinstance(action_space, spaces.Box) else 0.0
    assert float(metrics.loss) == pytest.approx(2 * (expected + spread), rel=1e-5)


@pytest.mark.parametrize(
    ("bc_loss", "expected"),
    [
        ("mse", lambda e: e**2),
        ("l1", np.abs),
        ("huber", lambda e: np.where(np.abs(e) < 1, e**2 / 2, np.abs(e) - 0.5)),
    ],
)
def test_each_error_of_actions_is_the_mean_over_rows_and_dimensions(
    bc_loss: BCLoss, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    data, learner = transitions(n=N), policy()
    encoder = PairEncoder(VECTOR, CONTINUOUS).fit(data.obs, data.acts)
    obs, acts = tensors(data)
    acts[0] = 5.0  # far beyond a standard deviation
    metrics = make_loss(encoder, bc_loss=bc_loss)(learner, obs, acts)
    mean = learner.get_distribution(obs).mode().detach()
    error = (encoder.encode_acts(mean) - encoder.encode_acts(acts)).numpy()
    assert float(metrics.regression) == pytest.approx(float(expected(error).mean()), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "l1", "huber", "dm"])
def test_a_policy_far_off_the_demonstrated_actions_is_pulled_back(loss: Any) -> None:
    data = transitions()
    acts = np.float32(50 + 0.01 * data.acts)  # 5,000 standard deviations from 0
    fit: Any = {"models": "action", "n_steps": 300, "width": 32, "depth": 2}
    critic_ = critic(data=dataclasses.replace(data, acts=acts), **fit)
    learner = policy(cls=ActorCriticPolicy)
    is_dm = loss == "dm"
    made = make_loss(
        critic_.encoder,
        bc_coef=float(not is_dm),
        bc_loss="mse" if is_dm else loss,
        dm_coef=float(is_dm),
        diffusion=dm_loss(critic_) if is_dm else None,
    )
    optimizer = th.optim.Adam([learner.action_net.bias], lr=1.0)
    before = learner.action_net.bias.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        made(learner, data.obs, acts).loss.backward()
        optimizer.step()
    assert (learner.action_net.bias > before + 2).all()


def test_beside_the_squared_error_the_likelihood_trains_the_spread_and_nothing_else() -> None:
    learner = policy()
    with th.no_grad():
        learner.log_std.copy_(th.tensor([-0.7, 0.4]))
    batch = tensors(transitions(n=N))
    likelihood, squared = (make_loss(bc_loss=name)(learner, *batch) for name in ("nll", "mse"))
    th.testing.assert_close(likelihood.neglogp, squared.neglogp)
    spreads = [
        th.autograd.grad(m.loss, learner.log_std, retain_graph=True)[0]
        for m in (likelihood, squared)
    ]
    th.testing.assert_close(*spreads)
    weight = learner.action_net[0].weight
    means = [
        th.autograd.grad(loss, weight, retain_graph=True)[0]
        for loss in (squared.loss, squared.regression)
    ]
    th.testing.assert_close(*means)


# --- torch.compile and autocast -----------------------------------------------------------------


def whole_loss(phi: DiffusionCritic, **kwargs: Any) -> DiffusionBCLoss:
    """Both terms; every call makes the same one with the same noise."""
    return make_loss(phi.encoder, ent_weight=1e-2, dm_coef=0.7, diffusion=dm_loss(phi), **kwargs)


def outcomes(loss: DiffusionBCLoss, learner: ActorCriticPolicy) -> list[th.Tensor]:
    """Values, metrics and gradients over several batches, and the noise that would come next."""
    assert loss.diffusion is not None
    found = []
    for seed in range(3):
        data = transitions(learner.observation_space, learner.action_space, n=N, seed=seed)
        metrics = loss(learner, *tensors(data))
        assert metrics.dm is not None
        values = [metrics.loss, metrics.neglogp, metrics.dm.loss, metrics.dm.agent]
        found += [value.detach() for value in values] + [gradients(learner, metrics.loss)]
    return [*found, th.randn(3, generator=loss.diffusion.generator)]


@pytest.mark.parametrize(
    ("action_space", "arguments", "kwargs"),
    [
        (CONTINUOUS, {"denoiser": "release"}, {"bc_loss": "mse", "l2_weight": 1e-2}),
        (spaces.Discrete(3), {"models": "action"}, {}),
    ],
    ids=str,
)
def test_a_traced_loss_is_the_same_up_to_rounding(
    action_space: gym.Space,
    arguments: dict[str, Any],
    kwargs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Traced forwards and backwards and run without a C++ compiler.
    th.compiler.reset()
    monkeypatch.setattr(th, "compile", functools.partial(th.compile, backend="aot_eager"))
    phi, learner = critic(action_space=action_space, **arguments), policy(action_space=action_space)
    before = th.get_rng_state()
    found = outcomes(whole_loss(phi, compile=True, **kwargs), learner)
    assert th.equal(th.get_rng_state(), before)
    th.testing.assert_close(found, outcomes(whole_loss(phi, **kwargs), learner))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_loss_is_the_same_up_to_rounding() -> None:
    phi, learner = critic(), policy()
    th.compiler.reset()
    found = outcomes(whole_loss(phi, compile=True), learner)
    th.testing.assert_close(found, outcomes(whole_loss(phi), learner), rtol=1e-4, atol=1e-5)


def test_errors_of_torch_compile_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*args: Any) -> Any:
        raise FileNotFoundError("no C++ compiler")

    th.compiler.reset()
    monkeypatch.setattr(th, "compile", functools.partial(th.compile, backend=no_compiler))
    with pytest.raises(Exception, match=r"no C\+\+ compiler"):
        outcomes(whole_loss(fitted(), compile=True), policy())


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
