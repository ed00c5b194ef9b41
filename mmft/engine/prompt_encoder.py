"""From rows to the seam: chat template, processor, vision path; each distinct prompt once."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmft.engine.feature_cache import FeatureCache
from mmft.errors import DataError
from mmft.models.backbone import Backbone
from mmft.models.prompts import PromptEncoding, PromptInputs
from mmft.types import PromptRow

if TYPE_CHECKING:
    from PIL.Image import Image


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
    text = _rendered(processor, row)
    try:
        return _call(processor, [text], images=_nested_images([row]))
    except Exception as error:
        raise DataError(
            f"row {row.key}: the processor {type(processor).__name__} refused the prompt: "
            f"{str(error).rstrip('.')}. The rendered prompt begins with {text[:80]!r} "
            f"and has {len(row.images)} image(s)."
        ) from error


def process_rows(processor: Any, rows: Sequence[PromptRow]) -> PromptInputs:
    """Runs the processor on several prompts at once; they may differ in length and in number of pictures.

    Padded on the right: there every token keeps its position, and the tokens of a causal model see none of
    the padding.

    Raises:
        DataError: the processor refuses a row, or the rows together; the message names them.
    """
    texts = [_rendered(processor, row) for row in rows]
    try:
        with _right_padding(processor) as options:
            return _call(processor, texts, images=_nested_images(rows), **options)
    except Exception as error:
        for row in rows:
            process_row(processor, row)  # names the row, if one is at fault
        raise _refused_together(processor, rows, error) from error


def process_texts(processor: Any, rows: Sequence[PromptRow]) -> PromptInputs:
    """The same for prompts without pictures, by the tokenizer alone: some processors insist on a picture.

    Raises:
        DataError: the chat template refuses a row, or the tokenizer the rows; the message names them.
    """
    texts = [_rendered(processor, row) for row in rows]
    # Without them PaliGemma attends one way in a padded batch and another way alone.
    wants_types = "token_type_ids" in getattr(processor, "model_input_names", ())
    try:
        with _right_padding(processor) as options:
            return _call(_tokenizer(processor), texts, return_token_type_ids=wants_types, **options)
    except Exception as error:
        raise _refused_together(processor, rows, error) from error


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _rendered(processor: Any, row: PromptRow) -> str:
    try:
        return render_prompt(processor, row)
    except Exception as error:
        name = type(processor).__name__
        raise DataError(f"row {row.key}: the chat template of {name} refused the prompt: {error}") from error


def _nested_images(rows: Sequence[PromptRow]) -> list[list[Image]] | None:
    """The pictures of each row, also of rows that have none; None where no row has any."""
    return [list(row.images) for row in rows] if any(row.images for row in rows) else None


def _call(processor: Any, texts: Sequence[str], **options: Any) -> PromptInputs:
    bos = getattr(_tokenizer(processor), "bos_token", None) or ""
    written = {bos != "" and text.startswith(bos) for text in texts}
    if len(written) > 1:
        raise ValueError(f"some of the prompts begin with {bos!r} and others do not")
    if written == {True}:
        options["add_special_tokens"] = False  # the template wrote it already
    features = processor(text=list(texts), return_tensors="pt", **options)
    features.pop("labels", None)  # PaliGemma's processor always makes them
    return PromptInputs(dict(features))


@contextlib.contextmanager
def _right_padding(processor: Any) -> Iterator[dict[str, Any]]:
    """The options that pad on the right; a tokenizer without a padding token pads with its end token."""
    tokenizer = _tokenizer(processor)
    lent = getattr(tokenizer, "pad_token", None) is None
    if lent:
        tokenizer.pad_token = tokenizer.eos_token  # masked like any padding
    try:
        yield {"padding": True, "padding_side": "right"}
    finally:
        if lent:
            tokenizer.pad_token = None


def _refused_together(processor: Any, rows: Sequence[PromptRow], error: Exception) -> DataError:
    names = ", ".join(str(row.key) for row in rows[:3]) + (f" and {len(rows) - 3} more" * (len(rows) > 3))
    return DataError(
        f"rows {names}: the processor {type(processor).__name__} refused the prompts together: "
        f"{str(error).rstrip('.')}. Give prompts of one kind, or a batch size of 1."
    )


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
