"""The loss of DiffusionBC: L = bc_coef · L_BC + dm_coef · L_DM."""

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from imitation.algorithms import bc
from stable_baselines3.common import distributions, policies

from sb3_diffbc.critic import DiffusionCritic, Guidance, Noise, PairEncoder, relaxed_action
from sb3_diffbc.critic.encoder import Observations, to_tensor_obs

BC_LOSSES = ("nll", "mse")

Batch = tuple[th.Tensor | dict[str, th.Tensor], th.Tensor, Noise | None]
"""Observations, the expert's actions and the diffusion noise."""


def _per_sample(guidance: Guidance) -> th.Tensor:
    """The paper's formula: E[max(L_diff^agent − L_diff^expert, 0)]."""
    return (guidance.agent - guidance.expert).clamp(min=0).mean()


def _on_batch_means(guidance: Guidance) -> th.Tensor:
    """The authors' release: max(E[L_diff^agent] − E[L_diff^expert], 0)."""
    return (guidance.agent.mean() - guidance.expert.mean()).clamp(min=0)


def _unclamped(guidance: Guidance) -> th.Tensor:
    """Same gradient as the agent's loss alone; the expert's term only sets the zero."""
    return (guidance.agent - guidance.expert).mean()


DM_CLAMPS: dict[str, Callable[[Guidance], th.Tensor]] = {
    "sample": _per_sample,
    "batch": _on_batch_means,
    "none": _unclamped,
}


class NoiseSource:
    """Hands out the diffusion noise of a batch, minibatch by minibatch.

    Noise is drawn for whole batches, so that accumulating gradients over minibatches gives the
    gradient of the full batch. It comes from a generator of its own, so that runs with and
    without L_DM shuffle their demonstrations alike.

    Args:
        critic: what the noise is for.
        batch_size: rows drawn at once; may be set anew where a batch starts.
        seed: of the generator.
    """

    def __init__(self, critic: DiffusionCritic, batch_size: int, seed: int) -> None:
        self._critic = critic
        self.batch_size = batch_size
        self._generator = th.Generator(critic.device).manual_seed(seed)
        self._left: Noise | None = None

    @property
    def state(self) -> th.Tensor:
        """State of the generator, uint8."""
        return self._generator.get_state()

    @state.setter
    def state(self, state: th.Tensor) -> None:
        self._generator.set_state(state.cpu())
        self._left = None

    def start_batch(self) -> None:
        """Forgets what an incomplete batch has left over."""
        self._left = None

    def take(self, n: int) -> Noise:
        """The noise of the next ``n`` rows."""
        if self._left is None or len(self._left.timesteps) < n:
            self._left = self._critic.draw_noise(max(n, self.batch_size), self._generator)
        taken = Noise(self._left.timesteps[:n], self._left.epsilon[:n])
        rest = Noise(self._left.timesteps[n:], self._left.epsilon[n:])
        self._left = rest if len(rest.timesteps) else None
        return taken

    def __getstate__(self) -> dict[str, Any]:
        # Not every supported torch can pickle a generator.
        return {**self.__dict__, "_generator": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._generator = th.Generator(self._critic.device)
        self.state = state["_generator"]


@dataclasses.dataclass(frozen=True)
class DiffusionMetrics:
    """L_DM of a batch and what it is made of; the parts are computed when they are asked for.

    Attributes:
        loss: L_DM, to be differentiated.
        guidance: L_diff of the policy's and the expert's pairs.
    """

    loss: th.Tensor
    guidance: Guidance

    @property
    def agent(self) -> th.Tensor:
        """Mean L_diff of the policy's pairs."""
        return self.guidance.agent.detach().mean()

    @property
    def expert(self) -> th.Tensor:
        """Mean L_diff of the expert's pairs."""
        return self.guidance.expert.mean()

    @property
    def active(self) -> th.Tensor:
        """Share of samples whose agent loss is above their expert loss.

        These are those that a clamp per sample lets through.
        """
        return (self.guidance.agent.detach() > self.guidance.expert).float().mean()


@dataclasses.dataclass(frozen=True)
class DiffusionLoss:
    """Functor for L_DM (Chen et al., 2024): how far the agent's loss is above the expert's.

    Args:
        critic: the fitted critic.
        noise: where noise levels and noise come from.
        clamp: ``"sample"`` as in the paper's formula, ``"batch"`` as in the authors' release,
            or ``"none"``.
    """

    critic: DiffusionCritic
    noise: NoiseSource
    clamp: str = "sample"

    def __call__(
        self,
        obs: th.Tensor | dict[str, th.Tensor],
        agent_acts: th.Tensor,
        expert_acts: th.Tensor,
        noise: Noise | None = None,
    ) -> DiffusionMetrics:
        """Computes L_DM of a batch.

        Args:
            obs: observations, ``(batch, *obs_shape)``, or a mapping of such.
            agent_acts: the policy's actions, differentiable (see ``relaxed_action``).
            expert_acts: the expert's actions.
            noise: levels and noise to use; taken from the source if None.

        Returns:
            The loss and its parts.
        """
        # One draw for agent and expert: it costs half, and their difference varies less.
        noise = noise or self.noise.take(len(expert_acts))
        guidance = self.critic.guidance(obs, agent_acts, expert_acts, noise=noise)
        return DiffusionMetrics(loss=DM_CLAMPS[self.clamp](guidance), guidance=guidance)


@dataclasses.dataclass(frozen=True)
class DiffusionBCMetrics(bc.BCTrainingMetrics):
    """imitation's metrics of one batch, and those of L_DM.

    ``l2_norm`` is None where it has no weight: it costs a pass over all parameters.

    Attributes:
        mse: mean squared error of the encoded actions, None unless it is the loss.
        dm: the parts of L_DM, None where it is off.
    """

    l2_norm: th.Tensor | None  # type: ignore[assignment]
    mse: th.Tensor | None = None
    dm: DiffusionMetrics | None = None


@dataclasses.dataclass(frozen=True)
class DiffusionBCLoss:
    """Functor for L = bc_coef · L_BC + dm_coef · L_DM, as ``BC.train`` calls it.

    With ``bc_coef`` 1, without L_DM and with ``bc_loss="nll"`` it is imitation's
    ``BehaviorCloningLossCalculator``.

    Args:
        bc_coef: weight of the cloning loss (the paper's λ_BC).
        ent_weight: weight of the entropy bonus of ``"nll"``, as in imitation. ``"mse"`` has
            none: nothing would hold the spread of a Gaussian policy back.
        l2_weight: weight of half the squared parameter norm, as in imitation.
        bc_loss: ``"nll"``, imitation's negative log likelihood, or ``"mse"``, the paper's
            squared error of standardised actions (of one-hot codes for discrete actions). The
            spread of a diagonal Gaussian, which no squared error knows, then learns from the
            likelihood around a mean that is held fixed.
        encoder: codes of actions, for ``"mse"``.
        dm_coef: weight of the diffusion loss (the paper's λ_DM).
        diffusion: the diffusion loss; None turns it off.
    """

    bc_coef: float
    ent_weight: float
    l2_weight: float
    bc_loss: str
    encoder: PairEncoder
    dm_coef: float = 0.0
    diffusion: DiffusionLoss | None = None

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
        return self.of_batch(policy, *self.draw_batch(policy, obs, acts))

    def draw_batch(
        self,
        policy: policies.ActorCriticPolicy,
        obs: Observations,
        acts: th.Tensor | np.ndarray,
    ) -> Batch:
        """Brings a batch into the form that the loss needs, and takes its diffusion noise."""
        # Inside th.autocast, the last update's weights would stay in use.
        th.clear_autocast_cache()
        acts = self.encoder.conform_acts(th.as_tensor(acts, device=policy.device))
        noise = None if self.diffusion is None else self.diffusion.noise.take(len(acts))
        return to_tensor_obs(obs, policy.device), acts, noise

    def of_batch(
        self,
        policy: policies.ActorCriticPolicy,
        obs: th.Tensor | dict[str, th.Tensor],
        acts: th.Tensor,
        noise: Noise | None,
    ) -> DiffusionBCMetrics:
        """The loss as a function of what :meth:`draw_batch` returned; it draws nothing itself."""
        # One pass for the likelihood, the entropy and the differentiable action; evaluate_actions
        # would add values, which cloning has no use for.
        distribution = policy.get_distribution(obs)
        spread_log_prob = None
        if self.bc_loss == "mse":
            spread_log_prob = _log_prob_by_spread(distribution, acts)
        log_prob = distribution.log_prob(acts) if spread_log_prob is None else spread_log_prob
        entropy = distribution.entropy()
        entropy = None if entropy is None else entropy.mean()
        neglogp = -log_prob.mean()
        zero = th.zeros((), device=neglogp.device)
        mse, cloning, ent_loss = None, neglogp, zero
        if self.bc_loss == "mse":
            mse = cloning = self._squared_error(distribution, acts)
            if spread_log_prob is not None:
                cloning = mse + neglogp
        elif entropy is not None:
            ent_loss = -self.ent_weight * entropy
        loss = self.bc_coef * cloning + ent_loss
        l2_norm, l2_loss = None, zero
        if self.l2_weight:  # otherwise the logger computes the norm, when it logs
            l2_norm = half_squared_norm(policy)
            l2_loss = self.l2_weight * l2_norm
            loss = loss + l2_loss
        dm = None
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
            mse=mse,
            dm=dm,
        )

    def _squared_error(
        self, distribution: distributions.Distribution, acts: th.Tensor
    ) -> th.Tensor:
        predicted = self.encoder.encode_acts(relaxed_action(distribution))
        return (predicted - self.encoder.encode_acts(acts)).square().mean()


def _log_prob_by_spread(
    distribution: distributions.Distribution, acts: th.Tensor
) -> th.Tensor | None:
    """Gives log π(a | s) as a function of a diagonal Gaussian's spread alone, None for others.

    The mean is the squared error's business, but whoever samples from the policy, as DAgger does,
    needs a spread of the residuals' size.
    """
    if type(distribution) is not distributions.DiagGaussianDistribution:
        return None
    normal = distribution.distribution
    assert normal is not None  # its parameters are set
    around_fixed_mean = th.distributions.Normal(
        normal.mean.detach(), normal.stddev, validate_args=False
    )
    return distributions.sum_independent_dims(around_fixed_mean.log_prob(acts))


class CompiledLoss:
    """A loss that goes through torch.compile, or through Python where that does not work.

    The first batch compiles and tries it, gradients included. If that fails, a warning says so,
    and this batch and all others give what they give without compilation.

    Args:
        loss: the loss.
    """

    def __init__(self, loss: DiffusionBCLoss) -> None:
        self.loss = loss
        self.has_failed = False
        self._compiled: Callable[..., DiffusionBCMetrics] | None = None

    def __call__(
        self,
        policy: policies.ActorCriticPolicy,
        obs: Observations,
        acts: th.Tensor | np.ndarray,
    ) -> DiffusionBCMetrics:
        """As :meth:`DiffusionBCLoss.__call__`."""
        # Drawn outside of what is compiled, so that a second attempt meets the same noise.
        batch = self.loss.draw_batch(policy, obs, acts)
        if not self.has_failed:
            try:
                if self._compiled is None:
                    self._compiled = self._compile(policy, batch)
                return self._compiled(policy, *batch)
            except Exception as error:  # whatever a missing compiler or an unusual policy causes
                self._give_up(error)
        return self.loss.of_batch(policy, *batch)

    def _compile(
        self, policy: policies.ActorCriticPolicy, batch: Batch
    ) -> Callable[..., DiffusionBCMetrics]:
        # One graph or none: in pieces it would hardly be faster, and torch would write pages on
        # why. Known sizes give faster code.
        compiled = th.compile(self.loss.of_batch, fullgraph=True, dynamic=False)
        learnt = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        # torch compiles when code is first run, and the way back when a gradient is first taken,
        # which is for the training loop to do, outside of this class.
        with th.random.fork_rng(devices=[]):
            th.autograd.grad(compiled(policy, *batch).loss, learnt, allow_unused=True)
        return compiled

    def _give_up(self, error: Exception) -> None:
        self.has_failed, self._compiled = True, None
        reason = " ".join(str(error).split("\n")[:2]).strip()  # pages of hints follow
        warnings.warn(
            "compile=True has no effect, and training goes on without: torch.compile failed "
            f"({type(error).__name__}: {reason}).",
            RuntimeWarning,
            stacklevel=3,
        )

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code cannot be pickled; it is compiled again when it is needed.
        return {**self.__dict__, "_compiled": None}


def half_squared_norm(policy: policies.ActorCriticPolicy) -> th.Tensor:
    """Half the sum of squares of all parameters, imitation's ``l2_norm``."""
    squares = [parameter.square().sum() for parameter in policy.parameters()]
    return th.stack(squares).sum() / 2
