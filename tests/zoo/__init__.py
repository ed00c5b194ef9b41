"""Tiny random vision-language models, rows that they accept, and their plain forward as ground truth.

Nothing here touches the network, and equal seeds give equal tensors. The weights are drawn wider than for
training: a freshly initialised model is close to uniform over tokens and nearly blind, and would hide bugs.
A row is what the family's real processor returns for one prompt; `build_processor` builds that processor too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.zoo.families import BUILDERS
from tests.zoo.processors import build_processor
from tests.zoo.rows import TOKEN_TYPES, Row, make_row

__all__ = [
    "EXTRA_FAMILIES",
    "FAMILIES",
    "Row",
    "append_completion",
    "build_model",
    "build_processor",
    "build_row",
    "perturb_pixels",
    "placeholder_ids",
    "plain_logits",
]

EXTRA_FAMILIES: tuple[str, ...] = ("paligemma2",)
"""Variants with traits that no family has: a prefix-LM with windows, soft caps on attention and on logits."""
FAMILIES: tuple[str, ...] = tuple(family for family in BUILDERS if family not in EXTRA_FAMILIES)
GAIN = 1.5


def build_model(family: str, seed: int = 0) -> PreTrainedModel:
    """Build the family's model in fp32 and eval mode, with loud random weights."""
    make_config, model_class = BUILDERS[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(make_config())
    _draw_weights(model, torch.Generator().manual_seed(seed))
    return model.eval()


@torch.no_grad()
def _draw_weights(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Matrices ~ N(0, GAIN^2 / fan_in); vectors (norms, biases, scales) are moved by N(0, 0.1^2)."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2:
            parameter.add_(0.1 * noise)
            continue
        # Convolutions have 4 or 5 axes and sum over all but the first; embeddings and tables are read by row.
        fan_in = parameter[0].numel() if parameter.ndim > 3 else parameter.shape[-1]
        parameter.copy_(noise * GAIN / fan_in**0.5)


def placeholder_ids(family: str) -> set[int]:
    """Token ids that stand for image or video features and must never be sampled."""
    config = BUILDERS[family][0]()
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return {token for token in ids if token is not None}


def build_row(family: str, seed: int = 0, num_images: int = 1, text_length: int = 9) -> Row:
    """Build the keyword arguments of one prompt, batch size 1, with 0, 1 or 2 images."""
    return make_row(family, placeholder_ids(family), num_images, text_length, seed)


def perturb_pixels(row: Row, seed: int) -> Row:
    """Return the row with other pixel values and everything else shared."""
    pixels = row["pixel_values"]
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    return row | {"pixel_values": pixels + noise}


def append_completion(family: str, row: Row, completion_ids: Tensor) -> Row:
    """Extend the per-token inputs of a row by a completion of shape (R,)."""
    tail = completion_ids.view(1, -1)
    longer = row | {
        "input_ids": torch.cat([row["input_ids"], tail], dim=1),
        "attention_mask": torch.cat([row["attention_mask"], torch.ones_like(tail)], dim=1),
    }
    if family in TOKEN_TYPES:
        name, value = TOKEN_TYPES[family]
        longer[name] = torch.cat([row[name], torch.full_like(tail, value)], dim=1)
    return longer


def plain_logits(model: PreTrainedModel, row: Row, completion_ids: Tensor) -> Tensor:
    """Logits (R, V) that predict each completion token, from one forward of the model on prompt + completion.

    Gradients flow; this is the slow, repeated computation that every faster path must equal.
    """
    longer = append_completion(model.config.model_type, row, completion_ids)
    prompt_length = row["input_ids"].shape[1]
    logits = model(**longer, use_cache=False).logits
    return logits[0, prompt_length - 1 : prompt_length - 1 + completion_ids.numel()]
