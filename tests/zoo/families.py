"""The config and the model class of each family: a few thousand fp32 weights, no dropout, no network.

Sizes are chosen so that each family keeps what makes it hard: windows smaller than the prompt, blocks of
image tokens larger than the window, deepstack features, 3-axis positions, several tiles per image.
"""

from __future__ import annotations

from collections.abc import Callable

from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from tests.zoo.vocabulary import ID, SPECIAL_TEXT_IDS, VOCAB_SIZE

WIDTH = 32
TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "attention_dropout": 0.0,
    **SPECIAL_TEXT_IDS,
}
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "attention_dropout": 0.0,
}
# The Qwen towers take flattened patches of any grid: 4-pixel patches, merged 2 by 2.
QWEN_VISION = {"depth": 2, "num_heads": 4, "patch_size": 4, "temporal_patch_size": 2, "spatial_merge_size": 2}
# Half of head_dim = 8 is split over the temporal, height and width axes.
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}
QWEN_TOKENS = {
    "image_token_id": ID["<|image_pad|>"],
    "video_token_id": ID["<|video_pad|>"],
    "vision_start_token_id": ID["<|vision_start|>"],
    "vision_end_token_id": ID["<|vision_end|>"],
}


def _llava() -> LlavaConfig:
    vision = CLIPVisionConfig(**(VISION | {"num_hidden_layers": 3}), image_size=32, patch_size=8)
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT),
        image_token_index=ID["<image>"],
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def _llava_onevision() -> LlavaOnevisionConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=16, patch_size=8, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=ID["<image>"],
        video_token_index=ID["<video>"],
        image_grid_pinpoints=[[16, 16], [16, 32], [32, 16], [32, 32]],
    )


def _smolvlm() -> SmolVLMConfig:
    return SmolVLMConfig(
        vision_config=VISION | {"image_size": 32, "patch_size": 8},
        text_config=LlamaConfig(**TEXT),
        image_token_id=ID["<image>"],
        scale_factor=2,
    )


def _idefics3() -> Idefics3Config:
    return Idefics3Config(
        vision_config=VISION | {"image_size": 32, "patch_size": 8},
        text_config=LlamaConfig(**TEXT),
        image_token_id=ID["<image>"],
        scale_factor=2,
    )


def _qwen2_vl() -> Qwen2VLConfig:
    return Qwen2VLConfig(
        vision_config=QWEN_VISION | {"embed_dim": WIDTH, "hidden_size": WIDTH, "mlp_ratio": 2},
        text_config=TEXT | {"rope_parameters": MROPE},
        **QWEN_TOKENS,
    )


def _qwen2_5_vl() -> Qwen2_5_VLConfig:
    # Windows of 2x2 merged patches with one full-attention block, as in the released models.
    vision = {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 64}
    vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
    return Qwen2_5_VLConfig(
        vision_config=QWEN_VISION | vision, text_config=TEXT | {"rope_parameters": MROPE}, **QWEN_TOKENS
    )


def _qwen3_vl() -> Qwen3VLConfig:
    vision = {"hidden_size": WIDTH, "out_hidden_size": WIDTH, "intermediate_size": 64, "depth": 3}
    vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
    text = TEXT | {"num_hidden_layers": 4, "head_dim": 8}
    return Qwen3VLConfig(
        vision_config=QWEN_VISION | vision,
        text_config=text | {"rope_parameters": MROPE | {"mrope_interleaved": True}},
        **QWEN_TOKENS,
    )


def _gemma3() -> Gemma3Config:
    text = Gemma3TextConfig(
        **(TEXT | {"num_hidden_layers": 4}),
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )
    return Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, image_size=24, patch_size=4, vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=9,
        boi_token_index=ID["<start_of_image>"],
        eoi_token_index=ID["<end_of_image>"],
        image_token_index=ID["<image_soft_token>"],
    )


def _paligemma() -> PaliGemmaConfig:
    return PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=24, patch_size=8, vision_use_head=False),
        text_config=GemmaConfig(**TEXT, head_dim=8),
        image_token_index=ID["<image>"],
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )


def _paligemma2() -> PaliGemmaConfig:
    # A prefix-LM with windows, and with both soft caps low enough to bite.
    text = Gemma2Config(
        **TEXT,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention"],
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    )
    return PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=24, patch_size=8, vision_use_head=False),
        text_config=text,
        image_token_index=ID["<image>"],
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )


def _internvl() -> InternVLConfig:
    return InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION, image_size=16, patch_size=4),
        text_config=Qwen2Config(**TEXT),
        image_token_id=ID["<IMG_CONTEXT>"],
        image_seq_length=4,
        downsample_ratio=0.5,
    )


BUILDERS: dict[str, tuple[Callable[[], PreTrainedConfig], type[PreTrainedModel]]] = {
    "llava": (_llava, LlavaForConditionalGeneration),
    "llava_onevision": (_llava_onevision, LlavaOnevisionForConditionalGeneration),
    "smolvlm": (_smolvlm, SmolVLMForConditionalGeneration),
    "idefics3": (_idefics3, Idefics3ForConditionalGeneration),
    "qwen2_vl": (_qwen2_vl, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (_qwen2_5_vl, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (_qwen3_vl, Qwen3VLForConditionalGeneration),
    "gemma3": (_gemma3, Gemma3ForConditionalGeneration),
    "paligemma": (_paligemma, PaliGemmaForConditionalGeneration),
    "internvl": (_internvl, InternVLForConditionalGeneration),
    "paligemma2": (_paligemma2, PaliGemmaForConditionalGeneration),
}
