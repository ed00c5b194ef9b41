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
