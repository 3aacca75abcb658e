"""Why L_DM helps or does not: what the critic knows, what its gradient does, what comes of it.

Each cell trains on the first nine tenths of the demonstrations and looks at the rest. Policies are
those of the defaults, trained on batches of 32 at BC's learning rate of 1e-3, where cloning
overfits; only the cloning loss and L_DM vary. Scores are on the episodes kept for tuning, so
nothing here uses the comparison's episodes.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from imitation.data import types

from benchmarks.cell import Evaluation
from benchmarks.methods.base import Setup, Variant
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from benchmarks.suites.base import Suite
from benchmarks.suites.defaults import TUNING_SEED
from sb3_diffbc import DiffusionBC
from sb3_diffbc.losses import DiffusionBCMetrics

TRAIN_SHARE = 0.9
DRAWS = 16
"""Noise draws per pair."""
_MAX_PAIRS = 2048


class DiagnosedDiffusionBC(DiffusionBCMethod):
    """``DiffusionBC`` on a part of the demonstrations, with measures on this part and the rest."""

    def __init__(self, setup: Setup, **arguments: Any) -> None:
        train, held_out = split(setup.demonstrations)
        super().__init__(replace(setup, demonstrations=train), **arguments)
        self.config["train_share"] = TRAIN_SHARE
        self._parts = {"train": train, "held_out": held_out}

    def measures(self) -> dict[str, float]:
        """Cloning errors, losses of the critic, and the balance of gradients."""
        measures = super().measures()
        for name, part in self._parts.items():
            measures[f"cloning_error/{name}"] = cloning_error(self.trainer, part)
            if self.trainer.critic is not None:
                measures |= critic_losses(self.trainer, part, name)
        if self.trainer.critic is not None:
            balance = gradient_balance(self.trainer, self._parts["train"])
            measures |= {f"gradient/{key}": value for key, value in balance.items()}
        return measures


def split(transitions: types.Transitions) -> tuple[types.Transitions, types.Transitions]:
    """Returns the first nine tenths and the rest; neighbours in time would be too alike."""
    n_train = int(len(transitions) * TRAIN_SHARE)
    return transitions[:n_train], transitions[n_train:]


def _tensors(transitions: types.Transitions) -> tuple[th.Tensor, th.Tensor]:
    rows = np.linspace(0, len(transitions) - 1, min(_MAX_PAIRS, len(transitions))).astype(int)
    return (
        th.as_tensor(types.assert_not_dictobs(transitions.obs)[rows], dtype=th.float32),
        th.as_tensor(transitions.acts[rows], dtype=th.float32),
    )


@th.no_grad()
def cloning_error(trainer: DiffusionBC, transitions: types.Transitions) -> float:
    """Returns the mean squared error of the policy's mean in units of the actions' variance."""
    obs, acts = _tensors(transitions)
    mean = trainer.policy.get_distribution(obs).mode()
    return float(((mean - acts) / th.as_tensor(transitions.acts).std(dim=0)).square().mean())


@th.no_grad()
def critic_losses(
    trainer: DiffusionBC, transitions: types.Transitions, part: str
) -> dict[str, float]:
    """Returns what the critic says of the policy's and of the expert's actions.

    Returns:
        The mean losses ``l_diff/<part>/agent`` and ``l_diff/<part>/expert``; in
        ``active/<part>`` the share of (pair, noise) draws in which the agent's loss is above the
        expert's, which give a gradient; in ``active_in_mean/<part>`` the share of pairs for which
        the losses' means over draws are so.
    """
    critic = trainer.critic
    assert critic is not None
    obs, acts = _tensors(transitions)
    mean = trainer.policy.get_distribution(obs).mode()
    generator = th.Generator().manual_seed(0)
    draws = [critic.draw_noise(len(acts), generator) for _ in range(DRAWS)]
    agent = th.stack([critic.denoising_loss(obs, mean, noise=noise) for noise in draws])
    expert = th.stack([critic.denoising_loss(obs, acts, noise=noise) for noise in draws])
    return {
        f"l_diff/{part}/agent": float(agent.mean()),
        f"l_diff/{part}/expert": float(expert.mean()),
        f"active/{part}": float((agent > expert).float().mean()),
        f"active_in_mean/{part}": float((agent.mean(dim=0) > expert.mean(dim=0)).float().mean()),
    }


def gradient_balance(trainer: DiffusionBC, transitions: types.Transitions) -> dict[str, float]:
    """Returns the norm of L_DM's weighted gradient relative to L_BC's, and their cosine."""
    obs, acts = _tensors(transitions)
    metrics = trainer.loss_calculator(trainer.policy, obs, acts)
    assert isinstance(metrics, DiffusionBCMetrics)
    assert metrics.dm is not None
    cloning = metrics.neglogp if metrics.regression is None else metrics.regression
    learnt = list(trainer.policy.mlp_extractor.policy_net.parameters())
    by_loss = [
        th.cat([g.flatten() for g in th.autograd.grad(loss, learnt, retain_graph=True)])
        for loss in (trainer.bc_coef * cloning, trainer.dm_coef * metrics.dm.loss)
    ]
    return {
        "norm_ratio": float(by_loss[1].norm() / by_loss[0].norm()),
        "cosine": float(th.cosine_similarity(by_loss[0], by_loss[1], dim=0)),
    }


def _mse(dm_coef: float, **arguments: Any) -> dict[str, Any]:
    return {"bc_loss": "mse", "dm_coef": dm_coef, "critic_models": "state_action", **arguments}


_RECIPE: dict[str, Any] = {
    "batch_size": 32,
    "optimizer_kwargs": {"lr": 1e-3},
    "averaged": True,
}
_VARIANTS: dict[str, dict[str, Any]] = {
    "nll, BC": {"bc_loss": "nll", "dm_coef": 0.0},
    "nll, p(a|s), 1 (default)": {"bc_loss": "nll", "dm_coef": 1.0, "critic_models": "action"},
    "nll, p(a|s), 10": {"bc_loss": "nll", "dm_coef": 10.0, "critic_models": "action"},
    "mse, BC": {"bc_loss": "mse", "dm_coef": 0.0},
    "mse, p(s,a), 1": _mse(1.0),
    "mse, p(s,a), 10": _mse(10.0),
    "mse, p(s,a), 30": _mse(30.0),
    "mse, p(s,a), 10, batch means": _mse(10.0, dm_clamp="batch"),
    "mse, p(s,a), 10, no clamp": _mse(10.0, dm_clamp="none"),
}
"""Arguments of ``DiffusionBC`` by name: cloning loss, critic, dm_coef, clamp (per sample)."""

SUITE = Suite(
    name="diagnosis",
    variants=tuple(
        Variant(
            name,
            DiagnosedDiffusionBC,
            _RECIPE | arguments,
        )
        for name, arguments in _VARIANTS.items()
    ),
    evaluation=Evaluation(
        n_episodes={"success": 100, "return": 100}, first_episode_seed=TUNING_SEED
    ),
    default_tasks=lambda _: ("maze-paper", "cheetah-paper", "walker-paper"),
)
