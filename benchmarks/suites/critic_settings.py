"""What L_DM depends on: one setting of the critic, of its loss or of the coefficients at a time.

The base clones by squared error with λ_BC 1 and L_DM of p(a | s) at λ_DM 3. Clean demonstrations
of Maze, and of Cheetah such in which a quarter of the actions are wrong.

There is no variant without the expert's term: where nothing is clamped it is a constant, so that
"clamp none" is that variant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.studied_bc import StudiedMethod
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import TUNING_SEED
from benchmarks.suites.labels import labels_problem
from sb3_diffbc.critic.score import NOISE_STD

BASE: Mapping[str, Any] = {
    **{"n_updates": 10_000, "bc_loss": "mse", "bc_coef": 1.0},
    **{"critic_models": "action", "dm_coef": 3.0},
}
"""What a variant changes."""
COEFFICIENTS = (
    *((1.0, 0.0), (30.0, 0.1), (10.0, 0.1), (30.0, 0.5), (2.0, 0.1), (30.0, 1.0), (30.0, 2.0)),
    *((1.0, 0.1), (0.5, 0.1), (2.0, 0.5), (30.0, 10.0), (1.0, 0.5), (1.0, 1.0), (1.0, 2.0)),
    *((0.5, 2.0), (2.0, 10.0), (1.0, 10.0), (2.0, 30.0), (0.5, 10.0), (1.0, 30.0), (0.5, 30.0)),
    *((0.1, 10.0), (0.1, 30.0), (0.0, 1.0)),
)
"""λ_BC and λ_DM of {0, 0.1, 0.5, 1, 2, 10, 30}, one pair for each ratio other than the base's.

To Adam a loss and ten times the loss are the same.
"""

_CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    **{
        f"schedule {name}": {"critic_kwargs": {"beta_schedule": name}}
        for name in ("linear", "cosine")
    },
    # Whose noise ends at a std of 0.8.
    "T 100": {"critic_kwargs": {"num_train_timesteps": 100}},
    "noise <= 0.3": {"noise_std": (0.0, 0.3)},
    "noise <= 0.5": {"noise_std": (0.0, 0.5)},
    "noise >= 0.5": {"noise_std": (0.5, 1.0)},
    "l1": {"bc_loss": "l1"},
    **{f"l1, noise <= {std}": {"bc_loss": "l1", "noise_std": (0.0, std)} for std in (0.3, 0.5)},
    **{f"draws {n}": {"n_draws": n} for n in (4, 16)},
    **{f"clamp {name}": {"dm_clamp": name} for name in ("batch", "none")},
    "contrast": {"is_contrast": True, "noise_std": NOISE_STD},
    "critic p(a)": {"critic_sees_obs": False},
    "critic p(s,a)": {"critic_models": "state_action"},
    # Its loss is a mean over the state's dimensions, too, so that λ_DM weighs less.
    "critic p(s,a), λ 1 x 30": {"critic_models": "state_action", "dm_coef": 30.0},
}
_WEIGHTS: dict[str, dict[str, Any]] = {
    f"λ {bc_coef:g} x {dm_coef:g}": {"bc_coef": bc_coef, "dm_coef": dm_coef}
    for bc_coef, dm_coef in COEFFICIENTS
}


SUITE = Suite(
    name="critic-settings",
    variants=tuple(
        Variant(name, StudiedMethod, {**BASE, **changes})
        for name, changes in {**_CHANGES, **_WEIGHTS}.items()
    ),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=TUNING_SEED
    ),
    default_tasks=lambda _: ("maze-paper", "cheetah-paper+uniform25"),
    first_seed=100,
    n_seeds=5,
    problem=labels_problem,
)
