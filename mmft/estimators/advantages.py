"""Advantages: how much better a step was than the critic expected.

Nothing is normalised unasked: whitening is a separate step (`_masking.masked_whiten`), so that these numbers
match their closed forms. `estimators.returns` says what `next_values`, `terminated` and `last` are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmft._checks import check_shapes
from mmft._masking import at_least_float32, zero_outside
from mmft.estimators.groups import group_centered, group_std
from mmft.estimators.returns import spread_discount

_EPSILON = 1e-4  # beside the standard deviation of a group; TRL's value


def td_errors(
    rewards: Tensor, values: Tensor, next_values: Tensor, *, terminated: Tensor, discount: float | Tensor
) -> Tensor:
    """A = Q - V with the one-step Q = r + discount V': errors of the critic (Sutton & Barto 2018, eq. 6.5).

        delta_t = r_t + discount * V(s_{t+1}) - V(s_t),   without the V(s_{t+1}) where `terminated`

    Shapes: all (B, T).
    """
    check_shapes(
        rewards=(rewards, "BT"),
        values=(values, "BT"),
        next_values=(next_values, "BT"),
        terminated=(terminated, "BT"),
    )
    rewards, values, next_values = map(at_least_float32, (rewards, values, next_values))
    following = zero_outside(next_values, ~terminated.bool())
    return rewards + spread_discount(discount, rewards) * following - values


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    *,
    terminated: Tensor,
    last: Tensor,
    discount: float | Tensor,
    lam: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438, eq. 16).

        A_t = delta_t + discount * lam * A_{t+1},   A_{t+1} = 0 after a terminated or a last step

    with delta_t from `td_errors`. lam = 0 is the TD error, lam = 1 the discounted return minus V. Positions
    outside `mask` come out 0 and, whatever they hold, change no other: a gap ends the recursion. The critic
    trains on A + V. For right-padded completions, each one episode:

        ends, next_values = last_valid(mask), shift_values(values, mask)
        advantages = gae(rewards, values, next_values, terminated=ends, last=ends, mask=mask, ...)

    Shapes: all (B, T).
    """
    check_shapes(rewards=(rewards, "BT"), last=(last, "BT"))
    deltas = td_errors(rewards, values, next_values, terminated=terminated, discount=discount)
    decays = lam * spread_discount(discount, deltas)
    carries_on = ~(terminated.bool() | last.bool())
    if mask is not None:
        check_shapes(rewards=(rewards, "BT"), mask=(mask, "BT"))
        deltas = zero_outside(deltas, mask)
        carries_on = carries_on & mask.bool()
    following = torch.zeros_like(deltas[:, 0])
    advantages = []
    for t in reversed(range(deltas.shape[1])):
        following = deltas[:, t] + zero_outside(decays[:, t] * following, carries_on[:, t])
        advantages.append(following)
    return torch.stack(advantages[::-1], dim=1)


def group_advantages(rewards: Tensor, groups: Tensor, *, scale: bool) -> Tensor:
    """How much better a completion was than the others of its prompt: no critic (Shao et al. 2024,
    arXiv:2402.03300, sec. 4.1.2).

        A_i = R_i - mean_g(R)                            g: the group of i
        A_i = (R_i - mean_g(R)) / (std_g(R) + 1e-4)      with `scale`; std unbiased, as in TRL

    `rewards` holds one total per completion, `groups` the number of its prompt, any and in any order. A NaN
    reward is unjudged: its advantage is 0 and it counts in no mean. One judged completion alone, or several
    with the same reward, teach nothing: exactly 0. Shapes: (N,), (N,) -> (N,).
    """
    check_shapes(rewards=(rewards, "N"), groups=(groups, "N"))
    judged = ~rewards.isnan()
    advantages = group_centered(rewards, groups, judged)
    return advantages / (group_std(rewards, groups, judged) + _EPSILON) if scale else advantages
