"""Answers: exact matches, choices and numbers, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import ExactMatch, MultipleChoice, NumericAnswer

TWO = ["two", "2", "2 dogs"]
CHOICES = ["a cat", "two dogs", "a hot dog"]
REWARDS = [ExactMatch, MultipleChoice, NumericAnswer]


def score(reward: Any, text: Any, answer: Any, **columns: Any) -> float | None:
    (value,) = reward(None, [text], answer=[answer], **{name: [entry] for name, entry in columns.items()})
    return value


@pytest.mark.parametrize(
    ("text", "plain", "vqa"),
    [
        ("Two.", 1.0, 1.0),
        ("2!", 1.0, 1.0),
        ("2 dogs", 1.0, 1.0),
        ("the 2 dogs", 0.0, 1.0),
        ("two dogs", 0.0, 1.0),
        ("I see two", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("!", 0.0, 0.0),
    ],
)
def test_exact_match_hand_computed(text: str, plain: float, vqa: float):
    assert score(ExactMatch(), text, TWO) == plain
    assert score(ExactMatch(normalize="vqa"), text, TWO) == vqa


def test_without_normalisation_only_space_is_free():
    reward = ExactMatch(normalize="none")
    assert [score(reward, text, "Two") for text in (" Two\n", "two", "Two.")] == [1.0, 0.0, 0.0]


def test_answers_are_strings_integers_or_lists_of_them():
    assert score(ExactMatch(), "2", 2) == 1.0
    assert score(ExactMatch(), "2", [3, 2]) == 1.0
    assert score(ExactMatch(), "2", ("3", "2")) == 1.0
    assert score(ExactMatch(), "2", "3") == 0.0


def test_agreement_of_people_is_graded():
    answers = ["yes"] * 2 + ["no"] * 7 + ["maybe"]
    reward = ExactMatch(agreement=3)
    assert [score(reward, text, answers) for text in ("yes", "no", "maybe", "so")] == pytest.approx(
        [2 / 3, 1.0, 1 / 3, 0.0]
    )


def test_a_completion_without_a_sign_matches_nothing():
    assert score(ExactMatch(normalize="vqa"), "the", ["a", "?"]) == 0.0
    assert score(ExactMatch(normalize="vqa"), "", ["the"]) == 0.0


@pytest.mark.parametrize("reward", REWARDS)
def test_a_row_without_an_answer_is_not_judged(reward: Any):
    assert score(reward(), "B", None) is None


@pytest.mark.parametrize(
    ("reward", "text", "answer"),
    [(ExactMatch, "Paris", "paris"), (MultipleChoice, "(b)", "B"), (NumericAnswer, "2 of them", 2)],
)
def test_answers_are_read_from_where_they_should_stand(reward: Any, text: str, answer: Any):
    tagged = reward(extract="<answer>")
    assert score(tagged, f"<think>C 3 Rome</think><answer>{text}</answer>", answer) == 1.0
    assert score(tagged, text, answer) == 0.0
    assert score(reward(extract="boxed"), rf"So \boxed{{{text}}}, not C 3.", answer) == 1.0
    assert score(reward(extract="says: (.*)"), f"It says: {text}", answer) == 1.0
    assert score(reward(), [{"role": "assistant", "content": text}], answer) == 1.0


@pytest.mark.parametrize(
    ("reward", "texts", "answers", "read"),
    [
        (ExactMatch(), ["Paris!", ""], ["a", "a"], ["paris", ""]),
        (MultipleChoice(), ["the answer is b", "?"], ["A", "A"], ["B", None]),
        (NumericAnswer(), ["1,234.5", "?"], [1, 1], ["1234.5", None]),
        (ExactMatch(extract="boxed"), [r"\boxed{X}", "X"], ["a", "a"], ["x", None]),
    ],
)
def test_what_was_read_is_logged(reward: Any, texts: list[str], answers: list[Any], read: list[Any]):
    logged: dict[str, list[Any]] = {}
    reward(None, texts, answer=answers, log_extra=logged.__setitem__)
    assert logged == {"read": read}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[
            (text, 1.0)
            for text in ("B", "(b)", "B.", "Answer: B", "the answer is (b)", "Two dogs.", "not A, B")
        ],
        ("B. two dogs", 1.0),
        *[(text, 0.0) for text in ("A", "a cat sits", "two", "B or C", "B. a cat", "")],
        ("the answer is B. the answer is C", 0.0),
    ],
)
def test_multiple_choice_hand_computed(text: str, expected: float):
    assert score(MultipleChoice(choices_column="choices"), text, "B", choices=CHOICES) == expected


@pytest.mark.parametrize("answer", ["B", "(b)", " b. ", "two dogs", "Two dogs.", 1])
def test_the_right_choice_is_a_letter_a_text_or_a_place(answer: Any):
    reward = MultipleChoice(choices_column="choices")
    assert [score(reward, text, answer, choices=CHOICES) for text in "ABC"] == [0.0, 1.0, 0.0]


def test_a_letter_is_a_letter_even_if_a_choice_says_so():
    reward = MultipleChoice(choices_column="choices")
    assert score(reward, "B", "B", choices=["B", "A"]) == 1.0
    assert score(reward, "A", "B", choices=["B", "A"]) == 0.0


def test_choices_may_differ_in_number_and_be_none():
    reward = MultipleChoice(choices_column="choices")
    choices = [["x", "y"], ["x", "y", "z"], None, None]
    answers = ["B", 2, "B", "z"]
    assert reward(None, ["C", "C", "B", "z"], answer=answers, choices=choices) == [0.0, 1.0, 1.0, None]
    assert score(reward, "2", "2", choices=[1, 2]) == 1.0


def test_letters_say_what_can_be_read_without_choices():
    assert score(MultipleChoice(), "A or Z", "A") == 1.0
    assert score(MultipleChoice(letters="AZ"), "A or Z", "A") == 0.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "needs a column `answer` and the data has none"),
        ({"answer": ["D"]}, "needs a column `choices` and the data has none"),
        ({"answer": ["D"], "choices": [CHOICES]}, "row 0: `answer` must be a letter of ABC, .*got 'D' with"),
        ({"answer": ["dogs"], "choices": [CHOICES]}, "row 0: `answer` must be a letter of ABC, .*got 'dogs'"),
        ({"answer": [3], "choices": [CHOICES]}, "row 0: `answer` must be a letter of ABC, .*got 3 with"),
        ({"answer": [-1], "choices": [CHOICES]}, "row 0: `answer` must be a letter of ABC, .*got -1 with"),
        (
            {"answer": [True], "choices": [CHOICES]},
            "row 0: `answer` must be a letter of ABC, .*got True with",
        ),
        ({"answer": ["x"], "choices": [["x", "X"]]}, "row 0: `answer` must be a letter of AB, .*got 'x'"),
        (
            {"answer": ["A"], "choices": ["a cat"]},
            "row 0: `choices` must be a list of 2 to 26 strings, or None",
        ),
        ({"answer": ["A"], "choices": [["x"]]}, "row 0: `choices` must be a list of 2 to 26 strings"),
        ({"answer": ["A"], "choices": [["x", None]]}, "row 0: `choices` must be a list of 2 to 26 strings"),
    ],
)
def test_impossible_choices_are_named(columns: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MultipleChoice(choices_column="choices")(None, ["A"], **columns)


def test_a_text_needs_the_choices():
    with pytest.raises(
        ValueError, match="row 0: `answer` must be a letter of ABCDEFGH, or with `choices_column`"
    ):
        score(MultipleChoice(), "A", "a cat")


@pytest.mark.parametrize(
    ("text", "last", "only"),
    [
        ("1,234.5", 1.0, 1.0),
        ("It is $1234.50.", 1.0, 1.0),
        ("2469/2", 1.0, 1.0),
        (r"\boxed{1234.5}", 1.0, 1.0),
        ("between 1000 and 1234.5", 1.0, 0.0),
        ("1234.5, that is 1,234.50", 1.0, 1.0),
        ("1234.5 of 2000", 0.0, 0.0),
        ("1234", 0.0, 0.0),
        ("12345", 0.0, 0.0),
        ("-1234.5", 0.0, 0.0),
        ("about a thousand", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_numeric_answer_hand_computed(text: str, last: float, only: float):
    assert score(NumericAnswer(), text, 1234.5) == last
    assert score(NumericAnswer(which="only"), text, "1,234.5") == only


def test_the_first_number_can_count():
    assert score(NumericAnswer(which="first"), "3 of 5", 3) == 1.0
    assert score(NumericAnswer(which="first"), "5 of 3", 3) == 0.0


def test_tolerances_reach_to_their_edge():
    absolute = NumericAnswer(abs_tolerance=0.5, rel_tolerance=0.0)
    assert [score(absolute, text, 10) for text in ("9.5", "10.5", "9.4", "10.6")] == [1.0, 1.0, 0.0, 0.0]
    # A share of the right number: 25 % of 8 is 2, though 25 % of 10.5 would be more.
    relative = NumericAnswer(rel_tolerance=0.25)
    assert [score(relative, text, 8) for text in ("6", "10", "5.9", "10.5")] == [1.0, 1.0, 0.0, 0.0]
    assert [score(relative, text, -8) for text in ("-6", "-10", "-5.9", "8")] == [1.0, 1.0, 0.0, 0.0]
    wider = NumericAnswer(abs_tolerance=1.0, rel_tolerance=0.01)
    assert [score(wider, text, 1000) for text in ("1010", "1011")] == [1.0, 0.0]
    assert [score(wider, text, 10) for text in ("11", "11.5")] == [1.0, 0.0]


def test_the_default_forgives_rounding_only():
    assert score(NumericAnswer(), "33.3%", 0.333) == 1.0
    assert score(NumericAnswer(), "0.33333333", "1/3") == 1.0
    assert score(NumericAnswer(), "0.333", "1/3") == 0.0
    assert score(NumericAnswer(), "0", 0) == 1.0
    assert score(NumericAnswer(), "0.0001", 0) == 0.0


def test_percent_signs_are_read_on_both_sides():
    assert score(NumericAnswer(), "25%", "25%") == 1.0
    assert score(NumericAnswer(), "25%", 25) == 0.0
    assert score(NumericAnswer(percent=False), "25%", 25) == 1.0
    assert score(NumericAnswer(percent=False), "0.25", "25%") == 0.0


def test_each_number_of_a_list_is_accepted():
    reward = NumericAnswer()
    assert [score(reward, text, [2, "3"]) for text in ("2", "3", "2.5")] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "answer", ["two", "", "1 or 2", [], [1, "two"], True, float("nan"), {"n": 1}, ["1 2", 3]]
)
def test_an_answer_that_is_no_number_is_named(answer: Any):
    with pytest.raises(
        ValueError, match="row 1: `answer` must be a number, a string with one number, or a list"
    ):
        NumericAnswer()(None, ["1", "2"], answer=[1, answer])


@pytest.mark.parametrize("reward", REWARDS)
def test_the_column_of_answers_can_be_named(reward: Any):
    named = reward("label")
    with pytest.raises(ValueError, match="needs a column `label` and the data has none"):
        named(None, ["A"], answer=["A"])
    with pytest.raises(ValueError, match=r"`label` must be a list with an entry per completion \(1\)"):
        named(None, ["A"], label=["A", "B"])


@pytest.mark.parametrize("answer", [1.5, {"a": 1}, ["a", 2.5], [], " "])
def test_an_answer_that_is_no_text_is_named(answer: Any):
    with pytest.raises(ValueError, match="row 0: `answer`"):
        score(ExactMatch(), "a", answer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ExactMatch(normalize="soft"), "`normalize` must be one of none, plain, vqa; got 'soft'"),
        (lambda: ExactMatch(agreement=0), "`agreement` must be at least 1; got 0"),
        (lambda: MultipleChoice(letters="abc"), "`letters` must be capitals from A to Z; got 'abc'"),
        (lambda: MultipleChoice(letters="A1"), "`letters` must be capitals from A to Z; got 'A1'"),
        (lambda: MultipleChoice(letters=""), "`letters` must be capitals from A to Z; got ''"),
        (lambda: NumericAnswer(which="any"), "`which` must be one of last, first, only; got 'any'"),
        (lambda: NumericAnswer(abs_tolerance=-1.0), "`abs_tolerance` must be a finite number >= 0; got -1"),
        (lambda: NumericAnswer(rel_tolerance=float("nan")), "`rel_tolerance` must be a finite number >= 0"),
        (lambda: NumericAnswer(extract="number"), "`extract` must be 'boxed', a tag"),
    ],
)
def test_impossible_arguments_are_errors(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
