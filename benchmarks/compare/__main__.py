"""Compares methods on the same demonstrations and episodes; one result file for each cell.

    python -m benchmarks.compare --paper-data FOLDER        # run what is missing
    python -m benchmarks.compare --tasks maze --methods bc_paired diffusion_bc --seeds 1
    python -m benchmarks.compare --env Hopper-v4 --demos my_demos.npz --methods bc diffusion_bc
    python -m benchmarks.compare --list                     # what is done, what is missing
    python -m benchmarks.compare --quick                    # shows that everything runs, no figures

A cell is a task with a method and a training seed. It can be stopped at any time: finished cells
stay, and the same command goes on with the others.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import records
from benchmarks.compare import running, show, tasks
from benchmarks.compare.cells import Origin
from benchmarks.compare.methods import METHODS, ComparedMethod
from benchmarks.compare.plan import Plan, Row, make_plan
from benchmarks.compare.protocol import QUICK, Protocol
from benchmarks.provenance import command_line

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "comparison"
OWN_RESULTS = ROOT / "runs" / "comparison" / "results"
CACHE = ROOT / "runs" / "comparison" / "critics"
PROTOCOLS = {False: Protocol(), True: QUICK}
"""By whether only a quick look is asked for."""
SEEDS = {False: 5, True: 3}
"""Training seeds by default, by whether a method is interactive."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to compare")
    what.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        choices=tasks.all_keys(),
        help=f"of {', '.join(tasks.all_keys())}; by default all, with the authors' demonstrations "
        "where --paper-data is given and they published some",
    )
    what.add_argument("--paper-data", type=Path, help="folder with the authors' .pt files")
    what.add_argument("--env", metavar="ID", help="a task of your own: Gymnasium's id")
    what.add_argument(
        "--demos", metavar="FILE", help="its demonstrations, as load_demonstrations reads them"
    )
    what.add_argument(
        "--metric",
        choices=("success", "return"),
        help="what counts in it; by default success where the environment tells 'is_success'",
    )
    what.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=_methods())
    what.add_argument(
        "--seeds",
        type=_positive,
        metavar="N",
        help=f"training seeds, from {Protocol.first_seed} up; by default {SEEDS[False]}, "
        f"for interactive methods {SEEDS[True]}",
    )
    what.add_argument(
        "--interactive-steps",
        type=_positive,
        default=None,
        metavar="N",
        help=f"environment steps of interactive methods ({Protocol.interactive_steps})",
    )
    how = parser.add_argument_group("how to run it")
    how.add_argument("--jobs", type=_positive, help="cells at a time (2; with --ray all it has)")
    how.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster; 'local' starts one here"
    )
    how.add_argument("--results", type=Path, help="folder of the result files")
    how.add_argument("--list", action="store_true", help="only tell what is done and missing")
    how.add_argument("--quick", action="store_true", help="tiny sizes, into a temporary folder")
    return parser


def _methods() -> str:
    return f"of {', '.join(METHODS)}; by default all that suit the task"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"found {value}, expected at least 1")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        0 if all went well, 1 if a cell failed, 130 if it was interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        plan, results = _plan(
            given,
            command_line("benchmarks.compare", arguments, (given.paper_data, given.results)),
        )
    except (ValueError, TypeError, OSError, ImportError) as error:
        parser.error(str(error))
    if given.list:
        show.overview(plan)
        return 0
    return _run(plan, given, results)


def _plan(given: argparse.Namespace, command: str) -> tuple[Plan, Path]:
    """Reads and checks everything that is asked for."""
    if given.ray is not None and importlib.util.find_spec("ray") is None:
        raise ValueError('--ray needs Ray: pip install "sb3-diffbc[ray]".')
    compared = _compared_tasks(given)
    protocol = PROTOCOLS[given.quick]
    if given.interactive_steps is not None:
        protocol = dataclasses.replace(protocol, interactive_steps=given.interactive_steps)
    results, cache = given.results or (RESULTS if given.env is None else OWN_RESULTS), CACHE
    if given.quick:
        # Toy figures must not take the place of real ones.
        folder = Path(tempfile.mkdtemp(prefix="comparison-"))
        results, cache = given.results or folder / "results", folder / "critics"
    plan = make_plan(
        [row for task in compared for row in _rows(task, given, protocol)],
        protocol,
        results,
        cache,
        Origin(command, *_revision()),
        # Of a task of one's own, what does not suit it was not asked for.
        leave_out_unsuitable=given.methods is None,
    )
    return plan, results


def _compared_tasks(given: argparse.Namespace) -> list[tasks.ComparedTask]:
    if given.env is None:
        for name in ("demos", "metric"):
            if getattr(given, name) is not None:
                raise ValueError(f"--{name} is for a task of your own: give --env too.")
        keys = given.tasks or tasks.keys(given.paper_data)
        return [tasks.find(key, given.paper_data) for key in keys]
    if given.demos is None:
        raise ValueError("--env needs --demos, the demonstrations to imitate.")
    if given.tasks is not None:
        raise ValueError("--tasks names the paper's tasks: give it or --env, not both.")
    return [tasks.own(given.env, given.demos, given.metric)]


def _rows(task: tasks.ComparedTask, given: argparse.Namespace, protocol: Protocol) -> Iterator[Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        demonstrations = tasks.checked_demonstrations(task)
    for method in _methods_for(given):
        n_seeds = given.seeds or SEEDS[method.is_interactive]
        seeds = range(protocol.first_seed, protocol.first_seed + n_seeds)
        yield Row(task, method, seeds, demonstrations)


def _methods_for(given: argparse.Namespace) -> list[ComparedMethod]:
    if given.methods is not None:
        return [METHODS[key] for key in dict.fromkeys(given.methods)]
    return [method for method in METHODS.values() if given.env is None or method.is_default]


def _revision() -> tuple[str | None, bool | None]:
    """The repository's revision, and whether the code differs from it; None outside of one."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *command], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
        return git("rev-parse", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _run(plan: Plan, given: argparse.Namespace, results: Path) -> int:
    for note in plan.notes:
        print(note)
    n_done = len(plan.cells) - len(plan.missing)
    print(f"{n_done} of {len(plan.cells)} cells are done; results are in {results}", flush=True)
    n_jobs = given.jobs or (2 if given.ray is None else -1)
    failed: list[running.Outcome] = []
    try:
        with contextlib.closing(running.run(plan.missing, n_jobs, given.ray)) as outcomes:
            for outcome in show.progress((_kept(o, results) for o in outcomes), plan):
                if outcome.error is not None:
                    failed.append(outcome)
    except KeyboardInterrupt:
        print("\nInterrupted. Finished cells are kept; the same command goes on with the others.")
        _report(results)
        return 130
    except running.ClusterError as error:
        print(f"{error}\nFinished cells are kept; the same command goes on.", file=sys.stderr)
        return 1
    _report(results)
    for outcome in failed:
        print(f"failed: {outcome.cell.name}: {outcome.error}", file=sys.stderr)
    return 1 if failed else 0


def _kept(outcome: running.Outcome, results: Path) -> running.Outcome:
    """Writes a cell's result; the outcome is a failure if it is none that can be written."""
    if outcome.record is None:
        return outcome
    cell = outcome.cell
    path = records.record_path(results, cell.task.key, cell.method.key, cell.seed)
    try:
        records.write_record(path, outcome.record)
    except records.RecordError as error:
        return running.Outcome(cell, None, str(error))
    return outcome


def _report(results: Path) -> None:
    """Writes the report of what there is, if its libraries are there."""
    if not any(results.glob("*/*/*.json")):
        return
    try:
        from benchmarks.report import write_report

        print(f"report: {write_report(results)}")
    except (ImportError, ValueError) as error:
        print(f"no report was written: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
