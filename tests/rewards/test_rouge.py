"""ROUGE-L: hand numbers, the textbook table, and the coco-caption tools."""

from __future__ import annotations

import random

import pytest
from pycocoevalcap.rouge.rouge import Rouge

from rewards import RougeLReward, check, ngrams, sentence_rouge_l
from rewards.rouge import common_lengths, reference_positions
from tests.reference import captions as slow
from tests.rewards.parity import CORPORA, golden_rows, random_corpora


def test_rouge_l_hand_computed():
    # LCS "a b" of 2: P = 2/4, R = 2/2; (1 + 1.44) * 0.5 * 1 / (1 + 1.44 * 0.5) = 1.22 / 1.72.
    assert sentence_rouge_l("a b c d", ["a b"]) == pytest.approx(1.22 / 1.72)


def test_rouge_l_of_a_broken_order_hand_computed():
    # "red square a": LCS with "a red square" is "red square"; P = R = 2/3, and then F = 2/3 for every beta.
    assert sentence_rouge_l("red square a", ["a red square"]) == pytest.approx(2 / 3)


def test_rouge_l_takes_precision_and_recall_from_different_references():
    # "the cat sat": all of it is in the long reference (P = 1), and it holds all of "cat" (R = 1).
    references = ["the cat sat on the mat", "cat"]
    assert sentence_rouge_l("the cat sat", references) == 1.0
    assert max(sentence_rouge_l("the cat sat", [text]) for text in references) < 1.0


def test_rouge_l_with_a_small_beta_is_precision_and_with_a_large_one_recall():
    assert sentence_rouge_l("a b c d", ["a b x"], beta=0.0) == pytest.approx(2 / 4)
    assert sentence_rouge_l("a b c d", ["a b x"], beta=1e6) == pytest.approx(2 / 3)


def test_rouge_l_of_nothing_in_common_and_of_an_empty_caption_is_zero():
    assert [sentence_rouge_l(text, ["a cat"]) for text in ("dogs", "", "  ")] == [0.0, 0.0, 0.0]


def test_common_lengths_equal_the_table_for_many_references_at_once():
    chance = random.Random(0)
    for _ in range(200):
        texts = [chance.choices("abcd", k=chance.randint(0, 70)) for _ in range(chance.randint(1, 6))]
        words = chance.choices("abcde", k=chance.randint(0, 70))
        found = reference_positions(tuple(" ".join(text) for text in texts), "none")
        expected = [slow.longest_common_subsequence(words, text) for text in texts]
        assert common_lengths(words, found) == expected, (words, texts)


@pytest.mark.parametrize("name", CORPORA)
def test_rouge_l_equals_the_recorded_numbers_of_the_coco_caption_tools(name: str):
    values = [sentence_rouge_l(text, texts, tokenize="none") for text, texts in golden_rows(name)]
    assert values == pytest.approx(CORPORA[name]["rouge_l_per_caption"], abs=1e-12)


def test_rouge_l_equals_the_coco_caption_tools_on_random_text():
    for rows in random_corpora(100):
        references = {index: texts for index, (_, texts) in enumerate(rows)}
        captions = {index: [text] for index, (text, _) in enumerate(rows)}
        _, expected = Rouge().compute_score(references, captions)
        values = [sentence_rouge_l(text, texts, tokenize="none") for text, texts in rows]
        assert values == pytest.approx(list(expected), abs=1e-12)


def test_rouge_l_does_not_depend_on_the_order_of_the_references():
    references = ["a red circle", "there is a circle", "red"]
    assert sentence_rouge_l("a circle", references) == sentence_rouge_l("a circle", references[::-1])


def test_another_reference_never_lowers_rouge_l():
    for rows in random_corpora(50, seed=3):
        for caption, references in rows:
            whole = sentence_rouge_l(caption, references, tokenize="none")
            assert sentence_rouge_l(caption, references[:1], tokenize="none") <= whole + 1e-15


def test_the_default_tokens_are_lower_case_and_marks_count():
    assert sentence_rouge_l("A cat.", ["a CAT ."]) == 1.0
    assert sentence_rouge_l("A cat.", ["a cat ."], tokenize="none") == 0.0


def test_the_references_of_a_set_are_laid_out_once(monkeypatch: pytest.MonkeyPatch):
    split: list[str] = []
    monkeypatch.setitem(ngrams.TOKENIZERS, "none", lambda text: split.append(text) or text.split())
    references = ["laid out once", "so is this one"]
    RougeLReward(tokenize="none")(None, ["one"] * 8, references=[references] * 8)
    assert [split.count(text) for text in (*references, "one")] == [1, 1, 8]


def test_the_reward_takes_strings_messages_and_rows_that_cannot_be_judged():
    message = [{"role": "assistant", "content": "a red circle"}]
    reward = RougeLReward(references_column="said")
    assert reward(None, ["x", message, "x"], said=["a cat", ["a red circle"], None]) == [0.0, 1.0, None]
    assert reward.__name__ == "rouge_l"
    check(RougeLReward(), prompts=["p"] * 2, completions=["a", "b"], references=[["a"], ["a b"]])


def test_what_rouge_l_cannot_use_is_named():
    with pytest.raises(ValueError, match=r"`references` is empty. Give one reference at least"):
        sentence_rouge_l("a", [])
    with pytest.raises(ValueError, match=r"`tokenize` must be .*; got 'ptb'"):
        RougeLReward(tokenize="ptb")
    with pytest.raises(ValueError, match="the reward needs a column `references`"):
        RougeLReward()(None, ["a"])
