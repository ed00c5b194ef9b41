"""How far the policy has moved from the reference, estimated from the log-probs of sampled tokens alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32

KLEstimator = Literal["k1", "k3"]


def kl_penalty(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator = "k1") -> Tensor:
    """Per-token estimate of KL(pi || ref) at tokens drawn from pi.

        k1 = log pi - log ref                             unbiased, high variance, may be negative
        k3 = ref/pi - 1 - log(ref/pi)                     unbiased, low variance, never negative

    (Schulman 2020, "Approximating KL Divergence"). The reference gets no gradient.
    Shapes: (B, T), (B, T) -> (B, T).
    """
    check_shapes(logps=(logps, "BT"), ref_logps=(ref_logps, "BT"))
    log_ratio = at_least_float32(ref_logps).detach() - at_least_float32(logps)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k3":
        # expm1: for a policy near its reference exp(x) - 1 keeps no digit of x^2/2 in float32.
        return torch.expm1(log_ratio) - log_ratio
    raise ValueError(f"`estimator` must be 'k1' or 'k3'; got {estimator!r}.")
