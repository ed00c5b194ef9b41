"""From rows to the seam with real processors: chat template, pictures, cache, errors that name the row."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.prompt_encoder import PromptEncoder, process_row, render_prompt
from mmft.engine.rollout import sample_plain
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.engine.scoring import score_plain
from mmft.errors import DataError
from mmft.models.backbone import make_backbone
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import EVERY_FAMILY, perturb_critic
from tests.zoo.vocabulary import BOS_ID, ID

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
VISION_TOWERS = ("vision_tower", "vision_model", "visual")


@functools.cache
def real(family: str) -> VLMActorCritic:
    """The family's model behind its real processor."""
    backbone = make_backbone(zoo.build_model(family), zoo.build_processor(family), trainable=())
    actor_critic = VLMActorCritic(backbone, reference=False).eval()
    perturb_critic(actor_critic)
    return actor_critic


def picture(seed: int, height: int = 40, width: int = 60) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make_row(key: Any, text: str, *images: Image.Image) -> PromptRow:
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return PromptRow(key, text, [{"role": "user", "content": content}], list(images))


def rows(family: str = "llava") -> list[PromptRow]:
    """One picture, two pictures, and none where the processor allows that."""
    some = [
        make_row("one", "What is this?", picture(0)),
        make_row("two", "Compare.", picture(1), picture(2, 50, 50)),
    ]
    return some if family.startswith("paligemma") else [*some, make_row("none", "Say anything at all.")]


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_rows_are_encoded_sampled_and_scored(family: str) -> None:
    actor_critic = real(family)
    encoder = PromptEncoder(actor_critic.backbone, cache_bytes=2**20)
    encodings = encoder.encode(rows(family))
    inputs = [encoder.inputs(row) for row in rows(family)]
    assert [e.num_tokens for e in encodings] == [i.input_ids.shape[1] for i in inputs]
    params, noise = (
        SamplingParams(num_generations=2, max_completion_length=5),
        sample_noise(0, 0, range(6), 5),
    )
    samples = actor_critic.sample(encodings, params, noise)
    plain = score_plain(actor_critic.backbone, actor_critic.value_head, inputs, samples.completions)
    torch.testing.assert_close(samples.logps, plain.logps, atol=1e-5, rtol=0)
    torch.testing.assert_close(samples.values, plain.values, atol=1e-5, rtol=0)
    packed = actor_critic(encodings, samples.completions)
    torch.testing.assert_close(packed.logps, plain.logps, atol=1e-5, rtol=0)
    again = sample_plain(actor_critic.backbone, inputs, params, noise)
    assert torch.equal(again.completions.ids, samples.completions.ids)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_the_prompt_begins_with_one_bos_and_holds_the_question_and_its_images(family: str) -> None:
    processor = zoo.build_processor(family)
    row = make_row("row", "Où?", picture(0))
    inputs = process_row(processor, row)
    ids = inputs.input_ids[0].tolist()
    assert ids.count(BOS_ID) == 1
    assert "Où?" in processor.tokenizer.decode(ids)
    assert zoo.placeholder_ids(family) & set(ids)
    assert "labels" not in inputs.tensors
    if not family.startswith("paligemma"):
        assert ids[0] == BOS_ID
        assert processor.tokenizer.decode(ids).endswith("assistant: ")


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
def test_a_tokenizer_that_adds_a_bos_does_not_double_the_one_of_the_template(family: str) -> None:
    processor = zoo.build_processor(family)
    bos = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    processor.tokenizer.backend_tokenizer.post_processor = bos
    assert process_row(processor, make_row("row", "Hi", picture(0))).input_ids[0].tolist().count(BOS_ID) == 1
    processor.chat_template = processor.chat_template.removeprefix("{{ bos_token }}")
    ids = process_row(processor, make_row("row", "Hi", picture(0))).input_ids[0].tolist()
    assert ids[0] == BOS_ID
    assert ids.count(BOS_ID) == 1


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
def test_real_processors_name_the_placeholders_that_are_never_sampled(family: str) -> None:
    forbidden = real(family).backbone.forbidden_ids
    assert zoo.placeholder_ids(family) <= forbidden
    assert not forbidden & real(family).backbone.end_ids
    if family == "smolvlm":
        assert ID["<fake_token_around_image>"] in forbidden
        assert ID["<global-img>"] in forbidden


def count_vision_calls(backbone: Any) -> list[int]:
    """A list that grows whenever the vision tower runs."""
    calls: list[int] = []
    towers = [module for name, module in backbone.named_modules() if name.split(".")[-1] in VISION_TOWERS]
    handle = towers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    backbone.remove_counter = handle.remove
    return calls


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
@torch.no_grad()
def test_a_frozen_vision_tower_sees_each_prompt_once(family: str) -> None:
    backbone = real(family).backbone
    encoder, calls = PromptEncoder(backbone, cache_bytes=2**20), count_vision_calls(backbone)
    first = encoder.encode([*rows(), *rows()])
    once = len(calls)
    assert once == sum(bool(row.images) for row in rows())
    second = encoder.encode(rows())
    assert len(calls) == once
    assert all(again is before for again, before in zip(second, first[:3], strict=True))
    assert encoder.cache.hit_rate == 0.5
    backbone.remove_counter()


@pytest.mark.parametrize("cache_bytes", [0, 10])
@torch.no_grad()
def test_without_room_in_the_cache_a_batch_still_encodes_a_repeated_prompt_once(cache_bytes: int) -> None:
    backbone = real("llava").backbone
    encoder, calls = PromptEncoder(backbone, cache_bytes), count_vision_calls(backbone)
    encodings = encoder.encode([rows()[0]] * 3)
    assert len(calls) == 1
    assert encodings[0] is encodings[2]
    encoder.encode([rows()[0]])
    assert len(calls) == 2
    backbone.remove_counter()


def test_where_prompts_are_not_shared_every_process_encodes_as_many() -> None:
    backbone = real("llava").backbone
    calls = count_vision_calls(backbone)
    row = rows()[0]
    encodings = PromptEncoder(backbone, 2**30, shares=False).encode([row, row])
    assert len(calls) == 2
    assert torch.equal(encodings[0].embeds, encodings[1].embeds)


@pytest.mark.parametrize("part", ["vision", "projector"])
def test_nothing_is_kept_while_something_before_the_seam_trains(part: str) -> None:
    backbone = make_backbone(zoo.build_model("llava"), zoo.build_processor("llava"), trainable=(part,))
    encoder = PromptEncoder(backbone, cache_bytes=2**20)
    first, second = encoder.encode(rows()[:1]), encoder.encode(rows()[:1])
    assert first[0] is not second[0]
    assert len(encoder.cache) == 0
    assert first[0].embeds.requires_grad


def test_without_a_chat_template_images_come_first_and_text_after() -> None:
    processor = zoo.build_processor("llava")
    processor.chat_template = None
    row = make_row("row", "What?", picture(0), picture(1))
    assert render_prompt(processor, row) == "<image><image>\nWhat?"
    assert render_prompt(processor, make_row("row", "What?")) == "What?"
    plain = PromptRow("row", "Hi", [{"role": "user", "content": "Hi"}], [])
    assert render_prompt(processor, plain) == "Hi"
    # No template wrote the bos; a tokenizer that adds none leaves it out.
    assert BOS_ID not in process_row(processor, row).input_ids


def test_a_prompt_that_the_processor_refuses_is_named() -> None:
    processor = zoo.build_processor("paligemma")  # takes no prompt without a picture
    message = (
        r"row \('train', 17\): the processor PaliGemmaProcessor refused .* begins with 'What' and has 0 image"
    )
    with pytest.raises(DataError, match=message) as info:
        process_row(processor, make_row(("train", 17), "What"))
    assert isinstance(info.value.__cause__, ValueError)


def test_a_prompt_that_the_chat_template_refuses_is_named() -> None:
    processor = zoo.build_processor("llava")
    processor.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        DataError, match=r"row 3: the chat template of LlavaProcessor refused .* roles must alternate"
    ):
        process_row(processor, make_row(3, "What?"))
