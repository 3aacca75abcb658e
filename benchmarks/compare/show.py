"""What the comparison prints: progress while it runs, and an overview of what there is."""

import datetime
from collections.abc import Iterator

import tqdm

from benchmarks.compare.cells import Cell
from benchmarks.compare.plan import Plan
from benchmarks.compare.running import Outcome


def progress(outcomes: Iterator[Outcome], plan: Plan) -> Iterator[Outcome]:
    """Shows finished cells, and how long the others will take, while outcomes pass through.

    Args:
        outcomes: of the plan's missing cells, as they come.
        plan: with the cells' estimated costs.

    Yields:
        The outcomes.
    """
    left = {cell.name: cost for cell, cost in zip(plan.missing, plan.seconds, strict=True)}
    total = sum(left.values())
    with tqdm.tqdm(
        total=len(left), bar_format="{n_fmt}/{total_fmt} cells [{elapsed}{postfix}]"
    ) as bar:
        for outcome in outcomes:
            del left[outcome.cell.name]
            still = sum(left.values())
            # At the pace so far, which knows the machine and how many run at a time.
            pace = bar.format_dict["elapsed"] / (total - still)
            bar.set_postfix_str(f"about {duration(still * pace)} left", refresh=False)
            bar.update()
            bar.write(summary(outcome))
            yield outcome


def summary(outcome: Outcome) -> str:
    """One line on a finished cell."""
    record = outcome.record
    if record is None:
        reason = (outcome.error or "").strip().splitlines()[-1]
        return f"{outcome.cell.name}: FAILED: {reason}"
    mean = sum(record["scores"]) / len(record["scores"])
    score = f"success {mean:.0%}" if record["metric"] == "success" else f"return {mean:.1f}"
    return f"{outcome.cell.name}: {score}, {duration(sum(record['seconds'].values()))}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))


def overview(plan: Plan) -> None:
    """Prints one line for each task with a method."""
    for note in plan.notes:
        print(note)
    missing = {cell.name: cost for cell, cost in zip(plan.missing, plan.seconds, strict=True)}
    rows: dict[tuple[str, str], list[Cell]] = {}
    for cell in plan.cells:
        rows.setdefault((cell.task.key, cell.method.key), []).append(cell)
    for (task, method), cells in rows.items():
        costs = [missing[cell.name] for cell in cells if cell.name in missing]
        cost = f", about {duration(sum(costs))} to go" if costs else ""
        print(f"{task:16} {method:22} {len(cells) - len(costs)} of {len(cells)} done{cost}")
    print(
        f"missing: {len(missing)} of {len(plan.cells)} cells, "
        f"about {duration(sum(plan.seconds))} on one core"
    )
