"""Pictures of held-out rows made small: files in a run's folder, and smaller still where a page has no room.

Only pictures of samples: figures are `report.figures`.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
from PIL.Image import Image, Resampling

from mmft.report.page_source import picture_within

SAMPLES_FOLDER = "samples"
SIDE = 256
"""Pixels on the longer side of what a run keeps."""
MAX_PICTURES = 4
"""Kept of a row that shows more."""
SHRUNK = ((192, 75), (128, 70), (96, 65), (64, 60), (48, 50), (32, 40), (16, 30))
"""Sides and JPEG qualities that are tried in turn where pictures are too large together."""
TRIED = 24
"""Pictures by which the size of all is judged."""
SPARE = 0.95
"""Of the room is meant to be used: the pictures that were not tried may be larger."""
PREFIX = "data:image/jpeg;base64,"
JPEG_START = b"\xff\xd8\xff"


def jpeg(image: Image, side: int = SIDE, quality: int = 85) -> bytes:
    """The picture as JPEG, at most `side` pixels on its longer side; never enlarged."""
    small = image.convert("RGB")
    if max(small.size) > side:
        scale = side / max(small.size)
        size = (max(round(small.width * scale), 1), max(round(small.height * scale), 1))
        small = small.resize(size, Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    # Colours of small drawings bleed if they are stored at half their resolution.
    small.save(file, "JPEG", quality=quality, subsampling=0 if max(small.size) <= 128 else 2)
    return file.getvalue()


def write_thumbnails(folder: Path, number: int, images: Sequence[Image]) -> list[str]:
    """Writes the pictures of one row; returns where, seen from the run's folder."""
    (folder / SAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
    names = []
    for place, image in enumerate(images[:MAX_PICTURES]):
        name = f"{SAMPLES_FOLDER}/{number:05d}{f'_{place}' if place else ''}.jpg"
        (folder / name).write_bytes(jpeg(image))
        names.append(name)
    return names


def read_thumbnail(folder: Path, name: str) -> bytes | None:
    """A picture of a run's folder, which may be anyone's; None where it is no JPEG, or lies elsewhere."""
    return picture_within(folder, name, JPEG_START)


def data_uri(data: bytes) -> str:
    """A JPEG as a page holds it."""
    return PREFIX + base64.b64encode(data).decode("ascii")


def fitted(files: Sequence[bytes], room: int) -> tuple[list[bytes], int | None]:
    """The pictures, made as small as it takes for all of them to fit into `room` characters of base64.

    Returns:
        the pictures, empty where one cannot be read or nothing fits, and their longer side where they were
        made smaller (0 where nothing fits).
    """
    if _characters(files) <= room:
        return list(files), None
    tried = files[:: max(len(files) // TRIED, 1)]
    share = len(tried) / len(files)
    for side, quality in SHRUNK:
        if _characters([_again(file, side, quality) for file in tried]) > SPARE * room * share:
            continue
        with ThreadPoolExecutor(2) as workers:  # Pillow lets other threads work while it does
            small = list(workers.map(functools.partial(_again, side=side, quality=quality), files))
        if _characters(small) <= room:
            return small, side
    return [b""] * len(files), 0


def _again(file: bytes, side: int, quality: int) -> bytes:
    try:
        with PIL.Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
            image.draft("RGB", (side, side))  # read at a fraction of its size, which saves most of the time
            return jpeg(image, side, quality)
    except Exception:  # Pillow raises whatever a broken file makes it stumble over
        return b""


def _characters(files: Sequence[bytes]) -> int:
    return sum(len(PREFIX) + 4 * -(-len(file) // 3) for file in files)
