"""Making samples fit into a page that a browser opens in a moment: smaller pictures first, then less text.

What is given up is said in the notes of the page. Thumbnails of the run's folder stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmft.report.page_text import count
from mmft.report.record import spread
from mmft.report.thumbnails import MAX_PICTURES, SIDE, data_uri, fitted, read_thumbnail

MAX_SAMPLES = 2_000
"""Rows that a run keeps and a page shows."""
PICTURE_ROOM = 15_000_000
"""Characters that all pictures of samples may take."""
TEXT_ROOM = 7_000_000
"""The same of everything else that samples hold."""
PICTURES_OF = "pictures_of"
"""Of a sample: the place of the run whose folder has its pictures; no part of the page."""
TOKEN_FIELDS = ("tokens", "logps", "values", "advantages")
Sample = dict[str, Any]


def within_budget(
    samples: Sequence[Sample],
    folders: Sequence[Path],
    notes: list[str],
    *,
    picture_room: int = PICTURE_ROOM,
    text_room: int = TEXT_ROOM,
) -> list[Sample]:
    """The samples that are shown, their pictures inlined.

    Args:
        samples: with names of pictures, and as `pictures_of` the place of the run that names them, if it
            is not the first.
        folders: of the runs.
        notes: where it is said what was left out.
        picture_room: characters for pictures.
        text_room: characters for the rest.
    """
    shown = [samples[place] for place in spread(MAX_SAMPLES, len(samples))]
    if len(shown) < len(samples):
        notes.append(f"Of {len(samples):,} samples {len(shown):,} are shown, spread evenly.")
    shown = _with_less_text(shown, notes, text_room)
    return _with_pictures(shown, folders, notes, picture_room)


def _with_less_text(samples: list[Sample], notes: list[str], room: int) -> list[Sample]:
    """Tokens of some samples go first, then samples."""
    sizes = [_size(sample) for sample in samples]
    if sum(sizes) <= room:
        return samples
    bare = [_without_tokens(sample) for sample in samples]
    bare_sizes = [_size(sample) for sample in bare]
    if sum(bare_sizes) > room:
        fewer = [bare[place] for place in _as_many(bare_sizes, room)]
        notes.append(
            f"There is room for the texts of {len(fewer):,} of {len(samples):,} samples, without tokens."
        )
        return fewer
    of_tokens = [size - bare_size for size, bare_size in zip(sizes, bare_sizes, strict=True)]
    kept = {*_as_many(of_tokens, room - sum(bare_sizes))}
    notes.append(f"There is room for the tokens of {len(kept):,} of {len(samples):,} samples.")
    return [sample if place in kept else bare[place] for place, sample in enumerate(samples)]


def _as_many(sizes: Sequence[int], room: int) -> list[int]:
    """Places spread evenly, about as many as there is room for."""
    count = len(sizes) * room // max(sum(sizes), 1)
    while sum(sizes[place] for place in spread(count, len(sizes))) > room:
        count = count * 9 // 10
    return spread(count, len(sizes))


def _size(sample: Mapping[str, Any]) -> int:
    text = json.dumps(sample, separators=(",", ":"))
    # The page writes each of these signs as \u003c and the like.
    return len(text) + 5 * sum(map(text.count, "&<>"))


def _without_tokens(sample: Sample) -> Sample:
    answers = [{**answer, "tokens": []} | dict.fromkeys(TOKEN_FIELDS[1:]) for answer in sample["answers"]]
    heat = sample["heat"]
    return sample | {"answers": answers, "heat": None if heat is None else {**heat, "tokens": []}}


def _with_pictures(
    samples: list[Sample], folders: Sequence[Path], notes: list[str], room: int
) -> list[Sample]:
    named = [
        (place, name) for place, sample in enumerate(samples) for name in sample["pictures"][:MAX_PICTURES]
    ]
    places = [samples[place].get(PICTURES_OF, 0) for place, _ in named]
    found = [read_thumbnail(folders[run], name) for run, (_, name) in zip(places, named, strict=True)]
    read = [data for data in found if data is not None]
    small, side = fitted(read, room)
    if side:
        notes.append(
            f"Pictures are {side} pixels on their longer side, instead of {SIDE}, to fit into this page."
        )
    elif side == 0:
        notes.append("There is no room for the pictures.")
    missing = len(found) - len([data for data in small if data])
    if missing and side != 0:
        notes.append(f"{count(missing, 'picture')} could not be read.")
    shown: list[list[bytes]] = [[] for _ in samples]
    files = iter(small)
    for (place, _), data in zip(named, found, strict=True):
        shown[place].append(next(files) if data is not None else b"")
    return [_illustrated(sample, each) for sample, each in zip(samples, shown, strict=True)]


def _illustrated(sample: Sample, files: Sequence[bytes]) -> Sample:
    """The sample with the pictures that could be read; patches are those of its first one."""
    told = {name: value for name, value in sample.items() if name != PICTURES_OF}
    if sample["heat"] is not None and files and not files[0]:
        told["heat"] = sample["heat"] | {"grid": [0, 0], "patches": []}
    return told | {"pictures": [data_uri(file) for file in files if file]}
