"""The critic's fit and a whole training against the release's."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch as th
from imitation.data import types
from torch import nn

from benchmarks.json_files import write_json
from benchmarks.release_critic import (
    BATCH_SIZE,
    CriticTraining,
    PolicyTraining,
    ReleaseNetwork,
)
from benchmarks.speed.settings import Settings, no_logger, spaces_of
from benchmarks.speed.timing import Block, Turns, milliseconds, summary, without_gc
from sb3_diffbc import DiffusionBC, DiffusionCritic

# Those of the authors' files to which the release fits a network 1024 wide.
WIDE_TASKS = ("walker", "cheetah")
RELEASE_CRITIC_STEPS = 320_000
RELEASE_POLICY_EPOCHS = 1_000
RELEASE_PAIRS = 5_000
RELEASE_POLICY_UPDATES = RELEASE_POLICY_EPOCHS * -(-RELEASE_PAIRS // BATCH_SIZE)
_FIRST_CURVE_SEED = 1


class _Judged(nn.Module):
    """Gives the release's network the interface of a critic's denoiser."""

    def __init__(self, network: ReleaseNetwork) -> None:
        super().__init__()
        self._network = network

    def embed_state(self, state: th.Tensor) -> th.Tensor:
        return state

    def forward(self, state: th.Tensor, action: th.Tensor, timesteps: th.Tensor) -> th.Tensor:
        return self._network(th.cat([state, action], dim=-1), timesteps)


class Judge:
    """One split of the pairs and one draw of noise, the same for all fits of a task."""

    def __init__(
        self, demonstrations: types.Transitions, settings: Settings, models: str = "state_action"
    ) -> None:
        # Its network is never used, but the split is drawn after the weights: a size of its own
        # keeps stored curves comparable when the default changes.
        arguments = {"width": 64, "depth": 2, **settings.critic}
        self._critic = DiffusionCritic(
            **spaces_of(demonstrations), models=models, seed=0, device="cpu", **arguments
        )
        self._critic.encoder.fit(demonstrations.obs, demonstrations.acts)
        generator = th.Generator().manual_seed(self._critic._fit_seed)
        self.train, held_out = self._critic._encode_and_split(demonstrations, generator)
        assert held_out is not None
        self.held_out = held_out

    @property
    def train_pairs(self) -> th.Tensor:
        """Standardised observations and actions side by side."""
        return th.cat(self.train_codes, dim=-1)

    @property
    def train_codes(self) -> tuple[th.Tensor, th.Tensor]:
        """Standardised observations and actions."""
        return self.train.codes(th.arange(len(self.train)))

    @property
    def key(self) -> dict[str, Any]:
        """Tells whether a stored curve belongs to the same pairs."""
        return {
            "train_pairs": len(self.train),
            "held_out_pairs": len(self.held_out),
            # Other demonstrations of the same number would give another value.
            # Rounded, because the order of a sum depends on the number of threads.
            "checksum": round(float(self.train_pairs.double().square().sum()), 3),
        }

    def loss(self, denoiser: nn.Module) -> float:
        """Held-out loss as the critic's own fit computes it."""
        # Any module with a denoiser's signature can be judged.
        loss = self._critic._validation_loss(cast(Any, denoiser), self.held_out)
        assert loss is not None
        return loss


class JudgedCritic(DiffusionCritic):
    """A critic whose fit uses another one's split and held-out noise, whatever its seed."""

    def __init__(self, judge: Judge, *spaces: Any, **arguments: Any) -> None:
        super().__init__(*spaces, **arguments)
        self._judge = judge

    def _encode_and_split(self, *arguments: Any) -> Any:
        super()._encode_and_split(*arguments)  # what it costs is part of the fit
        return self._judge.train, self._judge.held_out

    def _validation_loss(self, denoiser: Any, held_out: Any) -> float:
        return self._judge.loss(denoiser)


class _Clock:
    """Stands in for a logger to learn when each evaluation of a fit was done."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = time.perf_counter()

    def record(self, name: str, value: float) -> None:
        pass

    def dump(self, step: int) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def our_curve(
    demonstrations: types.Transitions,
    judge: Judge,
    seed: int,
    *,
    cls: type[JudgedCritic] = JudgedCritic,
    **arguments: Any,
) -> dict[str, Any]:
    """A fit with the defaults but for ``arguments``: steps, seconds and held-out loss."""
    critic = cls(judge, **spaces_of(demonstrations), seed=seed, device="cpu", **arguments)
    clock = _Clock()
    history = critic.fit(demonstrations, progress_bar=False, logger=cast(Any, clock))
    return {
        "seed": seed,
        "steps": list(history.steps),
        "seconds": clock.seconds,
        "held_out_loss": list(history.validation_loss),
        "total_seconds": history.seconds,
    }


def release_curve(judge: Judge, settings: Settings) -> dict[str, Any]:
    """The release's loop: steps, seconds (without the evaluations) and held-out loss.

    It ends once the held-out loss has stopped falling, or after ``release_steps``.
    """
    th.manual_seed(0)
    training = CriticTraining(judge.train_pairs, width=settings.release_width)
    steps, seconds, losses = [0], [0.0], [judge.loss(_Judged(training.network))]
    for step in range(settings.release_every, settings.release_steps + 1, settings.release_every):
        began = time.perf_counter()
        training.run(settings.release_every)
        seconds.append(seconds[-1] + time.perf_counter() - began)
        steps.append(step)
        losses.append(judge.loss(_Judged(training.network)))
        if step % (4 * settings.release_every) == 0:
            print(f"  release, step {step}: {seconds[-1]:.0f} s, held-out loss {losses[-1]:.4f}")
        if len(losses) - 1 - int(np.argmin(losses)) >= settings.release_patience:
            break
    best = int(np.argmin(losses))
    return {
        "steps": steps,
        "seconds": seconds,
        "held_out_loss": losses,
        "best_loss": losses[best],
        "best_step": steps[best],
        "seconds_to_best": seconds[best],
    }


def cached_curve(
    path: Path, key: dict[str, Any], make: Callable[[], dict[str, Any]], settings: Settings
) -> dict[str, Any]:
    """The curve that an earlier run stored under the same key, or a new one."""
    if path.is_file() and not settings.again:
        stored = json.loads(path.read_text())
        if stored["settings"] == key:
            return stored["curve"]
    curve = make()
    write_json(path, {"settings": key, "threads": settings.threads, "curve": curve}, indent=1)
    return curve


def cached_release_curve(task: str, judge: Judge, settings: Settings) -> dict[str, Any]:
    """The release's curve, kept between runs.

    It takes minutes, and comparisons of time use steps that are timed anew in each run.
    """
    key = {
        "width": settings.release_width,
        "steps": settings.release_steps,
        "every": settings.release_every,
        "patience": settings.release_patience,
        **judge.key,
    }
    path = settings.results / "speed" / f"release-{task}.json"
    return cached_curve(path, key, lambda: release_curve(judge, settings), settings)


def reached(curve: dict[str, Any], loss: float) -> tuple[int, float] | None:
    """Step and seconds of a curve's first evaluation at or below a loss."""
    for step, seconds, held_out in zip(
        curve["steps"], curve["seconds"], curve["held_out_loss"], strict=True
    ):
        if held_out <= loss:
            return step, seconds
    return None


def _fit_in_turns(
    demonstrations: types.Transitions, models: str, others: dict[str, Block], settings: Settings
) -> Turns:
    critic = DiffusionCritic(
        **spaces_of(demonstrations),
        models=models,
        seed=0,
        patience=10**6,  # every block is wanted
        device="cpu",
        **settings.critic,
    )
    with without_gc():
        turns = Turns(others)
        critic.fit(demonstrations, progress_bar=False, logger=cast(Any, turns))
    return turns


def compare_critics(task: str, settings: Settings) -> dict[str, Any]:
    """Steps in turns, and the way to the release's best held-out loss."""
    print(f"critic: {task}")
    demonstrations = settings.demonstrations(task)
    judge = Judge(demonstrations, settings)
    release = CriticTraining(judge.train_pairs, width=settings.release_width)
    block = Block(lambda: release.run(settings.release_updates), settings.release_updates)
    seconds = _fit_in_turns(demonstrations, "state_action", {"release": block}, settings).per_unit()
    step_ratios = seconds["release"] / seconds["fit"]
    curve = cached_release_curve(task, judge, settings)
    ours = [
        our_curve(demonstrations, judge, seed, **settings.critic)
        for seed in range(_FIRST_CURVE_SEED, _FIRST_CURVE_SEED + settings.seeds)
    ]
    arrivals = [reached(each, curve["best_loss"]) for each in ours]
    step_factors = [0.0 if to is None else curve["best_step"] / to[0] for to in arrivals]
    return {
        "pairs": {"train": len(judge.train), "held_out": len(judge.held_out)},
        "step_ms": {
            "ours": milliseconds(seconds["fit"]),
            "release": milliseconds(seconds["release"]),
        },
        "step_time_of_release_to_ours": summary(step_ratios),
        "release": curve,
        "ours": ours,
        "seconds_to_release_best": [None if to is None else to[1] for to in arrivals],
        # A fit that does not get there counts as 0 times as fast.
        "time_of_release_to_ours_by_wall_clock": summary(
            [0.0 if to is None else curve["seconds_to_best"] / to[1] for to in arrivals]
        ),
        "time_of_release_to_ours": summary(np.outer(step_factors, step_ratios).ravel()),
    }


def compare_trainings(task: str, settings: Settings) -> dict[str, Any]:
    """A whole training with our defaults against the release's schedule, by the cost of steps."""
    demonstrations = settings.demonstrations(task)
    judge = Judge(demonstrations, settings)
    release = CriticTraining(judge.train_pairs, width=settings.release_width)
    # Its critic is one of its own, which does not learn.
    frozen = ReleaseNetwork(judge.train_pairs.shape[1], width=settings.release_width)
    release_policy = PolicyTraining(*judge.train_codes, frozen)
    trainer = DiffusionBC(
        demonstrations=demonstrations,
        **spaces_of(demonstrations),
        batch_size=DiffusionBC.DEFAULT_BATCH_SIZE,
        critic_kwargs={**settings.critic, "n_steps": 2},
        custom_logger=no_logger(),
        seed=0,
        device="cpu",
    )

    def update() -> None:
        trainer.train(n_batches=settings.policy_updates, progress_bar=False, log_interval=10**9)

    turns = _fit_in_turns(
        demonstrations,
        trainer.critic_models,
        {
            "release critic": Block(
                lambda: release.run(settings.release_updates), settings.release_updates
            ),
            "release policy": Block(
                lambda: release_policy.run(settings.release_updates), settings.release_updates
            ),
            "policy": Block(update, settings.policy_updates),
        },
        settings,
    )
    seconds = turns.per_unit()
    counts = {
        "fit": turns.steps,
        "policy": DiffusionBC.DEFAULT_N_BATCHES,
        "release critic": RELEASE_CRITIC_STEPS,
        "release policy": RELEASE_POLICY_UPDATES,
    }
    whole = {name: seconds[name] * counts[name] for name in counts}
    ours = whole["fit"] + whole["policy"]
    theirs = whole["release critic"] + whole["release policy"]
    return {
        "task": task,
        "steps": counts,
        "step_ms": {name: milliseconds(seconds[name]) for name in counts},
        "seconds": {"ours": float(np.median(ours)), "release": float(np.median(theirs))},
        "time_of_release_to_ours": summary(theirs / ours),
    }


def measure(settings: Settings) -> dict[str, Any]:
    """All tasks of ``WIDE_TASKS``, and a whole training on the first of them."""
    return {
        "tasks": {task: compare_critics(task, settings) for task in WIDE_TASKS},
        "training": compare_trainings(WIDE_TASKS[0], settings),
    }
