"""Rows that a card shows are spread over the held-out ones and come with what was said of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from PIL import Image

from mmft.data.rows import as_prompts
from mmft.report.card_samples import card_samples
from mmft.report.record import Evaluation, Outcome


def evaluation(texts: list[str], rewards: list[float], rows: list[int]) -> Evaluation:
    samples = [
        {"row": row, "completion": text, "reward": reward}
        for row, text, reward in zip(rows, texts, rewards, strict=True)
    ]
    return Evaluation({}, samples)


def test_rows_are_spread_and_both_answers_are_those_of_the_row(tmp_path: Path):
    rows: Any = as_prompts(
        [{"prompt": f"row {i}", "image": Image.new("RGB", (8, 8), (i, 0, 0))} for i in range(8)], "eval"
    )
    order = [7, 6, 5, 4, 3, 2, 1, 0]
    before = evaluation([f"before {i}" for i in order], [math.nan] * 8, order)
    after = evaluation([f"after {i}" for i in range(8)], [float(i) for i in range(8)], list(range(8)))
    found = card_samples(rows, Outcome(before, after, 1.0), tmp_path)
    assert [each.prompt for each in found] == ["row 0", "row 2", "row 4", "row 6"]
    assert [each.before for each in found] == ["before 0", "before 2", "before 4", "before 6"]
    assert [each.after for each in found] == ["after 0", "after 2", "after 4", "after 6"]
    assert [each.reward_before for each in found] == [None] * 4
    assert [each.reward_after for each in found] == [0.0, 2.0, 4.0, 6.0]
    assert [each.picture for each in found] == [f"card/{number}.jpg" for number in range(4)]
    with Image.open(tmp_path / "card" / "3.jpg") as picture:
        assert picture.getpixel((4, 4))[0] in range(4, 9)


def test_rows_without_pictures_write_none(tmp_path: Path):
    rows: Any = as_prompts([{"prompt": "a"}], "eval")
    said = evaluation(["x"], [1.0], [0])
    (sample,) = card_samples(rows, Outcome(said, said, 1.0), tmp_path)
    assert sample.picture is None
    assert not (tmp_path / "card").exists()


def test_without_held_out_rows_there_are_no_samples(tmp_path: Path):
    assert card_samples(None, Outcome(None, None, 1.0), tmp_path) == []
