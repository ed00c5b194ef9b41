"""A weighted sum of rewards: hand numbers, None, scaling over processes, what is passed on to the parts."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from rewards import CompositeReward, ShapedReward, bleu_reward
from rewards.captioning import CaptioningReward
from rewards.composite import weighted_sum

TEXTS = ["a", "bb", "ccc", "dddd"]


def length(prompts: Any, completions: list[str], **columns: Any) -> list[float | None]:
    return [float(len(text)) for text in completions]


def given(prompts: Any, completions: list[str], given: list[Any], **columns: Any) -> list[float | None]:
    return given


async def slow_length(prompts: Any, completions: list[str], **columns: Any) -> list[float | None]:
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


class Log:
    """What a trainer collects through the two helpers."""

    def __init__(self) -> None:
        self.extras: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}

    @property
    def helpers(self) -> dict[str, Any]:
        return {"log_extra": self.extras.__setitem__, "log_metric": self.metrics.__setitem__}


def test_weighted_sum_hand_computed():
    assert weighted_sum({"text": 0.5, "image": 3.0}, {"text": 2.0, "image": -0.1}) == pytest.approx(0.7)
    assert weighted_sum({"text": None, "image": 3.0}, {"text": 2.0, "image": 0.5}) == 1.5
    assert weighted_sum({"text": None, "image": None}, {"text": 2.0, "image": 0.5}) is None


def test_a_part_that_is_only_logged_makes_no_judgement():
    assert weighted_sum({"text": None, "image": 3.0}, {"text": 2.0, "image": 0.0}) is None
    assert weighted_sum({"text": 1.0, "image": None}, {"text": 2.0, "image": 0.0}) == 2.0


def test_parts_are_weighed_and_summed():
    reward = CompositeReward({"long": (length, 2.0), "given": (given, -1.0)})
    assert reward(None, TEXTS, given=[0.5, 0, None, 1]) == [1.5, 4.0, 6.0, 7.0]


def test_weights_beside_the_parts_and_by_name_are_the_same():
    columns = {"given": [1.0, None, 3.0, 4.0]}
    pairs = CompositeReward({"long": (length, 2.0), "given": given})
    named = CompositeReward({"long": length, "given": given}, weights={"long": 2.0})
    assert pairs(None, TEXTS, **columns) == named(None, TEXTS, **columns) == [3.0, 4.0, 9.0, 12.0]


def test_the_order_of_the_parts_does_not_matter():
    columns = {"given": [0.1, None, 1e9, 4.0]}
    one = CompositeReward({"long": length, "given": given}, scaling="min-max")
    other = CompositeReward({"given": given, "long": length}, scaling="min-max")
    assert one(None, TEXTS, **columns) == other(None, TEXTS, **columns)


def test_min_max_scaling_hand_computed():
    reward = CompositeReward({"long": (length, 1.0), "given": (given, 10.0)}, scaling="min-max")
    # lengths 1, 3 -> 0, 1; given 5, 7, 6 -> 0, 1, 1/2
    assert reward(None, ["a", "ccc", "bb"], given=[5, 7, 6]) == pytest.approx([0, 11, 5.5])
    # The ranges grow to [1, 5] and [5, 7].
    assert reward(None, ["eeeee", "a"], given=[None, 6]) == pytest.approx([1.0, 5.0])


def test_z_score_scaling_of_one_part_leaves_the_other():
    reward = CompositeReward({"long": length, "given": given}, scaling={"long": "z-score", "given": None})
    first, second = reward(None, ["a", "ccc"], given=[10, 20])  # mean 2, std 1
    assert (first, second) == pytest.approx((9, 21))


def test_without_scaling_one_phase_will_do():
    """So a trainer can ask again sample by sample when a part fails."""
    assert not hasattr(CompositeReward({"long": length}), "evidence")
    assert hasattr(CompositeReward({"long": length}, scaling="z-score"), "settle")
    assert not hasattr(CompositeReward({"long": length}, scaling={"long": None}), "settle")


def on_processes(
    rewards: list[CompositeReward], batches: list[list[float | None]], *, training: bool = True
) -> list[list[float | None]]:
    """Each reward on its own process, all of them meeting in `gather`."""
    barrier = threading.Barrier(len(rewards), timeout=10)
    brought: list[Any] = [None] * len(rewards)
    calls = [0] * len(rewards)
    results: list[Any] = [None] * len(rewards)

    def run(rank: int) -> None:
        def gather(found: Any) -> list[Any]:
            calls[rank] += 1
            brought[rank] = json.loads(json.dumps(found))  # what crosses processes is a copy
            barrier.wait()
            return list(brought)

        evidence = rewards[rank].evidence(None, ["x"] * len(batches[rank]), given=batches[rank])
        results[rank] = rewards[rank].settle(evidence, gather=gather, training=training)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(rewards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [1] * len(rewards)  # once each, or a process that failed would not know what to wait for
    return results


def numbers(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


@pytest.mark.parametrize("scaling", ["z-score", "min-max"])
def test_two_processes_scale_as_one_with_all_samples(scaling: str):
    alone = CompositeReward({"given": given}, scaling=scaling)
    both = [CompositeReward({"given": given}, scaling=scaling) for _ in range(2)]
    for batch in ([1.0, 4.0, None, 8.0], [2.0, 2.5, 20.0, -1.0]):
        left, right = on_processes(both, [batch[:1], batch[1:]])
        expected = alone(None, ["x"] * 4, given=batch)
        assert numbers([*left, *right]) == pytest.approx(numbers(expected), rel=1e-12, nan_ok=True)
    assert both[0].state_dict() == both[1].state_dict()


def test_a_process_without_samples_keeps_up():
    both = [CompositeReward({"given": given}, scaling="min-max") for _ in range(2)]
    assert on_processes(both, [[], [0.0, 4.0]]) == [[], [0.0, 1.0]]
    assert on_processes(both, [[2.0], []], training=True) == [[0.5], []]


def test_held_out_scores_stay_on_the_scale_of_the_first_evaluation():
    reward = [CompositeReward({"given": given}, scaling="min-max")]
    on_processes(reward, [[0.0, 2.0]], training=False)
    on_processes(reward, [[50.0, 90.0]])
    assert on_processes(reward, [[1.0, 4.0]], training=False) == [[0.5, 2.0]]


def test_a_resumed_run_goes_on_with_the_same_scales():
    reward = CompositeReward({"given": given}, scaling="z-score")
    on_processes([reward], [[0.0, 2.0]], training=False)
    reward(None, TEXTS, given=[1.0, 2.0, 4.0, None])
    resumed = CompositeReward({"given": given}, scaling="z-score")
    resumed.load_state_dict(json.loads(json.dumps(reward.state_dict())))
    for training in (False, True):
        assert on_processes([resumed], [[3.0, 9.0]], training=training) == on_processes(
            [reward], [[3.0, 9.0]], training=training
        )
    fresh = CompositeReward({"given": given}, scaling="z-score")
    assert fresh(None, ["x"], given=[3.0]) != resumed(None, ["x"], given=[3.0])


def test_every_part_is_logged_as_it_came_and_scaled():
    log = Log()
    reward = CompositeReward({"long": (length, 0.5), "given": given}, scaling={"long": "min-max"})
    reward(None, ["a", "ccc"], given=[None, 4.0], **log.helpers)
    assert log.extras == {"long": [1.0, 3.0], "given": [None, 4.0], "long/scaled": [0.0, 1.0]}
    assert log.metrics == {"composite/long": 2.0, "composite/given": 4.0, "composite/long/scaled": 0.5}


def test_a_part_that_judged_nothing_has_no_mean():
    log = Log()
    assert CompositeReward({"given": given})(None, ["a"], given=[None], **log.helpers) == [None]
    assert (log.extras, log.metrics) == ({"given": [None]}, {})


def test_what_a_part_logs_appears_below_its_name():
    log = Log()
    reward = CompositeReward({"caption": CaptioningReward()})
    reward(None, ["a red circle"], references=[["a red circle"]], **log.helpers)
    assert {"caption", "caption/bleu", "caption/detail", "caption/length"} == log.extras.keys()
    assert log.metrics["composite/caption/bleu"] == log.extras["caption/bleu"][0] == 1.0


def test_columns_reach_every_part():
    seen: list[dict[str, Any]] = []

    def look(prompts: Any, completions: list[str], **columns: Any) -> list[float | None]:
        seen.append({"prompts": prompts, "completions": completions} | columns)
        return [0.0] * len(completions)

    reward = CompositeReward({"one": look, "two": partial(look, extra=1)})
    reward(prompts=["p"], completions=["c"], images=[["picture"]], trainer_state="state")
    expected = {
        "prompts": ["p"],
        "completions": ["c"],
        "images": [["picture"]],
        "trainer_state": "state",
    }
    assert seen == [expected, expected | {"extra": 1}]


def test_parts_of_numpy_numbers_become_floats():
    (value,) = CompositeReward({"n": lambda completions, **_: np.array([0.5])})(None, ["x"])
    assert type(value) is float


class Fitted:
    """Learns the mean length of a column, and keeps it."""

    def __init__(self) -> None:
        self.mean: float | None = None

    def prepare(self, column: Callable[[str], list[Any] | None]) -> None:
        texts = column("captions") or []
        self.mean = sum(map(len, texts)) / len(texts)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]

    def __call__(self, prompts: Any, completions: list[str], **columns: Any) -> list[float | None]:
        assert self.mean is not None, "not prepared"
        return [len(text) / self.mean for text in completions]


def test_parts_are_prepared_and_their_states_saved():
    inner = CompositeReward({"fitted": Fitted()})
    reward = CompositeReward({"outer": inner, "fitted": Fitted(), "long": length})
    reward.prepare({"captions": ["four", "a to b c"]}.get)
    assert reward(None, ["abc"]) == [0.5 + 0.5 + 3]
    resumed = CompositeReward(
        {"outer": CompositeReward({"fitted": Fitted()}), "fitted": Fitted(), "long": length}
    )
    resumed.load_state_dict(json.loads(json.dumps(reward.state_dict())))
    assert resumed(None, ["abc"]) == [4.0]


def test_a_state_of_other_parts_is_refused():
    state = CompositeReward({"fitted": Fitted()}).state_dict()
    with pytest.raises(ValueError, match=r"has a part 'fitted', which is missing now\. Its parts are long"):
        CompositeReward({"long": length}).load_state_dict(state)
    with pytest.raises(ValueError, match="has a part 'fitted', which keeps no state now"):
        CompositeReward({"fitted": length}).load_state_dict(state)


def test_only_an_asynchronous_part_makes_it_asynchronous():
    assert not inspect.iscoroutinefunction(type(CompositeReward({"long": length})).__call__)
    inner = CompositeReward({"slow": slow_length})
    for part in (slow_length, partial(slow_length, extra=1), inner, partial(inner, extra=1)):
        reward = CompositeReward({"long": length, "slow": part})
        assert isinstance(reward, CompositeReward)
        assert inspect.iscoroutinefunction(type(reward).__call__)
        assert asyncio.run(reward(None, TEXTS)) == [2.0, 4.0, 6.0, 8.0]


def test_an_asynchronous_composite_gives_its_evidence_in_a_coroutine():
    reward = CompositeReward({"long": length, "slow": slow_length}, scaling="min-max")
    assert inspect.iscoroutinefunction(reward.evidence)
    evidence = asyncio.run(reward.evidence(None, TEXTS))
    settled = reward.settle(evidence, gather=lambda obj: [obj], training=True)
    assert settled == pytest.approx([0, 2 / 3, 4 / 3, 2])


def test_parts_that_wait_do_so_at_the_same_time_while_others_work():
    async def meet(barrier: asyncio.Barrier, completions: list[str]) -> list[float]:
        async with asyncio.timeout(5):
            await barrier.wait()
        return [1.0] * len(completions)

    async def score() -> list[float | None]:
        barrier, released = asyncio.Barrier(2), threading.Event()

        async def first(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
            released.set()
            return await meet(barrier, completions)

        async def second(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
            return await meet(barrier, completions)

        def worker(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
            return [float(released.wait(5))] * len(completions)

        return await CompositeReward({"work": worker, "first": first, "second": second})(None, ["x"])

    assert asyncio.run(score()) == [3.0]


@pytest.mark.parametrize("grad", [False, True])
def test_parts_that_work_while_others_wait_find_the_grad_mode_of_the_caller(grad: bool):
    found: list[bool] = []

    def looks(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        found.append(torch.is_grad_enabled())
        return [0.0] * len(completions)

    async def waits(prompts: Any, completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    reward = CompositeReward({"looks": looks, "waits": waits})
    with torch.set_grad_enabled(grad):
        asyncio.run(reward(None, ["x"]))
    assert found == [grad]


def test_copies_are_independent():
    reward = CompositeReward({"given": given}, scaling="min-max")
    reward(None, ["x", "x"], given=[0.0, 1.0])
    twin = copy.deepcopy(reward)
    on_processes([twin], [[9.0]])
    assert twin.state_dict() != reward.state_dict()
    assert reward(None, ["x"], given=[0.5]) == [0.5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": {}}, "`parts` is empty"),
        ({"parts": {"a": "bleu"}}, "`a` of the composite reward must be a reward; got 'bleu'"),
        ({"parts": {"a": length}, "weights": {"b": 1}}, "`weights` names 'b', which is no part. Parts are a"),
        ({"parts": {"a": length}, "scaling": {"b": "z-score"}}, "`scaling` names 'b', which is no part"),
        ({"parts": {"a": length}, "scaling": "rank"}, "`scaling` must be one of 'min-max', 'z-score'"),
        ({"parts": {"a": length}, "weights": {"a": 0}}, "`weights` must be finite and not all 0"),
        ({"parts": {"a": (length, math.nan)}}, "`weights` must be finite and not all 0"),
        ({"parts": {"a": (length, 1)}, "weights": {"a": 2}}, "the weight of .'a'. is said twice"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        CompositeReward(**arguments)


def test_parts_with_statistics_over_processes_are_refused():
    scaled = CompositeReward({"long": length}, scaling="z-score")
    with pytest.raises(ValueError, match=r"part 'in' keeps statistics over all processes itself\. List its"):
        CompositeReward({"in": scaled})
    with pytest.raises(ValueError, match="keeps statistics"):
        CompositeReward({"in": ShapedReward(scaled, length)})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "`a` of the composite reward returned 1 rewards for 2 completions"),
        (3.0, "`a` of the composite reward returned 3.0; return a number or None each"),
        ("ab", "returned 'ab'; return a number or None each"),
        ([1.0, math.nan], "returned nan for completion 1. Return a finite number, or None"),
        ([math.inf, 1.0], "returned inf for completion 0"),
        ([1e200, 1.0], r"returned 1e\+200 for completion 0"),  # whose square is infinite
        (["x", 1.0], "returned 'x' for completion 0"),
    ],
)
def test_a_part_that_breaks_the_protocol_is_named_before_processes_meet(answer: Any, message: str):
    reward = CompositeReward({"a": lambda **_: answer}, scaling="z-score")
    with pytest.raises(ValueError, match=message):
        reward.evidence(None, ["x", "y"])


def test_a_row_that_the_text_part_cannot_judge_keeps_its_image_part():
    def brightness(prompts: Any, completions: list[str], image: list[float], **columns: Any) -> list[float]:
        return image

    reward = CompositeReward({"text": (bleu_reward, 1.0), "image": (brightness, 0.5)})
    values = reward(None, ["a red dot"] * 2, references=[["a red dot"], None], image=[0.2, 0.4])
    assert values == pytest.approx([1.1, 0.2])
