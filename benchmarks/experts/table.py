"""The tasks with their scores, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.experts.pictures import LONGEST
from benchmarks.experts.rollouts import SCORE_EPISODES
from benchmarks.readme_parts import with_part
from benchmarks.tables import table as markdown_table
from sb3_diffbc.demonstrations import read_card
from sb3_diffbc.tasks import TASKS, LearnedExpert, Task

RESULTS = Path(__file__).parents[1] / "results" / "experts"
PAGE = RESULTS.parent / "tasks.md"
README = Path(__file__).parents[2] / "README.md"

HEADER = (
    "task",
    "environment",
    "observation",
    "action",
    "steps",
    "metric",
    "expert",
    "expert's score",
    "random actions",
    "demonstrations",
    "their score",
    "cost of the expert",
)
README_COLUMNS = (
    "task",
    "environment",
    "metric",
    "expert",
    "expert's score",
    "random actions",
    "demonstrations",
)


def result_path(task: Task) -> Path:
    """Gives where a task's scores are kept."""
    return RESULTS / f"{task.name}.json"


def table(columns: Sequence[str] = HEADER) -> str:
    """Gives the table of all tasks, from the committed results and the cards.

    Args:
        columns: Which of `HEADER`.

    Returns:
        A Markdown table.
    """
    places = [HEADER.index(column) for column in columns]
    rows = (_row(task) for task in TASKS.values())
    return markdown_table(columns, ([row[place] for place in places] for row in rows))


def with_table(readme: str) -> str:
    """Puts the README's table between the two marks that are there for it.

    Args:
        readme: Text with the lines `<!-- tasks -->` and `<!-- /tasks -->`.

    Returns:
        The text with the table as it is now.

    Raises:
        ValueError: If a mark is missing.
    """
    return with_part(readme, "tasks", table(README_COLUMNS))


def page() -> str:
    """Gives the page about the tasks: the table, and a picture and some words for each."""
    parts = [
        "# The tasks",
        "Written by `python -m benchmarks.experts page` from the files beside it. Scores are means "
        f"over {SCORE_EPISODES} episodes with fixed seeds, in brackets their 95 % intervals "
        "(Wilson's for success rates, Student's for returns); steps are the time limit. "
        "Demonstrations of tasks with a goal are successful episodes only.",
        table(),
        "Training was timed on a shared machine, so its minutes are rough. The pictures show one "
        "episode of each expert (its first "
        f"{LONGEST} steps for Cheetah and Walker); `python -m benchmarks.experts picture TASK` "
        "draws them. Without a screen, MuJoCo needs `MUJOCO_GL=egl` and Debian's packages "
        "`libegl1` and `libgl1-mesa-dri`, or `MUJOCO_GL=osmesa` and `libosmesa6`.",
        *(_section(task) for task in TASKS.values()),
    ]
    return "\n\n".join(parts) + "\n"


def _section(task: Task) -> str:
    path = result_path(task)
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    lines = [f"## {task.title}", f"![{task.title}](experts/{task.name}.png)", task.summary]
    lines.append(f"Expert: {task.expert.summary}.")
    if result and len(result["expert"]) > 1:
        rows = [("noise ratio", "expert's score"), ("---", "---")]
        rows += [(f"{entry['noise_ratio']:g}", shown(entry)) for entry in result["expert"]]
        lines.append("\n".join(f"| {ratio} | {score} |" for ratio, score in rows))
    return "\n\n".join(lines)


def _row(task: Task) -> tuple[str, ...]:
    path = result_path(task)
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    card = _card(task)
    return (
        task.title,
        f"`{task.env_id}`",
        *(str(card["arrays"][name]["shape"][1]) if card else "" for name in ("obs", "acts")),
        str(task.horizon),
        task.metric,
        "PPO" if isinstance(task.expert, LearnedExpert) else "scripted",
        shown(result["expert"][0]) if result else "not scored",
        shown(result["random"]) if result else "not scored",
        f"{card['episodes']} episodes, {card['transitions']:,} steps" if card else "none",
        shown(card["score"], interval=False) if card else "",
        _cost(result.get("training")),
    )


def _card(task: Task) -> dict[str, Any] | None:
    try:
        return read_card(task.name)
    except (FileNotFoundError, ValueError):
        return None


def shown(score: dict[str, Any], *, interval: bool = True) -> str:
    """Gives a score as text: mean and, in brackets, its 95 % interval."""
    scale, unit = (100.0, " %") if score["metric"] == "success" else (1.0, "")
    digits = 1 if score["metric"] == "success" else 0
    text = f"{score['mean'] * scale:.{digits}f}{unit}"
    if not interval:
        return text
    low, high = (bound * scale for bound in score["interval"])
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def _cost(training: dict[str, Any] | None) -> str:
    if training is None:
        return "none"
    return f"{training['timesteps'] / 1e6:.1f} M steps, {training['seconds'] / 60:.0f} min"
