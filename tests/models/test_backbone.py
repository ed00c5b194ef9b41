"""Loading models, refusing those the engine cannot drive, and the plain path of those that share none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    Lfm2Config,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    PreTrainedModel,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

from mmft.engine.actor_critic import VLMActorCritic
from mmft.engine.sampling import SamplingParams, sample_noise
from mmft.engine.scoring import extend_inputs
from mmft.errors import UnsupportedModelError
from mmft.models.backbone import load_backbone, make_backbone
from mmft.models.prompts import PromptInputs
from tests import zoo
from tests.engine.support import (
    assert_same_scores,
    lora,
    make_actor_critic,
    perturb_critic,
    ragged_case,
    slow_scores,
    stub_processor,
)
from tests.zoo.families import MROPE, QWEN_TOKENS, QWEN_VISION, TEXT, VISION, WIDTH
from tests.zoo.vocabulary import EOS_ID, ID, PAD_ID

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURE = {"image_size": 16, "patch_size": 8}


def florence2() -> PreTrainedModel:
    bart = {
        "model_type": "bart",
        "vocab_size": 64,
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
    }
    for side in ("encoder", "decoder"):
        bart |= {f"{side}_layers": 1, f"{side}_attention_heads": 2}
    vision = {"embed_dim": [8, 8, 8, 16], "depths": [1] * 4, "num_heads": [1] * 4, "num_groups": [1] * 4}
    return Florence2ForConditionalGeneration(
        Florence2Config(text_config=bart, vision_config=vision | {"projection_dim": 16})
    )


def blip2() -> PreTrainedModel:
    opt = {"model_type": "opt", "vocab_size": 64, "ffn_dim": 16, "word_embed_proj_dim": 16}
    return Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=SMALL | PICTURE,
            qformer_config=SMALL | {"encoder_hidden_size": 16, "vocab_size": 64},
            text_config=SMALL | opt,
            num_query_tokens=4,
        )
    )


def qwen3_5() -> PreTrainedModel:
    """Linear attention in every other layer."""
    text = TEXT | {
        "num_hidden_layers": 4,
        "head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"] * 2,
    }
    text |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    text |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    vision = {
        "hidden_size": WIDTH,
        "out_hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_position_embeddings": 16,
    }
    rope = MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 1.0}
    config = Qwen3_5Config(
        text_config=text | {"rope_parameters": rope}, vision_config=QWEN_VISION | vision, **QWEN_TOKENS
    )
    return Qwen3_5ForConditionalGeneration(config).eval()


def lfm2_vl() -> PreTrainedModel:
    """Convolutions in every other layer."""
    text = Lfm2Config(**TEXT, layer_types=["conv", "full_attention"], block_ff_dim=64)
    vision = VISION | {"model_type": "siglip2_vision_model", "num_patches": 16, "patch_size": 8}
    config = Lfm2VlConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ID["<image>"],
        downsample_factor=2,
        projector_hidden_size=WIDTH,
    )
    return Lfm2VlForConditionalGeneration(config).eval()


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@torch.no_grad()
def test_a_folder_loads_with_its_processor_and_scores_as_before(family: str, tmp_path: Path) -> None:
    zoo.build_model(family).save_pretrained(tmp_path)
    zoo.build_processor(family).save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), trainable=("vision",), attn_implementation="eager")
    assert type(backbone.processor) is type(zoo.build_processor(family))
    assert backbone.attn_implementation == "eager"
    assert backbone.end_ids == {EOS_ID}
    assert backbone.pad_id == PAD_ID
    assert not backbone.caches_encodings
    row, ids = zoo.build_row(family), torch.tensor([60, 70])
    expected = zoo.plain_logits(zoo.build_model(family), row, ids)
    torch.testing.assert_close(zoo.plain_logits(backbone.base.eval(), row, ids), expected, atol=1e-5, rtol=0)


def test_dtype_adapters_and_processor_are_settings_of_loading(tmp_path: Path) -> None:
    zoo.build_model("llava").to(torch.bfloat16).save_pretrained(tmp_path)
    processor = stub_processor()
    kept = load_backbone(str(tmp_path), processor=processor, peft_config=lora())
    assert kept.dtype == torch.bfloat16
    assert kept.processor is processor
    assert kept.has_adapters
    assert load_backbone(str(tmp_path), processor=processor, dtype=torch.float32).dtype == torch.float32


def test_a_text_model_is_no_vision_language_model(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(tmp_path)
    zoo.build_processor("llava").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=f"`model_name_or_path={tmp_path}` is not an image-text-to-text"
    ):
        load_backbone(str(tmp_path))


def test_other_failures_of_loading_are_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        load_backbone(str(tmp_path / "nowhere"), processor=stub_processor())


def test_a_processor_that_lacks_a_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ImportError("\nVideoThing requires the Torchvision library\n")

    monkeypatch.setattr("mmft.models.backbone.AutoProcessor.from_pretrained", refuse)
    with pytest.raises(UnsupportedModelError, match=r"VideoThing requires the Torchvision .*`processor=`"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(
    "build",
    [
        florence2,
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1)
        ),
    ],
    ids=["florence2", "t5"],
)
def test_encoder_decoder_models_are_refused(build: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="is an encoder-decoder model; mmft drives decoder-only"):
        make_backbone(build(), stub_processor())


def test_an_encoder_decoder_folder_is_refused(tmp_path: Path) -> None:
    florence2().save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match="Florence2ForConditionalGeneration is an encoder-decoder model"
    ):
        load_backbone(str(tmp_path), processor=stub_processor(), peft_config=lora())


def test_a_text_model_that_keeps_its_head_is_an_unknown_seam() -> None:
    with pytest.raises(
        UnsupportedModelError, match="No text model found in Blip2ForConditionalGeneration: looked for"
    ):
        make_backbone(blip2(), stub_processor())


def test_a_model_that_merges_pictures_inside_its_decoder_has_no_seam() -> None:
    model = GitForCausalLM(GitConfig(vision_config=SMALL | PICTURE, vocab_size=64, **SMALL))
    backbone = make_backbone(model, stub_processor())
    inputs = {"input_ids": torch.tensor([[3, 4, 5]]), "pixel_values": torch.zeros(1, 3, 16, 16)}
    with pytest.raises(UnsupportedModelError, match=r"its seam is unknown to mmft|only keyword arguments"):
        backbone.encode(PromptInputs(inputs))


def test_a_text_model_without_a_vision_model_around_it_has_no_parts_to_look_for() -> None:
    with pytest.raises(UnsupportedModelError, match="No text model found in Linear"):
        make_backbone(torch.nn.Linear(2, 2), stub_processor())


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
def test_attention_without_masks_takes_the_plain_path(implementation: str) -> None:
    backbone = make_actor_critic("llava").backbone
    assert backbone.why_not_packed() is None
    backbone.text_model.config._attn_implementation = implementation
    reason = backbone.why_not_packed()
    assert reason == f"attn_implementation='{implementation}' takes no 4-D mask; use 'sdpa'"
    assert not VLMActorCritic(backbone, reference=False).packed


@pytest.mark.parametrize(("build", "kind"), [(qwen3_5, "linear_attention"), (lfm2_vl, "conv")])
def test_layers_with_a_state_take_the_plain_path(build: Any, kind: str) -> None:
    backbone = make_backbone(build(), stub_processor())
    assert backbone.why_not_packed() == f"layers of kind ['{kind}'] carry state that branches cannot share"


def hybrid_inputs(model: PreTrainedModel, seed: int) -> PromptInputs:
    if model.config.model_type == "qwen3_5":
        return PromptInputs(zoo.build_row("qwen3_vl", seed=seed, num_images=1 + seed % 2))
    ids = torch.tensor([[1, *[ID["<image>"]] * 4, *range(60 + seed, 66 + 2 * seed)]])
    return PromptInputs({
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(1, 16, 3 * 8 * 8, generator=torch.Generator().manual_seed(seed)),
        "spatial_shapes": torch.tensor([[4, 4]]),
        "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long),
    })  # fmt: skip


@pytest.mark.parametrize("build", [qwen3_5, lfm2_vl])
def test_models_with_a_state_run_end_to_end(build: Any) -> None:
    model = build()
    actor_critic = VLMActorCritic(make_backbone(model, stub_processor()), reference=False)
    perturb_critic(actor_critic)
    prompts = [hybrid_inputs(model, seed) for seed in range(2)]
    params = SamplingParams(num_generations=2, max_completion_length=4)
    samples = actor_critic.sample(prompts, params, sample_noise(0, 0, range(4), 4))
    assert samples.completions.ids.shape[0] == 4
    scores = actor_critic(prompts, samples.completions)
    torch.testing.assert_close(scores.logps, samples.logps, atol=1e-5, rtol=0)

    ids = samples.completions.ids[0][samples.completions.mask[0]]
    logits = model(**extend_inputs(actor_critic.backbone, prompts[0], ids)).logits[0, -len(ids) - 1 : -1]
    logits[:, sorted(actor_critic.backbone.forbidden_ids)] = -torch.inf
    expected = logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(scores.logps[0, : len(ids)], expected, atol=1e-5, rtol=0)
    (scores.logps.sum() + scores.values.sum()).backward()
    assert all(p.grad is not None for p in model.get_decoder().parameters())


@pytest.mark.filterwarnings(
    "ignore:Position ids are not supported for parameter efficient tuning:UserWarning"
)
@pytest.mark.parametrize("config_class", [PromptTuningConfig, PrefixTuningConfig])
def test_prompt_learning_takes_the_plain_path_and_runs(config_class: Any) -> None:
    config = config_class(task_type="CAUSAL_LM", num_virtual_tokens=3)
    actor_critic, case = make_actor_critic("llava", peft_config=config), ragged_case("llava")
    assert (
        actor_critic.backbone.why_not_packed()
        == "prompt-learning adapters add virtual tokens inside the model"
    )
    assert not actor_critic.packed
    params = SamplingParams(num_generations=2, max_completion_length=4)
    samples = actor_critic.sample(case.prompts, params, sample_noise(0, 0, range(6), 4))
    scores = actor_critic(case.prompts, samples.completions)
    torch.testing.assert_close(scores.logps, samples.logps, atol=1e-5, rtol=0)
    scores.logps.sum().backward()
    trained = [p for n, p in actor_critic.named_parameters() if p.requires_grad and "value_head" not in n]
    assert trained
    assert all(p.grad.any() for p in trained)
    # The reference is the model without its virtual tokens.
    base = make_actor_critic("llava")
    with torch.no_grad():
        expected = base(case.encodings(base.backbone), samples.completions).logps
    reference = actor_critic.reference_logps(case.prompts, samples.completions)
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=0)
    assert (reference - scores.logps).abs().max() > 1e-2


def test_a_ready_peft_model_is_taken_as_it_is() -> None:
    adapted = make_actor_critic("llava", peft_config=lora()).backbone.model
    assert isinstance(adapted, PeftModel)
    backbone = make_backbone(adapted, stub_processor())
    assert backbone.model is adapted
    assert backbone.base is adapted.get_base_model()
    assert all("lora_" in name for name, p in backbone.named_parameters() if p.requires_grad)
    with (
        pytest.raises(UnsupportedModelError, match="no adapters to switch off"),
        make_actor_critic("llava").backbone.without_adapters(),
    ):
        pass


def mistral_llava(window: int | None) -> PreTrainedModel:
    """Windows everywhere, and no list of layer types to say so."""
    base = zoo.build_model("llava")
    text = MistralConfig(**TEXT, sliding_window=window)
    config = LlavaConfig(
        vision_config=base.config.vision_config, text_config=text, image_token_index=ID["<image>"],
        image_seq_length=16, vision_feature_layer=-2, vision_feature_select_strategy="default",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.load_state_dict(base.state_dict())
    return model


@torch.no_grad()
def test_windows_in_every_layer_are_honoured_without_layer_types() -> None:
    case = ragged_case("llava")
    windowed, free = make_actor_critic(mistral_llava(5)), make_actor_critic(mistral_llava(None))
    assert windowed.backbone.attention_kinds == ("sliding_attention",)
    assert free.backbone.attention_kinds == ("full_attention",)
    scores = windowed(case.encodings(windowed.backbone), case.completions)
    assert_same_scores(scores, slow_scores(windowed, case))
    assert_same_scores(free(case.encodings(free.backbone), case.completions), slow_scores(free, case))
    assert (slow_scores(free, case).logps - scores.logps).abs().max() > 1e-2


def test_a_window_that_is_switched_off_is_none() -> None:
    backbone = make_actor_critic("internvl").backbone
    backbone.text_config.sliding_window = 4
    backbone.text_config.use_sliding_window = False
    assert backbone.sliding_window is None
    backbone.text_config.use_sliding_window = True
    assert backbone.sliding_window == 4


def test_lora_on_the_head_is_scored_with_its_adapter() -> None:
    config = LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    actor_critic, case = make_actor_critic("llava", peft_config=config), ragged_case("llava")
    assert actor_critic.backbone.head.weight is None
    actual = actor_critic(case.encodings(actor_critic.backbone), case.completions)
    actual.logps.sum().backward()
    assert all(p.grad.any() for p in actor_critic.backbone.parameters() if p.requires_grad)
    with torch.no_grad():
        base = make_actor_critic("llava")
        assert (base(case.encodings(base.backbone), case.completions).logps - actual.logps).abs().max() > 1e-2
