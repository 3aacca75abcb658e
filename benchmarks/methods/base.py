"""What the methods have in common: construction, fitting, and a policy that samples actions."""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from imitation.data import types
from stable_baselines3.common import policies, utils
from torch import nn

from sb3_diffbc.critic.critic import check_choice
from sb3_diffbc.critic.encoder import PairEncoder, to_tensor_obs
from sb3_diffbc.demonstrations import validate_demonstrations
from sb3_diffbc.demonstrations.batches import TransitionBatches, as_transitions, to_tensor

UPDATES_PER_ENTRY = 100
"""Updates over which an entry of the loss curve is averaged."""

LR_DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""Share of the learning rate that is left after a share of the updates is done."""

_MIN_HALF_WIDTH = 1e-6


@dataclasses.dataclass(frozen=True)
class FitRecord:
    """Loss curve of :meth:`Method.fit`.

    Attributes:
        updates: updates made at each entry.
        losses: mean loss since the previous entry, over 100 updates (fewer at the end).
    """

    updates: tuple[int, ...]
    losses: tuple[float, ...]


class ActionRange(nn.Module):
    """Maps Box actions to codes in [-1, 1], the range that the demonstrations span, and back.

    Both Implicit BC and Diffusion Policy normalise actions so. A dimension in which the
    demonstrations do not vary has the code 0 and is decoded to its only value.

    Args:
        action_space: the actions' space.

    Raises:
        TypeError: if it is not a Box.
    """

    centre: th.Tensor
    half_width: th.Tensor
    space_low: th.Tensor
    space_high: th.Tensor

    def __init__(self, action_space: gym.Space) -> None:
        super().__init__()
        if not isinstance(action_space, spaces.Box):
            raise TypeError(f"action_space={action_space} is not supported: expected a Box.")
        self.action_space = action_space
        self.dim = int(np.prod(action_space.shape))
        self.register_buffer("centre", th.zeros(self.dim))
        self.register_buffer("half_width", th.ones(self.dim))
        for name, bound in {"space_low": action_space.low, "space_high": action_space.high}.items():
            self.register_buffer(name, th.as_tensor(bound, dtype=th.float32).reshape(-1))

    def fit(self, acts: th.Tensor) -> "ActionRange":
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
        """Smallest and largest code of the demonstrated range widened within the action space.

        Args:
            margin: what to add on either side, as a share of the range.

        Returns:
            Two tensors of shape ``(dim,)``; both 0 for a dimension that does not vary.
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
        noise_seed: of the stream.
    """

    def __init__(self, encoder: PairEncoder, action_range: ActionRange, noise_seed: int) -> None:
        super().__init__(encoder.observation_space, encoder.action_space)
        self.encoder = encoder
        self.action_range = action_range
        self._noise_seed = noise_seed
        self._generator = th.Generator().manual_seed(noise_seed)

    def reset_noise(self, seed: int | None = None) -> None:
        """Starts the stream of random numbers again, from another seed if one is given."""
        self._generator.manual_seed(self._noise_seed if seed is None else seed)

    @th.inference_mode()
    def _predict(
        self, observation: th.Tensor | dict[str, th.Tensor], deterministic: bool = False
    ) -> th.Tensor:
        codes = self._sample(self.encoder.encode_obs(observation), deterministic)
        return self.action_range.decode(codes)

    @abc.abstractmethod
    def _sample(self, obs: th.Tensor, deterministic: bool) -> th.Tensor:
        """Action codes ``(batch, act_dim)`` for standardised observations ``(batch, obs_dim)``."""


class Method(abc.ABC):
    """A way to learn a policy from demonstrations; a subclass makes ``network`` and ``policy``.

    Observations are standardised as DiffusionBC does, actions scaled to [-1, 1].

    Attributes:
        network: what is trained.
        policy: acts with what was learnt so far, also while :meth:`fit` is running.
        record: loss curve of the last fit; None before.

    Args:
        observation_space: of the demonstrations; any space that SB3 preprocesses.
        action_space: a Box.
        width: hidden units per layer.
        depth: number of hidden layers or blocks; see the subclass.
        batch_size: pairs per update.
        learning_rate: of the first update.
        lr_decay: how it falls to 0, ``"linear"`` (as in DiffusionBC's recipe) or ``"cosine"``.
        seed: of weights, batches and all noise. Batches are those of imitation's BC and of
            DiffusionBC after ``torch.manual_seed(seed)``; torch's global state is left alone.
        device: ``"auto"`` takes a GPU where there is one.

    Raises:
        TypeError: if the action space is not a Box.
        ValueError: for an argument outside its range.
    """

    network: nn.Module
    policy: SamplingPolicy

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        width: int = 128,
        depth: int = 3,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        lr_decay: str = "linear",
        seed: int = 0,
        device: th.device | str = "auto",
    ) -> None:
        require_at_least(1, width=width, depth=depth, batch_size=batch_size)
        require_at_least(0, seed=seed)
        check_choice("lr_decay", lr_decay, LR_DECAYS)
        if not 0 < learning_rate < float("inf"):
            raise ValueError(f"learning_rate={learning_rate} must be positive and finite.")
        # Before the encoder, which would take further kinds of actions.
        self.action_range = ActionRange(action_space)
        self.encoder = PairEncoder(observation_space, action_space)
        self.width, self.depth, self.batch_size = width, depth, batch_size
        self.learning_rate, self.lr_decay = learning_rate, lr_decay
        self.seed = seed
        self.device = utils.get_device(device)
        self.record: FitRecord | None = None
        seeds = np.random.SeedSequence(seed).generate_state(3)
        self._weights_seed, self._fit_seed, self._noise_seed = (int(part) for part in seeds)

    @property
    def n_parameters(self) -> int:
        """Trained weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @abc.abstractmethod
    def _loss(self, obs: th.Tensor, acts: th.Tensor, generator: th.Generator) -> th.Tensor:
        """Mean loss of a batch of standardised observations and action codes."""

    def _make_optimizer(self) -> th.optim.Optimizer:
        return th.optim.Adam(self.network.parameters(), lr=self.learning_rate, fused=True)

    def fit(
        self,
        transitions: Any,
        n_batches: int,
        on_batch_end: Callable[[], None] | None = None,
    ) -> FitRecord:
        """Trains on demonstrations; a second call goes on from the weights with new statistics.

        Args:
            transitions: imitation transitions, or what ``load_demonstrations`` takes.
            n_batches: number of updates, over which the learning rate falls to 0.
            on_batch_end: called without arguments after each update, as in imitation's BC.

        Returns:
            The loss curve, also kept as ``record``.

        Raises:
            ValueError: if the demonstrations do not fit the spaces, hold NaN or are fewer than
                a batch, or ``n_batches`` is below 1.
            RuntimeError: if the loss diverges.
        """
        require_at_least(1, n_batches=n_batches)
        batches = self._encoded_batches(as_transitions(transitions))
        optimizer = self._make_optimizer()
        generator = th.Generator().manual_seed(self._fit_seed)
        decay = LR_DECAYS[self.lr_decay]
        total = th.zeros((), device=self.device)
        updates, losses = [0], []
        with th.random.fork_rng(devices=[]):
            th.default_generator.manual_seed(self.seed)
            passes = itertools.chain.from_iterable(itertools.repeat(batches))
            for update, batch in zip(range(1, n_batches + 1), passes, strict=False):
                for group in optimizer.param_groups:
                    group["lr"] = self.learning_rate * decay((update - 1) / n_batches)
                obs, acts = batch["obs"].to(self.device), batch["acts"].to(self.device)
                loss = self._loss(obs, acts, generator)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.detach()
                if update % UPDATES_PER_ENTRY == 0 or update == n_batches:
                    losses.append(_checked(float(total) / (update - updates[-1]), update))
                    updates.append(update)
                    total.zero_()
                if on_batch_end is not None:
                    on_batch_end()
        self.record = FitRecord(tuple(updates[1:]), tuple(losses))
        return self.record

    def _encoded_batches(self, transitions: types.TransitionsMinimal) -> TransitionBatches:
        """Takes the statistics; batches of codes, so that nothing is encoded twice."""
        validate_demonstrations(
            transitions,
            observation_space=self.encoder.observation_space,
            action_space=self.encoder.action_space,
            batch_size=self.batch_size,
        )
        acts = to_tensor(transitions.acts, self.device)
        self.encoder.fit(transitions.obs, transitions.acts)
        self.action_range.fit(acts)
        codes = types.TransitionsMinimal(
            obs=self.encoder.encode_obs(to_tensor_obs(transitions.obs, self.device)).cpu().numpy(),
            acts=self.action_range.encode(acts).cpu().numpy(),
            infos=np.full(len(acts), {}),
        )
        return TransitionBatches(codes, self.batch_size)


def require_at_least(least: float, **arguments: float) -> None:
    """Refuses numbers below their smallest sensible value with a ``ValueError``."""
    for name, value in arguments.items():
        if not least <= value < float("inf"):
            raise ValueError(f"{name}={value} must be a finite number of at least {least}.")


def _checked(loss: float, update: int) -> float:
    if not math.isfinite(loss):
        raise RuntimeError(
            f"The mean loss became {loss} by update {update}: fit with a smaller learning_rate."
        )
    return loss
