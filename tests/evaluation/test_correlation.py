"""Coefficients against hand numbers, their invariances, and columns that have none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.correlation import correlate, pearson_estimate

QUICK = Resampling(num_resamples=200)


def test_the_coefficients_are_those_worked_out_by_hand():
    # x = 1 2 3 4, y = 1 3 2 5. Means 2.5 and 2.75; Cov = 5.5/4, Var(x) = 5/4, Var(y) = 8.75/4.
    # Ranks of y: 1 3 2 4, so Spearman = 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15). Five of six pairs in order.
    found = correlate([1, 2, 3, 4], [1, 3, 2, 5], QUICK)
    assert found.pearson.value == pytest.approx(5.5 / math.sqrt(5 * 8.75))
    assert found.spearman.value == pytest.approx(0.8)
    assert found.kendall.value == pytest.approx(4 / 6)


def test_ties_count_in_neither_direction():
    # Pairs of x = 1 1 2, y = 1 2 3: one tied in x, two in order; tau-b = 2 / sqrt(2 * 3).
    assert correlate([1, 1, 2], [1, 2, 3], QUICK).kendall.value == pytest.approx(2 / math.sqrt(6))


def test_a_rising_curve_has_perfect_ranks_and_no_perfect_line():
    x = np.linspace(0, 5, 20)
    found = correlate(x, np.exp(x), QUICK)
    assert found.spearman.value == pytest.approx(1.0)
    assert found.kendall.value == pytest.approx(1.0)
    assert 0.5 < found.pearson.value < 0.95


def test_scale_and_order_of_the_columns_do_not_matter_and_a_sign_turns_it():
    x, y = np.random.default_rng(0).normal(size=(2, 25))
    one = correlate(x, y, QUICK)
    assert correlate(y, 10 * x + 3, QUICK).pearson.value == pytest.approx(one.pearson.value)
    turned = correlate(x, -y, QUICK)
    assert turned.spearman.value == pytest.approx(-one.spearman.value)
    assert turned.kendall.value == pytest.approx(-one.kendall.value)


def test_the_interval_holds_the_truth_and_narrows_with_rows():
    generator = np.random.default_rng(3)
    widths = []
    for count in (40, 400):
        x = generator.normal(size=count)
        found = pearson_estimate(x, 0.6 * x + 0.8 * generator.normal(size=count), QUICK)
        assert found.low < 0.6 < found.high
        widths.append(found.high - found.low)
    # By the square root of the rows.
    assert widths[1] == pytest.approx(widths[0] / math.sqrt(10), rel=0.35)


def test_pairs_without_a_number_are_left_out_and_counted():
    full = correlate([1, 2, 3, 4], [1, 3, 2, 5], QUICK)
    gaps = correlate([1, None, 2, 3, 4, 9], [1, 7, 3, 2, 5, math.nan], QUICK)
    assert gaps.pearson.value == full.pearson.value
    assert (gaps.pearson.count, gaps.pearson.left_out) == (4, 2)


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1, 2], [1, 2], "2 rows have both numbers; a correlation needs 3"),
        ([], [], "0 rows have both"),
        ([5, 5, 5], [1, 2, 3], "the first column is the same number"),
        ([1, 2, 3], [0.1 + 0.2, 0.3, 0.3], "the second column is the same number"),
    ],
)
def test_what_has_no_correlation_says_why(x: list[float], y: list[float], reason: str):
    found = correlate(x, y, QUICK)
    for each in (found.pearson, found.spearman, found.kendall):
        assert math.isnan(each.value)
        assert math.isnan(each.low)
        assert reason in str(each.reason)


def test_a_column_that_hardly_varies_gets_no_interval():
    # One row of twenty differs: over a third of all resamples miss it, and have no correlation.
    found = pearson_estimate([0.0] * 19 + [1.0], list(range(20)), QUICK)
    assert found.value > 0.3
    assert math.isnan(found.low)
    assert "constant in too many resamples" in str(found.reason)
