"""Whatever text comes in, PostgreSQL and UTF-8 can hold what comes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oncepaid.domain.text import storable_text

# Python's strings can hold unpaired surrogates; Hypothesis leaves them out unless told.
any_text = st.text(st.characters(codec=None, exclude_categories=())).filter(bool) | st.text()


@given(any_text)
def test_the_result_is_storable_and_stays_as_it_is(text: str) -> None:
    result = storable_text(text)
    assert "\0" not in result
    assert result.encode("utf-8").decode("utf-8") == result
    assert storable_text(result) == result
    assert len(result) == len(text)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_clean_text_is_left_alone(text: str) -> None:
    assert storable_text(text) == text


@pytest.mark.parametrize(
    ("text", "result"),
    [("a\0b", "a\ufffdb"), ("\ud83d", "?"), ("\udc00x", "?x"), ("\U0001f600", "\U0001f600")],
)
def test_what_cannot_be_held(text: str, result: str) -> None:
    assert storable_text(text) == result
