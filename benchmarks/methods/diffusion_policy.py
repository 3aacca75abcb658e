"""Diffusion Policy (Chi et al., 2023, https://arxiv.org/abs/2303.04137) for states.

Models p(a | s): a network learns to predict the noise in a noisy action given the observation
and the noise level (equation 5), and an action is drawn by denoising random noise (equation 4).

As in the paper and its release: 100 levels of the squared cosine schedule, actions scaled to
[-1, 1] and the clean estimate clipped to it, AdamW with betas (0.95, 0.999) and a learning rate
that falls to 0 along a half cosine, averaged weights whose decay grows as 1 - n^-0.75 up to
0.9999, DDPM with the smaller of its two variances over all levels, or DDIM over fewer.

What deviates, to compare with BC and as the DBC paper compares it: one action for one
observation, neither chunks nor a history, hence this library's residual MLP in place of the
U-Net or the transformer; observations are standardised rather than scaled to [-1, 1]; a learning
rate of 1e-3, without warm-up, for budgets of thousands of updates (the paper: 1e-4 for hundreds
of thousands). DDIM visits levels counted from the noisiest, which starts from pure noise as it
assumes (the release: multiples counted from 0), and takes the noise from the clipped estimate
(the release: from the network).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch as th
from torch.nn import functional as F  # noqa: N812  (torch's own convention)
from torch.optim.swa_utils import AveragedModel

from benchmarks.methods.base import Setup, Variant
from benchmarks.methods.sampling import SamplingMethod
from sb3_diffbc.critic import ResidualDenoiser
from sb3_diffbc.critic.schedule import NoiseSchedule

SAMPLERS = {"ddpm": 1.0, "ddim": 0.0}
"""η of each sampler: the share of DDPM's fresh noise (Song et al., 2021, equation 16)."""

_BETA_SCHEDULE = "squaredcos_cap_v2"
_CODE_CLIP = 1.0
_EMA_POWER = 0.75
_EMA_MAX_DECAY = 0.9999


class ReverseStep(NamedTuple):
    """One step x ← clean_weight · x̂₀ + noisy_weight · x + sigma · z of the reverse process.

    At the noise level of x, ``signal`` is √ᾱ and ``noise`` √(1 - ᾱ), for
    x̂₀ = (x - noise · ε̂) / signal.
    """

    level: int
    signal: float
    noise: float
    clean_weight: float
    noisy_weight: float
    sigma: float


def reverse_steps(schedule: NoiseSchedule, n_steps: int, eta: float) -> tuple[ReverseStep, ...]:
    """Coefficients of DDIM's family of samplers (Song et al., 2021, equations 12 and 16).

    With ``eta=1`` and all levels it is DDPM (Ho et al., 2020, equation 7) with the posterior's
    variance; with ``eta=0`` it is the deterministic DDIM. The noise is taken from the clipped
    clean estimate, as DDPM's posterior does, not from the network once more.

    Args:
        schedule: the noise levels.
        n_steps: how many of them to visit, evenly spaced, from the noisiest on.
        eta: share of fresh noise.

    Raises:
        ValueError: if ``n_steps`` is not between 1 and the number of levels.
    """
    n_levels = schedule.num_train_timesteps
    if not 1 <= n_steps <= n_levels:
        raise ValueError(f"n_steps={n_steps} must be between 1 and the {n_levels} noise levels.")
    levels = [round(n_levels * (n_steps - i) / n_steps) - 1 for i in range(n_steps)]
    shares = schedule.alphas_cumprod.double().tolist()
    steps = []
    for level, next_level in zip(levels, [*levels[1:], None], strict=True):
        share = shares[level]
        next_share = 1.0 if next_level is None else shares[next_level]
        variance = eta**2 * (1 - next_share) / (1 - share) * (1 - share / next_share)
        noisy_weight = ((1 - next_share - variance) / (1 - share)) ** 0.5
        steps.append(
            ReverseStep(
                level=level,
                signal=share**0.5,
                noise=(1 - share) ** 0.5,
                clean_weight=next_share**0.5 - noisy_weight * share**0.5,
                noisy_weight=noisy_weight,
                sigma=variance**0.5,
            )
        )
    return tuple(steps)


def denoise(
    predict_noise: Callable[[th.Tensor, int], th.Tensor],
    steps: tuple[ReverseStep, ...],
    start: th.Tensor,
    fresh_noise: th.Tensor | None = None,
    clip: float | None = _CODE_CLIP,
) -> th.Tensor:
    """Runs the reverse process (Chi et al., 2023, equation 4).

    Args:
        predict_noise: maps noisy samples and their level to the predicted noise.
        steps: from :func:`reverse_steps`.
        start: standard normal noise, ``(batch, dim)``.
        fresh_noise: standard normal, ``(len(steps), batch, dim)``; None where no step has a sigma.
        clip: limit of the clean estimate; None for no limit.
    """
    sample = start
    for index, step in enumerate(steps):
        clean = (sample - step.noise * predict_noise(sample, step.level)) / step.signal
        if clip is not None:
            clean = clean.clamp_(-clip, clip)
        sample = clean.mul_(step.clean_weight).add_(sample, alpha=step.noisy_weight)
        if step.sigma > 0 and fresh_noise is not None:
            sample = sample.add_(fresh_noise[index], alpha=step.sigma)
    return sample


class DiffusionPolicy(SamplingMethod):
    """Diffusion Policy that predicts one action, with an MLP denoiser.

    ``deterministic`` makes no difference: as in the paper, an action is always a draw, and DDIM
    is deterministic only given the noise that it starts from.

    Args:
        setup: see :class:`SamplingMethod`.
        width: hidden units per layer.
        depth: number of residual blocks, which have two layers each.
        num_train_timesteps: number of noise levels T.
        sampler: ``"ddpm"`` or ``"ddim"``.
        n_inference_steps: noise levels that the sampler visits; all if None.
        **shared: further arguments of :class:`SamplingMethod`.

    Raises:
        TypeError: if the action space is not a Box.
        ValueError: for an unknown sampler or number of levels, or if the demonstrations do not
            fit the spaces or are fewer than a batch.
    """

    lr_decay = "cosine"

    network: ResidualDenoiser

    def __init__(
        self,
        setup: Setup,
        *,
        width: int = 128,
        depth: int = 3,
        num_train_timesteps: int = 100,
        sampler: str = "ddpm",
        n_inference_steps: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(setup, width=width, depth=depth, **shared)
        self.config |= {
            "num_train_timesteps": num_train_timesteps,
            "beta_schedule": _BETA_SCHEDULE,
            "sampler": sampler,
            "n_inference_steps": n_inference_steps,
        }
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler: found {sampler!r}, expected one of {', '.join(SAMPLERS)}.")
        self.schedule = NoiseSchedule(_BETA_SCHEDULE, num_train_timesteps)
        n_steps = num_train_timesteps if n_inference_steps is None else n_inference_steps
        self._steps = reverse_steps(self.schedule, n_steps, SAMPLERS[sampler])
        self._is_noisy = any(step.sigma > 0 for step in self._steps)
        with th.random.fork_rng(devices=[]):
            th.default_generator.manual_seed(self._weights_seed)
            self.network = ResidualDenoiser(
                self.encoder.obs_dim,
                self.action_range.dim,
                self.action_range.dim,
                num_train_timesteps=num_train_timesteps,
                width=width,
                depth=depth,
            )
        self.averaged = AveragedModel(self.network, multi_avg_fn=_average)

    def _make_optimizer(self) -> th.optim.Optimizer:
        optimizer = th.optim.AdamW(
            self.network.parameters(),
            lr=self.learning_rate,
            betas=(0.95, 0.999),
            weight_decay=1e-6,
            fused=True,
        )
        optimizer.register_step_post_hook(lambda *_: self.averaged.update_parameters(self.network))
        return optimizer

    def _loss(self, obs: th.Tensor, acts: th.Tensor, generator: th.Generator) -> th.Tensor:
        timesteps = th.randint(self.schedule.num_train_timesteps, (len(acts),), generator=generator)
        noise = th.randn(acts.shape, generator=generator)
        noisy = self.schedule.add_noise(acts, noise, timesteps)
        return F.mse_loss(self.network(obs, noisy, timesteps), noise)  # Chi et al., equation 5

    def _sample(self, obs: th.Tensor, deterministic: bool, generator: th.Generator) -> th.Tensor:
        shape = (len(obs), self.action_range.dim)
        n_draws = 1 + (len(self._steps) if self._is_noisy else 0)
        noise = th.randn(n_draws, *shape, generator=generator)
        levels = th.arange(self.schedule.num_train_timesteps)
        denoiser = cast(ResidualDenoiser, self.averaged.module)
        return denoise(
            # One level for all rows: its features are computed once and broadcast.
            lambda noisy, level: denoiser(obs, noisy, levels[level : level + 1]),
            self._steps,
            noise[0],
            noise[1:] if self._is_noisy else None,
        )


def _average(averaged: Any, current: Any, n_averaged: th.Tensor | int) -> None:
    """Moves averaged weights towards the current ones, less the longer the training."""
    decay = min(1 - int(n_averaged) ** -_EMA_POWER, _EMA_MAX_DECAY)
    with th.no_grad():
        th._foreach_lerp_(averaged, current, 1 - decay)


VARIANTS = (
    Variant("diffusion_policy", DiffusionPolicy, {}, "Diffusion Policy (DDPM)"),
    Variant(
        "diffusion_policy_ddim",
        DiffusionPolicy,
        {"sampler": "ddim", "n_inference_steps": 10},
        "Diffusion Policy (DDIM)",
    ),
)
