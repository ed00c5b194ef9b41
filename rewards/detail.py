"""How much of what the references say a caption says too, in content words and in the pairs they form.

Pairs are what holds attributes to objects: "a red square" earns nothing for a picture of a red circle and a
blue square although both of its words are true. Made for languages that part words by spaces; the stop words
are English unless others are given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from rewards.text import (
    STOP_WORDS,
    Completion,
    Link,
    Pair,
    completion_text,
    content_words_and_links,
    text_column,
)

Unit = str | Pair


@dataclass(frozen=True, slots=True)
class Support:
    """What a caption may say: every unit of the references and keywords, and what Detail is measured by."""

    most: dict[Unit, int]
    """The largest count of each word and pair in any one reference or keyword."""
    richest: int
    """Number of distinct units in the reference that has most."""


@lru_cache(maxsize=1024)
def support(references: tuple[str, ...], keywords: tuple[str, ...], stop_words: frozenset[str]) -> Support:
    """Read the references and keywords once per set; keywords widen what counts, not what is asked for."""
    most: dict[Unit, int] = {}
    richest = 0
    for index, phrase in enumerate(chain(references, keywords)):
        words, links = content_words_and_links(phrase, stop_words)
        counts: Counter[Unit] = Counter(chain(words, (link[:2] for link in links)))
        for unit, count in counts.items():
            most[unit] = max(count, most.get(unit, 0))
        if index < len(references):
            richest = max(richest, len(counts))
    richest = richest or len(most)
    for phrase in chain(references, keywords):
        for first, second, loose in content_words_and_links(phrase, stop_words)[1]:
            if loose:  # "the circle is red" supports "red circle" too
                most.setdefault((second, first), 1)
    return Support(most, richest)


def caption_detail(
    caption: str,
    references: tuple[str, ...] | list[str],
    keywords: tuple[str, ...] | list[str] = (),
    *,
    stop_words: frozenset[str] = STOP_WORDS,
) -> float:
    """Supported content of one caption in [0, 1].

        Detail = (s / n) * min(1, s / m)

    The units of a text are its distinct content words (no stop words, plurals folded) and its distinct pairs
    of content words that stand side by side, in this order; around a form of "to be" the order is free. A
    word is known if a reference or keyword holds it; in a caption only pairs of two known words are units.

    s: supported units. A pair is supported if one reference or keyword holds it side by side. A word is
       supported if it is known and stands in no unsupported pair: bound to the wrong neighbour it earns
       nothing.
    n: units of the caption, plus every repeat beyond the largest count in any one reference. So what is
       unsupported or said again lowers the precision s / n.
    m: units of the richest reference (of all keywords together where the references have none).

    By hand, for the reference "a red circle and a blue square" (4 words, 2 pairs, m = 6):

        "a red circle"                    s = n = 3            1   * 3/6 = 0.5
        "a shiny red circle"              s = 3, n = 4         3/4 * 3/6 = 0.375
        "a red square and a blue circle"  s = 0                            0
        "red circle blue square"          s = 4, n = 7         4/7 * 4/6 = 0.381   (circle, blue): unsupported

    Example:
        >>> from rewards import caption_detail
        >>> references = ["a red circle and a blue square"]
        >>> caption_detail("a red circle", references)
        0.5
        >>> caption_detail("a red square and a blue circle", references)
        0.0
    """
    known = support(tuple(references), tuple(keywords), stop_words)
    all_words, links = content_words_and_links(caption, stop_words)
    words = Counter(all_words)
    pairs = Counter(_pair(link, known) for link in links if link[0] in known.most and link[1] in known.most)
    misbound = set(chain.from_iterable(pair for pair in pairs if pair not in known.most))
    supported = sum(word in known.most and word not in misbound for word in words)
    supported += sum(pair in known.most for pair in pairs)
    if not supported:
        return 0.0
    counts: Iterable[tuple[Unit, int]] = chain(words.items(), pairs.items())
    repeats = sum(max(0, count - max(1, known.most.get(unit, 1))) for unit, count in counts)
    precision = supported / (len(words) + len(pairs) + repeats)
    return precision * min(1.0, supported / known.richest)


def _pair(link: Link, known: Support) -> Pair:
    """The pair a caption's link states; "the circle is red" may state (circle, red) or (red, circle)."""
    first, second, loose = link
    return (second, first) if loose and (second, first) in known.most else (first, second)


def says_something(
    caption: str,
    references: tuple[str, ...] | list[str],
    keywords: tuple[str, ...] | list[str] = (),
    *,
    stop_words: frozenset[str] = STOP_WORDS,
) -> bool:
    """Whether a content word of the caption is known, however bound; true where none can be known."""
    known = support(tuple(references), tuple(keywords), stop_words)
    words, _ = content_words_and_links(caption, stop_words)
    return not known.most or any(word in known.most for word in words)


def detail_reward(
    prompts: list[Any] | None,
    completions: list[Completion],
    references: list[Any] | None = None,
    keywords: list[Any] | None = None,
    **columns: Any,
) -> list[float | None]:
    """`caption_detail` in TRL's protocol; None where a row has neither references nor keywords.

    Example:
        >>> from rewards import detail_reward
        >>> references = ["a red circle and a blue square", None]
        >>> detail_reward(None, ["a red circle", "a red circle"], references=references)
        [0.5, None]
    """
    count = len(completions)
    keyword_rows = text_column(keywords or [None] * count, "keywords", count, may_be_empty=True)
    if references is None and keywords is not None:
        references = [None] * count
    reference_rows = text_column(references, "references", count)
    return [
        caption_detail(completion_text(completion), said or (), tags or ()) if said or tags else None
        for completion, said, tags in zip(completions, reference_rows, keyword_rows, strict=True)
    ]
