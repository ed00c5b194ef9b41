"""Completions that come as text: as tokens of the family, grouped under the prompts they share."""

from __future__ import annotations

import pytest
import torch

from mmft.engine.completion_batch import (
    CompletionTokenizer,
    completion_end_id,
    completion_text,
    group_completions,
)
from mmft.models.backbone import make_backbone
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import EVERY_FAMILY
from tests.zoo.vocabulary import EOS_ID, FIRST_TEXT_ID


def text_rows(count: int) -> list[PromptRow]:
    messages = [{"role": "user", "content": [{"type": "text", "text": "what"}]}]
    return [PromptRow(("train", number), "what", messages, []) for number in range(count)]


def test_completions_are_grouped_by_prompt_and_found_again() -> None:
    first, second = text_rows(2)
    batch = group_completions([second, first, second], [[1, 2], [3], [4, 5, 6]], pad_id=0)
    assert batch.rows == [second, first]
    assert batch.completions.prompt_index.tolist() == [0, 0, 1]
    assert batch.completions.ids.tolist() == [[1, 2, 0], [4, 5, 6], [3, 0, 0]]
    assert batch.completions.lengths.tolist() == [2, 3, 1]
    assert torch.tensor([10.0, 30.0, 20.0])[batch.place].tolist() == [10, 20, 30]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_text_becomes_the_tokens_that_sampling_would_give(family: str) -> None:
    backbone = make_backbone(zoo.build_model(family), zoo.build_processor(family), trainable=())
    tokenize = CompletionTokenizer(backbone, max_length=4)
    letters = [FIRST_TEXT_ID + ord(letter) for letter in "red"]
    assert tokenize("red") == [*letters, EOS_ID]
    assert tokenize("redder") == tokenize.whole("redder")[:4]  # cut, and so without an end
    placeholder = backbone.processor.tokenizer.decode(min(backbone.forbidden_ids))
    assert tokenize.whole(f"red{placeholder}") == [*letters, EOS_ID]  # no policy says one
    assert tokenize("") == [EOS_ID]


def test_what_was_cut_was_said_without_an_end() -> None:
    backbone = make_backbone(zoo.build_model("llava"), zoo.build_processor("llava"), trainable=())
    tokenize = CompletionTokenizer(backbone, max_length=4)
    letters = [FIRST_TEXT_ID + ord(letter) for letter in "redder"]
    assert tokenize.said("red", ended=True) == [*letters[:3], EOS_ID]
    assert tokenize.said("red", ended=False) == letters[:3]
    assert tokenize.said("redder", ended=False) == letters[:4]  # there is no end to take off
    assert tokenize.said("", ended=False) == []


def test_the_end_token_is_the_one_behind_an_answer_of_the_chat_template() -> None:
    processor = zoo.build_processor("llava")
    ids = processor.tokenizer.convert_tokens_to_ids(["</s>", "<end_of_utterance>"])
    assert completion_end_id(processor, frozenset(ids)) == ids[0]
    processor.chat_template = processor.chat_template.replace("eos_token", "'<end_of_utterance>'")
    assert completion_end_id(processor, frozenset(ids)) == ids[1]
    processor.chat_template = "{{ raise_exception('no answers here') }}"
    assert completion_end_id(processor, frozenset(ids)) == ids[0]
    assert completion_end_id(processor, frozenset()) is None


def test_a_completion_is_text_or_messages() -> None:
    assert completion_text("a b") == "a b"
    assert completion_text([{"role": "assistant", "content": "a b"}]) == "a b"
    blocks = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert completion_text([{"role": "assistant", "content": blocks}]) == "a b"
    with pytest.raises(TypeError, match="a completion is text or a list of messages; got 3"):
        completion_text(3)
