"""How sure a reward model is of its numbers, and whether it is right to be: variances, calibration, risk.

Pure functions of numbers that a model has given; how they are drawn (dropout, a variance head) is the model's
business. Measures are computed in float64, because they are read to three digits and compared between runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32

NUM_LEVELS = 19
"""Coverage is looked at for central intervals of 5 %, 10 %, ..., 95 %."""
NUM_BINS = 10

Numbers = Tensor | Sequence[float]


def mc_variance(samples: Tensor) -> Tensor:
    """Epistemic variance: how far T stochastic passes over the same input differ (Gal & Ghahramani 2016,
    arXiv:1506.02142, sec. 4).

        Var(y) = 1/T sum_t (f_t(s) - y_bar)^2,   y_bar = 1/T sum_t f_t(s)

    Shapes: (T, ...) -> (...), in float32 at least.
    """
    if samples.ndim == 0 or len(samples) == 0:
        raise ValueError(f"`samples` must be T x ... with T >= 1; got shape {tuple(samples.shape)}.")
    return at_least_float32(samples).var(dim=0, correction=0)


def total_variance(epistemic: Tensor, aleatoric: Tensor) -> Tensor:
    """What the model does not know plus what the data does not tell (Kendall & Gal 2017, arXiv:1703.04977,
    eq. 9). Shapes: both (B,) -> (B,)."""
    check_shapes(epistemic=(epistemic, "B"), aleatoric=(aleatoric, "B"))
    return at_least_float32(epistemic) + at_least_float32(aleatoric)


def gaussian_nll(means: Numbers, variances: Numbers, targets: Numbers) -> Tensor:
    """Negative log-likelihood of each target in nats, constant included, so that models can be compared.

        1/2 log(2 pi sigma^2) + (y - y_hat)^2 / (2 sigma^2)

    Shapes: all (N,) -> (N,).
    """
    means, variances, targets = _predictions(means, variances, targets)
    return 0.5 * (torch.log(2 * math.pi * variances) + (targets - means).square() / variances)


def interval_coverage(
    means: Numbers, variances: Numbers, targets: Numbers, *, num_levels: int = NUM_LEVELS
) -> tuple[Tensor, Tensor]:
    """Share of targets inside the central Gaussian interval of each probability p = j / (num_levels + 1).

    Returns the levels p and the shares, which a calibrated model has equal. Shapes: all (N,) -> (L,), (L,).
    """
    if num_levels < 1:
        raise ValueError(f"`num_levels` must be >= 1; got {num_levels}.")
    means, variances, targets = _predictions(means, variances, targets)
    # The probability of the smallest central interval that holds the target.
    reached = torch.erf((targets - means).abs() / (2 * variances).sqrt())
    levels = torch.arange(1, num_levels + 1, dtype=torch.float64) / (num_levels + 1)
    return levels, (reached <= levels.unsqueeze(1)).double().mean(dim=1)


def calibration_error(
    means: Numbers, variances: Numbers, targets: Numbers, *, num_levels: int = NUM_LEVELS
) -> float:
    """How far stated and observed coverage are apart, on average over the levels.

        1/L sum_j |p_j - share of targets in the central p_j interval|

    After Kuleshov et al. 2018 (arXiv:1807.00263), eq. 9, which squares the differences of one-sided
    intervals; as absolute differences of central ones the number reads as a share of rows. 0 is calibrated;
    variances far too small or far too large give 0.5.
    """
    levels, shares = interval_coverage(means, variances, targets, num_levels=num_levels)
    return (levels - shares).abs().mean().item()


def expected_calibration_error(confidences: Numbers, correct: Numbers, *, num_bins: int = NUM_BINS) -> float:
    """Gap between confidence and accuracy in bins of equal width (Guo et al. 2017, arXiv:1706.04599, eq. 3).

        ECE = sum_m |B_m|/N |acc(B_m) - conf(B_m)|,   B_m = {i: confidence_i in ((m - 1)/M, m/M]}

    Shapes: (N,) in [0, 1] and (N,) of 0 or 1.
    """
    if num_bins < 1:
        raise ValueError(f"`num_bins` must be >= 1; got {num_bins}.")
    confidences, correct = _columns(confidences=confidences, correct=correct)
    if bool(((confidences < 0) | (confidences > 1)).any()):
        raise ValueError("`confidences` must be probabilities, from 0 to 1.")
    # A confidence of 0 belongs to the first bin.
    bins = (torch.ceil(confidences * num_bins).long() - 1).clamp(min=0)
    gaps = torch.zeros(num_bins, dtype=torch.float64).index_add_(0, bins, correct - confidences)
    return (gaps.abs().sum() / len(confidences)).item()


def preference_calibration_error(probs: Numbers, *, num_bins: int = NUM_BINS) -> float:
    """`expected_calibration_error` of preferences, from the probability given to each that was made.

    The model's answer is the likelier side, so its confidence is max(p, 1 - p), and it is right if p > 1/2;
    at 1/2 it is half right.
    """
    (probs,) = _columns(probs=probs)
    return expected_calibration_error(
        torch.maximum(probs, 1 - probs), 0.5 * (1 + torch.sign(probs - 0.5)), num_bins=num_bins
    )


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Mean error of the k most certain rows, for every k (El-Yaniv & Wiener 2010; Geifman & El-Yaniv 2017,
    arXiv:1705.08500)."""

    coverage: Tensor
    """k/N for k = 1, ..., N."""
    risk: Tensor
    """1/k sum of the errors of the k rows with the smallest uncertainty."""
    best_risk: Tensor
    """The same with rows in the order of their errors: no uncertainty could do better."""

    @property
    def area(self) -> float:
        """AURC, the mean risk over all coverages (Geifman et al. 2019, arXiv:1805.08206); low is good."""
        return self.risk.mean().item()

    @property
    def best_area(self) -> float:
        """The area of the best possible order."""
        return self.best_risk.mean().item()

    @property
    def random_area(self) -> float:
        """The area to be expected of a random order: the mean error."""
        return self.risk[-1].item()


def risk_coverage(errors: Numbers, uncertainty: Numbers) -> RiskCoverage:
    """What is gained by answering only where the model is certain. Shapes: both (N,).

    Rows of equal uncertainty count with their mean error, the expectation over their order, so that the curve
    does not depend on how rows happen to be stored.
    """
    errors, uncertainty = _columns(errors=errors, uncertainty=uncertainty)
    _, group = torch.unique(uncertainty, return_inverse=True)
    sums = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, errors)
    shared = (sums / torch.bincount(group))[group]
    counts = torch.arange(1, len(errors) + 1, dtype=torch.float64)
    return RiskCoverage(
        coverage=counts / len(errors),
        risk=shared[uncertainty.argsort()].cumsum(0) / counts,
        best_risk=errors.sort().values.cumsum(0) / counts,
    )


def calibration_report(means: Numbers, variances: Numbers, targets: Numbers) -> dict[str, float]:
    """Everything above for predictions with variances, the squared error being the risk.

    `sharpness` is the root of the mean variance, in the targets' unit: of two calibrated models the sharper
    one (with the smaller number) knows more.
    """
    means, variances, targets = _predictions(means, variances, targets)
    errors = (targets - means).square()
    curve = risk_coverage(errors, variances)
    return {
        "mse": errors.mean().item(),
        "nll": gaussian_nll(means, variances, targets).mean().item(),
        "calibration_error": calibration_error(means, variances, targets),
        "sharpness": variances.mean().sqrt().item(),
        "aurc": curve.area,
        "aurc_best": curve.best_area,
        "aurc_random": curve.random_area,
    }


def _predictions(means: Numbers, variances: Numbers, targets: Numbers) -> tuple[Tensor, Tensor, Tensor]:
    means, variances, targets = _columns(means=means, variances=variances, targets=targets)
    if not bool((variances > 0).all()):
        raise ValueError(
            f"`variances` must be above 0; the smallest is {variances.min().item()}. Add the least variance "
            "that you believe in."
        )
    return means, variances, targets


def _columns(**columns: Numbers) -> tuple[Tensor, ...]:
    """Float64 on the CPU, equally long, at least one row, finite."""
    tensors = {
        name: torch.as_tensor(column, dtype=torch.float64, device="cpu").detach()
        for name, column in columns.items()
    }
    check_shapes(**{name: (tensor, "N") for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        if len(tensor) == 0:
            raise ValueError(f"`{name}` is empty; there is nothing to measure.")
        if not bool(tensor.isfinite().all()):
            row = int((~tensor.isfinite()).nonzero()[0])
            raise ValueError(f"`{name}` is {tensor[row].item()} in row {row}; leave such rows out.")
    return tuple(tensors.values())
