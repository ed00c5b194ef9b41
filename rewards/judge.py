"""A language model, or a vision-language model, behind an OpenAI-compatible endpoint as the judge.

The parts: `judging_requests` (what is asked), `judging_endpoint` (asking), `judging_answers` (reading the
answer), `judging_cache`. Here they become an asynchronous reward, which TRL's trainers and mmft await.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rewards.judging_answers import Answer, AnswerFormat, AnswerReader, NoScore, Verdict
from rewards.judging_cache import AnswerCache
from rewards.judging_endpoint import (
    UNANSWERED,
    ChatSession,
    Endpoint,
    RequestCounters,
    RequestPolicy,
)
from rewards.judging_requests import (
    DEFAULT_CRITERIA,
    DEFAULT_TEMPLATE,
    JudgeRequest,
    PictureForm,
    Template,
    system_prompt,
)
from rewards.pictures import image_keys, picture_column, picture_rows
from rewards.text import Completion, completion_text

logger = logging.getLogger(__name__)
Outcome = Verdict | NoScore


class JudgeError(RuntimeError):
    """The judge could not be reached, or not used at all."""


class JudgeReward:
    """Asks a model for a score of every completion.

        R = (score - low) / (high - low) for `scale=(low, high)`, the mean over `samples` answers

    An answer that holds no one score (empty, a refusal, two scores, out of range, cut off), and a request
    that failed after its retries, give None: cannot judge. They are counted by kind, the first of each kind
    is logged with what was said. If no request of a batch was answered at all, `JudgeError` is raised: a dead
    endpoint must not look like a batch that nobody can judge.

    A request is asked once, however often it occurs: its answer is remembered under a digest of everything it
    may depend on, in memory and, with `cache_path`, in a file that several processes share. Only answers with
    a score are remembered. The API key is read from the environment at each call and kept nowhere.

    An instance is an asynchronous reward in TRL's protocol. `log_extra` receives `reason` and `failure` (the
    kind, or ""), `log_metric` `judge/failed_share`, `judge/failed/<kind>`, `judge/requests`, `judge/retries`
    and `judge/cache_hits`.

    Example:
        >>> from rewards import JudgeReward
        >>> criteria = "how many of the objects in the picture the caption names"
        >>> reward = JudgeReward("http://localhost:8000/v1", "my-judge", criteria=criteria, api_key_env=None)
        >>> reward
        JudgeReward(base_url='http://localhost:8000/v1', model='my-judge')
        >>> print(reward.system.splitlines()[0])  # how what the judge is told begins
        You judge an answer. The criterion is how many of the objects in the picture the caption names.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        criteria: str = DEFAULT_CRITERIA,
        system: str | None = None,
        template: str = DEFAULT_TEMPLATE,
        answer_format: AnswerFormat = "number",
        scale: tuple[float, float] | None = (0, 10),
        raw: bool = False,
        api_key_env: str | None = "OPENAI_API_KEY",
        send_images: bool = True,
        image_format: str = "png",
        max_image_side: int | None = 1024,
        temperature: float | None = 0.0,
        max_tokens: int | None = 256,
        request: Mapping[str, Any] | None = None,
        samples: int = 1,
        max_concurrency: int = 8,
        timeout: float = 30.0,
        max_retries: int = 3,
        backoff: float = 0.5,
        max_retry_after: float = 60.0,
        on_failure: str = "none",
        cache: bool = True,
        cache_size: int = 100_000,
        cache_path: str | Path | None = None,
    ) -> None:
        """Settle whom to ask, what, and how patiently.

        Args:
            base_url: Where `/chat/completions` is, such as `http://localhost:8000/v1`.
            model: The model's name there.
            criteria: What the score is for; goes into the system prompt.
            system: The whole system prompt instead, "" for none. The one written by default says that
                fenced text is data; yours should too.
            template: What is asked, with `{prompt}`, `{completion}` and any column; each value is fenced. A
                row where one of them is None cannot be judged.
            answer_format: "number", "json" (`{"score": 7, "reason": ...}`), a regular expression with a group
                around the score, or a function from the text to a number or None.
            scale: Lowest and highest score; None takes any number as it is.
            raw: Give scores as they are instead of mapped to [0, 1].
            api_key_env: Environment variable with the API key; None for an endpoint that asks for none.
            send_images: Whether the judge sees the pictures of the row, before the text.
            image_format: "png" (every pixel as it is) or "jpeg" (smaller).
            max_image_side: Larger pictures are scaled down to this; None never.
            temperature: 0 for the same answer each time; None leaves the field out, as some models demand.
            max_tokens: Limit of the answer; None leaves the field out.
            request: More fields of the request, such as `{"seed": 0}` or `{"max_completion_tokens": 500}`.
            samples: How often each completion is judged; more than one needs a temperature above 0.
            max_concurrency: Requests under way at one time.
            timeout: Seconds for one attempt, all of it.
            max_retries: Attempts after the first, for lost connections, timeouts, 408, 409, 429 and 5xx.
            backoff: Seconds before the first retry; doubles. A `Retry-After` of the server goes before it.
            max_retry_after: The longest `Retry-After` that is waited for.
            on_failure: "none" gives None where no answer came, "raise" raises `JudgeError` for the batch.
            cache: Whether answers are remembered.
            cache_size: Answers kept in memory.
            cache_path: SQLite file for them, shared by processes and runs.
        """
        self.scale = _checked_scale(scale)
        self.raw = raw or scale is None
        self.samples = _checked_samples(samples, temperature)
        if on_failure not in ("none", "raise"):
            raise ValueError(f"`on_failure` must be 'none' or 'raise'; got {on_failure!r}.")
        self.on_failure = on_failure
        self.fields = _fields(model, temperature, max_tokens, request or {})
        self.endpoint = Endpoint(base_url.rstrip("/"), api_key_env)
        self.policy = RequestPolicy(
            timeout=timeout,
            max_retries=max_retries,
            backoff=backoff,
            max_retry_after=max_retry_after,
            max_concurrency=max_concurrency,
        )
        self.system = system_prompt(criteria, answer_format, self.scale) if system is None else system
        self.template = Template(template)
        self.form, self.send_images = PictureForm(image_format, max_image_side), send_images
        self.failures: Counter[str] = Counter()
        self._read = AnswerReader(answer_format, self.scale)
        self._cache = AnswerCache(cache_size if cache else 0, cache_path if cache else None)
        # Its own source of chance: the trainer's random numbers must not depend on a server's mood.
        self._chance = random.Random()
        self.__name__ = "judge"

    def __repr__(self) -> str:
        return f"JudgeReward(base_url={self.endpoint.base_url!r}, model={self.fields['model']!r})"

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        """Find out before training whether the key is there and the template fits the data."""
        self.endpoint.api_key()
        given = ("prompt", "completion")
        self.template.check([*given, *(name for name in self.template.names if column(name) is not None)])

    async def __call__(
        self,
        prompts: list[Any] | None,
        completions: list[Completion],
        *,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion; see the class for None."""
        rows, requests = self._requests(prompts, completions, columns)
        counters = RequestCounters()
        outcomes = await self._outcomes(requests, counters)
        answers = [[row] if isinstance(row, NoScore) else [outcomes[key] for key in row] for row in rows]
        verdicts = [_mean_verdict(each) for each in answers]
        self._count(outcome for each in answers for outcome in each)
        self._complain(verdicts)
        if log_extra is not None:
            log_extra("reason", [v.reason if isinstance(v, Verdict) else v.message for v in verdicts])
            log_extra("failure", [v.kind if isinstance(v, NoScore) else "" for v in verdicts])
        if log_metric is not None:
            log_metric("judge/cache_hits", len(requests) - counters.requests)
            _log_work(verdicts, counters, log_metric)
        return [self._reward(verdict) if isinstance(verdict, Verdict) else None for verdict in verdicts]

    def _requests(
        self, prompts: list[Any] | None, completions: list[Completion], columns: Mapping[str, Any]
    ) -> tuple[list[list[str] | NoScore], dict[str, JudgeRequest]]:
        """For each completion the keys of what is asked about it, and the distinct requests by key."""
        count = len(completions)
        data = {name: values for name, values in columns.items() if _is_column(values, count)}
        data |= {} if prompts is None else {"prompt": prompts}
        data["completion"] = [completion_text(completion) for completion in completions]
        self.template.check(list(data))
        pictures = self._pictures(columns, count)
        keys = iter(image_keys([picture for row in pictures for picture in row]))
        requests: dict[str, JudgeRequest] = {}
        rows: list[list[str] | NoScore] = []
        for index, row in enumerate(pictures):
            text = self.template.fill({name: data[name][index] for name in self.template.names})
            picture_keys = tuple(next(keys) for _ in row)
            if text is None:
                rows.append(NoScore("no_data", "a column that the template names is None"))
                continue
            asked = [
                JudgeRequest(self.fields, self.system, text, tuple(row), picture_keys, self.form, sample)
                for sample in range(self.samples)
            ]
            named = {request.key(self.endpoint.base_url): request for request in asked}
            requests |= named
            rows.append(list(named))
        return rows, requests

    def _pictures(self, columns: Mapping[str, Any], count: int) -> list[list[Image.Image]]:
        if not self.send_images:
            return [[] for _ in range(count)]
        images = picture_column(columns)
        if images is None:
            raise ValueError(
                "the judge is to see the pictures (`send_images`), and the data has neither a column "
                "`images` nor `image`. Set `send_images=False` to let it judge the text alone."
            )
        return picture_rows(images, count)

    async def _outcomes(
        self, requests: Mapping[str, JudgeRequest], counters: RequestCounters
    ) -> dict[str, Outcome]:
        """What is known or said to each request."""
        outcomes: dict[str, Outcome] = {}
        for key, answer in self._cache.get(requests).items():
            outcome = self._read(answer)
            if isinstance(outcome, Verdict):  # it may have been kept under another `answer_format`
                outcomes[key] = outcome
        missing = {key: request for key, request in requests.items() if key not in outcomes}
        if missing:
            replies: dict[str, Answer | NoScore] = {}
            try:
                await self._ask(missing, replies, counters)
            finally:  # also when time ran out: what was answered is paid for
                outcomes |= self._keep(replies)
        return outcomes

    async def _ask(
        self,
        requests: Mapping[str, JudgeRequest],
        replies: dict[str, Answer | NoScore],
        counters: RequestCounters,
    ) -> None:
        urls: dict[bytes, str] = {}
        bodies = {key: request.body(urls) for key, request in requests.items()}

        async def ask(session: ChatSession, key: str) -> None:
            replies[key] = await session.ask(bodies[key])

        try:
            async with (
                ChatSession(self.endpoint, self.policy, counters, self._chance) as session,
                asyncio.TaskGroup() as tasks,
            ):
                for key in bodies:
                    tasks.create_task(ask(session, key))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None

    def _keep(self, replies: Mapping[str, Answer | NoScore]) -> dict[str, Outcome]:
        outcomes: dict[str, Outcome] = {}
        scored: dict[str, Answer] = {}
        for key, reply in replies.items():
            outcomes[key] = outcome = self._read(reply) if isinstance(reply, Answer) else reply
            if isinstance(reply, Answer) and isinstance(outcome, Verdict):
                scored[key] = reply
        self._cache.put(scored)
        return outcomes

    def _count(self, outcomes: Iterable[Outcome]) -> None:
        for outcome in outcomes:
            if not isinstance(outcome, NoScore):
                continue
            if outcome.kind not in self.failures:
                logger.warning(
                    "%r gave no score (%s): %s. The sample counts as not judged; later cases of this kind "
                    "are counted (judge/failed) and not logged.",
                    self,
                    outcome.kind,
                    outcome.message,
                )
            self.failures[outcome.kind] += 1

    def _complain(self, verdicts: Sequence[Outcome]) -> None:
        """Raise if no request was answered, or, if so wished, if one was not."""
        asked = [each for each in verdicts if not (isinstance(each, NoScore) and each.kind == "no_data")]
        silent = [each for each in asked if isinstance(each, NoScore) and each.kind in UNANSWERED]
        if not silent or (len(silent) < len(asked) and self.on_failure == "none"):
            return
        raise JudgeError(
            f"{len(silent)} of {len(asked)} completions got no answer from {self.endpoint.base_url} (model "
            f"{self.fields['model']!r}); the first: {silent[0].kind}, {silent[0].message}. Check `base_url`, "
            f"`model` and the key in {self.endpoint.api_key_env or '`api_key_env`'}."
        )

    def _reward(self, verdict: Verdict) -> float:
        if self.raw or self.scale is None:
            return verdict.score
        low, high = self.scale
        return (verdict.score - low) / (high - low)


def _mean_verdict(outcomes: Sequence[Outcome]) -> Outcome:
    """The mean over the samples that have a score, with the first one's reason; else the first failure."""
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    if not verdicts:
        return outcomes[0]
    return Verdict(sum(each.score for each in verdicts) / len(verdicts), verdicts[0].reason)


def _log_work(
    verdicts: Sequence[Outcome], counters: RequestCounters, log_metric: Callable[[str, float], None]
) -> None:
    failed = Counter(each.kind for each in verdicts if isinstance(each, NoScore))
    if verdicts:
        log_metric("judge/failed_share", failed.total() / len(verdicts))
    for kind, number in failed.items():
        log_metric(f"judge/failed/{kind}", number / len(verdicts))
    log_metric("judge/requests", counters.requests)
    log_metric("judge/retries", counters.retries)


def _is_column(values: Any, count: int) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count


def _fields(
    model: str, temperature: float | None, max_tokens: int | None, request: Mapping[str, Any]
) -> dict[str, Any]:
    """What goes beside the messages, in the body of every request."""
    for name in ("messages", "model", "n", "stream"):
        if name in request:
            raise ValueError(f"`request` holds {name!r}, which the judge sets itself. Leave it out.")
    known = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
    fields = {name: value for name, value in known.items() if value is not None} | dict(request)
    try:
        json.dumps(fields)
    except TypeError as error:
        raise ValueError(
            f"`request` must be made of plain JSON values; got {dict(request)!r}: {error}."
        ) from error
    return fields


def _checked_scale(scale: Sequence[float] | None) -> tuple[float, float] | None:
    if scale is None:
        return None
    if len(scale) != 2 or not all(map(math.isfinite, scale)) or not scale[0] < scale[1]:
        raise ValueError(f"`scale` must be the lowest and the highest score, or None; got {scale!r}.")
    return (scale[0], scale[1])


def _checked_samples(samples: int, temperature: float | None) -> int:
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1; got {samples}.")
    if samples > 1 and temperature == 0:
        raise ValueError(
            f"`samples` is {samples} and `temperature` 0: the answers would be the same. Raise the "
            "temperature."
        )
    return samples
