"""From what a trainer hands over in picture columns to PIL pictures, told apart by their pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

Pictures = Image.Image | Sequence[Image.Image] | None
"""One row's picture or pictures; None or an empty list: the row has none."""


def picture_column(columns: Mapping[str, Any]) -> Sequence[Pictures] | None:
    """The column `images`, else `image`; None if the data has neither."""
    images = columns.get("images")
    return columns.get("image") if images is None else images


def picture_rows(images: Sequence[Pictures], count: int) -> list[list[Image.Image]]:
    """One list of pictures per completion, checked."""
    if len(images) != count:
        raise ValueError(f"`images` has {len(images)} entries for {count} captions. Give one each, or None.")
    rows = [[row] if isinstance(row, Image.Image) else list(row or ()) for row in images]
    for index, row in enumerate(rows):
        for picture in row:
            if not isinstance(picture, Image.Image):
                raise ValueError(
                    f"row {index}: `images` must hold PIL images; got {type(picture).__name__}. Open files "
                    "with `PIL.Image.open`."
                )
    return rows


def as_rgb(image: Image.Image) -> Image.Image:
    """RGB pixels, as the image processors' own `do_convert_rgb`: an alpha channel is dropped."""
    return image if image.mode == "RGB" else image.convert("RGB")


def image_key(image: Image.Image) -> bytes:
    """A digest of the picture's size and RGB pixels."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(as_rgb(image).tobytes())
    return digest.digest()


def image_keys(images: Sequence[Image.Image]) -> list[bytes]:
    """`image_key` of each; the completions of a prompt share one picture object, which is read once."""
    distinct = {id(image): image for image in images}
    keyed = {name: image_key(image) for name, image in distinct.items()}
    return [keyed[id(image)] for image in images]
