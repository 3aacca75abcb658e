"""Turns the comparison's result files into a report with figures, and the README's table.

    python -m benchmarks.report
    python -m benchmarks.report --results my_results --output my_report
    python -m benchmarks.report --readme README.md

Results may be incomplete: what is missing is named, and what is damaged is left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import write_report

RESULTS = Path(__file__).parents[1] / "results" / "comparison"


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line and writes the report.

    Args:
        argv: Arguments; those of the process where None.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description="Turn the comparison's result files into a report with figures.",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help="with TASK/METHOD/SEED.json (default: benchmarks/results/comparison)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="for the report and its figures, named after the results (default: beside them)",
    )
    parser.add_argument(
        "--readme",
        type=Path,
        metavar="PATH",
        help="also fill in the comparison between the marks in this file",
    )
    arguments = parser.parse_args(argv)
    try:
        print(write_report(arguments.results, arguments.output, arguments.readme))
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
