"""Pictures of every kind a dataset may hold, most of them 2 x 1 pixels, and the means to compare them."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
from PIL.Image import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def two_pixels(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image:
    image = PIL.Image.new("RGB", (2, 1), left)
    image.putpixel((1, 0), right)
    return image


def pixels(image: Image) -> list[list[tuple[int, ...]]]:
    """Rows of pixels."""
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def encoded(image: Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgba() -> Image:
    """Opaque red, half-transparent blue."""
    image = PIL.Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (*BLUE, 128))
    return image


def palette_with_transparency() -> bytes:
    """Red, and a green that is transparent."""
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=1)


def palette_with_alpha_per_colour() -> bytes:
    image = PIL.Image.new("P", (2, 1))
    image.putpalette([*RED, *GREEN])
    image.putpixel((1, 0), 1)
    return encoded(image, transparency=bytes([255, 0]))


def grey_16_bit() -> Image:
    return PIL.Image.fromarray(np.array([[0x0000, 0x80FF, 0xFFFF]], dtype=np.uint16))


def turned(orientation: int) -> bytes:
    """Red beside green, stored with an EXIF tag that says how to hold the camera."""
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return encoded(two_pixels(RED, GREEN), exif=exif)
