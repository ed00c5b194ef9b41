"""Reading a choice: what settles on one is read, what leaves it open is not."""

from __future__ import annotations

import time

import pytest

from rewards.choices import letters_for, read_choice

CHOICES = ["a cat", "two dogs", "a hot dog", "dog"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A letter, however it is dressed.
        *[
            (text, "B")
            for text in ("B", "b", "(B)", "(b)", "[B]", "B.", "b)", "B:", " **B** ", '"B"', "$B$", "\uff22")
        ],
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        ("A", "A"),
        ("a", "A"),
        # Said to be the answer.
        ("Answer: B", "B"),
        ("answer = b", "B"),
        ("ANSWER: (b)", "B"),
        ("the answer is (b)", "B"),
        ("The answer is B because C is wrong.", "B"),
        ("The answer is B, not A.", "B"),
        ("The answer is B. A would be wrong.", "B"),
        ("The correct option is D.", "D"),
        ("So the answer would be: **C**", "C"),
        ("Answer:\n\n**B**", "B"),
        ("A. a cat\nB. two dogs\nThe answer is A", "A"),
        ("The answer is a", "A"),
        ("The answer is a.", "A"),
        ("The answer is B. Yes, the answer is B.", "B"),
        # Standing alone in the text.
        ("I think B", "B"),
        ("Option B", "B"),
        ("B is right", "B"),
        ("A is right", "A"),
        ("(a) is right", "A"),
        ("B) it says so in the picture", "B"),
        ("b) it says so in the picture", "B"),
        ("Let me see.\n **b.** it says so", "B"),
        ("Not A, B", "B"),
        ("It isn't (B) but C", "C"),
        ("\u7b54\u6848\u662fB", "B"),
        # None, or more than one.
        *[
            (text, None)
            for text in ("", " ", "E", "no idea", "vitamin-C", "a T-shirt", "B's", "D'accord", "ABBA", "B2")
        ],
        *[(text, None) for text in ("A or B", "B or C", "A, B", "A B C D", "Options: A, B, C, D")],
        ("The answer is B or C", None),
        ("The answer is B and C.", None),
        ("The answer is B. The answer is C.", None),
        ("The answer is not B", None),
        ("It is neither B nor the other", None),
        ("B, but (C) too", None),
        # Articles and prose.
        ("plan b", None),
        ("so plan b. Fine", None),
        ("b.c is a name", None),
        ("a) this\nb) that", None),
        ("c is for cookie", None),
        ("B. C may be right too", None),
        ("a cup of tea", None),
        ("A cup of tea", None),
        ("The answer is a cup", None),
        ("The answer is A cup", None),
    ],
)
def test_letters_are_read_without_choices(text: str, expected: str | None):
    assert read_choice(text, "ABCD") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two dogs", "B"),
        ("Two dogs.", "B"),
        ("2 dogs", "B"),
        ("cat", "A"),
        ("The cat", "A"),
        ("a cat sits on a mat", "A"),
        ("A cat sits on a mat", "A"),
        ("B. two dogs", "B"),
        ("(b) two dogs", "B"),
        ("B. something else", "B"),
        ("The answer is a cat", "A"),
        ("The answer is a cat, not a dog.", "A"),
        ("There is a dog. The answer is: two dogs", "B"),
        ("There is a hot dog", "C"),
        ("There is a dog", "D"),
        # The text of one choice under the letter of another.
        ("B. a cat", None),
        ("b. a cat", None),
        ("E. a cat", None),
        ("b) a cat or so", "B"),
        # Two choices.
        ("a cat and two dogs", None),
        ("a dog beside a hot dog", None),
        ("The answer is a cat or two dogs", None),
        # Parts of words and of choices.
        ("cats", None),
        ("category", None),
        ("two", None),
        ("", None),
    ],
)
def test_texts_of_choices_are_read(text: str, expected: str | None):
    assert read_choice(text, "ABCD", CHOICES) == expected


def test_a_letter_counts_before_a_text():
    assert read_choice("B, because a cat is smaller", "ABCD", CHOICES) == "B"


def test_choices_with_the_same_text_cannot_be_told_apart_by_it():
    assert read_choice("dog", "AB", ["dog", "Dog."]) is None
    assert read_choice("B", "AB", ["dog", "Dog."]) == "B"


def test_choices_without_words_are_never_read_from_text():
    assert read_choice("what?", "AB", ["?", "!"]) is None
    assert read_choice("...", "AB", ["?", "dog"]) is None


def test_the_pronoun_is_no_choice():
    letters = letters_for(10)
    assert letters == "ABCDEFGHIJ"
    assert read_choice("I think so", letters) is None
    assert read_choice("I think it is (J)", letters) == "J"
    assert read_choice("The answer, I think, is B", letters) == "B"
    assert read_choice("The answer is I", letters) == "I"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 20_000,
        "(a" * 10_000,
        "A " * 10_000,
        "answer is " * 1_000,
        "not " * 8_000 + "A",
        "*" * 20_000 + "x",
    ],
)
def test_long_texts_are_read_in_time(text: str):
    start = time.monotonic()
    read_choice(text, "ABCD", CHOICES)
    assert time.monotonic() - start < 2
