"""imitation's and SB3's own files open under torch's safe unpickler, and attacks do not."""

import collections
import functools
import io
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from imitation.algorithms import bc
from imitation.data import types
from imitation.policies import base as imitation_policies
from imitation.util.util import save_policy
from numpy.random import _pickle as numpy_pickle
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    BasePolicy,
    MultiInputActorCriticPolicy,
)
from torch import nn

from sb3_diffbc.checkpoints import allow_imitation_checkpoints, trust

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.6", reason="torch.load does not guard against pickles before 2.6"
)
multiarray = (np._core if hasattr(np, "_core") else np.core).multiarray

VECTOR = spaces.Box(np.array([-1, -2], np.float32), np.array([1, np.inf], np.float32))
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
DICT = spaces.Dict({"v": VECTOR, "d": spaces.Discrete(3), "b": spaces.MultiBinary([2, 2])})
ACTIONS = (
    spaces.Box(-1, 1, (2,), np.float32),
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
)


@pytest.fixture(autouse=True)
def _allowed() -> Iterator[None]:
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    allow_imitation_checkpoints()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def build(
    cls: type[ActorCriticPolicy], obs: gym.Space[Any], acts: gym.Space[Any], **kwargs: Any
) -> ActorCriticPolicy:
    return cls(obs, acts, lambda _: 1e-3, **kwargs)


def use(policy: ActorCriticPolicy) -> None:
    """Leave a distribution behind in the policy, as training does."""
    obs = policy.obs_to_tensor(policy.observation_space.sample())[0]
    policy.evaluate_actions(obs, policy(obs)[0])


def assert_same_policy(loaded: Any, policy: ActorCriticPolicy) -> None:
    assert type(loaded) is type(policy)
    for space, expected in (
        (loaded.observation_space, policy.observation_space),
        (loaded.action_space, policy.action_space),
    ):
        assert type(space) is type(expected)
        assert space == expected
        assert repr(space) == repr(expected)
    for policy_ in (policy, loaded):
        policy_.set_training_mode(False)
    obs = policy.observation_space.sample()
    expected_action = policy.predict(obs, deterministic=True)[0]
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected_action)


# --- what should open ---------------------------------------------------------------------------


@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("acts", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize(
    ("cls", "obs", "kwargs"),
    [
        (ActorCriticPolicy, VECTOR, {"activation_fn": nn.ReLU}),
        (imitation_policies.FeedForward32Policy, VECTOR, {}),
        (
            ActorCriticPolicy,
            VECTOR,
            {"features_extractor_class": imitation_policies.NormalizeFeaturesExtractor},
        ),
        (MultiInputActorCriticPolicy, DICT, {}),
        (ActorCriticCnnPolicy, IMAGE, {"features_extractor_kwargs": {"features_dim": 4}}),
    ],
    ids=["mlp", "ff32", "normalised", "dict", "cnn"],
)
def test_policies_saved_by_imitation_open(
    tmp_path: Path,
    cls: type[ActorCriticPolicy],
    obs: gym.Space[Any],
    kwargs: dict[str, Any],
    acts: gym.Space[Any],
    seeded: bool,
) -> None:
    policy = build(cls, obs, acts, **kwargs)
    for space in (policy.observation_space, policy.action_space):
        if seeded:
            space.seed(3)
        else:
            space._np_random = None
    use(policy)
    save_policy(policy, tmp_path / "policy.pt")
    loaded = bc.reconstruct_policy(str(tmp_path / "policy.pt"), device="cpu")
    assert_same_policy(loaded, policy)
    if seeded:
        for _ in range(3):
            np.testing.assert_array_equal(loaded.action_space.sample(), acts.sample())


def test_a_policy_trained_by_bc_opens_and_trains_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    acts = rng.integers(3, size=32)
    obs = rng.normal(size=(32, 2)).astype(np.float32)
    demonstrations = types.Transitions(
        obs=obs, acts=acts, infos=np.array([{}] * 32), next_obs=obs, dones=np.zeros(32, bool)
    )
    trainer = bc.BC(
        observation_space=VECTOR,
        action_space=spaces.Discrete(3),
        demonstrations=demonstrations,
        rng=rng,
        device="cpu",
    )
    trainer.train(n_batches=3, progress_bar=False)
    save_policy(trainer.policy, tmp_path / "policy.pt")
    loaded = bc.reconstruct_policy(str(tmp_path / "policy.pt"), device="cpu")
    assert_same_policy(loaded, trainer.policy)
    # imitation sets a rate that overflows, so that nobody steps this optimiser by mistake.
    loaded.optimizer.param_groups[0]["lr"] = 1e-3
    loaded.evaluate_actions(torch.zeros(1, 2), torch.zeros(1))[1].sum().backward()
    loaded.optimizer.step()


@pytest.mark.parametrize(
    ("acts", "use_sde"), [*((acts, False) for acts in ACTIONS), (ACTIONS[0], True)], ids=str
)
def test_policies_saved_by_sb3_open(tmp_path: Path, acts: gym.Space[Any], use_sde: bool) -> None:
    policy = build(ActorCriticPolicy, VECTOR, acts, use_sde=use_sde)
    policy.save(tmp_path / "policy.zip")
    assert_same_policy(ActorCriticPolicy.load(tmp_path / "policy.zip", device="cpu"), policy)
    torch.load(tmp_path / "policy.zip", weights_only=True)


class OwnPolicy(ActorCriticPolicy):
    """A class that only its author can vouch for."""


def test_own_classes_open_once_they_are_listed(tmp_path: Path) -> None:
    policy = build(OwnPolicy, VECTOR, ACTIONS[0])
    save_policy(policy, tmp_path / "policy.pt")
    with pytest.raises(pickle.UnpicklingError, match="OwnPolicy"):
        bc.reconstruct_policy(str(tmp_path / "policy.pt"), device="cpu")
    allow_imitation_checkpoints(OwnPolicy)
    assert_same_policy(bc.reconstruct_policy(str(tmp_path / "policy.pt"), device="cpu"), policy)


class Calls:
    """Pickles as a call of ``function``, with the state to set afterwards."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def opened(obj: Any) -> Any:
    """What the safe unpickler makes of an object."""
    stream = io.BytesIO()
    torch.save(obj, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def with_state(cls: type, **attributes: Any) -> Any:
    """An instance of a space class that has these attributes and no others."""
    space = cls.__new__(cls)
    space.__dict__.update(attributes)
    return space


@pytest.mark.parametrize(
    "bit_generator", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64]
)
def test_a_space_with_another_generator_opens(bit_generator: Any) -> None:
    space = spaces.Discrete(1000, seed=np.random.Generator(bit_generator(5)))
    loaded = opened(space)
    assert [loaded.sample() for _ in range(9)] == [space.sample() for _ in range(9)]


def test_files_from_before_numpy_2_open() -> None:
    rng = np.random.default_rng(4)
    # Numpy 1 names the bit generator, and gives its state to the generator.
    old = Calls(
        numpy_pickle.__dict__["__generator_ctor"],
        "PCG64",
        numpy_pickle.__dict__["__bit_generator_ctor"],
        state=rng.bit_generator.state,
    )
    space = spaces.Box(-1, 1, (2,), np.float32)
    stream = io.BytesIO()
    torch.save(with_state(spaces.Box, **{**space.__dict__, "_np_random": old}), stream)
    renamed = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(b"cnumpy._core.multi", b"cnumpy.core.multi"))
    renamed.seek(0)
    loaded = torch.load(renamed, weights_only=True)
    assert loaded == space
    space._np_random = rng
    np.testing.assert_array_equal(loaded.sample(), space.sample())


@pytest.mark.parametrize("space", [*ACTIONS, DICT, spaces.Tuple(ACTIONS)], ids=repr)
def test_spaces_open_as_real_spaces_with_plain_arrays(space: gym.Space[Any]) -> None:
    loaded = opened(space)
    assert type(loaded) is type(space)
    assert loaded == space
    for value in vars(loaded).values():
        assert not isinstance(value, np.ndarray) or type(value) is np.ndarray
    assert loaded.contains(loaded.sample())


# --- what should not ----------------------------------------------------------------------------

FLOAT32 = np.dtype("float32")
PLAIN_DTYPE = Calls(np.dtype, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
EMPTY = (multiarray._reconstruct, np.ndarray, (0,), b"b")


def array(shape: Any = (1,), dtype: Any = PLAIN_DTYPE, data: Any = b"\0\0\0\0") -> Calls:
    return Calls(*EMPTY, state=(1, shape, dtype, False, data))


@pytest.mark.parametrize(
    "attack",
    [
        Calls(os.system, "touch marker"),
        Calls(Path.touch, Path("marker")),
        Calls(eval, "open('marker', 'w')"),
        Calls(functools.partial, os.system, "touch marker"),
        Calls(np.load, "marker"),
        [Path("marker")],
        with_state(spaces.Box, _np_random=Calls(np.random.RandomState, 1)),
    ],
)
def test_code_files_and_imports_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match=r"[Uu]nsupported|is blocked"):
        opened([attack])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "attack",
    [
        Calls(getattr, BasePolicy, "load"),
        Calls(getattr, BasePolicy, "__subclasses__"),
        Calls(getattr, {}, "_dummy_schedule"),
        Calls(collections.defaultdict, ActorCriticPolicy),
        Calls(collections.defaultdict, dict, {"a": {}}),
        Calls(collections.defaultdict),
        Calls(np.dtype, "O", False, True),
        Calls(np.dtype, "U8", False, True),
        Calls(np.dtype, "M8[ns]"),
        Calls(np.dtype, {"names": ["a"], "formats": ["O"]}),
        Calls(multiarray.scalar, PLAIN_DTYPE, b"\0" * 8),
        Calls(multiarray.scalar, PLAIN_DTYPE, "text"),
        Calls(multiarray.scalar, "O", b"\0" * 8),
        Calls(multiarray._reconstruct, dict, (0,), b"b"),
        Calls(np.ndarray, (1,), "O"),
        Calls(np.ndarray, (4,), "f4", bytearray(2)),
        array(shape=(2,)),
        array(shape=(-1,)),
        array(shape=(2**62, 4)),
        array(shape=[1]),
        array(dtype="O"),
        array(data=["object"]),
        Calls(*EMPTY, state=[1]),
        Calls(np.random.PCG64, 1),
        # spaces
        Calls(spaces.Box, -1, 1, (10**12,)),
        with_state(spaces.Box, low=nn.Linear(1, 1)),
        with_state(spaces.Box, sample=nn.Linear),
        with_state(spaces.Box, __setstate__=nn.Linear),
        with_state(spaces.Dict, spaces={"a": nn.Linear(1, 1)}),
        with_state(spaces.Box, _np_random=Calls(numpy_pickle.__dict__["__generator_ctor"])),
        with_state(
            spaces.Box,
            _np_random=Calls(
                numpy_pickle.__dict__["__generator_ctor"],
                "MT19937",
                state={"bit_generator": "MT19937", "state": {"key": [0] * 624, "pos": 10**9}},
            ),
        ),
        with_state(
            spaces.Box,
            _np_random=Calls(numpy_pickle.__dict__["__generator_ctor"], "PCG64", state=[1]),
        ),
    ],
)
def test_stand_ins_refuse_what_no_policy_needs(attack: Any) -> None:
    with pytest.raises(pickle.UnpicklingError, match="refused, because no saved policy needs it"):
        opened([attack])


def test_changing_a_dtype_from_a_file_changes_nothing() -> None:
    before = (FLOAT32.str, FLOAT32.names, FLOAT32.itemsize, FLOAT32.flags)
    state = (3, ">", None, ("a",), {"a": (FLOAT32, 0)}, 100, 64, 63)
    assert opened(Calls(np.dtype, "f4", False, True, state=state)) is FLOAT32
    assert (FLOAT32.str, FLOAT32.names, FLOAT32.itemsize, FLOAT32.flags) == before


def test_an_array_is_filled_once() -> None:
    filled = trust._empty_array(trust._Array, (0,), b"b")
    state = (1, (1,), FLOAT32, False, b"\0\0\0\0")
    filled.__setstate__(state)
    with pytest.raises(pickle.UnpicklingError, match="second state"):
        filled.__setstate__(state)


def test_everything_on_the_list_is_a_known_class_or_a_stand_in() -> None:
    kinds = (nn.Module, torch.optim.Optimizer, torch.distributions.Distribution, dict)
    for entry in torch.serialization.get_safe_globals():
        real, _ = entry if isinstance(entry, tuple) else (entry, None)
        stand_in = real.__module__ == trust.__name__
        dtype = isinstance(real, type) and issubclass(real, np.dtype)
        sb3 = real.__module__ == "stable_baselines3.common.distributions"
        assert stand_in or dtype or sb3 or issubclass(real, kinds), entry
        # Would run when the loaded object is thrown away, on attributes from the file.
        assert not hasattr(real, "__del__")


# --- next to others -----------------------------------------------------------------------------


def test_what_the_process_itself_lists_keeps_working() -> None:
    def reopened(obj: Any) -> Any:
        real = [getattr, collections.defaultdict, np.ndarray, np.dtype, spaces.Box]
        real += [multiarray._reconstruct, multiarray.scalar, type(np.dtype("U3")), list]
        torch.serialization.add_safe_globals([*real, spaces.Dict, spaces.Discrete])
        return opened(obj)

    obj = {"words": np.array(["a", "bcd"]), "counts": np.arange(3), "one": np.float64(2.5)}
    loaded = reopened(obj)
    for key, value in obj.items():
        np.testing.assert_array_equal(loaded[key], value)
    assert reopened(Calls(getattr, spaces.Box, "sample")) is spaces.Box.sample
    assert reopened(Calls(collections.defaultdict, list))["missing"] == []
    assert reopened(VECTOR) == VECTOR


def test_nothing_happens_on_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.serialization.clear_safe_globals()
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.5.1"))
    allow_imitation_checkpoints()
    assert torch.serialization.get_safe_globals() == []
