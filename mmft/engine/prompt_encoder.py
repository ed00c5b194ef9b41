"""From rows to the seam: chat template, processor, vision path; each distinct prompt once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from mmft.engine.feature_cache import FeatureCache
from mmft.errors import DataError
from mmft.models.backbone import Backbone
from mmft.models.prompts import PromptEncoding, PromptInputs
from mmft.types import PromptRow


def render_prompt(processor: Any, row: PromptRow) -> str:
    """The row's prompt as text, placeholders included; without a chat template, images first, then text."""
    if getattr(processor, "chat_template", None):
        return str(processor.apply_chat_template(row.messages, add_generation_prompt=True, tokenize=False))
    blocks = [block for message in row.messages for block in _blocks(message)]
    text = "\n".join(block["text"] for block in blocks if block.get("type") == "text")
    image_token = getattr(processor, "image_token", None)
    return f"{image_token * len(row.images)}\n{text}" if isinstance(image_token, str) and row.images else text


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def process_row(processor: Any, row: PromptRow) -> PromptInputs:
    """Runs the processor on one prompt.

    Raises:
        DataError: the processor refuses the row; the message names it.
    """
    try:
        text = render_prompt(processor, row)
    except Exception as error:
        name = type(processor).__name__
        raise DataError(f"row {row.key}: the chat template of {name} refused the prompt: {error}") from error
    tokenizer = getattr(processor, "tokenizer", processor)
    options: dict[str, Any] = {"return_tensors": "pt"}
    bos = getattr(tokenizer, "bos_token", None)
    if bos and text.startswith(bos):
        options["add_special_tokens"] = False  # the template wrote it already
    try:
        features = processor(text=[text], images=[row.images] if row.images else None, **options)
    except Exception as error:
        raise DataError(
            f"row {row.key}: the processor {type(processor).__name__} refused the prompt: "
            f"{str(error).rstrip('.')}. The rendered prompt begins with {text[:80]!r} "
            f"and has {len(row.images)} image(s)."
        ) from error
    features.pop("labels", None)  # PaliGemma's processor always makes them
    return PromptInputs(dict(features))


class PromptEncoder:
    """Encodes rows behind the seam, through a feature cache while the vision path is frozen.

    Attributes:
        shares: whether a prompt that was seen before is taken from the cache or the batch. With sharded
            weights encoding is collective, and every process must encode as many prompts as the others.
    """

    def __init__(self, backbone: Backbone, cache_bytes: int, *, shares: bool = True) -> None:
        self.backbone = backbone
        self.shares = shares
        self.cache: FeatureCache[PromptEncoding] = FeatureCache(
            cache_bytes if backbone.caches_encodings else 0
        )

    def inputs(self, row: PromptRow) -> PromptInputs:
        """The processor's inputs, for the plain path and for in-graph encoding."""
        return process_row(self.backbone.processor, row)

    def encode(self, rows: Sequence[PromptRow]) -> list[PromptEncoding]:
        """Encodings of the rows; where prompts are shared, one that was seen before is not encoded again."""
        if not self.shares:
            return [self.backbone.encode(self.inputs(row)) for row in rows]
        # Kept beside the cache, which may be too small for the batch, or off.
        batch: dict[Hashable, PromptEncoding] = {}
        for row in rows:
            if row.key in batch:
                continue
            encoding = self.cache.get(row.key)
            if encoding is None:
                encoding = self.backbone.encode(self.inputs(row))
                self.cache.put(row.key, encoding)
            batch[row.key] = encoding
        return [batch[row.key] for row in rows]
