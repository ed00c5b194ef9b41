"""Texts of models and data made fit for a page: valid, of a sane length, and nothing cut in silence.

Escaping is not done here: it belongs to whoever writes the HTML.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

MAX_TEXT = 4_000
"""Characters of a prompt, a reference or a completion."""
MAX_LABEL = 120
"""Characters of a name."""
MAX_ITEMS = 50
"""Entries of a list that a setting holds."""
MAX_NAMES = 1_000
"""Entries of a mapping."""
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters but tab and line ends, and halves of surrogate pairs, which are no UTF-8."""


class Texts:
    """Cleans texts, and counts those it had to cut.

    Attributes:
        num_cut: texts that were longer than they may be.
    """

    def __init__(self) -> None:
        self.num_cut = 0

    def __call__(self, value: Any, limit: int = MAX_TEXT) -> str:
        """The value as text of at most `limit` characters."""
        text = clean(value)
        if len(text) <= limit:
            return text
        self.num_cut += 1
        return text[: limit - 1] + ELLIPSIS

    def notes(self) -> list[str]:
        """What the page says of it."""
        if not self.num_cut:
            return []
        return [
            f"{count(self.num_cut, 'text')} longer than {MAX_TEXT:,} characters (names: {MAX_LABEL}) "
            f"{'is' if self.num_cut == 1 else 'are'} cut, and end with {ELLIPSIS}."
        ]


def clean(value: Any) -> str:
    """The value as text that any encoding takes; what it could not take is marked by U+FFFD."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", value if isinstance(value, str) else str(value))


def short(value: Any, limit: int = MAX_LABEL) -> str:
    """A name, cut with an ellipsis."""
    text = clean(value)
    return text if len(text) <= limit else text[: limit - 1] + ELLIPSIS


def tidy(value: Any) -> Any:
    """A setting or another tree of values as JSON knows it: clean texts, numbers that are finite."""
    if isinstance(value, Mapping):
        return {short(key): tidy(each) for key, each in itertools.islice(value.items(), MAX_NAMES)}
    if isinstance(value, (list, tuple)):
        left_out = len(value) - MAX_ITEMS
        more = [f"{ELLIPSIS} and {left_out:,} more"] if left_out > 0 else []
        return [tidy(each) for each in value[:MAX_ITEMS]] + more
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else short(value, MAX_TEXT)


def number(value: Any) -> float | None:
    """The value as a finite number, or None; a boolean is none."""
    if type(value) is float:  # most of a long log
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON has integers of any length
        return None
    return found if math.isfinite(found) else None


def rounded(value: Any) -> float | None:
    """A number in six significant digits, which no reader of a curve misses; None for what is none."""
    found = number(value)
    return None if found is None else float(f"{found:.6g}")


def count(how_many: int, what: str) -> str:
    """How many, in words."""
    return f"{how_many:,} {what}{'' if how_many == 1 else 's'}"
