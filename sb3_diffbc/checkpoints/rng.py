"""Numpy random generators as JSON.

The bit generators are a fixed table, and their states are checked before numpy sees them: numpy
takes a position from a state as it comes, and one beyond the buffer would read foreign memory.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sb3_diffbc.checkpoints.errors import CheckpointError
from sb3_diffbc.checkpoints.values import describe, require_int, require_list, require_object

_Words = tuple[int, type]  # how many, and their dtype
_HALF_DRAW = {"has_uint32": 1, "uinteger": 2**32 - 1}
_PCG = {"state": {"state": 2**128 - 1, "inc": 2**128 - 1}, **_HALF_DRAW}
# Per bit generator: the class and the layout of its state (an integer's maximum, or words).
_BIT_GENERATORS: dict[str, tuple[Any, dict[str, Any]]] = {
    "PCG64": (np.random.PCG64, _PCG),
    "PCG64DXSM": (np.random.PCG64DXSM, _PCG),
    "MT19937": (np.random.MT19937, {"state": {"key": (624, np.uint32), "pos": 624}}),
    "Philox": (
        np.random.Philox,
        {
            "state": {"counter": (4, np.uint64), "key": (2, np.uint64)},
            "buffer": (4, np.uint64),
            "buffer_pos": 4,
            **_HALF_DRAW,
        },
    ),
    "SFC64": (np.random.SFC64, {"state": {"state": (4, np.uint64)}, **_HALF_DRAW}),
}


def numpy_rng_to_json(rng: np.random.Generator) -> dict[str, Any]:
    """Write down a generator's state.

    Args:
        rng: a Generator over one of numpy's own bit generators. What `Generator.spawn` would
            give is not part of the state.

    Returns:
        A JSON object.

    Raises:
        TypeError: if ``rng`` is something else.
    """
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"cannot save {describe(rng)}: expected a numpy.random.Generator")
    if type(rng.bit_generator).__name__ not in _BIT_GENERATORS:
        raise TypeError(
            f"cannot save a generator over {type(rng.bit_generator).__qualname__}: expected "
            f"one over {', '.join(_BIT_GENERATORS)}"
        )
    return rng_state_to_json(rng.bit_generator.state)


def rng_state_to_json(state: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a numpy bit generator's ``state`` into JSON: arrays and scalars become plain ints."""
    return {key: _plain(value) for key, value in state.items()}


def numpy_rng_from_json(obj: Any) -> np.random.Generator:
    """Build a generator that continues where the saved one stood.

    Args:
        obj: what `numpy_rng_to_json` returned.

    Returns:
        A new generator.

    Raises:
        CheckpointError: if ``obj`` is not the state of one of numpy's bit generators.
    """
    where = "random generator"
    state = dict(require_object(obj, where))
    name = state.pop("bit_generator", None)
    if not isinstance(name, str) or name not in _BIT_GENERATORS:
        raise CheckpointError(
            f"{where}: expected one of {', '.join(_BIT_GENERATORS)}, found {describe(name)}"
        )
    bit_generator_class, layout = _BIT_GENERATORS[name]
    checked = _checked(state, layout, where)
    bit_generator = bit_generator_class()
    bit_generator.state = {"bit_generator": name, **checked}
    return np.random.Generator(bit_generator)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return rng_state_to_json(value) if isinstance(value, Mapping) else value


def _checked(obj: Any, layout: int | _Words | dict[str, Any], where: str) -> Any:
    if isinstance(layout, int):
        return require_int(obj, where, low=0, high=layout)
    if isinstance(layout, dict):
        if require_object(obj, where).keys() != layout.keys():
            raise CheckpointError(f"{where}: expected {', '.join(layout)}, found {list(obj)}")
        return {key: _checked(obj[key], part, f"{where} {key}") for key, part in layout.items()}
    count, dtype = layout
    words = require_list(obj, where)
    if len(words) != count:
        raise CheckpointError(f"{where}: expected {count} words, found {len(words)}")
    high = int(np.iinfo(dtype).max)
    return np.array([require_int(word, where, low=0, high=high) for word in words], dtype=dtype)
