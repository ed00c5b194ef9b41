"""What each token of a completion adds to its text, as a reader sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Ends the text of tokens that stop within a character."""
WINDOW = 8
"""Tokens before one that are decoded with it: all of them would take time in the square of the length."""


def token_texts(processor: Any, ids: Sequence[int]) -> list[str]:
    """One text per token; together they are the decoded completion, special tokens included, but for spaces
    that the decoder takes back.

    A token that stops within a character adds nothing; the one that completes it adds the whole character.

    Args:
        processor: of the model, or its tokenizer.
        ids: the tokens.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    texts, places, width = [""] * len(ids), list(range(len(ids))), WINDOW
    while places:
        spans = [(max(0, place - width), place) for place in places]
        windows = [list(ids[start : place + more]) for more in (0, 1) for start, place in spans]
        decoded = tokenizer.batch_decode(windows, skip_special_tokens=False)
        unclear = []
        for (start, place), before, after in zip(
            spans, decoded[: len(spans)], decoded[len(spans) :], strict=True
        ):
            if start and not before.strip(INCOMPLETE):  # what is unfinished may have begun further ahead
                unclear.append(place)
                continue
            shown = before.rstrip(INCOMPLETE)
            whole = after.rstrip(INCOMPLETE) if place + 1 < len(ids) else after
            # Not all of `shown`: a decoder may take back a space that it has shown.
            texts[place] = whole[_num_common(shown, whole) :]
        places, width = unclear, 2 * width
    return texts


def _num_common(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
