"""Rewards for questions that have an answer: the same text, the right choice, the right number.

Each reads the completion, or the part of it that `extract` names (see `rewards.reading.extractor`), and gives
1 or 0. A completion from which no answer can be read gets 0, a row without an answer None. There is no credit
for being close: under doubt it would pay to say something between two likely answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from rewards.choices import letters_for, read_choice
from rewards.reading import NORMALIZATIONS, extractor, normalized, read_numbers
from rewards.text import Completion, completion_text, required_column, text_column

LogExtra = Callable[[str, list[Any]], None]
WHICH = ("last", "first", "only")


class ExactMatch:
    """Whether the completion is an accepted answer, case and punctuation set aside.

        R = min(1, m / agreement),   m = number of the row's accepted answers that equal the completion

    in [0, 1]. The column holds a string, or a list of strings of which each is accepted (numbers may be
    integers). With ten answers by ten people and `agreement=3` R is the VQA accuracy of Antol et al. 2015
    (arXiv:1505.00468): full marks for what three people said. By hand, with the accepted answers
    ["two", "2", "2 dogs"]:

        "Two."        plain 1    vqa 1          "2!"            plain 1    vqa 1
        "the 2 dogs"  plain 0    vqa 1          "I see two"     plain 0    vqa 0

    A completion without any sign left after normalisation matches nothing.

    Example:
        >>> from rewards import ExactMatch
        >>> reward = ExactMatch(extract="<answer>")
        >>> completions = ["I count <answer>Two.</answer>", "two", "<answer>3</answer>"]
        >>> reward(None, completions, answer=[["two", "2"], "two", None])
        [1.0, 0.0, None]
    """

    def __init__(
        self,
        answer_column: str = "answer",
        *,
        normalize: str = "plain",
        agreement: int = 1,
        extract: str | None = None,
    ) -> None:
        """Say where the answers are and how they are compared.

        Args:
            answer_column: Column with a row's accepted answers.
            normalize: "none", "plain" or "vqa"; see `rewards.reading.normalized`.
            agreement: Number of equal entries among a row's answers that earn the full mark.
            extract: Where the answer stands in the completion: None for all of it, "<answer>" for a tag,
                "boxed", or a pattern with a group.
        """
        if normalize not in NORMALIZATIONS:
            raise ValueError(f"`normalize` must be one of {', '.join(NORMALIZATIONS)}; got {normalize!r}.")
        if agreement < 1:
            raise ValueError(f"`agreement` must be at least 1; got {agreement}.")
        self.answer_column = answer_column
        self.normalize = normalize
        self.agreement = agreement
        self.extract = extract
        self._extracted = extractor(extract)
        self.__name__ = "exact_match"

    def __repr__(self) -> str:
        return f"ExactMatch({self.answer_column!r}, normalize={self.normalize!r}, extract={self.extract!r})"

    def __call__(
        self,
        prompts: list[Any] | None,
        completions: list[Completion],
        *,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion; what was read goes to `log_extra` as "read"."""
        values = required_column(columns.get(self.answer_column), self.answer_column, len(completions))
        accepted = text_column([_with_text(value) for value in values], self.answer_column, len(completions))
        read = [self._read(completion) for completion in completions]
        if log_extra is not None:
            log_extra("read", list(read))
        return [
            None if answers is None else self._score(said, answers)
            for said, answers in zip(read, accepted, strict=True)
        ]

    def _read(self, completion: Completion) -> str | None:
        said = self._extracted(completion_text(completion))
        return None if said is None else normalized(said, self.normalize)

    def _score(self, said: str | None, answers: tuple[str, ...]) -> float:
        if not said:
            return 0.0
        matches = sum(said == normalized(answer, self.normalize) for answer in answers)
        return min(1.0, matches / self.agreement)


class MultipleChoice:
    """Whether the completion settles on the right one of several choices.

        R = 1 if it does, else 0

    The answer is a letter ("B", "(b)"), the text of a choice, or the place of the choice as an integer,
    counted from 0; the last two need `choices_column`, and give None where it is None. A completion may name
    the letter, or the text if the choices are given; `rewards.choices.read_choice` says how it is read. By
    hand, for the answer "B" among ["a cat", "two dogs", "a hot dog"]:

        "B", "(b)", "B.", "Answer: B", "the answer is (b)", "Two dogs.", "not A, B", "B. two dogs"    1
        "A", "a cat sits", "two", "B or C", "the answer is B. the answer is C", "B. a cat", ""         0

    Example:
        >>> from rewards import MultipleChoice
        >>> reward = MultipleChoice(choices_column="choices")
        >>> choices = [["a cat", "two dogs"]] * 3
        >>> reward(None, ["(b)", "Two dogs.", "A or B"], answer=["B", 1, "two dogs"], choices=choices)
        [1.0, 1.0, 0.0]
    """

    def __init__(
        self,
        answer_column: str = "answer",
        choices_column: str | None = None,
        *,
        letters: str = "ABCDEFGH",
        extract: str | None = None,
    ) -> None:
        """Name the columns.

        Args:
            answer_column: Column with the right choice.
            choices_column: Column with the texts of a row's choices, in the order of their letters.
            letters: Which letters are choices, in rows without texts.
            extract: Where the answer stands in the completion: None for all of it, "<answer>" for a tag,
                "boxed", or a pattern with a group.
        """
        if not letters.isalpha() or not letters.isascii() or letters != letters.upper():
            raise ValueError(f"`letters` must be capitals from A to Z; got {letters!r}.")
        self.answer_column = answer_column
        self.choices_column = choices_column
        self.letters = letters
        self.extract = extract
        self._extracted = extractor(extract)
        self.__name__ = "multiple_choice"

    def __repr__(self) -> str:
        return f"MultipleChoice({self.answer_column!r}, {self.choices_column!r}, extract={self.extract!r})"

    def __call__(
        self,
        prompts: list[Any] | None,
        completions: list[Completion],
        *,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion; the letters that were read go to `log_extra` as "read"."""
        count = len(completions)
        answers = required_column(columns.get(self.answer_column), self.answer_column, count)
        choices = self._choices(columns, count)
        read = [self._read(completion, texts) for completion, texts in zip(completions, choices, strict=True)]
        if log_extra is not None:
            log_extra("read", list(read))
        right = [
            self._letter(answer, texts, row)
            for row, (answer, texts) in enumerate(zip(answers, choices, strict=True))
        ]
        return [
            None if is_right is None else float(said == is_right)
            for said, is_right in zip(read, right, strict=True)
        ]

    def _choices(self, columns: dict[str, Any], count: int) -> list[tuple[str, ...]]:
        if self.choices_column is None:
            return [()] * count
        values = required_column(columns.get(self.choices_column), self.choices_column, count)
        return [self._texts(value, row) for row, value in enumerate(values)]

    def _texts(self, value: Any, row: int) -> tuple[str, ...]:
        if value is None:
            return ()
        texts = tuple(map(_with_text, value)) if isinstance(value, (list, tuple)) else ()
        if not 2 <= len(texts) <= 26 or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"row {row}: `{self.choices_column}` must be a list of 2 to 26 strings, or None; got "
                f"{value!r}."
            )
        return texts

    def _read(self, completion: Completion, texts: tuple[str, ...]) -> str | None:
        said = self._extracted(completion_text(completion))
        return None if said is None else read_choice(said, self._letters(texts), texts)

    def _letters(self, texts: tuple[str, ...]) -> str:
        return letters_for(len(texts)) if texts else self.letters

    def _letter(self, answer: Any, texts: tuple[str, ...], row: int) -> str | None:
        """The letter of a row's right choice."""
        if answer is None:
            return None
        letters = self._letters(texts)
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
            return letters[answer]
        if isinstance(answer, str):
            letter = answer.strip().strip("().").upper()
            if len(letter) == 1 and letter in letters:
                return letter
            same = [
                letter
                for letter, text in zip(letters, texts, strict=False)
                if normalized(text, "plain") == normalized(answer, "plain")
            ]
            if len(same) == 1:
                return same[0]
        if not texts and self.choices_column is not None:
            return None  # the answer is a choice of which this row says nothing
        raise ValueError(
            f"row {row}: `{self.answer_column}` must be a letter of {letters}, or with `choices_column` the "
            f"text of one choice or its place from 0; got {answer!r} with the choices {list(texts)}."
        )


class NumericAnswer:
    r"""Whether the number that the completion gives is the right one.

        R = 1 if |x - y| <= max(abs_tolerance, rel_tolerance * |y|), else 0

    x is the number read from the completion, y the row's answer: a number, a string with one number, or a
    list of them of which each is accepted. `rewards.reading.read_numbers` says what a number looks like. By
    hand, for y = 1234.5:

        "1,234.5", "It is $1234.50.", "2469/2", "\boxed{1234.5}"    1
        "1234", "12345", "about a thousand", ""                     0
        "between 1000 and 1234.5"                                   1 (the last number), "only": 0

    Example:
        >>> from rewards import NumericAnswer
        >>> reward = NumericAnswer(abs_tolerance=0.5)
        >>> reward(None, ["About 3 of them.", "1,200 in all", "many"], answer=[3, "1200.4", 7])
        [1.0, 1.0, 0.0]
    """

    def __init__(
        self,
        answer_column: str = "answer",
        *,
        abs_tolerance: float = 0.0,
        rel_tolerance: float = 1e-6,
        which: str = "last",
        percent: bool = True,
        extract: str | None = None,
    ) -> None:
        """Say where the answer is and how near is right.

        Args:
            answer_column: Column with the right number.
            abs_tolerance: Largest distance that counts as right.
            rel_tolerance: The same as a share of the right number; the default only forgives rounding.
            which: Which number of the completion counts: the "last" or the "first", or the "only" one, so
                that a completion with two different numbers gets 0.
            percent: Whether 25% is read as 0.25, in completions and answers; otherwise as 25.
            extract: Where the answer stands in the completion: None for all of it, "<answer>" for a tag,
                "boxed", or a pattern with a group.
        """
        for name, tolerance in (("abs_tolerance", abs_tolerance), ("rel_tolerance", rel_tolerance)):
            if not (math.isfinite(tolerance) and tolerance >= 0):
                raise ValueError(f"`{name}` must be a finite number >= 0; got {tolerance}.")
        if which not in WHICH:
            raise ValueError(f"`which` must be one of {', '.join(WHICH)}; got {which!r}.")
        self.answer_column = answer_column
        self.abs_tolerance, self.rel_tolerance = abs_tolerance, rel_tolerance
        self.which = which
        self.percent = percent
        self.extract = extract
        self._extracted = extractor(extract)
        self.__name__ = "numeric_answer"

    def __repr__(self) -> str:
        return (
            f"NumericAnswer({self.answer_column!r}, abs_tolerance={self.abs_tolerance}, "
            f"rel_tolerance={self.rel_tolerance}, which={self.which!r}, extract={self.extract!r})"
        )

    def __call__(
        self,
        prompts: list[Any] | None,
        completions: list[Completion],
        *,
        log_extra: LogExtra | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion; the numbers that were read go to `log_extra` as "read"."""
        values = required_column(columns.get(self.answer_column), self.answer_column, len(completions))
        accepted = [self._accepted(value, row) for row, value in enumerate(values)]
        read = [self._read(completion) for completion in completions]
        if log_extra is not None:  # as text: their mean over a batch would say nothing
            log_extra("read", [None if number is None else f"{number:g}" for number in read])
        return [
            None if answers is None else float(number is not None and self._is_right(number, answers))
            for number, answers in zip(read, accepted, strict=True)
        ]

    def _read(self, completion: Completion) -> float | None:
        said = self._extracted(completion_text(completion))
        numbers = [] if said is None else read_numbers(said, percent=self.percent)
        if not numbers or (self.which == "only" and len(set(numbers)) > 1):
            return None
        return numbers[0] if self.which == "first" else numbers[-1]

    def _accepted(self, value: Any, row: int) -> list[float] | None:
        if value is None:
            return None
        entries = list(value) if isinstance(value, (list, tuple)) else [value]
        numbers = [number for entry in entries for number in self._number(entry)]
        if not entries or len(numbers) != len(entries):
            raise ValueError(
                f"row {row}: `{self.answer_column}` must be a number, a string with one number, or a list of "
                f"them; got {value!r}. Give None for a row without an answer."
            )
        return numbers

    def _number(self, entry: Any) -> list[float]:
        """The one number of an entry in a list; empty where there is none or more than one."""
        if isinstance(entry, str):
            numbers = read_numbers(entry, percent=self.percent)
            return numbers if len(numbers) == 1 else []
        if isinstance(entry, bool) or not isinstance(entry, Real) or not math.isfinite(entry):
            return []
        return [float(entry)]

    def _is_right(self, number: float, answers: list[float]) -> bool:
        return any(
            abs(number - answer) <= max(self.abs_tolerance, self.rel_tolerance * abs(answer))
            for answer in answers
        )


def _with_text(value: Any) -> Any:
    """Integers as text, alone and in lists: data sets store the answer "2" in both ways."""
    if isinstance(value, (list, tuple)):
        return [_with_text(entry) for entry in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
