"""Writes diffusers_schedules.json: what diffusers' DDPMScheduler has for a few noise levels.

Run it in an environment of its own, since the library does not need diffusers:
`pip install torch diffusers && python tests/critic/make_diffusers_schedules.py`
"""

import json
from pathlib import Path

import diffusers
import torch as th

COMMAND = "python tests/critic/make_diffusers_schedules.py"
NAMES = ("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2")
SIZES = (10, 100, 1000)
CLEAN, NOISE = 0.75, -1.25


def table(name: str, num_train_timesteps: int) -> dict[str, object]:
    scheduler = diffusers.DDPMScheduler(num_train_timesteps, beta_schedule=name)
    last = num_train_timesteps - 1
    levels = [0, 1, last // 4, last // 2, 3 * last // 4, last - 1, last]
    betas, alphas_cumprod = scheduler.betas, scheduler.alphas_cumprod
    noisy = scheduler.add_noise(
        th.full((len(levels), 1), CLEAN), th.full((len(levels), 1), NOISE), th.tensor(levels)
    )
    return {
        "beta_schedule": name,
        "num_train_timesteps": num_train_timesteps,
        "levels": levels,
        "betas": betas[levels].tolist(),
        "alphas_cumprod": alphas_cumprod[levels].tolist(),
        "noisy": noisy.squeeze(-1).tolist(),
        "sum_of_betas": betas.double().sum().item(),
        "sum_of_alphas_cumprod": alphas_cumprod.double().sum().item(),
    }


if __name__ == "__main__":
    content = {
        "command": COMMAND,
        "diffusers": diffusers.__version__,
        "torch": th.__version__,
        "clean": CLEAN,
        "noise": NOISE,
    }
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in content.items())
    # One line per schedule keeps the differences of a later version readable.
    rows = ",\n".join(json.dumps(table(name, size)) for name in NAMES for size in SIZES)
    text = f'{{\n{head}"schedules": [\n{rows}\n]\n}}\n'
    Path(__file__).with_name("diffusers_schedules.json").write_text(text)
