"""Asking an OpenAI-compatible chat endpoint: bounded, patient, and never silent about what went wrong.

The `openai` client sends the requests. Retries are ours: the client's back-off cannot be set, and its timeout
is per read, so that a server that drips bytes would never run into it.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from rewards.judging_answers import Answer, NoScore

try:
    import openai
except ImportError as error:
    raise ImportError(
        "the judge reward needs the `openai` package, which is not installed: pip install 'mmft[judge]' "
        "(or pip install openai)."
    ) from error

UNANSWERED = frozenset(
    {"timeout", "connection", "auth", "rate_limit", "server_error", "rejected", "malformed"}
)
"""Kinds of failure where no judge spoke; in the others one did, and said nothing that is a score."""
_RETRIED = frozenset({408, 409, 429})  # and every 5xx
_LONGEST_BACKOFF = 30.0
# The client refuses to be made without a key; servers without keys ignore it.
_NO_KEY = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPolicy:
    """How patiently to ask."""

    timeout: float = 30.0
    """Seconds for one attempt, from connecting to the last byte."""
    max_retries: int = 3
    """Attempts after the first, for lost connections, timeouts, 408, 409, 429 and 5xx."""
    backoff: float = 0.5
    """Seconds before the first retry; doubled each time, up to 30, and shortened by up to half at random."""
    max_retry_after: float = 60.0
    """The longest `Retry-After` that is waited for; a longer one ends the attempts."""
    max_concurrency: int = 8
    """Requests under way at one time."""

    def __post_init__(self) -> None:
        for name, least in (
            ("max_retries", 0),
            ("max_concurrency", 1),
            ("backoff", 0),
            ("max_retry_after", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")
        if not (self.timeout > 0 and math.isfinite(self.timeout)):
            raise ValueError(f"`timeout` must be a finite number of seconds > 0; got {self.timeout}.")

    def delay(self, attempt: int, retry_after: float | None, chance: random.Random) -> float:
        """Seconds to wait after the failed attempt number `attempt`, counted from 0."""
        if retry_after is not None:
            return retry_after
        return min(self.backoff * 2**attempt, _LONGEST_BACKOFF) * (1 - 0.5 * chance.random())


@dataclass(slots=True)
class RequestCounters:
    """What went over the wire."""

    requests: int = 0
    """Distinct requests, each answered or given up."""
    retries: int = 0
    """Attempts after the first of a request."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the judge is, and the name of the variable that holds the key; the key itself is kept nowhere."""

    base_url: str
    api_key_env: str | None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError(
                "`base_url` must be an http(s) address such as http://localhost:8000/v1; got "
                f"{self.base_url!r}."
            )
        if parts.username or parts.password or parts.query:
            # Not quoted: what should not stand there should not reach a log either.
            raise ValueError(
                "`base_url` holds a user, password or query. Put the key into `api_key_env` instead."
            )

    def api_key(self) -> str:
        """The key, read from the environment each time."""
        if self.api_key_env is None:
            return _NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(
                f"`api_key_env` names {self.api_key_env}, which is not set. Export it, or set `api_key_env` "
                "to None for an endpoint that asks for no key."
            )
        return key


@dataclass(slots=True)
class ChatSession:
    """A client for one batch, within one event loop; use it in `async with`, which closes every connection.

    A client is bound to the loop that it first ran in, and a trainer may run a new loop for every batch.
    """

    endpoint: Endpoint
    policy: RequestPolicy
    counters: RequestCounters
    chance: random.Random
    answered: int = field(default=0, init=False)
    lost: list[NoScore] = field(default_factory=list, init=False)
    _client: Any = field(default=None, init=False)
    _gate: asyncio.Semaphore = field(init=False)

    async def __aenter__(self) -> ChatSession:
        self._gate = asyncio.Semaphore(self.policy.max_concurrency)
        self._client = openai.AsyncOpenAI(
            api_key=self.endpoint.api_key(),
            base_url=self.endpoint.base_url,
            timeout=self.policy.timeout,
            max_retries=0,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def ask(self, body: dict[str, Any]) -> Answer | NoScore:
        """The answer to one request, after as many attempts as the policy allows."""
        self.counters.requests += 1
        async with self._gate:
            # As many failures as fit side by side and never an answer: nobody is there. Do not wait N times.
            if not self.answered and len(self.lost) >= self.policy.max_concurrency:
                return NoScore(self.lost[-1].kind, f"not asked, since {self.lost[-1].message}")
            reply = await self._attempts(body)
            if isinstance(reply, NoScore) and reply.kind in UNANSWERED:
                self.lost.append(reply)
            else:
                self.answered += 1
            return reply

    async def _attempts(self, body: dict[str, Any]) -> Answer | NoScore:
        attempt = 0
        while True:
            try:
                async with asyncio.timeout(self.policy.timeout):
                    return _answer(await self._send(body))
            except (openai.OpenAIError, TimeoutError) as error:
                failed = self._failure(error)
                wait = _retry_after(error)
            patient = wait is None or wait <= self.policy.max_retry_after
            if not failed.again or not patient or attempt == self.policy.max_retries:
                tried = f" after {attempt + 1} attempts" if attempt else ""
                return NoScore(failed.kind, failed.message + tried)
            await asyncio.sleep(self.policy.delay(attempt, wait, self.chance))
            attempt += 1
            self.counters.retries += 1

    async def _send(self, body: dict[str, Any]) -> str:
        fields = {name: value for name, value in body.items() if name not in ("model", "messages")}
        # Raw: the client does not check that what comes back is a chat completion.
        response = await self._client.chat.completions.with_raw_response.create(
            model=body["model"], messages=body["messages"], extra_body=fields
        )
        # Not `.text`, which believes the charset of a header; JSON is UTF-8 (RFC 8259, section 8.1).
        return response.content.decode("utf-8", "replace")

    def _failure(self, error: Exception) -> _Failure:
        if isinstance(error, (TimeoutError, openai.APITimeoutError)):
            return _Failure("timeout", f"no answer within {self.policy.timeout:g} s", True)
        if isinstance(error, openai.APIStatusError):
            # Some servers quote the key they refuse.
            said = str(error.body)[:300].replace(self.endpoint.api_key(), "***")
            message = f"the endpoint said {error.status_code}: {said}"
            return _Failure(_status_kind(error.status_code), message, _is_retried(error.status_code))
        cause = error.__cause__ or error
        return _Failure("connection", f"{type(cause).__name__}: {cause or error}", True)


@dataclass(frozen=True, slots=True)
class _Failure:
    kind: str
    message: str
    again: bool
    """Whether another attempt may help."""


def _status_kind(status: int) -> str:
    if status in (401, 403):
        return "auth"
    if status == 429:
        return "rate_limit"
    return "server_error" if status >= 500 else "rejected"


def _is_retried(status: int) -> bool:
    return status in _RETRIED or status >= 500


def _retry_after(error: Exception) -> float | None:
    """Seconds that the server asked for, as a number or a date (RFC 9110, section 10.2.3), or None."""
    if not isinstance(error, openai.APIStatusError):
        return None
    header = error.response.headers.get("retry-after", "")
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _answer(body: str) -> Answer | NoScore:
    """The text of a chat completion; what is none is `malformed`."""
    try:
        choice = json.loads(body)["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        reason = choice.get("finish_reason")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return NoScore("malformed", f"the endpoint sent no chat completion but {body[:200]!r}")
    if refusal or reason == "content_filter":
        return NoScore("refusal", f"the judge refused: {refusal or reason!r}")
    if isinstance(content, list):
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        return NoScore("malformed", f"the answer's content is {str(content)[:200]!r}")
    # JSON can spell half a character, which neither a file nor a log can hold.
    text = (content or "").encode("utf-8", "replace").decode()
    return Answer(text, cut_off=reason == "length")
