"""Every reward of the package keeps the protocol, by the package's own checker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import rewards
from rewards import KeywordCoverage, check

# Every reward that needs no network and no model, as it is used on the made-up rows.
SHIPPED: dict[str, Callable[[], Any]] = {
    "BleuReward": rewards.BleuReward,
    "CaptioningReward": rewards.CaptioningReward,
    "CiderReward": rewards.CiderReward,
    "CompositeReward": lambda: rewards.CompositeReward(
        {"text": rewards.BleuReward(), "tags": KeywordCoverage()}
    ),
    "ExactMatch": rewards.ExactMatch,
    "FormatReward": rewards.FormatReward,
    "KeywordCoverage": lambda: KeywordCoverage(forbidden_column="answer"),
    "LengthReward": lambda: rewards.LengthReward(2, 5),
    "LengthReward of tokens": lambda: rewards.LengthReward(4, 5, unit="tokens"),
    "MultipleChoice": lambda: rewards.MultipleChoice(choices_column="choices"),
    "NumericAnswer": rewards.NumericAnswer,
    "PotentialShaping": lambda: rewards.PotentialShaping(KeywordCoverage()),
    "RegexReward": lambda: rewards.RegexReward("red"),
    "RegexReward by row": lambda: rewards.RegexReward(column="answer"),
    "RepetitionPenalty": rewards.RepetitionPenalty,
    "RougeLReward": rewards.RougeLReward,
    "ShapedReward": lambda: rewards.ShapedReward(rewards.BleuReward(), KeywordCoverage()),
    "bleu_reward": lambda: rewards.bleu_reward,
    "detail_reward": lambda: rewards.detail_reward,
    "length_penalty": lambda: rewards.length_penalty,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_reward_of_the_package_keeps_the_protocol(name: str):
    values = check(SHIPPED[name]())
    assert len(values) == 2
    assert None not in values


def test_no_reward_of_the_package_is_left_out():
    scored = {name.split()[0] for name in SHIPPED}
    # They need a model, or a service; their own tests call the checker.
    elsewhere = {"ClipScore", "RefClipScore", "JudgeReward"}
    offered = {
        name for name in rewards.__all__ if name.endswith(("Reward", "Score", "_reward", "Match", "Penalty"))
    }
    offered -= {"shaped_reward"}  # an equation
    assert offered - elsewhere <= scored
