"""A checker for rewards that people write: run it on two made-up rows before a training run finds out."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any


def check_reward(
    reward: Callable[..., Any], *, prompts: list[Any], completions: list[Any], **columns: Any
) -> list[float | None]:
    """Call `reward` as a trainer does and hold its answer to the protocol.

    The protocol: called with keyword arguments, it returns one finite number or None per completion. Further
    columns and helpers may be passed at any time, so the reward has to take `**columns`.

    Returns:
        The rewards, so that their values can be looked at too.

    Raises:
        ValueError: A column has the wrong length, or the answer breaks the protocol; it names the reward.
    """
    name = _name(reward)
    for column, values in {"completions": completions, **columns}.items():
        if len(values) != len(prompts):
            raise ValueError(
                f"`{column}` has {len(values)} entries for {len(prompts)} prompts; give one each."
            )
    if not _takes_any_column(reward):
        raise ValueError(f"{name} must accept `**columns`: trainers pass every column of the data and more.")
    answer = reward(prompts=prompts, completions=completions, **columns)
    if inspect.isawaitable(answer):
        answer = asyncio.run(_awaited(answer))
    if isinstance(answer, (str, dict)) or not hasattr(answer, "__len__"):
        raise ValueError(f"{name} must return a list with one number or None per completion; got {answer!r}.")
    if len(answer) != len(completions):
        raise ValueError(f"{name} returned {len(answer)} rewards for {len(completions)} completions.")
    return [_checked(value, name, row) for row, value in enumerate(answer)]


def _checked(value: Any, name: str, row: int) -> float | None:
    value = value.item() if hasattr(value, "item") else value
    if value is None:
        return None
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} returned {value!r} for row {row}; return a finite number or None.")
    return float(value)


def _name(reward: Callable[..., Any]) -> str:
    while isinstance(reward, partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)


def _takes_any_column(reward: Callable[..., Any]) -> bool:
    parameters = inspect.signature(reward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
