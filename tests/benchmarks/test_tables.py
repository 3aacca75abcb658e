"""Markdown tables."""

from benchmarks.tables import table


def test_a_table_keeps_its_shape_whatever_its_cells_hold() -> None:
    assert table(["a", "b"], [["p(a|s)", "x\ny"]]) == (
        "| a | b |\n| --- | --- |\n| p(a\\|s) | x y |"
    )
