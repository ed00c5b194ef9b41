"""What changed from one answer to the next, word by word."""

from __future__ import annotations

import difflib
import re

KEPT, GONE, NEW = "=", "-", "+"
MAX_WORDS = 400
"""Of the longer answer; beyond it all has changed: a comparison takes the square of their number."""
_WORDS = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")


def word_diff(before: str, after: str) -> list[tuple[str, str]]:
    """Runs of words with what became of them.

    What was kept and what is gone together are `before`, what was kept and what is new are `after`.

    Returns:
        pairs of "=", "-" or "+" and a text.
    """
    one, other = _WORDS.findall(before), _WORDS.findall(after)
    if max(len(one), len(other)) > MAX_WORDS:
        return _joined([(KEPT, before)] if before == after else [(GONE, before), (NEW, after)])
    # Without `autojunk`, which takes frequent words for noise once there are 200.
    matcher = difflib.SequenceMatcher(None, [*map(str.strip, one)], [*map(str.strip, other)], autojunk=False)
    runs = []
    for tag, start, end, other_start, other_end in matcher.get_opcodes():
        if tag == "equal":
            pairs = zip(one[start:end], other[other_start:other_end], strict=True)
            runs += [run for pair in pairs for run in _same_word(*pair)]
        else:
            runs += [(GONE, "".join(one[start:end])), (NEW, "".join(other[other_start:other_end]))]
    return _joined(runs)


def _same_word(one: str, other: str) -> list[tuple[str, str]]:
    """A word with the space before it, which may differ: at the start of a text there is none."""
    if one == other:
        return [(KEPT, one)]
    word = one.strip()
    return [(GONE, one.removesuffix(word)), (NEW, other.removesuffix(word)), (KEPT, word)]


def _joined(runs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    joined: list[tuple[str, str]] = []
    for tag, text in runs:
        if joined and joined[-1][0] == tag:
            joined[-1] = (tag, joined[-1][1] + text)
        elif text:
            joined.append((tag, text))
    return joined
