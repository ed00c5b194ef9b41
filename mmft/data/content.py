"""Prompts by their content: rows that show the same pictures and say the same words are one prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable
from dataclasses import dataclass, field

from PIL.Image import Image

from mmft.types import PromptRow


@dataclass(frozen=True, slots=True)
class ContentKey:
    """Equal for equal content; shown as the row it was first seen in."""

    digest: bytes
    name: Hashable = field(compare=False)

    def __str__(self) -> str:
        return str(self.name)


def content_key(row: PromptRow, known: dict[int, bytes] | None = None) -> ContentKey:
    """The key of a row's messages and pixels.

    Args:
        row: the prompt.
        known: digests by `id` of pictures that were looked at before and are still alive; added to.
    """
    known = {} if known is None else known
    digest = hashlib.blake2b(json.dumps(row.messages, sort_keys=True).encode(), digest_size=16)
    for image in row.images:
        if id(image) not in known:
            known[id(image)] = _digest(image)
        digest.update(known[id(image)])
    return ContentKey(digest.digest(), row.key)


def _digest(image: Image) -> bytes:
    header = f"{image.mode} {image.size}".encode()
    return hashlib.blake2b(header + image.tobytes(), digest_size=16).digest()
