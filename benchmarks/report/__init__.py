"""The comparison's result files as tables, words and figures (`python -m benchmarks.report`)."""

from benchmarks.report.writing import write_report

__all__ = ["write_report"]
