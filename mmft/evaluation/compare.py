"""Two runs on the same rows: per measure the difference, how sure it is, and who wins how often."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mmft.errors import DataError
from mmft.evaluation.bootstrap import Estimate, Numbers, Resampling, complete_pairs, interval, mean_estimate

TIE = 1e-6
"""Rewards are single precision: a smaller difference is none."""
NAMED_ROWS = 3
CorpusScore: TypeAlias = Callable[[NDArray[np.intp]], float]
"""The score of the rows with these indices; one may occur several times."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of two runs over the rows for which both have a number."""

    first: float
    second: float
    difference: Estimate
    """second - first."""
    wins: float | None = None
    """Share of rows in which the second run is better; None for a score that no single row has."""
    ties: float | None = None
    losses: float | None = None
    p_value: float | None = None
    """Of a sign-flip test of no difference: how often chance alone moves the mean as far, either way. None
    where there is no test: for a corpus score, and for fewer than two rows."""


def match_rows(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    names: tuple[str, str] = ("the first run", "the second run"),
) -> list[int]:
    """For every key of the first run its place in the second.

    Raises:
        DataError: a run has a row that the other lacks, or a row twice; the message names some.
    """
    runs = dict(zip(names, (first, second), strict=True))
    for name, keys in runs.items():
        if len({*keys}) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{name} has row {twice} more than once; rows are matched by key.")
    places = {key: place for place, key in enumerate(second)}
    known = {*first}
    only = ([key for key in first if key not in places], [key for key in second if key not in known])
    missing = [f"only {name} has {_named(keys)}" for name, keys in zip(names, only, strict=True) if keys]
    if missing:
        raise DataError(
            f"the two runs answer different rows: {'; '.join(missing)}. Use the same dataset, split and "
            "`max_eval_rows` for both."
        )
    return [places[key] for key in first]


def compare_rows(first: Numbers, second: Numbers, resampling: Resampling) -> Comparison:
    """The mean of a measure in two runs, `second[i]` being for the same row as `first[i]`.

    The interval of mean(second - first) resamples rows, both runs' numbers together: what a hard row costs
    both does not blur it. The test flips the signs of the differences, exactly where rows are few.
    """
    x, y, left_out = complete_pairs(first, second)
    differences = y - x
    estimate = mean_estimate(differences, resampling)
    estimate = Estimate(
        estimate.value, estimate.low, estimate.high, len(x), left_out, _reason(len(x)) or estimate.reason
    )
    if len(x) == 0:
        return Comparison(math.nan, math.nan, estimate)
    return Comparison(
        first=float(x.mean()),
        second=float(y.mean()),
        difference=estimate,
        wins=float((differences > TIE).mean()),
        ties=float((np.abs(differences) <= TIE).mean()),
        losses=float((differences < -TIE).mean()),
        p_value=_sign_flip(differences, resampling),
    )


def corpus_estimate(score: CorpusScore, rows: NDArray[np.intp], resampling: Resampling) -> Estimate:
    """A score of all these rows at once with its interval: computed anew from every draw of rows."""
    if len(rows) == 0:
        return Estimate(math.nan, reason="no row has a number")
    value = score(rows)
    if len(rows) == 1:
        return Estimate(value, count=1, reason="one row says nothing about chance")
    low, high = interval(score, (rows,), resampling, vectorized=False, bca=False)
    return Estimate(value, low, high, len(rows))


def compare_corpus(
    first: CorpusScore, second: CorpusScore, num_rows: int, resampling: Resampling
) -> Comparison:
    """A score of all rows at once, such as corpus BLEU, in two runs.

    The paired bootstrap of Koehn (2004, "Statistical significance tests for machine translation
    evaluation"): draw rows with replacement, score the same draw of both runs, take the difference. It gives
    no winner of a single row.
    """
    everything = np.arange(num_rows)
    one, other = first(everything), second(everything)
    if num_rows < 2:
        return Comparison(one, other, Estimate(other - one, count=num_rows, reason=_reason(num_rows)))

    def difference(indices: NDArray[Any]) -> float:
        return second(indices) - first(indices)

    low, high = interval(difference, (everything,), resampling, vectorized=False, bca=False)
    return Comparison(one, other, Estimate(other - one, low, high, num_rows))


def _sign_flip(differences: NDArray[np.float64], resampling: Resampling) -> float | None:
    if len(differences) < 2:
        return None
    if not np.abs(differences).max() > TIE:
        return 1.0
    tested = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resampling.num_resamples,
        batch=max(1, 2_000_000 // len(differences)),
        rng=resampling.generator(),
    )
    return float(tested.pvalue)


def _reason(count: int) -> str | None:
    return None if count > 1 else f"{count} rows have a number in both runs; an interval needs 2"


def _named(keys: Sequence[Hashable]) -> str:
    more = f" and {len(keys) - NAMED_ROWS} more" if len(keys) > NAMED_ROWS else ""
    return f"row {', '.join(map(str, keys[:NAMED_ROWS]))}{more}"
