"""What a completion states: extraction, numbers, normal forms."""

from __future__ import annotations

import time

import pytest

from rewards.reading import extractor, normalized, read_numbers


@pytest.mark.parametrize(
    ("extract", "text", "expected"),
    [
        (None, " all of it ", " all of it "),
        ("<answer>", "<think>1</think><answer> 2 </answer>", " 2 "),
        ("<answer>", "<answer>1</answer> no, <answer>2</answer> it is", "2"),
        ("<answer>", "<answer>1</answer> no, <answer>2", "1"),
        ("<answer>", "<answer>1<answer>2</answer>", "2"),
        ("<answer>", "answer 2", None),
        ("<answer>", "2</answer>", None),
        ("<answer>", "</answer>2<answer>", None),
        ("<answer>", "<Answer>2</Answer>", None),
        ("<final-answer>", "<final-answer>2</final-answer>", "2"),
        ("boxed", r"so \boxed{2}.", "2"),
        ("boxed", r"\boxed{1} or \boxed{\frac{3}{4}}.", r"\frac{3}{4}"),
        ("boxed", r"\boxed{1} or \boxed{2", None),
        ("boxed", "boxed 2", None),
        (r"[Aa]nswer: (\w+)", "Answer: one. answer: two.", "two"),
        (r"[Aa]nswer: (\w+)", "two", None),
        (r"answer: (?:(\d+)|none)", "answer: 3, answer: none", "3"),
    ],
)
def test_answers_are_found(extract: str | None, text: str, expected: str | None):
    assert extractor(extract)(text) == expected


@pytest.mark.parametrize("extract", ["answer", r"answer: \w+", "(?:a)"])
def test_a_pattern_for_answers_needs_a_group(extract: str):
    with pytest.raises(
        ValueError, match="`extract` must be 'boxed', a tag as '<answer>', or a pattern with a group"
    ):
        extractor(extract)


def test_a_broken_or_endless_pattern_is_named():
    with pytest.raises(ValueError, match=r"`extract` is no regular expression: '\(a'"):
        extractor("(a")
    with pytest.raises(TimeoutError, match=r"`extract`: .* took more than 1.0 s on a text of 61 characters"):
        extractor("((?:a|aa)+)$")("a" * 60 + "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12", [12.0]),
        ("-3", [-3.0]),
        ("\u22123", [-3.0]),
        ("+3", [3.0]),
        ("1,234.5", [1234.5]),
        ("1,234,567.", [1234567.0]),
        (".5", [0.5]),
        ("so...5", [5.0]),
        ("1e-3", [0.001]),
        ("1E\u22123", [0.001]),
        ("3/4", [0.75]),
        ("3 / 4", [0.75]),
        ("-3/4", [-0.75]),
        ("1 3/4", [1.75]),
        ("-1 1/2 cups", [-1.5]),
        ("1.5/2.5", [0.6]),
        ("25%", [0.25]),
        ("25 %", [0.25]),
        (r"25\%", [0.25]),
        ("25 percent", [0.25]),
        ("$5", [5.0]),
        ("-$5", [-5.0]),
        ("\u20ac1,000", [1000.0]),
        ("12cm", [12.0]),
        ("50 km/h", [50.0]),
        ("the 2nd of 3", [2.0, 3.0]),
        ("The answer is 42.", [42.0]),
        ("No.5", [5.0]),
        ("x=3", [3.0]),
        ("(1,2)", [1.0, 2.0]),
        ("1,2345", [1.0, 2345.0]),
        ("3-4", [3.0, 4.0]),
        ("x-3", [3.0]),
        ("(3)-4", [3.0, 4.0]),
        ("3 -4", [3.0, -4.0]),
        ("3\u20134", [3.0, 4.0]),
        ("2020-01-05", [2020.0, 1.0, 5.0]),
        ("3:45", [3.0, 45.0]),
        ("2 + 2 = 4", [2.0, 2.0, 4.0]),
        ("1.2 \u00d7 10^3", [1200.0]),
        (r"1.2 \times 10^{-3}", [0.0012]),
        (r"\frac{3}{4}", [0.75]),
        (r"-\dfrac{3}{4}", [-0.75]),
        (r"1\frac{3}{4}", [1.75]),
        (r"\boxed{1{,}234}", [1234.0]),
        (r"1\,234", [1234.0]),
        (r"\text{12}", [12.0]),
        ("\u0661\u0662", [12.0]),
        # Not read
        ("two", []),
        ("H2O and a_3", []),
        ("v1.2", []),
        ("1.2.3", []),
        ("3/4/2020", []),
        ("15^2", []),
        ("10^-3", []),
        ("10^{-3}", []),
        ("5\u00b2", []),
        ("3/0", []),
        ("1e999", []),
        ("9" * 400, []),
        ("", []),
    ],
)
def test_numbers_are_read(text: str, expected: list[float]):
    assert read_numbers(text) == pytest.approx(expected)


def test_percent_signs_can_be_set_aside():
    assert read_numbers("25% or 25 percent of 4", percent=False) == [25.0, 25.0, 4.0]


@pytest.mark.parametrize(
    "text", ["1,234" * 10_000, "1 " * 50_000, "1/" * 50_000, " " * 50_000, r"\frac{" * 10_000, "1e" * 50_000]
)
def test_numbers_of_long_texts_are_read_in_time(text: str):
    start = time.monotonic()
    read_numbers(text)
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("none", " Paris. \n", "Paris."),
        ("plain", ' "Paris." ', "paris"),
        ("plain", "**Paris**", "paris"),
        ("plain", "\u201cParis\u201d!", "paris"),
        ("plain", "New\n York", "new york"),
        ("plain", "STRASSE", "strasse"),
        ("plain", "Straße", "strasse"),
        ("plain", "\uff21\uff22\uff23", "abc"),
        ("plain", "the 2 dogs", "the 2 dogs"),
        ("plain", "-3", "-3"),
        ("plain", ".5", ".5"),
        ("plain", "C++", "c++"),
        ("vqa", "The two dogs!", "2 dogs"),
        ("vqa", "an apple, a pear", "apple pear"),
        ("vqa", "none", "0"),
        ("vqa", "ten of eleven", "10 of eleven"),
        ("vqa", "1,234.5", "1234.5"),
        ("vqa", "1,2", "1 2"),
        ("vqa", "-3", "-3"),
        ("vqa", "\u22123", "-3"),
        ("vqa", "black-and-white", "black and white"),
        ("vqa", "don't", "dont"),
        ("vqa", "U.S.", "us"),
        ("vqa", "50%", "50%"),
        ("vqa", "$5", "$5"),
        ("vqa", "snake_case/or", "snake case or"),
        ("vqa", "the", ""),
    ],
)
def test_normal_forms(form: str, text: str, expected: str):
    assert normalized(text, form) == expected
