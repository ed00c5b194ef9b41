"""Token ids with a meaning: where a completion ends, and what a policy must never say."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

PLACEHOLDER_NAME = re.compile(r"^(image|img|video|audio|vision|boi|eoi|boa|eoa|fake_image).*_(id|ids|index)$")
PROCESSOR_TOKENS = (
    "image_token", "video_token", "audio_token", "fake_image_token", "global_image_token", "boi_token",
    "eoi_token", "start_image_token", "end_image_token",
)  # fmt: skip


def _as_ids(value: Any) -> set[int]:
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, int):
        return {value}
    if isinstance(value, str) or not isinstance(value, Iterable):
        return set()
    return {v for v in value if isinstance(v, int)}


def end_token_ids(model: Any, processor: Any) -> frozenset[int]:
    """Every id that ends a completion: the generation config's set, the text config's and the tokenizer's."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = _as_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None))
    ids |= _as_ids(getattr(model.config.get_text_config(decoder=True), "eos_token_id", None))
    ids |= _as_ids(getattr(tokenizer, "eos_token_id", None))
    return frozenset(ids)


def pad_token_id(processor: Any, end_ids: frozenset[int]) -> int:
    tokenizer = getattr(processor, "tokenizer", processor)
    pad = getattr(tokenizer, "pad_token_id", None)
    return pad if pad is not None else min(end_ids, default=0)


def placeholder_token_ids(model: Any, processor: Any) -> frozenset[int]:
    """Ids that stand for pictures, videos or sounds.

    A sampled one would have no features to stand for: the classic cause of "image features and image tokens
    do not match" in the next forward."""
    ids: set[int] = set()
    for config in (model.config, model.config.get_text_config(decoder=True)):
        for name, value in vars(config).items():
            if PLACEHOLDER_NAME.match(name) and "token" in name:
                ids |= _as_ids(value)
    tokenizer = getattr(processor, "tokenizer", processor)
    for name in PROCESSOR_TOKENS:
        token = getattr(processor, name, None)
        if isinstance(token, str):
            ids |= _as_ids(tokenizer.convert_tokens_to_ids(token))
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    return frozenset(i for i in ids if 0 <= i < vocab_size)
