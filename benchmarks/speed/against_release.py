"""The critic's fit and a whole training against the loop of the authors' release."""

import time
from typing import NamedTuple

import numpy as np
import torch as th
from imitation.data import types

from benchmarks.speed.release import (
    BATCH_SIZE,
    CriticTraining,
    NoisePrediction,
    PolicyTraining,
    ReleaseNetwork,
)
from benchmarks.speed.settings import Settings, spaces_of
from benchmarks.speed.timing import Measurement, in_turns, relative_times, timed
from sb3_diffbc import DiffusionBC, DiffusionCritic
from sb3_diffbc.critic import Noise, PairEncoder

# Those of the authors' files to which the release fits a network 1024 wide.
WIDE_TASKS = ("walker", "cheetah")
RELEASE_CRITIC_STEPS = 320_000
RELEASE_POLICY_EPOCHS = 1_000
# Steps of the release in a block beside a whole training.
_RELEASE_BLOCK = 40

FIT = "DiffusionCritic.fit"
RELEASE_FIT = "the release's fit, to its best held-out loss"
TRAINING = "DiffusionBC's default recipe with L_DM"
RELEASE_TRAINING = "the release's training"


class Split(NamedTuple):
    """Pairs to fit and pairs held out, for ours and, standardised, for the release.

    ``held_out_pairs`` are the standardised observations and actions side by side, ``noise`` four
    draws for them.
    """

    train: types.TransitionsMinimal
    held_out: types.TransitionsMinimal
    train_codes: tuple[th.Tensor, th.Tensor]
    held_out_pairs: th.Tensor
    noise: tuple[Noise, ...]


def split(demonstrations: types.Transitions) -> Split:
    """Holds out a tenth of the pairs, always the same."""
    order = np.random.default_rng(0).permutation(len(demonstrations))
    train, held_out = (
        types.TransitionsMinimal(
            obs=types.assert_not_dictobs(demonstrations.obs)[rows],
            acts=demonstrations.acts[rows],
            infos=demonstrations.infos[rows],
        )
        for rows in np.split(order, [len(order) * 9 // 10])
    )
    spaces = spaces_of(train)
    encoder = PairEncoder(**spaces)
    encoder.fit(*_tensors(train))
    train_codes, held_out_codes = (
        (encoder.encode_obs(obs), encoder.encode_acts(acts))
        for obs, acts in (_tensors(train), _tensors(held_out))
    )
    critic = DiffusionCritic(**spaces, seed=0, device="cpu")  # knows the noise levels
    generator = th.Generator().manual_seed(0)
    noise = tuple(critic.draw_noise(len(held_out), generator) for _ in range(4))
    return Split(train, held_out, train_codes, th.cat(held_out_codes, dim=-1), noise)


def _tensors(transitions: types.TransitionsMinimal) -> tuple[th.Tensor, th.Tensor]:
    obs = types.assert_not_dictobs(transitions.obs)
    return th.tensor(obs), th.tensor(transitions.acts)


@th.no_grad()
def held_out_loss(denoiser: DiffusionCritic | ReleaseNetwork, pairs: Split) -> float:
    """Returns the mean denoising loss of the held-out pairs, under the same noise every time."""
    if isinstance(denoiser, ReleaseNetwork):
        loss = NoisePrediction(denoiser)
        losses = [loss(pairs.held_out_pairs, n.timesteps, n.epsilon) for n in pairs.noise]
    else:
        obs, acts = _tensors(pairs.held_out)
        losses = [denoiser.denoising_loss(obs, acts, noise=n) for n in pairs.noise]
    return float(th.cat(losses).mean())


def measure_critic(settings: Settings) -> list[Measurement]:
    """Times whole fits in turns with stretches of the release's fit.

    Both are judged on the same held-out pairs under the same noise, the release after each
    stretch. A fit that ends above the release's best loss counts as infinitely long.
    """
    return [row for task in WIDE_TASKS for row in _measure_fits(task, settings)]


def _measure_fits(task: str, settings: Settings) -> list[Measurement]:
    pairs = split(settings.demonstrations(task))
    th.manual_seed(0)
    release = CriticTraining(th.cat(pairs.train_codes, dim=-1), width=settings.release_width)
    n_steps = settings.release_steps // (settings.rounds + 1)  # one stretch is not counted
    our_losses: list[float] = []
    release_losses: list[float] = []

    def fit() -> float:
        began = time.perf_counter()
        critic = DiffusionCritic(
            **spaces_of(pairs.train), seed=len(our_losses), device="cpu", **settings.critic
        )
        critic.fit(pairs.train, progress_bar=False)
        seconds = time.perf_counter() - began
        our_losses.append(held_out_loss(critic, pairs))
        return seconds

    def fit_release() -> float:
        seconds = timed(lambda: release.run(n_steps), n_steps)()
        release_losses.append(held_out_loss(release.network, pairs))
        return seconds

    seconds = in_turns({FIT: fit, RELEASE_FIT: fit_release}, settings.rounds)
    best = int(np.argmin(release_losses))
    best_loss, best_step = release_losses[best], (best + 1) * n_steps
    ours = np.array(our_losses[1:])
    seconds[FIT] = np.where(ours <= best_loss, seconds[FIT], np.inf)
    seconds[RELEASE_FIT] = seconds[RELEASE_FIT] * best_step
    still_falling = ", still falling" if best == len(release_losses) - 1 else ""
    remarks = {
        FIT: f"held-out loss {ours.min():.4f} to {ours.max():.4f}",
        RELEASE_FIT: f"held-out loss {best_loss:.4f} at step {best_step:,}{still_falling}",
    }
    return relative_times("critic", task, seconds, RELEASE_FIT, remarks)


def measure_training(settings: Settings) -> list[Measurement]:
    """Times whole trainings by the default recipe, with L_DM, against the release's schedule.

    The release's time is that of its steps, times the number of steps in its schedule.
    """
    task = WIDE_TASKS[0]
    demonstrations = settings.demonstrations(task)
    pairs = split(demonstrations)
    release = CriticTraining(th.cat(pairs.train_codes, dim=-1), width=settings.release_width)
    # Its critic is one of its own, which does not learn.
    frozen = ReleaseNetwork(pairs.held_out_pairs.shape[1], width=settings.release_width)
    release_policy = PolicyTraining(*pairs.train_codes, frozen)

    def train() -> None:
        trainer = DiffusionBC(
            demonstrations=demonstrations,
            **spaces_of(demonstrations),
            dm_coef=1.0,
            critic_kwargs=settings.critic,
            verbose=0,
            seed=0,
            device="cpu",
        )
        updates = settings.training_updates
        trainer.train(n_batches=updates, progress_bar=False, log_interval=10**9)

    seconds = in_turns(
        {
            TRAINING: timed(train),
            "critic": timed(lambda: release.run(_RELEASE_BLOCK), _RELEASE_BLOCK),
            "policy": timed(lambda: release_policy.run(_RELEASE_BLOCK), _RELEASE_BLOCK),
        },
        settings.training_rounds,
    )
    policy_steps = RELEASE_POLICY_EPOCHS * -(-len(demonstrations) // BATCH_SIZE)
    whole = seconds.pop("critic") * RELEASE_CRITIC_STEPS + seconds.pop("policy") * policy_steps
    seconds[RELEASE_TRAINING] = whole
    remarks = {RELEASE_TRAINING: "from the time of its steps"}
    return relative_times("training", task, seconds, RELEASE_TRAINING, remarks)
