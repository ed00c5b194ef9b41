"""A penalty that starts beyond a target length, so that it does not push good captions to be shorter."""

from __future__ import annotations

from typing import Any

from rewards.bleu import reference_ngrams, tokens
from rewards.text import Completion, completion_text, text_column


def excess_length(
    caption: str, references: tuple[str, ...] | list[str] = (), *, target_length: int | None = None
) -> float:
    """Length beyond the target, in [0, 1].

        Length = clip((len - target) / target, 0, 1)

    0 up to the target, 1 from twice the target on. Lengths count words and punctuation marks, as BLEU does,
    so that padding with dots is seen. The target is `target_length`, else the length of the longest
    reference.
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
    """Minus `excess_length` in TRL's protocol; None where a row has no references and there is no target."""
    if target_length is not None:
        return [-excess_length(completion_text(text), target_length=target_length) for text in completions]
    rows = text_column(references, "references", len(completions))
    return [
        None if phrases is None else -excess_length(completion_text(text), phrases)
        for text, phrases in zip(completions, rows, strict=True)
    ]
