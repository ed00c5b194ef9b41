"""Means by group, small groups, and a gap that does not boast."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.subgroups import by_group

QUICK = Resampling(num_resamples=500)


def test_each_group_has_its_mean_in_the_order_of_the_rows():
    found = by_group([1.0, 5.0, 3.0, None, 7.0], ["b", "a", "b", "a", "a"], QUICK, min_rows=2)
    assert [(each.name, each.mean.value, each.mean.count) for each in found.groups] == [
        ("b", 2.0, 2),
        ("a", 6.0, 2),
    ]
    assert found.groups[1].mean.left_out == 1
    assert found.gap is not None
    assert (found.gap.high_group, found.gap.low_group) == ("a", "b")
    assert found.gap.difference.value == 4.0


def test_small_groups_are_flagged_and_left_out_of_the_gap():
    values = [0.0] * 12 + [1.0] * 12 + [9.0] * 2
    found = by_group(values, ["x"] * 12 + ["y"] * 12 + ["z"] * 2, QUICK)
    assert {each.name: each.is_small for each in found.groups} == {"x": False, "y": False, "z": True}
    assert found.groups[2].mean.value == 9.0
    assert found.gap is not None
    assert found.gap.high_group == "y"
    assert (found.gap.difference.low, found.gap.difference.high) == (1.0, 1.0)


def test_a_group_with_just_enough_rows_is_large_enough():
    found = by_group([0.0] * 10 + [1.0] * 10, ["x"] * 10 + ["y"] * 10, QUICK, min_rows=10)
    assert not any(each.is_small for each in found.groups)
    assert found.gap is not None
    assert found.gap.difference.count == 20


def test_a_score_that_is_no_mean_is_computed_from_the_rows_of_the_group():
    hits, totals = np.array([1.0, 9.0, 5.0, 1.0]), np.array([1.0, 10.0, 10.0, 10.0])
    found = by_group(
        [1.0, 0.9, 0.5, 0.1],
        ["x", "x", "y", "y"],
        QUICK,
        min_rows=2,
        score=lambda rows: float(hits[rows].sum() / totals[rows].sum()),
    )
    assert [each.mean.value for each in found.groups] == pytest.approx([10 / 11, 6 / 20])
    assert found.gap is not None
    assert found.gap.difference.value == pytest.approx(10 / 11 - 6 / 20)
    assert found.gap.difference.low < found.gap.difference.value < found.gap.difference.high


def test_one_large_group_has_no_gap():
    assert by_group([1.0] * 20, ["x"] * 11 + ["y"] * 9, QUICK).gap is None


def test_a_real_gap_is_found_and_its_interval_is_right():
    generator = np.random.default_rng(0)
    low, high = generator.normal(0, 1, 200), generator.normal(1, 1, 200)
    gap = by_group([*low, *high], ["low"] * 200 + ["high"] * 200, Resampling(num_resamples=4000)).gap
    assert gap is not None
    error = math.sqrt(low.var() / 200 + high.var() / 200)
    assert gap.difference.value == pytest.approx(high.mean() - low.mean())
    assert gap.difference.high - gap.difference.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_the_largest_of_many_gaps_by_chance_is_not_taken_for_real():
    """Among 10 equal groups the extreme pair differs; its own interval would nearly always leave out 0."""
    generator = np.random.default_rng(0)
    surely, naively, trials = 0, 0, 40
    for _ in range(trials):
        values = generator.normal(size=200)
        groups = np.repeat(np.arange(10), 20).tolist()
        gap = by_group(values, groups, QUICK).gap
        assert gap is not None
        surely += gap.difference.is_above_zero
        parts = [values[20 * int(str(name)) :][:20] for name in (gap.high_group, gap.low_group)]
        error = math.sqrt(sum(part.var() for part in parts) / 20)
        naively += gap.difference.value > 1.96 * error
    assert naively > trials / 2
    assert surely <= 8


def test_groups_with_equal_means_have_a_gap_of_zero():
    gap = by_group([0.0, 2.0] * 10, ["x"] * 10 + ["y"] * 10, QUICK).gap
    assert gap is not None
    assert gap.difference.value == 0.0
    assert gap.difference.low < 0 < gap.difference.high
    assert gap.high_group != gap.low_group


def test_every_row_needs_a_group():
    with pytest.raises(ValueError, match=r"`groups` must name a group per number \(2\); got 1"):
        by_group([1.0, 2.0], ["x"], QUICK)


def test_groups_that_are_just_large_enough_are_not_told_apart_by_chance():
    """Means of 10 resampled rows vary less than those of 10 fresh ones, which the interval makes up for."""
    generator = np.random.default_rng(0)
    covered, trials = 0, 200
    for _ in range(trials):
        gap = by_group(generator.normal(size=30), [*range(3)] * 10, QUICK).gap
        assert gap is not None
        covered += not gap.difference.is_above_zero
    assert covered / trials > 0.9
