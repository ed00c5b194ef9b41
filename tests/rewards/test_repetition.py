"""Repetition: n-grams said again, and loops."""

from __future__ import annotations

import pytest

from rewards import RepetitionPenalty, distinct_n, loop_share


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("a b a b a", 1, 2 / 5),
        ("a b a b a", 2, 2 / 4),
        ("a b a b a", 3, 2 / 3),
        ("a b c", 3, 1.0),
        ("a b", 3, None),
        ("", 1, None),
    ],
)
def test_distinct_n_hand_computed(text: str, n: int, expected: float | None):
    assert distinct_n(text.split(), n) == expected


@pytest.mark.parametrize(
    ("text", "longest_block", "expected"),
    [
        ("a a a a", 1, 3 / 4),
        ("a a a", 1, 2 / 3),
        ("very very small", 3, 0.0),
        ("red cat red cat red cat sat", 2, 4 / 7),
        ("red cat red cat red cat sat", 1, 0.0),
        ("red cat red cat sat", 2, 0.0),
        # The longest loop counts, and a loop that stops begins anew.
        ("a a a b c c c c", 3, 3 / 8),
        ("a a b b c c", 3, 0.0),
        ("a b c a b c a b c a", 3, 7 / 10),
        ("", 3, 0.0),
    ],
)
def test_loop_share_hand_computed(text: str, longest_block: int, expected: float):
    assert loop_share(text.split(), longest_block) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red circle and a red circle", -0.2),
        ("a a a a", -0.75),
        # 10 trigrams, 2 of them distinct: 0.8; 10 of 12 words go on with the loop.
        ("red cat " * 6, -10 / 12),
        # Punctuation and case make nothing new: 6 trigrams, 3 distinct.
        ("A cat sat. a CAT sat, a cat", -0.5),
        ("a red circle", 0.0),
        ("very very", 0.0),
        ("red", 0.0),
        ("", 0.0),
        (". . . .", 0.0),
    ],
)
def test_repetition_penalty_hand_computed(text: str, expected: float):
    assert RepetitionPenalty()(None, [text]) == pytest.approx([expected])
    assert RepetitionPenalty(max_penalty=2.0)(None, [text]) == pytest.approx([2 * expected])


def test_n_is_the_size_of_what_is_repeated():
    text = "a red circle and a red square"  # 6 bigrams, 5 distinct; 5 trigrams; 7 words, 5 distinct
    rewards = [RepetitionPenalty(n=n)(None, [text])[0] for n in (1, 2, 3)]
    assert rewards == pytest.approx([-2 / 7, -1 / 6, 0.0])


def test_the_penalty_stays_above_its_bound():
    (reward,) = RepetitionPenalty()(None, ["word " * 1000])
    assert reward is not None
    assert -1.0 < reward < -0.99


def test_no_repetition_is_plain_zero():
    assert str(RepetitionPenalty()(None, ["a red circle"])) == "[0.0]"


def test_messages_are_read():
    assert RepetitionPenalty()(None, [[{"role": "assistant", "content": "a a a a"}]]) == [-0.75]


def test_impossible_arguments_are_errors():
    with pytest.raises(ValueError, match="`n` must be at least 1; got 0"):
        RepetitionPenalty(n=0)
    with pytest.raises(ValueError, match="`n` must be at least 1; got 0"):
        distinct_n(["a"], 0)
    for penalty in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"`max_penalty` must be a finite number >= 0; got {penalty}"):
            RepetitionPenalty(max_penalty=penalty)
    assert RepetitionPenalty(max_penalty=0.0)(None, ["a a a a"]) == [0.0]
