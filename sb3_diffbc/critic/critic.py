"""The diffusion critic: a model of the expert's (observation, action) pairs."""

import copy
import inspect
import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch as th
from imitation.util import logger as imit_logger
from pydantic import Field
from torch import nn

from sb3_diffbc import checkpoints
from sb3_diffbc.critic.denoiser import ResidualDenoiser
from sb3_diffbc.critic.encoder import (
    Observations,
    PairEncoder,
    Pairs,
    resolve_device,
    to_tensor_obs,
)
from sb3_diffbc.critic.fitting import CriticFit, CriticHistory
from sb3_diffbc.critic.release import ReleaseDenoiser, convert_release_weights
from sb3_diffbc.critic.sampling import sample_codes
from sb3_diffbc.critic.saving import SavedCritic
from sb3_diffbc.critic.schedule import Noise, NoiseSchedule
from sb3_diffbc.critic.score import Calibration, calibrated, score_pairs
from sb3_diffbc.demonstrations import validate_demonstrations
from sb3_diffbc.demonstrations.batches import as_transitions, to_tensor
from sb3_diffbc.demonstrations.formats import load_state_dict
from sb3_diffbc.schema import (
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    checked_arguments,
)

DENOISERS: dict[str, type[ResidualDenoiser] | type[ReleaseDenoiser]] = {
    "residual": ResidualDenoiser,
    "release": ReleaseDenoiser,
}

_MEAN_DRAWS = 16
# With less noise its prediction fails for every pair, with more it succeeds for every pair.
_MEAN_STDS = (0.1, 0.6)
_MAX_ROWS = 16_384


class DiffusionCritic(SavedCritic):
    """Denoising diffusion model φ of expert pairs (Chen et al., 2024, section 4.2).

    Pairs are standardised and concatenated; the model learns to predict the noise that was
    added to them. Once fitted it is frozen, and its loss tells how much a pair looks like the
    expert's.

    Args:
        observation_space: observations of the demonstrations; any space that SB3 preprocesses.
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        models: ``"state_action"`` models p(s, a), noise on both, as in the paper;
            ``"action"`` models p(a | s), noise on the action only.
        denoiser: ``"residual"`` (default) or ``"release"``, the authors' network.
        width: hidden units per layer.
        depth: residual blocks, or hidden layers of the release's network.
        beta_schedule: see :class:`NoiseSchedule`.
        num_train_timesteps: number of noise levels T.
        learning_rate: Adam's peak learning rate, decayed to 0 along a half cosine.
        batch_size: pairs per step; at most the number of training pairs.
        n_steps: optimiser steps at most.
        max_epochs: passes through the training pairs at most, which ends the fit of a small
            set before ``n_steps``.
        validation_fraction: share of the pairs held out for early stopping, in [0, 1).
        patience: evaluations (there are 25 in ``n_steps``) without a better held-out loss
            before the fit stops.
        ema_decay: decay per step of the averaged weights that are evaluated and kept; 0 keeps
            the raw weights.
        seed: makes the initial weights and the fit reproducible and leaves torch's global
            random state as it was; with None, both are drawn from that state.
        device: where the critic lives; ``"auto"`` takes a GPU where there is one.

    Raises:
        ValueError: for an argument outside its range.
        TypeError: for an argument of another type, or an unsupported action space.
    """

    _mean_timesteps: th.Tensor
    _mean_epsilon: th.Tensor

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        models: Literal["state_action", "action"] = "state_action",
        denoiser: Literal["residual", "release"] = "residual",
        # Sizes are limited so that a damaged checkpoint cannot exhaust the memory.
        width: Annotated[PositiveInt, Field(le=2**14)] = 96,
        depth: Annotated[PositiveInt, Field(le=2**6)] = 2,
        beta_schedule: str = "sigmoid",
        num_train_timesteps: Annotated[PositiveInt, Field(le=2**17)] = 1000,
        learning_rate: PositiveFloat = 2e-3,
        batch_size: PositiveInt = 128,
        n_steps: PositiveInt = 6000,
        max_epochs: PositiveInt = 200,
        validation_fraction: Share = 0.1,
        patience: PositiveInt = 5,
        ema_decay: Share = 0.995,
        seed: NonNegativeInt | None = None,
        device: th.device | str = "auto",
    ) -> None:
        given = {name: value for name, value in locals().items() if name in self.saved_settings}
        self.config: dict[str, Any] = checked_arguments(DiffusionCritic.__init__, given)
        super().__init__()
        self.observation_space = observation_space
        self.action_space = action_space
        self.models = self.config["models"]
        self.is_fitted = False
        self.history: CriticHistory | None = None
        self.schedule = NoiseSchedule(beta_schedule, num_train_timesteps)
        self.encoder = PairEncoder(observation_space, action_space)
        # Dimensions that get noise, and hence are predicted.
        self.noise_dim = self.encoder.act_dim + (
            self.encoder.obs_dim if models == "state_action" else 0
        )
        stds = self.schedule.sqrt_one_minus_alphas_cumprod
        wanted = th.linspace(*_MEAN_STDS, _MEAN_DRAWS)
        timesteps = (stds - wanted.unsqueeze(-1)).abs().argmin(dim=-1)
        # Drawn on the CPU, so that it is the same on every device.
        epsilon = th.randn(_MEAN_DRAWS, self.noise_dim, generator=th.Generator().manual_seed(0))
        self.register_buffer("_mean_timesteps", timesteps, persistent=False)
        self.register_buffer("_mean_epsilon", epsilon, persistent=False)
        # Only a seed of its own is set aside afterwards: without one, the next critic differs.
        with th.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                # Unlike th.manual_seed, this leaves GPUs alone.
                th.default_generator.manual_seed(self.config["seed"])
            self.denoiser = DENOISERS[denoiser](
                self.encoder.obs_dim,
                self.encoder.act_dim,
                self.noise_dim,
                **{name: self.config[name] for name in ("num_train_timesteps", "width", "depth")},
            )
            self._fit_seed = int(th.randint(2**31, ()))
        self.calibration = Calibration(self)
        self.to(resolve_device(device))
        self._freeze()

    @property
    def device(self) -> th.device:
        """Where the critic's tensors live."""
        return self.schedule.betas.device

    def _freeze(self) -> None:
        # L_DM needs gradients of the actions alone.
        self.requires_grad_(False)
        self.eval()

    def draw_noise(self, batch_size: int, generator: th.Generator | None = None) -> Noise:
        """Draws noise levels and noise for a batch.

        Levels come in antithetic pairs, as in the DBC authors' release: the first half of the
        batch draws n uniformly, the second half uses T - 1 - n, so that the mean level of a batch
        is always (T - 1) / 2 and the loss varies less.

        Args:
            batch_size: number of levels.
            generator: source of randomness, on the critic's device; torch's global one if None.

        Returns:
            Levels and noise on the critic's device.
        """
        n_levels = self.schedule.num_train_timesteps
        half = th.randint(
            n_levels, ((batch_size + 1) // 2,), generator=generator, device=self.device
        )
        timesteps = th.cat([half, n_levels - 1 - half])[:batch_size]
        shape = (batch_size, self.noise_dim)
        return Noise(timesteps, th.randn(shape, generator=generator, device=self.device))

    def l_diff(
        self,
        state: th.Tensor,
        action: th.Tensor,
        noise: Noise,
        denoiser: nn.Module | None = None,
    ) -> th.Tensor:
        """Computes L_diff, the one loss that the fit, its validation, the score and L_DM share.

        ``L_diff = ‖ε̂_φ(x_n, n) − ε‖² / dim`` with ``x_n = √ᾱ_n · x_0 + √(1 − ᾱ_n) · ε`` (Ho et
        al., 2020, equation 14 and 4; Chen et al., 2024, section 4.2), where x_0 is the pair, or
        the action alone for a model of p(a | s).

        Args:
            state: state codes, ``(batch, obs_dim)``.
            action: action codes, ``(batch, act_dim)``.
            noise: levels n and noise ε, for each row or one for all rows.
            denoiser: the network ε̂_φ; the critic's own if None.

        Returns:
            Losses of shape ``(batch,)``.
        """
        timesteps, epsilon = noise
        if self.models == "state_action":
            pair = self.schedule.add_noise(th.cat([state, action], dim=-1), epsilon, timesteps)
            state, action = pair.split([self.encoder.obs_dim, self.encoder.act_dim], dim=-1)
        else:
            action = self.schedule.add_noise(action, epsilon, timesteps)
        predicted = (denoiser or self.denoiser)(state, action, timesteps)
        return (predicted - epsilon).square().mean(dim=-1)

    def denoising_loss(
        self,
        obs: Observations,
        acts: th.Tensor | np.ndarray,
        *,
        noise: Noise | None = None,
        generator: th.Generator | None = None,
    ) -> th.Tensor:
        """Estimates L_diff(s, a; φ) of every pair from one draw of the noise (:meth:`l_diff`).

        Args:
            obs: observations, ``(batch, *obs_shape)``, or a mapping of such.
            acts: actions, ``(batch, *act_shape)``, or relaxed ones (see ``relaxed_action``).
            noise: levels and noise to use; drawn if None.
            generator: source of randomness for the draw, on the critic's device; torch's
                global one if None.

        Returns:
            Losses of shape ``(batch,)``, differentiable in floating-point ``acts``.

        Raises:
            ValueError: if the numbers of rows differ, or the critic is not fitted.
        """
        state, action = self._codes(obs, acts)
        return self.l_diff(state, action, noise or self.draw_noise(len(action), generator))

    def _codes(
        self, obs: Observations, acts: th.Tensor | np.ndarray
    ) -> tuple[th.Tensor, th.Tensor]:
        """Returns the codes of pairs, ``(n, obs_dim)`` and ``(n, act_dim)``."""
        self._check_fitted()
        state = self.encoder.encode_obs(to_tensor_obs(obs, self.device))
        action = self.encoder.encode_acts(to_tensor(acts, self.device))
        if len(state) != len(action):
            raise ValueError(
                f"obs and acts have {len(state)} and {len(action)} rows: expected the same number."
            )
        return state, action

    def _check_judges_states(self) -> None:
        """Raises if the critic is not fitted, or :meth:`mean_denoising_loss` tells no states."""
        self._check_fitted()
        if self.models != "state_action":
            raise ValueError(
                f"critic models {self.models!r}: expected 'state_action', because p(a | s) "
                "says nothing of a policy's states."
            )

    @th.no_grad()
    def mean_denoising_loss(self, obs: Observations, acts: th.Tensor | np.ndarray) -> th.Tensor:
        """Computes L_diff of pairs as a mean over noise levels and noise that never change.

        The more a pair is like the expert's, the less. A model of p(s, a) judges states and actions
        alike; in :meth:`score`, which compares actions at one state, how likely the state is
        cancels.

        Args:
            obs: observations, ``(n, *obs_shape)``, or a mapping of such.
            acts: actions of the space, ``(n, *act_shape)``.

        Returns:
            Doubles of shape ``(n,)``, on the critic's device: about 1 for a model without any
            knowledge, more where it is wrong. They depend neither on the other rows nor on the
            call.

        Raises:
            ValueError: if the numbers of rows differ, or the critic is not fitted.
        """
        state, action = self._codes(obs, acts)
        means = []
        n = _MAX_ROWS // _MEAN_DRAWS
        for pair in zip(state.split(n), action.split(n), strict=True):
            rows = len(pair[0])
            noise = Noise(self._mean_timesteps.repeat(rows), self._mean_epsilon.repeat(rows, 1))
            state, action = (codes.repeat_interleave(_MEAN_DRAWS, dim=0) for codes in pair)
            losses = self.l_diff(state, action, noise)
            means.append(losses.view(rows, _MEAN_DRAWS).double().mean(dim=-1))
        return th.cat(means)

    def score(
        self, obs: Observations, acts: th.Tensor | np.ndarray, *, raw: bool = False
    ) -> th.Tensor:
        """Tells how expert-like pairs are, as the share of the expert's pairs that score lower.

        It compares L_diff of a pair with that of the same action at other observations, under
        noise that is always the same: a pair gets the same score whatever it comes with. The
        expert's pairs are those that were held out from the fit, and with
        ``validation_fraction=0`` and after :meth:`from_release` those of the fit itself, beside
        which new pairs of the expert score somewhat low.

        Args:
            obs: observations, ``(n, *obs_shape)``, or a mapping of such.
            acts: actions of the space, ``(n, *act_shape)``.
            raw: return the difference of losses that is ranked, which has no ends: 0 is an action
                that fits its observation as well as others, and more is better.

        Returns:
            Scores of shape ``(n,)``: 0 for pairs that are less expert-like than all of the
            expert's, 0.5 for the expert's median, 1 for pairs that are more so than all.

        Raises:
            ValueError: if the critic is not fitted, or the pairs do not fit its spaces, are none,
                or hold NaN.
        """
        return score_pairs(self, obs, acts, raw)

    def calibrate(self, demonstrations: Any) -> None:
        """Takes other pairs of the expert's as those that :meth:`score` counts.

        Args:
            demonstrations: as in :meth:`fit`; best such as the fit has not seen.

        Raises:
            ValueError: if the critic is not fitted, or the demonstrations do not fit it.
        """
        self._check_fitted()
        transitions = as_transitions(demonstrations)
        self._validate(transitions)
        pairs = Pairs(self.encoder, transitions.obs, transitions.acts)
        self.calibration = calibrated(self, pairs, th.arange(len(transitions)))

    def fit(
        self,
        demonstrations: Any,
        *,
        progress_bar: bool = True,
        logger: imit_logger.HierarchicalLogger | None = None,
    ) -> CriticHistory:
        """Fits the critic by noise prediction (Ho et al., 2020, algorithm 1).

        Calling it again starts from the present weights with new statistics. A fit that fails or
        is interrupted leaves the critic as it was.

        Args:
            demonstrations: imitation transitions, or whatever ``load_demonstrations`` takes.
            progress_bar: whether to show steps and losses.
            logger: gets ``critic/...`` records at each evaluation.

        Returns:
            The curves, also kept as ``history``.

        Raises:
            ValueError: if the demonstrations do not fit the spaces, hold NaN, or are empty.
            RuntimeError: if the loss or the weights diverge.
        """
        transitions = as_transitions(demonstrations)
        before = copy.deepcopy(self.state_dict())
        try:
            return CriticFit(self).run(transitions, progress_bar=progress_bar, logger=logger)
        except BaseException:
            self.load_state_dict(before)
            raise

    def _validate(self, transitions: Any) -> None:
        validate_demonstrations(
            transitions,
            observation_space=self.observation_space,
            action_space=self.action_space,
        )

    def _take_statistics(self, transitions: Any) -> None:
        self._validate(transitions)
        self.encoder.fit(transitions.obs, transitions.acts)

    @th.no_grad()
    def sample(
        self,
        n: int | None = None,
        *,
        obs: Observations | None = None,
        generator: th.Generator | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """Draws pairs from the model by ancestral sampling (Ho et al., 2020, algorithm 2).

        Args:
            n: number of pairs, for a model of p(s, a).
            obs: observations to draw one action for each, for a model of p(a | s).
            generator: source of randomness, on the critic's device; torch's global one if None.

        Returns:
            Flattened observations ``(n, obs_dim)`` and actions of the action space.

        Raises:
            ValueError: if ``n`` is missing or below 1, or ``obs`` is given, for p(s, a); if
                ``obs`` is missing or ``n`` is given, for p(a | s); if the critic is not fitted.
        """
        if self.models == "action" and (obs is None or n is not None):
            raise ValueError(
                "A critic of p(a | s) samples one action for each row of obs: "
                f"found n={n}{' and no obs' if obs is None else ''}."
            )
        if self.models == "state_action" and (obs is not None or n is None or n < 1):
            raise ValueError(
                "A critic of p(s, a) samples n >= 1 pairs: "
                f"found n={n}{'' if obs is None else ' and obs'}."
            )
        self._check_fitted()
        state = None if obs is None else self.encoder.encode_obs(to_tensor_obs(obs, self.device))
        n = len(state) if state is not None else n
        state, action = sample_codes(self, n or 0, state, generator)
        return self.encoder.decode_obs(state), self.encoder.decode_acts(action)

    @classmethod
    def from_release(
        cls,
        weights: str | os.PathLike[str] | Mapping[str, th.Tensor],
        demonstrations: Any,
        observation_space: gym.Space,
        action_space: gym.Space,
        *,
        device: th.device | str = "auto",
    ) -> "DiffusionCritic":
        """Makes a critic of a diffusion model that the DBC authors' code trained.

        Args:
            weights: the model's state dict, or the path of the file that holds it, which is read
                without unpickling objects.
            demonstrations: what the model was trained on; the release standardises with their
                statistics, which its file does not hold.
            observation_space: their observations' space.
            action_space: their actions' space.
            device: where to put the critic.

        Returns:
            A fitted critic with the release's network.

        Raises:
            ValueError: if the weights are not those of the release's network, or they or the
                demonstrations do not fit the spaces.
        """
        try:
            weights = convert_release_weights(
                weights if isinstance(weights, Mapping) else load_state_dict(weights)
            )
        except ValueError as error:
            where = "weights" if isinstance(weights, Mapping) else os.fspath(weights)
            raise ValueError(f"{where} cannot be taken over: {error}") from error
        num_train_timesteps, width = weights["step_embeddings.0.weight"].shape
        critic = cls(
            observation_space,
            action_space,
            denoiser="release",
            width=width,
            depth=sum(name.startswith("step_embeddings.") for name in weights),
            num_train_timesteps=num_train_timesteps,
            device=device,
        )
        checkpoints.load_module_state(critic.denoiser, weights, "")
        transitions = as_transitions(demonstrations)
        critic._take_statistics(transitions)
        critic.is_fitted = True
        critic.calibrate(transitions)
        return critic


DiffusionCritic.saved_settings = frozenset(
    inspect.signature(DiffusionCritic.__init__).parameters.keys()
    - {"self", "observation_space", "action_space", "device"}
)
