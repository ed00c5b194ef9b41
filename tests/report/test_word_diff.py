"""Differences word by word."""

from __future__ import annotations

import pytest

from mmft.report.word_diff import MAX_WORDS, word_diff


def test_words_that_changed_are_told_from_those_that_stayed():
    assert word_diff("a red circle.", "a blue circle and a ring.") == [
        ("=", "a"),
        ("-", " red"),
        ("+", " blue"),
        ("=", " circle"),
        ("+", " and a ring"),
        ("=", "."),
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", ""),
        ("", "a circle"),
        ("  two  spaces\n", "two spaces"),
        ("größer, «kleiner»!", "größer; kleiner?"),
        ("a b c d e f", "f e d c b a"),
        ("x" * 50, "\ufffd\ufffd"),
        ("word " * (MAX_WORDS + 1), "word " * MAX_WORDS),
        ("trailing   ", "trailing"),
    ],
)
def test_the_runs_put_together_are_the_two_texts(before: str, after: str):
    runs = word_diff(before, after)
    assert "".join(text for kind, text in runs if kind in "=-") == before
    assert "".join(text for kind, text in runs if kind in "=+") == after
    assert all(text for _, text in runs)


def test_the_same_text_is_one_run_however_long():
    assert word_diff("the same", "the same") == [("=", "the same")]
    long = "word " * (MAX_WORDS + 1)
    assert word_diff(long, long) == [("=", long)]


def test_texts_that_are_too_long_to_compare_have_all_changed():
    one, other = "a " * (MAX_WORDS + 1), "a " * MAX_WORDS
    assert word_diff(one, other) == [("-", one), ("+", other)]


def test_a_word_that_is_said_often_is_still_compared():
    one = "the " * 250 + "end"
    assert word_diff(one, "the " * 250 + "start")[0] == ("=", ("the " * 250).rstrip())
