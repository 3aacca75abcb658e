"""Updates and actions against those of other methods, and what judges pairs of them."""

import copy
import functools
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from imitation.algorithms import bc
from imitation.data import types

from benchmarks.methods.base import Method, Setup
from benchmarks.methods.diffusion_policy import DiffusionPolicy
from benchmarks.methods.implicit_bc import ImplicitBC
from benchmarks.speed.settings import Settings, spaces_of
from benchmarks.speed.timing import Measurement, in_turns, relative_times, timed
from sb3_diffbc import (
    CriticMonitor,
    DiffusionBC,
    DiffusionCritic,
    PolicyResidual,
    StandardizedActorPolicy,
    export_onnx,
)
from sb3_diffbc.logger import make_logger

BC = "imitation's BC"
CLONING = "DiffusionBC, dm_coef=0"
FULL = "DiffusionBC"
COMPILED = "DiffusionBC, compile=True"

OURS = "DiffusionBC's policy"
DDPM = "Diffusion Policy, DDPM 100"
DDIM = "Diffusion Policy, DDIM 10"
IMPLICIT = "Implicit BC"
PREDICT = "predict of DiffusionBC's policy"
ONNX = "its ONNX model in onnxruntime"
MONITOR = "CriticMonitor.step"
RESIDUAL = "PolicyResidual.score"
SCORES: dict[str, Any] = {
    "DiffusionCritic.score, p(a given s)": "action",
    "DiffusionCritic.score, p(s, a)": "state_action",
}
# A block of the fast policy would otherwise be too short for the clock.
_FAST_FACTOR = 40


def hardly_fitted(demonstrations: types.Transitions, **arguments: Any) -> DiffusionCritic:
    """Returns a critic after two steps: how good it is does not change how fast it is."""
    settings: dict[str, Any] = {**arguments, "n_steps": 2}
    critic = DiffusionCritic(**spaces_of(demonstrations), seed=0, device="cpu", **settings)
    critic.fit(demonstrations, progress_bar=False)
    return critic


def make_trainers(
    demonstrations: types.Transitions, batch_size: int, settings: Settings
) -> dict[str, bc.BC]:
    """Returns trainers of the same initial policy."""
    spaces = spaces_of(demonstrations)
    critic = hardly_fitted(demonstrations, models="action", **settings.critic)
    policy = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)

    def make(cls: Callable[..., bc.BC], **arguments: Any) -> bc.BC:
        return cls(
            **spaces,
            policy=copy.deepcopy(policy),
            demonstrations=demonstrations,
            batch_size=batch_size,
            rng=np.random.default_rng(0),
            custom_logger=make_logger(0, None, None),
            device="cpu",
            **arguments,
        )

    ours: dict[str, Any] = {"verbose": 0, "bc_loss": "nll"}
    return {
        BC: make(bc.BC),
        CLONING: make(DiffusionBC, **ours),
        FULL: make(DiffusionBC, **ours, critic=critic),
        COMPILED: make(DiffusionBC, **ours, critic=critic, compile=True),
    }


def measure_updates(settings: Settings) -> list[Measurement]:
    """Times updates, in whole passes through the demonstrations, whose start is a part of them."""
    demonstrations = settings.demonstrations("maze")
    rows = []
    for batch_size in settings.batch_sizes:
        per_pass = len(demonstrations) // batch_size
        n_epochs = math.ceil(settings.min_updates / per_pass)
        blocks = {}
        for name, trainer in make_trainers(demonstrations, batch_size, settings).items():
            train = functools.partial(
                trainer.train, n_epochs=n_epochs, progress_bar=False, log_interval=10**9
            )
            blocks[name] = timed(train, n_epochs * per_pass)
        rows += relative_times(
            "updates", f"batch {batch_size}", in_turns(blocks, settings.rounds), BC
        )
    return rows


def measure_actions(settings: Settings) -> list[Measurement]:
    """Times one action from one observation; BC's network is the same as DiffusionBC's."""
    demonstrations = settings.demonstrations("maze")
    spaces = spaces_of(demonstrations)
    setup = Setup(demonstrations, **spaces)
    methods: dict[str, Method] = {
        DDPM: DiffusionPolicy(setup, n_updates=1, sampler="ddpm"),
        DDIM: DiffusionPolicy(setup, n_updates=1, sampler="ddim", n_inference_steps=10),
        IMPLICIT: ImplicitBC(setup, n_updates=1),
    }
    policies: dict[str, Any] = {
        OURS: StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)
    }
    for name, method in methods.items():
        method.train(lambda: None)
        policies[name] = method.policy
    observation = demonstrations.obs[:1]

    def block(name: str) -> Callable[[], float]:
        n_actions = settings.actions * (_FAST_FACTOR if name == OURS else 1)
        policies[name].set_training_mode(False)

        def act() -> None:
            for _ in range(n_actions):
                policies[name].predict(observation, deterministic=True)

        return timed(act, n_actions)

    seconds = in_turns({name: block(name) for name in policies}, settings.rounds)
    return relative_times("actions", "one observation", seconds, DDIM)


def measure_monitor(settings: Settings) -> list[Measurement]:
    """Times what a monitor adds to each step of a loop, and ``predict``."""
    demonstrations = settings.demonstrations("maze")
    spaces = spaces_of(demonstrations)
    policy = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)
    critic = hardly_fitted(demonstrations)
    monitor = CriticMonitor(critic, demonstrations, false_alarm_rate=0.5)
    observation = types.assert_not_dictobs(demonstrations.obs)[0]
    n_actions = settings.actions * _FAST_FACTOR

    def predict() -> None:
        for _ in range(n_actions):
            policy.predict(observation, deterministic=True)

    def judge() -> None:
        for _ in range(n_actions):
            monitor.step(observation, demonstrations.acts[0])

    blocks = {PREDICT: timed(predict, n_actions), MONITOR: timed(judge, n_actions)}
    return relative_times("monitor", "one step", in_turns(blocks, settings.rounds), PREDICT)


def measure_scores(settings: Settings) -> list[Measurement]:
    """Times the scores of all demonstrated pairs, by pair."""
    demonstrations = settings.demonstrations("walker")
    spaces = spaces_of(demonstrations)
    policy = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)
    scorers: dict[str, Any] = {RESIDUAL: PolicyResidual(policy, demonstrations)}
    scorers |= {
        name: hardly_fitted(demonstrations, models=models) for name, models in SCORES.items()
    }
    pairs = demonstrations.obs, demonstrations.acts
    blocks = {
        name: timed(functools.partial(scorer.score, *pairs), len(demonstrations))
        for name, scorer in scorers.items()
    }
    seconds = in_turns(blocks, settings.rounds)
    remarks = {
        name: f"{1 / np.median(values):,.0f} pairs per second" for name, values in seconds.items()
    }
    return relative_times("scores", "walker", seconds, RESIDUAL, remarks)


def measure_onnx(settings: Settings) -> list[Measurement]:
    """Times one action of the policy that is exported as an ONNX model, and of ``predict``."""
    import onnxruntime

    demonstrations = settings.demonstrations("maze")
    policy = StandardizedActorPolicy.from_demonstrations(
        demonstrations, **spaces_of(demonstrations)
    )
    observation = types.assert_not_dictobs(demonstrations.obs)[:1].astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(policy, Path(folder) / "policy.onnx")
        session = onnxruntime.InferenceSession(path, options)
    n_actions = settings.actions * _FAST_FACTOR

    def predict() -> None:
        for _ in range(n_actions):
            policy.predict(observation, deterministic=True)

    def run() -> None:
        for _ in range(n_actions):
            session.run(None, {"observation": observation})

    blocks = {PREDICT: timed(predict, n_actions), ONNX: timed(run, n_actions)}
    return relative_times("onnx", "one observation", in_turns(blocks, settings.rounds), PREDICT)
