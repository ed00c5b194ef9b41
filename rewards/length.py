"""Penalties that start beyond a target length or a range, so that they do not push good captions about."""

from __future__ import annotations

import math
from typing import Any

from rewards.bleu import reference_ngrams, tokens
from rewards.text import Completion, completion_text, required_column, text_column

UNITS = ("words", "tokens", "characters")


def excess_length(
    caption: str, references: tuple[str, ...] | list[str] = (), *, target_length: int | None = None
) -> float:
    """Length beyond the target, in [0, 1].

        Length = clip((len - target) / target, 0, 1)

    0 up to the target, 1 from twice the target on. Lengths count words and punctuation marks, as BLEU does,
    so that padding with dots is seen. The target is `target_length`, else the length of the longest
    reference.

    Example:
        >>> from rewards import excess_length
        >>> [excess_length("word " * count, target_length=4) for count in (3, 4, 5, 6, 8, 20)]
        [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    """
    if target_length is None:
        if not references:
            raise ValueError("`references` is empty and `target_length` is None; give one of them.")
        target_length = max(1, *reference_ngrams(tuple(references)).lengths)
    if target_length < 1:
        raise ValueError(f"`target_length` must be at least 1; got {target_length}.")
    return min(1.0, max(0.0, (len(tokens(caption)) - target_length) / target_length))


def length_penalty(
    prompts: list[Any] | None,
    completions: list[Completion],
    references: list[Any] | None = None,
    *,
    target_length: int | None = None,
    **columns: Any,
) -> list[float | None]:
    """Minus `excess_length` in TRL's protocol; None where a row has no references and there is no target.

    Example:
        >>> from rewards import length_penalty
        >>> length_penalty(None, ["a cat on a mat now", "a cat"], references=["a black cat on", None])
        [-0.5, None]
        >>> length_penalty(None, ["a cat on a mat"], target_length=4)
        [-0.25]
    """
    if target_length is not None:
        return [-excess_length(completion_text(text), target_length=target_length) for text in completions]
    rows = text_column(references, "references", len(completions))
    return [
        None if phrases is None else -excess_length(completion_text(text), phrases)
        for text, phrases in zip(completions, rows, strict=True)
    ]


class LengthReward:
    r"""A penalty for completions outside a range of lengths, with soft edges.

        R = -min(1, slope * max(0, min_length - len, len - max_length))      in [-1, 0]

    Nothing inside the range, `slope` for each unit outside it, and -1 at the most. By hand, for a range of 4
    to 8 and a slope of 0.25:

        len    0     1     2     3     4 ... 8     9     10    11    12    13
        R     -1   -0.75  -0.5  -0.25  0     0   -0.25  -0.5  -0.75  -1    -1

         0 |            ___________
           |          /             \
        -1 |_______ /                 \_________
                    min_length   max_length

    The slope lets a policy feel its way back; a hard edge would give the same to all that are outside. A
    target length is a range with both ends the same.

    Example:
        >>> from rewards import LengthReward
        >>> reward = LengthReward(min_length=2, max_length=4, slope=0.25)
        >>> reward(None, ["cat", "a black cat", "a black cat on a mat"])
        [-0.25, 0.0, -0.5]
    """

    def __init__(
        self,
        min_length: int | None = None,
        max_length: int | None = None,
        *,
        unit: str = "words",
        slope: float = 0.1,
    ) -> None:
        """Say the range.

        Args:
            min_length: Shortest length that costs nothing; None for no lower end.
            max_length: Longest length that costs nothing; None for no upper end.
            unit: "words": parts between spaces; "tokens": of the column `completion_ids`, which trainers
                give and which counts the end token; "characters".
            slope: What a unit outside the range costs.
        """
        if min_length is None and max_length is None:
            raise ValueError("`min_length` and `max_length` are both None; give one of them at least.")
        for name, length in (("min_length", min_length), ("max_length", max_length)):
            if length is not None and length < 0:
                raise ValueError(f"`{name}` must be at least 0 or None; got {length}.")
        if min_length is not None and max_length is not None and min_length > max_length:
            raise ValueError(f"`min_length` must be at most `max_length`; got {min_length} > {max_length}.")
        if unit not in UNITS:
            raise ValueError(f"`unit` must be one of {', '.join(UNITS)}; got {unit!r}.")
        if not (math.isfinite(slope) and slope > 0):
            raise ValueError(f"`slope` must be a finite number > 0; got {slope}.")
        self.min_length, self.max_length = min_length, max_length
        self.unit = unit
        self.slope = slope
        self.__name__ = "length"

    def __repr__(self) -> str:
        return f"LengthReward({self.min_length}, {self.max_length}, unit={self.unit!r}, slope={self.slope})"

    def __call__(
        self,
        prompts: list[Any] | None,
        completions: list[Completion],
        completion_ids: list[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion."""
        if self.unit != "tokens":
            texts = [completion_text(completion) for completion in completions]
            return [self._score(len(text.split() if self.unit == "words" else text)) for text in texts]
        if completion_ids is None:
            raise ValueError(
                "`unit` is 'tokens' and no `completion_ids` came with the completions. Trainers give them; "
                "elsewhere count words."
            )
        rows = required_column(completion_ids, "completion_ids", len(completions))
        return [self._score(len(ids)) for ids in rows]

    def _score(self, length: int) -> float:
        missing = 0 if self.min_length is None else self.min_length - length
        beyond = 0 if self.max_length is None else length - self.max_length
        return 0.0 - min(1.0, self.slope * max(0, missing, beyond))
