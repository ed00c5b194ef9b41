"""Length: nothing up to the target, everything from twice the target on."""

from __future__ import annotations

import pytest

from rewards import excess_length, length_penalty


@pytest.mark.parametrize(
    ("num_words", "expected"), [(0, 0.0), (1, 0.0), (4, 0.0), (5, 0.25), (6, 0.5), (8, 1.0), (80, 1.0)]
)
def test_excess_length_hand_computed(num_words: int, expected: float):
    assert excess_length("word " * num_words, target_length=4) == expected


def test_the_target_is_the_longest_reference():
    assert excess_length("one two three four five six", ["one", "one two three four"]) == 0.5


def test_padding_with_punctuation_is_seen():
    assert excess_length("red circle . . . .", ["red circle"]) == 1.0


def test_length_penalty_is_negative_and_needs_references_or_a_target():
    assert length_penalty(None, ["a b c", "a"], [["a b"], None]) == [-0.5, None]
    assert length_penalty(None, ["a b c"], target_length=2) == [-0.5]
    with pytest.raises(ValueError, match="needs a column `references`"):
        length_penalty(None, ["a"])


def test_a_missing_or_impossible_target_is_an_error():
    with pytest.raises(ValueError, match="`references` is empty and `target_length` is None"):
        excess_length("a")
    with pytest.raises(ValueError, match="`target_length` must be at least 1; got 0"):
        excess_length("a", target_length=0)
