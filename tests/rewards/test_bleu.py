"""Sentence BLEU: hand numbers, and sacrebleu's own function on every caption."""

from __future__ import annotations

import pytest
import sacrebleu

from rewards import bleu_reward, sentence_bleu

REFERENCES = ["A red circle.", "There is a red circle left of a blue square.", "a circle and a square"]
CAPTIONS = [
    "a red circle .",
    "a a a .",
    "a blue circle and a red square",
    "square",
    "it's a 3-4 mix, isn't it?",
    "",
]


def test_bleu_of_a_partly_right_caption_hand_computed():
    # 1-grams 2/3, 2-grams "a red" 1/2, 3-grams none of 1: exp smoothing 1/2; order 3, no brevity penalty.
    assert sentence_bleu("a red square", ["a red circle"]) == pytest.approx(
        (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)
    )


def test_bleu_of_a_run_of_articles_hand_computed():
    # "a" counts once: 1-grams 2/4; no longer match: 1/(2*3), 1/(4*2), 1/(8*1).
    assert sentence_bleu("a a a .", ["a red circle ."]) == pytest.approx(
        (1 / 2 * 1 / 6 * 1 / 8 * 1 / 8) ** 0.25
    )


def test_bleu_penalises_a_caption_shorter_than_the_closest_reference():
    # All n-grams match; brevity exp(1 - 4/2), the closer of lengths 4 and 6.
    value = sentence_bleu("red circle", ["a red circle here", "the red circle is over here"])
    assert value == pytest.approx(2.718281828459045**-1)


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    # Lengths 2 and 4 around 3: no brevity penalty, and every n-gram matches.
    assert sentence_bleu("a red circle", ["a red", "see a red circle"]) == 1.0


def test_bleu_takes_each_n_gram_from_any_reference():
    assert sentence_bleu("a red circle", ["a red square", "the red circle"]) > max(
        sentence_bleu("a red circle", ["a red square"]), sentence_bleu("a red circle", ["the red circle"])
    )


@pytest.mark.parametrize("caption", CAPTIONS)
def test_bleu_equals_sacrebleu(caption: str):
    expected = sacrebleu.sentence_bleu(caption, REFERENCES, lowercase=True).score / 100
    assert sentence_bleu(caption, REFERENCES) == pytest.approx(expected, abs=1e-12)


def test_bleu_is_exactly_one_for_a_reference_and_zero_without_a_shared_word():
    assert [sentence_bleu(text, REFERENCES) for text in (REFERENCES[1], "purple", "")] == [1.0, 0.0, 0.0]


def test_bleu_does_not_depend_on_the_order_of_the_references():
    assert sentence_bleu(CAPTIONS[2], REFERENCES) == sentence_bleu(CAPTIONS[2], REFERENCES[::-1])


def test_bleu_reward_takes_strings_messages_and_rows_that_cannot_be_judged():
    message = [{"role": "assistant", "content": [{"type": "text", "text": "a red circle"}]}]
    rewards = bleu_reward(None, ["a red circle", message, "x"], ["a red circle", ["a red circle"], None])
    assert rewards == [1.0, 1.0, None]
