"""The loss of DiffusionBC: L = bc_coef · L_BC + dm_coef · L_DM (Chen et al., 2024)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch as th
from imitation.algorithms import bc
from imitation.data import types
from imitation.util import util
from stable_baselines3.common import distributions, policies
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from sb3_diffbc.critic import DiffusionCritic, Noise, PairEncoder, relaxed_action
from sb3_diffbc.critic.encoder import Observations, channels_first

BCLoss = Literal["nll", "mse", "l1", "huber"]
"""The cloning losses by name."""

REGRESSIONS: Mapping[str, Callable[[th.Tensor], th.Tensor]] = {
    "mse": th.square,
    "l1": th.abs,
    "huber": lambda error: F.huber_loss(error, th.zeros_like(error), reduction="none"),
}
"""Those that are a function of the error of the encoded actions, entry by entry."""


@dataclasses.dataclass(frozen=True)
class DiffusionMetrics:
    """L_DM of a batch and what it is made of.

    Attributes:
        loss: L_DM, to be differentiated.
        agent: L_diff of the policy's pairs, shape ``(batch,)``.
        expert: L_diff of the expert's pairs, shape ``(batch,)``.
    """

    loss: th.Tensor
    agent: th.Tensor
    expert: th.Tensor

    def summary(self) -> dict[str, float]:
        """Returns what is logged: the loss, both means, and the share of ``active`` samples.

        A sample is active where the agent's loss is above the expert's: those are the ones that
        a clamp per sample lets through.
        """
        agent, expert = self.agent.detach(), self.expert
        return {
            "loss": float(self.loss.detach()),
            "agent": float(agent.mean()),
            "expert": float(expert.mean()),
            "active": float((agent > expert).float().mean()),
        }


@dataclasses.dataclass(frozen=True)
class DiffusionLoss:
    """Functor for L_DM: how far the agent's denoising loss is above the expert's.

    Args:
        critic: the fitted critic.
        generator: source of noise levels and noise, on the critic's device. One of its own, so
            that runs with and without L_DM shuffle their demonstrations alike.
        clamp: ``"sample"``, the paper's E[max(L_diff(s, â) − L_diff(s, a), 0)]; ``"batch"``, the
            authors' release's max(E[L_diff(s, â)] − E[L_diff(s, a)], 0); or ``"none"``, the
            difference of the means, with the gradient of the agent's loss alone.
    """

    critic: DiffusionCritic
    generator: th.Generator
    clamp: str = "sample"

    def draw_noise(self, batch_size: int) -> Noise:
        """Draws what a call takes for a batch of so many pairs."""
        return self.critic.draw_noise(batch_size, self.generator)

    def __call__(
        self,
        obs: th.Tensor | dict[str, th.Tensor],
        agent_acts: th.Tensor,
        expert_acts: th.Tensor,
        noise: Noise | None = None,
    ) -> DiffusionMetrics:
        """Computes L_DM = E[max(L_diff(s, â) − L_diff(s, a), 0)] (section 4.2).

        Args:
            obs: observations s, ``(batch, *obs_shape)``, or a mapping of such.
            agent_acts: the policy's actions â, differentiable (see ``relaxed_action``).
            expert_acts: the expert's actions a.
            noise: levels and noise to use; drawn from the generator if None.

        Returns:
            The loss and its parts.
        """
        critic, encoder = self.critic, self.critic.encoder
        # Both losses see the same noise, so that they differ by the actions alone.
        noise = noise or self.draw_noise(len(expert_acts))
        state = encoder.encode_obs(obs)
        agent = critic.l_diff(state, encoder.encode_acts(agent_acts), noise)
        with th.no_grad():
            expert = critic.l_diff(state, encoder.encode_acts(expert_acts), noise)
        return DiffusionMetrics(self.clamped(agent, expert), agent, expert)

    def clamped(self, agent: th.Tensor, expert: th.Tensor) -> th.Tensor:
        """Returns L_DM of the losses of both sides' pairs, ``(batch,)`` each.

        It is per dimension of the action, not per dimension that has noise: the observations in
        p(s, a) would else dilute what the action gets, and a coefficient would mean something
        else on every task. For p(a | s) the two are the same.
        """
        if self.clamp == "sample":
            loss = (agent - expert).clamp(min=0).mean()
        elif self.clamp == "batch":
            loss = (agent.mean() - expert.mean()).clamp(min=0)
        else:
            loss = (agent - expert).mean()
        return loss * (self.critic.noise_dim / self.critic.encoder.act_dim)


@dataclasses.dataclass(frozen=True)
class DiffusionBCMetrics(bc.BCTrainingMetrics):
    """imitation's metrics of one batch, and those of L_DM.

    ``l2_norm`` is None where it has no weight: it costs a pass over all parameters.

    Attributes:
        regression: mean squared, absolute or Huber error of the encoded actions, whichever is the
            loss; None if the likelihood is.
        dm: the parts of L_DM, None where it is off.
    """

    l2_norm: th.Tensor | None  # type: ignore[assignment]
    regression: th.Tensor | None = None
    dm: DiffusionMetrics | None = None


@dataclasses.dataclass(frozen=True)
class DiffusionBCLoss:
    """Functor for L = bc_coef · L_BC + dm_coef · L_DM, as ``BC.train`` calls it.

    With ``bc_coef`` 1, without L_DM and with ``bc_loss="nll"`` it is imitation's
    ``BehaviorCloningLossCalculator``.

    Args:
        bc_coef: weight of the cloning loss (the paper's λ_BC).
        ent_weight: weight of the entropy bonus of ``"nll"``, as in imitation. The others have
            none: nothing would hold the spread of a Gaussian policy back.
        l2_weight: weight of half the squared parameter norm, as in imitation.
        bc_loss: ``"nll"``, imitation's negative log likelihood, or an error of standardised
            actions (of one-hot codes for discrete actions): ``"mse"``, the paper's squared one,
            ``"l1"``, the absolute one, or ``"huber"``, squared up to one standard deviation and
            linear beyond. The spread of a diagonal Gaussian, which no such error knows, then
            learns from the likelihood around a mean that is held fixed.
        encoder: codes of actions, for the errors.
        dm_coef: weight of the diffusion loss (the paper's λ_DM).
        diffusion: the diffusion loss; None turns it off.
        compile: whether :meth:`of_batch` goes through ``torch.compile``, whose errors come
            through.
    """

    bc_coef: float
    ent_weight: float
    l2_weight: float
    bc_loss: BCLoss
    encoder: PairEncoder
    dm_coef: float = 0.0
    diffusion: DiffusionLoss | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.compile:
            # One graph: in pieces it would hardly be faster. Known sizes give faster code.
            compiled = th.compile(self.of_batch, fullgraph=True, dynamic=False)
            object.__setattr__(self, "of_batch", compiled)

    def __call__(
        self,
        policy: policies.ActorCriticPolicy,
        obs: Observations,
        acts: th.Tensor | np.ndarray,
    ) -> DiffusionBCMetrics:
        """Computes the loss of a batch.

        Args:
            policy: the policy that learns.
            obs: the demonstrations' observations, ``(batch, *obs_shape)``, or a mapping.
            acts: the expert's actions, ``(batch, *act_shape)``.

        Returns:
            The loss, to be differentiated, and its parts.
        """
        # Inside th.autocast, the last update's weights would stay in use.
        th.clear_autocast_cache()
        to_tensor = functools.partial(util.safe_to_tensor, device=policy.device)
        plain_obs = obs.unwrap() if isinstance(obs, types.DictObs) else obs
        tensor_obs = types.map_maybe_dict(to_tensor, plain_obs)
        acts = self.encoder.conform_acts(to_tensor(acts))
        noise = None
        if self.diffusion is not None:
            # Here, because a compiled graph cannot draw from a generator.
            noise = self.diffusion.draw_noise(len(acts))
        return self.of_batch(policy, tensor_obs, acts, noise)

    def of_batch(
        self,
        policy: policies.ActorCriticPolicy,
        obs: th.Tensor | dict[str, th.Tensor],
        acts: th.Tensor,
        noise: Noise | None,
    ) -> DiffusionBCMetrics:
        """Computes the loss of tensors and given noise; it draws nothing itself."""
        # One pass for the likelihood, the entropy and the differentiable action; evaluate_actions
        # would add values, which cloning has no use for.
        distribution = policy.get_distribution(channels_first(obs, policy.observation_space))
        spread_log_prob = None
        if self.bc_loss in REGRESSIONS:
            spread_log_prob = _log_prob_by_spread(distribution, acts)
        log_prob = distribution.log_prob(acts) if spread_log_prob is None else spread_log_prob
        # After the likelihood, as in imitation: the order fixes the rounding of summed gradients.
        entropy = distribution.entropy()
        entropy = None if entropy is None else entropy.mean()
        neglogp = -log_prob.mean()
        zero = th.zeros((), device=neglogp.device)
        regression, cloning, ent_loss, l2_loss = None, neglogp, zero, zero
        if self.bc_loss in REGRESSIONS:
            predicted = self.encoder.encode_acts(relaxed_action(distribution))
            error = predicted - self.encoder.encode_acts(acts)
            regression = cloning = REGRESSIONS[self.bc_loss](error).mean()
            if spread_log_prob is not None:
                cloning = regression + neglogp
        elif entropy is not None:
            ent_loss = -self.ent_weight * entropy
        loss = self.bc_coef * cloning + ent_loss
        l2_norm, dm = None, None
        if self.l2_weight:  # otherwise the logger computes the norm, when it logs
            l2_norm = half_squared_norm(policy)
            l2_loss = self.l2_weight * l2_norm
            loss = loss + l2_loss
        if self.diffusion is not None:
            dm = self.diffusion(obs, relaxed_action(distribution), acts, noise)
            loss = loss + self.dm_coef * dm.loss
        return DiffusionBCMetrics(
            neglogp=neglogp,
            entropy=entropy,
            ent_loss=ent_loss,
            prob_true_act=log_prob.detach().exp().mean(),
            l2_norm=l2_norm,
            l2_loss=l2_loss,
            loss=loss,
            regression=regression,
            dm=dm,
        )


def _log_prob_by_spread(
    distribution: distributions.Distribution, acts: th.Tensor
) -> th.Tensor | None:
    """Returns log π(a | s) as a function of a diagonal Gaussian's spread alone, None for others.

    An error of actions trains the mean alone, but DAgger samples from the policy, which needs a
    spread of the residuals' size.
    """
    if type(distribution) is not distributions.DiagGaussianDistribution:
        return None
    normal = distribution.distribution
    assert normal is not None  # its parameters are set
    around_fixed_mean = th.distributions.Normal(
        normal.mean.detach(), normal.stddev, validate_args=False
    )
    return distributions.sum_independent_dims(around_fixed_mean.log_prob(acts))


def half_squared_norm(policy: policies.ActorCriticPolicy) -> th.Tensor:
    """Returns half the sum of squares of all parameters, imitation's ``l2_norm``."""
    squares = [parameter.square().sum() for parameter in policy.parameters()]
    return th.stack(squares).sum() / 2
