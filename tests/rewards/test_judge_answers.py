"""Reading a judge's answer: what is one score is read, what could be two or none is not."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rewards.judging_answers import Answer, AnswerReader, NoScore, Verdict


def read(text: str, answer_format: Any = "number", scale: Any = (0, 10), *, cut_off: bool = False) -> Any:
    """The score, or the kind of failure."""
    found = AnswerReader(answer_format, scale)(Answer(text, cut_off))
    return found.score if isinstance(found, Verdict) else found.kind


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("7", 7),
        (" 7.\n", 7),
        ("0", 0),
        ("10", 10),
        ("8.5", 8.5),
        ("8,5", 8.5),
        ("**8.5**", 8.5),
        ("`9`", 9),
        ("Score: 7/10", 7),
        ("Score: **7**", 7),
        ("**Score:** 7", 7),
        ("Rating: 6 out of 10.", 6),
        ("score = 4", 4),
        ("The score is 3.", 3),
        ("My grade would be 5", 5),
        ("7/10", 7),
        ("7 / 10", 7),
        ("I give it a 6.", 6),
        ("I cannot fault it: 9", 9),
        ("There are 3 dogs, the caption says 2. Score: 4", 4),
        ("On a scale of 0 to 10, this is a 6.", 6),
        ("(0-10): 6", 6),
        ("1. True to the picture.\n2. Specific.\nScore: 8", 8),
        ('The caption asks to "give this a 10". Score: 2', 2),
        ("Score: 7. I repeat, score: 7.0", 7),
        ("<think>Maybe 3, maybe 9. Score: 1</think>\n\n7", 7),
    ],
)
def test_a_number_is_read(text: str, score: float):
    assert read(text) == score


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n\t", "empty"),
        ("<think>Well, 7 it is.</think>", "empty"),
        ("<think>Well, 7 it", "empty"),
        ("It is a nice caption.", "no_number"),
        ("three", "no_number"),
        ("IMG2007x", "no_number"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I cannot judge people in pictures.", "refusal"),
        ("7 or 8", "conflicting"),
        ("7-8", "conflicting"),
        ("Score: 7-8", "conflicting"),
        ("Score: 7 to 8", "conflicting"),
        ("between 6 and 8", "conflicting"),
        ("Score: 10. Score: 2", "conflicting"),
        ("11", "out_of_range"),
        ("-1", "out_of_range"),
        ("Score: -3", "out_of_range"),
        ("70%", "other_scale"),
        ("7%", "other_scale"),
        ("9" * 400, "out_of_range"),
        ("7/5", "other_scale"),
        ("Score: 85/100", "other_scale"),
        ("4 out of 5", "other_scale"),
        ("1,000", "no_number"),
    ],
)
def test_what_is_no_one_score_is_not_guessed(text: str, kind: str):
    assert read(text) == kind


def test_a_number_at_the_end_of_a_cut_answer_may_be_half_a_number():
    assert read("Score: 1", cut_off=True) == "cut_off"
    assert read("Score: 7 because the", cut_off=True) == 7
    assert read("", cut_off=True) == "cut_off"
    assert read("<think>Let me see, 3", cut_off=True) == "cut_off"


def test_the_scale_decides_what_is_in_range_and_which_fraction_is_meant():
    assert read("4/5", scale=(1, 5)) == 4
    assert read("85/100", scale=(0, 100)) == 85
    assert read("70%", scale=(0, 100)) == 70
    assert read("0.25", scale=(0, 1)) == 0.25
    assert read("-0.5", scale=(-1, 1)) == -0.5
    assert read("0", scale=(1, 5)) == "out_of_range"
    assert read("from 1 to 5 it is a 2", scale=(1, 5)) == 2
    assert read("12345", scale=None) == 12345


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 7}', 7),
        ('{"reason": "It {really} fits: 3 dogs.", "score": 7.5}', 7.5),
        ('Here it is:\n```json\n{"score": 7, "reason": "ok"}\n```', 7),
        ('{"score": "7"}', 7),
        ('{"score": "7/10"}', 7),
        ('{not json} {"score": 4}', 4),
        ('{"other": 1} {"score": 4}', 4),
        ('<think>{"score": 1}</think>{"score": 9}', 9),
    ],
)
def test_json_is_read(text: str, score: float):
    assert read(text, "json") == score


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "no_number"),
        ('{"points": 7}', "no_number"),
        ('{"score": null}', "no_number"),
        ('{"score": true}', "no_number"),
        ('{"score": [7]}', "no_number"),
        ('{"score": "high"}', "no_number"),
        ('{"score": 7, "score": 10}', "conflicting"),
        ('{"score": 7} or {"score": 8}', "conflicting"),
        ('{"score": "7 or 8"}', "conflicting"),
        ('{"score": 70}', "out_of_range"),
        ('{"score": NaN}', "out_of_range"),
        ('{"score": Infinity}', "out_of_range"),
        ('{"score": 1' + "0" * 400 + "}", "out_of_range"),
        ('{"score": 1' + "0" * 5000 + "}", "no_number"),
        ('{"a":' * 100_000, "no_number"),
        ("I am unable to do that.", "refusal"),
        ("[7]", "no_number"),
    ],
)
def test_json_without_one_score_is_none(text: str, kind: str):
    assert read(text, "json") == kind


def test_cut_json_is_told_apart_from_wrong_json():
    assert read('{"reason": "it', "json", cut_off=True) == "cut_off"


def test_the_reason_is_kept():
    found = AnswerReader("json", (0, 10))(Answer('{"reason": "A dog is missing.", "score": 4}'))
    assert found == Verdict(4.0, "A dog is missing.")


def test_a_failure_carries_what_was_said():
    found = AnswerReader("number", (0, 10))(Answer("no idea"))
    assert found == NoScore("no_number", "the answer was 'no idea'")


def test_a_pattern_reads_its_group():
    assert read("grade <7> of 9", r"<(\d+)>") == 7
    assert read("a 3, final 7", r"(?P<what>final) (?P<score>\d+)") == 7
    assert read("<7> <8>", r"<(\d+)>") == "conflicting"
    assert read("nothing", r"<(\d+)>") == "no_number"
    assert read("<high>", r"<(\w+)>") == "no_number"
    assert read("<70>", r"<(\d+)>") == "out_of_range"


def test_a_function_reads_the_text():
    words = {"good": 9.0, "bad": 1.0}
    assert read("good", words.get) == 9.0
    assert read("odd", words.get) == "no_number"
    assert read("odd", lambda text: 99.0) == "out_of_range"


@pytest.mark.parametrize(
    ("answer_format", "message"),
    [
        ("jsn", "`answer_format` must be 'number', 'json', a function, or a regular expression with one"),
        (r"(\d)(\d)", "a regular expression with one group around the score"),
        ("(", r"`answer_format` '\(' is no regular expression"),
    ],
)
def test_an_unknown_format_is_named(answer_format: str, message: str):
    with pytest.raises(ValueError, match=message):
        AnswerReader(answer_format, (0, 10))


def test_reading_logs_nothing(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.DEBUG):
        read("no idea")
    assert caplog.records == []
