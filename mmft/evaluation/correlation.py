"""Correlation of a reward or a metric with any other number per row, such as human ratings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from mmft.evaluation.bootstrap import Array, Estimate, Numbers, Resampling, complete_pairs, interval, quiet

MIN_PAIRS = 3
"""Two points always lie on a line."""


@dataclass(frozen=True, slots=True)
class Correlation:
    """How two columns go together, by three coefficients in [-1, 1]."""

    pearson: Estimate
    """Of the numbers: 1 on a rising straight line."""
    spearman: Estimate
    """Of their ranks: 1 on any rising curve."""
    kendall: Estimate
    """tau-b: pairs of rows in the same order minus those in opposite order, ties accounted for."""


def correlate(actual: Numbers, scored: Numbers, resampling: Resampling) -> Correlation:
    """All three coefficients of two columns, each with a bootstrap interval over rows.

        rho = Cov(A, S) / sqrt(Var(A) Var(S))

    Rows in which either column has no number are left out and counted.
    """
    x, y, left_out = complete_pairs(actual, scored)
    return Correlation(
        pearson=_estimate(pearson, x, y, left_out, resampling),
        spearman=_estimate(spearman, x, y, left_out, resampling),
        kendall=_estimate(kendall, x, y, left_out, resampling, vectorized=False),
    )


def pearson_estimate(actual: Numbers, scored: Numbers, resampling: Resampling) -> Estimate:
    """Pearson's coefficient alone, which is the quick one."""
    x, y, left_out = complete_pairs(actual, scored)
    return _estimate(pearson, x, y, left_out, resampling)


def pearson(x: Array, y: Array, axis: int = -1) -> Any:
    """rho = Cov(x, y) / sqrt(Var(x) Var(y)); NaN where either is constant."""
    return stats.pearsonr(x, y, axis=axis).statistic


def spearman(x: Array, y: Array, axis: int = -1) -> Any:
    """Pearson's coefficient of the ranks, equal numbers sharing theirs."""
    return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis=axis)


def kendall(x: Array, y: Array) -> Any:
    """tau-b."""
    return stats.kendalltau(x, y).statistic


def why_undefined(x: Array, y: Array) -> str | None:
    """The reason for which two columns have no correlation, or None where they have one."""
    if len(x) < MIN_PAIRS:
        return f"{len(x)} rows have both numbers; a correlation needs {MIN_PAIRS}"
    for name, column in (("first", x), ("second", y)):
        # Relative, because the mean of equal numbers may differ from them by rounding.
        if np.ptp(column) <= 1e-12 * max(1.0, float(np.abs(column).max())):
            return f"the {name} column is the same number in every row"
    return None


def _estimate(
    statistic: Callable[..., Any],
    x: Array,
    y: Array,
    left_out: int,
    resampling: Resampling,
    *,
    vectorized: bool = True,
) -> Estimate:
    reason = why_undefined(x, y)
    if reason is not None:
        return Estimate(math.nan, count=len(x), left_out=left_out, reason=reason)
    with quiet():
        value = float(statistic(x, y))
    low, high = interval(statistic, (x, y), resampling, vectorized=vectorized)
    note = None if math.isfinite(low) else "a column is constant in too many resamples for an interval"
    return Estimate(value, low, high, len(x), left_out, note)
