"""Several measures over the same rows, with rows that cannot be judged left out and counted."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmft.evaluation.metrics.clip import clip_score
from mmft.evaluation.metrics.measures import MeasureResult, Rows, bleu, cider_d, rouge_l


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure by short name."""

    compute: Callable[..., MeasureResult]
    """Called with the predictions, the columns it `takes` in that order, and its options by keyword."""
    takes: tuple[str, ...]
    needs: str
    """The column without which a row cannot be judged."""


METRICS: dict[str, Measure] = {
    "bleu": Measure(bleu, ("references",), needs="references"),
    "rouge_l": Measure(rouge_l, ("references",), needs="references"),
    "cider_d": Measure(cider_d, ("references",), needs="references"),
    "clip_score": Measure(clip_score, ("references", "images"), needs="images"),
}
"""The measures that `corpus_metrics` knows. Their results are named `bleu_1` to `bleu_4`, `rouge_l`,
`cider_d`, `clip_score`, and `ref_clip_score` where asked for."""


@dataclass(frozen=True, slots=True)
class CorpusResult:
    """What the measures say of N rows.

    Example:
        >>> from mmft.evaluation.metrics import corpus_metrics
        >>> found = corpus_metrics(["rouge_l"], ["a red circle", "a dog"], ["a red circle", "one cat"])
        >>> found.scores, found.num_judged
        ({'rouge_l': 0.5}, {'rouge_l': 2})
        >>> found.signatures["rouge_l"].split("|")[:2]
        ['name:rouge_l', 'nrefs:1']
    """

    scores: dict[str, float]
    """By result name, over the rows that the measure could judge."""
    per_sample: dict[str, list[float | None]]
    """By result name, N numbers; None where a row could not be judged. BLEU's are smoothed sentence BLEU."""
    signatures: dict[str, str]
    """By measure, the settings that its numbers depend on."""
    num_judged: dict[str, int]
    """By measure, the number of rows that it could judge."""
    of_rows: dict[str, Rows] = field(default_factory=dict)
    """For scores that are no mean over rows (BLEU): the score of the rows with these indices, for a bootstrap
    over rows. It passes over rows that could not be judged."""


def corpus_metrics(
    names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str] | str | None] | None = None,
    images: Sequence[Any] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> CorpusResult:
    """Score N rows by each measure.

    Args:
        names: Short names of `METRICS`.
        predictions: N captions.
        references: N lists of texts, as many per row as there are; a row's None leaves it out.
        images: N pictures or lists of pictures; a row's None leaves it out.
        options: By short name, arguments of the measure, as `{"cider_d": {"document_frequencies": path}}`.

    Raises:
        ValueError: An unknown name, columns that are missing or of other lengths, no row to judge.

    Example:
        >>> from mmft.evaluation.metrics import corpus_metrics
        >>> found = corpus_metrics(["bleu", "rouge_l"], ["a red circle", "a dog"], [["a red circle"], None])
        >>> found.scores["bleu_1"], found.per_sample["rouge_l"]
        (1.0, [1.0, None])
        >>> found.num_judged
        {'bleu': 1, 'rouge_l': 1}
    """
    options = options or {}
    for name in (*names, *options):
        _check_name(name)
    columns = {"references": references, "images": images}
    _check_lengths(predictions, columns)
    if references is not None:
        columns["references"] = [_texts(row, value) for row, value in enumerate(references)]
    result = CorpusResult({}, {}, {}, {})
    for name in names:
        judged = _judged(name, len(predictions), columns)
        found = _on_rows(name, judged, predictions, columns, options.get(name, {}))
        result.scores.update(found.scores)
        result.signatures[name] = found.signature
        result.num_judged[name] = len(judged)
        for key, values in found.per_sample.items():
            spread: list[float | None] = [None] * len(predictions)
            for row, value in zip(judged, values, strict=True):
                spread[row] = value
            result.per_sample[key] = spread
        result.of_rows.update({key: _renumbered(of, judged) for key, of in found.of_rows.items()})
    return result


def _on_rows(
    name: str,
    judged: list[int],
    predictions: Sequence[str],
    columns: Mapping[str, Sequence[Any] | None],
    options: Mapping[str, Any],
) -> MeasureResult:
    taken = [columns[key] for key in METRICS[name].takes]
    kept = [None if column is None else [column[row] for row in judged] for column in taken]
    return METRICS[name].compute([predictions[row] for row in judged], *kept, **options)


def _renumbered(of_rows: Rows, judged: list[int]) -> Rows:
    """`of_rows` counts the judged rows; callers count all."""
    places = {row: place for place, row in enumerate(judged)}

    def score(rows: NDArray[np.intp]) -> float:
        return of_rows(np.array([places[row] for row in rows.tolist() if row in places], dtype=np.intp))

    return score


def _judged(name: str, num_rows: int, columns: Mapping[str, Sequence[Any] | None]) -> list[int]:
    needs = METRICS[name].needs
    column = columns[needs]
    if column is None:
        raise ValueError(f"`{name}` needs `{needs}`; got none. Give them, or leave the measure out.")
    rows = [row for row in range(num_rows) if column[row] is not None]
    if not rows:
        raise ValueError(f"`{name}` has no row to judge: of {num_rows} rows none has `{needs}`.")
    return rows


def _texts(row: int, value: Sequence[str] | str | None) -> list[str] | None:
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else list(value)
    if not texts:
        raise ValueError(f"row {row}: `references` is empty. Give a text at least, or None for no answer.")
    return texts


def _check_name(name: str) -> None:
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known are {', '.join(METRICS)}."
        raise ValueError(f"there is no measure {name!r}. {hint}")


def _check_lengths(predictions: Sequence[str], columns: Mapping[str, Sequence[Any] | None]) -> None:
    if isinstance(predictions, str):
        raise ValueError(f"`predictions` must be a list of texts; got {predictions!r}.")
    for name, column in columns.items():
        if column is not None and len(column) != len(predictions):
            raise ValueError(
                f"`{name}` has {len(column)} entries for {len(predictions)} predictions. Give one per row."
            )
