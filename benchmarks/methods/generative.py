"""Other generative models in the critic's place, as in the paper's comparison of them.

Each is a functor of ``DiffusionLoss``'s signature that is fitted where a critic would be, so that
the training loop stays that of ``DiffusionBC``. As in the release: the energy network's size, its
fit as in Implicit BC, and its loss; the autoencoder's latent dimensions, and the clamp on the batch
mean; the discriminator's size, that it learns beside the policy, and the non-saturating loss; the
coefficients. What deviates, or is not known of the release: pairs are standardised, as for the
critic; the autoencoder's networks and spread; learning rates; fits as long as the critic's; policy
and recipe are those of ``DiffusionBC``.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch as th
from imitation.data import types
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from benchmarks.methods.base import Setup
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.methods.implicit_bc import EnergyNetwork, info_nce_loss, uniform_actions
from sb3_diffbc import DiffusionBC
from sb3_diffbc.critic.encoder import PairEncoder, to_tensor_obs
from sb3_diffbc.demonstrations.batches import to_tensor
from sb3_diffbc.losses import DiffusionBCLoss, DiffusionMetrics
from sb3_diffbc.training_run import TrainingRun


class PairModel(abc.ABC):
    """A model of expert pairs that is called as ``DiffusionLoss`` is.

    Args:
        setup: spaces and seed.

    Attributes:
        network: learns in steps of its own alone.
    """

    coefficient: ClassVar[float]
    """The release's λ."""
    settings: ClassVar[Mapping[str, Any]]
    """Its settings; ``n_steps`` counts those before the policy learns."""

    def __init__(self, setup: Setup) -> None:
        self.encoder = PairEncoder(setup.observation_space, setup.action_space)
        weights_seed, draws_seed = np.random.SeedSequence(setup.seed).generate_state(2)
        self.generator = th.Generator().manual_seed(int(draws_seed))
        with th.random.fork_rng(devices=[]):
            th.default_generator.manual_seed(int(weights_seed))
            self.network = self._make_network(self.encoder.obs_dim, self.encoder.act_dim)
        rate = self.settings["learning_rate"]
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=rate, fused=True)
        self.network.requires_grad_(False)

    @abc.abstractmethod
    def _make_network(self, obs_dim: int, act_dim: int) -> nn.Module:
        """Makes the network for codes of these sizes."""

    def fit(self, transitions: types.TransitionsMinimal, max_steps: int) -> None:
        """Fits the model to demonstrations, while the learning rate falls to 0."""
        self.encoder.fit(transitions.obs, transitions.acts)
        state = self.encoder.encode_obs(to_tensor_obs(transitions.obs, th.device("cpu")))
        action = self.encoder.encode_acts(to_tensor(transitions.acts))
        self.action_range = action.amin(dim=0), action.amax(dim=0)
        n_steps = min(max_steps, self.settings["n_steps"])
        schedule = th.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=n_steps)
        for _ in range(n_steps):
            rows = th.randint(len(state), (self.settings["batch_size"],), generator=self.generator)
            self._step(state[rows], action[rows])
            schedule.step()

    def _step(self, *codes: th.Tensor) -> None:
        self.network.requires_grad_(True)
        self.optimizer.zero_grad()
        self._fit_loss(*codes).backward()
        self.optimizer.step()
        self.network.requires_grad_(False)

    @abc.abstractmethod
    def _fit_loss(self, *codes: th.Tensor) -> th.Tensor:
        """What the network learns from, of codes of observations and of expert's actions.

        If the model learns beside the policy, the agent's actions follow.
        """

    def draw_noise(self, batch_size: int) -> th.Tensor | None:
        """Draws what the losses need, the same for the policy's and the expert's pairs."""
        return None

    @abc.abstractmethod
    def _losses(self, state: th.Tensor, action: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        """Losses ``(batch,)`` of codes ``(batch, dim)``."""

    @abc.abstractmethod
    def _compare(self, agent: th.Tensor, expert: th.Tensor) -> th.Tensor:
        """What stands for L_DM, of the losses of both sides."""

    def __call__(
        self, obs: th.Tensor, agent_acts: th.Tensor, expert_acts: th.Tensor, noise: Any = None
    ) -> DiffusionMetrics:
        """Computes what stands for L_DM; arguments are those of ``DiffusionLoss``."""
        state = self.encoder.encode_obs(obs)
        agent = self._losses(state, self.encoder.encode_acts(agent_acts), noise)
        with th.no_grad():
            expert = self._losses(state, self.encoder.encode_acts(expert_acts), noise)
        return DiffusionMetrics(self._compare(agent, expert), agent, expert)


class EnergyModel(PairModel):
    """E(s, a), which is lower for the expert's action than for uniform ones."""

    coefficient = 0.1
    settings = MappingProxyType(
        {"width": 128, "depth": 4, "n_counter_examples": 32, "margin": 0.05}
        | {"n_steps": 6000, "batch_size": 64, "learning_rate": 1e-3}
    )

    def _make_network(self, obs_dim: int, act_dim: int) -> nn.Module:
        size = {name: self.settings[name] for name in ("width", "depth")}
        return EnergyNetwork(obs_dim, act_dim, **size)

    def _fit_loss(self, *codes: th.Tensor) -> th.Tensor:
        (state, expert), (low, high) = codes, self.action_range
        margin = self.settings["margin"] * (high - low)
        shape = len(state), self.settings["n_counter_examples"]
        others = uniform_actions(shape, low - margin, high + margin, self.generator)
        return info_nce_loss(self.network(state, th.cat([expert.unsqueeze(1), others], dim=1)))

    def _losses(self, state: th.Tensor, action: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        return self.network(state, action.unsqueeze(1)).squeeze(1)

    def _compare(self, agent: th.Tensor, expert: th.Tensor) -> th.Tensor:
        return (agent - expert).abs().mean()


class AutoencoderModel(PairModel):
    """A variational autoencoder of pairs (Kingma and Welling, 2014).

    Its loss is the negative evidence bound in the unit of a mean squared error per dimension;
    ``decoder_std`` counts in standard deviations of the demonstrations.
    """

    coefficient = 1.0
    settings = MappingProxyType(
        {"net_arch": [128, 128], "latent_dim": 128, "decoder_std": 0.3}
        | {"n_steps": 6000, "batch_size": 128, "learning_rate": 1e-3}
    )

    def _make_network(self, obs_dim: int, act_dim: int) -> nn.Module:
        dim, latent_dim = obs_dim + act_dim, self.settings["latent_dim"]
        sizes = {"encode": (dim, 2 * latent_dim), "decode": (latent_dim, dim)}
        parts = {k: create_mlp(*size, self.settings["net_arch"]) for k, size in sizes.items()}
        return nn.ModuleDict({name: nn.Sequential(*layers) for name, layers in parts.items()})

    def _fit_loss(self, *codes: th.Tensor) -> th.Tensor:
        state, expert = codes
        return self._losses(state, expert, self.draw_noise(len(state))).mean()

    def draw_noise(self, batch_size: int) -> th.Tensor:
        """Draws what the latent variables are sampled with."""
        return th.randn(batch_size, self.settings["latent_dim"], generator=self.generator)

    def _losses(self, state: th.Tensor, action: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        assert isinstance(self.network, nn.ModuleDict)
        pair = th.cat([state, action], dim=-1)
        mean, log_std = self.network["encode"](pair).chunk(2, dim=-1)
        decoded = self.network["decode"](mean + log_std.exp() * noise)
        divergence = ((mean.square() + (2 * log_std).exp() - 1) / 2 - log_std).sum(dim=-1)
        weight = 2 * self.settings["decoder_std"] ** 2 / pair.shape[-1]
        return (decoded - pair).square().mean(dim=-1) + weight * divergence

    def _compare(self, agent: th.Tensor, expert: th.Tensor) -> th.Tensor:
        return (agent.mean() - expert.mean()).clamp(min=0)


class AdversarialModel(PairModel):
    """A discriminator D of the expert's and the policy's pairs that learns at each call.

    The loss is the non-saturating −log D(s, a) (Goodfellow et al., 2014, section 3).
    """

    coefficient = 0.2
    settings = MappingProxyType({"net_arch": [256, 256], "n_steps": 0, "learning_rate": 3e-4})

    def _make_network(self, obs_dim: int, act_dim: int) -> nn.Module:
        return nn.Sequential(*create_mlp(obs_dim + act_dim, 1, self.settings["net_arch"]))

    def _logits(self, state: th.Tensor, action: th.Tensor) -> th.Tensor:
        return self.network(th.cat([state, action], dim=-1)).squeeze(-1)

    def _fit_loss(self, *codes: th.Tensor) -> th.Tensor:
        state, expert, agent = codes
        of_agent, of_expert = self._logits(state, agent), self._logits(state, expert)
        return (F.softplus(of_agent) + F.softplus(-of_expert)).mean()

    def _losses(self, state: th.Tensor, action: th.Tensor, noise: th.Tensor | None) -> th.Tensor:
        return F.softplus(-self._logits(state, action))

    def _compare(self, agent: th.Tensor, expert: th.Tensor) -> th.Tensor:
        return agent.mean()

    def __call__(self, obs: th.Tensor, *acts_and_noise: Any) -> DiffusionMetrics:
        """Takes a step of the discriminator first."""
        agent, expert = (self.encoder.encode_acts(acts.detach()) for acts in acts_and_noise[:2])
        self._step(self.encoder.encode_obs(obs), expert, agent)
        return super().__call__(obs, *acts_and_noise)


class GenerativeBC(DiffusionBC):
    """``DiffusionBC`` with another model in the critic's place.

    Attributes:
        model: stands there; to be set before training.
    """

    model: PairModel

    def _fit_critic(self, run: TrainingRun, n_updates: int | None) -> None:
        assert n_updates is not None  # demonstrations are no endless iterable
        self.model.fit(self._peek(), n_updates)

    def _make_loss(self) -> DiffusionBCLoss:
        return dataclasses.replace(super()._make_loss(), diffusion=self.model)  # type: ignore[arg-type]


class GenerativeMethod(DiffusionBCMethod):
    """``DiffusionBC`` with another model in the critic's place, at the release's coefficient.

    Args:
        setup: demonstrations, spaces and seed.
        model: the model's class.
        **arguments: as of :class:`DiffusionBCMethod`.
    """

    trainer_class = GenerativeBC
    trainer: GenerativeBC

    def __init__(self, setup: Setup, *, model: type[PairModel], **arguments: Any) -> None:
        super().__init__(setup, dm_coef=model.coefficient, **arguments)
        self.trainer.model = model(setup)
        self.config["critic"] = {"model": model.__name__, **model.settings}
