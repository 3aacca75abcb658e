"""Small spaces, demonstrations, environments, critics and policies that the tests share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from hypothesis import strategies as st
from imitation.data.types import DictObs, Transitions, TransitionsMinimal
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy

CRITIC_KWARGS: dict[str, Any] = {
    "width": 16,
    "depth": 1,
    "n_steps": 20,
    "num_train_timesteps": 20,
    "learning_rate": 1e-2,
    "ema_decay": 0.0,
}

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
MATRIX = spaces.Box(-5, 5, (2, 2), np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
MAPPING = spaces.Dict(
    {
        "vector": spaces.Box(-np.inf, np.inf, (2,), np.float32),
        "choice": spaces.Discrete(3),
        "bits": spaces.MultiBinary(2),
    }
)
CONTINUOUS = spaces.Box(-1, 1, (2,), np.float32)

OBSERVATION_SPACES = (
    VECTOR,
    MATRIX,
    spaces.Discrete(4),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    MAPPING,
)
ACTION_SPACES = (
    spaces.Box(-1, 1, (1,), np.float32),
    CONTINUOUS,
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
)


class Payload:
    """Creates a file when it is unpickled or decoded: the usual shape of an attack."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.trace,)


def space_id(value: Any) -> str | None:
    """Names spaces in the ids of parametrised tests."""
    return f"{type(value).__name__}{value.shape or ''}" if isinstance(value, gym.Space) else None


def action_spaces() -> st.SearchStrategy[gym.Space]:
    """Every kind of action space that DiffusionBC takes."""
    sizes = st.integers(1, 4)
    return st.one_of(
        st.builds(lambda n: spaces.Box(-1, 1, (n,), np.float32), sizes),
        st.builds(lambda n: spaces.Discrete(n + 1), sizes),
        st.builds(
            spaces.MultiDiscrete, st.lists(st.integers(2, 4), min_size=1, max_size=3).map(np.array)
        ),
        st.builds(spaces.MultiBinary, sizes),
    )


def observation_spaces() -> st.SearchStrategy[gym.Space]:
    """Observation spaces without images, which need a network that is not tiny."""
    keys = st.sampled_from(["b", "a", "longer", "10", "2"])
    mappings = st.dictionaries(keys, action_spaces(), min_size=1, max_size=3).map(spaces.Dict)
    return st.one_of(action_spaces(), st.just(MATRIX), mappings)


def sample(space: gym.Space, n: int, rng: np.random.Generator) -> np.ndarray | DictObs:
    """``n`` random elements of a space, inside the unit interval where it is continuous."""
    if isinstance(space, spaces.Dict):
        return DictObs({key: sample(part, n, rng) for key, part in space.spaces.items()})
    if isinstance(space, spaces.Discrete):
        return rng.integers(int(space.n), size=n)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(n, *space.shape))
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=(n, *space.shape)).astype(np.int8)
    if space.dtype == np.uint8:
        return rng.integers(256, size=(n, *space.shape)).astype(np.uint8)
    return rng.uniform(-1, 1, size=(n, *space.shape)).astype(np.float32)


def transitions(
    observation_space: gym.Space = VECTOR,
    action_space: gym.Space = CONTINUOUS,
    n: int = 64,
    seed: int = 0,
) -> Transitions:
    """Random demonstrations."""
    rng = np.random.default_rng(seed)
    obs = sample(observation_space, n, rng)
    acts = sample(action_space, n, rng)
    if isinstance(action_space, spaces.Box) and isinstance(obs, np.ndarray):
        # Something to learn: actions follow the first entry of the observation.
        first = obs.reshape(n, -1)[:, 0].astype(np.float32)
        acts = (0.8 * np.tanh(first.reshape(n, *[1] * (acts.ndim - 1))) + 0.2 * acts) * 0.9
        acts = acts.astype(np.float32)
    if isinstance(action_space, spaces.MultiBinary):
        # As policies predict them, and as imitation's BC needs them.
        acts = acts.astype(np.float32)
    return Transitions(
        obs=obs, acts=acts, next_obs=obs, dones=np.zeros(n, dtype=bool), infos=np.full(n, {})
    )


def on_disk(array: np.ndarray, folder: Path, name: str = "array") -> np.ndarray:
    """The same array, memory-mapped from a file."""
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)


def pairs_on_disk(data: Transitions, folder: Path) -> TransitionsMinimal:
    """The observations and actions of demonstrations, memory-mapped from files."""
    if isinstance(data.obs, DictObs):
        obs = DictObs({k: on_disk(v, folder, f"obs_{k}") for k, v in data.obs.items()})
    else:
        obs = on_disk(data.obs, folder, "obs")
    return TransitionsMinimal(obs=obs, acts=on_disk(data.acts, folder, "acts"), infos=data.infos)


def batches_of(data: Transitions, batch_size: int) -> list[dict[str, Any]]:
    """The demonstrations in their order, as batches; an incomplete last one is left out."""
    return [
        {"obs": data.obs[i : i + batch_size], "acts": data.acts[i : i + batch_size]}
        for i in range(0, len(data) - batch_size + 1, batch_size)
    ]


def critic(
    observation_space: gym.Space = VECTOR,
    action_space: gym.Space = CONTINUOUS,
    *,
    data: Transitions | None = None,
    **kwargs: Any,
) -> DiffusionCritic:
    """A fitted critic, the same at every call."""
    made = DiffusionCritic(
        observation_space, action_space, **{"seed": 0, "device": "cpu", **CRITIC_KWARGS, **kwargs}
    )
    data = transitions(observation_space, action_space) if data is None else data
    made.fit(data, progress_bar=False)
    return made


def policy(
    observation_space: gym.Space = VECTOR,
    action_space: gym.Space = CONTINUOUS,
    *,
    cls: type[ActorCriticPolicy] = StandardizedActorPolicy,
    seed: int = 0,
    **kwargs: Any,
) -> ActorCriticPolicy:
    """A policy whose actions differ visibly between observations."""
    with th.random.fork_rng(devices=[]):
        th.manual_seed(seed)
        made = cls(observation_space, action_space, lambda _: 1e-3, **{"net_arch": [8], **kwargs})
        with th.no_grad():
            # SB3 starts with an almost constant action.
            for parameter in made.action_net.parameters():
                parameter.add_(0.5 * th.randn_like(parameter))
    return made


def trainer(
    observation_space: gym.Space = VECTOR,
    action_space: gym.Space = CONTINUOUS,
    *,
    cls: type[DiffusionBC] = DiffusionBC,
    **kwargs: Any,
) -> DiffusionBC:
    """A quiet trainer of a small policy on random demonstrations, with a small critic of its own.

    L_DM is on, beside the likelihood. ``policy=None`` asks for the default policy,
    ``demonstrations=None`` for none.
    """
    defaults: dict[str, Any] = {"batch_size": 16, "verbose": 0, "device": "cpu", "bc_loss": "nll"}
    if kwargs.get("env") is None:
        defaults |= {"observation_space": observation_space, "action_space": action_space}
    if "policy" not in kwargs:
        defaults["policy"] = policy(observation_space, action_space)
    if "demonstrations" not in kwargs:
        defaults["demonstrations"] = transitions(observation_space, action_space)
    if kwargs.get("critic") is None and "critic_kwargs" not in kwargs:
        defaults["critic_kwargs"] = CRITIC_KWARGS
    return cls(**{**defaults, **kwargs})


def train(algorithm: DiffusionBC, **kwargs: Any) -> None:
    """Trains without a progress bar."""
    algorithm.train(**{"progress_bar": False, **kwargs})


def weights(module: th.nn.Module) -> th.Tensor:
    """All parameters and buffers in one vector, a copy."""
    return th.cat([value.detach().double().reshape(-1) for value in module.state_dict().values()])


def every_batch(n: int, action: Callable[[], object]) -> Callable[[], None]:
    """A callback that acts once, after ``n`` updates."""
    counter = itertools.count(1)

    def on_batch_end() -> None:
        if next(counter) == n:
            action()

    return on_batch_end


class Endless:
    """An iterable of batches without an end, which counts the batches that it handed out."""

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches
        self.n_read = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in itertools.cycle(self.batches):
            self.n_read += 1
            yield batch


class LineEnv(gym.Env):
    """A point on a line: actions move it, the episode is a success if it ends right of 0.

    The seed of the reset fixes the start, but for an offset, and the number of steps.
    """

    observation_space = spaces.Box(-100, 100, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, reports_success: bool = True, offset: float = 0.0) -> None:
        self.reports_success = reports_success
        self.offset = offset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-3, 3) + self.offset
        self.steps_left = int(self.np_random.integers(2, 7))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, dtype=np.float32))
        self.position += float(np.asarray(action).item())
        self.steps_left -= 1
        info = {"is_success": self.position > 0} if self.reports_success else {}
        return self._observation(), self.position, self.steps_left == 0, False, info

    def _observation(self) -> np.ndarray:
        return np.array([self.position, self.steps_left], dtype=np.float32)


class AnyEnv(gym.Env):
    """Random observations of a space, a reward of 1 at each of three steps."""

    def __init__(self, observation_space: gym.Space, action_space: gym.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == 3, False, {}


def near_the_middle(n: int, seed: int = 0, length: int = 5) -> Transitions:
    """Pairs of the line near its start, whose actions are the positions' opposites."""
    rng = np.random.default_rng(seed)
    obs = rng.uniform([-0.8, 2], [0.8, 6], (n, 2)).astype(np.float32)
    dones = np.arange(n) % length == length - 1
    return Transitions(obs=obs, acts=-obs[:, :1], next_obs=obs, dones=dones, infos=np.full(n, {}))


def critic_of_the_middle() -> DiffusionCritic:
    """A critic that knows them."""
    spaces_, data = (LineEnv.observation_space, LineEnv.action_space), near_the_middle(400)
    return critic(*spaces_, data=data, width=32, n_steps=200, num_train_timesteps=1000)


LINE_ENV_ID = "sb3_diffbc_tests/Line-v0"
if LINE_ENV_ID not in gym.registry:
    gym.register(LINE_ENV_ID, entry_point=LineEnv)


def assert_replays_to_the_bit(
    env: gym.Env,
    first_obs: NDArray[Any],
    arrays: dict[str, NDArray[Any]],
    rows: slice,
    final_obs: NDArray[Any],
) -> None:
    """Plays an episode's actions in an environment whose reset just gave ``first_obs``."""
    expected = np.concatenate([arrays["obs"][rows], final_obs[None]])
    np.testing.assert_array_equal(np.float32(first_obs), expected[0])
    for act, following in zip(arrays["acts"][rows], expected[1:], strict=True):
        obs, _, terminated, truncated, _ = env.step(act)
        np.testing.assert_array_equal(np.float32(obs), following)
    assert terminated == arrays["dones"][rows][-1]
    assert terminated or truncated


def recipe_of(n_updates: int) -> type[DiffusionBC]:
    """A trainer whose default training has so many updates."""
    return type("ShortRecipe", (DiffusionBC,), {"DEFAULT_N_BATCHES": n_updates})
