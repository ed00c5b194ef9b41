"""Rewards for tests: one that any random policy can raise, one that never judges, one that fails."""

from __future__ import annotations

from typing import Any


def byte_variety(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """The share of different characters in a completion."""
    return [len(set(text)) / max(len(text), 1) for text in completions]


def abstains(prompts: list[Any], completions: list[Any], **columns: Any) -> list[None]:
    """Judges nothing."""
    return [None for _ in completions]


def breaks(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    """Raises."""
    raise RuntimeError("out of order")
