"""Formats: regular expressions under a time limit, and tags."""

from __future__ import annotations

import time
from typing import Any

import pytest

from rewards import FormatReward, RegexReward

TEXTS = ["I see 2 dogs.", "2 dogs", "two dogs", "2 dogs\n", ""]
ENDLESS = "a" * 60 + "b"  # for (a|aa)+$


@pytest.mark.parametrize(
    ("mode", "expected"), [("search", [1.0, 1.0, 0.0, 1.0, 0.0]), ("fullmatch", [0.0, 1.0, 0.0, 0.0, 0.0])]
)
def test_regex_hand_computed(mode: str, expected: list[float]):
    assert RegexReward(r"\d+ dogs?", mode)(None, TEXTS) == expected


def test_regex_minds_case_unless_told():
    assert RegexReward("dog")(None, ["Dog"]) == [0.0]
    assert RegexReward("dog", ignore_case=True)(None, ["Dog"]) == [1.0]


def test_a_dot_stops_at_a_line_break_unless_the_pattern_says_otherwise():
    assert RegexReward("a.b", "fullmatch")(None, ["a\nb"]) == [0.0]
    assert RegexReward("(?s)a.b", "fullmatch")(None, ["a\nb"]) == [1.0]


def test_each_row_may_have_its_own_pattern():
    reward = RegexReward(column="form", mode="fullmatch")
    assert reward(None, ["12", "12", "ab"], form=[r"\d+", None, r"\d+"]) == [1.0, None, 0.0]


def test_regex_reads_messages():
    assert RegexReward("cat")(None, [[{"role": "assistant", "content": "a cat"}]]) == [1.0]


@pytest.mark.parametrize("mode", ["search", "fullmatch"])
def test_a_pattern_without_end_is_stopped_and_named(mode: str):
    reward = RegexReward("(a|aa)+$", mode, seconds=0.1)
    start = time.monotonic()
    with pytest.raises(
        TimeoutError, match=r"`pattern`: '\(a\|aa\)\+\$' took more than 0.1 s on a text of 61"
    ):
        reward(None, [ENDLESS])
    assert time.monotonic() - start < 5
    assert reward(None, ["aaa"]) == [1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give `pattern` or `column`, not both or none; got None and None"),
        ({"pattern": "a", "column": "b"}, "give `pattern` or `column`, not both or none; got 'a' and 'b'"),
        ({"pattern": "a", "mode": "match"}, "`mode` must be one of search, fullmatch; got 'match'"),
        ({"pattern": "a", "seconds": 0}, "`seconds` must be above 0; got 0"),
        ({"pattern": "(a"}, r"`pattern` is no regular expression: '\(a': missing \)"),
    ],
)
def test_impossible_patterns_are_errors(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        RegexReward(**arguments)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "needs a column `form` and the data has none"),
        ({"form": [3]}, "row 0: `form` must be a pattern or None; got 3"),
        ({"form": ["[a"]}, r"`form` of row `0` is no regular expression: '\[a'"),
    ],
)
def test_bad_patterns_of_rows_are_named(columns: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        RegexReward(column="form")(None, ["a"], **columns)


GOOD = "<think>two</think><answer>2</answer>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, 1.0),
        ("\n<think>two</think> \n <answer>2</answer>\n", 1.0),
        ("<think>a\nb < c <b>d</b></think><answer>2</answer>", 1.0),
        ("<answer>2</answer><think>two</think>", 0.0),
        ("<think>a</think><think>b</think><answer>2</answer>", 0.0),
        (GOOD + GOOD, 0.0),
        ("<think>two</think>", 0.0),
        ("<think>two</think><answer>2", 0.0),
        ("<think>two<answer>2</answer></think>", 0.0),
        ("<think>two<answer></think>2</answer>", 0.0),
        ("<Think>two</Think><answer>2</answer>", 0.0),
        ("2", 0.0),
        ("", 0.0),
        ("Well: " + GOOD, 0.0),
        (GOOD + " Done.", 0.0),
        ("<think>two</think> so <answer>2</answer>", 0.0),
        ("<think></think><answer>2</answer>", 0.0),
        ("<think>two</think><answer> \n</answer>", 0.0),
    ],
)
def test_format_hand_computed(text: str, expected: float):
    assert FormatReward()(None, [text]) == [expected]
    assert FormatReward()(None, [[{"role": "assistant", "content": text}]]) == [expected]


def test_text_outside_and_empty_sections_can_be_allowed():
    loose = FormatReward(text_outside=True)
    assert loose(None, ["Well: " + GOOD + " Done.", "a <answer>2</answer>"]) == [1.0, 0.0]
    assert loose(None, ["<think></think><answer>2</answer>"]) == [0.0]
    empty = FormatReward(may_be_empty=True)
    assert empty(None, ["<think></think><answer> </answer>", "a" + GOOD]) == [1.0, 0.0]


def test_tags_are_those_named():
    caption = FormatReward(["caption"])
    assert caption(None, ["<caption>a cat</caption>", "<answer>a cat</answer>"]) == [1.0, 0.0]
    assert FormatReward("caption").tags == ["caption"]
    three = FormatReward(["a", "b-c", "d"])
    assert three(None, ["<a>1</a><b-c>2</b-c><d>3</d>", "<a>1</a><d>3</d><b-c>2</b-c>"]) == [1.0, 0.0]


def test_what_the_prompt_opened_counts_as_said():
    opened = FormatReward(prefix="<think>")
    assert opened(None, ["two</think><answer>2</answer>", GOOD]) == [1.0, 0.0]


def test_long_completions_take_no_longer_than_they_are():
    start = time.monotonic()
    assert FormatReward()(None, ["<think>" * 50_000, "<think>" + "<" * 200_000]) == [0.0, 0.0]
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("tags", [[], ["a", "a"], ["<a>"], ["a b"], [""]])
def test_impossible_tags_are_errors(tags: list[str]):
    with pytest.raises(ValueError, match="`tags` must be different names without brackets"):
        FormatReward(tags)
