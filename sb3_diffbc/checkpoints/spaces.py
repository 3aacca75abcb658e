"""Gymnasium spaces as JSON.

A space's own random generator is not saved: a restored space draws from a fresh one.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_diffbc.checkpoints.errors import CheckpointError
from sb3_diffbc.checkpoints.values import describe, require_int, require_list, require_object

MAX_ELEMENTS = 2**25
"""Elements in all boxes and vectors of a space together: five stacked 1080p RGB frames. More than
that is refused, so that a few bytes of JSON cannot ask for terabytes of bounds."""
_MAX_DEPTH = 32
_MAX_AXES = 16
_INT64_MAX = 2**63 - 1

_DTYPES = {
    np.dtype(name).name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
}
_NON_FINITE = {"inf": math.inf, "-inf": -math.inf}


def space_to_json(space: gym.Space[Any]) -> dict[str, Any]:
    """Describe a space in JSON.

    Args:
        space: a Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these.

    Returns:
        A JSON object; bounds keep their exact value, uniform bounds take one number.

    Raises:
        TypeError: if the space, or one inside it, is of another class or dtype.
        ValueError: if the space is larger than `MAX_ELEMENTS`.
    """
    encode = _ENCODERS.get(type(space))
    if encode is None:
        known = ", ".join(cls.__name__ for cls in _ENCODERS)
        raise TypeError(
            f"cannot save {describe(space)}: checkpoints hold spaces of the classes {known}"
        )
    return {"type": type(space).__name__, **encode(space)}


def space_from_json(obj: Any) -> gym.Space[Any]:
    """Build the space that `space_to_json` described.

    Args:
        obj: the JSON, as parsed.

    Returns:
        An equal space, with a fresh random generator.

    Raises:
        CheckpointError: if ``obj`` does not describe a space, or one beyond `MAX_ELEMENTS`.
    """
    return _decode(obj, _Limits("space", MAX_ELEMENTS, 0))


@dataclass
class _Limits:
    """Where the decoder is, and how much a hostile description may still ask for."""

    where: str
    elements: int
    depth: int

    def inner(self, where: str) -> "_Limits":
        if self.depth == _MAX_DEPTH:
            raise CheckpointError(f"{self.where}: nested more than {_MAX_DEPTH} deep")
        return _Limits(f"{self.where}[{where}]", self.elements, self.depth + 1)

    def shape(self, obj: Any) -> tuple[int, ...]:
        axes = require_list(obj, f"{self.where} shape")
        if len(axes) > _MAX_AXES:
            raise CheckpointError(f"{self.where}: a shape of {len(axes)} axes")
        shape = tuple(
            require_int(axis, f"{self.where} shape", low=0, high=_INT64_MAX) for axis in axes
        )
        self.elements -= math.prod(shape)
        if self.elements < 0:
            raise CheckpointError(
                f"{self.where}: expected at most {MAX_ELEMENTS} elements, found the shape "
                f"{shape} (with {math.prod(shape)})"
            )
        return shape


# --- arrays -------------------------------------------------------------------------------------


def _dtype_name(dtype: Any, what: str) -> str:
    name = np.dtype(dtype).name
    if name not in _DTYPES:
        raise TypeError(f"cannot save a {what} of dtype {name}: expected {', '.join(_DTYPES)}")
    return name


def _dtype(obj: Any, where: str) -> np.dtype[Any]:
    if not isinstance(obj, str) or obj not in _DTYPES:
        raise CheckpointError(f"{where}: expected a dtype ({', '.join(_DTYPES)}), found {obj!r}")
    return _DTYPES[obj]


def _array_to_json(array: np.ndarray[Any, Any]) -> Any:
    """One number if all elements are the same, bit by bit, else the elements row by row."""
    flat = array.reshape(-1)
    if flat.size > MAX_ELEMENTS:
        raise ValueError(f"cannot save a space of {flat.size} elements (at most {MAX_ELEMENTS})")
    if flat.size and flat.tobytes() == flat[:1].tobytes() * flat.size:
        return _number_to_json(flat[0].item())
    return [_number_to_json(number) for number in flat.tolist()]


def _number_to_json(number: Any) -> Any:
    return repr(number) if isinstance(number, float) and not math.isfinite(number) else number


def _array_from_json(
    obj: Any, shape: tuple[int, ...], dtype: np.dtype[Any], where: str
) -> np.ndarray[Any, Any]:
    if not isinstance(obj, list):
        return np.full(shape, _number(obj, dtype, where), dtype=dtype)
    if len(obj) != math.prod(shape):
        raise CheckpointError(f"{where}: expected {math.prod(shape)} numbers, found {len(obj)}")
    return np.array([_number(item, dtype, where) for item in obj], dtype=dtype).reshape(shape)


def _number(obj: Any, dtype: np.dtype[Any], where: str) -> Any:
    if dtype.kind == "b" and isinstance(obj, bool):
        return obj
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return require_int(obj, where, low=int(info.min), high=int(info.max))
    if dtype.kind == "f" and isinstance(obj, str) and obj in _NON_FINITE:
        return _NON_FINITE[obj]
    if dtype.kind == "f" and isinstance(obj, (int, float)) and not isinstance(obj, bool):
        return obj
    raise CheckpointError(f"{where}: expected a {dtype.name}, found {describe(obj)}")


# --- the spaces ---------------------------------------------------------------------------------


def _box_to_json(space: spaces.Box) -> dict[str, Any]:
    obj = {
        "shape": list(space.shape),
        "dtype": _dtype_name(space.dtype, "Box"),
        "low": _array_to_json(space.low),
        "high": _array_to_json(space.high),
    }
    # An integer box keeps "unbounded" apart from its bounds, which are the dtype's own limits.
    if not np.array_equal(space.bounded_below, space.low > -np.inf):
        obj["bounded_below"] = _array_to_json(space.bounded_below)
    if not np.array_equal(space.bounded_above, space.high < np.inf):
        obj["bounded_above"] = _array_to_json(space.bounded_above)
    return obj


def _box_from_json(obj: dict[str, Any], limits: _Limits) -> spaces.Box:
    shape, dtype = limits.shape(obj.get("shape")), _dtype(obj.get("dtype"), limits.where)
    low = _array_from_json(obj.get("low"), shape, dtype, f"{limits.where} low")
    high = _array_from_json(obj.get("high"), shape, dtype, f"{limits.where} high")
    scalar_type: Any = dtype.type
    space = spaces.Box(low, high, shape=shape, dtype=scalar_type)
    for name in ("bounded_below", "bounded_above"):
        if name in obj:
            bounded = _array_from_json(obj[name], shape, np.dtype(bool), f"{limits.where} {name}")
            setattr(space, name, bounded)
    return space


def _discrete_to_json(space: spaces.Discrete) -> dict[str, Any]:
    dtype = _dtype_name(space.dtype, "Discrete")
    return {"n": int(space.n), "start": int(space.start), "dtype": dtype}


def _discrete_from_json(obj: dict[str, Any], limits: _Limits) -> spaces.Discrete:
    n = require_int(obj.get("n"), f"{limits.where} n", low=1, high=_INT64_MAX)
    start = require_int(
        obj.get("start"), f"{limits.where} start", low=-_INT64_MAX - 1, high=_INT64_MAX
    )
    dtype = _dtype(obj.get("dtype"), limits.where)
    # Older Gymnasium releases have no dtype argument, and know int64 only.
    options: dict[str, Any] = {} if dtype == np.int64 else {"dtype": dtype.type}
    return spaces.Discrete(n, start=start, **options)


def _multi_discrete_to_json(space: spaces.MultiDiscrete) -> dict[str, Any]:
    obj = {
        "shape": list(space.nvec.shape),
        "dtype": _dtype_name(space.dtype, "MultiDiscrete"),
        "nvec": _array_to_json(space.nvec),
    }
    start = getattr(space, "start", None)
    if start is not None and np.any(start):
        obj["start"] = _array_to_json(start)
    return obj


def _multi_discrete_from_json(obj: dict[str, Any], limits: _Limits) -> spaces.MultiDiscrete:
    shape, dtype = limits.shape(obj.get("shape")), _dtype(obj.get("dtype"), limits.where)
    nvec = _array_from_json(obj.get("nvec"), shape, dtype, f"{limits.where} nvec")
    options: dict[str, Any] = {"dtype": dtype.type}
    if "start" in obj:
        options["start"] = _array_from_json(obj["start"], shape, dtype, f"{limits.where} start")
    return spaces.MultiDiscrete(nvec, **options)


def _multi_binary_to_json(space: spaces.MultiBinary) -> dict[str, Any]:
    if math.prod(space.shape) > MAX_ELEMENTS:
        raise ValueError(f"cannot save {space}: it has more than {MAX_ELEMENTS} elements")
    return {"n": space.n if isinstance(space.n, int) else [int(axis) for axis in space.n]}


def _multi_binary_from_json(obj: dict[str, Any], limits: _Limits) -> spaces.MultiBinary:
    n = obj.get("n")
    if isinstance(n, list):
        return spaces.MultiBinary(limits.shape(n))
    return spaces.MultiBinary(limits.shape([n])[0])


def _dict_to_json(space: spaces.Dict) -> dict[str, Any]:
    for key in space.spaces:
        if not isinstance(key, str):
            raise TypeError(f"cannot save a Dict space with the key {key!r}: expected strings")
    return {"spaces": [[key, space_to_json(inner)] for key, inner in space.spaces.items()]}


def _dict_from_json(obj: dict[str, Any], limits: _Limits) -> spaces.Dict:
    members: OrderedDict[str, gym.Space[Any]] = OrderedDict()  # Dict sorts any other mapping
    for pair in require_list(obj.get("spaces"), limits.where):
        if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
            raise CheckpointError(f"{limits.where}: expected [key, space], found {describe(pair)}")
        key, inner = pair
        if key in members:
            raise CheckpointError(f"{limits.where}: the key {key!r} appears twice")
        members[key] = _decode_inner(inner, limits, repr(key))
    return spaces.Dict(members)


def _tuple_to_json(space: spaces.Tuple) -> dict[str, Any]:
    return {"spaces": [space_to_json(inner) for inner in space.spaces]}


def _tuple_from_json(obj: dict[str, Any], limits: _Limits) -> spaces.Tuple:
    members = require_list(obj.get("spaces"), limits.where)
    return spaces.Tuple(
        tuple(_decode_inner(inner, limits, str(i)) for i, inner in enumerate(members))
    )


def _decode_inner(obj: Any, limits: _Limits, name: str) -> gym.Space[Any]:
    inner = limits.inner(name)
    space = _decode(obj, inner)
    limits.elements = inner.elements  # what one member used is gone for the others
    return space


def _decode(obj: Any, limits: _Limits) -> gym.Space[Any]:
    name = require_object(obj, limits.where).get("type")
    decode = _DECODERS.get(name) if isinstance(name, str) else None
    if decode is None:
        raise CheckpointError(
            f"{limits.where}: expected a space ({', '.join(_DECODERS)}), found {describe(name)}"
        )
    try:
        return decode(obj, limits)
    except CheckpointError:
        raise
    except (AssertionError, TypeError, ValueError, OverflowError) as error:
        # Gymnasium's own checks: low above high, no elements, an option it does not know.
        raise CheckpointError(f"{limits.where}: not a valid {name} space: {error}") from error


_ENCODERS: dict[type, Callable[[Any], dict[str, Any]]] = {
    spaces.Box: _box_to_json,
    spaces.Discrete: _discrete_to_json,
    spaces.MultiDiscrete: _multi_discrete_to_json,
    spaces.MultiBinary: _multi_binary_to_json,
    spaces.Dict: _dict_to_json,
    spaces.Tuple: _tuple_to_json,
}
_DECODERS: dict[str, Callable[[dict[str, Any], _Limits], gym.Space[Any]]] = {
    "Box": _box_from_json,
    "Discrete": _discrete_from_json,
    "MultiDiscrete": _multi_discrete_from_json,
    "MultiBinary": _multi_binary_from_json,
    "Dict": _dict_from_json,
    "Tuple": _tuple_from_json,
}
