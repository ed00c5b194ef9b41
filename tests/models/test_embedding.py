"""Modality embeddings of every family: a padded batch is its rows one by one, and what the model makes."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

from mmft.engine.prompt_encoder import process_row, process_rows, process_texts
from mmft.errors import UnsupportedModelError
from mmft.models.backbone import Backbone, make_backbone
from mmft.models.embedding import embed_text, supported_modalities
from mmft.models.modalities import Modalities
from mmft.models.prompts import PromptInputs
from mmft.types import PromptRow
from tests import zoo
from tests.engine.support import EVERY_FAMILY, lora, slow_states, stub_processor
from tests.engine.test_prompt_encoder import make_row, picture
from tests.zoo.families import MROPE, QWEN_VISION, TEXT, WIDTH
from tests.zoo.vocabulary import BOS_ID, ID

# numpy 2 warns about the processors' own `np.array(tensor)`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
IMAGE_ID, VIDEO_ID, AUDIO_ID = ID["<|image_pad|>"], ID["<|video_pad|>"], ID["<video>"]
START_ID, END_ID = ID["<|vision_start|>"], ID["<|vision_end|>"]
ONE_WORD = torch.tensor([90])


@functools.cache
def frozen(family: str) -> Backbone:
    """The family's model behind its real processor; one per process, for tests that change nothing in it."""
    return make_backbone(zoo.build_model(family), zoo.build_processor(family), trainable=())


def row_of(text: str, *images: Image.Image) -> PromptRow:
    return make_row(text, text, *images)


def rows(family: str) -> list[PromptRow]:
    """Two pictures, one, and none where the processor takes such a prompt alone; of several lengths."""
    some = [
        row_of("Compare.", picture(1), picture(2, 50, 50)),
        row_of("What is this, and what was it before?", picture(0)),
        row_of("Why?", picture(3, 48, 24)),
    ]
    none = [] if family.startswith("paligemma") else [row_of("Say anything, anything at all, at any length.")]
    return [*some[:1], *none, *some[1:]]


def assert_row_equals(batch: Modalities, row: int, alone: Modalities, atol: float = 1e-5) -> None:
    """Real tokens of one row of a batch are those of the row embedded by itself."""
    for name in alone.names:
        expected = alone.embeddings[name][0][alone.masks[name][0]]
        actual = batch.embeddings[name][row][batch.masks[name][row]]
        torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """A list that grows whenever the module is called."""
    calls: list[int] = []
    handle = module.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def layers(backbone: Backbone) -> Any:
    """The first layer of the text model; the seam lies before it."""
    return backbone.text_model.layers[0]


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_a_padded_batch_is_its_rows_one_by_one(family: str) -> None:
    backbone, prompts = frozen(family), rows(family)
    inputs = process_rows(backbone.processor, prompts)
    assert len(set(inputs.tensors["attention_mask"].sum(1).tolist())) > 2
    states = backbone.embed(inputs, ("fused", "image"))
    assert states.names == ("fused", "image")
    assert states.widths == {"fused": backbone.hidden_size, "image": backbone.hidden_size}
    assert states.present("image").tolist() == [bool(row.images) for row in prompts]
    for number, row in enumerate(prompts):
        alone = backbone.embed(process_row(backbone.processor, row), ("fused", "image"))
        assert_row_equals(states, number, alone)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_a_padded_batch_of_texts_is_its_rows_one_by_one(family: str) -> None:
    backbone = frozen(family)
    prompts = [row_of("Why?"), row_of("Say anything at all."), row_of("Go!")]
    states = embed_text(backbone, process_texts(backbone.processor, prompts))
    assert states.names == ("text",)
    for number, row in enumerate(prompts):
        inputs = process_texts(backbone.processor, [row])
        hidden, mask = states.embeddings["text"], states.masks["text"]
        assert int(mask[number].sum()) == inputs.input_ids.shape[1]
        expected = backbone.base.model(**inputs.tensors, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(hidden[number][mask[number]], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_images", [0, 1, 2])
@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_fused_is_what_predicts_the_next_token_and_image_is_what_the_text_model_sees(
    family: str, num_images: int
) -> None:
    backbone = frozen(family)
    row = zoo.build_row(family, num_images=num_images)
    states = backbone.embed(PromptInputs(row), ("image", "fused"))
    _, hidden = slow_states(backbone.base, row, ONE_WORD)
    torch.testing.assert_close(states.embeddings["fused"], hidden[None], atol=1e-5, rtol=0)
    is_image = torch.isin(row["input_ids"][0], torch.tensor(sorted(zoo.placeholder_ids(family))))
    assert states.masks["image"].sum() == is_image.sum()
    expected = backbone.encode(PromptInputs(row)).embeds[is_image]
    assert torch.equal(states.embeddings["image"][states.masks["image"]], expected)


@pytest.mark.parametrize("family", EVERY_FAMILY)
@torch.no_grad()
def test_other_pixels_change_image_and_fused_of_their_row_alone(family: str) -> None:
    backbone, prompts = frozen(family), rows(family)
    changed = [*prompts[:-1], row_of(prompts[-1].prompt, picture(9, 48, 24))]
    before, after = (
        backbone.embed(process_rows(backbone.processor, some), ("image", "fused"))
        for some in (prompts, changed)
    )
    for name in ("image", "fused"):
        moved = (before.embeddings[name] - after.embeddings[name]).abs().amax((1, 2))
        assert moved[-1] > 0.05
        assert moved[:-1].max() < 1e-5


@pytest.mark.parametrize("family", ["llava", "smolvlm", "qwen3_vl", "gemma3"])
@torch.no_grad()
def test_dropping_rows_and_changing_what_pads_them_changes_nothing(family: str) -> None:
    backbone, prompts = frozen(family), rows(family)
    whole = backbone.embed(process_rows(backbone.processor, prompts), ("fused", "image"))
    fewer = backbone.embed(process_rows(backbone.processor, prompts[1:]), ("fused", "image"))
    for number in range(len(prompts) - 1):
        assert_row_equals(whole, number + 1, fewer.take(slice(number, number + 1)))
    inputs = process_rows(backbone.processor, prompts)
    padding = inputs.tensors["attention_mask"] == 0
    other = inputs.tensors | {"input_ids": inputs.input_ids.masked_fill(padding, int(ONE_WORD))}
    again = backbone.embed(PromptInputs(other), ("fused", "image"))
    for number in range(len(prompts)):
        assert_row_equals(whole, number, again.take(slice(number, number + 1)))


@torch.no_grad()
def test_rows_without_the_modality_have_no_token_of_it() -> None:
    backbone = frozen("llava")
    prompts = [row_of("One."), row_of("Two.", picture(0))]
    states = backbone.embed(process_rows(backbone.processor, prompts), ("image",))
    assert states.masks["image"].sum(1).tolist() == [0, 16]
    assert (states.embeddings["image"][0] == 0).all()
    states = backbone.embed(process_rows(backbone.processor, prompts[:1]), ("image", "fused", "text"))
    # One token at least, so that attention has something to leave out.
    assert states.masks["image"].tolist() == [[False]]
    assert states.embeddings["image"].shape == (1, 1, backbone.hidden_size)
    last = states.masks["text"].sum() - 1
    assert torch.equal(states.embeddings["fused"][0, 0], states.embeddings["text"][0, last])


@torch.no_grad()
def test_padding_that_looks_like_a_picture_is_none() -> None:
    tokens = padded([[BOS_ID, 90, 91, 92], [BOS_ID, 90]])
    padding = tokens["attention_mask"] == 0
    inputs = PromptInputs(tokens | {"input_ids": tokens["input_ids"].masked_fill(padding, ID["<image>"])})
    states = frozen("llava").embed(inputs, ("image", "text"))
    assert not states.masks["image"].any()
    assert states.masks["text"].sum(1).tolist() == [4, 2]


@torch.no_grad()
def test_one_forward_serves_all_modalities_and_stops_where_nothing_is_left_to_do() -> None:
    backbone = frozen("llava")
    inputs = process_rows(backbone.processor, rows("llava"))
    tower, head = backbone.base.model.vision_tower, backbone.base.get_output_embeddings()
    with counted(tower) as seen, counted(layers(backbone)) as read, counted(head) as said:
        both = backbone.embed(inputs, ("image", "fused"))
        assert (len(seen), len(read), len(said)) == (1, 1, 0)
        image = backbone.embed(inputs, ("image",))
        assert (len(seen), len(read), len(said)) == (2, 1, 0)
    assert torch.equal(both.embeddings["image"], image.embeddings["image"])
    fused = backbone.embed(inputs, ("fused",))
    assert torch.equal(both.embeddings["fused"], fused.embeddings["fused"])


def test_gradients_reach_what_trains_and_only_that() -> None:
    torch.manual_seed(0)
    family = "llava"
    adapted = make_backbone(zoo.build_model(family), zoo.build_processor(family), peft_config=lora())
    states = adapted.embed(process_rows(adapted.processor, rows(family)), ("image", "fused"))
    assert not states.embeddings["image"].requires_grad
    states.embeddings["fused"].square().sum().backward()
    gradients = {n: p.grad for n, p in adapted.model.named_parameters() if p.requires_grad}
    assert gradients
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())

    projecting = make_backbone(zoo.build_model(family), zoo.build_processor(family), trainable=("projector",))
    states = projecting.embed(process_rows(projecting.processor, rows(family)), ("image",))
    states.embeddings["image"].square().sum().backward()
    assert projecting.base.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


def test_the_gradient_of_a_padded_batch_is_the_sum_over_its_rows() -> None:
    backbone = make_backbone(zoo.build_model("qwen2_vl"), zoo.build_processor("qwen2_vl"), trainable=None)
    weight = layers(backbone).self_attn.q_proj.weight

    def gradient(prompts: Sequence[PromptRow]) -> Tensor:
        weight.grad = None
        states = backbone.embed(process_rows(backbone.processor, prompts), ("fused",))
        states.embeddings["fused"].square().sum().backward()
        assert weight.grad is not None
        return weight.grad

    prompts = rows("qwen2_vl")
    total = sum((gradient([row]) for row in prompts), torch.zeros_like(weight))
    torch.testing.assert_close(gradient(prompts), total, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_adapters_are_active() -> None:
    torch.manual_seed(0)
    backbone = make_backbone(zoo.build_model("llava"), zoo.build_processor("llava"), peft_config=lora())
    inputs = process_rows(backbone.processor, rows("llava"))
    adapted = backbone.embed(inputs, ("fused",)).embeddings["fused"]
    with backbone.without_adapters():
        pretrained = backbone.embed(inputs, ("fused",)).embeddings["fused"]
    assert torch.equal(pretrained, frozen("llava").embed(inputs, ("fused",)).embeddings["fused"])
    assert (adapted - pretrained).abs().max() > 0.01


def padded(token_rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Ids and mask of rows of token ids, padded on the right."""
    ids = [torch.tensor(row) for row in token_rows]
    mask = [torch.ones_like(row) for row in ids]
    pad = torch.nn.utils.rnn.pad_sequence
    return {"input_ids": pad(ids, batch_first=True), "attention_mask": pad(mask, batch_first=True)}


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@torch.no_grad()
def test_a_video_has_an_embedding_of_its_own(family: str) -> None:
    backbone = make_backbone(zoo.build_model(family), stub_processor(), trainable=())
    # Two steps of 4 x 4 patches and one of 4 x 6, each merged 2 by 2: 8 tokens of video, 6 of the picture.
    video = [BOS_ID, 50, START_ID, *[VIDEO_ID] * 8, END_ID, 60, 61, 62]
    image = [BOS_ID, 80, START_ID, *[IMAGE_ID] * 6, END_ID, 90]
    frames = {"pixel_values_videos": torch.randn(32, 96), "video_grid_thw": torch.tensor([[2, 4, 4]])}
    pixels = {"pixel_values": torch.randn(24, 96), "image_grid_thw": torch.tensor([[1, 4, 6]])}

    def inputs(token_rows: Sequence[Sequence[int]], **features: Tensor) -> PromptInputs:
        tokens = padded(token_rows)
        ids = tokens["input_ids"]
        kinds = (ids == IMAGE_ID).long() + 2 * (ids == VIDEO_ID).long()
        return PromptInputs({**tokens, "mm_token_type_ids": kinds, **features})

    names = ("image", "video", "fused")
    states = backbone.embed(inputs([video, image, [BOS_ID, 99]], **frames, **pixels), names)
    assert states.masks["video"].sum(1).tolist() == [8, 0, 0]
    assert states.masks["image"].sum(1).tolist() == [0, 6, 0]
    assert_row_equals(states, 0, backbone.embed(inputs([video], **frames), names))
    assert_row_equals(states, 1, backbone.embed(inputs([image], **pixels), names))
    assert_row_equals(states, 2, backbone.embed(inputs([[BOS_ID, 99]]), names))
    louder = frames | {"pixel_values_videos": 2 * frames["pixel_values_videos"]}
    moved = backbone.embed(inputs([video], **louder), names)
    assert (moved.embeddings["video"][0] - states.embeddings["video"][0]).abs().max() > 0.05


def hearing() -> Backbone:
    """A tiny random model with pictures, videos and sounds."""
    audio = {
        "num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
        "d_model": 16, "max_source_positions": 64, "n_window": 4, "output_dim": WIDTH,
    }  # fmt: skip
    vision = {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 64}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=audio,
        vision_config=QWEN_VISION | vision,
        text_config=TEXT | {"rope_parameters": MROPE},
        image_token_id=IMAGE_ID,
        video_token_id=VIDEO_ID,
        audio_token_id=AUDIO_ID,
        vision_start_token_id=START_ID,
        vision_end_token_id=END_ID,
        audio_start_token_id=ID["<img>"],
        audio_end_token_id=ID["</img>"],
    )
    torch.manual_seed(0)
    model = Qwen2_5OmniThinkerForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return make_backbone(model, stub_processor(), trainable=())


@torch.no_grad()
def test_a_sound_has_an_embedding_of_its_own() -> None:
    backbone = hearing()
    assert supported_modalities(backbone) == ("text", "fused", "image", "video", "audio")
    # A convolution and a pooling, each of stride 2: 16 and 24 steps of sound become 4 and 6 tokens.
    lengths, num_tokens = (16, 24), (4, 6)
    prompts = [
        [BOS_ID, 50, ID["<img>"], *[AUDIO_ID] * count, ID["</img>"], *range(70, 78 - count)]
        for count in num_tokens
    ]
    sounds = torch.randn(2, 8, 24)
    heard = torch.arange(24) < torch.tensor(lengths)[:, None]
    features = {"input_features": sounds * heard[:, None], "feature_attention_mask": heard.long()}
    states = backbone.embed(PromptInputs({**padded(prompts), **features}), ("audio", "fused", "image"))
    assert states.masks["audio"].sum(1).tolist() == list(num_tokens)
    assert not states.masks["image"].any()
    for row, length in enumerate(lengths):
        alone = {
            "input_features": sounds[row : row + 1, :, :length],
            "feature_attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        inputs = PromptInputs({**padded(prompts[row : row + 1]), **alone})
        assert_row_equals(states, row, backbone.embed(inputs, ("audio", "fused")))


def test_a_model_says_what_it_can_embed() -> None:
    for family in EVERY_FAMILY:
        videos = ("video",) * (family.startswith("qwen") or family == "llava_onevision")
        assert supported_modalities(frozen(family)) == ("text", "fused", "image", *videos)
    of_old = SimpleNamespace(base=SimpleNamespace(config=SimpleNamespace(image_token_index=5)))
    assert supported_modalities(of_old) == ("text", "fused", "image")


def test_a_modality_that_the_model_lacks_is_named_beside_those_it_has() -> None:
    message = r"LlavaForConditionalGeneration has no modality 'audio' to embed; it has text, fused, image\. "
    with pytest.raises(UnsupportedModelError, match=message):
        frozen("llava").embed(PromptInputs(zoo.build_row("llava")), ("fused", "audio"))


def test_prompts_that_are_padded_on_the_left_are_refused() -> None:
    row = zoo.build_row("llava", num_images=0)
    for spoilt in (0, 3, slice(None)):
        mask = row["attention_mask"].clone()
        mask[0, spoilt] = 0
        with pytest.raises(ValueError, match=r"`inputs` must be padded on the right .*process_rows"):
            frozen("llava").embed(PromptInputs(row | {"attention_mask": mask}), ("fused",))


@torch.no_grad()
def test_without_a_mask_every_token_is_real() -> None:
    row = zoo.build_row("llava", num_images=0)
    masked, bare = (
        frozen("llava").embed(PromptInputs(inputs), ("fused", "text"))
        for inputs in (row, {"input_ids": row["input_ids"]})
    )
    assert torch.equal(masked.embeddings["fused"], bare.embeddings["fused"])
    assert bare.masks["text"].all()


def test_text_of_prompts_with_pictures_is_refused() -> None:
    backbone = frozen("llava")
    prompts = [row_of("One."), row_of("Two.", picture(0))]
    inputs = process_rows(backbone.processor, prompts)
    with pytest.raises(
        ValueError, match=r"but row 1 of `inputs` has placeholder tokens\. Render the prompts"
    ):
        embed_text(backbone, inputs)


def test_prompt_learning_adapters_are_refused_where_they_would_go_unseen() -> None:
    torch.manual_seed(0)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    backbone = make_backbone(zoo.build_model("llava"), stub_processor(), peft_config=config)
    row = zoo.build_row("llava")
    with pytest.raises(UnsupportedModelError, match="prompt-learning adapters add virtual tokens"):
        backbone.embed(PromptInputs(row), ("fused",))
    assert backbone.embed(PromptInputs(row), ("image",)).masks["image"].all()


def test_a_model_that_hides_its_seam_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone(zoo.build_model("llava"), stub_processor(), trainable=())

    def forward(input_ids: Tensor, **_: Any) -> Any:
        return backbone.text_model(input_ids=input_ids, use_cache=False)

    monkeypatch.setattr(backbone.base, "forward", forward)
    inputs = PromptInputs(zoo.build_row("llava", num_images=0))
    with pytest.raises(UnsupportedModelError, match="did not pass `inputs_embeds` to LlamaModel"):
        backbone.embed(inputs, ("fused",))
