"""What the pictures of a run share."""

from __future__ import annotations

import pytest

from mmft.report.figures import series, smoothed


def test_smoothing_starts_at_the_first_value_and_follows():
    # Weights 1, then 0.8 and 1 over 1.8: (0.8 * 1 + 4) / 1.8
    assert smoothed([1.0, 4.0]) == pytest.approx([1.0, 4.8 / 1.8])
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)


def test_a_series_is_of_the_lines_that_have_the_number_and_the_place():
    history = [{"step": 1, "loss": 0.5, "far": 10}, {"step": 2, "far": 20}, {"step": 3, "loss": 0.25}]
    assert series(history, "loss") == ([1.0, 3.0], [0.5, 0.25])
    assert series(history, "loss", "far") == ([10.0], [0.5])
    assert series(history, "reward") == ([], [])
