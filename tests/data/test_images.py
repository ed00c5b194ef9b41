"""Every kind of picture becomes an upright RGB one, and what cannot be read says why."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mmft.data.images import load_image
from mmft.errors import DataError
from tests.data.pictures import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    encoded,
    grey_16_bit,
    palette_with_alpha_per_colour,
    palette_with_transparency,
    pixels,
    rgba,
    turned,
    two_pixels,
)


def test_paths_bytes_pictures_and_dicts_give_the_same_pixels(tmp_path: Path):
    image = two_pixels(RED, GREEN)
    path = tmp_path / "picture.png"
    image.save(path)
    forms: list[Any] = [image, path, str(path), encoded(image), bytearray(encoded(image))]
    forms += [
        {"bytes": encoded(image), "path": None},
        {"bytes": None, "path": str(path)},
        {"path": str(path)},
    ]
    for form in forms:
        loaded = load_image(form)
        assert (loaded.mode, pixels(loaded)) == ("RGB", [[RED, GREEN]])


def test_transparency_shows_white():
    # Half-transparent blue over white: 255 * (1 - 128/255) = 127.
    assert pixels(load_image(rgba())) == [[RED, (127, 127, 255)]]
    assert pixels(load_image(encoded(rgba()))) == [[RED, (127, 127, 255)]]


@pytest.mark.parametrize("make", [palette_with_transparency, palette_with_alpha_per_colour])
def test_a_palette_colour_may_be_transparent(make: Any):
    assert PIL.Image.open(io.BytesIO(make())).mode == "P"
    assert pixels(load_image(make())) == [[RED, WHITE]]


def test_grey_with_transparency_shows_white():
    image = PIL.Image.new("LA", (2, 1), (10, 255))
    image.putpixel((1, 0), (10, 0))
    assert pixels(load_image(image)) == [[(10, 10, 10), WHITE]]


def test_a_transparent_colour_of_an_rgb_file_shows_white():
    assert pixels(load_image(encoded(two_pixels(RED, GREEN), transparency=GREEN))) == [[RED, WHITE]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("P", 0, (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("HSV", (0, 255, 255), RED),
        ("YCbCr", (255, 128, 128), WHITE),
        ("F", 300.0, WHITE),
        ("I", 77, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour: Any, expected: tuple[int, int, int]):
    image = load_image(PIL.Image.new(mode, (1, 1), colour))
    assert (image.mode, pixels(image)) == ("RGB", [[expected]])


def test_a_cmyk_file_keeps_its_colours():
    image = PIL.Image.new("CMYK", (8, 8), (255, 255, 0, 0))
    red, green, blue = pixels(load_image(encoded(image, "JPEG", quality=100)))[4][4]
    assert max(red, green) < 10
    assert blue > 245


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_keeps_its_high_byte(kind: str):
    expected = [[(0, 0, 0), (128, 128, 128), WHITE]]
    assert pixels(load_image(encoded(grey_16_bit(), kind))) == expected
    assert pixels(load_image(grey_16_bit())) == expected


def test_32_bit_grey_of_a_16_bit_file_is_scaled():
    assert pixels(load_image(PIL.Image.fromarray(np.array([[0, 0x80FF]], dtype=np.int32)))) == [
        [(0, 0, 0), (128, 128, 128)]
    ]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[RED, GREEN]]),
        (2, [[GREEN, RED]]),
        (3, [[GREEN, RED]]),
        (6, [[RED], [GREEN]]),
        (8, [[GREEN], [RED]]),
    ],
)
def test_pictures_are_turned_as_their_camera_was(orientation: int, expected: list[Any]):
    image = load_image(turned(orientation))
    assert pixels(image) == expected
    assert image.getexif().get(0x0112, 1) == 1, "nobody must turn it again"


def test_the_picture_given_is_left_as_it_was():
    image = two_pixels(RED, BLUE)
    load_image(image).putpixel((0, 0), GREEN)
    assert pixels(image) == [[RED, BLUE]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no/such.png", r"cannot read a picture from 'no/such.png' \(FileNotFoundError"),
        (b"not a picture", r"cannot read a picture from 13 bytes \(UnidentifiedImageError"),
        (b"", r"cannot read a picture from 0 bytes"),
        (
            encoded(PIL.Image.new("RGB", (64, 64)))[:60],
            r"cannot read a picture from 60 bytes .*Repair it or drop",
        ),
        (3, r"a picture must be a PIL image, a path, bytes or a dict with `bytes` or `path`; got int"),
        ({"bytes": None, "path": None}, r"a picture must be .*; got NoneType"),
        ({}, r"a picture must be .*; got NoneType"),
    ],
)
def test_what_is_no_picture_says_why(value: Any, message: str):
    with pytest.raises(DataError, match=message):
        load_image(value)
