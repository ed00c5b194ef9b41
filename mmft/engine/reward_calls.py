"""What a reward is called with, what a call may take, and what kind of callable a reward is.

Shape legend: B distinct prompts, G completions of each, N = B * G samples.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import TIMEOUT_MAX
from typing import Any

from mmft.errors import ConfigError
from mmft.types import Prompt, PromptRow, RewardFunction

POLICIES = ("raise", "mask")
NONE_POLICIES = ("zero", "mask")


@dataclass(frozen=True, slots=True)
class Isolation:
    """What one call may take, and what becomes of samples it fails on."""

    time_limit: float | None = None
    """Seconds for one call on all samples of a process; None waits as long as it takes."""
    on_error: str = "raise"
    """`raise` stops the run, on all processes; `mask` leaves the samples out, counts and logs them."""
    on_none: str = "zero"
    """What a None (cannot judge) means beside other rewards: `zero` adds nothing, as in TRL's trainers;
    `mask` leaves the sample out, for a reward whose silence must not look like its worst score."""

    def __post_init__(self) -> None:
        limit = self.time_limit
        if limit is not None and not (isinstance(limit, (int, float)) and 0 < limit <= TIMEOUT_MAX):
            raise ConfigError(
                f"`time_limit` must be > 0 seconds or None; got {limit!r}. Write a plain number, such as 60 "
                "(YAML reads 1e2 as text)."
            )
        if self.on_error not in POLICIES:
            raise ConfigError(f"`on_error` must be 'raise' or 'mask'; got {self.on_error!r}.")
        if self.on_none not in NONE_POLICIES:
            raise ConfigError(f"`on_none` must be 'zero' or 'mask'; got {self.on_none!r}.")


class IsolatedReward:
    """A reward with a time limit or policies of its own; where it has none, the trainer's hold.

    Everything else (its name, optional methods) is the reward's.
    """

    def __init__(
        self,
        reward: RewardFunction,
        *,
        time_limit: float | None = None,
        on_error: str | None = None,
        on_none: str | None = None,
    ) -> None:
        self.reward = reward
        self.time_limit = time_limit
        self.on_error = on_error
        self.on_none = on_none
        self.isolation(Isolation())  # checks the values here, where they are written down

    def isolation(self, otherwise: Isolation) -> Isolation:
        """Its own settings, and `otherwise` where it has none."""
        own: dict[str, Any] = {
            "time_limit": self.time_limit,
            "on_error": self.on_error,
            "on_none": self.on_none,
        }
        return replace(otherwise, **{name: value for name, value in own.items() if value is not None})

    def __call__(self, *args: Any, **columns: Any) -> Any:
        """Calls the reward; limits and policies act where a `RewardSuite` calls it."""
        return self.reward(*args, **columns)

    def __getattr__(self, name: str) -> Any:
        if name == "reward":  # not yet set, while a copy is being made
            raise AttributeError(name)
        return getattr(self.reward, name)


@dataclass(slots=True)
class RewardLog:
    """What one reward logs during one call, through TRL's two helpers."""

    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extras.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def clear(self) -> None:
        self.extras.clear()
        self.metrics.clear()


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """The arguments of a reward call, in the order of the N samples."""

    prompts: list[Prompt]
    completions: list[Any]
    columns: dict[str, list[Any]]
    keys: list[Any]
    shared: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def arguments(self, log: RewardLog) -> dict[str, Any]:
        """Keyword arguments of a call that logs into `log`."""
        return {
            **self.columns,
            **self.shared,
            "prompts": self.prompts,
            "completions": self.completions,
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }

    def only(self, index: int) -> RewardBatch:
        """One sample as a batch of its own."""
        columns = {name: [values[index]] for name, values in self.columns.items()}
        return RewardBatch(
            [self.prompts[index]], [self.completions[index]], columns, [self.keys[index]], self.shared
        )

    def with_columns(self, **columns: list[Any]) -> RewardBatch:
        """A copy with more columns."""
        return RewardBatch(self.prompts, self.completions, self.columns | columns, self.keys, self.shared)


def reward_batch(
    rows: Sequence[PromptRow],
    completions: Sequence[Sequence[str]],
    completion_ids: Sequence[Sequence[Sequence[int]]] | None = None,
    trainer_state: Any = None,
) -> RewardBatch:
    """The rows and their completions side by side; completions take the form of their prompt."""
    repeated = [row for row, texts in zip(rows, completions, strict=True) for _ in texts]
    texts = [text for group in completions for text in group]
    names = {name: None for row in rows for name in row.columns}  # a dict keeps the order of the data
    columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in repeated] for name in names}
    columns["images"] = [row.images for row in repeated]
    if all(len(row.images) == 1 for row in rows):
        columns["image"] = [row.images[0] for row in repeated]
    if completion_ids is not None:
        columns["completion_ids"] = [list(ids) for group in completion_ids for ids in group]
    return RewardBatch(
        prompts=[row.prompt for row in repeated],
        completions=[_completion(row, text) for row, text in zip(repeated, texts, strict=True)],
        columns=columns,
        keys=[row.key for row in repeated],
        shared={"trainer_state": trainer_state},
    )


def _completion(row: PromptRow, text: str) -> Any:
    return text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]


def is_async(reward: Callable[..., Any]) -> bool:
    """Whether calling `reward`, be it a function, a `functools.partial` or an object, gives a coroutine."""
    function = _unwrapped(reward)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def is_two_phase(reward: RewardFunction) -> bool:
    """Whether the reward gathers evidence alone and settles it with the other processes."""
    return hasattr(reward, "evidence") and hasattr(reward, "settle")


def is_dense(reward: RewardFunction) -> bool:
    """Whether the reward gives a number for every token."""
    return hasattr(reward, "token_rewards")


def reward_names(rewards: Sequence[RewardFunction]) -> tuple[str, ...]:
    """`__name__` or class name of each reward; the second of a name becomes `name_2`."""
    names: list[str] = []
    for reward in rewards:
        function = _unwrapped(reward)
        base = str(getattr(function, "__name__", type(function).__name__)).strip("<>")
        candidates = (base if number == 1 else f"{base}_{number}" for number in range(1, len(rewards) + 1))
        names.append(next(name for name in candidates if name not in names))
    return tuple(names)


def _unwrapped(reward: Any) -> Any:
    # A partial that carries a name of its own (mmft.resolve gives it one) keeps it.
    if isinstance(reward, IsolatedReward):
        return _unwrapped(reward.reward)
    while isinstance(reward, functools.partial) and not hasattr(reward, "__name__"):
        reward = reward.func
    return reward


def no_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
    """Judges nothing: in the place of rewards where none are needed."""
    return [None] * len(completions)
