"""What each token of a completion adds to its text, as a reader sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Ends the text of tokens that stop within a character."""


def token_texts(processor: Any, ids: Sequence[int]) -> list[str]:
    """One text per token; together they are the decoded completion, special tokens included, but for spaces
    that the decoder takes back.

    A token that stops within a character adds nothing; the one that completes it adds the whole character.

    Args:
        processor: of the model, or its tokenizer.
        ids: the tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    prefixes = [list(ids[:end]) for end in range(1, len(ids) + 1)]
    decoded = tokenizer.batch_decode(prefixes, skip_special_tokens=False) if prefixes else []
    texts, shown = [], ""
    for number, prefix in enumerate(decoded, start=1):
        whole = prefix.rstrip(INCOMPLETE) if number < len(decoded) else prefix
        # Not all of `shown`: a decoder may take back a space that it has shown.
        texts.append(whole[_num_common(shown, whole) :])
        shown = whole
    return texts


def _num_common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
