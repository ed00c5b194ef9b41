"""From what a trainer hands over (messages, columns) to plain text, and from text to content words.

No stemmer, tagger or language model on purpose: every number a reward gives can be worked out by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

Completion = str | list[dict[str, Any]]
Pair = tuple[str, str]
Link = tuple[str, str, bool]
"""Two content words side by side, and whether a form of "to be" stands between them."""

TO_BE = frozenset("am are be been being is was were".split())

# Words that say nothing about a picture. Places (left, above), numbers and negations do: they are not here.
STOP_WORDS = TO_BE | frozenset(
    """a an the this that these those there here it its he him his she her hers they them their theirs we us
    our you your i me my who whom whose which what where when while how and or but nor so yet if than then as
    of in on at to into onto with by for from about via per also too very just some any such own same other
    have has had having do does did doing can could will would shall should may might must each both image
    picture photo photograph show shows showing shown see seen depict depicts depicting contain contains
    containing""".split()
)

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")  # both apostrophes
_POSSESSIVE = re.compile(r"['\u2019]s$")


def completion_text(completion: Completion) -> str:
    """The text of a completion: the string, or the text of its last message (a string or content blocks).

    Example:
        >>> from rewards import completion_text
        >>> completion_text("a cat"), completion_text([{"role": "assistant", "content": "a cat"}])
        ('a cat', 'a cat')
    """
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, str) or content is None:
        return content or ""
    return " ".join(block["text"] for block in content if block.get("type") == "text")


def as_phrases(value: Any, column: str, row: int, *, may_be_empty: bool) -> tuple[str, ...] | None:
    """One row of a text column as a tuple of phrases; None (cannot judge) stays None, blanks go."""
    if value is None:
        return None
    phrases = [value] if isinstance(value, str) else value
    if not isinstance(phrases, Sequence) or not all(isinstance(phrase, str) for phrase in phrases):
        raise ValueError(f"row {row}: `{column}` must be a string or a list of strings; got {value!r}.")
    kept = tuple(phrase for phrase in phrases if phrase.strip())
    if not kept and not may_be_empty:
        raise ValueError(
            f"row {row}: `{column}` is empty ({value!r}). Give a phrase at least, or None for no answer."
        )
    return kept


def required_column(values: Any, column: str, num_rows: int) -> Sequence[Any]:
    """A column as it came, its presence and length checked."""
    if values is None:
        raise ValueError(
            f"the reward needs a column `{column}` and the data has none. Rename yours to `{column}` or name "
            "it in the reward's arguments."
        )
    if isinstance(values, str) or len(values) != num_rows:
        raise ValueError(
            f"`{column}` must be a list with an entry per completion ({num_rows}); got {values!r}."
        )
    present: Sequence[Any] = values
    return present


def text_column(
    values: Any, column: str, num_rows: int, *, may_be_empty: bool = False
) -> list[tuple[str, ...] | None]:
    """A whole column through `as_phrases`, its presence and length checked first."""
    rows = required_column(values, column, num_rows)
    return [as_phrases(value, column, row, may_be_empty=may_be_empty) for row, value in enumerate(rows)]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; an apostrophe inside a word stays."""
    return _WORD.findall(text.lower())


def score_captions(
    completions: Sequence[Completion],
    references: Any,
    column: str,
    score: Callable[[str, tuple[str, ...]], float],
) -> list[float | None]:
    """`score(caption, references)` of every completion; None where a row's references are None."""
    rows = text_column(references, column, len(completions))
    return [
        None if phrases is None else score(completion_text(completion), phrases)
        for completion, phrases in zip(completions, rows, strict=True)
    ]


def singular(word: str) -> str:
    """Drop a possessive and a plain English plural, so that "circles" and "circle's" meet "circle".

    The rules conflate little and are applied to captions and references alike, so an odd result does no harm.
    """
    word = _POSSESSIVE.sub("", word)
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes", "zes")) else word[:-1]


@lru_cache(maxsize=1024)
def content_words_and_links(
    text: str, stop_words: frozenset[str]
) -> tuple[tuple[str, ...], tuple[Link, ...]]:
    """Content words in order, and the links between those that stand side by side.

    A stop word parts its neighbours, a form of "to be" and punctuation do not: "red circle" and "red, circle"
    link (red, circle), "circle is red" links (circle, red) loosely, "red and circle" links nothing.
    """
    words: list[str] = []
    links: list[Link] = []
    previous, loose = None, False
    for raw in words_of(text):
        if raw in TO_BE and raw in stop_words:
            loose = True
        elif raw in stop_words:
            previous = None
        else:
            word = singular(raw)
            words.append(word)
            if previous is not None:
                links.append((previous, word, loose))
            previous, loose = word, False
    return tuple(words), tuple(links)
