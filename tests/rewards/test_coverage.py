"""Keyword coverage: the share of phrases said, less what should not be said."""

from __future__ import annotations

from typing import Any

import pytest

from rewards import KeywordCoverage, PotentialShaping, share_said

KEYWORDS = ["red circle", "dog"]


@pytest.mark.parametrize(
    ("text", "phrases", "expected"),
    [
        ("a red circle and a dog", KEYWORDS, 1.0),
        ("RED CIRCLES", KEYWORDS, 0.5),
        ("red, circle.", KEYWORDS, 0.5),
        ("a circle that is red", KEYWORDS, 0.0),
        ("circle red", KEYWORDS, 0.0),
        ("the dog\u2019s ball", KEYWORDS, 0.5),
        ("dog dog dog", KEYWORDS, 0.5),
        ("hotdog", KEYWORDS, 0.0),
        ("dogma", KEYWORDS, 0.0),
        ("", KEYWORDS, 0.0),
        # Phrases that fold to one are asked for once.
        ("a dog", ["dog", "Dogs", "DOG", "cat"], 0.5),
        ("ein Übergang", ["übergang"], 1.0),
        ("Two red circles, a dog", ["red circle", "dogs", "cat"], 2 / 3),
    ],
)
def test_share_said_hand_computed(text: str, phrases: list[str], expected: float):
    assert share_said(text, phrases) == pytest.approx(expected)


@pytest.mark.parametrize("phrases", [[], ["!?"], ["dog", " "]])
def test_phrases_must_have_words(phrases: list[str]):
    with pytest.raises(ValueError, match="`phrases` must hold a phrase, each with a letter or digit"):
        share_said("a dog", phrases)


def test_a_row_without_keywords_is_not_judged():
    rewards = KeywordCoverage()(None, ["a dog"] * 4, keywords=[None, [], "dog", ["dog", "cat"]])
    assert rewards == [None, None, 1.0, 0.5]


def test_forbidden_phrases_cost():
    texts = ["a dog", "a dog and a cat", "a cat and a mouse", "a dog, a cat and a mouse"]
    columns = {"tags": [["dog"]] * 4, "never": [["cats", "mouse"]] * 4}
    assert KeywordCoverage("tags", "never")(None, texts, **columns) == [1.0, 0.5, -1.0, 0.0]
    assert KeywordCoverage("tags", "never", penalty=0.2)(None, texts, **columns) == pytest.approx(
        [1.0, 0.9, -0.2, 0.8]
    )


def test_a_row_without_forbidden_phrases_loses_nothing():
    columns = {"keywords": [["dog"]] * 2, "never": [None, []]}
    assert KeywordCoverage(forbidden_column="never")(None, ["a dog"] * 2, **columns) == [1.0, 1.0]


def test_messages_are_read():
    message = [{"role": "assistant", "content": "a dog"}]
    assert KeywordCoverage()(None, [message], keywords=[KEYWORDS]) == [0.5]


def test_coverage_never_falls_while_words_are_added():
    text = "a small dog, red and fat: Circles of red circles by the dogs"
    words = text.split()
    prefixes = [" ".join(words[:end]) for end in range(len(words) + 1)]
    keywords = ["dog", "red circle", "small dog", "dog red"]
    shares = KeywordCoverage()(None, prefixes, keywords=[keywords] * len(prefixes))
    assert shares == sorted(share for share in shares if share is not None)
    assert (shares[0], shares[3], shares[-1]) == (0.0, 0.5, 1.0)


def test_coverage_is_a_potential_over_captions():
    shaping = PotentialShaping(KeywordCoverage())
    prefixes = [["", "a ", "a dog", "a dog and", "a dog and a cat"]]
    (numbers,) = shaping.token_rewards(
        ["p"], ["a dog and a cat"], prefixes, discount=1.0, keywords=[["dog", "cat"]]
    )
    # Phi 0, 0, 0 (the word may go on), 1/2, and the end counts as 0.
    assert numbers == [0.0, 0.0, 0.5, -0.5]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "the reward needs a column `keywords` and the data has none"),
        ({"keywords": [["dog"]] * 2}, r"`keywords` must be a list with an entry per completion \(1\)"),
        ({"keywords": [[1]]}, "row 0: `keywords` must be a string or a list of strings; got .1."),
        ({"keywords": [["dog", "?!"]]}, "row 0: `keywords` holds '.!', which has no letter or digit"),
    ],
)
def test_bad_columns_are_named(columns: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        KeywordCoverage()(None, ["a dog"], **columns)


def test_a_forbidden_column_that_is_named_must_be_there():
    with pytest.raises(ValueError, match="needs a column `never` and the data has none"):
        KeywordCoverage(forbidden_column="never")(None, ["a"], keywords=["a"])
    for penalty in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=rf"`penalty` must be a finite number >= 0; got {penalty}"):
            KeywordCoverage(penalty=penalty)
    free = KeywordCoverage(forbidden_column="never", penalty=0.0)
    assert free(None, ["a cat"], keywords=["cat"], never=["cat"]) == [1.0]
