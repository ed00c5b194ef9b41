"""The packaged captioner as users load it: plain Auto classes, offline, and captions that are true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmft.tiny import PROMPT, captioner_path, load_scenes, true_fact_share
from mmft.tiny.lessons import CaptionTeacher, pixels
from mmft.tiny.pretrain import LESSONS
from mmft.tiny.scenes import make_scene
from mmft.tiny.scoring import score_captions, write_captions

FOLDER = Path(captioner_path())
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}]


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return json.loads((FOLDER / "pretraining.json").read_text())


def test_the_weights_are_small_safetensors_of_two_million_parameters(model: Any) -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 5_000_000
    assert not list(FOLDER.glob("*.bin"))
    assert 1_500_000 < model.num_parameters() < 2_500_000


def test_plain_loading_gives_single_precision(model: Any) -> None:
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_the_prompt_holds_one_placeholder_per_patch_and_ends_where_the_caption_begins(processor: Any) -> None:
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    inputs = processor(images=make_scene("test", 0).image, text=text, return_tensors="pt")
    assert int((inputs["input_ids"] == processor.image_token_id).sum()) == 64
    assert text.endswith("<|assistant|>")
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    assert int((inputs["input_ids"] == processor.tokenizer.bos_token_id).sum()) == 1


def test_the_assistant_turn_continues_the_prompt_and_closes_with_eos(processor: Any) -> None:
    opened = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    closed = processor.apply_chat_template([*MESSAGES, {"role": "assistant", "content": "a red circle."}])
    assert closed == opened + "a red circle.</s>"


def test_the_template_marks_the_assistant_tokens(processor: Any) -> None:
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": "a red circle."}]
    encoded = processor.tokenizer.apply_chat_template(
        messages, return_assistant_tokens_mask=True, return_dict=True
    )
    marked = [
        token
        for token, inside in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
        if inside
    ]
    assert processor.tokenizer.decode(marked) == "a red circle.</s>"


def test_special_tokens_agree_between_tokenizer_and_model(processor: Any, model: Any) -> None:
    tokenizer, generation = processor.tokenizer, model.generation_config
    assert generation.pad_token_id == tokenizer.pad_token_id
    assert generation.eos_token_id == tokenizer.eos_token_id
    assert generation.bos_token_id == tokenizer.bos_token_id
    assert model.config.image_token_id == processor.image_token_id
    assert len(tokenizer) == model.config.text_config.vocab_size
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3


@pytest.mark.parametrize(
    "text",
    [
        "a large red circle.",
        "Grüße, 世界! 😀👩‍🚀",
        "tabs\tand\n\nlines  ",
        "def f(x): return x**2",
        "\x00\x7f",
        "naïve <b>",
    ],
)
def test_the_tokenizer_gives_back_any_text(processor: Any, text: str) -> None:
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_words_of_the_scenes_are_single_tokens_and_english_is_short(processor: Any) -> None:
    caption = "a large red circle is left of a small blue square and above an orange triangle, a star."
    assert len(processor.tokenizer.tokenize(caption)) == len(caption.split()) + 2  # a comma and a full stop
    english = "The function returns a new list with the names of all files in the given directory."
    assert len(processor.tokenizer.tokenize(english)) < 2 * len(english.split())


def test_training_pixels_are_those_of_the_processor(processor: Any) -> None:
    scene = make_scene("test", 5)
    ours = pixels([scene])
    theirs = processor.image_processor(scene.image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_greedy_captions_are_as_true_as_the_record_says(processor: Any, model: Any, record: Any) -> None:
    scenes = [make_scene("test", index) for index in range(64)]
    teacher = CaptionTeacher(processor)
    written = write_captions(model, teacher, scenes)
    scores = score_captions(list(zip(written, scenes, strict=True)))
    # The record is of 512 other scenes: one wrong caption in 64 moves the share by 0.016.
    assert scores.true_fact_share >= record["held_out"]["captions"]["greedy"]["true_fact_share"] - 0.05
    assert scores.ended_share == 1.0


def test_the_habit_is_terse_and_detail_is_within_reach(processor: Any, model: Any) -> None:
    scenes = [make_scene("test", index) for index in range(64)]
    sampled = write_captions(model, CaptionTeacher(processor), scenes, temperature=1.0)
    scores = score_captions(list(zip(sampled, scenes, strict=True)))
    assert 0.05 <= scores.detailed_share <= 0.4
    assert scores.true_fact_share >= 0.85


def test_another_picture_gives_another_caption(processor: Any, model: Any) -> None:
    scenes = [make_scene("test", index) for index in range(16)]
    written = write_captions(model, CaptionTeacher(processor), scenes)
    assert len(set(written)) >= 12


def test_the_model_captions_a_dataset_row_through_its_processor(processor: Any, model: Any) -> None:
    row = load_scenes("test", 1)[0]
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    inputs = processor(images=row["image"], text=text, return_tensors="pt")
    written = model.generate(**inputs)
    caption = processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert true_fact_share(prompts=[PROMPT], completions=[caption], facts=[row["facts"]]) == [1.0]


def test_a_blank_picture_changes_what_the_model_expects(processor: Any, model: Any) -> None:
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
    blank = np.full((64, 64, 3), 240, dtype=np.uint8)
    logits = [
        model(**processor(images=image, text=text, return_tensors="pt")).logits[0, -1]
        for image in (blank, make_scene("test", 1).image)
    ]
    assert (logits[0] - logits[1]).abs().max() > 0.1


def test_the_record_names_settings_and_scores(record: dict[str, Any]) -> None:
    assert [lesson["name"] for lesson in record["lessons"]] == [lesson.name for lesson in LESSONS]
    assert {"greedy", "sampled", "sampled_detailed", "led_into_detail"} == set(record["held_out"]["captions"])
