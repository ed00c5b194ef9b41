"""How far the policy has moved from the reference, estimated from the log-probs of sampled tokens alone, and
what that costs.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32
from mmft.errors import ConfigError, NonFiniteError

KLEstimator = Literal["k1", "k3"]
MAX_ERROR = 0.2
"""The relative error beyond which the controller reacts no more strongly (Ziegler et al. 2019)."""


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


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: float, num_samples: int) -> float:
    """The price of KL for the next rollout, so that the KL settles at `target`: a controller proportional in
    log space (Ziegler et al. 2019, arXiv:1909.08593, sec. 2.2).

        e = clip((kl - target) / target, -0.2, 0.2)
        kl_coef <- kl_coef * (1 + e * num_samples / horizon)

    Args:
        kl_coef: beta, the price so far. 0 stays 0.
        kl: mean over this rollout's samples, in the unit of `target`: nats per completion in the trainers.
        target: the KL to settle at, > 0.
        horizon: samples over which the price reacts; the factor K of the paper is num_samples / horizon.
        num_samples: completions of this rollout, on all processes.

    Raises:
        ConfigError: `target` or `horizon` is too small; the price could reach 0 or turn into a bonus.
        NonFiniteError: `kl` is no number.
    """
    if target <= 0:
        raise ConfigError(f"`target` of the KL must be > 0; got {target}. Without one the price stays.")
    if horizon <= MAX_ERROR * num_samples:
        raise ConfigError(
            f"`horizon` of the KL must be more than {MAX_ERROR:g} of a rollout's {num_samples} samples, or "
            f"its price may not stay positive; got {horizon:g}. Choose at least {num_samples}."
        )
    if not math.isfinite(kl):
        raise NonFiniteError(f"The KL to the reference is {kl}: the price of KL cannot follow it.")
    error = min(max((kl - target) / target, -MAX_ERROR), MAX_ERROR)
    return kl_coef * (1 + error * num_samples / horizon)
