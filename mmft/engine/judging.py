"""Rewards as the engine sees them: user code, called in TRL's protocol, timed, and held to account by name.

A reward that raises or breaks the protocol stops the run. Normalising rewards is the estimators' work.
Shape legend: B distinct prompts, G completions of each, N = B * G samples, K rewards.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import reprlib
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from mmft.errors import ConfigError, RewardError
from mmft.types import Prompt, PromptRow, RewardFunction

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rewards said about N samples, samples of one prompt side by side."""

    names: tuple[str, ...]
    """Names of the K rewards."""
    rewards: Tensor
    """(N, K) float32; NaN where a reward said None."""
    total: Tensor
    """(N,) float32: the weighted sum over the rewards that judged; NaN where the sample is not valid."""
    valid: Tensor
    """(N,) bool: a reward of non-zero weight judged the sample. The others leave the statistics."""
    components: dict[str, list[float]]
    """Its N values per reward, and N per part it logged (`log_extra`) as "reward/part"; NaN for None."""
    metrics: dict[str, float]
    """Scalars that rewards logged (`log_metric`), averaged; those that repeat a component are left out."""
    extras: dict[str, list[Any]]
    """What rewards logged per sample that is no number, as "reward/column"."""
    seconds: dict[str, float]
    """Wall time per reward."""


@dataclass(frozen=True, slots=True)
class _Samples:
    """The arguments of a reward call, in the order of the N samples."""

    prompts: list[Prompt]
    completions: list[Any]
    columns: dict[str, list[Any]]
    keys: list[Any]
    shared: dict[str, Any] = field(default_factory=dict)

    def arguments(self, log: _Log) -> dict[str, Any]:
        return {
            **self.columns,
            **self.shared,
            "prompts": self.prompts,
            "completions": self.completions,
            "log_extra": log.log_extra,
            "log_metric": log.log_metric,
        }

    def only(self, index: int) -> _Samples:
        columns = {name: [values[index]] for name, values in self.columns.items()}
        return _Samples(
            [self.prompts[index]], [self.completions[index]], columns, [self.keys[index]], self.shared
        )


@dataclass(slots=True)
class _Log:
    """What one reward logs during one call, through TRL's two helpers."""

    extras: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extras.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))


@dataclass(frozen=True, slots=True)
class _Answer:
    values: list[float]
    log: _Log
    seconds: float


class RewardSuite:
    """A weighted list of rewards.

        total = sum_k w_k R_k over the rewards that judged the sample

    A None thus counts as 0 beside other rewards, as in TRL's trainers. A sample that no reward judged has no
    total: it leaves the statistics and gets advantage 0. A reward of weight 0 is logged only; it cannot make
    a sample valid.
    """

    def __init__(
        self,
        reward_funcs: Sequence[RewardFunction] | RewardFunction,
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        """Check the list.

        Args:
            reward_funcs: One reward or several; `async` ones run at the same time.
            weights: One number per reward; default 1.
            names: One name per reward; default its `__name__` or class name, made unique.
        """
        self.reward_funcs = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        if not self.reward_funcs:
            raise ConfigError("`reward_funcs` is empty. Give at least one reward.")
        for reward in self.reward_funcs:
            if not callable(reward):
                raise ConfigError(
                    f"`reward_funcs` holds {reward!r}, which is not callable. Resolve names with "
                    "`mmft.resolve.resolve_rewards`."
                )
        self.weights = _checked_weights(weights, len(self.reward_funcs))
        self.names = reward_names(self.reward_funcs) if names is None else tuple(names)
        if len(set(self.names)) != len(self.reward_funcs):
            raise ConfigError(
                f"`names` must be {len(self.reward_funcs)} different names; got {list(self.names)}."
            )

    def score(
        self,
        rows: Sequence[PromptRow],
        completions: Sequence[Sequence[str]],
        completion_ids: Sequence[Sequence[Sequence[int]]] | None = None,
        trainer_state: Any = None,
    ) -> Judgement:
        """Judge every completion of every row.

        Rewards are called once with all N samples: `prompts` as the user wrote them, `completions` as strings
        or, for a prompt in message form, as `[{"role": "assistant", "content": text}]`, every column of the
        rows, `images` (and `image`, where every row has exactly one), `completion_ids`, `trainer_state`,
        `log_extra`, `log_metric`.

        Args:
            rows: B distinct prompts.
            completions: For each row the texts of its completions.
            completion_ids: Their token ids, in the same nesting.
            trainer_state: Handed on to rewards that change during training.

        Raises:
            RewardError: A reward raised, or returned the wrong count or something that is no finite number.
        """
        samples = _flatten(rows, completions, completion_ids, trainer_state)
        answers = self._answers(samples)
        rewards = torch.tensor([answer.values for answer in answers], dtype=torch.float32).T.contiguous()
        weights = torch.tensor(self.weights)
        judged = ~rewards.isnan()
        valid = (judged & (weights != 0)).any(dim=1)
        total = torch.where(judged, rewards * weights, 0.0).sum(dim=1)
        components, extras, metrics = self._logged(answers)
        return Judgement(
            names=self.names,
            rewards=rewards,
            total=torch.where(valid, total, torch.nan),
            valid=valid,
            components=components,
            metrics=metrics,
            extras=extras,
            seconds={name: answer.seconds for name, answer in zip(self.names, answers, strict=True)},
        )

    def _answers(self, samples: _Samples) -> list[_Answer]:
        named = list(zip(self.names, self.reward_funcs, strict=True))
        waiting = {name: _ask_async(name, reward, samples) for name, reward in named if is_async(reward)}
        if not waiting:
            return [_ask(name, reward, samples) for name, reward in named]
        # Network calls start first, and the synchronous rewards work while they wait.
        with ThreadPoolExecutor(max_workers=1) as pool:
            gathered = pool.submit(asyncio.run, _gather(waiting))
            answers = {name: _ask(name, reward, samples) for name, reward in named if name not in waiting}
            answers |= gathered.result()
        return [answers[name] for name in self.names]

    def _logged(
        self, answers: list[_Answer]
    ) -> tuple[dict[str, list[float]], dict[str, list[Any]], dict[str, float]]:
        components: dict[str, list[float]] = {}
        extras: dict[str, list[Any]] = {}
        metrics: dict[str, list[float]] = {}
        for name, answer in zip(self.names, answers, strict=True):
            components[name] = answer.values
            for column, values in answer.log.extras.items():
                if len(values) == len(answer.values) and all(map(_is_number_or_none, values)):
                    components[f"{name}/{column}"] = [math.nan if v is None else float(v) for v in values]
                else:
                    extras[f"{name}/{column}"] = values
            for metric, values in answer.log.metrics.items():
                metrics.setdefault(metric, []).extend(values)
        means = {key: sum(values) / len(values) for key, values in metrics.items() if key not in components}
        return components, extras, means


def is_async(reward: RewardFunction) -> bool:
    """Whether calling `reward`, be it a function, a `functools.partial` or an object, gives a coroutine."""
    function = _unwrapped(reward)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


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
    while isinstance(reward, functools.partial) and not hasattr(reward, "__name__"):
        reward = reward.func
    return reward


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise ConfigError(f"`reward_weights` has {len(weights)} numbers for {count} rewards. Give one each.")
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise ConfigError(f"`reward_weights` must be finite and not all 0; got {weights}.")
    return weights


def _flatten(
    rows: Sequence[PromptRow],
    completions: Sequence[Sequence[str]],
    completion_ids: Sequence[Sequence[Sequence[int]]] | None,
    trainer_state: Any,
) -> _Samples:
    repeated = [row for row, texts in zip(rows, completions, strict=True) for _ in texts]
    texts = [text for group in completions for text in group]
    names = {name: None for row in rows for name in row.columns}  # a dict keeps the order of the data
    columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in repeated] for name in names}
    columns["images"] = [row.images for row in repeated]
    if all(len(row.images) == 1 for row in rows):
        columns["image"] = [row.images[0] for row in repeated]
    if completion_ids is not None:
        columns["completion_ids"] = [list(ids) for group in completion_ids for ids in group]
    return _Samples(
        prompts=[row.prompt for row in repeated],
        completions=[_completion(row, text) for row, text in zip(repeated, texts, strict=True)],
        columns=columns,
        keys=[row.key for row in repeated],
        shared={"trainer_state": trainer_state},
    )


def _completion(row: PromptRow, text: str) -> Any:
    return text if isinstance(row.prompt, str) else [{"role": "assistant", "content": text}]


def _ask(name: str, reward: RewardFunction, samples: _Samples) -> _Answer:
    log, start = _Log(), time.perf_counter()
    try:
        returned: Any = reward(**samples.arguments(log))
    except Exception as error:
        raise _blame(name, samples, error, lambda sample: reward(**sample.arguments(_Log()))) from error
    seconds = time.perf_counter() - start
    return _Answer(_checked(name, returned, samples), log, seconds)


async def _ask_async(name: str, reward: Callable[..., Any], samples: _Samples) -> _Answer:
    log, start = _Log(), time.perf_counter()
    try:
        returned = await reward(**samples.arguments(log))
    except Exception as error:
        # Not called again row by row: an asynchronous reward is most often a paid or slow service.
        raise _blame(name, samples, error, None) from error
    seconds = time.perf_counter() - start
    return _Answer(_checked(name, returned, samples), log, seconds)


async def _gather(waiting: dict[str, Coroutine[Any, Any, _Answer]]) -> dict[str, _Answer]:
    return dict(zip(waiting, await asyncio.gather(*waiting.values()), strict=True))


def _blame(
    name: str, samples: _Samples, error: Exception, call: Callable[[_Samples], Any] | None
) -> RewardError:
    """Name the row a reward stumbled over, found by calling the reward on one sample at a time."""
    for index in range(len(samples.keys) if call is not None else 0):
        try:
            call(samples.only(index))  # type: ignore[misc]
        except Exception as alone:
            where = f"row {samples.keys[index]}, completion {reprlib.repr(samples.completions[index])}"
            return RewardError(f"reward {name!r} failed on {where}: {type(alone).__name__}: {alone}")
    rows = ", ".join(str(key) for key in dict.fromkeys(samples.keys))
    return RewardError(
        f"reward {name!r} failed on a batch of {len(samples.keys)} completions (rows {rows}): "
        f"{type(error).__name__}: {error}"
    )


def _checked(name: str, returned: Any, samples: _Samples) -> list[float]:
    if isinstance(returned, (str, bytes, dict)) or not hasattr(returned, "__len__") or _is_scalar(returned):
        raise RewardError(
            f"reward {name!r} returned {reprlib.repr(returned)}; return a list with one number or None per "
            f"completion, here {len(samples.keys)}."
        )
    if len(returned) != len(samples.keys):
        raise RewardError(
            f"reward {name!r} returned {len(returned)} rewards for {len(samples.keys)} completions (rows "
            f"{samples.keys[0]} to {samples.keys[-1]}). Return one number or None per completion."
        )
    return [_number(name, value, samples, index) for index, value in enumerate(returned)]


def _number(name: str, value: Any, samples: _Samples, index: int) -> float:
    value = value.item() if hasattr(value, "item") and _is_scalar(value) else value
    if value is None:
        return math.nan
    if not isinstance(value, Real) or not abs(float(value)) <= _LARGEST:
        raise RewardError(
            f"reward {name!r} returned {reprlib.repr(value)} for row {samples.keys[index]}, completion "
            f"{reprlib.repr(samples.completions[index])}. Return a finite number, or None for cannot judge."
        )
    return float(value)


def _is_scalar(value: Any) -> bool:
    return getattr(value, "ndim", None) == 0


def _is_number_or_none(value: Any) -> bool:
    return value is None or isinstance(value, Real)
