"""Sentence BLEU as sacrebleu defines it, with the work on the references done once.

sacrebleu owns the tokeniser and the formula. Only the n-gram counting is here, because its own sentence score
counts every reference again for each of the G completions of a prompt.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from rewards.text import Completion, completion_text, text_column

MAX_ORDER = 4
Ngram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReferenceNgrams:
    """What BLEU needs of a set of references: the largest count of each n-gram, and the lengths."""

    counts: dict[Ngram, int]
    lengths: tuple[int, ...]


@lru_cache(maxsize=1)
def _scorer() -> BLEU:
    # Building one costs more than scoring a caption. `effective_order`: sacrebleu's advice for one sentence.
    return BLEU(lowercase=True, smooth_method="exp", effective_order=True, max_ngram_order=MAX_ORDER)


def tokens(text: str) -> list[str]:
    """Lower-case 13a tokens, words and punctuation, as sacrebleu counts them."""
    return _scorer().tokenizer(text.lower().rstrip()).split()


def _ngrams(words: list[str]) -> Counter[Ngram]:
    counts: Counter[Ngram] = Counter()
    for order in range(1, MAX_ORDER + 1):
        counts.update(
            zip(*(words[start:] for start in range(order)), strict=False)
        )  # zip ends with the shortest
    return counts


@lru_cache(maxsize=1024)
def reference_ngrams(references: tuple[str, ...]) -> ReferenceNgrams:
    """Count the references once per set; bounded, since a step needs only the sets of its own prompts."""
    counts: dict[Ngram, int] = {}
    lengths = []
    for reference in references:
        words = tokens(reference)
        lengths.append(len(words))
        for ngram, count in _ngrams(words).items():
            counts[ngram] = max(count, counts.get(ngram, 0))
    return ReferenceNgrams(counts, tuple(lengths))


def sentence_bleu(caption: str, references: tuple[str, ...] | list[str]) -> float:
    """BLEU-4 of one caption in [0, 1] (Papineni et al. 2002, doi:10.3115/1073083.1073135).

        BLEU = min(1, exp(1 - r/c)) * (p_1 * ... * p_N)^(1/N),   N = min(4, c)

    c is the caption's length, r the closest reference length, p_n the share of the caption's n-grams found in
    the references (an n-gram counts at most as often as in one reference). The k-th order without a match
    takes 1 / (2^k * number of n-grams): "exp" smoothing (Chen and Cherry 2014, W14-3346, method 3). Without a
    matching word BLEU is 0. Equal to `sacrebleu.sentence_bleu(..., lowercase=True) / 100`.
    """
    found = reference_ngrams(tuple(references))
    words = tokens(caption)
    correct, total = [0] * MAX_ORDER, [0] * MAX_ORDER
    for ngram, count in _ngrams(words).items():
        total[len(ngram) - 1] += count
        correct[len(ngram) - 1] += min(count, found.counts.get(ngram, 0))
    closest = min(found.lengths, key=lambda length: (abs(length - len(words)), length))
    score = BLEU.compute_bleu(correct, total, len(words), closest, "exp", effective_order=True).score
    return min(1.0, score / 100)  # a perfect caption comes out as 100.00000000000004


def bleu_reward(
    prompts: list[Any] | None,
    completions: list[Completion],
    references: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """`sentence_bleu` in TRL's protocol; None where a row's `references` is None."""
    rows = text_column(references, "references", len(completions))
    return [
        None if phrases is None else sentence_bleu(completion_text(completion), phrases)
        for completion, phrases in zip(completions, rows, strict=True)
    ]
