"""Judging: what rewards are called with, what their answers become, and errors that name reward and row."""

from __future__ import annotations

import asyncio
import math
import time
from functools import partial
from typing import Any

import PIL.Image
import pytest
import torch

from mmft.engine.judging import Judgement, RewardSuite
from mmft.engine.reward_calls import is_async, reward_names
from mmft.errors import ConfigError, RewardError
from mmft.types import PromptRow
from rewards import CaptioningReward


def row(index: int, *, messages: bool = False, num_images: int = 1, **columns: Any) -> PromptRow:
    asked = [{"role": "user", "content": "Describe."}]
    images = [PIL.Image.new("RGB", (1, 1))] * num_images
    return PromptRow(("train", index), asked if messages else "Describe.", asked, images, columns)


def length(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def answers(*values: Any) -> Any:
    def my_reward(completions: list[Any], **columns: Any) -> list[Any]:
        return list(values)

    return my_reward


def judge(*rewards: Any, weights: list[float] | None = None) -> Judgement:
    """Two prompts, two completions each."""
    return RewardSuite(list(rewards), weights).score([row(0), row(1)], [["a", "bb"], ["ccc", "dddd"]])


def test_a_reward_sees_each_completion_with_its_prompt_and_columns():
    seen: dict[str, Any] = {}

    def my_reward(**arguments: Any) -> list[float]:
        seen.update(arguments)
        return [0.0] * len(arguments["completions"])

    rows = [row(0, references=["x"]), row(1, references=["y"], score=3)]
    state = object()
    RewardSuite([my_reward]).score(rows, [["a", "b"], ["c"]], [[[1], [2]], [[3]]], trainer_state=state)
    assert seen["prompts"] == ["Describe."] * 3
    assert seen["completions"] == ["a", "b", "c"]
    assert seen["completion_ids"] == [[1], [2], [3]]
    assert seen["references"] == [["x"], ["x"], ["y"]]
    assert seen["score"] == [None, None, 3]
    assert seen["images"] == [rows[0].images, rows[0].images, rows[1].images]
    assert seen["image"] == [rows[0].images[0], rows[0].images[0], rows[1].images[0]]
    assert seen["trainer_state"] is state
    assert callable(seen["log_extra"])
    assert callable(seen["log_metric"])


def test_completions_follow_the_form_of_the_prompt():
    seen: dict[str, Any] = {}

    def my_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        seen.update(columns, completions=completions)
        return [0.0, 0.0]

    RewardSuite([my_reward]).score([row(0), row(1, messages=True, num_images=2)], [["a"], ["b"]])
    assert seen["completions"] == ["a", [{"role": "assistant", "content": "b"}]]
    assert "image" not in seen, "only where every row has exactly one"
    assert "completion_ids" not in seen


def test_total_is_the_weighted_sum():
    judgement = judge(length, answers(1, 2, 3, 4), weights=[10.0, -1.0])
    assert judgement.rewards.tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]
    assert judgement.total.tolist() == [9.0, 18.0, 27.0, 36.0]
    assert judgement.rewards.dtype == judgement.total.dtype == torch.float32
    assert judgement.valid.tolist() == [True] * 4
    assert set(judgement.seconds) == {"length", "my_reward"} == set(judgement.names)


def test_a_sample_that_no_reward_judged_has_no_total():
    judgement = judge(answers(None, 1.0, None, 2.0), answers(None, None, 5.0, 7.0))
    assert judgement.valid.tolist() == [False, True, True, True]
    assert judgement.total[1:].tolist() == [1.0, 5.0, 9.0]
    assert math.isnan(judgement.total[0])
    assert judgement.rewards.isnan().tolist() == [[True, True], [False, True], [True, False], [False, False]]


def test_a_reward_of_weight_zero_is_logged_only():
    judgement = judge(answers(1, 2, 3, 4), answers(None, 1, 1, 1), weights=[0.0, 2.0])
    assert judgement.valid.tolist() == [False, True, True, True]
    assert judgement.total[1:].tolist() == [2.0] * 3
    assert judgement.components["my_reward"] == [1, 2, 3, 4]


def test_one_completion_per_prompt():
    assert RewardSuite(length).score([row(0), row(1)], [["a"], ["bb"]]).total.tolist() == [1.0, 2.0]


def test_parts_are_logged_apart_by_reward():
    rows = [row(0, references=["a red circle"]), row(1, references=None)]
    judgement = RewardSuite([CaptioningReward(), length]).score(rows, [["a red circle", "x"], ["y", "z"]])
    assert list(judgement.components) == [
        "captioning", "captioning/bleu", "captioning/detail", "captioning/length", "length",
    ]  # fmt: skip
    assert judgement.components["captioning/bleu"][:2] == [1.0, 0.0]
    assert all(math.isnan(value) for value in judgement.components["captioning/bleu"][2:])
    assert judgement.components["captioning"][:2] == [1.5, 0.0]
    assert judgement.metrics == {}, "the means of the parts would be logged twice"
    assert judgement.valid.all(), "length judged every sample"


def test_other_metrics_and_text_are_kept_as_they_are():
    def my_reward(completions: list[str], log_extra: Any, log_metric: Any, **columns: Any) -> list[float]:
        log_extra("answer", completions)
        log_extra("too_few", [1.0])
        log_metric("accuracy", 0.5)
        log_metric("accuracy", 1.0)
        return [0.0] * len(completions)

    judgement = judge(my_reward)
    assert judgement.extras == {"my_reward/answer": ["a", "bb", "ccc", "dddd"], "my_reward/too_few": [1.0]}
    assert judgement.metrics == {"accuracy": 0.75}
    assert list(judgement.components) == ["my_reward"]


@pytest.mark.parametrize(
    "answer",
    [(1, 2, 3, 4), torch.tensor([1.0, 2, 3, 4]), torch.tensor([1, 2, 3, 4]).numpy(), [True, 2, 3.0, 4]],
)
def test_any_sequence_of_numbers_is_an_answer(answer: Any):
    def my_reward(**columns: Any) -> Any:
        return answer

    assert judge(my_reward).total.tolist() == [1.0, 2.0, 3.0, 4.0]


def test_asynchronous_rewards_run_at_the_same_time_and_keep_their_place():
    async def slow(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0.2)
        return [2.0] * len(completions)

    class Slower:
        async def __call__(self, completions: list[str], **columns: Any) -> list[float]:
            await asyncio.sleep(0.2)
            return [3.0] * len(completions)

    start = time.perf_counter()
    judgement = judge(slow, length, Slower())
    assert time.perf_counter() - start < 0.35
    assert judgement.names == ("slow", "length", "Slower")
    assert judgement.rewards[0].tolist() == [2.0, 1.0, 3.0]
    assert judgement.seconds["Slower"] >= 0.2 > judgement.seconds["length"]


def test_asynchronous_rewards_work_inside_a_running_loop():
    async def slow(completions: list[str], **columns: Any) -> list[float]:
        return [1.0] * len(completions)

    async def notebook() -> Judgement:
        return judge(slow)

    assert asyncio.run(notebook()).total.tolist() == [1.0] * 4


def test_asynchronous_rewards_are_recognised_in_every_form():
    async def slow(**columns: Any) -> list[float]:
        return []

    class Slow:
        async def __call__(self, **columns: Any) -> list[float]:
            return []

    assert [is_async(reward) for reward in (slow, partial(slow), Slow(), length, partial(length))] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_names_are_those_of_functions_and_classes_made_unique():
    named: Any = partial(length)
    named.__name__ = "words"
    rewards = [length, partial(length), CaptioningReward(), named, lambda **columns: [], answers()]
    assert reward_names(rewards) == ("length", "length_2", "captioning", "words", "lambda", "my_reward")


def test_a_reward_that_raises_names_itself_and_the_row():
    def my_reward(completions: list[str], **columns: Any) -> list[float]:
        return [1 / (len(text) - 3) for text in completions]

    with pytest.raises(
        RewardError, match=r"reward 'my_reward' failed on row \('train', 1\), completion 'ccc': ZeroDiv"
    ):
        judge(length, my_reward)


def test_a_reward_that_fails_only_on_the_batch_names_its_rows():
    def my_reward(completions: list[str], **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    rows = r"\(rows \('train', 0\), \('train', 1\)\)"
    message = rf"'my_reward' failed on a batch of 4 completions {rows}: RuntimeError: too"
    with pytest.raises(RewardError, match=message):
        judge(my_reward)


def test_an_asynchronous_reward_that_raises_is_named_and_not_called_again():
    calls = []

    async def service(completions: list[str], **columns: Any) -> list[float]:
        calls.append(len(completions))
        raise TimeoutError("no answer")

    with pytest.raises(
        RewardError, match=r"reward 'service' failed on a batch of 4 .*TimeoutError: no answer"
    ):
        judge(service)
    assert calls == [4]


def test_looking_for_the_row_does_not_log():
    def my_reward(completions: list[str], log_metric: Any, **columns: Any) -> list[float]:
        log_metric("calls", 1.0)
        return [0.0] * len(completions)

    def broken(completions: list[str], log_metric: Any, **columns: Any) -> list[float]:
        log_metric("calls", 1.0)
        raise ValueError

    with pytest.raises(RewardError, match="reward 'broken' failed on row"):
        judge(my_reward, broken)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (
            answers(1.0),
            r"reward 'my_reward' returned 1 rewards for 4 completions \(rows \('train', 0\) to \('train', 1",
        ),
        (
            answers(0, 0, math.nan, 0),
            r"'my_reward' returned nan for row \('train', 1\), completion 'ccc'. Return a fin",
        ),
        (answers(0, math.inf, 0, 0), r"returned inf for row \('train', 0\), completion 'bb'"),
        (answers(0, 1e39, 0, 0), r"returned 1e\+39 for row \('train', 0\)"),
        (answers(0, 0, 0, "good"), r"returned 'good' for row \('train', 1\), completion 'dddd'"),
        (answers(0, 0, 0, [1.0]), r"returned \[1.0\] for row"),
        (
            lambda **columns: 1.0,
            r"reward 'lambda' returned 1.0; return a list with one number or None per completion",
        ),
        (lambda **columns: None, r"reward 'lambda' returned None; return a list"),
        (lambda **columns: "good", r"reward 'lambda' returned 'good'; return a list"),
        (lambda **columns: torch.tensor(1.0), r"reward 'lambda' returned tensor\(1.\); return a list"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_named(reward: Any, message: str):
    with pytest.raises(RewardError, match=message):
        judge(reward)


def test_the_list_of_rewards_is_checked():
    with pytest.raises(ConfigError, match="`reward_funcs` is empty"):
        RewardSuite([])
    with pytest.raises(
        ConfigError, match=r"`reward_funcs` holds 'captioning', which is not callable. Resolve names"
    ):
        RewardSuite(["captioning"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"`reward_weights` has 1 numbers for 2 rewards. Give one each"):
        RewardSuite([length, length], [1.0])
    with pytest.raises(ConfigError, match="`reward_weights` must be finite and not all 0; got"):
        RewardSuite([length], [0.0])
    with pytest.raises(ConfigError, match="`reward_weights` must be finite and not all 0; got"):
        RewardSuite([length], [math.inf])
    with pytest.raises(ConfigError, match=r"`names` must be 2 different names; got \['a', 'a'\]"):
        RewardSuite([length, length], names=["a", "a"])


def test_rows_and_completions_must_match():
    with pytest.raises(ValueError, match="zip"):
        RewardSuite([length]).score([row(0)], [["a"], ["b"]])
