"""Why L_DM helps or does not: what the critic knows, what its gradient does, what comes of it.

    python -m benchmarks.diagnosis --paper-data FOLDER   # run what is missing
    python -m benchmarks.diagnosis --summary             # only write the table again

Each cell trains on the first nine tenths of the authors' demonstrations and looks at the rest.
Policies are those of the defaults, trained on batches of 32 at BC's learning rate of 1e-3, where
cloning overfits; only the cloning loss and L_DM vary. Scores are on the episodes kept for tuning
(see ``benchmarks.defaults``), so nothing here uses the comparison's episodes.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import joblib
import numpy as np
import torch as th
from imitation.data import types
from stable_baselines3.common.policies import BasePolicy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.defaults import PACKAGES, TUNING_SEED, slug
from benchmarks.json_files import write_json
from benchmarks.provenance import command_line, package_versions
from benchmarks.tables import table
from sb3_diffbc import DiffusionBC, evaluate_episodes, load_demonstrations
from sb3_diffbc.losses import DiffusionBCMetrics
from sb3_diffbc.tasks import Task, find_task

RESULTS = Path(__file__).parent / "results" / "diagnosis"
SUMMARY = RESULTS.parent / "diagnosis.md"
TASKS = ("maze", "cheetah", "walker")
TRAIN_SHARE = 0.9
EMA_DECAY = 0.999
BATCH_SIZE = 32
LEARNING_RATE = 1e-3
N_EPISODES = 100
_MAX_PAIRS = 2048
_DRAWS = 16

_CRITICS: Mapping[str, Mapping[str, Any]] = {
    "p(a|s)": {"critic_models": "action"},
    "p(s,a)": {"critic_models": "state_action"},
}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "nll, BC": {"dm_coef": 0.0},
    "nll, p(a|s), 1 (default)": {"dm_coef": 1.0, **_CRITICS["p(a|s)"]},
    "nll, p(a|s), 10": {"dm_coef": 10.0, **_CRITICS["p(a|s)"]},
    "mse, BC": {"bc_loss": "mse", "dm_coef": 0.0},
    "mse, p(s,a), 1": {"bc_loss": "mse", "dm_coef": 1.0, **_CRITICS["p(s,a)"]},
    "mse, p(s,a), 10": {"bc_loss": "mse", "dm_coef": 10.0, **_CRITICS["p(s,a)"]},
    "mse, p(s,a), 30": {"bc_loss": "mse", "dm_coef": 30.0, **_CRITICS["p(s,a)"]},
    "mse, p(s,a), 10, batch means": {
        "bc_loss": "mse",
        "dm_coef": 10.0,
        "dm_clamp": "batch",
        **_CRITICS["p(s,a)"],
    },
    "mse, p(s,a), 10, no clamp": {
        "bc_loss": "mse",
        "dm_coef": 10.0,
        "dm_clamp": "none",
        **_CRITICS["p(s,a)"],
    },
}
"""Arguments of ``DiffusionBC`` by name: cloning loss, critic, dm_coef, clamp (per sample)."""

HEADER = (
    "variant",
    "seeds",
    "score",
    "averaged weights",
    "cloning error, train / held out",
    "L_diff held out, agent / expert",
    "active",
    "active in the mean",
    "gradient of L_DM / L_BC, cosine",
)


def split(transitions: types.Transitions) -> tuple[types.Transitions, types.Transitions]:
    """The first nine tenths and the rest: neighbours in time would give each other away."""
    n_train = int(len(transitions) * TRAIN_SHARE)
    return transitions[:n_train], transitions[n_train:]


def _tensors(transitions: types.Transitions) -> tuple[th.Tensor, th.Tensor]:
    rows = np.linspace(0, len(transitions) - 1, min(_MAX_PAIRS, len(transitions))).astype(int)
    return (
        th.as_tensor(types.assert_not_dictobs(transitions.obs)[rows], dtype=th.float32),
        th.as_tensor(transitions.acts[rows], dtype=th.float32),
    )


@th.no_grad()
def cloning_error(trainer: DiffusionBC, transitions: types.Transitions) -> float:
    """Mean squared error of the policy's mean, in units of the actions' variance."""
    obs, acts = _tensors(transitions)
    mean = trainer.policy.get_distribution(obs).mode()
    return float(((mean - acts) / th.as_tensor(transitions.acts).std(dim=0)).square().mean())


@th.no_grad()
def guidance(trainer: DiffusionBC, transitions: types.Transitions) -> dict[str, float]:
    """What the critic says of the policy's and of the expert's actions.

    ``active`` is the share of (pair, noise) draws in which the agent's loss is above the expert's:
    those give a gradient. ``active_in_mean`` is the share of pairs for which the losses' means over
    draws are so.
    """
    assert trainer.critic is not None
    obs, acts = _tensors(transitions)
    mean = trainer.policy.get_distribution(obs).mode()
    generator = th.Generator().manual_seed(0)
    draws = [trainer.critic.guidance(obs, mean, acts, generator=generator) for _ in range(_DRAWS)]
    agent = th.stack([draw.agent for draw in draws])
    expert = th.stack([draw.expert for draw in draws])
    return {
        "agent": float(agent.mean()),
        "expert": float(expert.mean()),
        "active": float((agent > expert).float().mean()),
        "active_in_mean": float((agent.mean(dim=0) > expert.mean(dim=0)).float().mean()),
    }


def gradient_balance(trainer: DiffusionBC, transitions: types.Transitions) -> dict[str, float]:
    """Norm of L_DM's weighted gradient relative to L_BC's, and the cosine between the two."""
    obs, acts = _tensors(transitions)
    metrics = trainer.loss_calculator(trainer.policy, obs, acts)
    assert isinstance(metrics, DiffusionBCMetrics)
    assert metrics.dm is not None
    cloning = metrics.neglogp if metrics.mse is None else metrics.mse
    learnt = list(trainer.policy.mlp_extractor.policy_net.parameters())
    by_loss = [
        th.cat([g.flatten() for g in th.autograd.grad(loss, learnt, retain_graph=True)])
        for loss in (trainer.bc_coef * cloning, trainer.dm_coef * metrics.dm.loss)
    ]
    return {
        "norm_ratio": float(by_loss[1].norm() / by_loss[0].norm()),
        "cosine": float(th.cosine_similarity(by_loss[0], by_loss[1], dim=0)),
    }


def _score(policy: BasePolicy, task: Task, n_episodes: int) -> float:
    policy.set_training_mode(False)
    result = evaluate_episodes(policy, task.spec(), n_episodes=n_episodes, seed=TUNING_SEED)
    scores = result.returns if task.metric == "return" else result.successes
    assert scores is not None  # a task scored by success tells it
    return float(scores.mean())


def diagnose(
    task: Task,
    demonstrations: types.Transitions,
    variant: str,
    seed: int,
    *,
    n_updates: int = DiffusionBC.DEFAULT_N_BATCHES,
    n_episodes: int = N_EPISODES,
) -> dict[str, Any]:
    """Trains one variant and looks at it.

    Args:
        task: where it is scored.
        demonstrations: to be split.
        variant: a key of ``VARIANTS``.
        seed: of training.
        n_updates: length of training.
        n_episodes: of each score.

    Returns:
        The cell's result, as JSON.
    """
    train, held_out = split(demonstrations)
    trainer = DiffusionBC(
        demonstrations=train,
        env=task.env_id,
        seed=seed,
        verbose=0,
        device="cpu",
        batch_size=BATCH_SIZE,
        optimizer_kwargs={"lr": LEARNING_RATE},
        **VARIANTS[variant],
    )
    trainer.DEFAULT_N_BATCHES = n_updates  # the rate falls over this length
    averaged = AveragedModel(trainer.policy, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    errors: dict[int, list[float]] = {}

    def on_batch_end() -> None:
        averaged.update_parameters(trainer.policy)
        if trainer.n_updates % max(1, n_updates // 10) == 0:
            both = [cloning_error(trainer, part) for part in (train, held_out)]
            errors[trainer.n_updates] = both

    trainer.train(progress_bar=False, log_interval=10**9, on_batch_end=on_batch_end)
    record: dict[str, Any] = {
        "task": task.name,
        "variant": variant,
        "seed": seed,
        "n_updates": n_updates,
        "pairs": {"train": len(train), "held_out": len(held_out)},
        "cloning_error": {
            "updates": list(errors),
            "train": [pair[0] for pair in errors.values()],
            "held_out": [pair[1] for pair in errors.values()],
        },
        "score": _score(trainer.policy, task, n_episodes),
        "score_of_averaged_weights": _score(cast(BasePolicy, averaged.module), task, n_episodes),
        "episodes": n_episodes,
        "first_episode_seed": TUNING_SEED,
    }
    if trainer.critic is not None and trainer.critic.history is not None:
        record |= {
            "critic_stopped_at": trainer.critic.history.best_step,
            "guidance": {
                "train": guidance(trainer, train),
                "held_out": guidance(trainer, held_out),
            },
            "gradient": gradient_balance(trainer, train),
        }
    return record


def run_cell(task_name: str, variant: str, seed: int, paper_data: Path, command: str) -> None:
    """Runs one cell and writes its file, unless it exists."""
    path = RESULTS / task_name / f"{slug(variant)}-{seed}.json"
    if path.is_file():
        return
    th.set_num_threads(1)
    task = find_task(task_name)
    assert task.paper_file is not None
    found = diagnose(task, load_demonstrations(paper_data / task.paper_file), variant, seed)
    write_json(path, {**found, "versions": package_versions(*PACKAGES), "command": command})


def summarise(records: list[dict[str, Any]]) -> str:
    """One Markdown table per task: means over seeds."""
    sections = []
    for name in TASKS:
        task = find_task(name)
        cells = {
            variant: [r for r in records if (r["task"], r["variant"]) == (name, variant)]
            for variant in VARIANTS
        }
        rows = [_row(variant, found, task) for variant, found in cells.items() if found]
        if rows:
            sections.append(f"## {task.title}\n\n{table(HEADER, rows)}\n")
    return "\n".join(sections)


def _row(variant: str, cells: list[dict[str, Any]], task: Task) -> list[str]:
    def mean(*keys: str) -> float:
        values: list[Any] = cells
        for key in keys:
            values = [value[key] for value in values]
        return float(np.mean([v[-1] if isinstance(v, list) else v for v in values]))

    scale, unit = (100, " %") if task.metric == "success" else (1, "")
    entries = [
        variant,
        str(len(cells)),
        f"{mean('score') * scale:.1f}{unit}",
        f"{mean('score_of_averaged_weights') * scale:.1f}{unit}",
        f"{mean('cloning_error', 'train'):.4f} / {mean('cloning_error', 'held_out'):.4f}",
        *["–"] * 4,
    ]
    if "guidance" in cells[0]:
        entries[5:] = [
            f"{mean('guidance', 'held_out', 'agent'):.4f} / "
            f"{mean('guidance', 'held_out', 'expert'):.4f}",
            f"{mean('guidance', 'train', 'active'):.0%}",
            f"{mean('guidance', 'train', 'active_in_mean'):.0%}",
            f"{mean('gradient', 'norm_ratio'):.2f}, {mean('gradient', 'cosine'):+.2f}",
        ]
    return entries


_EXPLANATION = f"""# What L_DM does

Written by `python -m benchmarks.diagnosis` from the files in `diagnosis/`. Policies learn from the
first {TRAIN_SHARE:.0%} of the authors' demonstrations, in batches of {BATCH_SIZE} at a learning
rate of {LEARNING_RATE} that falls to 0; the rest is held out. Variants name the cloning loss, what
the critic models, `dm_coef`, and the clamp where it is not per sample. Scores are means over
{N_EPISODES} tuning episodes; "averaged weights" are those of an exponential average with decay
{EMA_DECAY}. The cloning error is the mean squared error of the policy's mean in units of
the actions' variance. "Active" is the share of training pairs and noise draws in which the agent's
loss is above the expert's, "active in the mean" the share of pairs where the mean over {_DRAWS}
draws is. The gradients are those of the weighted losses at the end of training.

"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--paper-data", type=Path, help="folder with the authors' .pt files")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time")
    parser.add_argument("--summary", action="store_true", help="only write the table again")
    arguments = parser.parse_args()
    if not arguments.summary:
        if arguments.paper_data is None:
            parser.error("--paper-data is needed")
        command = command_line("benchmarks.diagnosis", sys.argv[1:], [arguments.paper_data])
        joblib.Parallel(n_jobs=arguments.jobs, verbose=10)(
            joblib.delayed(run_cell)(task, variant, seed, arguments.paper_data, command)
            for seed in arguments.seeds
            for task in arguments.tasks
            for variant in arguments.variants
        )
    records = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*/*.json"))]
    SUMMARY.write_text(_EXPLANATION + summarise(records))
    print(SUMMARY.read_text())


if __name__ == "__main__":
    main()
