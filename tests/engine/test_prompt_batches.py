"""Several prompts through the processor at once: padded on the right, otherwise as one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from mmft.engine.prompt_encoder import process_row, process_rows, process_texts
from mmft.errors import DataError
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import EVERY_FAMILY
from tests.engine.test_prompt_encoder import make_row, picture
from tests.zoo.vocabulary import BOS_ID, EOS_ID, PAD_ID

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def ragged_rows(family: str) -> list[PromptRow]:
    """Two pictures, one, and none where the processor takes such a prompt alone."""
    some = [
        make_row("two", "Compare.", picture(1), picture(2, 50, 50)),
        make_row("one", "What is it that this shows?", picture(0)),
    ]
    return some if family.startswith("paligemma") else [make_row("none", "Say anything."), *some]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_row_of_a_batch_is_the_row_alone_and_then_padding(family: str) -> None:
    processor, rows = zoo.build_processor(family), ragged_rows(family)
    batch = process_rows(processor, rows)
    assert "labels" not in batch.tensors
    for number, row in enumerate(rows):
        alone = process_row(processor, row)
        length = alone.input_ids.shape[1]
        per_token = [n for n, tensor in alone.tensors.items() if tensor.shape == alone.input_ids.shape]
        assert {"input_ids", "attention_mask"} <= set(per_token)
        for name in per_token:
            assert torch.equal(batch.tensors[name][number, :length], alone.tensors[name][0])
        assert not batch.tensors["attention_mask"][number, length:].any()
        assert (batch.input_ids[number, length:] == PAD_ID).all()
    assert processor.tokenizer.padding_side == "left"  # as it was


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_texts_need_no_processor_of_pictures(family: str) -> None:
    processor = zoo.build_processor(family)
    rows = [make_row("a", "Say anything."), make_row("b", "Go!")]
    batch = process_texts(processor, rows)
    masks = batch.tensors["attention_mask"].bool()
    decoded = [
        processor.tokenizer.decode(ids[mask]) for ids, mask in zip(batch.input_ids, masks, strict=True)
    ]
    if family.startswith("paligemma"):
        assert decoded == ["Say anything.", "Go!"]
    else:
        assert decoded == ["<s>user: Say anything.\nassistant: ", "<s>user: Go!\nassistant: "]
    assert "pixel_values" not in batch.tensors
    if family.startswith("paligemma"):
        assert (batch.tensors["token_type_ids"] == 0).all()  # all of it is prefix
        return
    by_processor = process_rows(processor, rows)
    for name, tensor in batch.tensors.items():
        assert torch.equal(tensor, by_processor.tensors[name])


def test_a_tokenizer_without_a_padding_token_pads_with_its_end_token() -> None:
    processor = zoo.build_processor("llava")
    processor.tokenizer.pad_token = None
    batch = process_rows(processor, ragged_rows("llava"))
    padding = batch.tensors["attention_mask"] == 0
    assert padding.any()
    assert (batch.input_ids[padding] == EOS_ID).all()
    assert processor.tokenizer.pad_token is None


@pytest.mark.parametrize("in_template", [True, False])
@pytest.mark.parametrize("process", [process_rows, process_texts])
def test_prompts_of_a_batch_begin_with_one_bos(process: Any, in_template: bool) -> None:
    processor = zoo.build_processor("llava")
    bos = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    processor.tokenizer.backend_tokenizer.post_processor = bos
    if not in_template:
        processor.chat_template = processor.chat_template.removeprefix("{{ bos_token }}")
    batch = process(processor, [make_row("a", "Say anything."), make_row("b", "Go!")])
    assert (batch.input_ids[:, 0] == BOS_ID).all()
    assert ((batch.input_ids == BOS_ID).sum(1) == 1).all()


def test_the_row_that_spoils_a_batch_is_named() -> None:
    processor = zoo.build_processor("llava")
    good = make_row(("train", 3), "What?", picture(0))
    spoilt = PromptRow(("train", 4), "What?", good.messages * 2, [picture(0)])  # two places, one picture
    with pytest.raises(
        DataError, match=r"row \('train', 4\): the processor LlavaProcessor refused the prompt"
    ):
        process_rows(processor, [good, spoilt])


@pytest.mark.parametrize("process", [process_rows, process_texts])
def test_a_row_that_the_chat_template_refuses_is_named(process: Any) -> None:
    processor = zoo.build_processor("llava")
    processor.chat_template = (
        "{% if 'Bad' in messages[0]['content'][0]['text'] %}{{ raise_exception('no') }}{% endif %}"
    )
    with pytest.raises(DataError, match="row 8: the chat template of LlavaProcessor refused the prompt: no"):
        process(processor, [make_row(7, "Good."), make_row(8, "Bad.")])


@pytest.mark.parametrize("process", [process_rows, process_texts])
def test_prompts_that_only_fail_together_are_named_together(process: Any) -> None:
    processor = zoo.build_processor("llava")
    processor.chat_template = None
    rows = [make_row(number, text) for number, text in enumerate(["<s>One", "Two", "Three", "Four", "Five"])]
    message = (
        r"rows 0, 1, 2 and 2 more: the processor LlavaProcessor refused the prompts together: some of the"
    )
    with pytest.raises(DataError, match=message):
        process(processor, rows)
    with pytest.raises(
        DataError, match=r"rows 0, 1: the processor .* others do not\. Give prompts of one kind"
    ):
        process(processor, rows[:2])
