"""The checker on what a reward does besides answering: changes, logs, states, token rewards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

import rewards
from rewards import CompositeReward, check
from rewards.checks import made_up_rows
from rewards.text import completion_text
from tests.rewards.checking import PLAIN, problems


def draw(image: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    image[0].putpixel((0, 0), (1, 2, 3))
    return [0.0] * len(completions)


def fill(tensor: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    tensor[0].fill_(7.0)
    return [0.0] * len(completions)


def sort(references: list[Any], completions: list[Any], **columns: Any) -> list[float]:
    for reference in references:
        (reference or []).sort()
    return [0.0] * len(completions)


def say_more(completions: list[Any], **columns: Any) -> list[float]:
    if not isinstance(completions[0], str):
        completions[0][0]["content"] += "!"
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "columns", "problem"),
    [
        (draw, made_up_rows(), "as given: changed its argument `image`; work on a copy"),
        (fill, {"tensor": [torch.zeros(2)] * 2}, "as given: changed its argument `tensor`; work on a copy"),
        (
            sort,
            {"references": [["b", "a"]] * 2},
            "as given: changed its argument `references`; work on a copy",
        ),
        (say_more, {}, "completions as messages: changed its argument `completions`; work on a copy"),
    ],
)
def test_changed_arguments_are_named(reward: Any, columns: Any, problem: str):
    assert problem in problems(reward, **columns)


def test_what_was_given_stays_as_it_was():
    references = [["b", "a"], ["d", "c"]]
    problems(sort, references=references)
    assert references == [["b", "a"], ["d", "c"]]


def test_what_a_reward_logs_is_checked():
    def logs(completions: list[Any], log_extra: Any, log_metric: Any, **columns: Any) -> list[float]:
        log_extra("good", completions)
        log_extra("short", [1])
        log_metric("good", torch.tensor(1.0))
        log_metric("bad", float("nan"))
        return [0.0] * len(completions)

    assert problems(logs) == [
        "as given: logged 1 values as 'short' for 2 completions; log one each",
        "as given: logged nan as the metric 'bad'; log a finite number",
    ]


class Running:
    """Counts its calls, and keeps the count or not."""

    def __init__(self) -> None:
        self.calls = 7

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        self.calls += 1
        return [float(self.calls)] * len(completions)


class Kept(Running):
    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class KeptBadly(Kept):
    def state_dict(self) -> dict[str, Any]:
        return {"calls": {self.calls}}


def test_a_state_is_put_back_before_every_call_and_at_the_end():
    reward = Kept()
    assert check(reward, **PLAIN) == [8.0, 8.0]
    assert reward.calls == 7
    assert problems(Running())[0].startswith(
        "called again: gave 9.0 for a completion that it gave 8.0 before."
    )


def test_a_state_must_be_json():
    assert problems(KeptBadly())[0] == (
        "state: cannot be saved as JSON and loaded: TypeError: Object of type set is not JSON serializable"
    )


def test_a_reward_is_prepared_as_a_copy():
    reward = rewards.CiderReward()
    assert check(reward) == check(reward)
    assert reward.state_dict() == {}


class Ready:
    """Must be prepared; may keep a state, and may hold what cannot be copied."""

    def __init__(self) -> None:
        self.rows: list[Any] | None = None

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        self.rows = column("references")

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        if self.rows is None:
            raise RuntimeError("prepare me:\n call `prepare`")
        return [0.0] * len(completions)


class ReadyWithState(Ready):
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state == {}


class ReadyWithLock(ReadyWithState):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_preparing_leaves_no_rows_in_a_state():
    rows = PLAIN | {"references": ["a", "b"]}
    reward: Ready = Ready()
    assert check(reward, **rows) == [0.0, 0.0]
    assert reward.rows == ["a", "b"], (
        "a reward without a state, such as one that loads a model, is prepared itself"
    )
    reward = ReadyWithState()
    assert check(reward, **rows) == [0.0, 0.0]
    assert reward.rows is None
    reward = ReadyWithLock()
    assert problems(reward, **rows) == ["as given: raised RuntimeError: prepare me: call `prepare`"]
    assert reward.rows is None


def test_statistics_of_a_composite_stay_as_they_were():
    reward = CompositeReward({"text": rewards.BleuReward()}, scaling="z-score")
    before = reward.state_dict()
    assert check(reward, compares_within_batch=True) == pytest.approx([1.0, -1.0], abs=1e-4)
    assert reward.state_dict() == before


class Dense:
    def __init__(self, answer: Callable[[list[str]], Any]) -> None:
        self.answer = answer

    def __call__(self, completions: list[Any], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    def token_rewards(
        self, completions: list[Any], prefixes: list[list[str]], *, discount: float, **columns: Any
    ) -> list[Any]:
        assert 0 < discount < 1
        assert [row[-1] for row in prefixes] == list(map(completion_text, completions))
        return [self.answer(row) for row in prefixes]


def test_dense_rewards_give_a_number_for_every_token():
    rows = {"prompts": ["p"], "completions": ["one two three"]}
    assert check(Dense(lambda prefixes: [0.5] * (len(prefixes) - 1)), **rows) == [0.0]
    assert check(Dense(lambda prefixes: None), **rows) == [0.0]
    assert problems(Dense(lambda prefixes: [0.5] * len(prefixes)), **rows) == [
        "token_rewards: returned [0.5, 0.5, 0.5, 0.5] for the 3 tokens of row 0; return a number each"
    ]
    assert problems(Dense(lambda prefixes: [None] * 3), **rows) == [
        "token_rewards: returned [None, None, None] for the 3 tokens of row 0; return a number each"
    ]
