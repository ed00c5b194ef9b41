"""Which of a row's keywords a caption says."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from rewards.text import Completion, completion_text, singular, text_column, words_of


@lru_cache(maxsize=4096)
def _in_common_form(text: str) -> str:
    """Lower-case words with plurals folded, a space around each: " red circle "."""
    return f" {' '.join(map(singular, words_of(text)))} "


def share_said(text: str, phrases: tuple[str, ...] | list[str]) -> float:
    """The share of distinct phrases that a text says, in [0, 1].

    A phrase is said if its words stand side by side in the text, in their order. Case, punctuation, plurals
    and possessives do not matter (`rewards.text.singular`); phrases that differ in these alone are one.

        share_said("Two red circles, a dog", ["red circle", "dogs", "cat"]) = 2/3

    Example:
        >>> from rewards import share_said
        >>> share_said("Two red circles, a dog", ["red circle", "dog", "cat", "two"])
        0.75
    """
    wanted = {_in_common_form(phrase) for phrase in phrases}
    if not wanted or "  " in wanted:
        raise ValueError(f"`phrases` must hold a phrase, each with a letter or digit; got {list(phrases)}.")
    said = _in_common_form(text)
    return sum(phrase in said for phrase in wanted) / len(wanted)


class KeywordCoverage:
    """Which share of a row's keywords the caption says, less what it should not say.

        R = said / keywords - penalty * said forbidden / forbidden       in [-penalty, 1]

    counted over distinct phrases by `share_said`. None where a row has no keywords; a row without forbidden
    phrases loses nothing. By hand, for the keywords ["red circle", "dog"] and the forbidden ["cat"]:

        "a red circle and a dog"  1      "RED CIRCLES"  0.5     "a circle that is red"  0
        "a dog and a cat"  0.5 - 1       ""  0

    As a potential over growing captions it never falls when words are added, without forbidden phrases; a
    word that is still being spelt may count as another ("cat" on the way to "category"), so cut prefixes at
    words. It asks for words alone: a pasted list of keywords earns 1. Put it beside a reward that reads
    sentences, or use `caption_detail`.

    Example:
        >>> from rewards import KeywordCoverage
        >>> reward = KeywordCoverage(forbidden_column="absent")
        >>> columns = {"keywords": [["red circle", "dog"]] * 2, "absent": [["cat"]] * 2}
        >>> reward(None, ["a red circle", "a dog and a cat"], **columns)
        [0.5, -0.5]
    """

    def __init__(
        self,
        keywords_column: str = "keywords",
        forbidden_column: str | None = None,
        *,
        penalty: float = 1.0,
    ) -> None:
        """Name the columns.

        Args:
            keywords_column: Column with a row's keywords or phrases, a string or a list of strings.
            forbidden_column: Column with phrases the caption should not say.
            penalty: What saying all of the forbidden phrases costs.
        """
        if not (math.isfinite(penalty) and penalty >= 0):
            raise ValueError(f"`penalty` must be a finite number >= 0; got {penalty}.")
        self.keywords_column = keywords_column
        self.forbidden_column = forbidden_column
        self.penalty = penalty
        self.__name__ = "keyword_coverage"

    def __repr__(self) -> str:
        return f"KeywordCoverage({self.keywords_column!r}, {self.forbidden_column!r}, penalty={self.penalty})"

    def __call__(
        self, prompts: list[Any] | None, completions: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion; None where a row's keywords are None or an empty list."""
        count = len(completions)
        wanted = _phrases(columns.get(self.keywords_column), self.keywords_column, count)
        unwanted: list[tuple[str, ...] | None] = [None] * count
        if self.forbidden_column is not None:
            unwanted = _phrases(columns.get(self.forbidden_column), self.forbidden_column, count)
        return [
            self._score(completion_text(completion), keywords, forbidden) if keywords else None
            for completion, keywords, forbidden in zip(completions, wanted, unwanted, strict=True)
        ]

    def _score(self, text: str, keywords: tuple[str, ...], forbidden: tuple[str, ...] | None) -> float:
        covered = share_said(text, keywords)
        return covered - self.penalty * share_said(text, forbidden) if forbidden else covered


def _phrases(values: Any, column: str, count: int) -> list[tuple[str, ...] | None]:
    rows = text_column(values, column, count, may_be_empty=True)
    for row, phrases in enumerate(rows):
        for phrase in phrases or ():
            if not words_of(phrase):
                raise ValueError(
                    f"row {row}: `{column}` holds {phrase!r}, which has no letter or digit to look for."
                )
    return rows
