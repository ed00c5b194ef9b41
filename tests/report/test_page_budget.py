"""How samples are made to fit into a page, and that what is given up is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmft.report.page_budget import MAX_SAMPLES, PICTURES_OF, within_budget
from mmft.report.thumbnails import PREFIX, write_thumbnails
from tests.report.test_thumbnails import noise

ROOM = 10_000_000


def shown(number: int, tokens: int = 0, pictures: list[str] | None = None) -> dict[str, Any]:
    answer = {
        "text": "x" * 100, "reward": 1.0, "rewards": {}, "ended": True, "tokens": ["token"] * tokens,
        "logps": [-0.5] * tokens, "values": None, "advantages": None,
    }  # fmt: skip
    heat = {"grid": [1, 1], "patches": [1.0], "tokens": [["a", 1.0]] * tokens, "shares": {}, "of": "value"}
    return {
        "id": number,
        "key": str(number),
        "answers": [answer, answer],
        "pictures": pictures or [],
        "heat": heat,
    }


def test_what_fits_stays_as_it_is():
    notes: list[str] = []
    samples = [shown(number, tokens=5) for number in range(3)]
    assert within_budget(samples, [], notes) == samples
    assert notes == []


def test_a_page_shows_two_thousand_samples_spread_evenly():
    notes: list[str] = []
    found = within_budget([shown(number) for number in range(MAX_SAMPLES * 2)], [], notes)
    assert [each["id"] for each in found] == list(range(0, MAX_SAMPLES * 2, 2))
    assert notes == ["Of 4,000 samples 2,000 are shown, spread evenly."]


def test_tokens_of_some_samples_go_before_samples_do():
    notes: list[str] = []
    samples = [shown(number, tokens=50) for number in range(20)]
    bare = sum(len(json.dumps(shown(number))) for number in range(20))
    found = within_budget(samples, [], notes, text_room=bare + 10_000)
    kept = [each for each in found if each["answers"][0]["tokens"]]
    assert len(found) == 20
    assert 0 < len(kept) < 20
    assert all(each == samples[each["id"]] for each in kept)
    assert sum(len(json.dumps(each, separators=(",", ":"))) for each in found) <= bare + 10_000
    gone = next(each for each in found if not each["answers"][0]["tokens"])
    assert (gone["answers"][1]["logps"], gone["heat"]["tokens"]) == (None, [])
    assert gone["heat"]["patches"] == [1.0]
    assert notes == [f"There is room for the tokens of {len(kept)} of 20 samples."]


def test_samples_of_very_different_sizes_fit_too():
    samples = [shown(number, tokens=400 if number % 10 == 0 else 1) for number in range(100)]
    bare = sum(len(json.dumps(shown(number), separators=(",", ":"))) for number in range(100))
    for room in (bare + 20_000, bare // 2):
        found = within_budget(samples, [], [], text_room=room)
        assert sum(len(json.dumps(each, separators=(",", ":"))) for each in found) <= room
        assert found


def test_signs_that_the_page_writes_at_length_are_counted_at_length():
    sample = shown(0)
    sample["answers"][0]["text"] = "<" * 100
    notes: list[str] = []
    within_budget([shown(1), sample], [], notes, text_room=len(json.dumps([shown(1), sample])))
    assert notes == ["There is room for the texts of 1 of 2 samples, without tokens."]


def test_where_even_texts_have_no_room_there_are_fewer_samples():
    notes: list[str] = []
    found = within_budget([shown(number, tokens=50) for number in range(20)], [], notes, text_room=4_000)
    assert 0 < len(found) < 20
    assert not any(each["answers"][0]["tokens"] for each in found)
    assert sum(len(json.dumps(each, separators=(",", ":"))) for each in found) <= 4_000
    assert notes == [f"There is room for the texts of {len(found)} of 20 samples, without tokens."]


def test_pictures_are_inlined_and_no_others(tmp_path: Path):
    notes: list[str] = []
    names = write_thumbnails(tmp_path, 0, [Image.new("RGB", (9, 9)), Image.new("RGB", (8, 8), "red")])
    samples = [shown(0, pictures=[*names, "samples/gone.jpg"]), shown(1), shown(2, pictures=["../../x.jpg"])]
    found = within_budget(samples, [tmp_path], notes)
    assert [len(each["pictures"]) for each in found] == [2, 0, 0]
    assert found[0]["pictures"][0] != found[0]["pictures"][1]
    assert all(picture.startswith(PREFIX) for picture in found[0]["pictures"])
    assert notes == ["2 pictures could not be read."]


@pytest.mark.parametrize(("room", "side"), [(400_000, 192), (100_000, 96)])
def test_pictures_shrink_to_the_room_there_is_and_the_page_says_so(tmp_path: Path, room: int, side: int):
    notes: list[str] = []
    samples = [
        shown(number, pictures=write_thumbnails(tmp_path, number, [noise(number)])) for number in range(9)
    ]
    found = within_budget(samples, [tmp_path], notes, picture_room=room)
    assert sum(len(each["pictures"][0]) for each in found) <= room
    assert len(notes) == 1
    assert notes[0].endswith("pixels on their longer side, instead of 256, to fit into this page.")
    assert int(notes[0].split()[2]) <= side


def test_without_room_there_are_no_pictures(tmp_path: Path):
    notes: list[str] = []
    samples = [shown(0, pictures=write_thumbnails(tmp_path, 0, [noise(0)]))]
    assert within_budget(samples, [tmp_path], notes, picture_room=10)[0]["pictures"] == []
    assert notes == ["There is no room for the pictures."]


def test_the_heat_of_a_picture_that_cannot_be_read_is_not_laid_over_the_next(tmp_path: Path):
    names = write_thumbnails(tmp_path, 0, [Image.new("RGB", (9, 9))])
    lost, kept = within_budget(
        [shown(0, pictures=["samples/gone.jpg", *names]), shown(1, pictures=[*names, "samples/gone.jpg"])],
        [tmp_path],
        [],
    )
    assert [len(each["pictures"]) for each in (lost, kept)] == [1, 1]
    assert (lost["heat"]["grid"], lost["heat"]["patches"]) == ([0, 0], [])
    assert (kept["heat"]["grid"], kept["heat"]["patches"]) == ([1, 1], [1.0])


def test_pictures_come_from_the_run_that_names_them_alone(tmp_path: Path):
    for folder, colour in (("a", "red"), ("b", "blue")):
        names = write_thumbnails(tmp_path / folder, 0, [Image.new("RGB", (9, 9), colour)])
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "nowhere"]
    samples = [shown(0, pictures=names) | {PICTURES_OF: place} for place in range(3)]
    first, second, third = within_budget(samples, folders, [])
    assert first["pictures"] != second["pictures"]
    assert third["pictures"] == []
    assert not any(PICTURES_OF in each for each in (first, second, third))
