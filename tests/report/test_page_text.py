"""Texts and numbers made fit for a page."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmft.report.page_text import (
    MAX_ITEMS,
    MAX_LABEL,
    MAX_TEXT,
    Texts,
    clean,
    count,
    number,
    rounded,
    short,
    tidy,
)


def test_what_no_file_of_utf8_can_hold_is_marked():
    assert clean("a\0b\ud800c\x1b[31m") == "a\ufffdb\ufffdc\ufffd[31m"
    assert clean("tab\tline\nend\r größer \u2028 \U0001f600") == "tab\tline\nend\r größer \u2028 \U0001f600"
    assert clean(None) == "None"


def test_a_long_text_ends_with_an_ellipsis_and_is_counted():
    texts = Texts()
    assert texts("x" * MAX_TEXT) == "x" * MAX_TEXT
    assert texts.notes() == []
    assert texts("x" * (MAX_TEXT + 1)) == "x" * (MAX_TEXT - 1) + "…"
    assert texts.notes() == ["1 text longer than 4,000 characters (names: 120) is cut, and end with …."]
    texts("y" * 10_000)
    assert texts.num_cut == 2
    assert "2 texts" in texts.notes()[0]


def test_a_name_is_short():
    assert short("n" * MAX_LABEL) == "n" * MAX_LABEL
    assert len(short("n" * 500)) == MAX_LABEL


def test_settings_become_what_json_knows():
    found = tidy({"a": math.inf, "b": (1, None, True), 3: {"c": "\0"}, "d": object})
    assert found == {"a": "inf", "b": [1, None, True], "3": {"c": "\ufffd"}, "d": str(object)}
    assert tidy(list(range(MAX_ITEMS + 5)))[-1] == "… and 5 more"
    assert len(tidy(list(range(MAX_ITEMS + 5)))) == MAX_ITEMS + 1


@pytest.mark.parametrize("value", [None, True, "1", math.nan, math.inf, [1.0], 10**400])
def test_what_is_no_finite_number_is_none(value: Any):
    assert number(value) is None
    assert rounded(value) is None


def test_numbers_keep_six_digits():
    assert rounded(0.123456789) == 0.123457
    assert rounded(-1234567) == -1234570.0
    assert number(3) == 3.0


def test_counts_in_words():
    assert [count(1, "row"), count(0, "row"), count(1234, "row")] == ["1 row", "0 rows", "1,234 rows"]
