"""GAIL and AIRL of imitation, with PPO as generator."""

import contextlib
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from imitation.algorithms.adversarial.airl import AIRL
from imitation.algorithms.adversarial.common import AdversarialTrainer
from imitation.algorithms.adversarial.gail import GAIL
from imitation.rewards.reward_nets import BasicRewardNet, BasicShapedRewardNet, RewardNet
from imitation.util import logger as imit_logger
from imitation.util.networks import RunningNorm

from benchmarks.methods.base import Setup, Variant
from benchmarks.methods.on_policy import OnPolicyMethod

DISCRIMINATOR: Mapping[str, Any] = MappingProxyType(
    {
        "demo_batch_size": 512,
        "n_disc_updates_per_round": 8,
        "gen_replay_buffer_capacity": 4096,
        "disc_opt_kwargs": {"lr": 1e-3},
    }
)


class Adversarial(OnPolicyMethod):
    """An adversarial trainer of imitation, whose generator is PPO.

    Args:
        setup: demonstrations, spaces, seed and training environment.
        trainer: the trainer's class.
        reward_net: class of what the trainer learns as reward.
        hidden: sizes of the reward network's hidden layers by argument of its class.
        **arguments: of the base class.

    Raises:
        TypeError: for Dict observations.
        ValueError: if there are fewer environment steps than a round has.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        trainer: type[AdversarialTrainer],
        reward_net: Callable[..., RewardNet],
        hidden: Mapping[str, tuple[int, ...]],
        **arguments: Any,
    ) -> None:
        super().__init__(setup, **arguments)
        self._discriminator = {
            **DISCRIMINATOR,
            "demo_batch_size": min(DISCRIMINATOR["demo_batch_size"], len(self.demonstrations)),
        }
        self._trainer_class, self._reward_net, self._hidden = trainer, reward_net, hidden
        self._trainer = self._make_trainer()
        self.config |= {
            "discriminator": self._discriminator,
            "reward_net": {
                "class": type(self._trainer._reward_net).__name__,
                **hidden,
                "normalize_input_layer": RunningNorm.__name__,
            },
            "allow_variable_horizon": True,
        }

    def _make_trainer(self) -> AdversarialTrainer:
        network = self._reward_net(
            self.setup.observation_space,
            self.setup.action_space,
            **self._hidden,
            normalize_input_layer=RunningNorm,
        )
        return self._trainer_class(
            demonstrations=self.demonstrations,
            venv=self.venv,
            gen_algo=self.ppo,
            reward_net=network,
            custom_logger=imit_logger.configure(format_strs=[]),
            allow_variable_horizon=True,
            **self._discriminator,
        )

    def learn(self, on_round_end: Callable[[], None]) -> None:
        """As the base class says."""
        if self.clone is not None:
            self.ppo = self.make_ppo(self.venv)
            self._trainer = self._make_trainer()
        # imitation's progress bar cannot be turned off.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            self._trainer.train(self.length * self.rollout_steps, lambda _: on_round_end())


VARIANTS = (
    Variant(
        "gail",
        Adversarial,
        {"trainer": GAIL, "reward_net": BasicRewardNet, "hidden": {"hid_sizes": (32, 32)}},
        "GAIL",
    ),
    Variant(
        "airl",
        Adversarial,
        {
            "trainer": AIRL,
            "reward_net": BasicShapedRewardNet,
            "hidden": {"reward_hid_sizes": (32, 32), "potential_hid_sizes": (32, 32)},
        },
        "AIRL",
    ),
)
