"""A number and how far chance alone could move it: bootstrap intervals, drawn by scipy.

Rows are resampled with replacement (Efron 1979). Up to `BCA_ROWS` rows the interval is bias-corrected and
accelerated (BCa, Efron 1987), beyond that, or where BCa is undefined, it runs between percentiles: the two
agree on many rows, and BCa's jackknife costs the square of their number.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mmft.errors import ConfigError

Array: TypeAlias = "NDArray[np.float64]"
Numbers: TypeAlias = "Sequence[float | None] | NDArray[Any]"
"""One number per row; None and NaN where there is none."""
Statistic: TypeAlias = Callable[..., Any]
"""Takes one array per sample, and `axis` where it is vectorized."""

BCA_ROWS = 1000
BATCH_NUMBERS = 2_000_000
"""Numbers that one batch of resamples may hold, which bounds the memory."""
UNDEFINED_SHARE = 0.1
"""Of the resamples a statistic may be undefined in that many, and still gets an interval from the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Resampling:
    """How intervals are drawn. Every interval starts from the same seed, so each can be repeated alone."""

    num_resamples: int = 2000
    confidence_level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1:
            raise ConfigError(f"`num_resamples` must be >= 1; got {self.num_resamples}. 2000 is usual.")
        if not 0 < self.confidence_level < 1:
            raise ConfigError(
                f"`confidence_level` must lie between 0 and 1; got {self.confidence_level}. 0.95 is usual."
            )

    def generator(self) -> np.random.Generator:
        """Fresh random numbers, the same at each call."""
        return np.random.default_rng(self.seed)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic of some rows with its interval; NaN where undefined, and then `reason` says why."""

    value: float
    low: float = math.nan
    high: float = math.nan
    count: int = 0
    """Rows that it was computed from."""
    left_out: int = 0
    """Rows without a number."""
    reason: str | None = None

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is positive; False where there is none."""
        return self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """Whether the whole interval is negative; False where there is none."""
        return self.high < 0


def as_numbers(values: Numbers) -> Array:
    """(N,) float64, None as NaN."""
    return np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def complete_pairs(first: Numbers, second: Numbers) -> tuple[Array, Array, int]:
    """The pairs in which both have a finite number, and how many have not.

    Raises:
        ValueError: the columns differ in length.
    """
    x, y = as_numbers(first), as_numbers(second)
    if x.shape != y.shape:
        raise ValueError(f"`second` must have a number per row of `first` ({len(x)}); got {len(y)}.")
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known], int((~known).sum())


def mean_estimate(values: Numbers, resampling: Resampling) -> Estimate:
    """The mean over the rows that have a number, with its interval."""
    numbers = as_numbers(values)
    known = numbers[np.isfinite(numbers)]
    count, left_out = len(known), len(numbers) - len(known)
    if count == 0:
        return Estimate(math.nan, count=0, left_out=left_out, reason="no row has a number")
    mean = float(known.mean())
    if count == 1:
        return Estimate(mean, count=1, left_out=left_out, reason="one row says nothing about chance")
    low, high = interval(np.mean, (known,), resampling)
    return Estimate(mean, low, high, count, left_out)


def interval(
    statistic: Statistic,
    samples: Sequence[NDArray[Any]],
    resampling: Resampling,
    *,
    vectorized: bool = True,
    bca: bool = True,
) -> tuple[float, float]:
    """Bounds of a statistic of samples whose rows are resampled together; NaN where it has none.

    Args:
        statistic: of one array per sample; takes `axis` if it is vectorized.
        samples: arrays of equal length, >= 2 rows.
        resampling: how many resamples, and the level.
        vectorized: whether it takes many resamples at once.
        bca: correct for bias and skew, on up to `BCA_ROWS` rows.
    """
    rows = len(samples[0])
    options: dict[str, Any] = {
        "n_resamples": resampling.num_resamples,
        "confidence_level": resampling.confidence_level,
        "paired": True,
        "vectorized": vectorized,
        "batch": max(1, BATCH_NUMBERS // rows),
        "rng": resampling.generator(),
        "method": "BCa" if bca and rows <= BCA_ROWS else "percentile",
    }
    with quiet():
        drawn = stats.bootstrap(tuple(samples), statistic, **options)
    bounds = drawn.confidence_interval
    if math.isfinite(bounds.low) and math.isfinite(bounds.high):
        return float(bounds.low), float(bounds.high)
    return percentiles(drawn.bootstrap_distribution, resampling)


def percentiles(distribution: NDArray[Any], resampling: Resampling) -> tuple[float, float]:
    """Between them lies the middle of the resampled statistics that are defined."""
    known = distribution[np.isfinite(distribution)]
    if len(known) < (1 - UNDEFINED_SHARE) * len(distribution):
        return math.nan, math.nan
    tail = (1 - resampling.confidence_level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def quiet() -> warnings.catch_warnings[None]:
    """Hides warnings on resamples that happen to be constant; what is undefined is NaN, and looked for."""
    return warnings.catch_warnings(action="ignore")
