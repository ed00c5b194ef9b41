"""Variances, calibration and risk-coverage: hand numbers, slow loops, known answers, invariances."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.evaluation.uncertainty import (
    calibration_error,
    calibration_report,
    expected_calibration_error,
    gaussian_nll,
    interval_coverage,
    mc_variance,
    preference_calibration_error,
    risk_coverage,
    total_variance,
)

NORMAL = statistics.NormalDist()


def gaussian_targets(count: int, spread: float = 1.0) -> Tensor:
    """The quantiles of a normal distribution at equal distances: a sample without sampling noise."""
    return torch.tensor([spread * NORMAL.inv_cdf((row + 0.5) / count) for row in range(count)])


def random_predictions(count: int = 40, seed: int = 0) -> tuple[list[float], list[float], list[float]]:
    stream = random.Random(seed)
    means = [stream.gauss(0, 2) for _ in range(count)]
    variances = [stream.uniform(0.2, 3) for _ in range(count)]
    targets = [stream.gauss(mean, 1.5) for mean in means]
    return means, variances, targets


# Variances


def test_mc_variance_hand_computed():
    # 1, 2, 6: mean 3, ((-2)^2 + (-1)^2 + 3^2) / 3 = 14/3.   5, 5, 5: 0
    torch.testing.assert_close(
        mc_variance(torch.tensor([[1.0, 5], [2, 5], [6, 5]])), torch.tensor([14 / 3, 0])
    )


def test_mc_variance_is_the_loop_over_samples():
    samples = torch.randn(7, 3, 2, dtype=torch.float64)
    for row in range(3):
        for column in range(2):
            expected = statistics.pvariance(samples[:, row, column].tolist())
            assert mc_variance(samples)[row, column].item() == pytest.approx(expected)


def test_mc_variance_ignores_a_shift_and_the_order_and_squares_a_scale():
    samples = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(mc_variance(samples + 100), mc_variance(samples))
    torch.testing.assert_close(mc_variance(samples.flip(0)), mc_variance(samples))
    torch.testing.assert_close(mc_variance(-3 * samples), 9 * mc_variance(samples))


def test_one_sample_says_nothing_about_its_variance():
    assert mc_variance(torch.tensor([[2.0, 3.0]])).tolist() == [0, 0]


def test_mc_variance_of_half_precision_is_not_computed_in_it():
    samples = torch.tensor([[1000.0], [1001.0]], dtype=torch.float16)
    assert mc_variance(samples).dtype == torch.float32
    assert mc_variance(samples).item() == 0.25


def test_samples_without_a_dimension_are_refused():
    with pytest.raises(ValueError, match=r"`samples` must be T x ... with T >= 1; got shape \(0, 4\)"):
        mc_variance(torch.zeros(0, 4))


def test_total_variance_adds_and_checks_shapes():
    assert total_variance(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.25])).tolist() == [1.5, 2.25]
    with pytest.raises(ValueError, match="`aleatoric` must have dims B; got shape \\(2, 1\\)"):
        total_variance(torch.zeros(2), torch.zeros(2, 1))


# Regression


def test_gaussian_nll_hand_computed():
    # sigma^2 = 4, residual 2: 1/2 log(8 pi) + 4/8
    expected = 0.5 * math.log(8 * math.pi) + 0.5
    assert gaussian_nll([1.0], [4.0], [3.0]).item() == pytest.approx(expected)


def test_gaussian_nll_is_minus_the_log_of_the_density():
    means, variances, targets = random_predictions()
    expected = [
        -math.log(statistics.NormalDist(mean, math.sqrt(variance)).pdf(target))
        for mean, variance, target in zip(means, variances, targets, strict=True)
    ]
    torch.testing.assert_close(gaussian_nll(means, variances, targets).tolist(), expected)


def test_the_true_variance_has_the_lowest_nll():
    targets = gaussian_targets(1000, spread=2.0)
    losses = {
        variance: gaussian_nll(0 * targets, torch.full_like(targets, variance), targets).mean().item()
        for variance in (1.0, 2.0, 4.0, 8.0, 16.0)
    }
    assert min(losses, key=losses.__getitem__) == 4.0


def test_interval_coverage_hand_computed():
    # standard normal: the central 25, 50 and 75 % end at 0.319, 0.674 and 1.150
    levels, shares = interval_coverage([0.0] * 4, [1.0] * 4, [0.3, -0.6, 1.1, 2.0], num_levels=3)
    assert levels.tolist() == [0.25, 0.5, 0.75]
    assert shares.tolist() == [0.25, 0.5, 0.75]


def test_interval_coverage_is_the_loop_over_levels():
    means, variances, targets = random_predictions()
    levels, shares = interval_coverage(means, variances, targets, num_levels=9)
    for level, share in zip(levels.tolist(), shares.tolist(), strict=True):
        inside = 0
        for mean, variance, target in zip(means, variances, targets, strict=True):
            half = math.sqrt(variance) * NORMAL.inv_cdf(0.5 + level / 2)
            inside += mean - half <= target <= mean + half
        assert share == inside / len(means)


def test_a_calibrated_gaussian_has_no_calibration_error():
    targets = gaussian_targets(4000)
    assert calibration_error(0 * targets, torch.ones_like(targets), targets) < 1e-3


def test_an_overconfident_gaussian_has_the_known_calibration_error():
    # stated sigma half of the true one: the p interval covers 2 Phi(z_p / 2) - 1
    targets = gaussian_targets(4000, spread=2.0)
    levels = [step / 20 for step in range(1, 20)]
    covered = [2 * NORMAL.cdf(NORMAL.inv_cdf(0.5 + level / 2) / 2) - 1 for level in levels]
    expected = statistics.mean(level - share for level, share in zip(levels, covered, strict=True))
    assert calibration_error(0 * targets, torch.ones_like(targets), targets) == pytest.approx(
        expected, abs=1e-3
    )
    assert expected > 0.15


def test_the_extremes_of_calibration():
    targets = gaussian_targets(500)
    assert calibration_error(0 * targets, torch.full_like(targets, 1e-12), targets) == pytest.approx(0.5)
    assert calibration_error(0 * targets, torch.full_like(targets, 1e12), targets) == pytest.approx(0.5)


def test_calibration_does_not_depend_on_unit_place_or_order():
    means, variances, targets = (torch.tensor(column) for column in random_predictions())
    expected = calibration_error(means, variances, targets)
    assert calibration_error(3 * means + 1, 9 * variances, 3 * targets + 1) == pytest.approx(expected)
    assert calibration_error(means.flip(0), variances.flip(0), targets.flip(0)) == pytest.approx(expected)


# Preferences


def test_expected_calibration_error_hand_computed():
    # bins (0.5, 0.75] of 0.6 right and 0.7 wrong: |1 - 1.3| = 0.3; (0.75, 1] of 0.9 right: |1 - 0.9| = 0.1
    assert expected_calibration_error([0.6, 0.7, 0.9], [1, 0, 1], num_bins=4) == pytest.approx(0.4 / 3)


def test_expected_calibration_error_is_the_loop_over_bins():
    stream = random.Random(0)
    confidences = [0.0, 0.1, 0.5, 1.0, *(stream.random() for _ in range(60))]
    correct = [float(stream.random() < 0.7) for _ in confidences]
    expected = 0.0
    for number in range(10):
        low, high = number / 10, (number + 1) / 10
        inside = [row for row, each in enumerate(confidences) if low < each <= high or (each == 0 == number)]
        if inside:
            accuracy = statistics.mean(correct[row] for row in inside)
            confidence = statistics.mean(confidences[row] for row in inside)
            expected += len(inside) / len(confidences) * abs(accuracy - confidence)
    assert expected_calibration_error(confidences, correct) == pytest.approx(expected)


def test_preferences_that_are_right_as_often_as_stated_are_calibrated():
    assert preference_calibration_error([0.75, 0.75, 0.75, 0.25]) == pytest.approx(0.0)
    # always sure and half of the time right
    assert preference_calibration_error([1.0, 0.0]) == pytest.approx(0.5)
    # no preference is half right
    assert preference_calibration_error([0.5, 0.5]) == pytest.approx(0.0)


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match="`confidences` must be probabilities, from 0 to 1"):
        expected_calibration_error([1.2], [1])


# Risk and coverage


def test_risk_coverage_hand_computed():
    # by uncertainty: errors 1, 0, 3: risks 1, 1/2, 4/3.  By error: 0, 1, 3: risks 0, 1/2, 4/3
    curve = risk_coverage([3.0, 1.0, 0.0], [0.9, 0.1, 0.5])
    torch.testing.assert_close(curve.coverage.tolist(), [1 / 3, 2 / 3, 1.0])
    torch.testing.assert_close(curve.risk.tolist(), [1.0, 0.5, 4 / 3])
    assert curve.area == pytest.approx((1 + 0.5 + 4 / 3) / 3)
    assert curve.best_area == pytest.approx((0 + 0.5 + 4 / 3) / 3)
    assert curve.random_area == pytest.approx(4 / 3)


def test_risk_coverage_is_the_loop_over_thresholds():
    stream = random.Random(1)
    pairs = [(stream.random(), stream.random()) for _ in range(30)]
    curve = risk_coverage(*zip(*pairs, strict=True))
    kept = sorted(pairs, key=lambda pair: pair[1])
    for number in range(1, len(pairs) + 1):
        expected = statistics.mean(error for error, _ in kept[:number])
        assert curve.risk[number - 1].item() == pytest.approx(expected)


def test_uncertainty_that_orders_like_the_error_is_the_best():
    errors = torch.rand(50, dtype=torch.float64)
    assert risk_coverage(errors, errors.exp()).area == pytest.approx(risk_coverage(errors, errors).best_area)
    assert risk_coverage(errors, -errors).area > risk_coverage(errors, errors).random_area


def test_equal_uncertainty_is_a_random_order_however_rows_are_stored():
    errors = torch.rand(50, dtype=torch.float64)
    uncertainty = torch.arange(50) % 3
    curve = risk_coverage(errors, torch.ones(50))
    assert curve.area == pytest.approx(curve.random_area)
    order = torch.randperm(50)
    torch.testing.assert_close(
        risk_coverage(errors, uncertainty).risk, risk_coverage(errors[order], uncertainty[order]).risk
    )


def test_a_random_order_has_the_random_area_on_average():
    errors = torch.rand(20, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    areas = [risk_coverage(errors, torch.rand(20, generator=generator)).area for _ in range(2000)]
    assert statistics.mean(areas) == pytest.approx(errors.mean().item(), abs=0.01)


# The report


def test_the_report_holds_each_measure():
    means, variances, targets = random_predictions()
    report = calibration_report(means, variances, targets)
    squares = [(target - mean) ** 2 for mean, target in zip(means, targets, strict=True)]
    assert report == {
        "mse": pytest.approx(statistics.mean(squares)),
        "nll": pytest.approx(gaussian_nll(means, variances, targets).mean().item()),
        "calibration_error": pytest.approx(calibration_error(means, variances, targets)),
        "sharpness": pytest.approx(math.sqrt(statistics.mean(variances))),
        "aurc": pytest.approx(risk_coverage(squares, variances).area),
        "aurc_best": pytest.approx(risk_coverage(squares, variances).best_area),
        "aurc_random": pytest.approx(statistics.mean(squares)),
    }


def test_the_report_tells_a_model_that_knows_its_errors_from_one_that_does_not():
    generator = torch.Generator().manual_seed(0)
    spreads = torch.where(torch.arange(2000) % 2 == 0, 0.1, 2.0)
    targets = spreads * torch.randn(2000, generator=generator)
    knows = calibration_report(0 * targets, spreads**2, targets)
    average = (spreads**2).mean()
    does_not = calibration_report(0 * targets, torch.full_like(targets, average.item()), targets)
    assert knows["nll"] < does_not["nll"] - 0.5
    assert knows["calibration_error"] < 0.05 < does_not["calibration_error"]
    assert knows["aurc"] < 0.5 * does_not["aurc"]
    assert knows["sharpness"] == pytest.approx(does_not["sharpness"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration_report([0.0], [0.0], [1.0]), "`variances` must be above 0; the smallest is 0.0"),
        (lambda: calibration_report([0.0, 1.0], [1.0], [1.0]), "`variances` has N=1, but earlier arguments"),
        (lambda: gaussian_nll([0.0], [1.0], [math.nan]), "`targets` is nan in row 0; leave such rows out"),
        (lambda: risk_coverage([], []), "`errors` is empty; there is nothing to measure"),
        (lambda: interval_coverage([0.0], [1.0], [0.0], num_levels=0), "`num_levels` must be >= 1; got 0"),
        (lambda: expected_calibration_error([1.0], [1], num_bins=0), "`num_bins` must be >= 1; got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(call: Callable[[], Any], message: str):
    with pytest.raises(ValueError, match=message):
        call()
