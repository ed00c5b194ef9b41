"""Penalties for saying the same thing again: repeated n-grams, and loops too short to have many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rewards.text import Completion, completion_text, words_of

# A loop is a block of words said three times in a row; twice may be meant ("very very small").
LEAST_REPEATS = 3


def distinct_n(words: Sequence[str], n: int) -> float | None:
    """Distinct-n (Li et al. 2016, arXiv:1510.03055): distinct n-grams / all n-grams, in (0, 1].

    None for fewer than n words, which have no n-gram. "a b a b a" has 4 bigrams, 2 of them distinct: 0.5.

    Example:
        >>> from rewards import distinct_n
        >>> distinct_n("a b a b a".split(), 2)
        0.5
    """
    if n < 1:
        raise ValueError(f"`n` must be at least 1; got {n}.")
    ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return len(set(ngrams)) / len(ngrams) if ngrams else None


def loop_share(words: Sequence[str], longest_block: int) -> float:
    """The share of words that only go on with a loop, in [0, 1).

    A loop is a block of up to `longest_block` words said at least three times in a row; its first block is
    not counted. The longest loop counts. "a a a a" has 3 of 4, "very very small" has none, "red cat red cat
    red cat sat" 4 of 7.

    Example:
        >>> from rewards import loop_share
        >>> loop_share("a a a a".split(), 3), loop_share("very very small".split(), 3)
        (0.75, 0.0)
    """
    longest = 0
    for block in range(1, longest_block + 1):
        run = 0  # words in a row that equal the one a block earlier
        for word, earlier in zip(words[block:], words, strict=False):
            run = run + 1 if word == earlier else 0
            if run >= (LEAST_REPEATS - 1) * block:
                longest = max(longest, run)
    return longest / len(words) if words else 0.0


class RepetitionPenalty:
    """A penalty for repeated n-grams of words and for loops.

        R = -max_penalty * max(1 - distinct_n, loop_share)      in [-max_penalty, 0]

    over lower-case words, without punctuation. A text with fewer than n words has no n-grams; it can still
    loop. By hand, for n = 3 and max_penalty = 1:

        "a red circle and a red circle"   5 trigrams, 4 distinct    -0.2
        "a a a a"                         2 trigrams, 1 distinct; 3 of 4 words loop    -0.75
        "a red circle", "very very", ""    0

    Example:
        >>> from rewards import RepetitionPenalty
        >>> reward = RepetitionPenalty(n=3)
        >>> reward(None, ["a red circle", "a a a a", "very very small"])
        [0.0, -0.75, 0.0]
    """

    def __init__(self, n: int = 3, *, max_penalty: float = 1.0) -> None:
        """Choose what counts as a repeat.

        Args:
            n: Words per n-gram, and the longest block of a loop.
            max_penalty: What a text without anything new would cost; a positive number.
        """
        if n < 1:
            raise ValueError(f"`n` must be at least 1; got {n}.")
        if not (math.isfinite(max_penalty) and max_penalty >= 0):
            raise ValueError(f"`max_penalty` must be a finite number >= 0; got {max_penalty}.")
        self.n = n
        self.max_penalty = max_penalty
        self.__name__ = "repetition"

    def __repr__(self) -> str:
        return f"RepetitionPenalty(n={self.n}, max_penalty={self.max_penalty})"

    def __call__(
        self, prompts: list[Any] | None, completions: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion."""
        return [self._score(words_of(completion_text(completion))) for completion in completions]

    def _score(self, words: list[str]) -> float:
        distinct = distinct_n(words, self.n)
        repeated = 0.0 if distinct is None else 1.0 - distinct
        return 0.0 - self.max_penalty * max(repeated, loop_share(words, self.n))
