"""Regular expressions under a time limit: a policy writes the texts, and may find the one that never ends.

The `regex` package has what `re` lacks, a limit per match; sacrebleu and transformers bring it along.
"""

from __future__ import annotations

from typing import Any

import regex  # type: ignore[import-untyped]

SECONDS = 1.0
"""Longest time for one text; a pattern without nested repeats needs microseconds."""


class Pattern:
    """A compiled pattern whose every search ends within `seconds`."""

    def __init__(
        self, pattern: str, argument: str, *, ignore_case: bool = False, seconds: float = SECONDS
    ) -> None:
        """Compile it.

        Args:
            pattern: In the syntax of `re`; `.` does not match a line break unless the pattern says `(?s)`.
            argument: What an error calls the pattern: the argument, or the column and row, it came from.
            ignore_case: Whether "a" matches "A".
            seconds: The limit.
        """
        self.argument = argument
        self.seconds = seconds
        try:
            self.compiled: Any = regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
        except regex.error as error:
            raise ValueError(f"`{argument}` is no regular expression: {pattern!r}: {error}.") from error

    def matches(self, text: str, mode: str) -> bool:
        """Whether the pattern is found in the text ("search") or is all of it ("fullmatch")."""
        try:
            return getattr(self.compiled, mode)(text, timeout=self.seconds) is not None
        except TimeoutError as error:
            raise self._too_slow(text) from error

    def last_group(self, text: str) -> str | None:
        """The first group of the last match that has one, or None."""
        found = None
        try:
            for match in self.compiled.finditer(text, timeout=self.seconds):
                found = match.group(1) if match.group(1) is not None else found
        except TimeoutError as error:
            raise self._too_slow(text) from error
        return found

    def _too_slow(self, text: str) -> TimeoutError:
        return TimeoutError(
            f"`{self.argument}`: {self.compiled.pattern!r} took more than {self.seconds} s on a text of "
            f"{len(text)} characters ({text[:60]!r}...). Rewrite repeats inside repeats, as in '(a|aa)+'."
        )
