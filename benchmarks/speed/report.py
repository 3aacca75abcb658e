"""What a run found, as tables with targets and as a picture."""

from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.speed.denoisers import DEFAULT
from benchmarks.speed.inference import DDIM
from benchmarks.speed.steps import BC, CLONING, FULL
from benchmarks.tables import table

Ratio = dict[str, Any]
_COLOURS = ("#1f4e79", "#c55a11", "#548235", "#7f6000")
_MODELS = {"state_action": "p(s, a)", "action": "p(a | s)"}


class Target(NamedTuple):
    """A ratio that was asked for.

    Attributes:
        text: what it is the ratio of.
        limit: the bound.
        at_least: whether more is better.
        found: the measured ratio; None if its part has not run.
    """

    text: str
    limit: float
    at_least: bool
    found: Ratio | None

    @property
    def is_met(self) -> bool | None:
        """Whether the median keeps to the bound; None if it is not known."""
        if self.found is None:
            return None
        found = self.found["median"]
        return found >= self.limit if self.at_least else found <= self.limit


def inverse(ratio: Ratio) -> Ratio:
    """From the time relative to a reference to how many times as fast."""
    low, high = ratio["interval"]
    return ratio | {"median": 1 / ratio["median"], "interval": [1 / high, 1 / low]}


def _find(rows: Iterable[dict[str, Any]], field: str, **values: Any) -> Any:
    for row in rows:
        if all(row[name] == value for name, value in values.items()):
            return row[field]
    return None


def targets(parts: dict[str, Any]) -> list[Target]:
    """All targets, with what was measured so far."""
    steps = parts.get("steps", {}).get("rows", [])

    def step(contestant: str, batch: int) -> Ratio | None:
        return _find(steps, "time_to_bc", contestant=contestant, batch=batch)

    def faster(ratio: Ratio | None) -> Ratio | None:
        return None if ratio is None else inverse(ratio)

    critic = parts.get("critic", {})
    tasks = critic.get("tasks", {})
    rows = parts.get("growth", {}).get("rows", [])
    memory = _find(rows, "peak_memory_to_arrays", transitions=10**7)
    return [
        Target(f"{CLONING}: times as fast as BC, batch 128", 2, True, faster(step(CLONING, 128))),
        Target(f"{CLONING}: times as fast as BC, batch 1024", 5, True, faster(step(CLONING, 1024))),
        Target("full loss: time relative to BC, batch 128", 1, False, step(FULL, 128)),
        Target("full loss: time relative to BC, batch 1024", 0.6, False, step(FULL, 1024)),
        *(
            Target(
                f"critic, {task}: times as fast to the release's best held-out loss",
                10,
                True,
                tasks.get(task, {}).get("time_of_release_to_ours"),
            )
            for task in ("walker", "cheetah")
        ),
        Target(
            "whole training: times as fast as the release's schedule",
            20,
            True,
            critic.get("training", {}).get("time_of_release_to_ours"),
        ),
        Target(
            f"an action: times as fast as {DDIM}",
            10,
            True,
            _find(parts.get("inference", {}).get("rows", []), "time_to_ours", policy=DDIM),
        ),
        Target(
            "update at 10^7 transitions relative to 10^4",
            1.1,
            False,
            _find(rows, "time_to_reference", transitions=10**7),
        ),
        Target(
            "memory at 10^7 transitions relative to the arrays",
            1.2,
            False,
            None if memory is None else {"median": memory, "interval": [memory, memory]},
        ),
    ]


def text(ratio: Ratio) -> str:
    """A ratio and its interval."""
    low, high = ratio["interval"]
    middle = ratio["median"]
    if low == high == middle:
        return f"{middle:.3g}"
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _target_rows(found: list[Target]) -> list[list[str]]:
    verdicts = {True: "met", False: "**not met**", None: "–"}
    return [
        [
            target.text,
            f"{'≥' if target.at_least else '≤'} {target.limit:g}",
            "not measured" if target.found is None else text(target.found),
            verdicts[target.is_met],
        ]
        for target in found
    ]


def _steps(part: dict[str, Any]) -> str:
    return table(
        ["batch", "an update of", "ms", "time relative to BC", "times as fast"],
        (
            [
                str(row["batch"]),
                row["contestant"],
                f"{row['ms']:.2f}",
                text(row["time_to_bc"]),
                f"{inverse(row['time_to_bc'])['median']:.2f}",
            ]
            for row in part["rows"]
        ),
    )


def _critic(part: dict[str, Any]) -> str:
    rows = []
    for task, found in part["tasks"].items():
        arrivals = [s for s in found["seconds_to_release_best"] if s is not None]
        release = found["release"]
        is_last = release["best_step"] == release["steps"][-1]
        rows.append(
            [
                task,
                text(found["step_time_of_release_to_ours"]),
                f"{release['best_loss']:.4f} (step {release['best_step']:,}, "
                f"{release['seconds_to_best']:.0f} s{'; still falling' if is_last else ''})",
                f"{len(arrivals)} of {len(found['ours'])}: "
                + (", ".join(f"{s:.1f} s" for s in arrivals) or "not reached"),
                text(found["time_of_release_to_ours_by_wall_clock"]),
                text(found["time_of_release_to_ours"]),
            ]
        )
    training = part["training"]
    seconds = training["seconds"]
    return (
        table(
            [
                "task",
                "step, release / ours",
                "release's best held-out loss",
                "fits of ours that reach it",
                "release / ours, wall clock",
                "by steps timed in turns",
            ],
            rows,
        )
        + f"\n\nA whole training on {training['task']}, by the cost of its steps: "
        f"{seconds['ours']:.0f} s, with the release's schedule {seconds['release'] / 3600:.1f} h, "
        f"{text(training['time_of_release_to_ours'])} times as long."
    )


def _denoisers(part: dict[str, Any]) -> str:
    fits = [
        (f"{task}, {_MODELS[models]}", row)
        for task, by_models in part["tasks"].items()
        for models, rows in by_models.items()
        for row in rows
    ]
    columns = list(dict.fromkeys(column for column, _ in fits))
    cells: dict[str, list[str]] = {}
    times: dict[str, list[float]] = {}
    for _, row in fits:
        found = f"{row['best_loss']:.4f} ({row['best_step']:,}, {row['seconds_to_best']:.1f} s)"
        cells.setdefault(row["variant"], []).append(found)
        times.setdefault(row["variant"], []).append(row["ms_per_step"])
    return (
        table(
            ["critic", "step, ms", *columns],
            ([name, f"{median(times[name]):.2f}", *found] for name, found in cells.items()),
        )
        + "\n\nBest held-out loss (its step, and the seconds to it), one fit each, evaluations "
        "included. One thing differs from the default. Pictures: "
        "[speed-denoisers.png](speed-denoisers.png)."
    )


def _precision(part: dict[str, Any]) -> str:
    return table(
        [
            "",
            "networks",
            "batch",
            "float32, ms",
            "bfloat16, ms",
            "time relative to float32",
            "held-out loss after so many steps, float32 / bfloat16",
        ],
        (
            [
                row["what"],
                row["networks"],
                str(row["batch"]),
                *(f"{row['ms'][precision]:.2f}" for precision in ("float32", "bfloat16")),
                text(row["time_to_single"]),
                " / ".join(f"{loss:.4f}" for loss in row["held_out_loss"].values())
                + f" ({row['steps']})"
                if "held_out_loss" in row
                else "",
            ]
            for row in part["rows"]
        ),
    )


def _floor(part: dict[str, Any]) -> str:
    return table(
        ["", "ms", "its matrix products, ms", "ratio"],
        (
            [
                row["what"],
                f"{row['ms']:.3f}",
                f"{row['floor_ms']:.3f}",
                text(row["time_to_floor"]),
            ]
            for row in part["rows"]
        ),
    )


def _inference(part: dict[str, Any]) -> str:
    return table(
        ["an action of", "ms", "time relative to DiffusionBC"],
        ([row["policy"], f"{row['ms']:.3f}", text(row["time_to_ours"])] for row in part["rows"]),
    )


def _growth(part: dict[str, Any]) -> str:
    return table(
        [
            "transitions",
            "update, ms",
            "relative to 10^4",
            "arrays, MB",
            "peak memory / arrays, by phase",
        ],
        (
            [
                f"{row['transitions']:,}",
                f"{row['ms']:.2f}",
                text(row["time_to_reference"]),
                f"{row['array_bytes'] / 1e6:.1f}",
                ", ".join(f"{name} {x:.2f}" for name, x in row["memory_to_arrays"].items()),
            ]
            for row in part["rows"]
        ),
    )


SECTIONS = {
    "steps": ("Updates", _steps),
    "critic": ("The critic", _critic),
    "denoisers": ("Other denoisers", _denoisers),
    "floor": ("Updates and their matrix products", _floor),
    "precision": ("bfloat16 autocast", _precision),
    "inference": ("Inference", _inference),
    "growth": ("Growth", _growth),
}


def target_table(parts: dict[str, Any]) -> str:
    """What was asked for, and what was measured."""
    return table(["target", "", "measured", ""], _target_rows(targets(parts)))


def markdown(parts: dict[str, Any]) -> str:
    """Targets first, then a section for each part that has run."""
    found = [
        "# Speed\n",
        "Written by `python -m benchmarks.speed`. Ratios are medians of blocks that were timed in "
        "turns, with the bootstrap's 95 % interval of the median.\n",
        target_table(parts) + "\n",
    ]
    for name, (title, section) in SECTIONS.items():
        if name in parts:
            run = parts[name]["run"]
            found += [
                f"## {title}\n",
                section(parts[name]) + "\n",
                f"`{run['command']}`, {run['processor']}, {run['threads']} threads, "
                f"torch {run['versions']['torch']}.\n",
            ]
    return "\n".join(found)


def _draw_steps(axes: Axes, part: dict[str, Any]) -> None:
    rows = [row for row in part["rows"] if row["contestant"] != BC]
    contestants = list(dict.fromkeys(row["contestant"] for row in rows))
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    width = 0.8 / len(contestants)
    for index, contestant in enumerate(contestants):
        ratios = [inverse(r["time_to_bc"]) for r in rows if r["contestant"] == contestant]
        medians = [ratio["median"] for ratio in ratios]
        errors = [
            [max(0, r["median"] - r["interval"][0]) for r in ratios],
            [max(0, r["interval"][1] - r["median"]) for r in ratios],
        ]
        places = [place + (index + 0.5) * width - 0.4 for place in range(len(batches))]
        axes.bar(places, medians, width, yerr=errors, color=_COLOURS[index], label=contestant)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(batches)), [f"batch {batch}" for batch in batches])
    axes.set_ylabel("times as fast as imitation's BC")
    axes.legend(fontsize=8)


def _draw_critic(axes: Axes, part: dict[str, Any]) -> None:
    for (task, found), colour in zip(part["tasks"].items(), _COLOURS, strict=False):
        release = found["release"]
        # A logarithmic axis has no place for the untrained network at 0 s.
        axes.plot(release["seconds"][1:], release["held_out_loss"][1:], "--", color=colour)
        for number, curve in enumerate(found["ours"]):
            label = task if number == 0 else None
            axes.plot(curve["seconds"], curve["held_out_loss"], color=colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds of training (dashed: the release's loop)")
    axes.set_ylabel("held-out denoising loss")
    axes.legend(fontsize=8)


def _draw_growth(axes: Axes, part: dict[str, Any]) -> None:
    sizes = [row["transitions"] for row in part["rows"]]
    times = [row["time_to_reference"] for row in part["rows"]]
    axes.plot(sizes, [t["median"] for t in times], "o-", color=_COLOURS[0], label="time / 10^4's")
    low, high = zip(*(t["interval"] for t in times), strict=True)
    axes.fill_between(sizes, low, high, color=_COLOURS[0], alpha=0.2)
    # What a process takes anyway hides small arrays.
    large = [row for row in part["rows"] if row["transitions"] >= 10**6]
    axes.plot(
        [row["transitions"] for row in large],
        [row["peak_memory_to_arrays"] for row in large],
        "s-",
        color=_COLOURS[1],
        label="peak memory / arrays",
    )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("transitions")
    axes.legend(fontsize=8)


_PANELS = {
    "steps": ("An update", _draw_steps),
    "critic": ("The critic's fit", _draw_critic),
    "growth": ("Growth of the demonstrations", _draw_growth),
}


def draw(parts: dict[str, Any], path: Path) -> None:
    """Three panels; one whose part has not run says so."""
    figure, row = plt.subplots(1, len(_PANELS), figsize=(15, 4.5), layout="constrained")
    for axes, (name, (title, panel)) in zip(row, _PANELS.items(), strict=True):
        axes.set_title(title)
        if name in parts:
            panel(axes, parts[name])
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def draw_denoisers(part: dict[str, Any], path: Path) -> None:
    """A panel per task and model: held-out loss against time, other recipes dashed."""
    tasks = part["tasks"]
    figure, panels = plt.subplots(
        len(_MODELS), len(tasks), figsize=(15, 8), layout="constrained", squeeze=False
    )
    for row, (models, title) in zip(panels, _MODELS.items(), strict=True):
        for axes, (task, found) in zip(row, tasks.items(), strict=True):
            for number, fit in enumerate(found[models]):
                axes.plot(
                    fit["curve"]["seconds"],
                    fit["curve"]["held_out_loss"],
                    "-" if fit["is_network"] else "--",
                    color="black" if fit["variant"] == DEFAULT else f"C{number % 10}",
                    label=fit["variant"],
                    linewidth=1,
                )
            axes.set(xscale="log", yscale="log", title=f"{task}, {title}")
    for axes in panels[-1]:
        axes.set_xlabel("seconds of fitting")
    for axes in panels[:, 0]:
        axes.set_ylabel("held-out denoising loss")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
