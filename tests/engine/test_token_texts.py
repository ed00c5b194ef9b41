"""What each token adds to a text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from mmft.engine.token_texts import token_texts
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


@pytest.mark.parametrize("ids", [[], [6]])
def test_no_token_and_the_end_alone(ids: list[int]):
    assert token_texts(ByteTokenizer(), ids) == (["</s>"] if ids else [])
