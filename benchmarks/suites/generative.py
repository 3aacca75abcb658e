"""Whether it takes a diffusion model: other generative models in the critic's place.

The paper's comparison of them, with and without L_BC, on Maze as there, and on demonstrations in
which a quarter of the actions are wrong.
"""

from typing import Any

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.methods.generative import (
    AdversarialModel,
    AutoencoderModel,
    EnergyModel,
    GenerativeMethod,
)
from benchmarks.suites.base import Suite
from benchmarks.suites.labels import labels_problem

_SHARED: dict[str, Any] = {"n_updates": 10_000, "bc_loss": "mse"}
_MODELS: dict[str, tuple[type[DiffusionBCMethod], dict[str, Any]]] = {
    "EBM": (GenerativeMethod, {"model": EnergyModel}),
    "VAE": (GenerativeMethod, {"model": AutoencoderModel}),
    "GAN": (GenerativeMethod, {"model": AdversarialModel}),
    # Per dimension of the action: on Maze four times the release's, which is per one of the pair.
    "diffusion": (DiffusionBCMethod, {"critic_models": "state_action", "dm_coef": 30.0}),
}

SUITE = Suite(
    name="generative",
    variants=(
        Variant("BC", DiffusionBCMethod, {**_SHARED, "dm_coef": 0.0}),
        *(
            Variant(name + suffix, method, {**_SHARED, **arguments, "bc_coef": bc_coef})
            for suffix, bc_coef in {" alone": 0.0, " and BC": 1.0}.items()
            for name, (method, arguments) in _MODELS.items()
        ),
    ),
    evaluation=Evaluation(n_episodes={"success": 100, "return": 100}, first_episode_seed=0),
    default_tasks=lambda _: ("maze-paper", "cheetah-paper+uniform25"),
    first_seed=100,
    n_seeds=5,
    problem=labels_problem,
)
