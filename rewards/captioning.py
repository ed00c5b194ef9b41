"""The captioning reward: likeness to the references, supported detail, and no padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from rewards.bleu import sentence_bleu
from rewards.detail import caption_detail, says_something
from rewards.length import excess_length
from rewards.text import STOP_WORDS, Completion, completion_text, text_column

PARTS = ("bleu", "detail", "length")


class CaptioningReward:
    """Scores a caption against the reference captions of its picture.

        R = alpha * BLEU + beta * Detail - gamma * Length,   each part in [0, 1]

    The parts are `sentence_bleu`, `caption_detail` and `excess_length` of this package; their docstrings hold
    the formulas. A caption without a content word of the references or keywords gets BLEU 0 here: "a a a ."
    would have up to 0.2 of n-gram smoothing. R lies in [-gamma, alpha + beta]; an empty caption gets 0.

    An instance is a reward in TRL's protocol. A row whose references are None cannot be judged and gets None;
    a row with an empty list is an error of the data. Where the trainer offers `log_extra` and `log_metric`,
    as TRL's and mmft's do, the parts are logged apart: per completion as `bleu`, `detail`, `length`, and
    their means as `captioning/bleu` and so on.

    Example:
        >>> from rewards import CaptioningReward
        >>> reward = CaptioningReward(alpha=1.0, beta=0.5, gamma=0.1)
        >>> captions = ["a red circle and a blue square", "a red circle", "a red square"]
        >>> references = [["a red circle and a blue square"]] * 3
        >>> [round(score, 2) for score in reward(None, captions, references=references)]
        [1.5, 0.51, 0.17]
        >>> parts = reward.components(captions, references)
        >>> parts["detail"]  # "a red square" binds the colour to the wrong shape
        [1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.5,
        gamma: float = 0.1,
        *,
        target_length: int | None = None,
        references_column: str = "references",
        keywords_column: str = "keywords",
        stop_words: Collection[str] = STOP_WORDS,
    ) -> None:
        """Weigh the parts and name the columns.

        Args:
            alpha: Weight of BLEU.
            beta: Weight of Detail.
            gamma: Weight of Length, subtracted; so a positive number is a penalty.
            target_length: Words and punctuation marks that are free; by default the longest reference's.
            references_column: Column with a row's reference captions.
            keywords_column: Column with phrases that count as supported content too; used if the data has it.
            stop_words: Lower-case words without content; give your own for a language other than English.
        """
        for name, weight in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(
                    f"`{name}` must be a finite number >= 0; got {weight}. Set it to 0 to drop it."
                )
        if target_length is not None and target_length < 1:
            raise ValueError(f"`target_length` must be at least 1 or None; got {target_length}.")
        self.alpha, self.beta, self.gamma = alpha, beta, gamma
        self.target_length = target_length
        self.references_column = references_column
        self.keywords_column = keywords_column
        self.stop_words = frozenset(stop_words)
        self.__name__ = "captioning"  # what TRL and mmft call it in their metrics

    def __repr__(self) -> str:
        return f"CaptioningReward(alpha={self.alpha}, beta={self.beta}, gamma={self.gamma})"

    def __call__(
        self,
        prompts: list[Any] | None,
        completions: list[Completion],
        references: list[Any] | None = None,
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion; see the class for what None and an empty list of references mean."""
        columns["references"] = references
        parts = self.components(
            completions, columns.get(self.references_column), columns.get(self.keywords_column)
        )
        for name, values in parts.items():
            judged = [value for value in values if value is not None]
            if log_extra is not None:
                log_extra(name, values)
            if log_metric is not None and judged:
                log_metric(f"captioning/{name}", sum(judged) / len(judged))
        return [self._total(*row) for row in zip(*(parts[name] for name in PARTS), strict=True)]

    def components(
        self, completions: list[Completion], references: list[Any] | None, keywords: list[Any] | None = None
    ) -> dict[str, list[float | None]]:
        """The parts "bleu", "detail" and "length" of every completion, unweighted; None where not judged."""
        count = len(completions)
        reference_rows = text_column(references, self.references_column, count)
        keyword_rows = text_column(keywords or [None] * count, self.keywords_column, count, may_be_empty=True)
        rows = [
            self._parts(completion_text(completion), said, tags or ())
            for completion, said, tags in zip(completions, reference_rows, keyword_rows, strict=True)
        ]
        return {name: [row[index] for row in rows] for index, name in enumerate(PARTS)}

    def _parts(
        self, caption: str, references: tuple[str, ...] | None, keywords: tuple[str, ...]
    ) -> tuple[float | None, float | None, float | None]:
        if references is None:
            return None, None, None
        return (
            self._bleu(caption, references, keywords),
            caption_detail(caption, references, keywords, stop_words=self.stop_words),
            excess_length(caption, references, target_length=self.target_length),
        )

    def _bleu(self, caption: str, references: tuple[str, ...], keywords: tuple[str, ...]) -> float:
        if not says_something(caption, references, keywords, stop_words=self.stop_words):
            return 0.0
        return sentence_bleu(caption, references)

    def _total(self, bleu: float | None, detail: float | None, length: float | None) -> float | None:
        if bleu is None or detail is None or length is None:
            return None
        return self.alpha * bleu + self.beta * detail - self.gamma * length
