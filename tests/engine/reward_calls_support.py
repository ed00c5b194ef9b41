"""What the tests of reward calls share: two prompts with two completions each, and rewards that fail."""

from __future__ import annotations

import math
from typing import Any

import PIL.Image

from mmft.engine.judging import Judgement, RewardSuite
from mmft.engine.reward_calls import Isolation
from mmft.types import PromptRow

MASK = Isolation(on_error="mask")


def row(index: int, **columns: Any) -> PromptRow:
    asked = [{"role": "user", "content": "Describe."}]
    return PromptRow(("train", index), "Describe.", asked, [PIL.Image.new("RGB", (1, 1))], columns)


def score(suite: RewardSuite, **options: Any) -> Judgement:
    """Two prompts, two completions each."""
    ids = [[[1], [1, 2]], [[1, 2, 3], [4]]]
    return suite.score([row(0), row(1)], [["a", "bb"], ["ccc", "d"]], ids, **options)


def length(completions: list[str], **columns: Any) -> list[float | None]:
    return [float(len(text)) for text in completions]


def fails_on_ccc(completions: list[str], **columns: Any) -> list[float | None]:
    if "ccc" in completions:
        raise ValueError("cannot count to three")
    return [10.0 * len(text) for text in completions]


def not_a_number_for_ccc(completions: list[str], **columns: Any) -> list[float | None]:
    return [math.inf if text == "ccc" else 10.0 * len(text) for text in completions]
