"""Diffusion Model-Augmented Behavioral Cloning on top of imitation's BC."""

import inspect
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch as th
from imitation.data import types
from imitation.util import logger as imit_logger
from pydantic import JsonValue
from stable_baselines3.common import logger as sb3_logger
from stable_baselines3.common import utils, vec_env
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_diffbc import export, rl, trainer_state
from sb3_diffbc.critic import DiffusionCritic, PairEncoder
from sb3_diffbc.critic.encoder import check_spaces_of, resolve_device
from sb3_diffbc.demonstrations import validate_demonstrations
from sb3_diffbc.demonstrations.batches import (
    PassState,
    TransitionBatches,
    make_batches,
)
from sb3_diffbc.demonstrations.splitting import hold_out
from sb3_diffbc.evaluation import Env, EvaluationResult, evaluate_episodes, resolve_spaces
from sb3_diffbc.logger import DiffusionBCLogger, make_logger
from sb3_diffbc.losses import BCLoss
from sb3_diffbc.policies import Policy, make_policy
from sb3_diffbc.schema import (
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Share,
    checked_arguments,
)
from sb3_diffbc.training import BC_BATCH_SIZE, TrainableBC
from sb3_diffbc.training_run import with_learning_rate


class DiffusionBC(TrainableBC):
    """Diffusion Model-Augmented Behavioral Cloning (DBC), https://arxiv.org/abs/2302.13335.

    A diffusion critic is fitted to the expert's (observation, action) pairs, then frozen; the
    policy learns by behavioural cloning while the critic pulls its actions towards the expert's
    distribution: ``L = bc_coef · L_BC + dm_coef · L_DM``. Only the policy is needed afterwards.

    It is an ``imitation.algorithms.bc.BC``: all its arguments keep their names and meanings, and
    DAgger, callbacks, rollout logging and gradient accumulation work as with BC. With
    ``dm_coef=0`` and ``bc_loss="nll"`` it is BC, on batches that are gathered faster, and so it is
    by default where the demonstrated actions look good.

    Args:
        demonstrations: what imitation's BC takes (transitions, trajectories, any iterable of
            batches), or what :func:`load_demonstrations` takes (a path, a bundled set's name).
        env: environment id, ``gymnasium.Env`` or ``VecEnv``. Gives the two spaces, and is what
            :meth:`evaluate` runs in. Not needed for training.
        observation_space: needed only without ``env``.
        action_space: needed only without ``env``.
        rng: used for rollouts while training, as in BC; made from ``seed`` if None.
        policy: an SB3 actor-critic policy, used as it is; or the class of one; or one of SB3's
            names that fits the observations (``"MlpPolicy"``, ``"CnnPolicy"``,
            ``"MultiInputPolicy"``), which stand for :class:`StandardizedActorPolicy`, as None
            does. It keeps the demonstrations' statistics inside.
        policy_kwargs: arguments of a policy that is not given as an instance, as in SB3.
        critic: a fitted :class:`DiffusionCritic`. Without one, :meth:`train` first fits its own
            to the demonstrations, once; again only after :meth:`set_demonstrations`.
        bc_coef: weight of the cloning loss, the paper's λ_BC.
        dm_coef: weight of the diffusion loss, the paper's λ_DM, where the loss counts per dimension
            of the action. 0 turns it off, which is the default: no study has shown that it beats
            cloning alone where labels are good, or leaving out those that are bad. The default is 1
            where a critic or options of one are given. With ``"auto"`` it is :attr:`AUTO_DM_COEF`
            if some actions look bad, else 0.
        bc_loss: ``"nll"``, imitation's negative log likelihood; an error of standardised actions,
            ``"mse"``, the paper's squared one, ``"l1"``, the absolute, or ``"huber"``, which bad
            actions pull less; or ``"auto"``: ``"mse"`` where L_DM is on, as in the paper, else
            ``"nll"``. Where it or ``dm_coef`` is ``"auto"``, a training of at least
            :attr:`SHORTEST_LOOKED_AT` updates first looks at new demonstrations and leaves out
            actions that look bad (:meth:`bad_label_share`, :attr:`left_out`); where that cannot
            be, as with an iterable of batches, ``"l1"`` takes the place of ``"nll"``. For actions
            that are not of a Box, whose most likely one a few bad labels do not change, none
            count as bad. Beside an error, the spread of a Gaussian policy learns from the
            likelihood around its mean.
        dm_clamp: ``"sample"`` clamps L_DM at 0 per sample (the paper's formula), ``"batch"`` on
            batch means (the authors' release), ``"none"`` not at all.
        critic_models: what the trainer's own critic models: ``"action"``, p(a | s), or
            ``"state_action"``, p(s, a), as in the paper. By default p(a | s) for Box actions and
            p(s, a) otherwise, where L_DM of a sharp p(a | s) over one-hot codes keeps the
            probabilities of an untrained policy equal for long.
        critic_kwargs: further arguments of the trainer's own :class:`DiffusionCritic`. Without
            ``"n_steps"`` its fit takes at most as many steps as the policy takes updates.
        batch_size: samples per update. By default 32, as in BC; the default recipe of
            :meth:`train` then takes :attr:`DEFAULT_BATCH_SIZE`.
        minibatch_size: samples per gradient accumulation step; a factor of ``batch_size``. With
            it, the default recipe keeps to ``batch_size`` too.
        optimizer_cls: optimiser of the policy.
        learning_rate: a number, in place of ``optimizer_kwargs["lr"]``, or as in SB3 a function
            of the progress that remains, from 1 to 0 over a call of :meth:`train` (over the whole
            default recipe, whose own decay it replaces). No checkpoint holds a function:
            :meth:`load` needs it again.
        optimizer_kwargs: its arguments. With Adam and no ``"lr"`` among them, the default recipe
            starts at :attr:`DEFAULT_LEARNING_RATE`, and other trainings have Adam's own rate.
        ent_weight: weight of the entropy bonus (of ``bc_loss="nll"``); a penalty if negative.
        l2_weight: weight of half the squared norm of the parameters, at least 0.
        seed: seeds Python, NumPy and torch, as in SB3.
        validation_fraction: share of the trajectories, as ``dones`` tell them apart, that nothing
            is fitted to; L_BC on them is logged as ``bc/validation_loss``. Which ones depends on
            the demonstrations alone. The rest is copied to memory.
        verbose: 0 prints nothing at all, 1 shows a progress bar and a line per tenth of a
            training, 2 also the tables that imitation's BC prints.
        tensorboard_log: folder for TensorBoard logs.
        compile: whether the loss goes through ``torch.compile``. Results are the same up to
            rounding. The first update takes some ten seconds longer, the others less time. It
            needs a C++ compiler, and observations of a Box; torch's own errors come through. Not
            part of a checkpoint.
        device: where policy and critic live; ``"auto"`` takes a GPU where there is one, any other
            that is missing is an error.
        custom_logger: where to log; excludes ``tensorboard_log``.

    Raises:
        ValueError: for an argument outside its range, spaces that are missing or differ, a
            critic that is not fitted or has other spaces, or demonstrations that do not fit.
        TypeError: for an argument of another type.
    """

    def __init__(
        self,
        *,
        demonstrations: Any = None,
        env: str | gym.Env | vec_env.VecEnv | None = None,
        observation_space: gym.Space | None = None,
        action_space: gym.Space | None = None,
        rng: np.random.Generator | None = None,
        policy: Policy | None = None,
        policy_kwargs: Mapping[str, Any] | None = None,
        critic: DiffusionCritic | None = None,
        bc_coef: NonNegativeFloat = 1.0,
        dm_coef: NonNegativeFloat | Literal["auto"] | None = None,
        bc_loss: BCLoss | Literal["auto"] = "auto",
        dm_clamp: Literal["sample", "batch", "none"] = "sample",
        critic_models: Literal["state_action", "action"] | None = None,
        critic_kwargs: Mapping[str, JsonValue] | None = None,
        batch_size: PositiveInt | None = None,
        minibatch_size: PositiveInt | None = None,
        optimizer_cls: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: Mapping[str, Any] | None = None,
        learning_rate: PositiveFloat | Callable[[float], float] | None = None,
        ent_weight: Number = 1e-3,
        l2_weight: NonNegativeFloat = 0.0,
        validation_fraction: Share = 0.0,
        seed: NonNegativeInt | None = None,
        verbose: int | bool = 1,
        tensorboard_log: str | os.PathLike[str] | None = None,
        compile: bool = False,
        device: str | th.device = "auto",
        custom_logger: sb3_logger.Logger | None = None,
    ) -> None:
        given = checked_arguments(DiffusionBC.__init__, locals())
        self.arguments = {name: given[name] for name in self.saved_arguments}
        # With NumPy's numbers as Python's, which files hold and PyTorch takes.
        batch_size, minibatch_size = given["batch_size"], given["minibatch_size"]
        ent_weight, l2_weight = given["ent_weight"], given["l2_weight"]
        validation_fraction, seed = given["validation_fraction"], given["seed"]
        logger = make_logger(verbose, tensorboard_log, custom_logger)
        self._logger_is_given = True
        if seed is not None:
            utils.set_random_seed(seed)
        self.compile = compile
        self.env = env
        self.verbose = verbose
        self.validation_fraction = validation_fraction
        self.held_out: types.TransitionsMinimal | None = None
        self.observation_space, self.action_space = resolve_spaces(
            env, observation_space, action_space
        )
        self.device = resolve_device(device)
        is_box = isinstance(self.action_space, gym.spaces.Box)
        self.ent_weight, self.l2_weight = ent_weight, l2_weight
        self.dm_clamp = dm_clamp
        self.bc_coef = float(bc_coef)
        if dm_coef is None:
            dm_coef = float(critic is not None or bool(critic_models or critic_kwargs))
        # What is to be chosen is so until the first training.
        self.dm_coef = 0.0 if dm_coef == "auto" else float(dm_coef)
        self.bc_loss = self._loss_for(is_robust=False) if bc_loss == "auto" else bc_loss
        self.critic_models = critic_models or ("action" if is_box else "state_action")
        self.critic_kwargs: dict[str, Any] = dict(critic_kwargs or {})
        self.critic = self._check_critic(critic)
        self.learning_rate = learning_rate
        optimizer_kwargs = with_learning_rate(optimizer_kwargs, learning_rate)
        self.state = trainer_state.TrainerState(
            policy_is_default=not isinstance(policy, ActorCriticPolicy),
            learning_rate_is_default=optimizer_cls is th.optim.Adam
            and "lr" not in optimizer_kwargs,
            has_rate_schedule=callable(learning_rate),
            critic_is_own=critic is None,
            critic_is_current=critic is not None,
            dm_coef_is_auto=dm_coef == "auto",
            bc_loss_is_auto=bc_loss == "auto",
        )
        self._encoder = PairEncoder(self.observation_space, self.action_space).to(self.device)
        self._noise_generator = None
        self._batches = None
        self._interrupted_pass = self._left_out = None
        self._fit = self.best = None
        spaces = self.observation_space, self.action_space
        policy = make_policy(policy, policy_kwargs, *spaces)
        super().__init__(
            observation_space=policy.observation_space,
            action_space=self.action_space,
            rng=np.random.default_rng(seed) if rng is None else rng,
            policy=policy,
            demonstrations=demonstrations,
            batch_size=batch_size or BC_BATCH_SIZE,
            minibatch_size=minibatch_size,
            optimizer_cls=optimizer_cls,
            optimizer_kwargs=optimizer_kwargs,
            ent_weight=ent_weight,
            l2_weight=l2_weight,
            device=self.device,
            custom_logger=logger,
        )
        # Whose images may be channels last, where those of the policy's are first.
        self.observation_space = spaces[0]
        self._bc_logger = DiffusionBCLogger(self.logger, self.policy)
        self._warn_if_not_savable()
        self._random_state = trainer_state.take_random_state()

    @property
    def logger(self) -> imit_logger.HierarchicalLogger:
        """Where all is logged; DAgger puts its own here, which prints as ``verbose`` says."""
        return self._logger

    @logger.setter
    def logger(self, value: imit_logger.HierarchicalLogger) -> None:
        self._logger = make_logger(self.verbose, None, value)
        self._logger_is_given = False
        if "_bc_logger" in vars(self):
            self._bc_logger._logger = self._logger

    def _check_critic(self, critic: DiffusionCritic | None) -> DiffusionCritic | None:
        if critic is None:
            # Made only to be thrown away: wrong options are reported now, not in train().
            self._new_critic()
            return None
        if self.critic_kwargs:
            raise ValueError("critic_kwargs are for the trainer's own critic, but critic is given.")
        critic._check_fitted()
        check_spaces_of("critic", critic, self.observation_space, self.action_space)
        return critic.to(self.device)

    def set_demonstrations(self, demonstrations: Any) -> None:
        """Sets the demonstrations; an own critic is fitted to them at the next :meth:`train`.

        Args:
            demonstrations: as in the constructor.

        Raises:
            ValueError: if they do not fit the spaces or are fewer than a batch.
            TypeError: if they are of an unknown kind.
        """
        held_out = None
        self._use_batch_size(self._own_batch_size)
        if self.validation_fraction:
            if isinstance(demonstrations, th.utils.data.DataLoader):  # DAgger's is a plain one
                loader = make_batches(demonstrations, self.minibatch_size)
                demonstrations = getattr(loader, "transitions", loader)
            demonstrations, held_out = hold_out(demonstrations, self.validation_fraction)
            if isinstance(demonstrations, types.TransitionsMinimal):
                # A copy in memory, of which cloning has no use for ``next_obs`` and ``dones``.
                parts = {name: getattr(demonstrations, name) for name in ("obs", "acts", "infos")}
                demonstrations = types.TransitionsMinimal(**parts)
        batches = make_batches(demonstrations, self.minibatch_size)
        if isinstance(batches, TransitionBatches):
            self._validate(batches.transitions)
        if held_out is not None:
            validate_demonstrations(
                held_out,
                observation_space=self.observation_space,
                action_space=self.action_space,
            )
        self.held_out = held_out
        self._batches = batches
        self._demo_data_loader = batches  # type: ignore[assignment]
        interrupted, self._interrupted_pass = self._interrupted_pass, None
        if interrupted is None or not self._continue_pass(interrupted):
            self.state.critic_is_current = not self.state.critic_is_own
            self._fit = self.best = None
            self.state.recipe_updates = 0
            self._forget_choice()

    def _continue_pass(self, interrupted: trainer_state.InterruptedPass) -> bool:
        """Continues the pass that a saved trainer was in, if these are its demonstrations."""
        if not isinstance(self._batches, TransitionBatches):
            # There is no telling, and an iterable of batches has no place to go back to.
            return True
        if interrupted.fingerprint != self._batches.fingerprint:
            return False
        if self._batch_size_is_default:
            self._use_batch_size(interrupted.batch_size)
        if self._left_out is not None:
            self._batches.leave_out(self._left_out.numpy())
        self._batches.state = PassState(interrupted.pass_seed, interrupted.position)
        return True

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Returns the policy's actions and ``state``, as ``predict`` of an SB3 policy does."""
        return self.policy.predict(observation, state, episode_start, deterministic)

    def evaluate(
        self, n_episodes: int = 100, *, env: Env | None = None, **kwargs: Any
    ) -> EvaluationResult:
        """Runs the policy for episodes that are fixed by their seeds.

        Args:
            n_episodes: number of episodes.
            env: where; the constructor's environment if None.
            **kwargs: further arguments of :func:`evaluate_episodes`, such as ``seed``,
                ``deterministic``, ``progress_bar`` and ``video_folder``.

        Returns:
            Returns, lengths and successes per episode.

        Raises:
            ValueError: if there is no environment, and as :func:`evaluate_episodes` does.
        """
        env = self._env("evaluate", env)
        return evaluate_episodes(self.policy, env, n_episodes=n_episodes, **kwargs)

    def to_rl(
        self,
        algorithm: type[rl.AlgorithmT],
        env: str | gym.Env | vec_env.VecEnv | None = None,
        **kwargs: Any,
    ) -> rl.AlgorithmT:
        """Makes an SB3 algorithm, such as PPO, that goes on from the cloned policy.

        Args:
            algorithm: ``PPO``, ``A2C``, or ``TRPO`` of sb3-contrib.
            env: where to learn; the constructor's environment if None.
            **kwargs: further arguments of :func:`sb3_diffbc.to_rl` and of the algorithm.

        Returns:
            The algorithm, whose actor is a copy of the policy.

        Raises:
            ValueError: if there is no environment, and as :func:`sb3_diffbc.to_rl` does.
            TypeError: as :func:`sb3_diffbc.to_rl` does.
        """
        return rl.to_rl(self.policy, algorithm, self._env("to_rl", env), **kwargs)

    def export_onnx(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the policy as an ONNX model; see :func:`sb3_diffbc.export_onnx`.

        Args:
            path: where to; ``.onnx`` is appended if there is no suffix.

        Returns:
            The path written.
        """
        return export.export_onnx(self.policy, path)

    def _env(self, method: str, env: Any) -> Any:
        env = self.env if env is None else env
        if env is None:
            raise ValueError(f"env is missing: give it to {method} or to the constructor.")
        return env


DiffusionBC.saved_arguments = frozenset(
    inspect.signature(DiffusionBC.__init__).parameters.keys() - trainer_state.NOT_SAVED
)
