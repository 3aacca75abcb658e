"""Checks that find unusable demonstrations before any training time is spent on them."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces
from imitation.data.types import DictObs
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

_CHUNK_BYTES = 2**20
_LARGEST = 1e15
"""Squares of what is larger, and sums of these, leave single precision soon."""


class DemonstrationWarning(UserWarning):
    """Something odd in the demonstrations that was repaired or that training can live with."""


def warn(message: str) -> None:
    """Warns with a ``DemonstrationWarning`` in the name of the caller outside of this package."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("sb3_diffbc."):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, DemonstrationWarning, stacklevel=level)


@dataclasses.dataclass(frozen=True)
class Column:
    """One array of the demonstrations and the range of each of its dimensions.

    Attributes:
        name: how messages call it, such as ``acts`` or ``obs['image']``.
        values: the data, shape ``(n, ...)``.
        low: smallest value of each dimension over the rows, shape ``values.shape[1:]``.
        high: largest value of each dimension over the rows, shape ``values.shape[1:]``.
    """

    name: str
    values: Array
    low: Array
    high: Array


def validate_demonstrations(
    transitions: Any,
    *,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    batch_size: int | None = None,
) -> None:
    """Checks that a policy can be trained on the demonstrations.

    What would make training fail or learn nonsense raises; what training can live with gives a
    ``DemonstrationWarning``: actions outside the bounds of a Box (they are kept) and dimensions
    that never change (a normaliser cannot scale them). Nothing is modified. The cost is one pass
    over the arrays.

    Args:
        transitions: anything with ``.obs`` and ``.acts``, such as imitation's ``Transitions`` or
            ``TransitionsMinimal``. ``obs`` has shape ``(n, *observation_shape)``, or is a
            ``DictObs`` of such arrays; ``acts`` has shape ``(n, *action_shape)``. Discrete data may
            have shape ``(n,)`` or ``(n, 1)``, and may be floats if they are whole numbers.
        observation_space: the space that ``obs`` must fit (shapes, and values where it is
            discrete); None skips this check.
        action_space: the space that ``acts`` must fit; None skips this check.
        batch_size: how many transitions a training batch takes; None skips this check.

    Raises:
        TypeError: ``transitions`` has no arrays under ``.obs`` and ``.acts``, or a space is of a
            kind that cannot be learnt here.
        ValueError: the set is empty, lengths differ, a dtype is not numeric, there are NaN,
            infinite or huge values, shapes or values do not fit a space, or there are fewer
            transitions than ``batch_size``.
    """
    if not (hasattr(transitions, "obs") and hasattr(transitions, "acts")):
        raise TypeError(
            "`demonstrations` must have `.obs` and `.acts`, as imitation's Transitions do; "
            f"got {type(transitions).__name__}."
        )
    obs_columns, acts_column = checked_columns(transitions.obs, transitions.acts)
    n = len(acts_column.values)
    if batch_size is not None and n < batch_size:
        raise ValueError(
            f"Number of transitions in `demonstrations` {n} is smaller than batch size "
            f"{batch_size}."
        )
    _check_spaces(obs_columns, acts_column, observation_space, action_space)
    if action_space is not None:
        _warn_outside_bounds(acts_column, action_space)
    _warn_constant([*obs_columns.values()], observation_space)
    _warn_constant([acts_column], action_space)


def checked_pairs(
    obs: Any, acts: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> None:
    """Checks observations and actions as ``validate_demonstrations`` does, without warnings.

    Raises:
        TypeError, ValueError: as ``validate_demonstrations`` does.
    """
    _check_spaces(*checked_columns(obs, acts), observation_space, action_space)


def _check_spaces(
    obs: dict[str | None, Column],
    acts: Column,
    observation_space: spaces.Space[Any] | None,
    action_space: spaces.Space[Any] | None,
) -> None:
    if observation_space is not None:
        _check_observations(obs, observation_space)
    if action_space is not None:
        _check_space(acts, action_space, "action_space")


def checked_columns(obs: Any, acts: Any) -> tuple[dict[str | None, Column], Column]:
    """Checks what can be checked without knowing the spaces.

    Returns:
        The observation's columns by key (the key is None if ``obs`` is a single array) and the
        actions' column.

    Raises:
        TypeError: ``obs`` or ``acts`` is no array.
        ValueError: empty set, differing lengths, a non-numeric dtype, NaN, infinite or huge values.
    """
    arrays = by_key(obs)
    if not arrays:
        raise ValueError("`obs` must hold at least one array, found an empty dictionary.")
    names = {key: "obs" if key is None else f"obs[{key!r}]" for key in arrays}
    for name, array in [*((names[key], array) for key, array in arrays.items()), ("acts", acts)]:
        _check_array(name, array)
    for key, array in arrays.items():
        if len(array) != len(acts):
            raise ValueError(
                f"`{names[key]}` and `acts` must have the same length, one row per transition; "
                f"found {len(array)} and {len(acts)}."
            )
    if len(acts) == 0:
        raise ValueError("`demonstrations` must hold at least one transition, found none.")
    return (
        {key: _finite_column(names[key], array) for key, array in arrays.items()},
        _finite_column("acts", acts),
    )


def by_key(obs: Any) -> dict[str | None, Any]:
    """Returns the arrays of a ``DictObs`` or mapping by key, or a single array under None."""
    if isinstance(obs, DictObs):
        obs = obs.unwrap()
    return dict(obs) if isinstance(obs, Mapping) else {None: obs}


def _check_array(name: str, array: Any) -> None:
    """Raises unless ``array`` is numeric and has rows."""
    if type(array) not in (np.ndarray, np.memmap):  # a masked one has values that do not count
        raise TypeError(f"`{name}` must be a NumPy array, found {type(array).__name__}.")
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise ValueError(
            f"`{name}` must hold real numbers (float, integer or bool dtype) of 64 bits at most, "
            f"found dtype {array.dtype}."
        )
    if not array.dtype.isnative:
        raise ValueError(
            f"`{name}` must be in this machine's byte order, found dtype {array.dtype.str}."
        )
    if array.ndim == 0:
        raise ValueError(f"`{name}` must have one row per transition, found a single number.")
    if 0 in array.shape[1:]:
        raise ValueError(f"`{name}` must have numbers in its rows, found shape {array.shape}.")


def row_chunks(array: Array) -> Iterator[tuple[int, Array]]:
    """Yields an array in parts of 1 MiB, not copied: the number of the first row, and the rows."""
    size = max(1, _CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), size):
        yield start, array[start : start + size]


def _finite_column(name: str, values: Array) -> Column:
    """Builds the column of a non-empty array; raises on NaN, infinite and huge values."""
    low, high = np.asarray(values.min(axis=0)), np.asarray(values.max(axis=0))
    # NaN and infinities survive min and max, so the ranges tell whether any row has them.
    for found, is_sound in (
        ("finite; found NaN or infinite values", np.isfinite),
        (
            f"from {-_LARGEST:g} to {_LARGEST:g} to be learnt in single precision; found others",
            lambda part: np.abs(part.astype(np.float64)) <= _LARGEST,
        ),
    ):
        sound = is_sound(low) & is_sound(high)
        if not np.all(sound):
            rows, first = _count_rows(values, lambda part: ~is_sound(part))  # noqa: B023
            raise ValueError(
                f"`{name}` must be {found} in {rows} of {len(values)} rows, the first in row "
                f"{first}, {_dimension(~sound)}."
            )
    return Column(name, values, low, high)


def _count_rows(values: Array, condition: Callable[[Array], Array]) -> tuple[int, int | None]:
    """Returns in how many rows any value meets the condition, and the number of the first."""
    count, first = 0, None
    # In chunks, since the condition allocates arrays of the size of what it is given.
    for start, part in row_chunks(values):
        rows = np.flatnonzero(condition(part).reshape(len(part), -1).any(axis=1))
        count += len(rows)
        if first is None and len(rows):
            first = start + int(rows[0])
    return count, first


def _dimension(mask: Array) -> str:
    """Names the dimensions, at most 8, that are set in a mask of shape ``values.shape[1:]``."""
    if mask.ndim == 0:
        return "its only dimension"
    indices = [
        index[0] if len(index) == 1 else tuple(index) for index in np.argwhere(mask).tolist()
    ]
    listed, more = ", ".join(map(str, indices[:8])), len(indices) - 8
    label = "dimension" if len(indices) == 1 else "dimensions"
    return f"{label} {listed}" + (f" and {more} more" if more > 0 else "")


def _check_observations(columns: dict[str | None, Column], space: spaces.Space[Any]) -> None:
    """Checks ``obs``, array or dictionary, against the observation space."""
    parts: dict[Any, Any] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    if set(columns) != set(parts):
        raise ValueError(
            f"`obs` must be {_layout(parts)} to fit `observation_space` {space}, "
            f"found {_layout(columns)}. `load_demonstrations(..., obs_keys=...)` chooses and joins."
        )
    for key, part in parts.items():
        _check_space(
            columns[key], part, "observation_space" + ("" if key is None else f"[{key!r}]")
        )


def _layout(keys: Collection[Any]) -> str:
    return "one array" if None in keys else f"a DictObs with the keys {sorted(map(str, keys))}"


def _check_space(column: Column, space: spaces.Space[Any], argument: str) -> None:
    """Checks one array against a space that is no dictionary."""
    shapes = [space.shape]
    limits: tuple[Any, ...] = ()
    if isinstance(space, spaces.Discrete):
        shapes.append((1,))
        limits = space.start, space.start + space.n - 1
    elif isinstance(space, spaces.MultiDiscrete):
        start = getattr(space, "start", 0)
        limits = start, start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        limits = 0, 1
    elif isinstance(space, spaces.Box):
        is_action = argument == "action_space"
        if is_action and column.values.dtype.kind == "b" and space.dtype != bool:
            raise ValueError(
                f"`{column.name}` must hold numbers to fit `{argument}` {space}, found dtype bool."
            )
        if not is_action and space.shape == ():
            raise ValueError(f"`{argument}` must have a shape such as (1,), found {space}.")
    else:
        raise TypeError(
            f"`{argument}` must be one of Box, Discrete, MultiDiscrete, MultiBinary, found {space}."
        )
    found = column.values.shape[1:]
    if found not in shapes:
        raise ValueError(
            f"Each row of `{column.name}` must have shape {space.shape} to fit `{argument}` "
            f"{space}, found {found}."
        )
    if limits:
        _check_whole_numbers(column, argument, *map(np.asarray, limits))


def _check_whole_numbers(column: Column, argument: str, low: Array, high: Array) -> None:
    """Raises unless all values are whole numbers from ``low`` to ``high``, both included."""
    values = column.values
    if values.dtype.kind == "f":
        _, row = _count_rows(values, lambda part: part != np.floor(part))
        if row is not None:
            raise ValueError(
                f"`{column.name}` must hold whole numbers to fit the discrete `{argument}`, "
                f"found {values[row]} in row {row}."
            )
    outside = (column.low < low) | (column.high > high)
    if np.any(outside):
        where = "" if outside.size == 1 else f" in {_dimension(outside)}"
        raise ValueError(
            f"`{column.name}` must be from {_numbers(low)} to {_numbers(high)} to fit "
            f"`{argument}`, found values from {_numbers(column.low)} to "
            f"{_numbers(column.high)}{where}."
        )


def _numbers(values: Array) -> str:
    """Writes an array of a few numbers, or one number, as Python does."""
    listed = np.asarray(values).squeeze()
    return str(listed.item() if listed.ndim == 0 else listed.tolist())


def _warn_outside_bounds(column: Column, space: spaces.Space[Any]) -> None:
    """Warns if actions leave the bounds of their Box."""
    if not isinstance(space, spaces.Box):
        return
    # In single precision on both sides: 0.1 read as float32 does not exceed a float64 bound of 0.1.
    with np.errstate(over="ignore"):
        low, high, least, most = (
            limit.astype(np.float32) for limit in (column.low, column.high, space.low, space.high)
        )
    outside = (low < least) | (high > most)
    if not np.any(outside):
        return

    def is_beyond(part: Array) -> Array:
        part = part.astype(np.float32, copy=False)
        return (part < least) | (part > most)

    (rows, _), n = _count_rows(column.values, is_beyond), len(column.values)
    warn(
        f"`acts` leave the bounds of `action_space` in {rows} of {n} rows "
        f"({rows / n:.1%}), in {_dimension(outside)}: found values from "
        f"{low[outside].min():.4g} to {high[outside].max():.4g}, bounds from "
        f"{least[outside].min():.4g} to {most[outside].max():.4g}. The policy learns "
        "them as they are; what it predicts is clipped to the bounds for the environment."
    )


def _warn_constant(columns: list[Column], space: spaces.Space[Any] | None) -> None:
    """Warns about dimensions of vectors of real numbers that never change.

    Images and discrete values are not normalised, so a constant there is nothing to report.
    """
    if not (space is None or isinstance(space, (spaces.Box, spaces.Dict))):
        return
    for column in columns:
        is_vector = column.values.dtype.kind == "f" and column.values.ndim <= 2
        constant = column.low == column.high
        if is_vector and np.any(constant):
            warn(
                f"`{column.name}` never changes in {_dimension(constant)} over all "
                f"{len(column.values)} rows. Its scale is taken as 1 in normalisation, because its "
                "standard deviation is 0."
            )
