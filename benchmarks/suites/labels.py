"""What becomes of cloning where a part of the actions is not the expert's, or they are few.

A task's key says what was done to its demonstrations: ``maze-paper+uniform25`` has a quarter of
the actions replaced by uniform ones, ``walker-paper+few2`` has two trajectories, see
:mod:`benchmarks.corruption`.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from imitation.data import types

from benchmarks import corruption
from benchmarks.cell import Evaluation
from benchmarks.methods import diffusion_policy, regularised_bc
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.methods.studied_bc import StudiedMethod
from benchmarks.problems import Problem, default_keys, find_problem
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import TUNING_SEED
from sb3_diffbc.critic.score import NOISE_STD
from sb3_diffbc.losses import REGRESSIONS

N_UPDATES = 10_000

_KEY = re.compile(rf"(?P<task>[^+]+)\+(?P<kind>{'|'.join(corruption.KINDS)})(?P<amount>\d+)")


@dataclasses.dataclass(frozen=True)
class LabelsProblem(Problem):
    """A task whose demonstrations were spoilt or cut.

    Attributes:
        kind: of ``corruption.KINDS``.
        amount: percent of rows or trajectories, or number of trajectories.
    """

    kind: str = ""
    amount: int = 0

    def demonstrations(self) -> types.Transitions:
        """Loads the demonstrations and spoils them."""
        return corruption.KINDS[self.kind](self, super().demonstrations(), self.amount)


def labels_problem(key: str, paper_data: Path | None = None) -> Problem:
    """Returns a task, or a task with bad labels or few demonstrations.

    Raises:
        ValueError: if there is none of this key, or the authors' file is missing.
    """
    if "+" not in key:
        return find_problem(key, paper_data)
    found = _KEY.fullmatch(key)
    if found is None:
        raise ValueError(
            f"tasks: found {key!r}, expected a task, +, one of {', '.join(corruption.KINDS)}, and "
            "a number, as in maze+uniform25."
        )
    clean, amount = find_problem(found["task"], paper_data), int(found["amount"])
    kind = found["kind"]
    what = f"{amount} trajectories" if kind == "few" else f"{amount} % {kind}"
    title = f"{clean.title}, {what}"
    given = vars(clean) | {"key": key, "title": title}
    return LabelsProblem(**given, kind=kind, amount=amount)


_CRITICS: dict[str, dict[str, Any]] = {
    "BC": {"dm_coef": 0.0},
    **{
        f"{name} {dm_coef:g}": {"dm_coef": float(dm_coef), "critic_models": models}
        for name, models in {"p(a|s)": "action", "p(s,a)": "state_action"}.items()
        for dm_coef in (1, 3, 10, 30)
    },
}

_LOSSES_AND_CRITICS = tuple(
    Variant(
        f"{loss}, {critic}",
        DiffusionBCMethod,
        {
            "n_updates": N_UPDATES,
            "bc_loss": loss,
            # A further remedy, for the price of its evaluation.
            "averaged": (loss, critic) == ("mse", "BC"),
            **arguments,
        },
    )
    for loss in ("nll", *REGRESSIONS)
    for critic, arguments in _CRITICS.items()
)

_CONTRAST = Variant(
    "mse, contrast 3",
    StudiedMethod,
    {
        **{"n_updates": N_UPDATES, "bc_loss": "mse", **_CRITICS["p(a|s) 3"]},
        **{"is_contrast": True, "noise_std": NOISE_STD},
    },
)

_AUTO = Variant(
    "mse, auto",
    DiffusionBCMethod,
    {"n_updates": N_UPDATES, "bc_loss": "mse", "dm_coef": "auto"},
)

_DEFAULTS = Variant("defaults", DiffusionBCMethod, {"n_updates": N_UPDATES})

_DECAYED = tuple(
    Variant(
        f"defaults, weight decay {weight:g}",
        DiffusionBCMethod,
        {"n_updates": N_UPDATES, "l2_weight": weight},
    )
    for weight in (regularised_bc.L2_WEIGHT, 1e-3)
)

_REMEDIES = tuple(
    Variant(name, DiffusionBCMethod, {"n_updates": N_UPDATES, **arguments})
    for name, arguments in regularised_bc.REMEDIES.items()
)

_FILTERS: dict[str, dict[str, Any]] = {
    "by score": {"scoring": {}},
    "by residual": {"scoring": {"method": "residual"}},
    "of trajectories by score": {"by": "trajectories"},
    "of trajectories by residual": {"by": "trajectories", "scoring": {"method": "residual"}},
}

_FILTERED = tuple(
    Variant(
        f"mse, best 75 % {title}",
        regularised_bc.FilteredMethod,
        {"n_updates": N_UPDATES, "bc_loss": "mse", **_CRITICS["BC"], "keep": 0.75, **arguments},
    )
    for title, arguments in _FILTERS.items()
)

SUITE = Suite(
    name="labels",
    variants=(
        *_LOSSES_AND_CRITICS,
        _CONTRAST,
        _AUTO,
        _DEFAULTS,
        *_DECAYED,
        *_REMEDIES,
        *_FILTERED,
        *(
            dataclasses.replace(
                variant, arguments={**variant.arguments, "n_updates": N_UPDATES}, title=""
            )
            for variant in diffusion_policy.VARIANTS
        ),
    ),
    default_variants=("mse, BC", "nll, BC", "l1, BC", "mse, p(a|s) 3", "defaults"),
    evaluation=Evaluation(n_episodes={"success": 100, "return": 100}, first_episode_seed=0),
    default_tasks=lambda paper_data: tuple(
        task + suffix
        for suffix in (
            *("", "+uniform25", "+uniform10", "+uniform40", "+swapped25", "+swapped10"),
            *("+zeros25", "+zeros10", "+novice25"),
        )
        for task in default_keys(paper_data)
    ),
    first_seed=100,
    n_seeds=5,
    problem=labels_problem,
)

FEW = dataclasses.replace(
    SUITE,
    name="few",
    default_tasks=lambda paper_data: tuple(
        f"{task}+few{n}"
        for task, counts in {
            **dict.fromkeys(default_keys(paper_data)[3:5], (1, 2, 5)),
            default_keys(paper_data)[0]: (10, 25, 50, 100),
            "fetch_pick": (10, 30, 100),
        }.items()
        for n in counts
    ),
)
"""The same with few demonstrations."""

TUNING = dataclasses.replace(
    SUITE,
    name="labels-tuning",
    default_variants=None,
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 50}, first_episode_seed=TUNING_SEED
    ),
    default_tasks=lambda _: tuple(
        task + suffix
        for task in ("cheetah-paper", "maze-paper", "walker-paper")
        for suffix in ("", "+uniform25")
    ),
    first_seed=0,
    n_seeds=2,
)
"""The search, on three of the tasks, for what the study tries on all."""
