"""Losses of the critic, and how much of the returns it explains."""

from __future__ import annotations

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import Reduce, at_least_float32, identity, masked_sum, masked_var, zero_outside


def td_loss(values: Tensor, targets: Tensor, mask: Tensor, *, num_tokens: float | Tensor) -> Tensor:
    """Squared error of temporal differences, L_TD (Sutton & Barto 2018, sec. 9.3 and 11.5): minimise it.

        loss = (1/N) sum_bt mask * (target_bt - V(s_bt))^2,   N = num_tokens

    With target = R + gamma V(s') it is E[delta^2] of the TD error delta; any return will do. A target gets no
    gradient, also where V(s') is a part of it: the semi-gradient -2 delta dV(s), not that of E[delta^2].
    Shapes: all (B, T) -> ().
    """
    check_shapes(values=(values, "BT"), targets=(targets, "BT"), mask=(mask, "BT"))
    values, targets = (zero_outside(at_least_float32(x), mask) for x in (values, targets.detach()))
    return (targets - values).square().sum() / num_tokens


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float,
    num_tokens: float | Tensor,
) -> Tensor:
    """PPO's pessimistic squared error (Engstrom et al. 2020, arXiv:2005.12729, sec. 3), halved: minimise it.

        loss = (1/2N) sum_bt mask * max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2)

    eps = `clip` (infinity switches it off), N = `num_tokens`. Only `values` gets a gradient.
    Shapes: all (B, T) -> ().
    """
    error, clipped_error = _squared_errors(values, old_values, returns, mask, clip)
    return 0.5 * masked_sum(torch.maximum(error, clipped_error), mask) / num_tokens


@torch.no_grad()
def value_clip_fraction(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip: float,
    num_tokens: float | Tensor,
) -> Tensor:
    """Share of tokens where the clipped error is the larger: the critic stays. Shapes: all (B, T) -> ()."""
    error, clipped_error = _squared_errors(values, old_values, returns, mask, clip)
    return masked_sum(clipped_error > error, mask) / num_tokens


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor, *, reduce: Reduce = identity) -> Tensor:
    """Share of the returns' variance that the critic accounts for, over the valid tokens of all processes.

        1 - Var(R - V) / Var(R)          1: all of it, 0: no more than a constant does, below 0: worse

    NaN if the returns do not vary. Shapes: all (B, T) -> ().
    """
    check_shapes(values=(values, "BT"), returns=(returns, "BT"), mask=(mask, "BT"))
    residuals = at_least_float32(returns) - at_least_float32(values)
    var_returns = masked_var(returns, mask, reduce=reduce)
    unexplained = masked_var(residuals, mask, reduce=reduce) / var_returns
    return torch.where(var_returns > 0, 1 - unexplained, torch.nan)


def _squared_errors(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """(V - R)^2 and (clipped V - R)^2, both 0 at invalid positions."""
    check_shapes(
        values=(values, "BT"), old_values=(old_values, "BT"), returns=(returns, "BT"), mask=(mask, "BT")
    )
    values, old_values, returns = (
        zero_outside(at_least_float32(x), mask) for x in (values, old_values.detach(), returns.detach())
    )
    clipped = torch.clamp(values, old_values - clip, old_values + clip)
    return (values - returns).square(), (clipped - returns).square()
