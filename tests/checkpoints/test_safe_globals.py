"""imitation's and SB3's own files open under torch's safe unpickler, and attacks do not."""

import collections
import contextlib
import functools
import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from imitation.algorithms import bc
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

from sb3_diffbc import StandardizedActorPolicy
from sb3_diffbc.checkpoints import allow_imitation_checkpoints, safe_globals

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
    with allow_imitation_checkpoints():
        yield


def build(
    cls: type[ActorCriticPolicy], obs: gym.Space[Any], acts: gym.Space[Any], **kwargs: Any
) -> ActorCriticPolicy:
    return cls(obs, acts, lambda _: 1e-3, **kwargs)


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


@pytest.mark.parametrize(
    ("cls", "obs", "acts", "kwargs"),
    [
        *((ActorCriticPolicy, VECTOR, acts, {"activation_fn": nn.ReLU}) for acts in ACTIONS),
        (imitation_policies.FeedForward32Policy, VECTOR, ACTIONS[0], {}),
        (
            ActorCriticPolicy,
            VECTOR,
            ACTIONS[0],
            {
                "features_extractor_class": imitation_policies.NormalizeFeaturesExtractor,
                "use_sde": True,
                "squash_output": True,
            },
        ),
        (MultiInputActorCriticPolicy, DICT, ACTIONS[1], {}),
        (
            ActorCriticCnnPolicy,
            IMAGE,
            ACTIONS[2],
            {"features_extractor_kwargs": {"features_dim": 4}},
        ),
        (StandardizedActorPolicy, VECTOR, ACTIONS[0], {}),
    ],
)
def test_policies_saved_by_imitation_open(
    tmp_path: Path,
    cls: type[ActorCriticPolicy],
    obs: gym.Space[Any],
    acts: gym.Space[Any],
    kwargs: dict[str, Any],
) -> None:
    policy = build(cls, obs, acts, **kwargs)
    policy.observation_space.seed(3)
    policy.action_space._np_random = None
    obs_tensor = policy.obs_to_tensor(policy.observation_space.sample())[0]
    # Leaves a distribution behind in the policy, as training does.
    policy.evaluate_actions(obs_tensor, policy(obs_tensor)[0])
    save_policy(policy, tmp_path / "policy.pt")
    loaded = bc.reconstruct_policy(str(tmp_path / "policy.pt"), device="cpu")
    assert_same_policy(loaded, policy)
    assert loaded.action_space.contains(loaded.action_space.sample())
    # imitation sets a rate that overflows, so that nobody steps this optimiser by mistake.
    loaded.optimizer.param_groups[0]["lr"] = 1e-3
    loaded.evaluate_actions(obs_tensor, loaded(obs_tensor)[0])[1].sum().backward()
    loaded.optimizer.step()


def test_policies_saved_by_sb3_open(tmp_path: Path) -> None:
    policy = build(ActorCriticPolicy, VECTOR, ACTIONS[0], use_sde=True)
    policy.save(tmp_path / "policy.zip")
    assert_same_policy(ActorCriticPolicy.load(tmp_path / "policy.zip", device="cpu"), policy)
    th.load(tmp_path / "policy.zip", weights_only=True)


class OwnPolicy(ActorCriticPolicy):
    """A class that only its author can vouch for."""


def test_own_classes_open_once_they_are_listed(tmp_path: Path) -> None:
    policy = build(OwnPolicy, VECTOR, ACTIONS[0])
    save_policy(policy, tmp_path / "policy.pt")
    with pytest.raises(pickle.UnpicklingError, match="OwnPolicy"):
        bc.reconstruct_policy(str(tmp_path / "policy.pt"), device="cpu")
    with allow_imitation_checkpoints(OwnPolicy):
        opened_policy = bc.reconstruct_policy(str(tmp_path / "policy.pt"), device="cpu")
    assert_same_policy(opened_policy, policy)


class Calls:
    """Pickles as a call of ``function``, with the state to set afterwards."""

    def __init__(self, function: Callable[..., Any], *args: Any, state: Any = None) -> None:
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.reduced


def opened(obj: Any) -> Any:
    """What the safe unpickler makes of an object."""
    stream = io.BytesIO()
    th.save(obj, stream)
    stream.seek(0)
    return th.load(stream, weights_only=True)


def with_state(cls: type, **attributes: Any) -> Any:
    """An instance of a space class that has these attributes and no others."""
    space = cls.__new__(cls)
    space.__dict__.update(attributes)
    return space


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
    th.save(with_state(spaces.Box, **{**space.__dict__, "_np_random": old}), stream)
    renamed = io.BytesIO()
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(renamed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, data.replace(b"cnumpy._core.multi", b"cnumpy.core.multi"))
    renamed.seek(0)
    assert th.load(renamed, weights_only=True) == space


@pytest.mark.parametrize("space", [DICT, spaces.Tuple(ACTIONS)], ids=repr)
def test_spaces_open_as_real_spaces_with_plain_arrays(space: gym.Space[Any]) -> None:
    loaded = opened(space)
    assert type(loaded) is type(space)
    assert loaded == space
    for value in vars(loaded).values():
        assert not isinstance(value, np.ndarray) or type(value) is np.ndarray
    assert loaded.contains(loaded.sample())


FLOAT32 = np.dtype("float32")
PLAIN_DTYPE = Calls(np.dtype, "f4", False, True, state=(3, "<", None, None, None, -1, -1, 0))
EMPTY = (multiarray._reconstruct, np.ndarray, (0,), b"b")


def array(shape: Any = (1,), dtype: Any = PLAIN_DTYPE, data: Any = b"\0\0\0\0") -> Calls:
    return Calls(*EMPTY, state=(1, shape, dtype, False, data))


@pytest.mark.parametrize(
    "attack",
    [
        Calls(os.system, "touch marker"),
        Calls(functools.partial, os.system, "touch marker"),
        Calls(np.load, "marker"),
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
        Calls(getattr, {}, "_dummy_schedule"),
        Calls(collections.defaultdict, ActorCriticPolicy),
        Calls(collections.defaultdict, dict, {"a": {}}),
        Calls(collections.defaultdict),
        Calls(np.dtype, "O", False, True),
        Calls(np.dtype, {"names": ["a"], "formats": ["O"]}),
        Calls(multiarray.scalar, PLAIN_DTYPE, b"\0" * 8),
        Calls(multiarray.scalar, "O", b"\0" * 8),
        Calls(multiarray._reconstruct, dict, (0,), b"b"),
        Calls(np.ndarray, (1,), "O"),
        array(shape=(-1,)),
        array(shape=(2**62, 4)),
        array(shape=[1]),
        array(dtype="O"),
        array(data=["object"]),
        Calls(*EMPTY, state=[1]),
        Calls(spaces.Box, -1, 1, (10**12,)),
        with_state(spaces.Box, low=nn.Linear(1, 1)),
        with_state(spaces.Box, sample=nn.Linear),
        with_state(spaces.Dict, spaces={"a": nn.Linear(1, 1)}),
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
    filled = safe_globals._empty_array(safe_globals._Array, (0,), b"b")
    state = (1, (1,), FLOAT32, False, b"\0\0\0\0")
    filled.__setstate__(state)
    with pytest.raises(pickle.UnpicklingError, match="second state"):
        filled.__setstate__(state)


def test_everything_on_the_list_is_a_known_class_or_a_stand_in() -> None:
    kinds = (nn.Module, th.optim.Optimizer, th.distributions.Distribution, dict)
    for entry in th.serialization.get_safe_globals():
        real, _ = entry if isinstance(entry, tuple) else (entry, None)
        stand_in = real.__module__ == safe_globals.__name__
        dtype = isinstance(real, type) and issubclass(real, np.dtype)
        sb3 = real.__module__ == "stable_baselines3.common.distributions"
        assert stand_in or dtype or sb3 or issubclass(real, kinds), entry
        # Would run when the loaded object is thrown away, on attributes from the file.
        assert not hasattr(real, "__del__")


def test_a_generator_from_a_file_is_not_built() -> None:
    attack = Calls(
        numpy_pickle.__dict__["__generator_ctor"],
        "MT19937",
        state={"bit_generator": "MT19937", "state": {"key": [0] * 624, "pos": 10**9}},
    )
    assert type(opened(attack)) is safe_globals._Generator
    assert opened(with_state(spaces.Box, _np_random=attack))._np_random is None


def test_the_list_of_the_process_is_back_afterwards() -> None:
    th.serialization.add_safe_globals([OwnPolicy])
    before = th.serialization.get_safe_globals()
    with contextlib.suppress(KeyError), allow_imitation_checkpoints():
        assert OwnPolicy not in th.serialization.get_safe_globals()
        raise KeyError
    assert set(th.serialization.get_safe_globals()) == set(before)


def test_imports_leave_the_list_of_the_process_alone_and_own_policies_open(tmp_path: Path) -> None:
    save_policy(build(StandardizedActorPolicy, VECTOR, ACTIONS[0]), tmp_path / "policy.pt")
    program = """
import sys
import torch
before = torch.serialization.get_safe_globals()
from imitation.algorithms import bc
from sb3_diffbc import DiffusionBC, allow_imitation_checkpoints
assert torch.serialization.get_safe_globals() == before
with allow_imitation_checkpoints():
    bc.reconstruct_policy(sys.argv[1], device="cpu")
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "policy.pt")], check=True)
