"""A measure by subgroups of the rows, and how far the best-served group is from the worst-served one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmft.evaluation.bootstrap import (
    BATCH_NUMBERS,
    Array,
    Estimate,
    Numbers,
    Resampling,
    as_numbers,
    mean_estimate,
)
from mmft.evaluation.compare import CorpusScore, corpus_estimate

MIN_ROWS = 10
"""Groups with fewer rows are flagged: their interval says little, and the gap leaves them out."""


@dataclass(frozen=True, slots=True)
class Group:
    """One value of the column that groups rows."""

    name: Hashable
    mean: Estimate
    is_small: bool
    """Fewer rows than asked for: reported, and left out of the gap."""


@dataclass(frozen=True, slots=True)
class Gap:
    """The largest difference of the means of two groups."""

    high_group: Hashable
    low_group: Hashable
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Subgroups:
    """A measure by group."""

    groups: list[Group]
    """In the order in which the rows name them."""
    gap: Gap | None
    """None where fewer than two groups are large enough."""


def by_group(
    values: Numbers,
    groups: Sequence[Hashable],
    resampling: Resampling,
    *,
    min_rows: int = MIN_ROWS,
    score: CorpusScore | None = None,
) -> Subgroups:
    """The mean of every group, and the largest gap between two of them.

    Args:
        values: one number per row; rows without one are left out of their group and counted.
        groups: the group of every row.
        resampling: how the intervals are drawn.
        min_rows: groups with fewer numbers are flagged.
        score: of rows by index, for a score that is no mean over rows, such as corpus BLEU; it takes the
            place of the mean, and `values` only tell which rows it can judge.
    """
    numbers = as_numbers(values)
    if len(numbers) != len(groups):
        raise ValueError(f"`groups` must name a group per number ({len(numbers)}); got {len(groups)}.")
    places: dict[Hashable, list[int]] = {}
    for place, name in enumerate(groups):
        places.setdefault(name, []).append(place)
    generator = resampling.generator()
    found: list[Group] = []
    values_of: dict[Hashable, float] = {}
    draws: dict[Hashable, Array] = {}
    for name, listed in places.items():
        chosen = np.array(listed, dtype=np.intp)
        known = chosen[np.isfinite(numbers[chosen])]
        if score is None:
            mean = mean_estimate(numbers[chosen], resampling)
        else:
            mean = corpus_estimate(score, known, resampling)
        found.append(Group(name, mean, len(known) < min_rows))
        if len(known) >= min_rows:
            values_of[name] = mean.value
            drawn = _drawn(numbers, known, score, resampling.num_resamples, generator)
            draws[name] = mean.value + (drawn - mean.value) * _spread_of_fresh_rows(len(known))
    if len(draws) < 2:
        return Subgroups(found, None)
    gap = largest_gap(values_of, draws, resampling.confidence_level)
    rows = sum(group.mean.count for group in found if group.name in (gap.high_group, gap.low_group))
    return Subgroups(found, replace(gap, difference=replace(gap.difference, count=rows)))


def largest_gap(values: Mapping[Hashable, float], draws: Mapping[Hashable, Array], level: float) -> Gap:
    """The gap between the group with the highest score and the one with the lowest.

    Picking the extreme pair after the fact makes its gap look larger and surer than it is. The interval
    allows for that: it holds for all pairs at once (Tukey's comparison, its quantile drawn by bootstrap),

        gap +- q * se(gap),   q = quantile over resamples of max over pairs |gap* - gap| / se(gap*)

    with groups resampled one by one. The gap itself is not shrunk: read the interval, not the number.

    Args:
        values: by group its score.
        draws: by group the (num_resamples,) scores of its resampled rows.
        level: of the interval.
    """
    high, low = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    if high == low:  # all are equal: any two groups have the gap of 0
        high, low = list(values)[:2]
    shifts = {name: drawn - values[name] for name, drawn in draws.items()}
    largest = np.zeros(len(shifts[high]))
    for one, other in itertools.combinations(shifts, 2):
        shift = shifts[one] - shifts[other]
        error = shift.std()
        if error > 0:  # two groups without any spread have a sure gap
            largest = np.maximum(largest, np.abs(shift) / error)
    width = float(np.quantile(largest, level) * (shifts[high] - shifts[low]).std())
    gap = values[high] - values[low]
    return Gap(high, low, Estimate(gap, gap - width, gap + width))


def _spread_of_fresh_rows(count: int) -> float:
    """Rows drawn from a group of n vary by (n - 1)/n of the variance of fresh ones, around its own mean."""
    return math.sqrt(count / (count - 1)) if count > 1 else 1.0


def _drawn(
    numbers: Array,
    rows: NDArray[np.intp],
    score: CorpusScore | None,
    num_resamples: int,
    generator: np.random.Generator,
) -> Array:
    """(num_resamples,) scores, or means, of as many rows drawn with replacement."""
    size = max(1, BATCH_NUMBERS // len(rows))
    parts = []
    for start in range(0, num_resamples, size):
        chosen = rows[generator.integers(0, len(rows), (min(size, num_resamples - start), len(rows)))]
        parts.append(numbers[chosen].mean(axis=1) if score is None else np.array([*map(score, chosen)]))
    return np.concatenate(parts)
