"""The estimators as their defining sums, one episode at a time, in Python floats: slow and plain."""

from __future__ import annotations

from collections.abc import Sequence


def td_errors(
    rewards: Sequence[float], values: Sequence[float], beyond: float, discount: float
) -> list[float]:
    """`values` are those of the episode's steps, `beyond` that of the state after the last one."""
    following = [*values[1:], beyond]
    return [r + discount * n - v for r, v, n in zip(rewards, values, following, strict=True)]


def gae(
    rewards: Sequence[float], values: Sequence[float], beyond: float, discount: float, lam: float
) -> list[float]:
    """A_t = sum_l (discount lam)^l delta_{t+l}, no recursion."""
    deltas = td_errors(rewards, values, beyond, discount)
    num_steps = len(deltas)
    return [
        sum((discount * lam) ** (later - t) * deltas[later] for later in range(t, num_steps))
        for t in range(num_steps)
    ]


def n_step_return(
    rewards: Sequence[float],
    values: Sequence[float],
    beyond: float,
    discount: float,
    start: int,
    num_steps: int,
) -> float:
    """`num_steps` rewards from `start`, fewer at the end, then the value of the state reached."""
    stop = min(start + num_steps, len(rewards))
    states = [*values, beyond]
    total = sum(discount ** (t - start) * rewards[t] for t in range(start, stop))
    return total + discount ** (stop - start) * states[stop]


def lambda_return(
    rewards: Sequence[float], values: Sequence[float], beyond: float, discount: float, start: int, lam: float
) -> float:
    """(1 - lam) sum_n lam^{n-1} G^(n), the rest of the weight on the longest return."""
    longest = len(rewards) - start
    returns = [n_step_return(rewards, values, beyond, discount, start, n + 1) for n in range(longest)]
    weights = [(1 - lam) * lam**n for n in range(longest - 1)] + [lam ** (longest - 1)]
    return sum(w * g for w, g in zip(weights, returns, strict=True))
