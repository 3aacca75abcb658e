"""Let imitation's and SB3's own loading functions work with torch's safe unpickler.

Since torch 2.6, ``torch.load`` builds only what is on an allow list, and so refuses the pickled
policies that `imitation.util.util.save_policy` and SB3's ``policy.save`` write.
`allow_imitation_checkpoints` puts on that list what such files of BC policies need. The unpickler
calls what is on the list with any arguments that a file gives, so every entry must be harmless
with all of them:

- **modules, extractors, policies, distributions, optimisers** are listed as they are. Their
  constructors and ``__setstate__`` build tensors and store attributes; whatever else they call
  comes out of the file too, and hence from the list.
- **gymnasium's spaces, numpy's arrays and generators, ``getattr`` and ``defaultdict``** are not
  harmless: with chosen arguments numpy reads foreign memory, and ``getattr`` reaches any function.
  Their names lead to the stand-ins below, which do the one thing that a policy needs and refuse
  the rest.

Two kinds of file stay closed. One is a pickled policy whose own optimiser has made steps, as PPO's
has but not BC's: newer torch releases refuse to fill the ``defaultdict`` in it. The other is
imitation's pickled DAgger trainer (``reconstruct_trainer``): the trainer would afterwards write to
the directory that the file names, and load demonstrations from there, pickles among them. The
policies that a DAgger trainer saves next to it do open.
"""

import collections
import math
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import distributions, torch_layers
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_diffbc.checkpoints.errors import CheckpointError
from sb3_diffbc.checkpoints.policies import (
    ACTIVATIONS,
    FEATURES_EXTRACTORS,
    NORMALISATIONS,
    OPTIMIZERS,
    POLICIES,
)
from sb3_diffbc.checkpoints.rng import numpy_rng_from_json, rng_state_to_json

_INERT_CLASSES: tuple[type, ...] = (
    *POLICIES,
    BasePolicy,
    *FEATURES_EXTRACTORS,
    torch_layers.MlpExtractor,
    *ACTIVATIONS,
    *NORMALISATIONS,
    *OPTIMIZERS,
    nn.Sequential,
    nn.ModuleDict,
    nn.ModuleList,
    nn.Linear,
    nn.Flatten,
    nn.Conv2d,
    nn.Dropout,
    distributions.DiagGaussianDistribution,
    distributions.SquashedDiagGaussianDistribution,
    distributions.StateDependentNoiseDistribution,
    distributions.CategoricalDistribution,
    distributions.MultiCategoricalDistribution,
    distributions.BernoulliDistribution,
    distributions.TanhBijector,
    torch.distributions.Normal,
    torch.distributions.Categorical,
    torch.distributions.Bernoulli,
    dict,
)


def allow_imitation_checkpoints(*classes: type) -> None:
    """Make torch's safe unpickler accept the policies that imitation and SB3 save.

    Afterwards these work with torch 2.6 and newer for policies of imitation's and SB3's
    actor-critic classes: ``imitation.algorithms.bc.reconstruct_policy``, and in SB3 2.2
    ``ActorCriticPolicy.load``. The list belongs to the process: it holds for every
    ``torch.load(..., weights_only=True)`` in it. On older torch this does nothing, because
    there those functions load anything.

    Args:
        classes: more classes to accept, typically of own policies and their modules. Anybody's
            file may then call them with any arguments.
    """
    # Torch 2.4 and 2.5 have a list as well, but neither the default nor named entries.
    if torch.__version__ >= "2.6":
        torch.serialization.add_safe_globals([*_INERT_CLASSES, *classes, *_stand_ins()])


def _stand_ins() -> list[Any]:
    """Pairs of an object and the global name under which a file asks for it."""
    pairs: list[Any] = [
        (_static_attribute, "builtins.getattr"),
        (_dict_of_dicts, "collections.defaultdict"),
        (_Array, "numpy.ndarray"),
        (_plain_dtype, "numpy.dtype"),
        (_RandomState, "numpy.random._pickle.__bit_generator_ctor"),
        (_RandomState, "numpy.random._pickle.__generator_ctor"),
        (_SeedSequence, "numpy.random.bit_generator.SeedSequence"),
        (_SeedSequence, "numpy.random.bit_generator.__pyx_unpickle_SeedSequence"),
    ]
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        pairs.append((_empty_array, f"{core}.multiarray._reconstruct"))
        pairs.append((_plain_scalar, f"{core}.multiarray.scalar"))
    # The unpickler sets a dtype's state, which for these singletons has no effect.
    pairs += [type(dtype) for dtype in _DTYPES.values()]
    # Only the name of a bit generator's class matters: its state says which one it is.
    modules = {"PCG64": "_pcg64", "PCG64DXSM": "_pcg64", "MT19937": "_mt19937"}
    modules |= {"Philox": "_philox", "SFC64": "_sfc64"}
    pairs += [(_BitGeneratorName, f"numpy.random.{m}.{name}") for name, m in modules.items()]
    pairs += [(cls, f"{real.__module__}.{real.__qualname__}") for real, cls in _SPACES.items()]
    return pairs


def _vouched_for(real: Any) -> bool:
    """Whether the process's owner has put the real thing on the list.

    Then it works for all files, as it would without this module, whichever of the two entries
    for the same name the unpickler happens to find.
    """
    return real in torch.serialization.get_safe_globals()


def _refuse(what: str) -> UnpicklingError:
    return UnpicklingError(f"refused, because no saved policy needs it: {what}")


# --- builtins -----------------------------------------------------------------------------------


def _static_attribute(owner: Any, name: Any) -> Any:
    """Stands in for ``getattr``: SB3's ``policy.save`` refers to one static method through it."""
    if _vouched_for(getattr):
        return getattr(owner, name)
    if isinstance(owner, type) and issubclass(owner, BasePolicy) and name == "_dummy_schedule":
        return BasePolicy._dummy_schedule
    raise _refuse(f"attribute {name!r}")


def _dict_of_dicts(factory: Any = None, *rest: Any) -> Any:
    """Stands in for ``defaultdict``: an optimiser without state holds an empty one."""
    if _vouched_for(collections.defaultdict):
        return collections.defaultdict(factory, *rest)
    if factory is dict and not rest:
        return collections.defaultdict(dict)
    raise _refuse("a defaultdict of something other than dicts")


# --- numpy arrays -------------------------------------------------------------------------------

_multiarray: Any = (np._core if hasattr(np, "_core") else np.core).multiarray
_DTYPES = {
    code: np.dtype(code)
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}


def _plain_dtype(code: Any, *flags: Any) -> Any:
    """Stands in for ``numpy.dtype``: numbers only, and only the shared instances.

    A file can take the flags off a fresh object dtype and have numpy follow pointers from the
    file. The shared instances ignore such changes.
    """
    if _vouched_for(np.dtype):
        return np.dtype(code, *flags)
    if isinstance(code, str) and code in _DTYPES:
        return _DTYPES[code]
    raise _refuse(f"numpy dtype {code!r}")


def _is_plain(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and _DTYPES.get(dtype.str[1:]) == dtype


def _plain_scalar(dtype: Any, data: Any) -> Any:
    """Stands in for numpy's scalar constructor, which follows pointers from the file too."""
    if _vouched_for(_multiarray.scalar):
        return _multiarray.scalar(dtype, data)
    if not _is_plain(dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise _refuse("a numpy scalar that is not one number")
    return np.frombuffer(data, dtype=dtype)[0]


class _Array(np.ndarray[Any, Any]):
    """Stands in for ``numpy.ndarray``: filled once, with numbers of the size it declares."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        raise _refuse("a direct call of numpy.ndarray")

    def __setstate__(self, state: Any) -> None:
        if not _vouched_for(np.ndarray):
            self._check(state)
        super().__setstate__(state)

    def _check(self, state: Any) -> None:
        if self.shape != (0,) or self.base is not None:
            # Filling frees the old data, which something else may look at.
            raise _refuse("a second state for one array")
        if not isinstance(state, tuple) or len(state) != 5:
            raise _refuse("an array state of an unknown form")
        _, shape, dtype, _, data = state
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise _refuse("an array without a shape")
        if not _is_plain(dtype) or not isinstance(data, bytes):
            raise _refuse("an array of something other than numbers")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise _refuse("an array whose data does not fill its shape")


def _empty_array(cls: Any, shape: Any, kind: Any) -> Any:
    """Stands in for ``_reconstruct``, which makes the array that the file then fills."""
    if cls is not _Array and not (cls is np.ndarray and _vouched_for(np.ndarray)):
        raise _refuse(f"an array of the class {cls!r}")
    return np.ndarray.__new__(cls, (0,), np.uint8)


# --- numpy random generators --------------------------------------------------------------------


class _BitGeneratorName:
    """Stands in for the classes of numpy's bit generators."""

    def __init__(self, *args: Any) -> None:
        raise _refuse("a direct call of a bit generator")


class _SeedSequence:
    """Stands in for numpy's seed sequence, which a restored generator goes without."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _RandomState:
    """Stands in for numpy's constructors of generators, which call what they are given.

    One instance is both the generator and the bit generator in it, until the space that holds it
    is restored.
    """

    state: Any = None

    def __new__(cls, source: Any = None, *rest: Any) -> "_RandomState":
        return source if isinstance(source, _RandomState) else super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        # Numpy 2.x adds the seed sequence to the bit generator's state.
        self.state = state[0] if isinstance(state, tuple) and state else state

    def generator(self) -> np.random.Generator:
        try:
            return numpy_rng_from_json(rng_state_to_json(self.state))
        except (CheckpointError, AttributeError, RecursionError) as error:
            raise _refuse(f"a random generator with a damaged state ({error})") from error


# --- gymnasium spaces ---------------------------------------------------------------------------


def _refuse_call(self: Any, *args: Any, **kwargs: Any) -> None:
    raise _refuse("a direct call of a space's constructor")


def _become_space(self: Any, state: Any) -> None:
    """Check the state that a file gives to a stand-in, and turn it into the real space.

    The state may hold numbers, arrays, dtypes, a random generator and other spaces, under the
    names of the spaces' own attributes.
    """
    if not isinstance(state, dict):
        raise _refuse("a space without attributes")
    for name, value in state.items():
        if name not in _SPACE_ATTRIBUTES:
            raise _refuse(f"the attribute {name!r} of a space")
        self.__dict__[name] = _space_attribute(value)
    self.__class__ = type(self).__base__


_SPACE_ATTRIBUTES = frozenset(
    (
        *("_shape", "dtype", "_np_random", "low", "high", "low_repr", "high_repr"),
        *("bounded_below", "bounded_above", "n", "start", "nvec", "spaces", "sort_keys"),
    )
)


def _space_attribute(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, np.generic, spaces.Space)):
        return value
    if isinstance(value, np.ndarray):
        return np.array(value, subok=False)
    if isinstance(value, np.dtype):
        return value
    if isinstance(value, _RandomState):
        return value.generator()
    if isinstance(value, tuple):
        return tuple(_space_attribute(item) for item in value)
    if isinstance(value, dict) and all(isinstance(inner, spaces.Space) for inner in value.values()):
        return value
    raise _refuse(f"a {type(value).__name__} in a space")


# Stand-ins for the space classes; a single base, so that an instance can become a real space.
_SPACES = {
    real: type(
        f"_{real.__name__}",
        (real,),
        {"__module__": __name__, "__init__": _refuse_call, "__setstate__": _become_space},
    )
    for real in (
        *(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        *(spaces.Dict, spaces.Tuple),
    )
}
