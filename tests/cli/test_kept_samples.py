"""What a run folder keeps of its held-out rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmft.cli import kept_samples
from mmft.cli.kept_samples import keep_samples, kept_places, row_record, small_columns
from mmft.data.rows import PromptDataset
from mmft.report.record import Evaluation, Outcome


def rows(count: int, pictures: int = 1) -> PromptDataset:
    shades = [Image.new("RGB", (400, 100), (number * 20, 0, 0)) for number in range(count)]
    return PromptDataset(
        [
            {
                "images": [shade] * pictures,
                "prompt": f"What is {number}?",
                "references": [f"r{number}"],
                "group": f"g{number % 2}",
                "facts": [1, 2],
            }
            for number, shade in enumerate(shades)
        ],
        name="validation",
    )


def evaluation(count: int, word: str) -> Evaluation:
    samples = [{"row": row, "completion": f"{word}{row}", "reward": float(row)} for row in range(count)]
    return Evaluation({"reward": 1.0}, samples)


def outcome(count: int) -> Outcome:
    return Outcome(evaluation(count, "b"), evaluation(count, "a"), 1.0)


def test_every_row_is_kept_with_its_picture_and_its_columns(tmp_path: Path):
    samples = keep_samples(tmp_path, rows(3), outcome(3))
    assert samples[1] == {
        "key": ("validation", 1),
        "prompt": "What is 1?",
        "references": ["r1"],
        "pictures": ["samples/00001.jpg"],
        "columns": {"group": "g1"},
        "before": {"completion": "b1", "reward": 1.0},
        "after": {"completion": "a1", "reward": 1.0},
    }
    written = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [each["after"]["completion"] for each in written] == ["a0", "a1", "a2"]
    with Image.open(tmp_path / "samples" / "00002.jpg") as picture:
        assert picture.size == (256, 64)


def test_of_many_rows_some_are_kept_spread_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_samples, "MAX_SAMPLES", 3)
    samples = keep_samples(tmp_path, rows(7), outcome(7))
    assert [each["key"][1] for each in samples] == kept_places(7) == [0, 2, 4]
    assert [each["before"]["completion"] for each in samples] == ["b0", "b2", "b4"]
    assert [each["after"]["completion"] for each in samples] == ["a0", "a2", "a4"]
    names = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert names == ["00000.jpg", "00002.jpg", "00004.jpg"]


def test_a_report_has_room_for_two_thousand_rows():
    assert len(kept_places(2_000)) == len(kept_places(9_999)) == 2_000


def test_pictures_beyond_the_fourth_are_counted(tmp_path: Path):
    (sample,) = keep_samples(tmp_path, rows(1, pictures=6), outcome(1))
    assert len(sample["pictures"]) == 4
    assert sample["pictures_left_out"] == 2


def test_without_answers_nothing_is_kept(tmp_path: Path):
    assert keep_samples(tmp_path, rows(1), Outcome(None, None, 1.0)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_row_is_recorded_by_what_was_asked_and_what_it_is_held_against():
    row: Any = PromptDataset([{"prompt": "p", "keywords": ["k"], "references": None, "x": 1}])[0]
    assert row_record(row) == {"key": ("train", 0), "prompt": "p", "keywords": ["k"]}


def test_columns_that_are_short_are_kept():
    columns = {
        "text": "x" * 80, "long": "x" * 81, "number": 1.5, "count": 3, "flag": False, "nan": math.nan,
        "none": None, "list": [1], "prompt": "p",
    }  # fmt: skip
    found = small_columns(columns, without=("prompt",))
    assert found == {"text": "x" * 80, "number": 1.5, "count": 3, "flag": False}
