"""NumPy's random generators as JSON."""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sb3_diffbc.schema import Model

_Word128 = Annotated[int, Field(ge=0, lt=2**128)]


class _State(Model):
    state: _Word128
    inc: _Word128


class RngRecord(Model):
    """The state of a ``numpy.random.Generator`` as ``numpy.random.default_rng`` makes it.

    The fields are those of ``PCG64.state``. What ``Generator.spawn`` would give is not part of it.
    """

    bit_generator: Literal["PCG64"]
    state: _State
    has_uint32: Annotated[int, Field(ge=0, le=1)]
    uinteger: Annotated[int, Field(ge=0, lt=2**32)]

    @classmethod
    def of(cls, rng: np.random.Generator) -> "RngRecord":
        """Records a generator's state.

        Raises:
            TypeError: if ``rng`` is not a Generator over PCG64.
        """
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng is a {type(rng).__name__}: expected a numpy.random.Generator")
        if type(rng.bit_generator) is not np.random.PCG64:
            raise TypeError(
                f"rng draws from {type(rng.bit_generator).__name__}, which checkpoints cannot "
                "hold: expected PCG64, which numpy.random.default_rng uses"
            )
        return cls.model_validate(rng.bit_generator.state)

    def build(self) -> np.random.Generator:
        """Returns a new generator that continues where the recorded one stood."""
        bit_generator = np.random.PCG64()
        state: Any = self.model_dump()
        bit_generator.state = state
        return np.random.Generator(bit_generator)
