"""What methods that search or sample for their actions share: codes, the loop, the policy."""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from imitation.data import types
from stable_baselines3.common import policies
from torch import nn

from benchmarks.methods.base import Method, Setup
from sb3_diffbc import DiffusionBC, validate_demonstrations
from sb3_diffbc.critic.encoder import PairEncoder, to_tensor_obs
from sb3_diffbc.demonstrations.batches import TransitionBatches, to_tensor

_MIN_HALF_WIDTH = 1e-6


class ActionRange:
    """Maps Box actions to codes in [-1, 1], the range that the demonstrations span, and back.

    Both Implicit BC and Diffusion Policy normalise actions so. A dimension in which the
    demonstrations do not vary has the code 0 and is decoded to its only value.

    Args:
        action_space: the actions' space.

    Raises:
        TypeError: if it is not a Box.
    """

    def __init__(self, action_space: gym.Space) -> None:
        if not isinstance(action_space, spaces.Box):
            raise TypeError(f"action_space={action_space} is not supported: expected a Box.")
        self.action_space = action_space
        self.dim = int(np.prod(action_space.shape))
        self.centre, self.half_width = th.zeros(self.dim), th.ones(self.dim)
        self.space_low, self.space_high = (
            th.as_tensor(bound, dtype=th.float32).reshape(-1)
            for bound in (action_space.low, action_space.high)
        )

    def fit(self, acts: th.Tensor) -> ActionRange:
        """Takes the range of demonstrated actions, ``(n, ...)``; returns itself."""
        acts = self._clipped(acts)
        low, high = acts.amin(dim=0), acts.amax(dim=0)
        self.centre = (low + high) / 2
        half_width = (high - low) / 2
        varies = half_width > _MIN_HALF_WIDTH * (1 + self.centre.abs())
        self.half_width = th.where(varies, half_width, 0.0)
        return self

    def _clipped(self, acts: th.Tensor) -> th.Tensor:
        # An environment executes no more than its bounds allow, whatever was recorded.
        flat = acts.reshape(len(acts), -1).to(self.centre)
        return flat.clamp(self.space_low, self.space_high)

    def encode(self, acts: th.Tensor) -> th.Tensor:
        """Codes ``(batch, dim)`` of actions ``(batch, ...)``, clipped to the action space."""
        scale = th.where(self.half_width > 0, self.half_width, 1.0)
        return (self._clipped(acts) - self.centre) / scale

    def decode(self, codes: th.Tensor) -> th.Tensor:
        """Actions of the space, ``(batch, *shape)``, within its bounds; inverse of `encode`."""
        flat = (codes * self.half_width + self.centre).clamp(self.space_low, self.space_high)
        return flat.reshape(-1, *self.action_space.shape)

    def code_limits(self, margin: float) -> tuple[th.Tensor, th.Tensor]:
        """Smallest and largest codes ``(dim,)`` of the range, widened within the action space.

        The margin is what is added on either side, as a share of the range. Both are 0 for a
        dimension that does not vary.
        """
        reach = self.half_width * (1 + 2 * margin)
        return (
            self.encode((self.centre - reach).unsqueeze(0)).squeeze(0),
            self.encode((self.centre + reach).unsqueeze(0)).squeeze(0),
        )


class SamplingPolicy(policies.BasePolicy):
    """An SB3 policy that finds or draws its actions with random numbers of its own.

    Every call of ``predict`` takes fresh numbers from one stream, whether ``deterministic`` or
    not, because these methods have no closed form for their best action. The stream is seeded,
    lives on the CPU and is independent of torch's global one: the same calls after
    :meth:`reset_noise` give the same actions. An observation's action does depend on what was
    predicted before and on its row in the batch.

    Args:
        encoder: standardises observations; fitted later or already.
        action_range: maps codes to actions; likewise.
        sample: gives action codes ``(batch, act_dim)`` of standardised observations
            ``(batch, obs_dim)``, of ``deterministic``, and of the stream.
        noise_seed: of the stream.
    """

    def __init__(
        self,
        encoder: PairEncoder,
        action_range: ActionRange,
        sample: Callable[[th.Tensor, bool, th.Generator], th.Tensor],
        noise_seed: int,
    ) -> None:
        super().__init__(encoder.observation_space, encoder.action_space)
        self.encoder = encoder
        self.action_range = action_range
        self._sample = sample
        self._noise_seed = noise_seed
        self._generator = th.Generator().manual_seed(noise_seed)

    def reset_noise(self) -> None:
        """Starts the stream of random numbers again."""
        self._generator.manual_seed(self._noise_seed)

    @th.inference_mode()
    def _predict(
        self, observation: th.Tensor | dict[str, th.Tensor], deterministic: bool = False
    ) -> th.Tensor:
        codes = self._sample(self.encoder.encode_obs(observation), deterministic, self._generator)
        return self.action_range.decode(codes)


class SamplingMethod(Method):
    """Learns a network that actions are sampled with; a subclass makes the network.

    Observations are standardised as DiffusionBC does, actions scaled to [-1, 1]. Batches are those
    of imitation's BC and of DiffusionBC after ``torch.manual_seed(seed)``; torch's global state is
    left alone.

    Args:
        setup: demonstrations, spaces (a Box of actions) and seed.
        n_updates: gradient updates, over which the learning rate falls to 0.
        width: hidden units per layer.
        depth: number of hidden layers or blocks; see the subclass.
        batch_size: pairs per update.
        learning_rate: of the first update.

    Raises:
        TypeError: if the action space is not a Box.
        ValueError: if the demonstrations do not fit the spaces or are fewer than a batch.
    """

    lr_decay: ClassVar[Literal["linear", "cosine"]] = "linear"
    """How the learning rate falls to 0."""

    network: nn.Module

    def __init__(
        self,
        setup: Setup,
        *,
        n_updates: int = DiffusionBC.DEFAULT_N_BATCHES,
        width: int = 128,
        depth: int = 3,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(setup)
        # Before the encoder, which would take further kinds of actions.
        self.action_range = ActionRange(setup.action_space)
        self.encoder = PairEncoder(setup.observation_space, setup.action_space)
        validate_demonstrations(setup.demonstrations, **setup.spaces, batch_size=batch_size)
        self.length, self.batch_size, self.learning_rate = n_updates, batch_size, learning_rate
        seeds = np.random.SeedSequence(setup.seed).generate_state(3)
        self._weights_seed, self._fit_seed, noise_seed = (int(seed) for seed in seeds)
        self._policy = SamplingPolicy(self.encoder, self.action_range, self._sample, noise_seed)
        self.config = {
            "n_batches": n_updates,
            "width": width,
            "depth": depth,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "lr_decay": self.lr_decay,
        }

    @property
    def policy(self) -> SamplingPolicy:
        """As the base class says."""
        return self._policy

    @property
    def n_parameters(self) -> int:
        """Trained weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @abc.abstractmethod
    def _loss(self, obs: th.Tensor, acts: th.Tensor, generator: th.Generator) -> th.Tensor:
        """Mean loss of a batch of standardised observations and action codes."""

    @abc.abstractmethod
    def _sample(self, obs: th.Tensor, deterministic: bool, generator: th.Generator) -> th.Tensor:
        """Action codes ``(batch, act_dim)`` for standardised observations ``(batch, obs_dim)``."""

    def _make_optimizer(self) -> th.optim.Optimizer:
        return th.optim.Adam(self.network.parameters(), lr=self.learning_rate, fused=True)

    def _rate_left(self, n_updates: int) -> float:
        """Share of the learning rate that is left after so many updates."""
        done = n_updates / self.length
        return 1 - done if self.lr_decay == "linear" else (1 + math.cos(math.pi * done)) / 2

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""
        batches = self._encoded_batches()
        optimizer = self._make_optimizer()
        schedule = th.optim.lr_scheduler.LambdaLR(optimizer, self._rate_left)
        generator = th.Generator().manual_seed(self._fit_seed)
        with th.random.fork_rng(devices=[]):
            th.default_generator.manual_seed(self.setup.seed)
            passes = itertools.chain.from_iterable(itertools.repeat(batches))
            for batch in itertools.islice(passes, self.length):
                loss = self._loss(batch["obs"], batch["acts"], generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                self.updates += 1
                on_progress()

    def _encoded_batches(self) -> TransitionBatches:
        """Takes the statistics; batches of codes, so that nothing is encoded twice."""
        demonstrations = self.setup.demonstrations
        acts = to_tensor(demonstrations.acts)
        self.encoder.fit(demonstrations.obs, demonstrations.acts)
        self.action_range.fit(acts)
        codes = types.TransitionsMinimal(
            obs=self.encoder.encode_obs(
                to_tensor_obs(demonstrations.obs, th.device("cpu"))
            ).numpy(),
            acts=self.action_range.encode(acts).numpy(),
            infos=np.full(len(acts), {}),
        )
        return TransitionBatches(codes, self.batch_size)
