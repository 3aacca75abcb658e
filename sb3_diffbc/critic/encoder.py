"""From observations and actions of any supported space to the codes that the critic models.

Continuous values are standardised with the demonstrations' statistics; discrete ones become
one-hot codes in {-1, 1} ("analog bits", Chen et al., 2022), which makes them comparable in
scale to standardised values and lets the policy's probabilities stand in for them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from imitation.data import types
from stable_baselines3.common import distributions, preprocessing, utils
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import nn
from torch.nn import functional as F  # noqa: N812  (torch's own convention)

from sb3_diffbc.demonstrations.batches import to_tensor

Observations = th.Tensor | np.ndarray | Mapping[str, th.Tensor] | types.DictObs

CODE_LIMIT = 10.0
_MIN_STD = 1e-6
_CHUNK_VALUES = 2**18  # larger blocks, 2 MB of doubles here, leave holes in the heap


def to_tensor_obs(obs: Observations, device: th.device) -> th.Tensor | dict[str, th.Tensor]:
    """Turns imitation's forms of observations (arrays, DictObs, mappings) into tensors."""
    if isinstance(obs, types.DictObs | Mapping):
        return {key: to_tensor(value, device) for key, value in obs.items()}
    return to_tensor(obs, device)


def resolve_device(device: th.device | str) -> th.device:
    """Returns SB3's choice for ``"auto"``, and otherwise the device, if it is there.

    Raises:
        ValueError: if it is not. SB3's ``get_device`` takes the CPU in place of a missing GPU.
    """
    if device == "auto":
        return utils.get_device()
    try:
        th.empty(0, device=device)
        return th.device(device)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise ValueError(
            f"device={str(device)!r} cannot be used here ({reason}): expected 'auto', 'cpu' or "
            "another that this machine has."
        ) from error


def space_name(space: gym.Space) -> str:
    """Returns a space without its bounds, such as ``Box(3,)``."""
    if isinstance(space, spaces.Dict):
        parts = (f"{key}: {space_name(part)}" for key, part in space.spaces.items())
        return f"Dict({', '.join(parts)})"
    return f"Box{space.shape}" if isinstance(space, spaces.Box) else str(space)


def channels_first_space(space: gym.Space) -> gym.Space:
    """Returns the space that SB3's policies have for an environment's observations.

    Images of shape (H, W, C) are (C, H, W) there, by ``VecTransposeImage`` and in ``predict``.
    """
    if isinstance(space, spaces.Dict):
        return spaces.Dict([(key, channels_first_space(part)) for key, part in space.items()])
    if preprocessing.is_image_space(space):
        assert isinstance(space, spaces.Box)
        if not preprocessing.is_image_space_channels_first(space):
            return VecTransposeImage.transpose_space(space)
    return space


def channels_first(
    obs: th.Tensor | dict[str, th.Tensor], space: gym.Space
) -> th.Tensor | dict[str, th.Tensor]:
    """Permutes a batch's images of shape (H, W, C) where ``space`` has them as (C, H, W)."""
    if isinstance(obs, dict):
        assert isinstance(space, spaces.Dict)
        return {key: channels_first(value, space[key]) for key, value in obs.items()}  # type: ignore[misc]
    # Cheap, because it runs at every update: demonstrations fit the space but for this order.
    is_other = len(space.shape or ()) == 3 and obs.shape[1:] != space.shape
    return obs.movedim(-1, 1) if is_other else obs


def check_space(argument: str, space: gym.Space) -> None:
    """Checks that policies and critics can be made for a space.

    Args:
        argument: how messages call it, such as ``action_space``.
        space: the space; a Dict for observations only.

    Raises:
        TypeError: if it is of a kind that is not supported.
        ValueError: if no policy can be made for it.
    """
    kinds = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if isinstance(space, spaces.Dict) and argument == "observation_space" and space.spaces:
        for key, part in space.spaces.items():
            check_space(f"{argument}[{key!r}]", part)
        return
    if not isinstance(space, kinds):
        raise TypeError(
            f"{argument}={space} is not supported: expected one of "
            f"{[kind.__name__ for kind in kinds]}"
            f"{', or a Dict of these' if argument == 'observation_space' else ''}."
        )
    fault = None
    shape = space.shape or ()
    if np.any(getattr(space, "start", 0)):
        fault = "does not start at 0: SB3's policies only know categories that are counted from 0"
    elif 0 in shape:
        fault = "has no elements: expected at least one"
    elif isinstance(space, spaces.Box) and not shape and argument != "action_space":
        fault = "has no dimensions, which SB3's features extractors need: expected shape (1,)"
    elif len(shape) > 1 and isinstance(space, spaces.MultiDiscrete):
        fault = f"has {len(shape)} dimensions: SB3's policies take one, flatten it"
    elif not _torch_has(np.dtype(space.dtype)):
        fault = f"has the dtype {np.dtype(space.dtype).str}, which torch has not"
    if fault is not None:
        raise ValueError(f"{argument}={space} {fault}.")


def check_spaces_of(
    argument: str, owner: Any, observation_space: gym.Space, action_space: gym.Space
) -> None:
    """Raises a ValueError unless a policy or critic has these spaces."""
    expected = {"observation_space": observation_space, "action_space": action_space}
    for name, space in expected.items():
        if getattr(owner, name) != space:
            raise ValueError(f"{argument}.{name} is {getattr(owner, name)}: expected {space}.")


def _torch_has(dtype: np.dtype) -> bool:
    try:
        th.as_tensor(np.zeros(1, dtype))
    except (TypeError, ValueError):
        return False
    return True


def flatten_obs(obs: th.Tensor | dict[str, th.Tensor], observation_space: gym.Space) -> th.Tensor:
    """Concatenates an observation's parts, preprocessed as SB3 does, to ``(batch, dim)``.

    SB3's preprocessing divides images by 255 and turns discrete parts into one-hot codes.
    """
    parts = preprocessing.preprocess_obs(obs, observation_space)
    if not isinstance(parts, dict):
        return parts.flatten(start_dim=1)
    assert isinstance(observation_space, spaces.Dict)
    # In the order of the space, whatever the order of the observation's keys.
    return th.cat([parts[key].flatten(start_dim=1) for key in observation_space.spaces], dim=-1)


def relaxed_action(distribution: distributions.Distribution) -> th.Tensor:
    """Returns the action of a distribution as a differentiable function of its parameters.

    Gaussian policies (diagonal, squashed, state-dependent) give their mean, as the paper's
    deterministic policy does. Categorical and multi-categorical policies give their
    probabilities, which are the expectation of the one-hot code; Bernoulli policies give the
    probability of each bit.

    Args:
        distribution: an SB3 action distribution with its parameters set.

    Returns:
        Shape ``(batch, action_dim)`` for continuous actions, ``(batch, sum of categories)``
        for discrete and multi-discrete ones, ``(batch, bits)`` for multi-binary ones.

    Raises:
        TypeError: if no relaxation is known for this distribution.
    """
    # A chain of isinstance and not functools.singledispatch, which torch.compile cannot follow.
    if isinstance(
        distribution,
        distributions.DiagGaussianDistribution | distributions.StateDependentNoiseDistribution,
    ):
        return distribution.mode()
    if isinstance(
        distribution, distributions.CategoricalDistribution | distributions.BernoulliDistribution
    ):
        return distribution.distribution.probs  # type: ignore[union-attr]
    if isinstance(distribution, distributions.MultiCategoricalDistribution):
        return th.cat([part.probs for part in distribution.distribution], dim=-1)  # type: ignore[union-attr]
    raise TypeError(
        f"No differentiable action is known for {type(distribution).__name__}: expected SB3's "
        "Gaussian, categorical, multi-categorical or Bernoulli distribution."
    )


class PairEncoder(nn.Module):
    """Encodes observations and actions as the vectors whose density the critic models.

    Args:
        observation_space: any space that SB3 preprocesses (Box, Discrete, MultiDiscrete,
            MultiBinary, Dict of these).
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.

    Raises:
        TypeError: if a space is of another kind.
        ValueError: if no policy can be made for a space: a discrete one that does not count its
            categories from 0 or has two dimensions, a Box without elements.
    """

    obs_mean: th.Tensor
    obs_std: th.Tensor
    act_mean: th.Tensor
    act_std: th.Tensor

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        super().__init__()
        check_space("observation_space", observation_space)
        check_space("action_space", action_space)
        self.observation_space = observation_space
        self.action_space = action_space
        self._one_hot_sizes: list[int] = []
        if isinstance(action_space, spaces.Discrete):
            self._one_hot_sizes = [int(action_space.n)]
        elif isinstance(action_space, spaces.MultiDiscrete):
            self._one_hot_sizes = [int(n) for n in action_space.nvec.reshape(-1)]
        self.obs_dim = flatten_obs(self._sample_obs(), observation_space).shape[-1]
        self.act_dim = sum(self._one_hot_sizes) or int(np.prod(action_space.shape or (1,)))
        for name, dim in (("obs", self.obs_dim), ("act", self.act_dim)):
            self.register_buffer(f"{name}_mean", th.zeros(dim))
            self.register_buffer(f"{name}_std", th.ones(dim))

    def _sample_obs(self) -> th.Tensor | dict[str, th.Tensor]:
        """A batch of one zero observation, to measure the code's size.

        It does not use ``space.sample()``, which would advance the space's own random state.
        """

        def zero(space: gym.Space) -> th.Tensor:
            shape = (1, *(space.shape or ()))
            return th.as_tensor(np.zeros(shape, dtype=space.dtype))

        if isinstance(self.observation_space, spaces.Dict):
            return {key: zero(space) for key, space in self.observation_space.spaces.items()}
        return zero(self.observation_space)

    def fit(
        self, obs: Observations, acts: th.Tensor | np.ndarray, rows: np.ndarray | None = None
    ) -> "PairEncoder":
        """Takes mean and standard deviation per dimension from demonstrations.

        Discrete actions and one-hot observations keep their fixed codes. A dimension that does
        not vary keeps a scale of 1, so nothing is divided by zero.

        Args:
            obs: observations, ``(n, *obs_shape)``, or a mapping of such.
            acts: actions, ``(n, *act_shape)``.
            rows: numbers of those that count, all if None.

        Returns:
            Itself.
        """
        device = self.obs_mean.device

        def numbers(part: slice) -> Any:
            return part if rows is None else rows[part]

        def obs_rows(part: slice) -> th.Tensor:
            some = _rows(obs, numbers(part))
            return flatten_obs(to_tensor_obs(some, th.device("cpu")), self.observation_space)

        def act_rows(part: slice) -> th.Tensor:
            return to_tensor(acts[numbers(part)]).reshape(-1, self.act_dim)

        keep = ~_is_one_hot(self.observation_space)
        n = len(acts) if rows is None else len(rows)
        self.obs_mean, self.obs_std = _mean_and_std(obs_rows, n, keep, device)
        if isinstance(self.action_space, spaces.Box):
            keep = np.ones(self.act_dim, dtype=bool)
            self.act_mean, self.act_std = _mean_and_std(act_rows, n, keep, device)
        return self

    def encode_obs(self, obs: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        """Returns codes of observations, standardised and limited to ±10; ``(batch, obs_dim)``."""
        flat = flatten_obs(obs, self.observation_space)
        return ((flat - self.obs_mean) / self.obs_std).clamp(-CODE_LIMIT, CODE_LIMIT)

    def conform_acts(self, acts: th.Tensor) -> th.Tensor:
        """Returns demonstrated actions in the shape and type that SB3's distributions expect.

        Files hold discrete actions as columns or floats, and spaces sample bits as int8.

        Args:
            acts: actions of the space, ``(batch, ...)``.

        Returns:
            Floats of shape ``(batch, act_dim)`` for Box actions and bits, where floats keep their
            precision; integers of shape ``(batch, *action_space.shape)`` for discrete and
            multi-discrete actions.
        """
        if self._one_hot_sizes:
            return acts.reshape(len(acts), *(self.action_space.shape or ())).long()
        acts = acts.reshape(len(acts), self.act_dim)
        is_float = isinstance(self.action_space, spaces.Box) and acts.is_floating_point()
        return acts if is_float else acts.float()

    def encode_acts(self, acts: th.Tensor) -> th.Tensor:
        """Returns codes of actions, differentiable for continuous and relaxed actions.

        Args:
            acts: actions of the space, or the output of :func:`relaxed_action`.

        Returns:
            Codes of shape ``(batch, act_dim)``: standardised and limited to ±10 for Box, with the
            gradient of the unlimited ones; one-hot or probabilities mapped to [-1, 1] otherwise.
        """
        if isinstance(self.action_space, spaces.Box):
            flat = acts.reshape(len(acts), -1).float()
            codes = (flat - self.act_mean) / self.act_std
            limited = codes.clamp(-CODE_LIMIT, CODE_LIMIT)
            if not codes.requires_grad:
                return limited
            # Else nothing would pull a policy back whose actions are far off.
            return limited.detach() + (codes - codes.detach())
        is_relaxed = acts.is_floating_point() and acts.shape[1:] == (self.act_dim,)
        if self._one_hot_sizes and not is_relaxed:
            columns = acts.reshape(len(acts), -1).long().unbind(dim=-1)
            sizes = self._one_hot_sizes
            acts = th.cat([F.one_hot(c, n) for c, n in zip(columns, sizes, strict=True)], dim=-1)
        return 2 * acts.reshape(len(acts), -1).float() - 1

    def decode_obs(self, codes: th.Tensor) -> th.Tensor:
        """Inverts :meth:`encode_obs` up to the flattening; ``(batch, obs_dim)``."""
        return codes * self.obs_std + self.obs_mean

    def decode_acts(self, codes: th.Tensor) -> th.Tensor:
        """Returns the actions that codes stand for: the nearest category for discrete ones."""
        if isinstance(self.action_space, spaces.Box):
            flat = codes * self.act_std + self.act_mean
            return flat.reshape(-1, *self.action_space.shape)
        if not self._one_hot_sizes:
            return (codes > 0).long().reshape(-1, *(self.action_space.shape or ()))
        chosen = [part.argmax(dim=-1) for part in codes.split(self._one_hot_sizes, dim=-1)]
        if isinstance(self.action_space, spaces.Discrete):
            return chosen[0]
        return th.stack(chosen, dim=-1)


class Pairs:
    """Pairs of demonstrations, gathered and coded batch by batch.

    Coding all pairs at once would double the memory that demonstrations take.

    Args:
        encoder: its device is that of the codes.
        obs: observations, ``(n, *obs_shape)``, or a mapping of such.
        acts: actions, ``(n, *act_shape)``.
    """

    def __init__(
        self, encoder: PairEncoder, obs: Observations, acts: th.Tensor | np.ndarray
    ) -> None:
        self._encoder = encoder
        self._obs = to_tensor_obs(obs, th.device("cpu"))
        self._acts = to_tensor(acts)

    def gather(self, rows: th.Tensor) -> tuple[th.Tensor | dict[str, th.Tensor], th.Tensor]:
        """Returns the observations and actions of some rows on the codes' device."""
        rows, device = rows.to(self._acts.device), self._encoder.obs_mean.device
        if isinstance(self._obs, dict):
            obs: Any = {key: values[rows] for key, values in self._obs.items()}
        else:
            obs = self._obs[rows]
        return to_tensor_obs(obs, device), self._acts[rows].to(device)

    def codes(self, rows: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Returns the codes of the observations and actions of some rows."""
        obs, acts = self.gather(rows)
        return self._encoder.encode_obs(obs), self._encoder.encode_acts(acts)


def _rows(data: Observations, rows: slice | np.ndarray) -> Any:
    if isinstance(data, types.DictObs | Mapping):
        return {key: value[rows] for key, value in data.items()}
    return data[rows]


def _is_one_hot(space: gym.Space) -> np.ndarray:
    """Returns a mask over the flattened observation: binary codes and pixels are True."""
    if isinstance(space, spaces.Dict):
        return np.concatenate([_is_one_hot(part) for part in space.spaces.values()])
    is_scaled = isinstance(space, spaces.Box) and not preprocessing.is_image_space(space)
    return np.full(preprocessing.get_flattened_obs_dim(space), not is_scaled)


def _mean_and_std(
    read: Callable[[slice], th.Tensor], n: int, keep: np.ndarray, device: th.device
) -> tuple[th.Tensor, th.Tensor]:
    """Computes mean and standard deviation over ``n`` rows, read in chunks to bound memory.

    Where ``keep`` is False, and where a dimension is constant, the scale is 1 (and for the
    former the mean 0).
    """
    step = max(1, _CHUNK_VALUES // len(keep))

    def chunks() -> Iterator[th.Tensor]:
        for start in range(0, n, step):
            yield read(slice(start, start + step)).float().double()

    total, squares = th.zeros(2, len(keep), dtype=th.float64)
    for chunk in chunks():
        total += chunk.sum(dim=0)
    mean = total / n
    # Two passes: the one-pass formula cancels badly for large means (positions in metres, say).
    for chunk in chunks():
        squares += (chunk - mean).square_().sum(dim=0)
    std = (squares / n).sqrt()
    scaled = th.as_tensor(keep)
    mean = th.where(scaled, mean, 0.0)
    std = th.where(scaled & (std > _MIN_STD * (1 + mean.abs())), std, 1.0)
    return mean.float().to(device), std.float().to(device)
