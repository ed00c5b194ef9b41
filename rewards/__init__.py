"""Rewards as plain callables: they need no trainer and know none.

Each follows the protocol of TRL's online trainers, `(prompts, completions, **columns) -> list[float | None]`,
so the same object serves mmft, TRL, or a loop of your own. Names load on first use: `import rewards` is
light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rewards.answers import ExactMatch, MultipleChoice, NumericAnswer
    from rewards.bleu import BleuReward, bleu_reward, sentence_bleu
    from rewards.captioning import CaptioningReward
    from rewards.checks import check
    from rewards.cider import CiderD, CiderReward, DocumentFrequencies
    from rewards.clip_score import ClipScore, RefClipScore
    from rewards.composite import CompositeReward
    from rewards.coverage import KeywordCoverage, share_said
    from rewards.detail import caption_detail, detail_reward
    from rewards.formats import FormatReward, RegexReward
    from rewards.judge import JudgeReward
    from rewards.length import LengthReward, excess_length, length_penalty
    from rewards.repetition import RepetitionPenalty, distinct_n, loop_share
    from rewards.rouge import RougeLReward, sentence_rouge_l
    from rewards.shaping import PotentialShaping, ShapedReward, potential_differences, shaped_reward
    from rewards.statistics import RunningStatistics
    from rewards.text import completion_text

__all__ = [
    "BleuReward",
    "CaptioningReward",
    "CiderD",
    "CiderReward",
    "ClipScore",
    "CompositeReward",
    "DocumentFrequencies",
    "ExactMatch",
    "FormatReward",
    "JudgeReward",
    "KeywordCoverage",
    "LengthReward",
    "MultipleChoice",
    "NumericAnswer",
    "PotentialShaping",
    "RefClipScore",
    "RegexReward",
    "RepetitionPenalty",
    "RougeLReward",
    "RunningStatistics",
    "ShapedReward",
    "bleu_reward",
    "caption_detail",
    "check",
    "completion_text",
    "detail_reward",
    "distinct_n",
    "excess_length",
    "length_penalty",
    "loop_share",
    "potential_differences",
    "sentence_bleu",
    "sentence_rouge_l",
    "shaped_reward",
    "share_said",
]

_HOME = {
    "BleuReward": "rewards.bleu",
    "CaptioningReward": "rewards.captioning",
    "CiderD": "rewards.cider",
    "CiderReward": "rewards.cider",
    "ClipScore": "rewards.clip_score",
    "CompositeReward": "rewards.composite",
    "DocumentFrequencies": "rewards.cider",
    "ExactMatch": "rewards.answers",
    "FormatReward": "rewards.formats",
    "JudgeReward": "rewards.judge",
    "KeywordCoverage": "rewards.coverage",
    "LengthReward": "rewards.length",
    "MultipleChoice": "rewards.answers",
    "NumericAnswer": "rewards.answers",
    "PotentialShaping": "rewards.shaping",
    "RefClipScore": "rewards.clip_score",
    "RegexReward": "rewards.formats",
    "RepetitionPenalty": "rewards.repetition",
    "RougeLReward": "rewards.rouge",
    "RunningStatistics": "rewards.statistics",
    "ShapedReward": "rewards.shaping",
    "bleu_reward": "rewards.bleu",
    "caption_detail": "rewards.detail",
    "check": "rewards.checks",
    "completion_text": "rewards.text",
    "detail_reward": "rewards.detail",
    "distinct_n": "rewards.repetition",
    "excess_length": "rewards.length",
    "length_penalty": "rewards.length",
    "loop_share": "rewards.repetition",
    "potential_differences": "rewards.shaping",
    "sentence_bleu": "rewards.bleu",
    "sentence_rouge_l": "rewards.rouge",
    "shaped_reward": "rewards.shaping",
    "share_said": "rewards.coverage",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rewards' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
