"""The remedies for cloning that any claim for L_DM has to beat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common import distributions
from torch import nn

from benchmarks.methods.base import Setup
from benchmarks.methods.diffusion_bc import DiffusionBCMethod
from sb3_diffbc import StandardizedActorPolicy, score_demonstrations
from sb3_diffbc.bad_demonstrations import By
from sb3_diffbc.demonstrations.trajectories import some_rows
from sb3_diffbc.policies import StandardizedFeatures

DROPOUT = 0.1
OBSERVATION_NOISE = 0.03
"""In standard deviations of the demonstrations."""
L2_WEIGHT = 1e-4
"""Of half the squared norm of the weights, in the loss, as in imitation."""


class DroppedTanh(nn.Sequential):
    """Tanh, of whose outputs a part is dropped in training."""

    def __init__(self) -> None:
        super().__init__(nn.Tanh(), nn.Dropout(DROPOUT))


class NoisyObservationsPolicy(StandardizedActorPolicy):
    """The default policy, which sees observations with noise while it learns."""

    def get_distribution(self, obs: Any) -> distributions.Distribution:
        """As the base class says."""
        if self.training:
            assert isinstance(self.features_extractor, StandardizedFeatures)
            obs = obs + OBSERVATION_NOISE * self.features_extractor.std * th.randn_like(obs)
        return super().get_distribution(obs)


class FilteredMethod(DiffusionBCMethod):
    """``DiffusionBC`` on what ``score_demonstrations`` rates best.

    Args:
        setup: demonstrations, spaces and seed.
        keep: share of the transitions or trajectories to learn from.
        by: which of both.
        scoring: further arguments of ``score_demonstrations``.
        **arguments: of :class:`DiffusionBCMethod`.
    """

    defaults: ClassVar[Mapping[str, Any]] = {**DiffusionBCMethod.defaults, "by": "transitions"}

    def __init__(
        self,
        setup: Setup,
        *,
        keep: float,
        by: By = "transitions",
        scoring: Mapping[str, Any] = MappingProxyType({}),
        **arguments: Any,
    ) -> None:
        super().__init__(setup, **arguments)
        self._keep, self._by, self._scoring = keep, by, dict(scoring)
        self.config |= {"keep": keep, "by": by, "scoring": self._scoring}

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says; the scores come first."""
        phase = self.clock.switch("critic")
        demonstrations = self.setup.demonstrations
        settings: dict[str, Any] = {"seed": self.setup.seed, "device": "cpu", "progress_bar": False}
        scores = score_demonstrations(
            demonstrations, **self.setup.spaces, **settings, **self._scoring
        )
        kept = scores.kept(self._keep, self._by)
        self.trainer.set_demonstrations(some_rows(demonstrations, kept))
        self.clock.switch(phase)
        super().train(on_progress)


_MSE: dict[str, Any] = {"dm_coef": 0.0, "bc_loss": "mse"}

REMEDIES: Mapping[str, Mapping[str, Any]] = {
    "mse, weight decay": _MSE | {"l2_weight": L2_WEIGHT},
    "mse, dropout": _MSE | {"policy_kwargs": {"activation_fn": DroppedTanh}},
    "mse, observation noise": _MSE | {"policy": NoisyObservationsPolicy},
    "mse, PyTorch's initial weights": _MSE | {"policy_kwargs": {"ortho_init": False}},
    "nll, PyTorch's initial weights": _MSE
    | {"bc_loss": "nll", "policy_kwargs": {"ortho_init": False}},
    "l1, PyTorch's initial weights": _MSE
    | {"bc_loss": "l1", "policy_kwargs": {"ortho_init": False}},
    "mse, early stopping": _MSE | {"validation_fraction": 0.1, "patience": 5},
}
"""Arguments of ``DiffusionBCMethod`` by name."""
