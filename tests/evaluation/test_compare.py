"""Two runs on the same rows: matching, differences, corpus scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmft.errors import DataError
from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.compare import compare_corpus, compare_rows, match_rows

QUICK = Resampling(num_resamples=500)


def test_means_difference_and_rates_are_those_worked_out_by_hand():
    found = compare_rows([0.0, 0.5, 1.0, 0.2], [0.5, 0.5, 0.8, 1.0], QUICK)
    assert (found.first, found.second) == pytest.approx((0.425, 0.7))
    assert found.difference.value == pytest.approx(0.275)
    assert (found.wins, found.ties, found.losses) == (0.5, 0.25, 0.25)
    # Signs of 0.5, 0, -0.2, 0.8 flipped in all 16 ways: |sum| >= 1.1 holds for 8 of them, zeros doubling
    # each: (+,+), (+,-) of 0.5 and -0.2 with 0.8 give 1.1 and 1.5, and their mirror images.
    assert found.p_value == pytest.approx(8 / 16)


def test_swapping_the_runs_turns_everything_round():
    first, second = np.random.default_rng(0).normal(size=(2, 30))
    one, other = compare_rows(first, second, QUICK), compare_rows(second, first, QUICK)
    assert other.difference.value == pytest.approx(-one.difference.value)
    assert other.difference.low == pytest.approx(-one.difference.high, abs=0.05)
    assert (other.wins, other.losses) == (one.losses, one.wins)
    assert other.p_value == pytest.approx(one.p_value, abs=0.1)


def test_what_a_hard_row_costs_both_runs_does_not_blur_the_difference():
    generator = np.random.default_rng(0)
    hardness = generator.normal(0, 10, 40)
    found = compare_rows(hardness, hardness + 0.1 + generator.normal(0, 0.05, 40), QUICK)
    assert found.difference.is_above_zero
    assert found.difference.high - found.difference.low < 0.06
    assert found.p_value is not None
    assert found.p_value < 0.01


def test_two_equal_runs_tie_everywhere():
    found = compare_rows([0.1, 0.2, 0.3], [0.1, 0.2, 0.3 + 1e-8], QUICK)
    assert (found.wins, found.ties, found.losses) == (0.0, 1.0, 0.0)
    assert found.p_value == 1.0
    assert not found.difference.is_above_zero
    exactly = compare_rows([0.1, 0.2], [0.1, 0.2], QUICK).difference
    assert (exactly.value, exactly.low, exactly.high) == (0.0, 0.0, 0.0)


def test_rows_that_either_run_could_not_judge_are_left_out_and_counted():
    found = compare_rows([0.0, None, 1.0, 0.5], [0.5, 1.0, math.nan, 0.5], QUICK)
    assert (found.difference.count, found.difference.left_out) == (2, 2)
    assert (found.first, found.second) == (0.25, 0.5)


def test_without_a_common_row_there_is_a_reason():
    found = compare_rows([None, 1.0], [1.0, None], QUICK)
    assert math.isnan(found.first)
    assert found.wins is None
    assert "0 rows have a number in both runs" in str(found.difference.reason)


def test_rows_are_matched_by_key_whatever_their_order():
    first, second = [("v", 0), ("v", 1), ("v", 2)], [("v", 2), ("v", 0), ("v", 1)]
    places = match_rows(first, second)
    assert [second[place] for place in places] == first


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (list("ab"), list("a"), r"only the first run has row b\."),
        (list("a"), list("abcdef"), r"only the second run has row b, c, d and 2 more"),
        (list("ab"), list("bc"), r"first run has row a; only the second run has row c.*`max_eval_rows`"),
        (list("aa"), list("ab"), "the first run has row a more than once"),
    ],
)
def test_runs_on_different_rows_are_refused_by_name(first: list[str], second: list[str], message: str):
    with pytest.raises(DataError, match=message):
        match_rows(first, second)


def test_a_corpus_score_that_is_a_mean_gets_the_interval_of_the_mean():
    first, second = np.random.default_rng(0).normal(size=(2, 50))
    by_rows = compare_rows(first, second, Resampling(num_resamples=2000))
    corpus = compare_corpus(
        lambda rows: float(first[rows].mean()),
        lambda rows: float(second[rows].mean()),
        50,
        Resampling(num_resamples=2000),
    )
    assert (corpus.first, corpus.second) == pytest.approx((by_rows.first, by_rows.second))
    assert corpus.difference.value == pytest.approx(by_rows.difference.value)
    assert corpus.difference.low == pytest.approx(by_rows.difference.low, abs=0.03)
    assert corpus.difference.high == pytest.approx(by_rows.difference.high, abs=0.03)
    assert corpus.wins is None


def test_a_corpus_score_is_recomputed_from_the_drawn_rows():
    """A ratio of sums is no mean of ratios: 2/4 and 30/100 make 32/104."""
    hits, totals = np.array([2.0, 30.0]), np.array([4.0, 100.0])
    found = compare_corpus(
        lambda rows: float(hits[rows].sum() / totals[rows].sum()), lambda rows: 1.0, 2, QUICK
    )
    assert found.first == pytest.approx(32 / 104)
    # Drawing the same row twice gives the extremes.
    assert (found.difference.low, found.difference.high) == pytest.approx((0.5, 0.7))


def test_one_row_has_a_difference_and_no_interval():
    found = compare_corpus(lambda rows: 0.25, lambda rows: 1.0, 1, QUICK)
    assert found.difference.value == 0.75
    assert math.isnan(found.difference.low)
    assert "an interval needs 2" in str(found.difference.reason)


@pytest.mark.parametrize("second", [[0.9], [0.9, None], [0.9, math.inf]])
def test_one_common_row_has_a_difference_and_no_test(second: list[float | None]):
    found = compare_rows([0.5, 0.5][: len(second)], second, QUICK)
    assert found.difference.value == pytest.approx(0.4)
    assert (found.wins, found.p_value) == (1.0, None)
    assert "1 rows have a number in both runs" in (found.difference.reason or "")
