"""Intervals: known answers, what is left out, what is undefined."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mmft.errors import ConfigError
from mmft.evaluation import bootstrap
from mmft.evaluation.bootstrap import (
    Estimate,
    Resampling,
    as_numbers,
    complete_pairs,
    interval,
    mean_estimate,
    percentiles,
)

QUICK = Resampling(num_resamples=500)


def test_the_mean_and_its_interval_are_those_of_the_normal_theory():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    found = mean_estimate(values, Resampling(num_resamples=4000))
    error = values.std(ddof=1) / math.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    assert (found.count, found.left_out, found.reason) == (400, 0, None)


def test_a_95_percent_interval_holds_the_truth_about_19_times_of_20():
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = mean_estimate(generator.exponential(1.0, 40), QUICK)
        held += found.low <= 1.0 <= found.high
    # Skewed data and 40 rows: BCa reaches about 93 %; four standard errors of 200 trials either way.
    assert 172 <= held <= 199


def test_none_and_nan_are_left_out_and_counted():
    with_gaps = mean_estimate([1.0, None, 3.0, math.nan, 2.0], QUICK)
    without = mean_estimate([1.0, 3.0, 2.0], QUICK)
    assert with_gaps == Estimate(without.value, without.low, without.high, count=3, left_out=2)
    assert with_gaps.value == 2.0


def test_the_same_seed_gives_the_same_interval_and_another_a_near_one():
    values = list(range(30))
    first, again = mean_estimate(values, QUICK), mean_estimate(values, QUICK)
    other = mean_estimate(values, Resampling(num_resamples=500, seed=1))
    assert first == again
    assert first.low != other.low
    assert first.low == pytest.approx(other.low, abs=1.0)


def test_a_higher_level_gives_a_wider_interval():
    values = list(range(30))
    narrow = mean_estimate(values, Resampling(num_resamples=500, confidence_level=0.5))
    wide = mean_estimate(values, Resampling(num_resamples=500, confidence_level=0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


@pytest.mark.parametrize(
    ("values", "value", "reason"),
    [([], math.nan, "no row"), ([None], math.nan, "no row"), ([2.0], 2.0, "one row says nothing")],
)
def test_too_few_rows_give_a_reason_in_place_of_an_interval(
    values: list[float | None], value: float, reason: str
):
    found = mean_estimate(values, QUICK)
    assert found.value == pytest.approx(value, nan_ok=True)
    assert math.isnan(found.low)
    assert reason in str(found.reason)
    assert not found.is_above_zero
    assert not found.is_below_zero


def test_the_same_number_in_every_row_is_sure():
    found = mean_estimate([0.5] * 8, QUICK)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert found.is_above_zero


def test_beyond_a_thousand_rows_the_interval_runs_between_percentiles():
    values = np.random.default_rng(0).exponential(1.0, 1500)
    plain = interval(np.mean, (values,), QUICK, bca=False)
    assert interval(np.mean, (values,), QUICK) == plain
    assert interval(np.mean, (values[:1000],), QUICK) != interval(np.mean, (values[:1000],), QUICK, bca=False)


def test_resamples_without_a_statistic_are_left_out_while_they_are_few():
    drawn = np.arange(101.0)
    assert percentiles(drawn, Resampling(confidence_level=0.8)) == pytest.approx((10, 90))
    few = np.concatenate([drawn, [math.nan] * 5])
    assert percentiles(few, Resampling(confidence_level=0.8)) == pytest.approx((10, 90))
    many = np.concatenate([drawn, [math.nan] * 20])
    assert all(map(math.isnan, percentiles(many, QUICK)))


def test_pairs_need_both_numbers():
    x, y, left_out = complete_pairs([1, None, 3, math.inf], [4, 5, None, 6])
    assert (x.tolist(), y.tolist(), left_out) == ([1.0], [4.0], 3)
    with pytest.raises(ValueError, match=r"a number per row of `first` \(2\); got 1"):
        complete_pairs([1, 2], [3])


def test_truth_counts_as_one():
    assert as_numbers([True, False]).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_resamples": 0}, "`num_resamples` must be >= 1; got 0"),
        ({"confidence_level": 95}, "`confidence_level` must lie between 0 and 1; got 95"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(ConfigError, match=message):
        Resampling(**settings)


@pytest.mark.parametrize("vectorized", [True, False])
def test_resamples_are_drawn_in_batches_that_fit_into_memory(
    vectorized: bool, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[int] = []
    original = bootstrap.stats.bootstrap

    def watched(samples: tuple[np.ndarray, ...], *args: Any, **options: Any) -> Any:
        drawn.append(options["batch"] * len(samples[0]))
        return original(samples, *args, **options)

    def mean(values: np.ndarray, axis: int = -1) -> Any:
        return values.mean(axis)

    values = np.random.default_rng(0).normal(size=50)
    at_once = interval(mean, (values,), QUICK, vectorized=vectorized)
    monkeypatch.setattr(bootstrap.stats, "bootstrap", watched)
    monkeypatch.setattr(bootstrap, "BATCH_NUMBERS", 1000)
    assert interval(mean, (values,), QUICK, vectorized=vectorized) == pytest.approx(at_once)
    assert drawn == [1000]
