"""One call of one reward, kept apart from the run: time limit, error policy, and errors that name the row.

Python cannot stop a thread. A call that outlives its limit is left behind, and the reward's next call first
waits for it, within its own limit, so that no reward ever runs twice at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import reprlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from numbers import Real
from threading import Thread
from typing import Any

import torch

from mmft.engine.reward_calls import Isolation, RewardBatch, RewardLog
from mmft.errors import RewardError

logger = logging.getLogger(__name__)

GRACE = 1.0
"""Seconds an asynchronous reward gets to close its connections after its limit."""
_ERRORS = (Exception, asyncio.CancelledError)
"""What a reward may fail with; a cancellation of its own making is no `Exception`."""
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Question:
    """How to ask one reward."""

    name: str
    call: Callable[..., Any]
    """Takes the batch's keyword arguments."""
    check: Callable[[str, Any, RewardBatch], Any]
    """(name, what was returned, batch) -> one value per sample, or whatever the caller wants; may raise."""
    isolation: Isolation
    asynchronous: bool = False
    divisible: bool = True
    """Whether a failed batch may be asked again sample by sample, which finds the row to blame or to mask."""
    nothing: Any = math.nan
    """The value of a masked sample."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question."""

    values: Any
    """What `check` returned; None where a whole indivisible batch is masked or the question failed."""
    log: RewardLog
    seconds: float
    masked: list[bool]
    """Per sample, whether the error policy took it out."""
    failure: RewardError | None = None
    """Why the run must stop."""


class _OutOfTime(Exception):
    """An asynchronous reward was cancelled at its limit; never leaves this module."""


@dataclass(slots=True)
class _Progress:
    """What a call has found out so far; read from outside when its time is over."""

    log: RewardLog = field(default_factory=RewardLog)
    values: list[Any] | None = None
    masked: list[bool] | None = None
    reason: str = ""
    is_over: bool = False
    """Nobody waits any more."""


class Asking:
    """A call under way: those with a time limit and asynchronous ones run in a thread from the start.

    `earlier` is the thread of the reward's last call, if that was left behind.
    """

    def __init__(self, question: Question, batch: RewardBatch, earlier: Thread | None = None) -> None:
        self.question, self.batch = question, batch
        self.thread: Thread | None = None
        self._earlier = earlier
        self._progress = _Progress()
        self._future: Future[Any] = Future()
        self._start = time.perf_counter()
        self._ended = self._start
        if question.isolation.time_limit is not None or question.asynchronous:
            self._start_thread()

    def _start_thread(self) -> None:
        context, grad = contextvars.copy_context(), torch.is_grad_enabled()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def work() -> None:
            # Grad mode and the current GPU belong to a thread; the reward must find the caller's.
            if device is not None:
                torch.cuda.set_device(device)
            try:
                with torch.set_grad_enabled(grad):
                    self._future.set_result(context.run(self._ask))
            except BaseException as error:
                self._future.set_exception(error)

        # A daemon, so that a reward that never returns cannot keep the program from ending.
        self.thread = Thread(target=work, name=f"reward {self.question.name}", daemon=True)
        if self._earlier is not None:
            self._earlier.join(self.question.isolation.time_limit)
            if self._earlier.is_alive():
                self.thread = self._earlier
                return
        self.thread.start()

    def answer(self) -> Answer:
        """Waits for the call, within its limit."""
        try:
            values = self._ask() if self.thread is None else self._future.result(self._seconds_left())
            self._ended = self._ended if self.thread is not None else time.perf_counter()
        except RewardError as failure:
            return self._stopped(failure)
        except (TimeoutError, _OutOfTime):  # of the wait for the thread; a reward's own is dealt with there
            return self._out_of_time()
        masked = self._progress.masked or [False] * len(self.batch)
        return Answer(values, self._progress.log, self._ended - self._start, masked)

    def _seconds_left(self) -> float | None:
        limit = self.question.isolation.time_limit
        if limit is None:
            return None
        grace = GRACE if self.question.asynchronous else 0.0
        return max(self._start + limit + grace - time.perf_counter(), 0.0)

    def _ask(self) -> Any:
        """The values; a failure as RewardError, unless the policy masks it."""
        question, batch = self.question, self.batch
        try:
            returned = self._call(batch, self._progress.log)
            return question.check(question.name, returned, batch)
        except _OutOfTime:
            raise
        except _ERRORS as error:
            if question.isolation.on_error == "raise":
                raise self._blame(error) from error
            self._progress.reason = _told(error)
            return self._one_by_one() if question.divisible else self._none_at_all()
        finally:
            self._ended = time.perf_counter()

    def _call(self, batch: RewardBatch, log: RewardLog) -> Any:
        returned = self.question.call(**batch.arguments(log))
        if not self.question.asynchronous:
            return returned
        return asyncio.run(_awaited(returned, self.question.isolation.time_limit))

    def _one_by_one(self) -> list[Any]:
        """Asks sample by sample; what fails alone is masked. Kept step by step, for time may run out."""
        progress, question = self._progress, self.question
        progress.log.clear()
        values = progress.values = [question.nothing] * len(self.batch)
        masked = progress.masked = [True] * len(self.batch)
        for index in range(len(self.batch)):
            if progress.is_over:
                return values
            one = self.batch.only(index)
            try:
                (values[index],) = question.check(question.name, self._call(one, progress.log), one)
                masked[index] = False
            except _ERRORS as error:
                progress.reason = f"{_where(self.batch, index)}: {_told(error)}"
        self._warn(masked)
        if any(masked):
            progress.log.clear()  # its columns would no longer have a value per sample
        return values

    def _none_at_all(self) -> None:
        self._progress.masked = [True] * len(self.batch)
        self._warn(self._progress.masked)

    def _out_of_time(self) -> Answer:
        isolation, batch, progress = self.question.isolation, self.batch, self._progress
        progress.is_over = True
        told = f"took longer than its `time_limit` of {isolation.time_limit:g} s"
        if isolation.on_error == "raise":
            rows = ", ".join(str(key) for key in dict.fromkeys(batch.keys))
            return self._stopped(
                RewardError(
                    f"reward {self.question.name!r} {told} for {len(batch)} completions (rows {rows}). Raise "
                    "the limit, or set `on_error: mask` to leave such samples out."
                )
            )
        progress.reason = f"{progress.reason}; {told}" if progress.reason else told
        # Copies: the thread that was left behind may still write.
        values = list(progress.values) if progress.values is not None else None
        masked = list(progress.masked or [True] * len(batch))
        if values is None and self.question.divisible:
            values = [self.question.nothing] * len(batch)
        self._warn(masked)
        return Answer(values, RewardLog(), float(isolation.time_limit or 0.0), masked)

    def _stopped(self, failure: RewardError) -> Answer:
        seconds = time.perf_counter() - self._start
        return Answer(None, RewardLog(), seconds, [False] * len(self.batch), failure)

    def _warn(self, masked: list[bool]) -> None:
        _warn(self.question.name, self.batch, masked, self._progress.reason)

    def _blame(self, error: BaseException) -> RewardError:
        """Names the row a reward stumbled over, found by asking about one sample at a time."""
        question, batch = self.question, self.batch
        if isinstance(error, RewardError):  # the check of its answer has named the row
            return error
        # Asynchronous rewards are not asked again: they are most often a paid or slow service.
        for index in range(len(batch) if question.divisible and not question.asynchronous else 0):
            try:
                self._call(batch.only(index), RewardLog())
            except _ERRORS as alone:
                where = _where(batch, index)
                return RewardError(f"reward {question.name!r} failed on {where}: {_told(alone)}")
        rows = ", ".join(str(key) for key in dict.fromkeys(batch.keys))
        return RewardError(
            f"reward {question.name!r} failed on a batch of {len(batch)} completions (rows {rows}): "
            f"{_told(error)}"
        )


async def _awaited(awaitable: Any, limit: float | None) -> Any:
    try:
        async with asyncio.timeout(limit) as guard:
            return await awaitable
    except TimeoutError:
        if guard.expired():
            raise _OutOfTime from None
        raise


def failed_answer(
    name: str, error: Exception, batch: RewardBatch, isolation: Isolation, answer: Answer
) -> Answer:
    """What becomes of an answer that failed as a whole after it was given, by the error policy."""
    if isolation.on_error == "raise":
        rows = ", ".join(str(key) for key in dict.fromkeys(batch.keys))
        told = f"reward {name!r} failed on rows {rows}: {_told(error)}"
        failure = error if isinstance(error, RewardError) else RewardError(told)
        return replace(answer, values=None, failure=failure)
    masked = [True] * len(batch)
    _warn(name, batch, masked, _told(error))
    return replace(answer, values=None, log=RewardLog(), masked=masked)


def _warn(name: str, batch: RewardBatch, masked: list[bool], reason: str) -> None:
    first = [str(key) for key, is_masked in zip(batch.keys, masked, strict=True) if is_masked]
    if first:
        rows = ", ".join(list(dict.fromkeys(first))[:5])
        logger.warning(
            "reward %r: %d of %d samples are masked (rows %s): %s. They have no reward and do not train.",
            name, len(first), len(masked), rows, reason,
        )  # fmt: skip


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, RewardError) else f"{type(error).__name__}: {error}"


def _where(batch: RewardBatch, index: int) -> str:
    return f"row {batch.keys[index]}, completion {reprlib.repr(batch.completions[index])}"


def check_numbers(name: str, returned: Any, batch: RewardBatch) -> list[float]:
    """One finite float per sample, NaN for None.

    Raises:
        RewardError: The answer has another form, count or type; or a number is not finite.
    """
    _check_count(name, returned, batch, "one number or None")
    return [_number(name, value, batch, index) for index, value in enumerate(returned)]


def check_token_numbers(name: str, returned: Any, batch: RewardBatch) -> list[list[float] | None]:
    """Per sample one finite float for each of its tokens, or None."""
    _check_count(name, returned, batch, "one list of numbers or None")
    values: list[list[float] | None] = []
    for index, numbers in enumerate(returned):
        if numbers is None:
            values.append(None)
            continue
        count = len(batch.columns["completion_ids"][index])
        if len(numbers) != count:
            raise RewardError(
                f"dense reward {name!r} returned {len(numbers)} numbers for the {count} tokens of "
                f"{_where(batch, index)}. Return one per token, or None."
            )
        values.append([_number(name, number, batch, index) for number in numbers])
        if any(map(math.isnan, values[-1] or ())):
            raise RewardError(f"dense reward {name!r} returned None for a token of {_where(batch, index)}.")
    return values


def _check_count(name: str, returned: Any, batch: RewardBatch, wanted: str) -> None:
    if isinstance(returned, (str, bytes, dict)) or not hasattr(returned, "__len__") or _is_scalar(returned):
        raise RewardError(
            f"reward {name!r} returned {reprlib.repr(returned)}; return a list with {wanted} per "
            f"completion, here {len(batch)}."
        )
    if len(returned) != len(batch):
        raise RewardError(
            f"reward {name!r} returned {len(returned)} rewards for {len(batch)} completions (rows "
            f"{batch.keys[0]} to {batch.keys[-1]}). Return {wanted} per completion."
        )


def _number(name: str, value: Any, batch: RewardBatch, index: int) -> float:
    value = value.item() if hasattr(value, "item") and _is_scalar(value) else value
    if value is None:
        return math.nan
    if not isinstance(value, Real) or not abs(float(value)) <= _LARGEST:
        raise RewardError(
            f"reward {name!r} returned {reprlib.repr(value)} for {_where(batch, index)}. Return a finite "
            "number, or None for cannot judge."
        )
    return float(value)


def _is_scalar(value: Any) -> bool:
    return getattr(value, "ndim", None) == 0
