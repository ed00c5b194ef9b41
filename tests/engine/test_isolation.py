"""Time limits and error policies: what fails is named, what is masked is counted, nothing waits forever."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import logging
import math
import threading
import time
from typing import Any

import pytest
import torch

from mmft.engine.judging import RewardSuite
from mmft.engine.reward_calls import IsolatedReward, Isolation
from mmft.errors import ConfigError, RewardError
from tests.engine.reward_calls_support import MASK, fails_on_ccc, length, not_a_number_for_ccc, score


class Sleeper:
    """Sleeps where it is told to, and tells how often it ran and on how many threads at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.calls, self.running, self.most = seconds, 0, 0, 0
        self.wake = threading.Event()

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.wake.wait(self.seconds)
        self.running -= 1
        return [1.0] * len(completions)


async def slow(completions: list[str], **columns: Any) -> list[float | None]:
    await asyncio.sleep(5)
    return [1.0] * len(completions)


@pytest.mark.parametrize("reward", [fails_on_ccc, not_a_number_for_ccc])
def test_under_mask_only_the_sample_that_fails_is_lost(reward: Any):
    judgement = score(RewardSuite([reward], isolation=MASK))
    assert judgement.rewards[:, 0].nan_to_num(-1).tolist() == [10.0, 20.0, -1.0, 10.0]
    assert judgement.valid.tolist() == [True, True, False, True]
    assert judgement.masked == {reward.__name__: 1}


def test_a_masked_sample_has_no_total_even_where_other_rewards_judged():
    judgement = score(RewardSuite([length, fails_on_ccc], [1.0, 0.1], isolation=MASK))
    assert judgement.total.nan_to_num(-1).tolist() == pytest.approx([2.0, 4.0, -1.0, 2.0])
    unjudged = RewardSuite([length, lambda completions, **columns: [1.0, 2.0, None, 1.0]])
    assert score(unjudged).total.tolist() == [2.0, 4.0, 3.0, 2.0], "None is no failure: it counts as 0"


def test_a_failing_reward_of_weight_zero_is_counted_and_takes_nothing_out():
    judgement = score(RewardSuite([length, fails_on_ccc], [1.0, 0.0], isolation=MASK))
    assert judgement.total.tolist() == [1.0, 2.0, 3.0, 1.0]
    assert judgement.masked == {"fails_on_ccc": 1}


def test_what_was_masked_is_named_in_the_log(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        score(RewardSuite([fails_on_ccc], isolation=MASK))
    (record,) = caplog.records
    assert "'fails_on_ccc': 1 of 4 samples are masked (rows ('train', 1))" in record.message
    assert "row ('train', 1), completion 'ccc': ValueError: cannot count to three" in record.message


def test_without_a_failure_nothing_is_masked(caplog: pytest.LogCaptureFixture):
    judgement = score(RewardSuite([length], isolation=Isolation(5.0, "mask")))
    assert (judgement.masked, judgement.valid.all(), caplog.records) == ({}, True, [])


def test_a_reward_that_always_fails_leaves_no_sample():
    def broken(**columns: Any) -> list[float | None]:
        raise KeyError("column")

    judgement = score(RewardSuite([broken], isolation=MASK))
    assert judgement.masked == {"broken": 4}
    assert not judgement.valid.any()
    assert judgement.total.isnan().all(), "never 0.0"


def test_a_wrong_number_of_rewards_is_masked_too():
    def one_too_few(completions: list[str], **columns: Any) -> list[float | None]:
        return [1.0] * (len(completions) - 1)

    assert score(RewardSuite([one_too_few], isolation=MASK)).masked == {"one_too_few": 4}


def test_logged_parts_of_a_masked_batch_are_dropped_rather_than_misplaced():
    def parts(completions: list[str], log_extra: Any, **columns: Any) -> list[float | None]:
        log_extra("half", [len(text) / 2 for text in completions])
        return fails_on_ccc(completions)

    judgement = score(RewardSuite([parts], isolation=MASK))
    assert judgement.components.keys() == {"parts"}
    assert judgement.extras == {}


def test_a_call_that_takes_too_long_stops_the_run_in_time():
    sleeper = Sleeper(20)
    start = time.perf_counter()
    with pytest.raises(
        RewardError, match=r"'Sleeper' took longer than its `time_limit` of 0.1 s for 4 compl"
    ):
        score(RewardSuite([sleeper], isolation=Isolation(0.1)))
    assert time.perf_counter() - start < 5
    sleeper.wake.set()


def test_a_call_that_takes_too_long_is_masked_and_the_others_count(caplog: pytest.LogCaptureFixture):
    sleeper = Sleeper(20)
    suite = RewardSuite([IsolatedReward(sleeper, time_limit=0.1, on_error="mask"), length], [0.0, 1.0])
    judgement = score(suite)
    sleeper.wake.set()
    assert judgement.masked == {"Sleeper": 4}
    assert judgement.total.tolist() == [1.0, 2.0, 3.0, 1.0]
    assert "took longer than its `time_limit` of 0.1 s" in caplog.text


def test_a_call_left_behind_is_waited_for_and_never_overtaken():
    sleeper = Sleeper(0.6)
    suite = RewardSuite([sleeper], isolation=Isolation(0.25, "mask"))
    assert score(suite).masked == {"Sleeper": 4}
    assert score(suite).masked == {"Sleeper": 4}, "the first call still runs"
    time.sleep(0.4)
    sleeper.seconds = 0
    assert score(suite).masked == {}
    assert (sleeper.calls, sleeper.most) == (2, 1)


def test_suites_that_share_what_is_left_behind_do_not_overtake_each_other():
    sleeper = Sleeper(0.6)
    first = RewardSuite([sleeper], isolation=Isolation(0.2, "mask"))
    second = RewardSuite([length, sleeper], isolation=Isolation(0.2, "mask"))
    second.left_behind = first.left_behind
    assert score(first).masked == {"Sleeper": 4}
    assert score(second).masked == {"Sleeper": 4}, "the call of the first still runs"
    assert (sleeper.calls, sleeper.most) == (1, 1)
    sleeper.wake.set()


async def gives_up(completions: list[str], **columns: Any) -> list[float | None]:
    raise asyncio.CancelledError("lost")


def test_a_reward_that_cancels_itself_fails_like_any_other():
    with pytest.raises(RewardError, match=r"'gives_up' failed on a batch of 4 .* CancelledError: lost"):
        score(RewardSuite([gives_up]))
    assert score(RewardSuite([gives_up, length], isolation=MASK)).masked == {"gives_up": 4}


def test_what_was_found_before_the_time_was_over_is_kept():
    def slow_alone(completions: list[str], **columns: Any) -> list[float | None]:
        if len(completions) > 1:
            raise ValueError("one at a time")
        time.sleep(10 if completions == ["ccc"] else 0)
        return [1.0]

    judgement = score(RewardSuite([slow_alone], isolation=Isolation(0.3, "mask")))
    assert judgement.valid.tolist() == [True, True, False, False]
    assert judgement.masked == {"slow_alone": 2}


@pytest.mark.parametrize("policy", ["raise", "mask"])
def test_an_asynchronous_reward_is_cancelled_at_its_limit(policy: str):
    suite = RewardSuite([slow, length], [0.0, 1.0], isolation=Isolation(0.1, policy))
    start = time.perf_counter()
    if policy == "mask":
        assert score(suite).masked == {"slow": 4}
    else:
        with pytest.raises(RewardError, match="'slow' took longer"):
            score(suite)
    assert time.perf_counter() - start < 3


def test_an_asynchronous_failure_is_not_asked_again():
    calls = []

    async def service(completions: list[str], **columns: Any) -> list[float | None]:
        calls.append(len(completions))
        raise ConnectionError("refused")

    assert score(RewardSuite([service], isolation=MASK)).masked == {"service": 4}
    assert calls == [4]


def test_a_timeout_of_the_rewards_own_is_an_error_like_any_other():
    async def service(completions: list[str], **columns: Any) -> list[float | None]:
        raise TimeoutError("the server is busy")

    with pytest.raises(RewardError, match="TimeoutError: the server is busy"):
        score(RewardSuite([service]))


def test_the_row_of_an_error_is_found_within_the_limit_too():
    with pytest.raises(RewardError, match=r"failed on row \('train', 1\), completion 'ccc': ValueError"):
        score(RewardSuite([fails_on_ccc], isolation=Isolation(5.0)))


def test_a_limited_call_finds_the_context_and_grad_mode_of_its_caller():
    variable = contextvars.ContextVar("variable", default="outside")
    seen: list[Any] = []

    def look(completions: list[str], **columns: Any) -> list[float | None]:
        seen.append((variable.get(), torch.is_grad_enabled(), threading.current_thread().daemon))
        return [0.0] * len(completions)

    variable.set("inside")
    with torch.no_grad():
        score(RewardSuite([look], isolation=Isolation(5.0)))
    assert seen == [("inside", False, True)]


def test_a_reward_brings_its_own_limits_and_inherits_the_others():
    given = Isolation(3.0, "mask")
    assert IsolatedReward(length).isolation(given) == given
    assert IsolatedReward(length, time_limit=1.0).isolation(given) == Isolation(1.0, "mask")
    assert IsolatedReward(length, on_error="raise").isolation(given) == Isolation(3.0, "raise")
    suite = RewardSuite([IsolatedReward(length, time_limit=1.0)], isolation=given)
    assert (suite.isolations, suite.names) == ([Isolation(1.0, "mask")], ("length",))


def test_an_isolated_reward_is_the_reward_otherwise():
    class Stateful:
        seconds = 7

        def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
            return [2.0 for _ in completions]

    reward: Any = IsolatedReward(Stateful(), time_limit=1.0)
    assert reward(completions=["a"]) == [2.0]
    assert (reward.seconds, copy.copy(reward).seconds) == (7, 7)
    assert not hasattr(reward, "prepare")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time_limit": 0.0}, "`time_limit` must be > 0 seconds or None; got 0.0"),
        ({"time_limit": math.nan}, "`time_limit` must be > 0"),
        ({"time_limit": math.inf}, "got inf"),
        ({"time_limit": "1e2"}, "got '1e2'. Write a plain number"),
        ({"on_error": "ignore"}, "`on_error` must be 'raise' or 'mask'; got 'ignore'"),
        ({"on_none": "skip"}, "`on_none` must be 'zero' or 'mask'; got 'skip'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        Isolation(**settings)
    with pytest.raises(ConfigError, match=message):
        IsolatedReward(length, **settings)


def test_an_error_elsewhere_is_an_error_here():
    suite = RewardSuite([length])
    suite.gather = lambda told: [told, "reward 'x' failed"]
    with pytest.raises(RewardError, match="on process 1: reward 'x' failed"):
        score(suite)


def test_an_error_here_is_told_before_it_is_raised():
    told: list[Any] = []
    suite = RewardSuite([fails_on_ccc])
    suite.gather = lambda message: (told.append(message), [message])[1]
    with pytest.raises(RewardError, match="cannot count to three"):
        score(suite)
    assert len(told) == 1
    assert "cannot count to three" in told[0]


def silent_on_ccc(completions: list[str], **columns: Any) -> list[float | None]:
    return [None if text == "ccc" else 10.0 for text in completions]


@pytest.mark.parametrize(("policy", "third"), [("zero", 3.0), ("mask", -1.0)])
def test_silence_beside_other_rewards_is_nothing_or_takes_the_sample_out(policy: str, third: float):
    judgement = score(RewardSuite([length, IsolatedReward(silent_on_ccc, on_none=policy)]))
    assert judgement.total.nan_to_num(-1).tolist() == [11.0, 12.0, third, 11.0]
    assert judgement.masked == {}, "it is no failure"
    assert not judgement.failed.any()


def test_silence_of_weight_zero_takes_nothing_out():
    judgement = score(RewardSuite([length, IsolatedReward(silent_on_ccc, on_none="mask")], [1.0, 0.0]))
    assert judgement.total.tolist() == [1.0, 2.0, 3.0, 1.0]
