"""Prompts by their content: rows that show the same pictures and say the same words are one prompt."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL.Image import Image

from mmft.data.images import load_image
from mmft.types import Prompt, PromptRow


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


def stored_digest(prompt: Prompt | None, pictures: Sequence[Any], known: dict[int, bytes]) -> bytes:
    """A digest of a row as it is stored: equal for the same words and the same pictures.

    A file counts by its path and encoded bytes by themselves, so that nothing is decoded; a PIL picture
    counts by its pixels. Two files of the same pixels thus differ, which costs time and changes nothing.

    Args:
        prompt: text or messages.
        pictures: as `mmft.data.images.load_image` takes them.
        known: digests by `id` of PIL pictures that were looked at before and are still alive; added to.

    Raises:
        DataError: a PIL picture cannot be read.
    """
    digest = hashlib.blake2b(json.dumps(prompt, sort_keys=True, default=repr).encode(), digest_size=16)
    for picture in pictures:
        digest.update(_stored_picture(picture, known))
    return digest.digest()


def _stored_picture(picture: Any, known: dict[int, bytes]) -> bytes:
    if isinstance(picture, Image):
        if id(picture) not in known:
            known[id(picture)] = _digest(load_image(picture))
        return known[id(picture)]
    if isinstance(picture, Mapping):
        data = picture.get("bytes")
        return _stored_picture(picture.get("path") if data is None else data, known)
    if isinstance(picture, str | os.PathLike):
        picture = f"path {os.fspath(picture)!s}".encode()
    elif not isinstance(picture, bytes | bytearray):
        picture = repr(picture).encode()  # no picture: reading the row will say so
    return hashlib.blake2b(picture, digest_size=16).digest()


def _digest(image: Image) -> bytes:
    header = f"{image.mode} {image.size}".encode()
    return hashlib.blake2b(header + image.tobytes(), digest_size=16).digest()
