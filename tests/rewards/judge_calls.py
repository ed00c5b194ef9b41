"""Calls to the judge reward as the tests make them: quick to retry, each in an event loop of its own."""

from __future__ import annotations

import asyncio
from typing import Any

from rewards import JudgeReward
from tests.rewards.judge_server import JudgeServer, Reply, Script, chat

CAPTIONS = ["A dog.", "A cat.", "A hat."]
JSON = {"Content-Type": "application/json"}


def judge(server: JudgeServer | str, **settings: Any) -> JudgeReward:
    """A judge of text that is quick to retry."""
    base_url = server if isinstance(server, str) else server.base_url
    settings = {"send_images": False, "backoff": 0.001, "timeout": 5.0, "template": "{completion}"} | settings
    return JudgeReward(base_url, "judge-1", **settings)


def ask(reward: JudgeReward, completions: list[Any] | None = None, **columns: Any) -> list[float | None]:
    """One call in an event loop of its own, as a trainer makes it."""
    return asyncio.run(reward(columns.pop("prompts", None), completions or CAPTIONS, **columns))


def ask_logged(reward: JudgeReward, **columns: Any) -> tuple[list[float | None], dict[str, Any]]:
    log: dict[str, Any] = {}
    return ask(reward, log_extra=log.__setitem__, log_metric=log.__setitem__, **columns), log


def by_word(scores: dict[str, str]) -> Script:
    """Answers by a word in the question."""
    return lambda request, _before: chat(next(said for word, said in scores.items() if word in request.text))


def for_caption(word: str, reply: Reply, otherwise: Reply) -> Script:
    return lambda request, _before: reply if word in request.text else otherwise
