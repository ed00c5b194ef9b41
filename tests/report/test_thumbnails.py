"""Small pictures, and smaller ones where there is no room."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmft.report.thumbnails import (
    MAX_PICTURES,
    SIDE,
    data_uri,
    fitted,
    jpeg,
    read_thumbnail,
    write_thumbnails,
)


def noise(number: int, size: tuple[int, int] = (256, 256)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 48), (64, 48)), ((1024, 512), (256, 128)), ((3, 2000), (1, 256)), ((1, 1), (1, 1))],
)
def test_the_longer_side_shrinks_and_nothing_grows(size: tuple[int, int], expected: tuple[int, int]):
    assert opened(jpeg(Image.new("RGBA", size, (255, 0, 0, 128)))).size == expected


def test_a_small_drawing_keeps_its_colours():
    drawing = Image.new("RGB", (64, 64), "white")
    drawing.paste((255, 0, 0), (10, 10, 11, 30))  # a line one pixel wide
    red, green, blue = opened(jpeg(drawing)).getpixel((10, 20))
    assert red > 200
    assert max(green, blue) < 90


def test_pictures_of_a_row_are_numbered_and_no_more_than_four(tmp_path: Path):
    names = write_thumbnails(tmp_path, 7, [noise(each, (300, 30)) for each in range(MAX_PICTURES + 2)])
    assert names == ["samples/00007.jpg", "samples/00007_1.jpg", "samples/00007_2.jpg", "samples/00007_3.jpg"]
    assert opened((tmp_path / names[1]).read_bytes()).size == (SIDE, 26)


@pytest.mark.parametrize(
    "name", ["../secret.jpg", "/etc/hostname", "samples/none.jpg", "samples", "a\0b", "text.jpg"]
)
def test_what_is_no_picture_of_the_folder_is_not_read(tmp_path: Path, name: str):
    folder = tmp_path / "run"
    write_thumbnails(folder, 0, [noise(0)])
    (tmp_path / "secret.jpg").write_bytes(jpeg(noise(1)))
    (folder / "text.jpg").write_text("no picture")
    assert read_thumbnail(folder, name) is None
    assert read_thumbnail(folder, "samples/00000.jpg") == (folder / "samples/00000.jpg").read_bytes()


def test_an_absolute_name_is_not_read_even_of_a_picture(tmp_path: Path):
    write_thumbnails(tmp_path, 0, [noise(0)])
    assert read_thumbnail(tmp_path, str(tmp_path / "samples/00000.jpg")) is None


def test_pictures_that_fit_stay_as_they_are():
    files = [jpeg(noise(number)) for number in range(3)]
    room = sum(len(data_uri(file)) for file in files)
    assert fitted(files, room) == (files, None)
    assert fitted(files, room - 1)[1] is not None
    assert fitted([], 0) == ([], None)


@pytest.mark.parametrize("room", [1_000_000, 200_000, 60_000])
def test_pictures_shrink_until_they_fit(room: int):
    files = [jpeg(noise(number)) for number in range(30)]
    small, side = fitted(files, room)
    assert sum(len(data_uri(file)) for file in small) <= room
    assert side is not None
    assert side < SIDE
    assert {max(opened(file).size) for file in small} == {side}


def test_a_picture_that_cannot_be_read_again_is_empty_and_the_others_are_not():
    files = [b"\xff\xd8\xff no picture" * 9_000, *(jpeg(noise(number)) for number in range(5))]
    small, _ = fitted(files, 100_000)
    assert small[0] == b""
    assert all(small[1:])


def test_where_nothing_fits_there_are_no_pictures():
    assert fitted([jpeg(noise(0))], 10) == ([b""], 0)


def test_the_rare_large_picture_is_noticed_after_all():
    # The few that are tried are plain, and the first that is not comes between them.
    plain = jpeg(Image.new("RGB", (256, 256)))
    files = [jpeg(noise(number)) if number % 4 == 1 else plain for number in range(100)]
    room = sum(len(data_uri(file)) for file in files) // 40
    small, _ = fitted(files, room)
    assert sum(len(data_uri(file)) for file in small) <= room
