"""Sentence BLEU: hand numbers, a slow loop, sacrebleu's own function and the coco-caption tools."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from rewards import BleuReward, bleu_reward, check, ngrams, sentence_bleu
from rewards.bleu import tokens
from tests.reference import captions as slow
from tests.rewards.parity import CORPORA, golden_rows, random_corpora

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


@pytest.mark.parametrize(
    # Shares 2/3, 1/2, none of 1 (halved: 1/2), and no 4-gram in a caption of three words.
    ("max_order", "expected"),
    [
        (1, 2 / 3),
        (2, (2 / 3 * 1 / 2) ** (1 / 2)),
        (3, (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)),
        (4, 6 ** (-1 / 3)),
    ],
)
def test_bleu_of_each_order_hand_computed(max_order: int, expected: float):
    value = sentence_bleu("a red square", ["a red circle"], max_order=max_order)
    assert value == pytest.approx(expected, abs=1e-15)


def test_bleu_of_any_order_equals_sacrebleu_on_random_text():
    for rows in random_corpora(60):
        for caption, references in rows:
            for order in (1, 2, 3, 4):
                peer = BLEU(max_ngram_order=order, effective_order=True, tokenize="none")
                expected = peer.sentence_score(caption, references).score / 100
                value = sentence_bleu(caption, references, max_order=order, tokenize="none")
                assert value == pytest.approx(expected, abs=1e-12), (caption, references)


def test_bleu_equals_a_slow_loop():
    for rows in random_corpora(60, seed=1):
        for caption, references in rows:
            for order in (1, 2, 3, 4):
                expected = slow.bleu(caption.split(), [text.split() for text in references], order)
                value = sentence_bleu(caption, references, max_order=order, tokenize="none")
                assert value == pytest.approx(expected, abs=1e-12), (caption, references)


@pytest.mark.parametrize("name", CORPORA)
def test_bleu_equals_the_recorded_numbers_of_the_coco_caption_tools(name: str):
    for order, expected in enumerate(CORPORA[name]["bleu_per_caption"], start=1):
        values = [
            sentence_bleu(caption, references, max_order=order, tokenize="none", smoothing="coco")
            for caption, references in golden_rows(name)
        ]
        assert values == pytest.approx(expected, abs=1e-12)


def test_bleu_equals_the_coco_caption_tools_on_random_text():
    for rows in random_corpora(60, seed=2):
        references = {index: texts for index, (_, texts) in enumerate(rows)}
        captions = {index: [text] for index, (text, _) in enumerate(rows)}
        _, expected = Bleu(4).compute_score(references, captions, verbose=0)
        for order in (1, 2, 3, 4):
            values = [
                sentence_bleu(caption, texts, max_order=order, tokenize="none", smoothing="coco")
                for caption, texts in rows
            ]
            assert values == pytest.approx(expected[order - 1], abs=1e-12)


def test_tokens_are_those_of_sacrebleu_for_every_short_string():
    # What follows what decides how 13a parts marks: letters, digits, the marks it looks at, and others.
    peer = Tokenizer13a()
    for length in range(1, 5):
        for letters in itertools.product("aB1.,-' &", repeat=length):
            text = "".join(letters)
            assert tokens(text) == peer(text.lower().rstrip()).split(), text


@pytest.mark.parametrize(
    "text", ["The cat's on it...", "3.5-4, or 1,000.", "a\n- b", "Ünï. cödé, 猫。", "x<y &amp; z"]
)
def test_tokens_are_those_of_sacrebleu(text: str):
    assert tokens(text) == Tokenizer13a()(text.lower().rstrip()).split()


def test_pre_tokenised_text_keeps_its_case_and_its_signs():
    assert sentence_bleu("A cat.", ["a cat."], tokenize="none", max_order=1) == 0.5
    assert sentence_bleu("A cat.", ["a cat ."], max_order=1) == 1.0


def test_the_references_of_a_set_are_counted_once(monkeypatch: pytest.MonkeyPatch):
    split: list[str] = []
    monkeypatch.setitem(ngrams.TOKENIZERS, "none", lambda text: split.append(text) or text.split())
    references = ["seen once only", "and so is this"]
    BleuReward(tokenize="none")(None, ["one"] * 8, references=[references] * 8)
    assert [split.count(text) for text in (*references, "one")] == [1, 1, 8]


def test_the_reward_takes_an_order_a_column_and_a_tokeniser():
    reward = BleuReward(max_order=1, references_column="said", tokenize="none")
    assert reward(None, ["A cat", "b", "c"], said=[["a cat"], "b", None]) == [0.5, 1.0, None]
    assert (reward.__name__, BleuReward().__name__) == ("bleu_1_reward", "bleu_reward")


def test_the_reward_as_a_class_and_as_a_function_agree():
    columns = {"references": [REFERENCES] * len(CAPTIONS)}
    assert BleuReward()(None, CAPTIONS, **columns) == bleu_reward(None, CAPTIONS, **columns)
    check(BleuReward(), prompts=["p"] * 2, completions=CAPTIONS[:2], references=[REFERENCES] * 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sentence_bleu("a", ["a"], max_order=5), "`max_order` must be between 1 and 4; got 5"),
        (lambda: BleuReward(max_order=0), "`max_order` must be between 1 and 4; got 0"),
        (lambda: BleuReward(tokenize="ptb"), '`tokenize` must be "13a" or "none" .*; got \'ptb\''),
        (
            lambda: sentence_bleu("a", ["a"], smoothing="floor"),
            "`smoothing` must be one of exp, coco; got 'floor'",
        ),
        (lambda: sentence_bleu("a", []), "`references` is empty. Give one reference at least"),
        (lambda: BleuReward()(None, ["a"]), "the reward needs a column `references`"),
    ],
)
def test_what_bleu_cannot_use_is_named(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        call()
