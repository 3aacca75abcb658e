"""One action from one observation, against methods that search or denoise for it."""

from typing import Any

from benchmarks.methods import DiffusionPolicy, ImplicitBC
from benchmarks.speed.settings import Settings, spaces_of
from benchmarks.speed.timing import Block, in_turns, milliseconds, summary
from sb3_diffbc import StandardizedActorPolicy

OURS = "DiffusionBC"
DDPM = "Diffusion Policy, DDPM 100"
DDIM = "Diffusion Policy, DDIM 10"
IMPLICIT = "Implicit BC"

# A block of the fast policy would otherwise be too short for the clock.
_FAST_FACTOR = 40


def measure(settings: Settings) -> dict[str, Any]:
    """Times per action relative to DiffusionBC's policy, whose network BC's is too."""
    demonstrations = settings.demonstrations("maze")
    spaces = spaces_of(demonstrations)
    methods = {
        DDPM: DiffusionPolicy(**spaces, sampler="ddpm", device="cpu"),
        DDIM: DiffusionPolicy(**spaces, sampler="ddim", n_inference_steps=10, device="cpu"),
        IMPLICIT: ImplicitBC(**spaces, device="cpu"),
    }
    for method in methods.values():
        method.fit(demonstrations, n_batches=1)
    ours = StandardizedActorPolicy.from_demonstrations(demonstrations, **spaces)
    observation = demonstrations.obs[:1]

    def block(policy: Any, actions: int) -> Block:
        policy.set_training_mode(False)

        def run() -> None:
            for _ in range(actions):
                policy.predict(observation, deterministic=True)

        return Block(run, actions)

    blocks = {OURS: block(ours, settings.actions * _FAST_FACTOR)} | {
        name: block(method.policy, settings.actions) for name, method in methods.items()
    }
    seconds = in_turns(blocks, settings.blocks)
    return {
        "rows": [
            {
                "policy": name,
                "ms": milliseconds(seconds[name]),
                "time_to_ours": summary(seconds[name] / seconds[OURS]),
            }
            for name in blocks
        ]
    }
