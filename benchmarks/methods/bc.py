"""Behavioral Cloning as imitation has it."""

from collections.abc import Callable

import numpy as np
from imitation.algorithms import bc
from imitation.util import logger as imit_logger
from stable_baselines3.common import policies, utils

from benchmarks.methods.base import Method, Setup, Variant, optimizer_config, policy_config
from sb3_diffbc import DiffusionBC


class PlainBC(Method):
    """imitation's ``BC`` with its own defaults.

    Args:
        setup: demonstrations, spaces and seed.
        n_updates: gradient updates; by default as many as ``DiffusionBC`` makes.
    """

    def __init__(self, setup: Setup, *, n_updates: int = DiffusionBC.DEFAULT_N_BATCHES) -> None:
        super().__init__(setup)
        utils.set_random_seed(setup.seed)
        self.length = n_updates
        self.trainer = bc.BC(
            **setup.spaces,
            demonstrations=setup.demonstrations,
            rng=np.random.default_rng(setup.seed),
            device="cpu",
            custom_logger=imit_logger.configure(format_strs=[]),
        )
        loss = self.trainer.loss_calculator
        self.config = {
            "n_batches": n_updates,
            "batch_size": self.trainer.batch_size,
            "ent_weight": loss.ent_weight,
            "l2_weight": loss.l2_weight,
            "optimizer": optimizer_config(self.trainer.optimizer),
            "policy": policy_config(self.trainer.policy),
        }

    @property
    def policy(self) -> policies.ActorCriticPolicy:
        """As the base class says."""
        return self.trainer.policy

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says."""

        def on_batch_end() -> None:
            self.updates += 1
            on_progress()

        self.trainer.train(n_batches=self.length, on_batch_end=on_batch_end, progress_bar=False)


VARIANTS = (Variant("bc", PlainBC, title="BC (imitation's defaults)"),)
