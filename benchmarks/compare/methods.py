"""The table of methods: how each is made, and roughly what it costs."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

from benchmarks.compare import interactive, offline
from benchmarks.compare.learners import Learner, Setup


@dataclasses.dataclass(frozen=True)
class ComparedMethod:
    """A method of the comparison.

    Attributes:
        key: as in ``benchmarks.records.METHOD_TITLES``.
        make: gives a learner that has not trained yet; refuses what the method cannot do.
        training_seconds: rough cost of a training on one core, for the order of cells.
        act_ms: rough cost of an action among 25, likewise.
        is_interactive: whether it learns in the environment too.
        is_default: whether it runs, for a user's own task, without being asked for.
    """

    key: str
    make: Callable[[Setup], Learner]
    training_seconds: float
    act_ms: float
    is_interactive: bool = False
    is_default: bool = True


METHODS: Mapping[str, ComparedMethod] = MappingProxyType(
    {
        method.key: method
        for method in (
            ComparedMethod("bc", offline.PlainBC, 30, 0.01),
            ComparedMethod("bc_paired", offline.bc_paired, 17, 0.01),
            ComparedMethod("diffusion_bc", offline.diffusion_bc, 35, 0.01),
            ComparedMethod(
                "diffusion_bc_paper", offline.WithPaperSettings, 300, 0.02, is_default=False
            ),
            ComparedMethod("implicit_bc", offline.implicit_bc, 100, 0.65),
            ComparedMethod("diffusion_policy", offline.diffusion_policy, 40, 0.6),
            ComparedMethod("diffusion_policy_ddim", offline.diffusion_policy_ddim, 40, 0.06),
            ComparedMethod("gail", interactive.gail, 100, 0.01, is_interactive=True),
            ComparedMethod("airl", interactive.airl, 100, 0.01, is_interactive=True),
        )
    }
)
"""The methods by key, in the order of tables."""
