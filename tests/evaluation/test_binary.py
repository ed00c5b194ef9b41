"""Accuracy and the area under the ROC curve: hand numbers, the loop over pairs, invariances."""

from __future__ import annotations

import math
import random

import pytest

from mmft.errors import DataError
from mmft.evaluation.binary import area_under_roc, binary_report, is_binary


def test_area_hand_computed():
    # true 0.9, 0.4; false 0.5, 0.1: of four pairs 0.4 < 0.5 is the wrong one
    assert area_under_roc([0.9, 0.4, 0.5, 0.1], [1, 1, 0, 0]) == 0.75


def test_area_is_the_loop_over_pairs():
    stream = random.Random(0)
    scores = [round(stream.random(), 1) for _ in range(60)]  # with many ties
    targets = [float(stream.random() < 0.4) for _ in scores]
    true = [score for score, target in zip(scores, targets, strict=True) if target]
    false = [score for score, target in zip(scores, targets, strict=True) if not target]
    wins = [0.5 * (1 + (a > b) - (a < b)) for a in true for b in false]
    assert area_under_roc(scores, targets) == pytest.approx(sum(wins) / len(wins))


def test_area_knows_the_order_alone():
    scores, targets = [0.2, 0.8, 0.5, 0.7], [0, 1, 1, 0]
    assert area_under_roc([math.exp(9 * score) for score in scores], targets) == area_under_roc(
        scores, targets
    )
    assert area_under_roc([-score for score in scores], targets) == 1 - area_under_roc(scores, targets)


def test_equal_scores_order_nothing():
    assert area_under_roc([0.3] * 5, [1, 0, 0, 1, 0]) == 0.5


def test_the_report_hand_computed():
    # cut at 1/2: right, wrong, right, right; three of four are true
    assert binary_report([0.9, 0.2, 0.6, 0.5], [1, 1, 1, 0]) == {
        "accuracy": 0.75,
        "majority_share": 0.75,
        "auc": pytest.approx(2 / 3),
    }


def test_what_is_binary():
    assert is_binary([0.0, 1.0, 1.0])
    assert not is_binary([1.0, 1.0])
    assert not is_binary([0.0, 0.5, 1.0])


def test_one_kind_of_row_has_no_area():
    with pytest.raises(DataError, match="needs true and false rows; 2 of 2 are true"):
        area_under_roc([0.1, 0.2], [1, 1])
