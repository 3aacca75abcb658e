"""``DiffusionBC`` with any of its arguments, and its pair without L_DM."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from stable_baselines3.common import policies, utils
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.methods.base import (
    Method,
    Setup,
    Variant,
    optimizer_config,
    policy_config,
    undisturbed_randomness,
)
from sb3_diffbc import DiffusionBC, DiffusionCritic, StandardizedActorPolicy

EMA_DECAY = 0.999
"""Per update, of averaged weights."""
SETTINGS = ("allow_variable_horizon", "compile", *sorted(DiffusionBC.saved_arguments))
"""What a trainer's record says of it."""


class DiffusionBCMethod(Method):
    """``DiffusionBC`` with its default recipe.

    With ``dm_coef=0`` it is the pair of the same method with L_DM: weights, batches and recipe
    come from the same seed in the same order.

    Args:
        setup: demonstrations, spaces and seed.
        n_updates: length of the recipe, over which the learning rate falls to 0.
        net_arch: hidden layers of the policy; the default policy if None.
        patience: as in ``DiffusionBC.train``.
        averaged: whether to score the exponential average of the policy's weights, too.
        **arguments: of ``DiffusionBC``.
    """

    trainer_class: ClassVar[type[DiffusionBC]] = DiffusionBC
    """What trains; a study's own may have another loss."""
    _average: AveragedModel | None = None
    defaults: ClassVar[Mapping[str, Any]] = {
        name: parameter.default
        for name, parameter in inspect.signature(DiffusionBC).parameters.items()
    } | {"patience": None, "averaged": False}

    def __init__(
        self,
        setup: Setup,
        *,
        n_updates: int = DiffusionBC.DEFAULT_N_BATCHES,
        net_arch: Sequence[int] | None = None,
        patience: int | None = None,
        averaged: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(setup)
        if net_arch is not None:
            utils.set_random_seed(setup.seed)
            arguments["policy"] = StandardizedActorPolicy.from_demonstrations(
                setup.demonstrations, **setup.spaces, net_arch={"pi": list(net_arch), "vf": []}
            )
        self.trainer = self.trainer_class(
            demonstrations=setup.demonstrations,
            **setup.spaces,
            seed=setup.seed,
            device="cpu",
            verbose=0,
            **arguments,
        )
        self._patience = patience
        if averaged:
            average = get_ema_multi_avg_fn(EMA_DECAY)
            self._average = AveragedModel(self.trainer.policy, multi_avg_fn=average)
        self.length = n_updates
        self.trainer.DEFAULT_N_BATCHES = n_updates
        batch_size = self.trainer.recipe_batch_size
        given_rate = arguments.get("optimizer_kwargs", {}).get("lr")
        self.config = {
            "n_batches": n_updates,
            "recipe": "train() with its defaults: the learning rate falls linearly to 0",
            **{name: getattr(self.trainer, name) for name in SETTINGS},
            **{name: value for name, value in arguments.items() if name != "policy"},
            "patience": patience,
            "averaged": averaged,
            "batch_size": batch_size,
            "minibatch_size": batch_size,
            "first_learning_rate": given_rate or self.trainer.DEFAULT_LEARNING_RATE,
            "optimizer": optimizer_config(self.trainer.optimizer),
            "policy": policy_config(self.trainer.policy),
        }
        state = self.trainer.state
        if state.dm_coef_is_auto:
            self.config["dm_coef"] = "auto"
        if state.bc_loss_is_auto:
            self.config["bc_loss"] = "auto"
        if self.trainer.looks_at_labels:
            self.config["bad_labels"] = "left out"
        if self.trainer.dm_coef:
            # A critic draws its weights, and the pair of this method must not notice.
            with undisturbed_randomness():
                self.config["critic"] = DiffusionCritic(
                    **setup.spaces,
                    models=self.trainer.critic_models,
                    device="cpu",
                    **self.trainer.critic_kwargs,
                ).config

    @property
    def policy(self) -> policies.ActorCriticPolicy:
        """As the base class says."""
        return self.trainer.policy

    def train(self, on_progress: Callable[[], None]) -> None:
        """As the base class says; what precedes the first update is the critic's, or its choice."""
        if self.trainer.dm_coef or self.trainer.looks_at_labels:
            self.clock.switch("critic")

        def on_batch_end() -> None:
            if not self.updates:
                self.clock.switch("training")
            self.updates += 1
            if self._average is not None:
                self._average.update_parameters(self.trainer.policy)
            on_progress()

        self.trainer.train(on_batch_end=on_batch_end, progress_bar=False, patience=self._patience)

    def further_policies(self) -> dict[str, policies.BasePolicy]:
        """The average of the weights, if it is kept."""
        if self._average is None:
            return {}
        averaged = cast(policies.BasePolicy, self._average.module)
        averaged.set_training_mode(False)
        return {"averaged_weights": averaged}

    def measures(self) -> dict[str, float]:
        """The share of bad labels, the critic's least held-out loss, and the step that had it."""
        measures: dict[str, float] = {}
        if self.trainer.state.bad_label_share is not None:
            measures["bad_label_share"] = self.trainer.state.bad_label_share
        critic = self.trainer.critic
        if critic is None or critic.history is None:
            return measures
        measures |= {"critic/best_step": float(critic.history.best_step)}
        if critic.history.validation_loss:
            measures["critic/validation_loss"] = min(critic.history.validation_loss)
        return measures


VARIANTS = (
    Variant(
        "bc_paired",
        DiffusionBCMethod,
        {"dm_coef": 0.0, "bc_loss": "nll"},
        "BC (DiffusionBC's network)",
    ),
    Variant(
        "diffusion_bc",
        DiffusionBCMethod,
        {"dm_coef": 1.0, "bc_loss": "nll"},
        "DiffusionBC with L_DM",
    ),
    Variant("diffusion_bc_default", DiffusionBCMethod, title="DiffusionBC"),
)
