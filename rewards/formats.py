"""Rewards for the form of a completion, whatever it says: a pattern, or tags around its sections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rewards.patterns import SECONDS, Pattern
from rewards.text import Completion, completion_text, required_column

MODES = ("search", "fullmatch")


class RegexReward:
    r"""Whether the completion matches a regular expression.

        R = 1 if it does, else 0

    One pattern for all rows, or one per row from a column, where None gives None. By hand, for `\d+ dogs?`:

        mode "search"       "I see 2 dogs."  1    "2 dogs"  1    "two dogs"  0    ""  0
        mode "fullmatch"    "I see 2 dogs."  0    "2 dogs"  1

    Patterns are in the syntax of `re` and find line breaks only where they say so (`(?s)` lets a dot match
    them). A match that takes longer than `seconds` is an error, not a verdict: some texts make a pattern with
    repeats inside repeats run for years, and a policy may find them.

    Example:
        >>> from rewards import RegexReward
        >>> reward = RegexReward("^(yes|no)", ignore_case=True)
        >>> reward(None, ["Yes, two.", "I think no"])
        [1.0, 0.0]
    """

    def __init__(
        self,
        pattern: str | None = None,
        mode: str = "search",
        *,
        column: str | None = None,
        ignore_case: bool = False,
        seconds: float = SECONDS,
    ) -> None:
        """Give a pattern or a column.

        Args:
            pattern: The regular expression.
            mode: "search": it is found somewhere; "fullmatch": it is all of the completion.
            column: Column with each row's own pattern, instead of `pattern`.
            ignore_case: Whether "a" matches "A".
            seconds: Time limit for one completion.
        """
        if (pattern is None) == (column is None):
            raise ValueError(f"give `pattern` or `column`, not both or none; got {pattern!r} and {column!r}.")
        if mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)}; got {mode!r}.")
        if not seconds > 0:
            raise ValueError(f"`seconds` must be above 0; got {seconds}.")
        self.mode = mode
        self.column = column
        self.ignore_case = ignore_case
        self.seconds = seconds
        self.pattern = None if pattern is None else self._compiled(pattern, "pattern")
        self.__name__ = "regex"

    def __repr__(self) -> str:
        given = f"column={self.column!r}" if self.pattern is None else repr(self.pattern.compiled.pattern)
        return f"RegexReward({given}, mode={self.mode!r})"

    def __call__(
        self, prompts: list[Any] | None, completions: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion; None where a row has no pattern."""
        patterns = self._patterns(columns, len(completions))
        return [
            None if pattern is None else float(pattern.matches(completion_text(completion), self.mode))
            for completion, pattern in zip(completions, patterns, strict=True)
        ]

    def _patterns(self, columns: dict[str, Any], count: int) -> list[Pattern | None]:
        if self.column is None:
            return [self.pattern] * count
        values = required_column(columns.get(self.column), self.column, count)
        patterns: list[Pattern | None] = []
        for row, value in enumerate(values):
            if not isinstance(value, (str, type(None))):
                raise ValueError(f"row {row}: `{self.column}` must be a pattern or None; got {value!r}.")
            patterns.append(None if value is None else self._compiled(value, f"{self.column}` of row `{row}"))
        return patterns

    def _compiled(self, pattern: str, argument: str) -> Pattern:
        return Pattern(pattern, argument, ignore_case=self.ignore_case, seconds=self.seconds)


class FormatReward:
    """Whether the completion consists of sections in tags, each once, in order, with nothing around them.

        R = 1 if it does, else 0

    By hand, for the tags think, answer:

        "<think>two</think><answer>2</answer>"              1
        "<think>two</think> \\n <answer>2</answer>\\n"        1    white space is free
        "<answer>2</answer><think>two</think>"              0    order
        "<think>a</think><think>b</think><answer>2</answer>"  0    twice
        "<think></think><answer>2</answer>"                 0    empty; 1 with `may_be_empty`
        "Well: <think>two</think><answer>2</answer>"        0    text outside; 1 with `text_outside`
        "<think>two<answer>2</answer></think>"              0    nested

    Example:
        >>> from rewards import FormatReward
        >>> reward = FormatReward(["think", "answer"])
        >>> reward(None, ["<think>one and one</think> <answer>2</answer>", "<answer>2</answer>"])
        [1.0, 0.0]
    """

    def __init__(
        self,
        tags: Sequence[str] = ("think", "answer"),
        *,
        text_outside: bool = False,
        may_be_empty: bool = False,
        prefix: str = "",
    ) -> None:
        """Name the sections.

        Args:
            tags: Names of the tags, in their order; letters, digits, "_" and "-".
            text_outside: Whether text may stand before, between and after the sections.
            may_be_empty: Whether a section may hold nothing but white space.
            prefix: What the prompt already opened on the policy's behalf, such as "<think>"; it is put in
                front of the completion.
        """
        tags = [tags] if isinstance(tags, str) else list(tags)
        if not tags or len(set(tags)) != len(tags) or not all(re.fullmatch(r"[\w-]+", tag) for tag in tags):
            raise ValueError(f"`tags` must be different names without brackets; got {tags}.")
        self.tags = tags
        self.text_outside = text_outside
        self.may_be_empty = may_be_empty
        self.prefix = prefix
        self._marks = re.compile("|".join(f"</?{re.escape(tag)}>" for tag in tags))
        self._wanted = [mark for tag in tags for mark in (f"<{tag}>", f"</{tag}>")]
        self.__name__ = "format"

    def __repr__(self) -> str:
        return f"FormatReward({self.tags})"

    def __call__(
        self, prompts: list[Any] | None, completions: list[Completion], **columns: Any
    ) -> list[float | None]:
        """One reward per completion."""
        return [float(self._is_formed(completion_text(completion))) for completion in completions]

    def _is_formed(self, text: str) -> bool:
        # One pass over the marks; a single pattern for all of it would try every way to split the text.
        text = self.prefix + text
        if self._marks.findall(text) != self._wanted:
            return False
        pieces = self._marks.split(text)  # outside, inside, outside, ..., outside
        outside, inside = pieces[::2], pieces[1::2]
        return (self.text_outside or not any(map(str.strip, outside))) and (
            self.may_be_empty or all(map(str.strip, inside))
        )
