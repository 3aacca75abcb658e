"""Let imitation's and SB3's own loading functions work with torch's safe unpickler.

``torch.load`` builds only what is on its list of safe globals, and so refuses the pickled policies
that ``imitation.util.util.save_policy`` and SB3's ``policy.save`` write. Inside
:func:`allow_imitation_checkpoints` that list is what such files of BC policies need. The unpickler
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
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common import distributions, torch_layers
from stable_baselines3.common.policies import BasePolicy
from torch import nn

from sb3_diffbc.checkpoints.policies import (
    ACTIVATIONS,
    FEATURES_EXTRACTORS,
    NORMALISATIONS,
    OPTIMIZERS,
    POLICIES,
)

_INERT_CLASSES: tuple[Any, ...] = (
    *(*POLICIES, BasePolicy, *FEATURES_EXTRACTORS, torch_layers.MlpExtractor),
    *(*ACTIVATIONS, *NORMALISATIONS, *OPTIMIZERS),
    *(nn.Sequential, nn.ModuleDict, nn.ModuleList, nn.Linear, nn.Flatten, nn.Conv2d),
    distributions.DiagGaussianDistribution,
    distributions.StateDependentNoiseDistribution,
    distributions.CategoricalDistribution,
    distributions.MultiCategoricalDistribution,
    distributions.BernoulliDistribution,
    distributions.TanhBijector,
    *(th.distributions.Normal, th.distributions.Categorical, th.distributions.Bernoulli),
    dict,
)


@contextmanager
def allow_imitation_checkpoints(*classes: type) -> Iterator[None]:
    """Makes torch's safe unpickler accept the policies that imitation and SB3 save.

    This is a context manager: a call outside a ``with`` statement has no effect. Inside one, these
    work for policies of imitation's, SB3's and this library's actor-critic classes:
    ``imitation.algorithms.bc.reconstruct_policy``, and in SB3 2.2 ``ActorCriticPolicy.load``. The
    list of safe globals belongs to the process, so other threads should not load files meanwhile;
    what it held before does not apply inside, and is back afterwards.

    Args:
        classes: more classes to accept, typically of own policies and their modules. Anybody's
            file may then call them with any arguments.

    Yields:
        Nothing.
    """
    from sb3_diffbc import policies  # which imports this package

    own = (policies.StandardizedActorPolicy, policies.StandardizedFeatures, policies._Rescale)
    before = th.serialization.get_safe_globals()
    th.serialization.clear_safe_globals()
    try:
        th.serialization.add_safe_globals([*_INERT_CLASSES, *own, *classes, *_stand_ins()])
        yield
    finally:
        th.serialization.clear_safe_globals()
        th.serialization.add_safe_globals(before)


def _stand_ins() -> list[Any]:
    """Returns pairs of an object and the global name under which a file asks for it."""
    pairs: list[Any] = [
        (_static_attribute, "builtins.getattr"),
        (_dict_of_dicts, "collections.defaultdict"),
        (_Array, "numpy.ndarray"),
        (_plain_dtype, "numpy.dtype"),
        (_Generator, "numpy.random._pickle.__bit_generator_ctor"),
        (_Generator, "numpy.random._pickle.__generator_ctor"),
        (_Generator, "numpy.random.bit_generator.SeedSequence"),
        (_Generator, "numpy.random.bit_generator.__pyx_unpickle_SeedSequence"),
        (_Generator, "numpy.random._pcg64.PCG64"),
    ]
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        pairs.append((_empty_array, f"{core}.multiarray._reconstruct"))
        pairs.append((_plain_scalar, f"{core}.multiarray.scalar"))
    # The unpickler sets a dtype's state, which for these singletons has no effect.
    pairs += [type(dtype) for dtype in _DTYPES.values()]
    pairs += [(cls, f"{real.__module__}.{real.__qualname__}") for real, cls in _SPACES.items()]
    return pairs


def _refused(what: str) -> UnpicklingError:
    return UnpicklingError(f"refused, because no saved policy needs it: {what}")


def _static_attribute(owner: Any, name: Any) -> Any:
    """Stands in for ``getattr``: SB3's ``policy.save`` refers to one static method through it."""
    if isinstance(owner, type) and issubclass(owner, BasePolicy) and name == "_dummy_schedule":
        return BasePolicy._dummy_schedule
    raise _refused(f"attribute {name!r}")


def _dict_of_dicts(factory: Any = None, *rest: Any) -> Any:
    """Stands in for ``defaultdict``: an optimiser without state holds an empty one."""
    if factory is dict and not rest:
        return collections.defaultdict(dict)
    raise _refused("a defaultdict of something other than dicts")


_DTYPES = {
    code: np.dtype(code)
    for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}


def _plain_dtype(code: Any, *_: Any) -> Any:
    """Stands in for ``numpy.dtype``: numbers only, and only the shared instances.

    A file can take the flags off a fresh object dtype and have numpy follow pointers from the
    file. The shared instances ignore such changes.
    """
    if isinstance(code, str) and code in _DTYPES:
        return _DTYPES[code]
    raise _refused(f"numpy dtype {code!r}")


def _is_plain(dtype: Any) -> bool:
    return isinstance(dtype, np.dtype) and _DTYPES.get(dtype.str[1:]) == dtype


def _plain_scalar(dtype: Any, data: Any) -> Any:
    """Stands in for numpy's scalar constructor, which follows pointers from the file too."""
    if not _is_plain(dtype) or not isinstance(data, bytes) or len(data) != dtype.itemsize:
        raise _refused("a numpy scalar that is not one number")
    return np.frombuffer(data, dtype=dtype)[0]


class _Array(np.ndarray[Any, Any]):
    """Stands in for ``numpy.ndarray``: filled once, with numbers of the size it declares."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        raise _refused("a direct call of numpy.ndarray")

    def __setstate__(self, state: Any) -> None:
        if self.shape != (0,) or self.base is not None:
            # Filling frees the old data, which something else may look at.
            raise _refused("a second state for one array")
        if not isinstance(state, tuple) or len(state) != 5:
            raise _refused("an array state of an unknown form")
        _, shape, dtype, _, data = state
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise _refused("an array without a shape")
        if not _is_plain(dtype) or not isinstance(data, bytes):
            raise _refused("an array of something other than numbers")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise _refused("an array whose data does not fill its shape")
        super().__setstate__(state)


def _empty_array(cls: Any, shape: Any, kind: Any) -> Any:
    """Stands in for ``_reconstruct``, which makes the array that the file then fills."""
    if cls is not _Array:
        raise _refused(f"an array of the class {cls!r}")
    return np.ndarray.__new__(cls, (0,), np.uint8)


class _Generator:
    """Stands in for a space's random generator and its parts; nothing of them is kept.

    The space draws from a fresh generator afterwards.
    """

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _refuse_call(self: Any, *args: Any, **kwargs: Any) -> None:
    raise _refused("a direct call of a space's constructor")


def _become_space(self: Any, state: Any) -> None:
    """Checks the state that a file gives to a stand-in, and turns it into the real space.

    The state may hold numbers, arrays, dtypes, a random generator and other spaces, under the
    names of the spaces' own attributes.
    """
    if not isinstance(state, dict):
        raise _refused("a space without attributes")
    for name, value in state.items():
        if name not in _SPACE_ATTRIBUTES:
            raise _refused(f"the attribute {name!r} of a space")
        self.__dict__[name] = _space_attribute(value)
    self.__class__ = type(self).__base__


_SPACE_ATTRIBUTES = frozenset(
    (
        *("_shape", "dtype", "_np_random", "low", "high", "low_repr", "high_repr"),
        *("bounded_below", "bounded_above", "n", "start", "nvec", "spaces", "sort_keys"),
    )
)


def _space_attribute(value: Any) -> Any:
    if isinstance(value, _Generator):
        return None
    if isinstance(value, np.ndarray):
        return np.array(value, subok=False)
    if isinstance(value, tuple):
        return tuple(_space_attribute(item) for item in value)
    if isinstance(value, dict) and all(isinstance(inner, spaces.Space) for inner in value.values()):
        return value
    plain = (bool, int, float, str, np.generic, np.dtype, spaces.Space)
    if value is None or isinstance(value, plain):
        return value
    raise _refused(f"a {type(value).__name__} in a space")


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
