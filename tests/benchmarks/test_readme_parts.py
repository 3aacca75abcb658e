"""Parts of the README that commands write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.readme_parts import marks, with_part

# Without angle brackets, so that no text holds a mark by chance.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="<>"))


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_only_what_is_between_the_marks_is_replaced(
    before: str, old: str, part: str, after: str
) -> None:
    begin, end = marks("part")
    written = with_part(f"{before}{begin}{old}{end}{after}", "part", part)
    assert written == f"{before}{begin}\n{part}\n{end}{after}"
    assert with_part(written, "part", part) == written


@pytest.mark.parametrize("text", ["", *marks("part"), "".join(reversed(marks("part")))])
def test_a_text_without_both_marks_in_their_order_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="README: expected the lines <!-- part -->"):
        with_part(text, "part", "new")
