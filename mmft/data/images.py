"""Any picture a dataset can hold, as an upright RGB one.

Resizing and normalising are the processor's work, not done here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image
from PIL import ImageOps
from PIL.Image import Image

from mmft.errors import DataError


def load_image(value: Any) -> Image:
    """Decode a picture given as PIL image, path, bytes, or Hugging Face's `{"bytes": ..., "path": ...}`.

    Raises:
        DataError: The value is of another kind, or its pixels cannot be read; the caller adds the row.
    """
    if isinstance(value, Image):
        return _decoded(value, "a PIL image")
    if isinstance(value, Mapping):
        return load_image(value["bytes"] if value.get("bytes") is not None else value.get("path"))
    if isinstance(value, (bytes, bytearray)):
        return _decoded(io.BytesIO(value), f"{len(value)} bytes")
    if isinstance(value, (str, os.PathLike)):
        return _decoded(value, repr(os.fspath(value)))
    raise DataError(
        "a picture must be a PIL image, a path, bytes or a dict with `bytes` or `path`; "
        f"got {type(value).__name__}."
    )


def upright_rgb(image: Image) -> Image:
    """Turn a picture as its EXIF tag says and make it RGB; what is transparent becomes white.

    16-bit grey keeps its high byte: PIL alone would clip everything above 255 to white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bit_grey(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bit_grey(image: Image) -> Image:
    pixels = np.asarray(image)
    # PIL opens some 16-bit files (PGM) in its 32-bit mode, which also holds plain 0..255; the values tell.
    deep = image.mode.startswith("I;16") or (image.mode == "I" and pixels.max() > 255)
    return PIL.Image.fromarray((pixels / 256 if deep else pixels).clip(0, 255).astype(np.uint8))


def _decoded(source: Any, description: str) -> Image:
    try:
        image = source if isinstance(source, Image) else PIL.Image.open(source)
        return upright_rgb(image)
    except Exception as error:  # PIL's readers raise whatever a broken file makes them stumble over
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"cannot read a picture from {description} ({reason}). Repair it or drop the row."
        ) from error
