"""The checker for rewards that people write."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from rewards import CaptioningReward, check_reward


def fixed(answer: Any) -> Any:
    def my_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> Any:
        return answer

    return my_reward


def check(reward: Any, **columns: Any) -> list[float | None]:
    return check_reward(reward, prompts=["p", "q"], completions=["x", "y"], **columns)


def test_a_reward_that_keeps_the_protocol_passes():
    rewards = check(CaptioningReward(), references=[["x"], None])
    assert rewards == [1.5, None]


@pytest.mark.parametrize("answer", [[1, None], (1.0, None), [True, None], [torch.tensor(1.0), None]])
def test_numbers_of_every_kind_come_back_as_floats(answer: Any):
    assert check(fixed(answer)) == [1.0, None]


def test_an_asynchronous_reward_is_awaited():
    async def slow(completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    assert check(slow) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "my_reward returned 1 rewards for 2 completions"),
        (1.0, "my_reward must return a list with one number or None per completion; got 1.0"),
        ("ab", "my_reward must return a list"),
        (None, "my_reward must return a list"),
        ([1.0, float("nan")], "my_reward returned nan for row 1; return a finite number or None"),
        ([float("inf"), 1.0], "my_reward returned inf for row 0"),
        ([1.0, "good"], "my_reward returned 'good' for row 1"),
    ],
)
def test_a_broken_answer_is_named(answer: Any, message: str):
    with pytest.raises(ValueError, match=message):
        check(fixed(answer))
    with pytest.raises(ValueError, match=message):
        check(partial(fixed(answer)))


def test_a_reward_must_take_any_column():
    with pytest.raises(ValueError, match=r"must accept `\*\*columns`"):
        check(lambda prompts, completions: [0.0, 0.0])


def test_columns_must_be_as_long_as_the_prompts():
    with pytest.raises(ValueError, match="`references` has 1 entries for 2 prompts; give one each"):
        check(CaptioningReward(), references=[["x"]])
