"""The estimators as their defining sums, one episode at a time, in Python floats: slow and plain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from fractions import Fraction


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


def discounted_sums(rewards: Sequence[float], discount: float) -> list[float]:
    """What Monte Carlo sees: the rewards that followed each step, discounted, no critic."""
    steps = range(len(rewards))
    return [sum(discount ** (later - t) * rewards[later] for later in steps[t:]) for t in steps]


def group_advantages(rewards: Sequence[float], groups: Sequence[int], scale: bool) -> list[float]:
    """One completion at a time against those of its prompt; NaN is unjudged."""
    advantages = []
    for reward, group in zip(rewards, groups, strict=True):
        others = judged(r for r, g in zip(rewards, groups, strict=True) if g == group)
        if math.isnan(reward):
            advantages.append(0.0)
            continue
        advantage = reward - statistics.fmean(others)
        spread = statistics.stdev(others) if len(others) > 1 else 0.0
        advantages.append(advantage / (spread + 1e-4) if scale else advantage)
    return advantages


def judged(rewards: Iterable[float]) -> list[float]:
    return [reward for reward in rewards if not math.isnan(reward)]


def reward_weights(
    rewards: Sequence[float],
    groups: Sequence[int],
    weighting: str,
    baseline: str,
    tau: float,
    top_fraction: Fraction,
) -> list[float]:
    """Sample by sample; the top fraction by counting who is better, or equal and earlier."""
    advantages: dict[int, float] = {}
    for i, reward in enumerate(rewards):
        peers = {"none": [0.0], "batch": rewards}.get(
            baseline, [r for r, g in zip(rewards, groups, strict=True) if g == groups[i]]
        )
        if not math.isnan(reward):
            advantages[i] = reward - statistics.fmean(judged(peers))
    powers = {i: math.exp(advantage / tau) for i, advantage in advantages.items()}
    weights = []
    for i, reward in enumerate(rewards):
        if i not in advantages:
            weights.append(0.0)
        elif weighting == "exponential":
            weights.append(powers[i] / statistics.fmean(powers.values()))
        elif weighting == "top_fraction":
            better = [j for j, a in advantages.items() if (-a, j) < (-advantages[i], i)]
            weights.append(float(len(better) < math.ceil(top_fraction * len(advantages))))
        else:
            weights.append(reward if weighting == "reward" else advantages[i])
    return weights
