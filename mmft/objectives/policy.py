"""Losses of the policy, and what tells whether an update went too far.

Invalid positions may hold anything, NaN included: they change no number and get exactly zero gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, masked_sum, zero_outside


def policy_gradient_loss(
    logps: Tensor, advantages: Tensor, mask: Tensor, *, num_tokens: float | Tensor
) -> Tensor:
    """The policy gradient (Williams 1992; Sutton & Barto 2018, sec. 13.4) as a loss, L_actor: minimise it.

        loss = -(1/N) sum_bt mask * A_bt log pi(a_bt | s_bt),   N = num_tokens

    Its gradient is that of the expected return only for actions drawn from the policy as it is now. Only
    `logps` gets a gradient. Shapes: all (B, T) -> ().
    """
    check_shapes(logps=(logps, "BT"), advantages=(advantages, "BT"), mask=(mask, "BT"))
    # Selected before the product: the gradient of an invalid log-prob is 0 * A, and A may be NaN there.
    logps = zero_outside(at_least_float32(logps), mask)
    return -masked_sum(logps * at_least_float32(advantages).detach(), mask) / num_tokens


def reward_weighted_loss(
    logps: Tensor, weights: Tensor, mask: Tensor, *, num_tokens: float | Tensor
) -> Tensor:
    """Reward-weighted likelihood, -E[R(s, a) log f(s)] (Peters & Schaal 2007, "Reinforcement learning by
    reward-weighted regression for operational space control"): minimise it.

        loss = -(1/N) sum_b w_b sum_t mask_bt log f(a_bt | s_bt),   N = num_tokens

    One weight per sample (`estimators.weights.reward_weights`), which may be any function of its reward. All
    weights 1: the mean negative log-likelihood per token of supervised training. Only `logps` gets a
    gradient. Shapes: (B, T), (B,), (B, T) -> ().
    """
    check_shapes(logps=(logps, "BT"), weights=(weights, "B"))
    return policy_gradient_loss(logps, weights[:, None].expand_as(logps), mask, num_tokens=num_tokens)


def clipped_policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    num_tokens: float | Tensor,
) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv:1707.06347, eq. 7), negated: minimise it.

        loss = -(1/N) sum_bt mask * min(ratio * A, clip(ratio, 1 - eps, 1 + eps) * A)
        ratio = exp(logps - old_logps),   eps = clip,   N = num_tokens

    Only `logps` gets a gradient. Shapes: all (B, T) -> ().
    """
    _check_tokens(logps, old_logps, mask)
    check_shapes(logps=(logps, "BT"), advantages=(advantages, "BT"))
    advantages = at_least_float32(advantages).detach()
    ratio = _log_ratio(logps, old_logps, mask).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -masked_sum(surrogate, mask) / num_tokens


@torch.no_grad()
def clip_fraction(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    num_tokens: float | Tensor,
) -> Tensor:
    """Share of tokens where the clipped term is the smaller one, so that they push the policy no further.

    Counted as in TRL: a ratio outside the clip range counts only on the side that its advantage points to.
    Shapes: all (B, T) -> ().
    """
    _check_tokens(logps, old_logps, mask)
    check_shapes(logps=(logps, "BT"), advantages=(advantages, "BT"))
    advantages = at_least_float32(advantages)
    ratio = _log_ratio(logps, old_logps, mask).exp()
    clipped = ratio.clamp(1 - clip, 1 + clip) * advantages < ratio * advantages
    return masked_sum(clipped, mask) / num_tokens


@torch.no_grad()
def approximate_kl(logps: Tensor, old_logps: Tensor, mask: Tensor, *, num_tokens: float | Tensor) -> Tensor:
    """KL(old || new) over tokens drawn from the old policy, by Schulman's k3 estimator (2020): never below 0.

        (1/N) sum_bt mask * (ratio - 1 - log ratio)

    Shapes: all (B, T) -> ().
    """
    _check_tokens(logps, old_logps, mask)
    log_ratio = _log_ratio(logps, old_logps, mask)
    return masked_sum(torch.expm1(log_ratio) - log_ratio, mask) / num_tokens


def mean_entropy(entropies: Tensor, mask: Tensor, *, num_tokens: float | Tensor) -> Tensor:
    """(1/N) sum_bt mask * H(pi(. | s_bt)), with gradient: a loss minus a multiple of it keeps exploring.

    Shapes: (B, T), (B, T) -> ().
    """
    check_shapes(entropies=(entropies, "BT"), mask=(mask, "BT"))
    return masked_sum(entropies, mask) / num_tokens


def _check_tokens(logps: Tensor, old_logps: Tensor, mask: Tensor) -> None:
    check_shapes(logps=(logps, "BT"), old_logps=(old_logps, "BT"), mask=(mask, "BT"))


def _log_ratio(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """log pi/pi_old, 0 (ratio 1) at invalid positions."""
    return zero_outside(at_least_float32(logps) - at_least_float32(old_logps).detach(), mask)
