"""Pictures and texts as unit vectors of a contrastive model (CLIP, SigLIP), each worked out once.

No similarity and no reward here: those are `rewards.clip_score`. Pictures are told apart by their pixels, so
the G completions of a prompt, and the same picture in a later epoch, cost one run of the image tower.
Shape legend: K distinct items, D width of the shared space.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel, AutoProcessor

from rewards.pictures import as_rgb, image_keys

logger = logging.getLogger(__name__)
Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class ClipCounters:
    """What the towers did since the embedder was made."""

    image_tower_calls: int = 0
    """Forward passes of the image tower, `batch_size` pictures at most in each."""
    images_encoded: int = 0
    """Pictures that went through the image tower."""
    cache_hits: int = 0
    """Pictures asked for that needed no run of the tower: repeats in a call and finds in the cache."""
    texts_encoded: int = 0
    """Texts that went through the text tower."""
    texts_truncated: int = 0
    """Texts of those that were longer than the text tower's positions and lost their end."""


class ClipEmbedder:
    """A contrastive model and its processor, loaded on first use, with bounded memories of what it embedded.

    The vectors are unit vectors of width D in float32 on the CPU, whatever the model computes in.
    """

    def __init__(
        self,
        model: str | nn.Module,
        processor: Any = None,
        *,
        batch_size: int = 64,
        device: str = "auto",
        dtype: str | torch.dtype | None = None,
        image_cache_size: int = 50_000,
        text_cache_size: int = 50_000,
        revision: str | None = None,
    ) -> None:
        """Check the settings; nothing is loaded yet. See `rewards.ClipScore` for the arguments."""
        if not isinstance(model, str) and processor is None:
            raise ValueError(
                "`processor` is None, but `model` is a model object. Give its processor, or both by name."
            )
        for name, size, least in (
            ("batch_size", batch_size, 1),
            ("image_cache_size", image_cache_size, 0),
            ("text_cache_size", text_cache_size, 0),
        ):
            if size < least:
                raise ValueError(f"`{name}` must be at least {least}; got {size}.")
        self.source, self.revision = model, revision
        self.batch_size, self.device, self.dtype = batch_size, device, _checked_dtype(dtype)
        self.counters = ClipCounters()
        self._processor = processor
        self._model: Any = None
        self._images = _Memory[bytes](image_cache_size)
        self._texts = _Memory[str](text_cache_size)
        self._warned = False
        # A caller that lost patience may call again while the first call still works in its thread.
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        source = self.source if isinstance(self.source, str) else type(self.source).__name__
        return f"ClipEmbedder({source!r}, batch_size={self.batch_size}, device={self.device!r})"

    def load(self) -> None:
        """Load the model and the processor unless they are there, and put the model on its device."""
        if self._model is not None:
            return
        model: Any = self.source
        if isinstance(model, str):
            dtype = torch.float32 if self.dtype is None else self.dtype
            model = AutoModel.from_pretrained(model, dtype=dtype, revision=self.revision)
            if self._processor is None:
                self._processor = AutoProcessor.from_pretrained(self.source, revision=self.revision)
        _check_is_contrastive(model, self._processor)
        self._model = model.to(device=_device(self.device), dtype=self.dtype).eval().requires_grad_(False)

    def embed_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (len(images), D); a picture runs through the tower once however often it occurs."""
        if not images:
            return torch.empty(0, 0)
        keys = image_keys(images)
        pictures = dict(zip(keys, images, strict=True))
        with self._lock:
            before = self.counters.images_encoded
            vectors = self._images.look_up(pictures, lambda missing: self._encode_images(pictures, missing))
            self.counters.cache_hits += len(images) - (self.counters.images_encoded - before)
        return torch.stack([vectors[key] for key in keys])

    def embed_texts(self, texts: Sequence[str], *, keep: bool = False) -> Tensor:
        """Unit vectors (len(texts), D), equal texts embedded once.

        Args:
            texts: What the text tower reads, prompt included.
            keep: Remember them across calls. For references, which come back; captions rarely do.
        """
        if not texts:
            return torch.empty(0, 0)
        with self._lock:
            vectors = self._texts.look_up(dict.fromkeys(texts), self._encode_texts, keep=keep)
        return torch.stack([vectors[text] for text in texts])

    def _encode_images(self, pictures: dict[bytes, Image.Image], keys: list[bytes]) -> Tensor:
        self.load()
        parts = []
        for batch in _batches(keys, self.batch_size):
            inputs = self._processor.image_processor(
                images=[as_rgb(pictures[key]) for key in batch], return_tensors="pt"
            )
            parts.append(self._run(self._model.get_image_features, inputs))
            self.counters.image_tower_calls += 1
            self.counters.images_encoded += len(batch)
        return torch.cat(parts)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        self.load()
        tokenizer, limit = self._processor.tokenizer, self._text_positions()
        lengths = [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]
        self._count_truncated(texts, lengths, limit)
        # SigLIP was trained on texts padded to the full length and reads the last position.
        fixed = self._model.config.model_type.startswith("siglip")
        order = sorted(
            range(len(texts)), key=lengths.__getitem__
        )  # neighbours in length pad each other little
        parts = []
        for batch in _batches(order, self.batch_size):
            inputs = tokenizer(
                [texts[index] for index in batch],
                padding="max_length" if fixed else True,
                truncation=True,
                max_length=limit,
                return_tensors="pt",
            )
            inputs.pop("token_type_ids", None)
            parts.append(self._run(self._model.get_text_features, inputs))
        self.counters.texts_encoded += len(texts)
        vectors = torch.cat(parts)
        return torch.empty_like(vectors).index_copy_(0, torch.tensor(order), vectors)

    @torch.no_grad()
    def _run(self, tower: Callable[..., Any], inputs: Any) -> Tensor:
        """One forward pass of a tower to unit vectors."""
        vectors = tower(**inputs.to(self._model.device)).pooler_output.float()
        return nn.functional.normalize(vectors, dim=-1).cpu()

    def _text_positions(self) -> int:
        """How many tokens the text tower can read."""
        text_config = getattr(self._model.config, "text_config", self._model.config)
        # A tokenizer that knows no limit says 1e30.
        positions = getattr(text_config, "max_position_embeddings", None)
        limits = [size for size in (positions, self._processor.tokenizer.model_max_length) if size]
        return int(min(limits))

    def _count_truncated(self, texts: list[str], lengths: list[int], limit: int) -> None:
        longest = max(range(len(texts)), key=lengths.__getitem__)
        self.counters.texts_truncated += sum(length > limit for length in lengths)
        if lengths[longest] > limit and not self._warned:
            self._warned = True
            logger.warning(
                "%r has %d tokens and the text tower reads %d: the end does not count. Shorten the "
                "completions, or take a model with a longer text tower. Later cases are counted "
                "(texts_truncated) and not logged.",
                texts[longest][:200],
                lengths[longest],
                limit,
            )


class _Memory(Generic[Key]):
    """Vectors by key; the least recently used go first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._vectors: OrderedDict[Key, Tensor] = OrderedDict()

    def look_up(
        self, keys: Iterable[Key], encode: Callable[[list[Key]], Tensor], *, keep: bool = True
    ) -> dict[Key, Tensor]:
        """The vector of every key; those not remembered come from `encode`, in one call."""
        found: dict[Key, Tensor] = {}
        missing: list[Key] = []
        for key in keys:
            if key in self._vectors:
                self._vectors.move_to_end(key)
                found[key] = self._vectors[key]
            else:
                missing.append(key)
        if missing:
            # Copies: a row that is a view would keep its whole batch in memory.
            fresh = {key: row.clone() for key, row in zip(missing, encode(missing), strict=True)}
            found |= fresh
            self._vectors |= fresh if keep else {}
        while len(self._vectors) > self._size:
            self._vectors.popitem(last=False)
        return found


def _batches(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    # The launcher has made each process's own GPU the current one.
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def _checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is not None and isinstance(found, torch.dtype) and found.is_floating_point:
        return found
    if dtype is None:
        return None
    raise ValueError(f"`dtype` must be 'float32', 'bfloat16', 'float16' or None; got {dtype!r}.")


def _check_is_contrastive(model: Any, processor: Any) -> None:
    for method in ("get_image_features", "get_text_features"):
        if not hasattr(model, method):
            raise ValueError(
                f"`model` is a {type(model).__name__}, which has no `{method}`. Take a model with an "
                "image and a text tower in one space, such as CLIP or SigLIP."
            )
    for part in ("tokenizer", "image_processor"):
        if not hasattr(processor, part):
            raise ValueError(
                f"`processor` is a {type(processor).__name__}, which has no `{part}`. Give the model's own "
                "processor, as `AutoProcessor` loads it."
            )
