"""What a judge said, read as a score, or as the reason why it is none.

Strict on purpose: an answer that could mean two scores has none. A guess would be a reward that nobody gave.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

AnswerFormat = str | Callable[[str], float | None]
"""`"number"`, `"json"`, a regular expression with a group around the score, or a function of the answer."""

_THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)
# A comma may be a decimal one ("8,5"), not one between thousands; "7/10", "7 out of 10", "70%" name the best.
_NUMBER = (
    r"(?<![\w.,/])(?P<value>[-+]?\d+(?:\.\d+|,\d{1,2})?)(?!\w|[.,]\d)"
    r"(?:\s*(?:/|out of)\s*(?P<best>\d+(?:\.\d+)?)|\s*(?P<percent>%))?"
)
_ANY = re.compile(_NUMBER)
_LABELLED = re.compile(
    r"\b(?:score|rating|grade|verdict)[^\w\n+-]{0,8}(?:(?:is|of|at|would be)[^\w\n+-]{0,8})?" + _NUMBER,
    re.IGNORECASE,
)
_GOES_ON = re.compile(r"\s*(?:-|\u2013|to|or)\s*\d")  # "7-8", "7 or 8"
_REFUSAL = re.compile(
    r"\b(?:sorry|can(?:no|['\u2019])t|unable|not able|won['\u2019]t|refuse|decline)\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of a chat completion."""

    text: str
    cut_off: bool = False
    """Whether the endpoint stopped it at the token limit."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A score on the judge's own scale, and why, if it said so."""

    score: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NoScore:
    """Why there is no score: a short kind to count by, and a message with an example in it."""

    kind: str
    message: str


class AnswerReader:
    """Reads scores out of answers.

    - `"number"`: "7", "Score: 7/10", "**8.5**". A number after "score", "rating", "grade" or "verdict" goes
      before others; two different ones, or a range, are `conflicting`.
    - `"json"`: the value of `score` in a JSON object, bare or inside other text; `reason` is kept.
    - A regular expression: its group `score`, or its only group.
    - A function: gets the text; None means that it holds no score.
    """

    def __init__(self, answer_format: AnswerFormat, scale: tuple[float, float] | None) -> None:
        """Check the format.

        Args:
            answer_format: How to read an answer; see the class.
            scale: The lowest and the highest score; None for any finite number.
        """
        self.scale = scale
        self._read = self._reader(answer_format)

    def __call__(self, answer: Answer) -> Verdict | NoScore:
        """The verdict, or the kind of failure."""
        text = _THOUGHTS.sub(" ", answer.text).strip()
        if not text:
            return NoScore("cut_off" if answer.cut_off else "empty", f"the answer was {answer.text[:200]!r}")
        found = self._read(Answer(text, answer.cut_off))
        if isinstance(found, str):
            kind = "refusal" if found == "no_number" and _REFUSAL.search(text) else found
            return NoScore(kind, f"the answer was {text[:300]!r}")
        low, high = self.scale or (-math.inf, math.inf)
        if not (math.isfinite(found.score) and low <= found.score <= high):
            return NoScore("out_of_range", f"the answer was {text[:300]!r}")
        return found

    def _reader(self, answer_format: AnswerFormat) -> Callable[[Answer], Verdict | str]:
        if callable(answer_format):
            function = answer_format
            return lambda answer: _called(function, answer)
        if answer_format in ("number", "json"):
            return self._number if answer_format == "number" else self._json
        try:
            pattern = re.compile(answer_format)
        except re.error as error:
            raise ValueError(
                f"`answer_format` {answer_format!r} is no regular expression: {error}."
            ) from error
        if "score" not in pattern.groupindex and pattern.groups != 1:
            raise ValueError(
                "`answer_format` must be 'number', 'json', a function, or a regular expression with one "
                f"group around the score or a group named `score`; got {answer_format!r}."
            )
        return lambda answer: self._pattern(pattern, answer)

    def _number(self, answer: Answer) -> Verdict | str:
        text = self._without_scale(re.sub(r"[*`]", "", answer.text))
        matches = list(_LABELLED.finditer(text)) or list(_ANY.finditer(text))
        if any(_GOES_ON.match(text, match.end()) for match in matches):
            return "conflicting"
        if any(self._is_on_another_scale("100" if match["percent"] else match["best"]) for match in matches):
            return "other_scale"
        # A number that the token limit may have cut ("1" of "10") is none.
        if answer.cut_off and matches and not text[matches[-1].end() :].strip():
            return "cut_off"
        return _one([_number(match["value"]) for match in matches])

    def _without_scale(self, text: str) -> str:
        """Drop "0 to 10" and the like where it repeats the scale; it is no score."""
        if self.scale is None:
            return text
        low, high = (re.escape(f"{bound:g}") for bound in self.scale)
        return re.sub(rf"(?<![\w.-]){low}\s*(?:-|\u2013|to|and)\s*{high}(?!\d|\.\d)", " ", text)

    def _is_on_another_scale(self, best: str | None) -> bool:
        return best is not None and self.scale is not None and float(best) != self.scale[1]

    def _json(self, answer: Answer) -> Verdict | str:
        objects = list(_json_objects(answer.text))
        scores = [self._json_score(value) for each in objects for key, value in each if key == "score"]
        kinds = [score for score in scores if isinstance(score, str)]
        if kinds:
            return kinds[0]
        found = _one([score for score in scores if not isinstance(score, str)])
        if isinstance(found, str):
            return "cut_off" if answer.cut_off and found == "no_number" else found
        reasons = [str(value) for each in objects for key, value in each if key == "reason"]
        return Verdict(found.score, reasons[0] if reasons else "")

    def _json_score(self, value: Any) -> float | str:
        if isinstance(value, str):
            verdict = self._number(Answer(value))
            return verdict if isinstance(verdict, str) else verdict.score
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return "no_number"
        try:
            return float(value)
        except OverflowError:
            return math.inf

    def _pattern(self, pattern: re.Pattern[str], answer: Answer) -> Verdict | str:
        group: str | int = "score" if "score" in pattern.groupindex else 1
        found = [match[group] for match in pattern.finditer(answer.text) if match[group] is not None]
        try:
            return _one([_number(text) for text in found])
        except ValueError:
            return "no_number"


def _called(function: Callable[[str], float | None], answer: Answer) -> Verdict | str:
    score = function(answer.text)
    return "no_number" if score is None else Verdict(float(score))


def _one(scores: Sequence[float]) -> Verdict | str:
    """The score if all agree on it."""
    if not scores:
        return "no_number"
    return Verdict(scores[0]) if len(set(scores)) == 1 else "conflicting"


def _number(text: str) -> float:
    return float(text.replace(",", "."))


def _json_objects(text: str) -> Iterator[list[tuple[str, Any]]]:
    """Every JSON object in a text as its pairs; a key that stands twice is kept twice."""
    decoder = json.JSONDecoder(object_pairs_hook=_Pairs)
    start = text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except RecursionError:
            return  # nested beyond reason
        except ValueError:
            end = start + 1
        else:
            yield found
        start = text.find("{", end)


class _Pairs(list[tuple[str, Any]]):
    """The pairs of a JSON object, told apart from a JSON list."""
