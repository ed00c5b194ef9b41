"""What a completion states as its answer: the part that holds it, its numbers, its text in a common form.

Pure functions; what a reading earns is said in `rewards.answers`. Choices are read in `rewards.choices`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable

from rewards.patterns import Pattern

Extractor = Callable[[str], str | None]
NORMALIZATIONS = ("none", "plain", "vqa")

_TAG = re.compile(r"<([A-Za-z][\w-]*)>")
_OPENING_MARKS = " \t\n\"'`*\u201c\u2018"
_CLOSING_MARKS = _OPENING_MARKS + ".,;:!?\u201d\u2019"
_ARTICLES = frozenset(("a", "an", "the"))
_DIGITS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}


def extractor(extract: str | None) -> Extractor:
    r"""How to find the answer in a completion; a completion without one gives None.

    - None: all of it.
    - `"<answer>"`: what stands in the last complete `<answer>...</answer>`; any tag name.
    - `"boxed"`: what stands in the last `\boxed{...}`; braces inside it are counted.
    - any other string: a regular expression with a group, which holds the answer; its last match counts.
    """
    if extract is None:
        return lambda text: text
    if extract == "boxed":
        return _last_boxed
    if tag := _TAG.fullmatch(extract):
        opening, closing = extract, f"</{tag[1]}>"
        return lambda text: _last_between(text, opening, closing)
    pattern = Pattern(extract, "extract")
    if not pattern.compiled.groups:
        raise ValueError(
            f"`extract` must be 'boxed', a tag as '<answer>', or a pattern with a group, as 'answer: (.+)'; "
            f"got {extract!r}."
        )
    return pattern.last_group


def _last_between(text: str, opening: str, closing: str) -> str | None:
    end = text.rfind(closing)
    start = text.rfind(opening, 0, max(end, 0))
    return text[start + len(opening) : end] if start >= 0 else None


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return None  # cut off before it was closed


def normalized(text: str, form: str) -> str:
    """A text in the form in which answers are compared.

    - "none": as written, without space around it.
    - "plain": case, kinds of white space and Unicode compatibility forms do not matter, nor do quotes around
      the text and sentence marks at its end: " Paris. " is "paris".
    - "vqa": also without articles, punctuation and apostrophes, and "none", "zero" to "ten" as digits, in the
      manner of the VQA benchmarks: "The two dogs!" is "2 dogs". Decimal points, minus signs and % and
      currency signs stay; thousands lose their commas.
    """
    if form == "none":
        return text.strip()
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    text = text.lstrip(_OPENING_MARKS).rstrip(_CLOSING_MARKS)
    if form == "plain":
        return text
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"['`\u2018\u2019]|\.(?!\d)", "", text)
    text = re.sub(r"(?<=\w)-|-(?!\d)", " ", text.replace("\u2212", "-"))
    text = "".join(sign if _is_kept(sign) else " " for sign in text)
    return " ".join(_DIGITS.get(word, word) for word in text.split() if word not in _ARTICLES)


def _is_kept(sign: str) -> bool:
    category = unicodedata.category(sign)
    return category[0] in "LMN" or category == "Sc" or sign in ".-%"


# Atomic groups (?>...) keep a number whole: without them "15^2" would give up its 5 and be read as 1.
_VALUE = r"(?>(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<!\.)\.\d+)(?>[eE][-+\u2212]?\d+)?"
_NUMBER = re.compile(
    rf"""
    (?<![\w^])(?<!\d[./])(?<!\^[-+\u2212])                # in no word, power, date or version
    (?P<sign>(?<![)\]])[-+\u2212])?[$\u20ac\u00a3\u00a5]?
    (?P<whole>\d+[ ]+(?=\d+/\d))?                         # the 1 of 1 3/4
    (?P<value>{_VALUE})
    (?:\s?/\s?(?P<divisor>{_VALUE}))?
    (?![\d^\u00b2\u00b3\u00b9\u2070-\u2079]|\.\d|\s?/\s?\d)
    (?P<percent>\s?(?:\\?%|per\ ?cent\b))?
    """,
    re.VERBOSE,
)
_FRACTION = r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"
_LATEX = (
    (re.compile(rf"(?<![-+\u2212]){_FRACTION}"), r" \1/\2"),  # the space keeps 1\frac{3}{4} apart
    (re.compile(_FRACTION), r"\1/\2"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\^\{([^{}]*)\}"), r"^\1"),
    (re.compile(r"\{,\}|(?<=\d)\\[,!](?=\d)"), ","),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|\u00d7|\*)\s*10\^([-+\u2212]?\d+)"), r"e\1"),
)


def read_numbers(text: str, *, percent: bool = True) -> list[float]:
    r"""The numbers of a text, in order.

    Read are 12, -3 (also with the minus sign of mathematics), 1,234.5, .5, 1e-3, 3/4, 1 3/4, $5, 12cm, 25%
    (0.25; 25 if `percent` is false), 1.2 x 10^3 and, of LaTeX, \frac{3}{4}. Not read are numerals inside
    words and names (H2O), dates and versions (3/4/2020, 1.2.3), powers (5^2), a division by zero, and number
    words. A hyphen after a word or a number is no minus: "3-4" are 3 and 4.
    """
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    numbers = [_number(match, percent) for match in _NUMBER.finditer(text)]
    return [number for number in numbers if math.isfinite(number)]


def _number(match: re.Match[str], percent: bool) -> float:
    number = _float(match["value"])
    if match["divisor"] is not None:
        divisor = _float(match["divisor"])
        number = number / divisor if divisor else math.nan
    if match["whole"] is not None:
        number += _float(match["whole"])
    if match["percent"] is not None and percent:
        number /= 100
    return -number if match["sign"] in ("-", "\u2212") else number


def _float(numeral: str) -> float:
    return float(numeral.replace(",", "").replace("\u2212", "-"))
