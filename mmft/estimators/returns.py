"""Returns: what followed a step, discounted, with a value estimate standing in for what was not seen.

Conventions of this package: tensors are (B, T) in time order. `next_values[t]` is V(s_{t+1}), also across the
end of a window. `terminated` marks steps after which nothing follows (no bootstrap), `last` the last step of
an episode or window (the recursion stops, the bootstrap stays). Computed in float32 at least.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, last_valid, zero_outside


def discounted_return(rewards: Tensor, mask: Tensor, *, discount: float) -> Tensor:
    """The return of each row from its first step on, the quantity whose expectation is J(pi).

        R_b = sum_t discount^t r_bt,   over valid t                      (Sutton & Barto 2018, eq. 3.8)

    Shapes: (B, T), (B, T) -> (B,).
    """
    check_shapes(rewards=(rewards, "BT"), mask=(mask, "BT"))
    rewards = zero_outside(at_least_float32(rewards), mask)
    exponents = torch.arange(rewards.shape[1], dtype=rewards.dtype, device=rewards.device)
    return (discount**exponents * rewards).sum(dim=1)


def shift_values(values: Tensor, mask: Tensor, bootstrap_values: Tensor | None = None) -> Tensor:
    """V(s_{t+1}) for each step of right-padded rows: `values` moved one step left.

    After the last valid step stands `bootstrap_values` (B,), the value of the state a row was cut at, or 0 as
    for rows that ended. Padded positions are 0.
    """
    check_shapes(values=(values, "BT"), mask=(mask, "BT"))
    shifted = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    if bootstrap_values is None:
        beyond = torch.zeros_like(values)
    else:
        check_shapes(values=(values, "BT"), bootstrap_values=(bootstrap_values, "B"))
        beyond = bootstrap_values.to(values.dtype).unsqueeze(1).expand_as(values)
    return zero_outside(torch.where(last_valid(mask), beyond, shifted), mask)


def lambda_returns(
    rewards: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    last: Tensor,
    discount: float | Tensor,
    lam: float,
) -> Tensor:
    """TD(lambda) targets, the exponential average of all n-step returns (Sutton & Barto 2018, eq. 12.2).

        G_t = r_t + discount * ((1 - lam) V(s_{t+1}) + lam G_{t+1}),   V = G = 0 after a terminated step,
                                                                       G_{t+1} = V(s_{t+1}) after a last step

    lam = 1 is the discounted return to go, lam = 0 the one-step target. Minus V(s_t) this is the advantage of
    `estimators.advantages.gae`. `discount` may differ by step. Shapes: all (B, T).
    """
    rewards, next_values, discounts, ends = _prepare(rewards, next_values, terminated, last, discount)
    following = next_values[:, -1]
    targets = []
    for t in reversed(range(rewards.shape[1])):
        following = torch.where(ends[:, t], next_values[:, t], following)
        following = rewards[:, t] + discounts[:, t] * ((1 - lam) * next_values[:, t] + lam * following)
        targets.append(following)
    return torch.stack(targets[::-1], dim=1)


def n_step_returns(
    rewards: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    last: Tensor,
    discount: float | Tensor,
    num_steps: int,
) -> Tensor:
    """`num_steps` rewards and the value of where they lead (Sutton & Barto 2018, eq. 7.1).

        G_t = r_t + discount r_{t+1} + ... + discount^{n-1} r_{t+n-1} + discount^n V(s_{t+n}),   n = num_steps

    Fewer rewards before a terminated step (no value follows) or a last one (its V(s_{t+1}) follows).
    `discount` may differ by step. Shapes: all (B, T).
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be >= 1; got {num_steps}. 1 is the one-step target.")
    rewards, next_values, discounts, ends = _prepare(rewards, next_values, terminated, last, discount)
    targets = rewards + discounts * next_values
    for _ in range(min(num_steps, rewards.shape[1]) - 1):
        following = torch.cat([targets[:, 1:], next_values[:, -1:]], dim=1)
        targets = rewards + discounts * torch.where(ends, next_values, following)
    return targets


def spread_discount(discount: float | Tensor, like: Tensor) -> Tensor:
    """`discount` as a tensor of the shape and dtype of `like`, one per step."""
    if isinstance(discount, Tensor):
        check_shapes(rewards=(like, "BT"), discount=(discount, "BT"))
        return discount.to(like.dtype)
    return torch.full_like(like, discount)


def _prepare(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, last: Tensor, discount: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, next values (0 after a terminated step), discounts, and where recursions stop; all checked."""
    check_shapes(
        rewards=(rewards, "BT"),
        next_values=(next_values, "BT"),
        terminated=(terminated, "BT"),
        last=(last, "BT"),
    )
    rewards = at_least_float32(rewards)
    next_values = zero_outside(at_least_float32(next_values), ~terminated.bool())
    return rewards, next_values, spread_discount(discount, rewards), terminated.bool() | last.bool()
