"""Rows of the same content: told by what is stored, without decoding it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
from PIL.Image import Image

from mmft.data import content
from mmft.data.rows import PromptDataset
from mmft.errors import DataError
from tests.data.pictures import BLUE, GREEN, RED, encoded, turned, two_pixels


def same(rows: Any, **options: Any) -> list[int]:
    """For each row the first one of its content."""
    digests = PromptDataset(rows, **options).content_digests()
    return [digests.index(digest) for digest in digests]


def test_rows_of_the_same_pictures_and_words_are_one_prompt():
    red, blue = two_pixels(RED, GREEN), two_pixels(BLUE, GREEN)
    rows = [
        {"image": red, "prompt": "?", "reward": 1.0},
        {"image": blue, "prompt": "?", "reward": 1.0},
        {"image": red, "prompt": "!", "reward": 1.0},
        {"image": red.copy(), "prompt": "?", "reward": 2.0},
        {"image": None, "prompt": "?", "reward": 1.0},
    ]
    assert same(rows) == [0, 1, 2, 0, 4]


def test_several_pictures_count_in_their_order_and_number():
    red, blue = two_pixels(RED, GREEN), two_pixels(BLUE, GREEN)
    rows = [{"images": images} for images in ([red, blue], [blue, red], [red], [red, blue], [])]
    assert same(rows, instruction="?") == [0, 1, 2, 0, 4]


def test_an_instruction_is_the_same_for_all():
    assert same([{"image": two_pixels(RED, RED)}] * 3, instruction="?") == [0, 0, 0]
    words = datasets.Dataset.from_dict({"reward": [1.0, 2.0]})
    assert same(words, instruction="?") == [0, 0]


def test_messages_are_compared_as_a_whole():
    def asked(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]

    rows = [{"image": two_pixels(RED, RED), "prompt": asked(text)} for text in ("a", "b", "a")]
    assert same(rows) == [0, 1, 0]
    assert same(datasets.Dataset.from_list(rows)) == [0, 1, 0]


def test_a_turned_picture_is_another_one():
    upright, on_its_side = turned(1), turned(6)
    rows = [{"image": load(data)} for data in (upright, on_its_side, upright)]
    assert same(rows, instruction="?") == [0, 1, 0]


def load(data: bytes) -> Image:
    return PIL.Image.open(io.BytesIO(data))


def test_a_picture_that_many_rows_share_is_looked_at_once(monkeypatch: pytest.MonkeyPatch):
    seen: list[Image] = []
    digest = content._digest
    monkeypatch.setattr(content, "_digest", lambda image: seen.append(image) or digest(image))
    picture = two_pixels(RED, GREEN)
    assert same([{"image": picture}] * 5, instruction="?") == [0] * 5
    assert len(seen) == 1


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("kind", ["bytes", "path"])
def test_what_is_stored_is_not_decoded(column: str, kind: str, tmp_path: Path):
    """The pictures cannot be decoded at all."""

    def stored(name: str) -> Any:
        (tmp_path / name).write_bytes(f"no picture {name}".encode())
        return str(tmp_path / name) if kind == "path" else (tmp_path / name).read_bytes()

    values = [stored(name) for name in ("a", "b", "a")]
    if column == "images":
        values = [[value] for value in values]
    assert same([{column: value} for value in values], instruction="?") == [0, 1, 0]
    feature = datasets.Image() if column == "image" else datasets.List(datasets.Image())
    table = datasets.Dataset.from_dict({column: values}, features=datasets.Features({column: feature}))
    assert same(table, instruction="?") == [0, 1, 0]
    assert same(table.select([1, 0, 2, 1]), instruction="?") == [0, 1, 1, 0]


def test_rows_beyond_the_first_chunk_are_read_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmft.data.rows.CHUNK", 2)
    table = datasets.Dataset.from_list([{"prompt": text} for text in "abcab"])
    assert same(table) == [0, 1, 2, 0, 1]


def test_a_picture_in_memory_that_cannot_be_read_names_its_row():
    broken = load(encoded(two_pixels(RED, GREEN))[:50])
    with pytest.raises(DataError, match="row 1 of 'train': cannot read a picture from a PIL image"):
        same([{"image": two_pixels(RED, RED)}, {"image": broken}], instruction="?")


def test_a_row_that_holds_no_picture_is_left_to_its_reader():
    rows = [{"image": 3}, {"image": 4}, {"image": 3}]
    assert same(rows, instruction="?") == [0, 1, 0]
