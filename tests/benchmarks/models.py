"""The models and rows of the benchmark: random weights in the shapes of LLaVA and SmolVLM, 40M parameters.

Speed does not depend on what the weights hold. The vocabulary is made of numbered words, so that completions
are texts of words and the reward does its real work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)
from transformers.video_processing_utils import BaseVideoProcessor

from tests.zoo.processors import chat_template, no_video_stack

VOCAB_SIZE = 32_000
SPECIAL = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
]
WORDS = ["user", "assistant", ":", "describe", "the", "picture", "in", "one", "sentence"]
SHAPES = ("llava", "smolvlm")
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = SPECIAL + WORDS
    words += [f"w{number}" for number in range(VOCAB_SIZE - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"},
    )


def build(shape: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in fp32 with seeded random weights, and its processor."""
    torch.manual_seed(0)
    model, processor = {"llava": _llava, "smolvlm": _smolvlm}[shape]()
    return model.eval(), processor


def _llava() -> tuple[PreTrainedModel, ProcessorMixin]:
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=224,
        patch_size=16,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT, num_key_value_heads=8, tie_word_embeddings=True),
        image_token_index=4,
        image_seq_length=196,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor = LlavaProcessor(
        images,
        build_tokenizer(),
        patch_size=16,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=chat_template("<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


def _smolvlm() -> tuple[PreTrainedModel, ProcessorMixin]:
    vision = {
        "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
        "image_size": 448, "patch_size": 16,
    }  # fmt: skip
    config = SmolVLMConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT, num_key_value_heads=4),
        image_token_id=4,
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 448}, max_image_size={"longest_edge": 448}, do_image_splitting=False
    )
    with no_video_stack():
        processor = SmolVLMProcessor(
            images,
            build_tokenizer(),
            BaseVideoProcessor(num_frames=1, fps=1),
            image_seq_len=196,
            chat_template=chat_template("<image>"),
        )
    return SmolVLMForConditionalGeneration(config), processor


def build_rows(count: int) -> list[dict[str, Any]]:
    """Rows with a picture of noise, a short instruction, and five references of 20 words."""
    rng = np.random.default_rng(0)
    message = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "describe the picture in one sentence"}],
        }
    ]
    return [
        {
            "prompt": message,
            "image": Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)),
            "references": [" ".join(f"w{n}" for n in rng.integers(0, 20_000, 20)) for _ in range(5)],
        }
        for _ in range(count)
    ]
