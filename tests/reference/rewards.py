"""Rewards for tests: one that any random policy can raise, one that never judges, one that fails."""

from __future__ import annotations

from typing import Any


def byte_variety(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """The share of different characters in a completion."""
    return [len(set(text)) / max(len(text), 1) for text in completions]


def small_ids(prompts: list[Any], completions: list[Any], completion_ids: Any, **columns: Any) -> list[float]:
    """The share of tokens with an id below 64, which a few steps of training raise."""
    return [sum(token < 64 for token in ids) / max(len(ids), 1) for ids in completion_ids]


def large_ids(prompts: list[Any], completions: list[Any], completion_ids: Any, **columns: Any) -> list[float]:
    """What `small_ids` leaves of 1, and so falls as that rises."""
    return [1.0 - share for share in small_ids(prompts, completions, completion_ids)]


def abstains(prompts: list[Any], completions: list[Any], **columns: Any) -> list[None]:
    """Judges nothing."""
    return [None for _ in completions]


def breaks(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Raises."""
    raise RuntimeError("out of order")


def favours_the_first(completions: list[str], **columns: Any) -> list[float | None]:
    """Breaks the protocol where no single batch shows it: the place in the batch counts."""
    return [1.0 / (1 + place) for place in range(len(completions))]


CALLS: list[int] = []


async def counted(completions: list[str], **columns: Any) -> list[float | None]:
    """Stands for a service that costs money: counts its calls."""
    CALLS.append(len(completions))
    return [0.0] * len(completions)
