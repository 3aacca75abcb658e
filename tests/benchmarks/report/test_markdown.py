"""Numbers, tables and parts of pages in Markdown."""

import math

import pandas as pd
import pytest

from benchmarks.report.markdown import number, replace_part, short, table, with_interval


def test_numbers() -> None:
    assert number(-0.04) == "0.0"
    assert number(12.345, 2) == "12.35"
    assert number(math.nan) == "–"
    assert [short(value) for value in (98_304.0, 12.345, 0.12345, math.nan)] == [
        "98,304",
        "12.3",
        "0.123",
        "–",
    ]


def test_intervals_follow_their_value_where_there_are_any() -> None:
    assert with_interval(0.4, -1.8, 2.8) == "0.4 [-1.8, 2.8]"
    assert with_interval(0.4, math.nan, math.nan, digits=2) == "0.40"


def test_tables_escape_pipes_and_mark_what_is_missing() -> None:
    pytest.importorskip("tabulate")
    lines = table(pd.DataFrame({"a": ["p(a|s)", None], "b": ["1", "2e3"]})).splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert cells[0] == ["a", "b"]
    assert cells[2:] == [[r"p(a\|s)", "1"], ["–", "2e3"]]


def test_a_table_without_rows_says_so() -> None:
    assert "no results" in table(pd.DataFrame({"a": []}))


def test_a_part_is_replaced_between_its_marks() -> None:
    page = "before\n<!-- one -->\nold\n<!-- /one -->\nafter\n<!-- two --><!-- /two -->\n"
    expected = "before\n<!-- one -->\nnew\n<!-- /one -->\nafter\n<!-- two --><!-- /two -->\n"
    assert replace_part(page, "one", "new") == expected
    assert replace_part(expected, "one", "new") == expected


@pytest.mark.parametrize("page", ["", "<!-- one -->", "<!-- /one --><!-- one -->"])
def test_a_missing_mark_is_named(page: str) -> None:
    with pytest.raises(ValueError, match="one: expected the marks <!-- one --> and <!-- /one -->"):
        replace_part(page, "one", "new")
