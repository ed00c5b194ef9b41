"""What the packaged captioner is taught: batches of scenes with patch labels or with captions, as tensors.

Shapes: B scenes, P patches in reading order, T text tokens, S side of the picture in pixels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from mmft.tiny.building import PATCH
from mmft.tiny.captions import listing, noun_phrase, relation
from mmft.tiny.lexicon import CANVAS, COLOURS, DIAMETERS, RELATIONS, SHAPES, SceneObject, dominant_relation
from mmft.tiny.scenes import PROMPT, Scene

IGNORED = -100
LOOKS = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(DIAMETERS)}
PLACES = {
    "rank": ("leftmost", "second", "third"),
    "to_first_other": tuple(RELATIONS),
    "to_second_other": tuple(RELATIONS),
}
PATCH_CLASSES: dict[str, tuple[str, ...]] = {**LOOKS, **PLACES}
"""What each patch says of the object it shows: how it looks, its rank from the left, how it lies to the other
objects, again from the left. Class 0 is the background or no such object, class i + 1 the i-th word."""


@dataclass(frozen=True, slots=True)
class CaptionBatch:
    """Pictures with the prompt and one caption each, padded on the right."""

    pixel_values: Tensor  # (B, 3, S, S)
    input_ids: Tensor  # (B, T)
    labels: Tensor  # (B, T), IGNORED outside of the caption


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Pictures as (B, 3, S, S) in [-1, 1]: what the processor makes of them, without its overhead."""
    stacked = np.stack([np.asarray(scene.image) for scene in scenes])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def patch_labels(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """For each entry of `PATCH_CLASSES` the (B, P) class of the object on which the patch's centre lies."""
    side = CANVAS // PATCH
    labels = {kind: torch.zeros(len(scenes), side, side, dtype=torch.long) for kind in PATCH_CLASSES}
    for number, scene in enumerate(scenes):
        for item, words in zip(scene.objects, patch_words(scene.objects), strict=True):
            rows, columns = _covered(item.y, item.size), _covered(item.x, item.size)
            for kind, word in words.items():
                labels[kind][number, rows, columns] = PATCH_CLASSES[kind].index(word) + 1
    return {kind: label.flatten(1) for kind, label in labels.items()}


def patch_words(objects: Sequence[SceneObject]) -> list[dict[str, str]]:
    """For each object the word of every patch class that applies to it."""
    ordered = sorted(objects, key=lambda item: item.x)
    described = []
    for item in objects:
        words = {kind: getattr(item, kind) for kind in LOOKS}
        words["rank"] = PLACES["rank"][ordered.index(item)]
        others = [other for other in ordered if other is not item]
        # One or two others: the dictionary ends with the shorter of the two.
        words |= {
            kind: dominant_relation(item, other)
            for kind, other in zip(("to_first_other", "to_second_other"), others, strict=False)
        }
        described.append(words)
    return described


def _covered(centre: float, size: str) -> slice:
    """The patches along one axis whose middle is within the object's radius."""
    radius = DIAMETERS[size][0] / 2
    first = int(np.ceil((centre - radius) / PATCH - 0.5))
    last = int(np.floor((centre + radius) / PATCH - 0.5))
    return slice(max(first, 0), last + 1)


def detailed_caption(objects: Sequence[SceneObject], stream: random.Random) -> str:
    """A caption of all objects; sizes and relations more often than not."""
    with_size = stream.random() < 0.7
    if len(objects) == 1 or stream.random() < 0.35:
        return listing(objects, with_size=with_size)
    return relation(stream.choice(objects), objects, with_size=with_size)


def caption(objects: Sequence[SceneObject], terse_share: float, stream: random.Random) -> str:
    """With probability `terse_share` one object's colour and shape, else a detailed caption."""
    if stream.random() < terse_share:
        return noun_phrase(stream.choice(objects), with_size=False) + "."
    return detailed_caption(objects, stream)


class CaptionTeacher:
    """Turns scenes into caption batches for one processor."""

    def __init__(self, processor: ProcessorMixin) -> None:
        message: dict[str, Any] = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": PROMPT}],
        }
        text = processor.apply_chat_template([message], add_generation_prompt=True)
        blank = np.zeros((CANVAS, CANVAS, 3), dtype=np.uint8)
        self.prompt_ids: list[int] = processor(images=blank, text=text)["input_ids"][0]
        self.tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self._known: dict[str, list[int]] = {}

    def batch(self, scenes: Sequence[Scene], captions: Sequence[str]) -> CaptionBatch:
        """Prompt, caption and eos for each scene."""
        bodies = [self._ids(text) for text in captions]
        length = max(map(len, bodies))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([self.prompt_ids + body + [pad] * (length - len(body)) for body in bodies])
        labels = torch.full_like(ids, IGNORED)
        for row, body in enumerate(bodies):
            start = len(self.prompt_ids)
            labels[row, start : start + len(body)] = torch.tensor(body)
        return CaptionBatch(pixels(scenes), ids, labels)

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*self._known[text], self.tokenizer.eos_token_id]
