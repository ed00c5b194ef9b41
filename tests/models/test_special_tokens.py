"""Where a completion ends, what pads it, and what a policy must never say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import GenerationConfig

from mmft.models.backbone import make_backbone
from mmft.models.special_tokens import end_token_ids, pad_token_id, placeholder_token_ids
from tests import zoo
from tests.engine.support import EVERY_FAMILY, stub_processor
from tests.zoo.vocabulary import EOS_ID, ID, PAD_ID, VOCAB_SIZE


def test_ends_are_those_of_generation_config_text_config_and_tokenizer() -> None:
    model = zoo.build_model("llava")
    assert end_token_ids(model, stub_processor()) == {EOS_ID}
    model.generation_config = GenerationConfig(eos_token_id=[7, 8])
    model.config.text_config.eos_token_id = 9
    assert end_token_ids(model, stub_processor(eos_token_id=10)) == {7, 8, 9, 10}
    assert end_token_ids(model, SimpleNamespace(eos_token_id=11)) == {7, 8, 9, 11}


def test_padding_is_the_tokenizers_or_else_an_end_token() -> None:
    assert pad_token_id(stub_processor(), frozenset({5})) == PAD_ID
    assert pad_token_id(stub_processor(pad_token_id=None), frozenset({7, 5})) == 5
    assert pad_token_id(stub_processor(pad_token_id=None), frozenset()) == 0


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_placeholders_are_found_in_config_and_processor(family: str) -> None:
    model = zoo.build_model(family)
    from_config = placeholder_token_ids(model, stub_processor())
    assert zoo.placeholder_ids(family) <= from_config
    assert zoo.placeholder_ids(family) <= placeholder_token_ids(model, zoo.build_processor(family))
    ordinary = {PAD_ID, EOS_ID, ID["<s>"], ID["<unk>"], *range(len(ID), VOCAB_SIZE)}
    assert not from_config & ordinary


def test_tokens_beyond_the_vocabulary_and_settings_that_are_no_ids_are_left_out() -> None:
    model = zoo.build_model("llava")
    before = placeholder_token_ids(model, stub_processor())
    model.config.video_token_id = VOCAB_SIZE + 3
    model.config.image_token_weird = "no id"
    model.config.image_token_flag_id = True
    model.config.image_seq_length_id = 6
    assert placeholder_token_ids(model, stub_processor()) == before
    model.config.audio_token_ids = [40, 41]
    assert placeholder_token_ids(model, stub_processor()) == before | {40, 41}


def test_an_end_token_may_always_be_said() -> None:
    model = zoo.build_model("llava")
    model.config.audio_token_id = EOS_ID
    backbone = make_backbone(model, stub_processor())
    assert EOS_ID in backbone.end_ids
    assert EOS_ID not in backbone.forbidden_ids
    assert ID["<image>"] in backbone.forbidden_ids
