"""A measure by subgroups of the rows, and how far the best-served group is from the worst-served one."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from mmft.evaluation.bootstrap import Array, Estimate, Numbers, Resampling, as_numbers, mean_estimate

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
    values: Numbers, groups: Sequence[Hashable], resampling: Resampling, *, min_rows: int = MIN_ROWS
) -> Subgroups:
    """The mean of every group, and the largest gap between two of them.

    Args:
        values: one number per row; rows without one are left out of their group and counted.
        groups: the group of every row.
        resampling: how the intervals are drawn.
        min_rows: groups with fewer numbers are flagged.
    """
    numbers = as_numbers(values)
    if len(numbers) != len(groups):
        raise ValueError(f"`groups` must name a group per number ({len(numbers)}); got {len(groups)}.")
    places: dict[Hashable, list[int]] = {}
    for place, name in enumerate(groups):
        places.setdefault(name, []).append(place)
    parts = {name: numbers[chosen] for name, chosen in places.items()}
    found = []
    for name, part in parts.items():
        mean = mean_estimate(part, resampling)
        found.append(Group(name, mean, mean.count < min_rows))
    large = {group.name: parts[group.name] for group in found if not group.is_small}
    return Subgroups(found, largest_gap(large, resampling) if len(large) > 1 else None)


def largest_gap(groups: dict[Hashable, Array], resampling: Resampling) -> Gap:
    """The gap between the group with the highest mean and the one with the lowest.

    Picking the extreme pair after the fact makes its gap look larger and surer than it is. The interval
    allows for that: it holds for all pairs at once (Tukey's comparison, its quantile drawn by bootstrap),

        gap +- q * se(gap),   q = quantile over resamples of max over pairs |gap* - gap| / se(gap*)

    with groups resampled one by one. The gap itself is not shrunk: read the interval, not the number.
    """
    known = {name: part[np.isfinite(part)] for name, part in groups.items()}
    means = {name: float(part.mean()) for name, part in known.items()}
    high, low = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    if high == low:  # all means are equal: any two groups have the gap of 0
        high, low = list(means)[:2]
    generator = resampling.generator()
    shifts = {
        name: _resampled_means(part, resampling.num_resamples, generator) - means[name]
        for name, part in known.items()
    }
    largest = np.zeros(resampling.num_resamples)
    for one, other in itertools.combinations(known, 2):
        shift = shifts[one] - shifts[other]
        error = shift.std()
        if error > 0:  # two groups without any spread have a sure gap
            largest = np.maximum(largest, np.abs(shift) / error)
    width = float(np.quantile(largest, resampling.confidence_level) * (shifts[high] - shifts[low]).std())
    gap = means[high] - means[low]
    count = len(known[high]) + len(known[low])
    return Gap(high, low, Estimate(gap, gap - width, gap + width, count))


def _resampled_means(part: Array, num_resamples: int, generator: np.random.Generator) -> Array:
    """(num_resamples,) means of as many numbers, drawn with replacement."""
    size = max(1, 2_000_000 // len(part))
    means = [
        part[generator.integers(0, len(part), (min(size, num_resamples - start), len(part)))].mean(axis=1)
        for start in range(0, num_resamples, size)
    ]
    return np.concatenate(means)
