"""Trains the experts, scores them, and rolls out the bundled demonstrations.

python -m benchmarks.experts --list                       # every task with its scores
python -m benchmarks.experts train cheetah                # resumable; scores it at the end
python -m benchmarks.experts score maze                   # expert and random actions
python -m benchmarks.experts demonstrate maze fetch_pick  # writes .npz and card
python -m benchmarks.experts picture maze                 # writes a film strip
python -m benchmarks.experts page                         # writes results/tasks.md, README.md
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch as th

import sb3_diffbc.demonstrations
import sb3_diffbc.experts
from benchmarks.experts.pictures import film_strip, save
from benchmarks.experts.rollouts import collect, random_policy, score, versions, write
from benchmarks.experts.table import (
    PAGE,
    README,
    page,
    result_path,
    shown,
    table,
    with_table,
)
from benchmarks.experts.training import train
from benchmarks.json_files import write_json
from sb3_diffbc import save_policy
from sb3_diffbc.tasks import TASKS, LearnedExpert, Task

BUNDLED = Path(sb3_diffbc.demonstrations.__file__).parent / "bundled"
EXPERTS = Path(sb3_diffbc.experts.__file__).parent
CHECKPOINTS = Path("runs") / "experts"


def run_train(task: Task, arguments: argparse.Namespace) -> None:
    """Trains, saves and scores a learned expert."""
    checkpoint = arguments.checkpoints / f"{task.name}-{arguments.seed}.safetensors"
    policy, record = train(task, arguments.seed, checkpoint)
    save_policy(policy, EXPERTS / f"{task.name}.safetensors")
    command = f"python -m benchmarks.experts train {task.name} --seed {arguments.seed}"
    training = {**record, "cpu_cores": os.cpu_count(), "command": command}
    run_score(task, arguments, {"training": training})


def run_score(
    task: Task, _: argparse.Namespace, further: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Scores expert and random actions, and keeps what is known of the training."""
    path = result_path(task)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    policy = sb3_diffbc.experts.load_expert(task.name)
    result = {
        "task": task.name,
        "env_id": task.env_id,
        "expert": [score(policy, task, ratio) for ratio in task.noise_ratios],
        "random": score(random_policy(task), task),
        "command": f"python -m benchmarks.experts score {task.name}",
        "versions": versions(task),
        **{key: value for key, value in known.items() if key == "training"},
        **(further or {}),
    }
    write_json(path, result)
    for entry in result["expert"]:
        print(f"{task.title}, noise ratio {entry['noise_ratio']:g}: {shown(entry)}")
    return result


def run_demonstrate(task: Task, arguments: argparse.Namespace) -> None:
    """Rolls out the expert and writes its demonstrations."""
    policy = sb3_diffbc.experts.load_expert(task.name)
    size = task.size
    demonstrations = collect(policy, task, arguments.seed, size.episodes, size.transitions)
    command = f"python -m benchmarks.experts demonstrate {task.name} --seed {arguments.seed}"
    out = arguments.out / f"{task.name}.npz"
    write(
        demonstrations,
        task,
        out,
        seed=arguments.seed,
        command=command,
        expert_score=score(policy, task),
    )
    print(
        f"{out}: {len(demonstrations.result.lengths)} of {demonstrations.tried} episodes, "
        f"{demonstrations.result.lengths.sum()} steps, {out.stat().st_size / 1000:.0f} kB"
    )


def run_picture(task: Task, arguments: argparse.Namespace) -> None:
    """Draws an episode of the expert."""
    strip = film_strip(sb3_diffbc.experts.load_expert(task.name), task, arguments.seed)
    save(strip, result_path(task).with_suffix(".png"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experts",
        description="Train and score the experts, and roll out the bundled demonstrations.",
    )
    parser.add_argument("--list", action="store_true", help="print the table of tasks")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    learned = [name for name, task in TASKS.items() if isinstance(task.expert, LearnedExpert)]
    for name, run, tasks, text in (
        ("train", run_train, learned, "train experts with PPO, then score them"),
        ("score", run_score, list(TASKS), "score experts and random actions"),
        ("demonstrate", run_demonstrate, list(TASKS), "write demonstrations and their cards"),
        ("picture", run_picture, list(TASKS), "draw an episode of the expert"),
    ):
        command = commands.add_parser(
            name, help=text, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        command.add_argument(
            "tasks", nargs="+", choices=tasks, metavar="TASK", help=", ".join(tasks)
        )
        command.set_defaults(run=run)
        if name != "score":
            command.add_argument("--seed", type=int, default=0)
        if name == "train":
            command.add_argument(
                "--checkpoints", type=Path, default=CHECKPOINTS, help="where to go on from"
            )
        if name == "demonstrate":
            command.add_argument("--out", type=Path, default=BUNDLED, help="folder to write to")
    commands.add_parser("page", help="write results/tasks.md and the README's table")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and runs the command.

    Args:
        argv: Arguments; those of the process where None.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        if not arguments.list:
            parser.error("expected --list or a command; see --help")
        print(table())
        return
    if arguments.command == "page":
        PAGE.write_text(page(), encoding="utf-8")
        README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
        return
    th.set_num_threads(1)  # networks this small lose more to threads than they gain
    try:
        for name in arguments.tasks:
            arguments.run(TASKS[name], arguments)
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped. A training goes on from its last checkpoint if run again.\n")


if __name__ == "__main__":
    main()
