"""Tiny random CLIP, SigLIP and SigLIP 2 with real processors built from their classes, and noise pictures."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Siglip2Config,
    Siglip2ImageProcessorPil,
    Siglip2Model,
    Siglip2Processor,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipProcessor,
)

from rewards import ClipScore

FAMILIES = ("clip", "siglip", "siglip2")
POSITIONS = 48
# Not 2 for </s>: CLIP takes that for the first checkpoints' mistaken config and pools at the largest id.
SPECIAL = {"<pad>": 0, "<s>": 1, "<unk>": 2, "</s>": 3}
_SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def build_tokenizer(*, begin: str) -> PreTrainedTokenizerFast:
    """Byte-level, ends every text with </s> as CLIP's and SigLIP's do."""
    vocabulary = SPECIAL | {f"<0x{byte:02X}>": len(SPECIAL) + byte for byte in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A </s>".strip(), special_tokens=[("<s>", 1), ("</s>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"] if begin else ["input_ids"],
    )


def build_contrastive(family: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A random model in evaluation mode and a processor whose outputs run through it."""
    text = {
        **_SHAPE,
        "vocab_size": len(SPECIAL) + 256,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 3,
    }
    vision = {**_SHAPE, "image_size": 16, "patch_size": 4}
    torch.manual_seed(0)
    size = {"height": 16, "width": 16}
    if family == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
        images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
        processor = CLIPProcessor(images, build_tokenizer(begin="<s>"))
    elif family == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        processor = SiglipProcessor(SiglipImageProcessorPil(size=size), build_tokenizer(begin=""))
    else:
        patches = {**_SHAPE, "num_patches": 16, "patch_size": 4}
        model = Siglip2Model(Siglip2Config(text_config=text, vision_config=patches))
        images = Siglip2ImageProcessorPil(patch_size=4, max_num_patches=16)
        processor = Siglip2Processor(images, build_tokenizer(begin=""))
    return spread(model).eval(), processor


def spread(model: PreTrainedModel) -> PreTrainedModel:
    """Larger random weights: as initialised, a tiny model maps every picture to nearly one direction."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.3 if "embedding" in name else 0.2)
    return model


def noise_picture(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of random pixels, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), "RGB")


CAPTIONS = ["a red dog", "x", "two cats sit on a mat", "hello there"]
PICTURES = [noise_picture(seed) for seed in range(4)]


def scorer(family: str = "clip", **settings: Any) -> ClipScore:
    """A scorer over a fresh tiny model."""
    model, processor = build_contrastive(family)
    return ClipScore(model, processor, **settings)


def cosines_of(score: ClipScore, captions: list[str] | None = None, pictures: Any = None) -> list[float]:
    return score.parts(pictures or PICTURES, captions or CAPTIONS)["cosine"]


def logged_call(score: ClipScore, **columns: Any) -> tuple[list[float | None], dict[str, Any]]:
    log: dict[str, Any] = {}
    values = score(prompts=None, log_extra=log.__setitem__, log_metric=log.__setitem__, **columns)
    return values, log
