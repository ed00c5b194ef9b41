"""CLIPScore and RefCLIPScore: the model's own numbers, and one run of the image tower per picture."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel
from trl.trainer.utils import get_callable_name, is_async_callable

from mmft.engine.judging import RewardSuite
from mmft.resolve import resolve_reward
from mmft.types import PromptRow
from rewards import ClipScore, RefClipScore, check
from tests.rewards.contrastive import (
    CAPTIONS,
    FAMILIES,
    PICTURES,
    POSITIONS,
    build_contrastive,
    cosines_of,
    logged_call,
    scorer,
)

PROMPT = "A photo depicts "


def forward_of_the_model(family: str, texts: list[str], pictures: list[Image.Image]) -> Any:
    """The whole model on texts and pictures at once, as its model card shows it."""
    model, processor = build_contrastive(family)
    settings: dict[str, Any] = {"padding": True}
    if family != "clip":
        settings = {"padding": "max_length", "max_length": POSITIONS}
    if family == "siglip2":
        settings |= {"patch_size": 4, "max_num_patches": 16}
    with torch.no_grad():
        return model, model(**processor(text=texts, images=pictures, return_tensors="pt", **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cosine_is_the_one_behind_the_models_own_logits(family: str):
    model, output = forward_of_the_model(family, [PROMPT + caption for caption in CAPTIONS], PICTURES)
    logits = output.logits_per_image - (0 if family == "clip" else model.logit_bias)
    expected = (logits / model.logit_scale.exp()).diagonal()
    assert expected.std() > 0.05, "a model that maps everything to one direction shows nothing"
    torch.testing.assert_close(torch.tensor(cosines_of(scorer(family))), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_clip_score_is_the_clipped_cosine_times_the_weight(family: str):
    _, output = forward_of_the_model(family, [PROMPT + caption for caption in CAPTIONS], PICTURES)
    cosines = (output.image_embeds @ output.text_embeds.T).flatten()  # every picture with every caption
    if family != "siglip2":  # whose random towers all look away from each other
        assert (cosines > 0).any()
    assert (cosines < 0).any()
    pictures = [picture for picture in PICTURES for _ in CAPTIONS]
    scores = torch.tensor(scorer(family, weight=3.0).scores(pictures, CAPTIONS * 4))
    torch.testing.assert_close(scores, 3.0 * cosines.clamp(min=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_changed_words_change_the_score(family: str):
    first, second = cosines_of(scorer(family), ["a red dog", "a red dot"], [PICTURES[0]] * 2)
    assert abs(first - second) > 1e-4


def test_the_weight_of_the_paper_is_the_default():
    score = scorer()
    parts = score.parts(PICTURES, CAPTIONS)
    index = max(range(4), key=parts["cosine"].__getitem__)
    assert parts["cosine"][index] > 0
    assert parts["clip_score"][index] == pytest.approx(2.5 * parts["cosine"][index])


def test_a_negative_cosine_scores_zero():
    score = scorer()
    parts = score.parts(PICTURES, CAPTIONS)
    index = min(range(4), key=parts["cosine"].__getitem__)
    assert parts["cosine"][index] < 0
    assert parts["clip_score"][index] == 0.0


def test_ref_clip_score_is_the_harmonic_mean_with_the_nearest_reference():
    references = [["a blue dog", "a red dog here"], "y", ["cats on mats"], ["goodbye", "hello there"]]
    texts = [PROMPT + text for text in [*CAPTIONS, "a blue dog", "a red dog here", "y", "cats on mats"]]
    _, output = forward_of_the_model("clip", [*texts, PROMPT + "goodbye"], PICTURES)
    said, images = output.text_embeds, output.image_embeds
    for index, near in enumerate([[4, 5], [6], [7], [8, 3]]):
        a = 2.5 * max(float(said[index] @ images[index]), 0.0)
        b = max(0.0, *(float(said[index] @ said[other]) for other in near))
        expected = 2 * a * b / (a + b) if a > 0 and b > 0 else 0.0
        found = scorer(reference=True).scores(PICTURES, CAPTIONS, references)[index]
        assert found == pytest.approx(expected, abs=1e-5)
    assert any(scorer(reference=True).scores(PICTURES, CAPTIONS, references)), "all zero shows nothing"


def test_the_harmonic_mean_by_hand(monkeypatch: pytest.MonkeyPatch):
    # cos(c, v) = 0.6 and cos(c, r) = 0.5, 0.3: a = 2.5 * 0.6 = 1.5, b = 0.5, 2 * 1.5 * 0.5 / 2 = 0.75.
    # c2 looks away from its picture, c3 from its reference: 0 each.
    angles = {"c": [1.0, 0.0], "r1": [0.5, 0.75**0.5], "r2": [0.3, 0.91**0.5], "away": [-1.0, 0.0]}
    score = scorer(reference=True, prompt="")
    monkeypatch.setattr(
        score.embedder, "embed_texts", lambda texts, keep=False: torch.tensor([angles[t] for t in texts])
    )
    monkeypatch.setattr(
        score.embedder, "embed_images", lambda images: torch.tensor([[0.6, 0.8]] * len(images))
    )
    found = score.scores(PICTURES[:3], ["c", "away", "c"], [["r1", "r2"], ["away"], ["away"]])
    assert found == pytest.approx([0.75, 0.0, 0.0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_scores_as_its_rows_one_by_one(family: str):
    # Captions of different lengths in one batch: padding must not change a number either.
    together = cosines_of(scorer(family))
    apart = [
        cosines_of(scorer(family), [caption], [picture])[0]
        for caption, picture in zip(CAPTIONS, PICTURES, strict=True)
    ]
    assert together == pytest.approx(apart, abs=1e-5)


def test_a_reordered_batch_gives_the_reordered_scores():
    order = [2, 0, 3, 1]
    score = scorer()
    moved = cosines_of(score, [CAPTIONS[i] for i in order], [PICTURES[i] for i in order])
    assert moved == pytest.approx([cosines_of(scorer())[i] for i in order], abs=1e-5)


def test_several_pictures_give_the_mean_or_the_largest_cosine():
    single = [cosines_of(scorer(), ["a red dog"], [picture])[0] for picture in PICTURES[:3]]
    (mean,) = cosines_of(scorer(), ["a red dog"], [PICTURES[:3]])
    (largest,) = cosines_of(scorer(several_images="max"), ["a red dog"], [PICTURES[:3]])
    assert mean == pytest.approx(sum(single) / 3, abs=1e-5)
    assert largest == pytest.approx(max(single), abs=1e-5)
    assert largest - mean > 1e-3


def test_rows_without_a_picture_or_references_cannot_be_judged():
    score = scorer(reference=True)
    found = score.scores([PICTURES[0], None, [], PICTURES[1]], CAPTIONS, [["a"], ["b"], ["c"], None])
    assert found[1:] == [None, None, None]
    assert found[0] is not None
    assert score.counters.images_encoded == 2


def test_a_batch_without_any_picture_is_none_throughout():
    assert scorer().scores([None, []], ["a", "b"]) == [None, None]


def test_an_empty_batch_is_an_empty_answer():
    assert scorer(reference=True).scores([], [], []) == []


def test_an_empty_caption_earns_nothing_from_the_prompt_alone(monkeypatch: pytest.MonkeyPatch):
    score = scorer()
    monkeypatch.setattr(score.embedder, "embed_texts", lambda texts: torch.ones(len(texts), 1))
    monkeypatch.setattr(score.embedder, "embed_images", lambda images: torch.ones(len(images), 1))
    assert score.scores(PICTURES[:3], ["", " \n", "!"]) == [0.0, 0.0, 2.5]


def test_the_prompt_goes_before_captions_and_references():
    captions = [PROMPT + caption for caption in CAPTIONS]
    references = [["a dog"]] * 4
    with_prompt = scorer(reference=True).parts(PICTURES, CAPTIONS, references)
    spelled_out = scorer(reference=True, prompt="").parts(PICTURES, captions, [[PROMPT + "a dog"]] * 4)
    assert with_prompt == spelled_out


def test_a_caption_that_is_too_long_is_counted_and_named_once(caplog: pytest.LogCaptureFixture):
    score = scorer()
    long = ["a " * 40, "b " * 40, "short"]
    with caplog.at_level(logging.WARNING):
        values, log = logged_call(score, completions=long, images=[[picture] for picture in PICTURES[:3]])
        logged_call(score, completions=long, images=[[picture] for picture in PICTURES[:3]])
    assert None not in values
    assert log["clip_score/truncated_share"] == pytest.approx(2 / 3)
    assert score.counters.texts_truncated == 4
    (record,) = [record for record in caplog.records if record.name == "rewards.clip_embedder"]
    assert "has 98 tokens and the text tower reads 48" in record.getMessage()  # 16 + 80 bytes, <s>, </s>


def test_only_the_start_of_a_long_caption_counts():
    score = scorer()
    start = "a" * (POSITIONS - len(PROMPT) - 2)
    kept, longer, other = cosines_of(score, [start, start + "zzz", "b" + start], [PICTURES[0]] * 3)
    assert kept == pytest.approx(longer, abs=1e-5)
    assert abs(kept - other) > 1e-4


def test_the_reward_reads_chat_messages_and_either_picture_column():
    score = scorer()
    messages = [[{"role": "assistant", "content": caption}] for caption in CAPTIONS]
    expected = score.scores(PICTURES, CAPTIONS)
    assert score(prompts=None, completions=messages, images=[[p] for p in PICTURES]) == expected
    assert score(prompts=None, completions=CAPTIONS, image=PICTURES) == expected


def test_the_parts_are_logged_apart():
    model, processor = build_contrastive("clip")
    score = RefClipScore(model, processor, references_column="said")
    said = [["a dog"], ["a cat"], None, ["x"]]
    values, log = logged_call(score, completions=CAPTIONS, images=PICTURES, said=said)
    parts = score.parts(PICTURES, CAPTIONS, said)
    assert values[2] is None
    for name, found in [("ref_clip_score", values), *((name, log[name]) for name in parts if name in log)]:
        assert found == pytest.approx(parts[name], abs=1e-5)
    assert {"cosine", "clip_score", "reference_cosine"} <= set(log)
    assert log["ref_clip_score/images_encoded"] == 4


@pytest.mark.parametrize("reference", [False, True])
def test_it_keeps_the_protocol(reference: bool):
    assert None not in check(scorer(reference=reference))


def test_it_works_through_the_reward_suite():
    rows = [
        PromptRow(key=index, prompt="Describe.", messages=[], images=[PICTURES[index]], columns={})
        for index in range(2)
    ]
    score = scorer()
    judgement = RewardSuite([score]).score(rows, [["a", "b"], ["c", "d"]])
    assert judgement.rewards[:, 0].tolist() == pytest.approx(
        score.scores([PICTURES[0], PICTURES[0], PICTURES[1], PICTURES[1]], ["a", "b", "c", "d"]), abs=1e-5
    )
    assert judgement.metrics["clip_score/images_encoded"] == 2
    assert "clip_score/cosine" in judgement.components


def test_the_model_is_loaded_late_and_from_a_folder(tmp_path: Any):
    model, processor = build_contrastive("clip")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    score = resolve_reward({"name": "clip_score", "model": str(tmp_path), "dtype": "float32"})
    assert score.embedder._model is None
    assert cosines_of(score) == pytest.approx(cosines_of(ClipScore(model, processor)), abs=1e-5)


def test_prepare_loads_the_model_before_training_and_asks_for_the_references():
    score = RefClipScore(*build_contrastive("clip"))
    with pytest.raises(ValueError, match="RefCLIPScore needs a column `references`"):
        score.prepare(lambda name: None)
    score.prepare(lambda name: [["a"]])
    assert score.embedder._model is not None
    plain = scorer()
    plain.prepare(lambda name: None)
    assert plain.embedder._model is not None


def test_scoring_leaves_no_gradient_and_no_training_mode():
    model, processor = build_contrastive("clip")
    score = ClipScore(model.train(), processor)
    score.load()
    assert not any(module.training for module in model.modules())
    assert not any(weight.requires_grad for weight in model.parameters())
    assert not score.embedder.embed_images(PICTURES).requires_grad


def test_a_model_in_half_precision_scores_close_to_single():
    model, processor = build_contrastive("clip")
    halved = ClipScore(model, processor, dtype="bfloat16")
    assert cosines_of(halved) == pytest.approx(cosines_of(scorer()), abs=0.03)
    assert model.dtype == torch.bfloat16
    assert halved.embedder.embed_texts(["a"]).dtype == torch.float32


def test_trl_names_the_reward_and_calls_it_directly():
    assert get_callable_name(scorer()) == "clip_score"
    assert get_callable_name(scorer(reference=True)) == "ref_clip_score"
    assert not is_async_callable(scorer())
    assert resolve_reward("ref_clip_score").reference is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, r"`weight` must be a finite number > 0; got 0.0"),
        ({"weight": float("nan")}, "`weight` must be a finite number"),
        ({"several_images": "min"}, "`several_images` must be 'mean' or 'max'; got 'min'"),
        ({"batch_size": 0}, "`batch_size` must be at least 1; got 0"),
        ({"image_cache_size": -1}, "`image_cache_size` must be at least 0; got -1"),
        ({"dtype": "int8"}, "`dtype` must be 'float32', 'bfloat16', 'float16' or None; got 'int8'"),
        ({"dtype": "half precision"}, "`dtype` must be"),
        ({"model": torch.nn.Linear(1, 1)}, "`processor` is None, but `model` is a model object"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ClipScore(**settings)


def test_a_model_without_two_towers_is_refused():
    _, processor = build_contrastive("clip")
    bert = BertModel(
        BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    )
    with pytest.raises(ValueError, match="`model` is a BertModel, which has no `get_image_features`"):
        ClipScore(bert, processor).scores([PICTURES[0]], ["a"])
    model, processor = build_contrastive("clip")
    with pytest.raises(ValueError, match="`processor` is a CLIPImageProcessorPil, which has no `tokenizer`"):
        ClipScore(model, processor.image_processor).scores([PICTURES[0]], ["a"])


def test_data_that_cannot_be_scored_is_refused_by_name():
    score = scorer(reference=True)
    with pytest.raises(ValueError, match="needs a column `images` or `image`"):
        score(prompts=None, completions=["a"])
    with pytest.raises(ValueError, match="`images` has 1 entries for 2 captions"):
        score.scores([PICTURES[0]], ["a", "b"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="row 1: `images` must hold PIL images; got str"):
        score.scores([PICTURES[0], ["cat.png"]], ["a", "b"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="RefCLIPScore needs a column `references` and the data has none"):
        score.scores([PICTURES[0]], ["a"])
    with pytest.raises(ValueError, match="row 0: `references` is empty"):
        score.scores([PICTURES[0]], ["a"], [[]])
