"""Length: nothing up to the target, everything from twice the target on; and ranges with soft edges."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import LengthReward, excess_length, length_penalty


@pytest.mark.parametrize(
    ("num_words", "expected"), [(0, 0.0), (1, 0.0), (4, 0.0), (5, 0.25), (6, 0.5), (8, 1.0), (80, 1.0)]
)
def test_excess_length_hand_computed(num_words: int, expected: float):
    assert excess_length("word " * num_words, target_length=4) == expected


def test_the_target_is_the_longest_reference():
    assert excess_length("one two three four five six", ["one", "one two three four"]) == 0.5


def test_the_shortest_target_is_one_word():
    assert excess_length("a b", target_length=1) == excess_length("a b", ["a"]) == 1.0
    assert excess_length("a", [" "]) == 0.0


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


def words(*counts: int) -> list[Any]:
    return ["word. " * count for count in counts]


def test_length_reward_of_a_range_hand_computed():
    reward = LengthReward(4, 8, slope=0.25)
    lengths = (0, 1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 90)
    expected = [-1.0, -0.75, -0.5, -0.25, 0.0, 0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0, -1.0]
    assert reward(None, words(*lengths)) == expected


def test_a_range_may_have_one_end():
    assert LengthReward(2, slope=0.5)(None, words(0, 1, 2, 99)) == [-1.0, -0.5, 0.0, 0.0]
    assert LengthReward(max_length=2, slope=0.5)(None, words(0, 2, 3, 99)) == [0.0, 0.0, -0.5, -1.0]


def test_a_target_is_a_range_without_width():
    assert LengthReward(3, 3)(None, words(1, 2, 3, 4, 5)) == pytest.approx([-0.2, -0.1, 0.0, -0.1, -0.2])


def test_lengths_count_words_tokens_or_characters():
    texts = ["two words", "eins"]
    assert LengthReward(max_length=0, slope=0.01)(None, texts) == pytest.approx([-0.02, -0.01])
    by_token = LengthReward(max_length=0, unit="tokens", slope=0.01)
    assert by_token(None, texts, completion_ids=[[1, 2, 3], []]) == pytest.approx([-0.03, 0.0])
    by_sign = LengthReward(max_length=0, unit="characters", slope=0.01)
    assert by_sign(None, texts) == pytest.approx([-0.09, -0.04])


def test_length_reward_reads_messages():
    message = [{"role": "assistant", "content": "one two three"}]
    assert LengthReward(max_length=2, slope=0.5)(None, [message]) == [-0.5]


def test_tokens_need_the_trainers_ids():
    reward = LengthReward(max_length=2, unit="tokens")
    with pytest.raises(ValueError, match="no `completion_ids` came with the completions"):
        reward(None, ["a"])
    with pytest.raises(
        ValueError, match=r"`completion_ids` must be a list with an entry per completion \(2\)"
    ):
        reward(None, ["a", "b"], completion_ids=[[1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`min_length` and `max_length` are both None"),
        ({"min_length": -1}, "`min_length` must be at least 0 or None; got -1"),
        ({"max_length": -2}, "`max_length` must be at least 0 or None; got -2"),
        ({"min_length": 3, "max_length": 2}, "`min_length` must be at most `max_length`; got 3 > 2"),
        ({"max_length": 2, "unit": "lines"}, "`unit` must be one of words, tokens, characters; got 'lines'"),
        ({"max_length": 2, "slope": 0.0}, "`slope` must be a finite number > 0; got 0.0"),
        ({"max_length": 2, "slope": float("inf")}, "`slope` must be a finite number > 0; got inf"),
    ],
)
def test_impossible_ranges_are_errors(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        LengthReward(**arguments)
