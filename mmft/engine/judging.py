"""Rewards as the engine sees them: user code, called in TRL's protocol, timed, and held to account by name.

Normalising rewards is the estimators' work; how one call is kept apart from the run is `engine.isolation`'s.
Shape legend: B distinct prompts, G completions of each, N = B * G samples, K rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from threading import Thread
from typing import Any, cast

import torch
from torch import Tensor

from mmft.engine.isolation import (
    Answer,
    Asking,
    Question,
    check_numbers,
    check_token_numbers,
    failed_answer,
)
from mmft.engine.reward_calls import (
    IsolatedReward,
    Isolation,
    RewardBatch,
    RewardLog,
    is_async,
    is_dense,
    is_two_phase,
    reward_batch,
    reward_names,
)
from mmft.errors import ConfigError, RewardError
from mmft.types import PromptRow, RewardFunction

Gather = Callable[[Any], list[Any]]
"""An object of this process to the objects of all processes, in order; collective."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the rewards said about N samples, samples of one prompt side by side."""

    names: tuple[str, ...]
    """Names of the K rewards."""
    rewards: Tensor
    """(N, K) float32; NaN where a reward said None. Of a dense reward: the sum over the tokens."""
    total: Tensor
    """(N,) float32: the weighted sum over the rewards that judged; NaN where the sample is not valid."""
    valid: Tensor
    """(N,) bool: a reward of non-zero weight judged the sample, and none of them failed on it. The others
    leave the statistics."""
    token_rewards: list[list[float]] | None
    """Per sample the weighted sum of the dense rewards at each token; None without dense rewards."""
    failed: Tensor
    """(N, K) bool: the samples each reward failed on, by error or time limit, under the policy `mask`."""
    components: dict[str, list[float]]
    """Its N values per reward, and N per part it logged (`log_extra`) as "reward/part"; NaN for None."""
    metrics: dict[str, float]
    """Scalars that rewards logged (`log_metric`), averaged; those that repeat a component are left out."""
    extras: dict[str, list[Any]]
    """What rewards logged per sample that is no number, as "reward/column"."""
    seconds: dict[str, float]
    """Wall time per reward."""

    @property
    def masked(self) -> dict[str, int]:
        """Number of failed samples per reward, where there are any."""
        counts = zip(self.names, self.failed.sum(dim=0).tolist(), strict=True)
        return {name: number for name, number in counts if number}


class RewardSuite:
    """A weighted list of rewards.

        total = sum_k w_k R_k over the rewards that judged the sample

    A None thus counts as 0 beside other rewards, as in TRL's trainers, unless the reward's `on_none` is
    `mask`. A sample that no reward judged, that such a reward did not judge, or that a reward failed on under
    `on_error: mask`, has no total: it leaves the statistics and gets advantage 0. A reward of weight 0 is
    logged only; it can neither make a sample valid nor take it out.

    Dense rewards (`token_rewards`) are paid token by token and are no part of the total.

    Attributes:
        gather: exchanges objects between processes, so that all of them stop where one reward fails, and
            rewards with statistics see every sample. Alone by default.
        left_behind: calls that outlived their limit, by `id` of the reward. Suites that hold the same rewards
            share it: a call that one of them left behind must not be overtaken by the other.
    """

    def __init__(
        self,
        reward_funcs: Sequence[RewardFunction] | RewardFunction,
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        isolation: Isolation = Isolation(),  # noqa: B008 - it is frozen
    ) -> None:
        """Check the list.

        Args:
            reward_funcs: One reward or several; `async` ones run at the same time.
            weights: One number per reward; default 1.
            names: One name per reward; default its `__name__` or class name, made unique.
            isolation: Time limit and error policy, where a reward is no `IsolatedReward` with its own.
        """
        listed = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        if not listed:
            raise ConfigError("`reward_funcs` is empty. Give at least one reward.")
        for reward in listed:
            if not callable(reward):
                raise ConfigError(
                    f"`reward_funcs` holds {reward!r}, which is not callable. Resolve names with "
                    "`mmft.resolve.resolve_rewards`."
                )
        self.isolations = [
            r.isolation(isolation) if isinstance(r, IsolatedReward) else isolation for r in listed
        ]
        self.reward_funcs = [r.reward if isinstance(r, IsolatedReward) else r for r in listed]
        self.weights = _checked_weights(weights, len(listed))
        self.names = reward_names(listed) if names is None else tuple(names)
        if len(set(self.names)) != len(listed):
            raise ConfigError(f"`names` must be {len(listed)} different names; got {list(self.names)}.")
        self.gather: Gather = lambda obj: [obj]
        self.left_behind: dict[int, Thread] = {}

    @property
    def is_dense(self) -> bool:
        """Whether any reward pays for single tokens."""
        return any(map(is_dense, self.reward_funcs))

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        """Hands the columns of the training rows to rewards that learn something from them beforehand."""
        for reward in self.reward_funcs:
            if hasattr(reward, "prepare"):
                reward.prepare(column)

    def state_dict(self) -> dict[str, Any]:
        """What rewards have gathered so far, by name; only of those that keep a state."""
        named = zip(self.names, self.reward_funcs, strict=True)
        return {name: reward.state_dict() for name, reward in named if hasattr(reward, "state_dict")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Gives every reward its state back; names without one are left as they are."""
        for name, reward in zip(self.names, self.reward_funcs, strict=True):
            if name in state and hasattr(reward, "load_state_dict"):
                reward.load_state_dict(state[name])

    def score(
        self,
        rows: Sequence[PromptRow],
        completions: Sequence[Sequence[str]],
        completion_ids: Sequence[Sequence[Sequence[int]]] | None = None,
        trainer_state: Any = None,
        *,
        prefixes: Sequence[Sequence[str]] | None = None,
        discount: float = 1.0,
        training: bool = True,
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
            prefixes: Per sample the texts of its first 0, 1, ... tokens; without them dense rewards are
                called like others.
            discount: Of the per-token returns; for dense rewards.
            training: False for held-out samples, which must not move any reward's statistics.

        Raises:
            RewardError: A reward raised, took too long, or returned the wrong count or something that is no
                finite number, here or on another process, and its policy is `raise`.
        """
        batch = reward_batch(rows, completions, completion_ids, trainer_state)
        if prefixes is not None:
            batch = batch.with_columns(prefixes=list(prefixes))
        questions = [self._question(k, prefixes is not None, discount) for k in range(len(self.names))]
        answers = self._ask(questions, batch)
        self._stop_together(answers)
        if any(map(is_two_phase, self.reward_funcs)):
            answers = [self._settled(k, answer, batch, training) for k, answer in enumerate(answers)]
            self._stop_together(answers)
        return self._judgement(answers, batch, dense=prefixes is not None)

    def _question(self, k: int, with_prefixes: bool, discount: float) -> Question:
        name, reward, isolation = self.names[k], self.reward_funcs[k], self.isolations[k]
        kind: Any = reward
        if is_two_phase(reward):
            return Question(
                name, kind.evidence, lambda name, returned, batch: returned, isolation,
                asynchronous=is_async(kind.evidence), divisible=False,
            )  # fmt: skip
        if is_dense(reward) and with_prefixes:

            def token_rewards(**arguments: Any) -> Any:
                return kind.token_rewards(**arguments, discount=discount)

            return Question(name, token_rewards, check_token_numbers, isolation, nothing=None)
        asynchronous = is_async(reward)
        return Question(
            name, reward, check_numbers, isolation, asynchronous=asynchronous, divisible=not asynchronous
        )

    def _ask(self, questions: list[Question], batch: RewardBatch) -> list[Answer]:
        # Network calls start first, and the synchronous rewards work while they wait.
        order = sorted(range(len(questions)), key=lambda k: not questions[k].asynchronous)
        under_way = {k: self._asking(k, questions[k], batch) for k in order if questions[k].asynchronous}
        answers: dict[int, Answer] = {}
        for k in reversed(order):
            asking = under_way.get(k) or self._asking(k, questions[k], batch)
            answers[k] = asking.answer()
            if asking.thread is not None and asking.thread.is_alive():
                self.left_behind[id(self.reward_funcs[k])] = asking.thread
        return [answers[k] for k in range(len(questions))]

    def _asking(self, k: int, question: Question, batch: RewardBatch) -> Asking:
        return Asking(question, batch, self.left_behind.pop(id(self.reward_funcs[k]), None))

    def _stop_together(self, answers: list[Answer]) -> None:
        """Raises on every process if a reward failed on one: the others would wait for it forever."""
        failure = next((answer.failure for answer in answers if answer.failure is not None), None)
        told = self.gather(None if failure is None else str(failure))
        if failure is not None:
            raise failure
        for process, message in enumerate(told):
            if message is not None:
                raise RewardError(f"on process {process}: {message}")

    def _judgement(self, answers: list[Answer], batch: RewardBatch, *, dense: bool) -> Judgement:
        weights, count = torch.tensor(self.weights), len(batch)
        numbers = [self._numbers(k, answers[k], count, dense) for k in range(len(answers))]
        rewards = torch.tensor(numbers, dtype=torch.float32).T.reshape(count, len(numbers))
        pays_tokens = torch.tensor([is_dense(reward) for reward in self.reward_funcs])
        judged, counts = ~rewards.isnan(), weights != 0
        # Dense rewards shape the way to a score; alone they are the score.
        scoring = counts & ~pays_tokens if (counts & ~pays_tokens).any() else counts
        failed = torch.tensor([answer.masked for answer in answers]).T.reshape(count, len(numbers))
        # Silence that must not pass for a score of 0 takes a sample out as a failure does, but is none.
        silent = ~judged & torch.tensor([each.on_none == "mask" for each in self.isolations])
        valid = (judged & scoring).any(dim=1) & ~((failed | silent) & counts).any(dim=1)
        total = torch.where(judged & ~pays_tokens, rewards * weights, 0.0).sum(dim=1)
        components, extras, metrics = self._logged(answers, numbers)
        return Judgement(
            names=self.names,
            rewards=rewards,
            total=torch.where(valid, total, torch.nan),
            valid=valid,
            token_rewards=self._token_rewards(answers, batch) if dense and self.is_dense else None,
            failed=failed,
            components=components,
            metrics=metrics,
            extras=extras,
            seconds={name: answer.seconds for name, answer in zip(self.names, answers, strict=True)},
        )

    def _numbers(self, k: int, answer: Answer, count: int, dense: bool) -> list[float]:
        """One number per sample from whatever kind of answer this is."""
        if dense and is_dense(self.reward_funcs[k]):
            return [math.nan if each is None else math.fsum(each) for each in answer.values]
        values: list[float] = answer.values if answer.values is not None else [math.nan] * count
        return values

    def _settled(self, k: int, answer: Answer, batch: RewardBatch, training: bool) -> Answer:
        """The second phase: what each process found becomes numbers that depend on all of them.

        A process without evidence, or whose `settle` fails, still takes part: the others wait for it."""
        name, reward = self.names[k], cast(Any, self.reward_funcs[k])
        if not is_two_phase(reward):
            return answer
        if answer.values is None:
            self.gather(None)  # masked here
            return answer
        is_awaited = True

        def gather(found: Any) -> list[Any]:
            nonlocal is_awaited
            is_awaited = False
            return [each for each in self.gather(found) if each is not None]

        try:
            settled = reward.settle(answer.values, gather=gather, training=training)
            return replace(answer, values=check_numbers(name, settled, batch))
        except Exception as error:
            if is_awaited:
                self.gather(None)
            return failed_answer(name, error, batch, self.isolations[k], answer)

    def _token_rewards(self, answers: list[Answer], batch: RewardBatch) -> list[list[float]]:
        sums = [[0.0] * len(ids) for ids in batch.columns["completion_ids"]]
        for reward, weight, answer in zip(self.reward_funcs, self.weights, answers, strict=True):
            for total, numbers in zip(sums, answer.values if is_dense(reward) else (), strict=False):
                for place, number in enumerate(numbers or ()):
                    total[place] += weight * number
        return sums

    def _logged(
        self, answers: list[Answer], numbers: list[list[float]]
    ) -> tuple[dict[str, list[float]], dict[str, list[Any]], dict[str, float]]:
        components: dict[str, list[float]] = {}
        extras: dict[str, list[Any]] = {}
        metrics: dict[str, list[float]] = {}
        for name, answer, own in zip(self.names, answers, numbers, strict=True):
            components[name] = own
            log: RewardLog = answer.log
            for column, values in log.extras.items():
                if len(values) == len(own) and all(map(_is_number_or_none, values)):
                    components[f"{name}/{column}"] = [math.nan if v is None else float(v) for v in values]
                else:
                    extras[f"{name}/{column}"] = values
            for metric, values in log.metrics.items():
                metrics.setdefault(metric, []).extend(values)
        means = {key: sum(values) / len(values) for key, values in metrics.items() if key not in components}
        return components, extras, means


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    weights = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(weights) != count:
        raise ConfigError(f"`reward_weights` has {len(weights)} numbers for {count} rewards. Give one each.")
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise ConfigError(f"`reward_weights` must be finite and not all 0; got {weights}.")
    return weights


def _is_number_or_none(value: Any) -> bool:
    return value is None or isinstance(value, Real)
