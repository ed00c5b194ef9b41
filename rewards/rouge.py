"""ROUGE-L with the coco-caption tools' choices, all references in one pass.

The longest common subsequence is found with whole-number arithmetic instead of a table, and the references of
a picture lie side by side in one number, prepared once per set.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from rewards.ngrams import tokenizer
from rewards.text import Completion, score_captions

BETA = 1.2
"""Recall counts beta^2 times as much as precision; the coco-caption tools' value."""


@dataclass(frozen=True, slots=True)
class ReferencePositions:
    """Where each token stands: reference j owns a run of bits, its i-th token is the i-th bit of the run."""

    positions: dict[str, int]
    start: int
    """All runs full of ones; between two runs lies a zero that stops a carry."""
    runs: tuple[tuple[int, int], ...]
    """Per reference its run of ones and its length."""


@lru_cache(maxsize=1024)
def reference_positions(references: tuple[str, ...], tokenize: str = "13a") -> ReferencePositions:
    """Lay out the references once per set; bounded, since a step needs only the sets of its own prompts."""
    if not references:
        raise ValueError("`references` is empty. Give one reference at least.")
    split = tokenizer(tokenize)
    positions: dict[str, int] = {}
    runs, offset = [], 0
    for reference in references:
        words = split(reference)
        for index, word in enumerate(words, start=offset):
            positions[word] = positions.get(word, 0) | 1 << index
        runs.append(((1 << len(words)) - 1 << offset, len(words)))
        offset += len(words) + 1
    return ReferencePositions(positions, sum(run for run, _ in runs), tuple(runs))


def common_lengths(words: list[str], found: ReferencePositions) -> list[int]:
    """Length of the longest common subsequence of the caption and each reference.

    Hyyro 2004, "Bit-parallel LCS-length computation revisited": with M the positions of a token and V all
    ones at first, V = (V + (V & M)) | (V & ~M) for each token; the zeros of V at the end count the length.
    """
    state = found.start
    for word in words:
        here = state & found.positions.get(word, 0)
        if here:
            state = (state + here | state - here) & found.start
    return [length - (state & run).bit_count() for run, length in found.runs]


def sentence_rouge_l(
    caption: str, references: tuple[str, ...] | list[str], *, tokenize: str = "13a", beta: float = BETA
) -> float:
    """ROUGE-L of one caption in [0, 1] (Lin 2004, W04-1013, eq. 2-4, and as the coco-caption tools take it).

        F = (1 + beta^2) * P * R / (R + beta^2 * P)
        P = max_j LCS(caption, reference_j) / length of the caption
        R = max_j LCS(caption, reference_j) / length of reference_j

    The best precision and the best recall may be those of different references. LCS is the length of the
    longest common subsequence of tokens. Without a common token, as for an empty caption, F is 0.

    Args:
        caption: The text to score.
        references: One text at least.
        tokenize: "13a" (lower-cased words and punctuation marks) or "none" (pre-tokenised text).
        beta: Weight of recall.

    Example:
        >>> from rewards import sentence_rouge_l
        >>> sentence_rouge_l("a red circle", ["a red circle"])
        1.0
        >>> references = ["a red circle"]  # the order of words counts
        >>> sentence_rouge_l("a circle", references) > sentence_rouge_l("circle a", references)
        True
    """
    found = reference_positions(tuple(references), tokenize)
    words = tokenizer(tokenize)(caption)
    common = common_lengths(words, found)
    longest = max(common)
    if not longest:
        return 0.0
    precision = longest / len(words)
    recall = max(here / length for here, (_, length) in zip(common, found.runs, strict=True) if here)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


class RougeLReward:
    """`sentence_rouge_l` in TRL's protocol; None where a row's references are None.

    Example:
        >>> from rewards import RougeLReward
        >>> reward = RougeLReward()
        >>> reward(None, ["a red circle", "a dog", "a dog"], references=["a red circle", "one cat", None])
        [1.0, 0.0, None]
    """

    def __init__(self, references_column: str = "references", tokenize: str = "13a") -> None:
        """Name the column with the references and the tokeniser."""
        tokenizer(tokenize)
        self.references_column = references_column
        self.tokenize = tokenize
        self.__name__ = "rouge_l"

    def __repr__(self) -> str:
        return f"RougeLReward(tokenize={self.tokenize!r})"

    def __call__(
        self, prompts: list[Any] | None, completions: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One ROUGE-L per completion."""
        score, column = partial(sentence_rouge_l, tokenize=self.tokenize), self.references_column
        return score_captions(completions, columns.get(column), column, score)
