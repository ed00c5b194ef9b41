"""Detail: hand numbers, and that what says nothing or something wrong earns nothing."""

from __future__ import annotations

import pytest

from rewards import caption_detail, detail_reward
from rewards.text import STOP_WORDS, content_words_and_links, singular

SCENE = ["a red circle and a blue square"]  # 4 words and 2 pairs: m = 6


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle and a blue square", 1.0),
        ("a red circle", 3 / 6),
        ("a shiny red circle", 3 / 4 * 3 / 6),
        ("a circle and a square", 2 / 6),
        # One pair of the list is in no reference, its two words do not count: 2 words + 2 pairs of 7 units.
        ("red circle blue square", 4 / 7 * 4 / 6),
        # 4 words and 2 supported pairs, 2 unknown words.
        ("a red circle and a blue square with green stars", 6 / 8),
    ],
)
def test_detail_hand_computed(caption: str, expected: float):
    assert caption_detail(caption, SCENE) == pytest.approx(expected)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a a a .",
        "this is a picture of the",
        "a red square and a blue circle",
        "the square is red",
        "red, square",
        "red red red",
        "green stars",
    ],
)
def test_detail_earns_nothing_for_no_content_or_a_wrong_binding(caption: str):
    assert caption_detail(caption, SCENE) == 0.0


def test_detail_of_a_repeated_phrase_hand_computed():
    # 2 words and a pair, each once too often: n = 3 + 3.
    assert caption_detail("a red circle and a red circle", SCENE) == pytest.approx(3 / 6 * 3 / 6)
    # Without a break also (circle, red), so only the pair (red, circle) counts; n = 4 + 2 + 2 + 2 + 1.
    assert caption_detail("red circle red circle red circle", SCENE) == pytest.approx(1 / 11 * 1 / 6)


def test_detail_counts_a_repetition_that_a_reference_has():
    references = ["a red circle next to a red square"]
    assert caption_detail(references[0], references) == 1.0
    # One "red" too many against a reference that has one: 6 units of 7.
    assert caption_detail("a red circle and a red one", ["a red circle and a one"]) < 1.0


def test_detail_needs_one_reference_that_holds_the_pair():
    references = ["a red circle", "a blue square"]
    assert caption_detail("a red square", references) == 0.0
    assert caption_detail("a blue square", references) == 1.0


@pytest.mark.parametrize("caption", ["the circle is red", "circles were red", "a red circle"])
def test_detail_reads_attributes_before_and_after_the_noun(caption: str):
    assert caption_detail(caption, ["a red circle"]) == 1.0
    assert caption_detail("a red circle", [caption]) == 1.0


def test_the_order_of_a_pair_matters_unless_to_be_stands_between():
    assert caption_detail("circle red", ["a red circle"]) == 0.0
    assert caption_detail("a square blue and a circle red", SCENE) == 0.0
    assert caption_detail("a circle above a square", ["a circle is above a square"]) == 1.0
    assert caption_detail("a circle is above a square", ["a circle above a square"]) == 1.0
    assert content_words_and_links("a circle is big red", STOP_WORDS)[1] == (
        ("circle", "big", True),
        ("big", "red", False),
    )


@pytest.mark.parametrize("caption", ["red and circle", "a circle that was red", "red, a circle"])
def test_a_stop_word_parts_its_neighbours(caption: str):
    assert content_words_and_links(caption, STOP_WORDS)[1] == ()


def test_detail_asks_for_as_much_as_the_richest_reference_says():
    references = ["a circle", "a large red circle"]  # 3 words and 2 pairs
    assert caption_detail("a circle", references) == pytest.approx(1 / 5)
    assert caption_detail("a large red circle", references) == 1.0


def test_keywords_widen_what_counts_but_not_what_is_asked_for():
    plain = caption_detail("a red dragon with a tile", ["a red dragon"])
    assert plain == pytest.approx(3 / 4)
    assert caption_detail("a red dragon with a tile", ["a red dragon"], ["tile", "game"]) == 1.0


def test_a_pasted_list_of_keywords_earns_nothing():
    assert caption_detail("dragon game tile kanji", ["mahjong"], ["dragon", "game", "tile", "kanji"]) == 0.0


def test_detail_from_keywords_alone_is_measured_by_all_of_them():
    assert caption_detail("a dragon", [], ["red dragon", "tile"]) == pytest.approx(1 / 4)


def test_detail_of_references_without_content_is_zero():
    assert caption_detail("a circle", ["it is this"]) == 0.0


def test_stop_words_can_be_replaced():
    assert caption_detail("ein roter Kreis", ["ein roter Kreis"], stop_words=frozenset({"ein"})) == 1.0
    words, links = content_words_and_links("ein roter Kreis", frozenset({"ein"}))
    assert (words, links) == (("roter", "kreis"), (("roter", "kreis", False),))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("circles", "circle"),
        ("boxes", "box"),
        ("benches", "bench"),
        ("berries", "berry"),
        ("grass", "grass"),
        ("bus", "bus"),
        ("tennis", "tennis"),
        ("gas", "gas"),
        ("dog's", "dog"),
        ("dog\u2019s", "dog"),
    ],
)
def test_plurals_and_possessives_fold(word: str, expected: str):
    assert singular(word) == expected


def test_places_numbers_and_negations_are_content():
    assert {"left", "above", "two", "no", "not", "without"}.isdisjoint(STOP_WORDS)


def test_detail_reward_judges_by_references_or_keywords():
    assert detail_reward(None, ["a dragon", "a dragon"], ["a dragon", None]) == [1.0, None]
    assert detail_reward(None, ["a dragon", "a dragon"], keywords=[["dragon"], []]) == [1.0, None]
    with pytest.raises(ValueError, match="needs a column `references` and the data has none"):
        detail_reward(None, ["a dragon"])
