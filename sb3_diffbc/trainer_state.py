"""Saving and restoring a trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import gymnasium as gym
import torch as th
from imitation.algorithms import bc
from pydantic import JsonValue
from stable_baselines3.common import vec_env
from typing_extensions import Self

from sb3_diffbc import checkpoints
from sb3_diffbc.callbacks import CallbackModel
from sb3_diffbc.checkpoints.file import SUFFIX
from sb3_diffbc.checkpoints.policies import OPTIMIZERS
from sb3_diffbc.critic import DiffusionCritic, PairEncoder
from sb3_diffbc.critic.encoder import channels_first_space, resolve_device, space_name
from sb3_diffbc.critic.fitting import CriticFit, EarlyStopping, FitRecord, StoppingRecord
from sb3_diffbc.critic.saving import CriticContent
from sb3_diffbc.demonstrations.batches import PrefetchedBatches, TransitionBatches
from sb3_diffbc.evaluation import resolve_spaces
from sb3_diffbc.logger import make_logger
from sb3_diffbc.losses import BCLoss
from sb3_diffbc.policies import save_policy
from sb3_diffbc.schema import Model, NonNegativeInt, PositiveInt, Share
from sb3_diffbc.training_run import check_finite, restore_rates

LOADABLE = frozenset(
    {
        *("policy", "policy_kwargs", "optimizer_cls", "verbose", "tensorboard_log"),
        *("custom_logger", "compile", "device", "learning_rate"),
    }
)
"""The constructor's arguments that :meth:`ResumableBC.load` takes: no checkpoint holds them."""

NOT_SAVED = LOADABLE | {
    *("self", "demonstrations", "env", "observation_space", "action_space", "rng", "critic"),
    *("optimizer_kwargs", "seed"),
}
"""The constructor's arguments that a checkpoint does not hold as they were given."""


@dataclasses.dataclass
class TrainerState:
    """What a trainer remembers from one call of ``train`` to the next, beside its tensors.

    Attributes:
        policy_is_default: whether the policy was made by the trainer.
        learning_rate_is_default: whether neither an optimiser nor a rate was given.
        critic_is_own: whether the trainer fits the critic itself.
        critic_is_current: whether the critic was fitted to the present demonstrations, or given.
        has_statistics: whether encoder and policy have the demonstrations' statistics.
        n_updates: updates of the policy so far.
        recipe_updates: those of a default recipe that was interrupted.
        critic_max_steps: those of the critic's fit, if a short training limited them.
        has_rate_schedule: whether the learning rate is a function, which no file can hold.
        dm_coef_is_auto: whether the trainer chooses ``dm_coef``.
        bc_loss_is_auto: whether it chooses ``bc_loss``.
        bad_label_share: of the present demonstrations, if it was estimated for that.
    """

    policy_is_default: bool
    learning_rate_is_default: bool
    critic_is_own: bool
    critic_is_current: bool
    has_statistics: bool = False
    n_updates: NonNegativeInt = 0
    recipe_updates: NonNegativeInt = 0
    critic_max_steps: PositiveInt | None = None
    has_rate_schedule: bool = False
    dm_coef_is_auto: bool = False
    bc_loss_is_auto: bool = False
    bad_label_share: Share | None = None


class InterruptedPass(Model):
    """Where a trainer was in its demonstrations.

    Attributes:
        pass_seed: of the pass's order; None if no pass has begun.
        position: batches of the pass that are done.
        batch_size: rows per batch.
        fingerprint: of the demonstrations; empty for an iterable of batches.
    """

    pass_seed: NonNegativeInt | None
    position: NonNegativeInt
    batch_size: PositiveInt
    fingerprint: str


class TrainerContent(Model):
    """The JSON part of a trainer's checkpoint."""

    observation_space: checkpoints.SpaceRecord
    action_space: checkpoints.SpaceRecord
    arguments: dict[str, JsonValue]
    state: TrainerState
    policy: checkpoints.PolicyRecord
    policy_is_channels_first: bool = False
    optimizer: checkpoints.OptimizerRecord
    rng: checkpoints.RngRecord
    interrupted_pass: InterruptedPass | None
    tensorboard_step: NonNegativeInt
    critic: CriticContent | None
    unfinished_critic: CriticContent | None = None
    unfinished_fit: FitRecord | None = None
    best: StoppingRecord | None = None


class ResumableBC(CallbackModel, bc.BC):
    """The part of :class:`DiffusionBC` that saves a trainer and restores it.

    Attributes:
        saved_arguments: names of the constructor's arguments that a checkpoint holds.
        arguments: these arguments, as they were given.
        state: what else it remembers.
    """

    saved_arguments: ClassVar[frozenset[str]]
    arguments: dict[str, Any]
    state: TrainerState
    env: str | gym.Env | vec_env.VecEnv | None
    bc_coef: float
    bc_loss: BCLoss
    dm_coef: float
    critic: DiffusionCritic | None = None
    device: th.device
    _encoder: PairEncoder
    _noise_generator: th.Generator | None
    _batches: TransitionBatches | PrefetchedBatches | None
    _interrupted_pass: InterruptedPass | None
    _left_out: th.Tensor | None
    _fit: CriticFit | None
    best: EarlyStopping | None
    _random_state: th.Tensor | None

    @property
    def n_updates(self) -> int:
        """Updates of the policy so far."""
        return self.state.n_updates

    @property
    def num_timesteps(self) -> int:  # type: ignore[override]
        """Updates of the policy so far: what SB3's callbacks count in place of timesteps."""
        return self.state.n_updates

    @contextlib.contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Puts the trainer's own state of torch's global generator in place for a while."""
        fresh = th.Generator().manual_seed(th.initial_seed()).get_state()
        if th.equal(th.get_rng_state(), fresh):
            # Torch was seeded and nothing was drawn since: that is meant for this training.
            self._random_state = take_random_state()
        outside = th.get_rng_state()
        assert self._random_state is not None  # unless train is called inside of train
        th.set_rng_state(self._random_state)
        self._random_state = None
        try:
            yield
        finally:
            self._random_state = th.get_rng_state()
            th.set_rng_state(outside)

    @property
    def _current_random_state(self) -> th.Tensor:
        return th.get_rng_state() if self._random_state is None else self._random_state

    def __repr__(self) -> str:
        fit = "not fitted" if self.critic is None else "fitted"
        n = "none" if self._batches is None else "batches"
        if isinstance(self._batches, TransitionBatches):
            n = f"{len(self._batches.transitions.acts)} transitions"
        return (
            f"{type(self).__name__}({f'{self.env}: ' if isinstance(self.env, str) else ''}"
            f"{space_name(self.observation_space)} -> {space_name(self.action_space)}, "
            f"policy={type(self.policy).__name__}, bc_coef={self.bc_coef:g}, bc_loss="
            f"{self.bc_loss!r}, dm_coef={self.dm_coef:g}, demonstrations={n}, "
            f"n_updates={self.state.n_updates}, critic={fit if self.dm_coef else 'off'})"
        )

    def _warn_if_not_savable(self) -> None:
        """Says at once what :meth:`save` would refuse after the work, as far as that is known."""
        try:
            self._records()
            checkpoints.optimizer_to_state(self.optimizer, "")
        except (TypeError, ValueError) as error:
            warnings.warn(f"save will refuse this trainer: {error}", stacklevel=3)

    def _records(self) -> dict[str, Any]:
        """Returns what a checkpoint says of objects that only some kinds of are known."""
        return {
            "observation_space": checkpoints.SpaceRecord.of(self.observation_space),
            "action_space": checkpoints.SpaceRecord.of(self.action_space),
            "rng": checkpoints.RngRecord.of(self.rng),
        }

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes policy, critic, optimiser, random states and progress to one safe file.

        The demonstrations are not in it, only their hash. It may be called from a callback in
        the middle of training.

        Args:
            path: where to; ``.safetensors`` is appended if there is no suffix, and takes the
                place of ``.zip``, for which SB3's ``CheckpointCallback`` asks.

        Returns:
            The path written.

        Raises:
            TypeError: if an argument of the trainer cannot be written as JSON.
            ValueError: if a weight or the optimiser's state is NaN or infinite.
            RuntimeError: if the policy has diverged; a file that is there is left as it was.
            OSError: if the file cannot be written.
        """
        check_finite(self)
        tensors, optimizer = checkpoints.optimizer_to_state(self.optimizer, "optimizer/")
        tensors |= checkpoints.module_state(self.policy, "policy/")
        tensors |= checkpoints.module_state(self._encoder, "encoder/")
        tensors["rng/torch"] = self._current_random_state
        if self._noise_generator is not None:
            tensors["rng/noise"] = self._noise_generator.get_state()
        if self.critic is not None:
            tensors |= checkpoints.module_state(self.critic, "critic/")
        unfinished = None
        if self._fit is not None:
            fit_tensors, unfinished = self._fit.to_state("fit/")
            tensors |= checkpoints.module_state(self._fit.critic, "fit/critic/") | fit_tensors
        left_out = getattr(self._batches, "left_out", self._left_out)
        if left_out is not None:
            tensors["left_out"] = th.as_tensor(left_out)
        if self.best is not None:
            tensors |= {f"best/{name}": value for name, value in self.best.best_state.items()}
        # As they are now: a coefficient may have been changed between trainings. The present sizes
        # may be the default recipe's.
        arguments = {
            name: value if name in ("batch_size", "minibatch_size") else getattr(self, name, value)
            for name, value in self.arguments.items()
        }
        content = TrainerContent(
            **self._records(),
            arguments=arguments,
            state=self.state,
            policy=checkpoints.PolicyRecord.of(self.policy),
            policy_is_channels_first=self.policy.observation_space != self.observation_space,
            optimizer=optimizer,
            interrupted_pass=self._current_pass(),
            tensorboard_step=self._bc_logger._tensorboard_step,
            critic=None if self.critic is None else self.critic.to_content(),
            unfinished_critic=None if self._fit is None else self._fit.critic.to_content(),
            unfinished_fit=unfinished,
            best=None if self.best is None else self.best.to_record(),
        )
        path = _without_zip(path)
        return checkpoints.save_checkpoint(path, kind="trainer", tensors=tensors, content=content)

    def _current_pass(self) -> InterruptedPass | None:
        batches = self._batches
        if batches is None:
            # Loaded without demonstrations, and about to be saved again: they may come later.
            return self._interrupted_pass
        if not isinstance(batches, TransitionBatches):
            return InterruptedPass(
                pass_seed=None, position=0, batch_size=self.batch_size, fingerprint=""
            )
        return InterruptedPass(
            **dataclasses.asdict(batches.state),
            batch_size=batches.batch_size,
            fingerprint=batches.fingerprint,
        )

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        demonstrations: Any = None,
        env: str | gym.Env | vec_env.VecEnv | None = None,
        **arguments: Any,
    ) -> Self:
        """Restores a trainer that goes on where the saved one stood.

        Given the same demonstrations, ``train(n_batches=...)`` on the CPU ends with the same
        parameters as if the trainer had never been saved; its random state is its own. Nothing
        in the file is executed or imported.

        Args:
            path: the file.
            demonstrations: to go on training with; may be set later.
            env: as in the constructor.
            **arguments: the constructor's arguments that a checkpoint does not hold: ``verbose``,
                ``tensorboard_log``, ``custom_logger``, ``compile`` and ``device``; a
                ``learning_rate``, which is needed again if it was a function; and for classes
                that this library does not know, ``policy`` and ``policy_kwargs`` as in the
                constructor, or an instance of the same architecture, to load the weights into,
                and ``optimizer_cls``.

        Returns:
            The trainer.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: a ``ValueError``, if it is not a trainer's checkpoint, or names a
                policy or optimiser that has to be passed.
            ValueError: if ``env`` or ``demonstrations`` do not fit.
            TypeError: if an argument is unknown, or part of the checkpoint.
        """
        unknown = sorted(arguments.keys() - LOADABLE)
        if unknown:
            raise TypeError(f"load takes no {', '.join(unknown)}: expected of {sorted(LOADABLE)}.")
        arguments["custom_logger"] = make_logger(
            arguments.get("verbose", 1),
            arguments.pop("tensorboard_log", None),
            arguments.get("custom_logger"),
        )
        arguments["device"] = resolve_device(arguments.get("device", "auto"))
        if not os.path.exists(path):
            path = _without_zip(path)
        tensors, content = checkpoints.load_checkpoint(path, kind="trainer", content=TrainerContent)
        with checkpoints.reading_content(path, "trainer"):
            trainer = cls._from_content(content, tensors, **arguments)
        if env is not None:
            resolve_spaces(env, trainer.observation_space, trainer.action_space)
            trainer.env = env
        if demonstrations is not None:
            trainer.set_demonstrations(demonstrations)
        take_random_state()
        return trainer

    @classmethod
    def _from_content(
        cls,
        content: TrainerContent,
        tensors: Mapping[str, th.Tensor],
        optimizer_cls: type[th.optim.Optimizer] | None = None,
        **arguments: Any,
    ) -> Self:
        saved: dict[str, Any] = dict(content.arguments)
        if not saved.keys() <= cls.saved_arguments:
            # An environment's id among them would have Gymnasium import what it names.
            unknown = sorted(saved.keys() - cls.saved_arguments)
            raise checkpoints.CheckpointError(f"arguments: found {unknown}, which are never saved")
        observation_space = content.observation_space.build()
        action_space = content.action_space.build()
        if content.state.has_rate_schedule and arguments.get("learning_rate") is None:
            raise checkpoints.CheckpointError(
                "its learning rate is a function, which no file holds: pass learning_rate="
            )
        if arguments.get("policy") is arguments.get("policy_kwargs") is None:
            is_other = content.policy_is_channels_first
            space = channels_first_space(observation_space) if is_other else observation_space
            arguments["policy"] = content.policy.build(space, action_space, tensors)
        # Refused before the trainer makes its own, if it is larger than that in the file.
        checkpoints.check_fit(
            lambda: PairEncoder(observation_space, action_space), tensors, "encoder/"
        )
        with th.random.fork_rng(devices=[]):  # the first weights are overwritten
            trainer = cls(
                observation_space=observation_space,
                action_space=action_space,
                **saved,
                rng=content.rng.build(),
                optimizer_cls=optimizer_cls or _optimizer_class(content.optimizer.name),
                **arguments,
            )
        checkpoints.load_module_state(trainer.policy, tensors, "policy/")
        checkpoints.load_module_state(trainer._encoder, tensors, "encoder/")
        checkpoints.load_optimizer_state(
            trainer.optimizer, tensors, content.optimizer, "optimizer/"
        )
        rate = arguments.get("learning_rate")
        if rate is not None and not callable(rate):
            restore_rates(trainer.optimizer)
            for group in trainer.optimizer.param_groups:
                group["lr"] = rate
        state = {"has_rate_schedule": callable(rate)}
        if rate is not None:
            state["learning_rate_is_default"] = False
        trainer.state = dataclasses.replace(content.state, **state)
        trainer._interrupted_pass = content.interrupted_pass
        trainer._left_out = tensors.get("left_out")
        trainer._bc_logger._tensorboard_step = content.tensorboard_step
        if content.critic is not None:
            trainer.critic = DiffusionCritic.from_content(
                content.critic, tensors, "critic/", trainer.device
            )
            if "rng/noise" in tensors:
                trainer._noise_generator = th.Generator(trainer.device)
                trainer._noise_generator.set_state(tensors["rng/noise"])
        if content.unfinished_critic is not None and content.unfinished_fit is not None:
            critic = DiffusionCritic.from_content(
                content.unfinished_critic, tensors, "fit/critic/", trainer.device
            )
            trainer._fit = CriticFit.from_state(critic, content.unfinished_fit, tensors, "fit/")
        if content.best is not None:
            trainer.best = EarlyStopping(1)
            weights = checkpoints.matching_state(trainer.policy, tensors, "best/")
            trainer.best.load(content.best, weights if content.best.losses else {})
        th.Generator().set_state(tensors["rng/torch"])  # raises if it is none
        trainer._random_state = tensors["rng/torch"]
        return trainer

    def save_policy(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the policy alone, to be read by :func:`load_policy`.

        Args:
            path: where to; ``.safetensors`` is appended if there is no suffix.

        Returns:
            The path written.

        Raises:
            RuntimeError: if the policy has diverged; a file that is there is left as it was.
        """
        check_finite(self)
        return save_policy(self.policy, path)

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state for pickling, as DAgger does.

        An environment object stays behind, and so does a compiled loss, which the next
        :meth:`train` makes anew.
        """
        state = super().__getstate__()
        state["loss_calculator"] = None
        state["_random_state"] = self._current_random_state
        state["_made_env"] = state["_fit"] = None
        if not isinstance(self.env, str):
            state["env"] = None
        return state


def take_random_state() -> th.Tensor:
    """Returns torch's global random state, which then moves on by a draw.

    So the next trainer has another one, and it can be told whether torch is seeded afterwards.
    """
    state = th.get_rng_state()
    th.empty((), dtype=th.int64).random_()
    return state


def _without_zip(path: str | os.PathLike[str]) -> pathlib.Path:
    path = pathlib.Path(path)
    return path.with_suffix(SUFFIX) if path.suffix == ".zip" else path


def _optimizer_class(name: str) -> type[th.optim.Optimizer]:
    classes = {cls.__name__: cls for cls in OPTIMIZERS}
    if name not in classes:
        raise checkpoints.CheckpointError(
            f"the optimiser {name!r} is unknown: pass optimizer_cls= (known: {sorted(classes)})"
        )
    return classes[name]
