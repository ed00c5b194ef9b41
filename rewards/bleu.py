"""Sentence BLEU as sacrebleu defines it, with the work on the references done once per set.

The formula and the counting are written here because sacrebleu's own sentence score counts every reference
again for each of the G completions of a prompt. Corpus BLEU stays sacrebleu's: see `mmft.evaluation`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from rewards.ngrams import MAX_ORDER, Ngram, ngrams, tokenizer, tokens
from rewards.text import Completion, score_captions

__all__ = [
    "MAX_ORDER",
    "BleuReward",
    "bleu_reward",
    "bleu_statistics",
    "coco_bleu",
    "reference_ngrams",
    "sentence_bleu",
    "smoothed_bleu",
    "tokens",
]

SMOOTHING = ("exp", "coco")
_TINY, _SMALL = 1e-15, 1e-9  # of the coco-caption tools, which add them to numerators and denominators


@dataclass(frozen=True, slots=True)
class ReferenceNgrams:
    """What BLEU needs of a set of references: the n-grams, how often at most in one of them, and lengths."""

    known: set[Ngram]
    repeated: tuple[dict[Ngram, int], ...]
    """Per order, the n-grams that some reference has more than once, with the largest count."""
    lengths: tuple[int, ...]


@lru_cache(maxsize=1024)
def reference_ngrams(references: tuple[str, ...], tokenize: str = "13a") -> ReferenceNgrams:
    """Count the references once per set; bounded, since a step needs only the sets of its own prompts."""
    if not references:
        raise ValueError("`references` is empty. Give one reference at least.")
    split = tokenizer(tokenize)
    known: set[Ngram] = set()
    repeated: tuple[dict[Ngram, int], ...] = tuple({} for _ in range(MAX_ORDER))
    lengths = []
    for reference in references:
        words = split(reference)
        lengths.append(len(words))
        may_repeat = True
        for most, found in zip(repeated, ngrams(words), strict=True):
            grams = list(found)
            known.update(grams)
            # Where no n-gram repeats, no longer one does.
            may_repeat = may_repeat and len(set(grams)) < len(grams)
            if may_repeat:
                for gram, count in Counter(grams).items():
                    if count > most.get(gram, 1):
                        most[gram] = count
    return ReferenceNgrams(known, repeated, tuple(lengths))


def sentence_bleu(
    caption: str,
    references: tuple[str, ...] | list[str],
    *,
    max_order: int = MAX_ORDER,
    tokenize: str = "13a",
    smoothing: str = "exp",
) -> float:
    """BLEU of one caption in [0, 1] (Papineni et al. 2002, doi:10.3115/1073083.1073135).

        BLEU = min(1, exp(1 - r/c)) * (p_1 * ... * p_N)^(1/N),   N = min(max_order, c)

    c is the caption's length, r the closest reference length (the shorter of two), p_n the share of the
    caption's n-grams found in the references (an n-gram counts at most as often as in one reference). The
    k-th order without a match takes 1 / (2^k * number of n-grams): "exp" smoothing (Chen and Cherry 2014,
    W14-3346, method 3). Without a matching word BLEU is 0. Equal to `sacrebleu.sentence_bleu(...,
    lowercase=True) / 100`.

    Args:
        caption: The text to score.
        references: One text at least.
        max_order: Longest n-gram, 1 to 4.
        tokenize: "13a" (lower-cased words and punctuation marks) or "none" (pre-tokenised text).
        smoothing: "exp", or "coco" for the numbers of the coco-caption tools: no smoothing but for
            p_n = (matches + 1e-15) / (n-grams + 1e-9), and N = max_order, however short the caption.

    Example:
        >>> from rewards import sentence_bleu
        >>> references = ["a red circle and a blue square"]
        >>> sentence_bleu("A red circle and a blue square.", references, max_order=1)  # 7 / 8: the dot
        0.875
        >>> sentence_bleu("a red circle", references) > sentence_bleu("circle a red", references)
        True
    """
    if not 1 <= max_order <= MAX_ORDER:
        raise ValueError(f"`max_order` must be between 1 and {MAX_ORDER}; got {max_order}.")
    if smoothing not in SMOOTHING:
        raise ValueError(f"`smoothing` must be one of {', '.join(SMOOTHING)}; got {smoothing!r}.")
    length, closest, matches = bleu_statistics(caption, references, max_order=max_order, tokenize=tokenize)
    if smoothing == "coco":
        return coco_bleu(length, closest, matches, [max(0, length - order) for order in range(max_order)])
    return smoothed_bleu(length, closest, matches)


def bleu_statistics(
    caption: str,
    references: tuple[str, ...] | list[str],
    *,
    max_order: int = MAX_ORDER,
    tokenize: str = "13a",
) -> tuple[int, int, list[int]]:
    """What BLEU is made of: tokens of the caption, closest reference length, matched n-grams per order.

    A corpus has the sums over its captions; a caption of c tokens has max(0, c - n + 1) n-grams.
    """
    found = reference_ngrams(tuple(references), tokenize)
    words = tokenizer(tokenize)(caption)
    length = len(words)
    closest = min(found.lengths, key=lambda other: (abs(other - length), other))
    return length, closest, _matches(words, found, max_order)


def _matches(words: list[str], found: ReferenceNgrams, max_order: int) -> list[int]:
    """Matched n-grams of each order, each n-gram at most as often as in one reference."""
    matches = [0] * max_order
    for order, grams in enumerate(map(list, ngrams(words)[:max_order])):
        matched = len(found.known.intersection(grams))  # each once
        if not matched:
            break  # nor is there a longer one
        for gram, most in found.repeated[order].items():
            count = grams.count(gram)
            if count > 1:
                matched += min(count, most) - 1
        matches[order] = matched
    return matches


def smoothed_bleu(length: int, closest: int, matches: list[int]) -> float:
    """BLEU of one caption from its statistics, the orders those of `matches`; see `sentence_bleu`."""
    if not matches[0]:
        return 0.0
    logs, halvings = 0.0, 0
    orders = min(len(matches), length)
    for order in range(orders):
        halvings += not matches[order]
        share = (matches[order] or 0.5**halvings) / (length - order)
        logs += math.log(share)
    return math.exp(min(0.0, 1 - closest / length) + logs / orders)


def coco_bleu(length: int, closest: int, matches: list[int], totals: list[int]) -> float:
    """BLEU of a caption or a corpus from its statistics, to the last digit of the coco-caption tools.

    Args:
        length: Tokens of the captions.
        closest: Tokens of their closest references.
        matches: Matched n-grams per order.
        totals: All n-grams of the captions per order.
    """
    shares = [(match + _TINY) / (total + _SMALL) for match, total in zip(matches, totals, strict=True)]
    ratio = (length + _TINY) / (closest + _SMALL)
    return math.prod(shares) ** (1 / len(matches)) * math.exp(min(0.0, 1 - 1 / ratio))


class BleuReward:
    """`sentence_bleu` in TRL's protocol; None where a row's references are None.

    Example:
        >>> from rewards import BleuReward
        >>> reward = BleuReward(max_order=2, references_column="captions")
        >>> reward.__name__  # what logs call it
        'bleu_2_reward'
        >>> reward(None, ["a red circle", "a dog", "a dog"], captions=["a red circle", ["a dog"], None])
        [1.0, 1.0, None]
    """

    def __init__(
        self, max_order: int = MAX_ORDER, references_column: str = "references", tokenize: str = "13a"
    ) -> None:
        """Choose BLEU-1 to BLEU-4 (`max_order`), the column with the references, and the tokeniser."""
        if not 1 <= max_order <= MAX_ORDER:
            raise ValueError(f"`max_order` must be between 1 and {MAX_ORDER}; got {max_order}.")
        tokenizer(tokenize)
        self.max_order = max_order
        self.references_column = references_column
        self.tokenize = tokenize
        self.__name__ = "bleu_reward" if max_order == MAX_ORDER else f"bleu_{max_order}_reward"

    def __repr__(self) -> str:
        return f"BleuReward(max_order={self.max_order}, tokenize={self.tokenize!r})"

    def __call__(
        self, prompts: list[Any] | None, completions: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One BLEU per completion."""
        score = partial(sentence_bleu, max_order=self.max_order, tokenize=self.tokenize)
        column = self.references_column
        return score_captions(completions, columns.get(column), column, score)


def bleu_reward(
    prompts: list[Any] | None,
    completions: list[Completion],
    references: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """BLEU-4 as a function: `BleuReward()` on the column `references`.

    Example:
        >>> from rewards import bleu_reward
        >>> scores = bleu_reward(None, ["a red circle", "a circle"], references=["a red circle"] * 2)
        >>> [round(score, 2) for score in scores]
        [1.0, 0.43]
    """
    return _DEFAULT(prompts, completions, references=references)


_DEFAULT = BleuReward()
