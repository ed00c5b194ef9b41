"""The losses token by token, in Python floats: slow and plain."""

from __future__ import annotations

import math
from collections.abc import Iterable


def clipped_policy_loss(
    tokens: Iterable[tuple[float, float, float]], *, clip: float, num_tokens: float
) -> float:
    """Over (logp, old_logp, advantage) of the valid tokens, by cases instead of min and clamp."""
    total = 0.0
    for logp, old_logp, advantage in tokens:
        ratio = math.exp(logp - old_logp)
        if advantage >= 0 and ratio > 1 + clip:
            ratio = 1 + clip
        if advantage < 0 and ratio < 1 - clip:
            ratio = 1 - clip
        total += ratio * advantage
    return -total / num_tokens


def clipped_value_loss(
    tokens: Iterable[tuple[float, float, float]], *, clip: float, num_tokens: float
) -> float:
    """Over (value, old_value, return) of the valid tokens."""
    total = 0.0
    for value, old_value, target in tokens:
        change = max(-clip, min(clip, value - old_value))
        total += max(abs(value - target), abs(old_value + change - target)) ** 2
    return 0.5 * total / num_tokens


def policy_gradient_loss(tokens: Iterable[tuple[float, float]], *, num_tokens: float) -> float:
    """Over (logp, advantage) of the valid tokens."""
    return -sum(logp * advantage for logp, advantage in tokens) / num_tokens


def reward_weighted_loss(samples: Iterable[tuple[float, list[float]]], *, num_tokens: float) -> float:
    """Over (weight, log-probs of the valid tokens) of the samples: each sequence's likelihood, weighted."""
    return -sum(weight * sum(logps) for weight, logps in samples) / num_tokens


def td_loss(tokens: Iterable[tuple[float, float]], *, num_tokens: float) -> float:
    """Over (value, target) of the valid tokens."""
    return sum((target - value) ** 2 for value, target in tokens) / num_tokens


def adapted_kl_coef(kl_coef: float, kl: float, target: float, horizon: float, num_samples: int) -> float:
    """By cases instead of a clip, and sample by sample instead of all at once."""
    error = kl / target - 1
    if error > 0.2:
        error = 0.2
    elif error < -0.2:
        error = -0.2
    step = 0.0
    for _ in range(num_samples):
        step += error / horizon
    return kl_coef + kl_coef * step
