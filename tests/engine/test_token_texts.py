"""What each token adds to a text."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from mmft.engine.token_texts import INCOMPLETE, token_texts
from mmft.tiny import captioner_path

PIECES = {1: b"a", 2: b" red", 3: "é".encode()[:1], 4: "é".encode()[1:], 5: b".", 6: b"</s>"}


class ByteTokenizer:
    """Joins bytes, as byte-level vocabularies do."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        assert not skip_special_tokens
        return [b"".join(PIECES[each] for each in row).decode(errors="replace") for row in rows]


class CleaningTokenizer:
    """Takes back a space before a full stop, as decoders that clean up do."""

    def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
        words = {1: "a", 2: " ", 3: "."}
        return ["".join(words[each] for each in row).replace(" .", ".") for row in rows]


def test_the_texts_of_all_tokens_are_the_text_with_its_end_token():
    tokenizer = AutoTokenizer.from_pretrained(captioner_path())
    ids = [*tokenizer("a small red circle.", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    texts = token_texts(SimpleNamespace(tokenizer=tokenizer), ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == "a small red circle." + tokenizer.eos_token
    assert texts[1] == " small"


def test_a_processor_may_be_a_tokenizer():
    assert token_texts(ByteTokenizer(), [1, 2, 5]) == ["a", " red", "."]


def test_a_character_belongs_to_the_token_that_completes_it():
    assert token_texts(ByteTokenizer(), [1, 3, 4, 5]) == ["a", "", "é", "."]


def test_a_character_that_nothing_completes_is_shown_as_broken():
    assert token_texts(ByteTokenizer(), [1, 3]) == ["a", "\N{REPLACEMENT CHARACTER}"]


def test_a_token_before_which_a_space_is_taken_back_is_shown_and_so_are_those_after_it():
    assert token_texts(CleaningTokenizer(), [1, 2, 3, 1]) == ["a", " ", ".", "a"]


def by_whole_prefixes(tokenizer: Any, ids: list[int]) -> list[str]:
    """The definition: what each prefix adds to the one before it, unfinished characters left out."""
    decoded = tokenizer.batch_decode([ids[:end] for end in range(len(ids) + 1)], skip_special_tokens=False)
    shown = [text.rstrip(INCOMPLETE) for text in decoded[:-1]] + decoded[-1:]
    return [after[len(before) :] for before, after in itertools.pairwise(shown)]


@pytest.mark.parametrize("text", ["a small red circle, \U0001f600 and caf\u00e9. ", "\U0001f600\u6f22"])
def test_pieces_of_a_long_text_are_those_of_whole_prefixes(text: str):
    tokenizer = AutoTokenizer.from_pretrained(captioner_path())
    ids = tokenizer(text * 60, add_special_tokens=False).input_ids[:300]
    assert len(ids) == 300
    assert token_texts(tokenizer, ids) == by_whole_prefixes(tokenizer, ids)


def test_a_character_that_nothing_completes_for_long_is_shown_with_the_token_after_it():
    """Twenty broken bytes, more than are decoded at once: they wait for a token that ends whole."""
    tokenizer = ByteTokenizer()
    ids = [1, *[3] * 20, 5, 2]
    broken = INCOMPLETE * 20
    assert token_texts(tokenizer, ids) == ["a", *[""] * 20, f"{broken}.", " red"]


def test_little_is_decoded_for_each_token_of_a_long_text():
    asked: list[int] = []

    class Counting(ByteTokenizer):
        def batch_decode(self, rows: list[list[int]], skip_special_tokens: bool) -> list[str]:
            asked.extend(map(len, rows))
            return super().batch_decode(rows, skip_special_tokens)

    token_texts(Counting(), [1, 2] * 200)
    assert max(asked) == 9


@pytest.mark.parametrize("ids", [[], [6]])
def test_no_token_and_the_end_alone(ids: list[int]):
    assert token_texts(ByteTokenizer(), ids) == (["</s>"] if ids else [])
