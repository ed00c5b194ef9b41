"""The fact checker on captions judged by hand."""

from __future__ import annotations

import pytest

from mmft.tiny.facts import Description, Fact, share_true, stated_facts, true_fact_share
from mmft.tiny.lexicon import SceneObject

# A large red circle left of a small blue square; a small green star below the circle.
SCENE = (
    SceneObject("red", "circle", "large", x=15.0, y=20.0),
    SceneObject("green", "star", "small", x=18.0, y=50.0),
    SceneObject("blue", "square", "small", x=45.0, y=22.0),
)
FACTS = [item.as_dict() for item in SCENE]


def test_a_caption_states_objects_and_relations() -> None:
    circle, square = Description("circle", "red", "large"), Description("square", "blue")
    assert stated_facts("A large red circle is left of a blue square.") == [
        Fact("object", circle),
        Fact("object", square),
        Fact("relation", circle, relation="left of", other=square),
    ]


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle.",
        "a circle.",
        "The red circle.",
        "a large red circle is left of a small blue square and above a small green star.",
        "a blue square is to the right of a red circle.",
        "A red circle, a green star and a blue square!",
        "there is a small star below the large circle.",
        "three shapes: a red circle, a green star, a blue square",
        "one red circle and two small shapes",
        "red circle, blue square",
        "a red circle. a red circle is left of a blue square.",
        "a small object and a small object",
    ],
)
def test_true_captions_are_true(caption: str) -> None:
    assert share_true(caption, SCENE) == 1.0


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("a blue circle.", 0.0),
        ("a small red circle.", 0.0),
        ("two circles", 0.0),
        ("a red circle and a yellow star.", 1 / 2),
        ("a red circle is right of a blue square.", 2 / 3),  # the wrong way round
        ("a red circle is above a blue square.", 2 / 3),  # two pixels higher is not clearly above
        ("a red circle is left of a black cross.", 1 / 3),
        ("a red circle and a red circle", 1 / 2),  # the second one states that there are two
        ("a red circle is left of a red circle", 1 / 3),
        ("a blue square is left of a small square", 1 / 3 + 1 / 3),
    ],
)
def test_false_statements_are_counted(caption: str, share: float) -> None:
    assert share_true(caption, SCENE) == pytest.approx(share)


@pytest.mark.parametrize(
    "salad",
    [
        "red blue circle circle",
        "red blue green",
        "a red large circle",
        "left of above",
        "red, large, blue",
        "a red is blue",
    ],
)
def test_word_salad_is_never_true(salad: str) -> None:
    assert share_true(salad, SCENE) == 0.0


def test_stuffing_right_words_after_a_true_caption_lowers_the_share() -> None:
    honest = "a red circle and a blue square"
    assert share_true(f"{honest} red circle blue square left of", SCENE) == pytest.approx(2 / 7)


def test_every_repeated_word_out_of_place_counts() -> None:
    once, twice = share_true("a red circle circle", SCENE), share_true("a red circle circle circle", SCENE)
    assert (once, twice) == (pytest.approx(1 / 2), pytest.approx(1 / 3))


@pytest.mark.parametrize("caption", ["", "hello world", "a a a .", "😀", "the picture is nice."])
def test_a_caption_without_statements_is_not_judged(caption: str) -> None:
    assert share_true(caption, SCENE) is None


def test_a_relation_needs_two_different_objects() -> None:
    relation = Fact("relation", Description("circle"), relation="left of", other=Description("circle"))
    assert not relation.is_true(SCENE)


def test_repeating_a_true_sentence_adds_no_facts() -> None:
    assert len(stated_facts("a red circle. a red circle. a red circle.")) == 1


def test_true_fact_share_speaks_the_reward_protocol() -> None:
    chat = [{"role": "assistant", "content": "a blue circle."}]
    blocks = [{"role": "assistant", "content": [{"type": "text", "text": "a red circle."}]}]
    completions = ["a red circle and a yellow star.", chat, blocks, "nothing"]
    shares = true_fact_share(prompts=["?"] * 4, completions=completions, facts=[FACTS] * 4, images=[None] * 4)
    assert shares == [0.5, 0.0, 1.0, None]


def test_one_list_of_facts_is_needed_for_each_completion() -> None:
    with pytest.raises(ValueError, match="shorter"):
        true_fact_share(prompts=["?", "?"], completions=["a star", "a star"], facts=[FACTS])
