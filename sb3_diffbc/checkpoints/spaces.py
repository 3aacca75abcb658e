"""Gymnasium's spaces as JSON."""

from __future__ import annotations

import math
import reprlib
from typing import Annotated, Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import pydantic
from gymnasium import spaces
from pydantic import Field

from sb3_diffbc.checkpoints.file import CheckpointError
from sb3_diffbc.schema import AnyFloat, Model, NonNegativeInt, PositiveInt, describe

MAX_ELEMENTS = 2**25
"""Elements in all boxes and vectors of a space together: five stacked 1080p RGB frames. More than
that is refused, so that a few bytes of JSON cannot ask for terabytes of bounds."""

FREE_ELEMENTS = 2**22
"""Elements that a file's space may have, however few weights the file holds."""

DType: TypeAlias = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
Shape: TypeAlias = Annotated[tuple[NonNegativeInt, ...], Field(max_length=16)]
Entry: TypeAlias = bool | int | AnyFloat
Entries: TypeAlias = Entry | list[Entry]
"""An array row by row, or the one number that all of its elements are."""


class _Shaped(Model):
    shape: Shape
    dtype: DType

    def n_elements(self) -> int:
        return math.prod(self.shape)


class _Box(_Shaped):
    type: Literal["Box"] = "Box"
    low: Entries
    high: Entries
    # An integer box keeps "unbounded" apart from its bounds, which are the dtype's own limits.
    bounded_below: Entries
    bounded_above: Entries

    @classmethod
    def of(cls, space: spaces.Box) -> _Box:
        names = ("low", "high", "bounded_below", "bounded_above")
        arrays: dict[str, Any] = {name: _entries(getattr(space, name)) for name in names}
        return cls(shape=space.shape, dtype=_dtype_name(space), **arrays)

    def build(self) -> spaces.Box:
        low, high = (_array(bound, self.shape, self.dtype) for bound in (self.low, self.high))
        dtype: Any = np.dtype(self.dtype).type
        space = spaces.Box(low, high, shape=self.shape, dtype=dtype)
        space.bounded_below = _array(self.bounded_below, self.shape, "bool")
        space.bounded_above = _array(self.bounded_above, self.shape, "bool")
        return space


class _Discrete(Model):
    type: Literal["Discrete"] = "Discrete"
    n: PositiveInt
    start: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    dtype: DType

    @classmethod
    def of(cls, space: spaces.Discrete) -> _Discrete:
        return cls(n=int(space.n), start=int(space.start), dtype=_dtype_name(space))

    def build(self) -> spaces.Discrete:
        # Gymnasium 0.29 has no dtype argument, and knows int64 only.
        options: Any = {} if self.dtype == "int64" else {"dtype": np.dtype(self.dtype).type}
        return spaces.Discrete(self.n, start=self.start, **options)

    def n_elements(self) -> int:
        return 1


class _MultiDiscrete(_Shaped):
    type: Literal["MultiDiscrete"] = "MultiDiscrete"
    nvec: Entries
    start: Entries

    @classmethod
    def of(cls, space: spaces.MultiDiscrete) -> _MultiDiscrete:
        nvec, start = _entries(space.nvec), _entries(space.start)
        return cls(shape=space.nvec.shape, dtype=_dtype_name(space), nvec=nvec, start=start)

    def build(self) -> spaces.MultiDiscrete:
        nvec, start = (_array(part, self.shape, self.dtype) for part in (self.nvec, self.start))
        dtype: Any = np.dtype(self.dtype).type
        return spaces.MultiDiscrete(nvec, dtype=dtype, start=start)


class _MultiBinary(Model):
    type: Literal["MultiBinary"] = "MultiBinary"
    n: NonNegativeInt | Shape

    @classmethod
    def of(cls, space: spaces.MultiBinary) -> _MultiBinary:
        return cls(n=space.n if isinstance(space.n, int) else space.shape)

    def build(self) -> spaces.MultiBinary:
        return spaces.MultiBinary(self.n)

    def n_elements(self) -> int:
        return self.n if isinstance(self.n, int) else math.prod(self.n)


class _Dict(Model):
    type: Literal["Dict"] = "Dict"
    members: dict[str, _Record]

    @classmethod
    def of(cls, space: spaces.Dict) -> _Dict:
        return cls(members={key: _record(inner) for key, inner in space.spaces.items()})

    def build(self) -> spaces.Dict:
        return spaces.Dict([(key, record.build()) for key, record in self.members.items()])

    def n_elements(self) -> int:
        return sum(record.n_elements() for record in self.members.values())


_Record: TypeAlias = Annotated[
    _Box | _Discrete | _MultiDiscrete | _MultiBinary | _Dict,
    Field(discriminator="type"),
]

_RECORDS: dict[type, Any] = {
    spaces.Box: _Box,
    spaces.Discrete: _Discrete,
    spaces.MultiDiscrete: _MultiDiscrete,
    spaces.MultiBinary: _MultiBinary,
    spaces.Dict: _Dict,
}


class SpaceRecord(pydantic.RootModel[_Record]):
    """A Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of these.

    A space's own random generator is not part of it: a restored space draws from a fresh one.
    """

    model_config = pydantic.ConfigDict(strict=True, frozen=True, ser_json_inf_nan="strings")

    @pydantic.model_validator(mode="after")
    def _check_size(self, info: pydantic.ValidationInfo) -> SpaceRecord:
        # In a file, whose tensors' elements are the context: a policy has a weight for each of an
        # observation's, and an encoder a mean.
        limit = MAX_ELEMENTS
        if info.context is not None:
            limit = min(MAX_ELEMENTS, max(FREE_ELEMENTS, info.context))
        n_elements = self.root.n_elements()
        if n_elements > limit:
            raise ValueError(f"expected at most {limit} elements, found {n_elements}")
        return self

    @classmethod
    def of(cls, space: gym.Space[Any]) -> SpaceRecord:
        """Records a space, with the exact values of its bounds.

        Raises:
            TypeError: if the space, or one inside it, is of another class.
            ValueError: if the space has more than ``MAX_ELEMENTS`` elements, an unusual dtype or
                a key that is no text.
        """
        try:
            return cls(_record(space))
        except pydantic.ValidationError as error:
            raise ValueError(describe(error, "space")) from None

    def build(self) -> gym.Space[Any]:
        """Builds an equal space.

        Raises:
            CheckpointError: if there is no such space.
        """
        try:
            space: gym.Space[Any] = self.root.build()
        except (AssertionError, TypeError, ValueError, OverflowError) as error:
            # Gymnasium's and NumPy's own checks: low above high, a number beyond the dtype.
            raise CheckpointError(f"not a valid space: {error}") from error
        return space


def _record(space: gym.Space[Any]) -> Any:
    if type(space) not in _RECORDS:
        known = ", ".join(cls.__name__ for cls in _RECORDS)
        raise TypeError(
            f"cannot save a space of the class {type(space).__qualname__}: expected {known}"
        )
    return _RECORDS[type(space)].of(space)


def _dtype_name(space: gym.Space[Any]) -> Any:
    return np.dtype(space.dtype).name


def _entries(array: np.ndarray[Any, Any]) -> Entries:
    # Bit by bit, because zeros have signs.
    if array.size and array.tobytes() == array.reshape(-1)[:1].tobytes() * array.size:
        return array.reshape(-1)[0].item()
    return array.reshape(-1).tolist()


def _array(entries: Entries, shape: Shape, dtype: DType) -> np.ndarray[Any, Any]:
    given = np.asarray(entries)
    with np.errstate(all="ignore"):
        array = given.astype(dtype)
    if not np.array_equal(array, given):
        raise ValueError(f"{reprlib.repr(entries)} is not exact in {dtype}")
    return array.reshape(shape) if isinstance(entries, list) else np.full(shape, array)
