"""The zoo is the ground truth of other tests, so it is checked against each model's own cached generation."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from tests import zoo
from tests.zoo.vocabulary import VOCAB_SIZE

EVERY_FAMILY = (*zoo.FAMILIES, *zoo.EXTRA_FAMILIES)
COMPLETION = torch.tensor([60, 130, 77, 201, 90, 145])


@functools.cache
def model_of(family: str) -> PreTrainedModel:
    return zoo.build_model(family)


def generate(family: str, row: zoo.Row) -> tuple[Tensor, Tensor]:
    """Greedy completion (R,) and the raw logits (R, V) of the model's own cached decoding."""
    output = model_of(family).generate(
        **row,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        suppress_tokens=sorted(zoo.placeholder_ids(family)),
        return_dict_in_generate=True,
        output_logits=True,
    )
    return output.sequences[0, row["input_ids"].shape[1] :], torch.cat(output.logits)


def picture(seed: int, height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def process(family: str, pictures: list[Image.Image]) -> dict[str, Any]:
    processor = zoo.build_processor(family)
    blocks = [{"type": "image"} for _ in pictures]
    messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": "Où est le chat?"}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = dict(processor(text=[text], images=[pictures] if pictures else None, return_tensors="pt"))
    # PaliGemma's processor adds training labels that are no part of a prompt.
    inputs.pop("labels", None)
    return inputs


def assert_plain_logits_equal_generation(family: str, row: zoo.Row) -> None:
    completion, expected = generate(family, row)
    assert completion.shape == (6,)
    actual = zoo.plain_logits(model_of(family), row, completion)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("num_images", [0, 1, 2])
@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_plain_logits_equal_the_logits_of_cached_generation(family: str, num_images: int) -> None:
    row = zoo.build_row(family, seed=num_images, num_images=num_images, text_length=8 + num_images)
    assert_plain_logits_equal_generation(family, row)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_other_pixels_give_other_logits_at_every_completion_token(family: str) -> None:
    row = zoo.build_row(family, num_images=2)
    before = zoo.plain_logits(model_of(family), row, COMPLETION)
    after = zoo.plain_logits(model_of(family), zoo.perturb_pixels(row, seed=1), COMPLETION)
    assert ((after - before).abs().amax(dim=-1) > 0.1).all()


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_the_models_are_opinionated_and_read_their_context(family: str) -> None:
    row = zoo.build_row(family)
    logits = zoo.plain_logits(model_of(family), row, COMPLETION)
    assert logits.shape == (6, VOCAB_SIZE)
    assert (logits.std(dim=-1) > 0.5).all()
    changed = COMPLETION.clone()
    changed[0] += 1
    difference = (zoo.plain_logits(model_of(family), row, changed) - logits).abs().amax(dim=-1)
    assert difference[0] < 1e-5
    assert (difference[1:] > 0.1).all()


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(family: str) -> None:
    state = torch.get_rng_state()
    again, other = zoo.build_model(family, seed=0), zoo.build_model(family, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not again.training
    weights = model_of(family).state_dict()
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    names = [name for name, _ in again.named_parameters()]
    assert all(not torch.equal(other.state_dict()[name], weights[name]) for name in names)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_rows_hold_their_placeholders_and_follow_seed_and_length(family: str) -> None:
    placeholders = zoo.placeholder_ids(family)
    assert placeholders
    assert max(placeholders) < VOCAB_SIZE
    row, same = zoo.build_row(family, seed=3), zoo.build_row(family, seed=3)
    assert row.keys() == same.keys()
    assert all(torch.equal(row[name], same[name]) for name in row)
    assert placeholders & set(row["input_ids"][0].tolist())
    bare = zoo.build_row(family, num_images=0)
    assert "pixel_values" not in bare
    assert not placeholders & set(bare["input_ids"][0].tolist())
    longer = zoo.build_row(family, seed=3, text_length=13)
    assert longer["input_ids"].shape[1] == row["input_ids"].shape[1] + 4


def seam_inputs(model: PreTrainedModel, row: zoo.Row) -> dict[str, Any]:
    """Keyword arguments of the call into the text model."""
    captured: dict[str, Any] = {}
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, kwargs: captured.update(kwargs), with_kwargs=True)
    model(**row)
    hook.remove()
    return captured


@torch.no_grad()
def test_gemma3_mixes_windows_smaller_than_the_prompt_and_bidirectional_images() -> None:
    row = zoo.build_row("gemma3")
    masks = seam_inputs(model_of("gemma3"), row)["attention_mask"]
    length = row["input_ids"].shape[1]
    offset = torch.arange(length)[:, None] - torch.arange(length)
    image = torch.isin(row["input_ids"][0], torch.tensor(sorted(zoo.placeholder_ids("gemma3"))))
    full = (offset >= 0) | (image[:, None] & image)
    assert torch.equal(masks["full_attention"][0, 0], full)
    # Inside an image block a token sees the whole future of its block but no more than a window of its past.
    assert torch.equal(masks["sliding_attention"][0, 0], full & (offset < 7))
    assert length > 7


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
@torch.no_grad()
def test_paligemma_prompts_are_bidirectional_prefixes(family: str) -> None:
    masks = seam_inputs(model_of(family), zoo.build_row(family))["attention_mask"]
    full = masks if isinstance(masks, Tensor) else masks["full_attention"]
    # sdpa takes booleans, eager attention takes what is added to the scores.
    assert (full if full.dtype == torch.bool else full == 0).all()


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@torch.no_grad()
def test_qwen_positions_differ_between_their_axes_and_end_before_the_length(family: str) -> None:
    row = zoo.build_row(family, num_images=2)
    positions = seam_inputs(model_of(family), row)["position_ids"]
    length = row["input_ids"].shape[1]
    assert positions.shape == (3, 1, length)
    assert not torch.equal(positions[0], positions[1])
    assert not torch.equal(positions[1], positions[2])
    assert positions.max() + 1 < length


@torch.no_grad()
def test_qwen3_deepstack_features_reach_the_logits() -> None:
    row, model = zoo.build_row("qwen3_vl"), zoo.build_model("qwen3_vl")
    before = zoo.plain_logits(model, row, COMPLETION)

    def drop_deepstack(_: Any, __: Any, kwargs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        return (), kwargs | {"deepstack_visual_embeds": None}

    model.get_decoder().register_forward_pre_hook(drop_deepstack, with_kwargs=True)
    assert (zoo.plain_logits(model, row, COMPLETION) - before).abs().max() > 0.1


@torch.no_grad()
def test_paligemma2_soft_caps_the_logits_after_the_head() -> None:
    logits = zoo.plain_logits(model_of("paligemma2"), zoo.build_row("paligemma2"), COMPLETION)
    assert 2.5 < logits.abs().max() < 3.0


# numpy 2 warns about the processor's own `np.array(tensor)`.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_processor_output_runs_through_the_model(family: str, num_images: int) -> None:
    pictures = [picture(0, 40, 60), picture(1, 50, 50)][:num_images]
    row = process(family, pictures)
    assert row.keys() == zoo.build_row(family, num_images=num_images).keys()
    assert_plain_logits_equal_generation(family, row)
    other = process(family, [picture(2, 40, 60), *pictures[1:]])
    difference = zoo.plain_logits(model_of(family), other, COMPLETION)
    difference -= zoo.plain_logits(model_of(family), row, COMPLETION)
    assert (difference.abs().amax(dim=-1) > 0.05).all()


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen2_5_vl"])
def test_tokenizers_are_byte_level_and_left_padded(family: str) -> None:
    tokenizer = zoo.build_processor(family).tokenizer
    text = "Un été à Zürich\n\t 12 ☃"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    batch = tokenizer(["a", "abc"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]
    assert batch["input_ids"][0, 0] == tokenizer.pad_token_id
