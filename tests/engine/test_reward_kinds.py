"""Rewards of other kinds: settled over all processes, paid per token, prepared on the data, with a state."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mmft.engine.judging import RewardSuite
from mmft.engine.reward_calls import IsolatedReward
from mmft.errors import RewardError
from tests.engine.reward_calls_support import MASK, length, row, score


class Centred:
    """Rewards less the mean over all processes, in two phases."""

    def __init__(self) -> None:
        self.settled: list[bool] = []

    def evidence(self, completions: list[str], **columns: Any) -> list[float]:
        if "fail" in columns.get("how", ()):
            raise ValueError("no evidence")
        return [float(len(text)) for text in completions]

    def settle(self, evidence: list[float], *, gather: Any, training: bool) -> list[float | None]:
        self.settled.append(training)
        everything = [value for part in gather(evidence) for value in part]
        return [value - sum(everything) / len(everything) for value in evidence]

    def __call__(self, prompts: Any, completions: list[str], **columns: Any) -> list[float | None]:
        found = self.evidence(completions=completions, **columns)
        return self.settle(found, gather=lambda obj: [obj], training=True)


def test_evidence_is_settled_with_that_of_the_other_processes():
    reward = Centred()
    suite = RewardSuite([reward])
    assert score(suite).total.tolist() == [-0.75, 0.25, 1.25, -0.75]  # mean of 1, 2, 3, 1 is 1.75
    suite.gather = lambda obj: [obj, [11.0] * 4 if obj is not None else None]
    assert score(suite, training=False).total.tolist() == pytest.approx(
        [1 - 6.375, 2 - 6.375, -3.375, -5.375]
    )
    assert reward.settled == [True, False]


def test_a_process_without_evidence_still_takes_part():
    gathered: list[Any] = []
    suite = RewardSuite([Centred()], isolation=MASK)
    suite.gather = lambda obj: (gathered.append(obj), [obj])[1]
    judgement = suite.score([row(0, how="fail")], [["a", "b"]])
    assert judgement.masked == {"Centred": 2}
    assert judgement.total.isnan().all()
    assert gathered == [None, None, None], "about errors, in place of the evidence, about errors again"


class Unsettled(Centred):
    """Fails in its second phase, before or after the processes met."""

    def __init__(self, *, meets: bool) -> None:
        super().__init__()
        self.meets = meets

    def settle(self, evidence: list[float], *, gather: Any, training: bool) -> list[float | None]:
        if self.meets:
            gather(evidence)
        raise OverflowError("too large")


@pytest.mark.parametrize("meets", [False, True])
def test_a_reward_that_fails_in_its_second_phase_keeps_nobody_waiting(meets: bool):
    gathered: list[Any] = []
    suite = RewardSuite([Unsettled(meets=meets)])
    suite.gather = lambda obj: (gathered.append(obj), [obj])[1]
    with pytest.raises(RewardError, match=r"'Unsettled' failed on rows .* too large"):
        score(suite)
    assert len(gathered) == 3
    assert "too large" in gathered[-1]


def test_a_failing_second_phase_is_masked_and_counted(caplog: pytest.LogCaptureFixture):
    judgement = score(RewardSuite([Unsettled(meets=True), length], isolation=MASK))
    assert judgement.masked == {"Unsettled": 4}
    assert judgement.total.isnan().all()
    assert "too large" in caplog.text


def test_what_is_settled_must_be_finite():
    class Endless(Centred):
        def settle(self, evidence: list[float], *, gather: Any, training: bool) -> list[float | None]:
            return [math.inf for _ in gather(evidence)[0]]

    with pytest.raises(RewardError, match="reward 'Endless' returned inf for row"):
        score(RewardSuite([Endless()]))


class PerToken:
    """Pays each token its place, less for the discount; tells what it saw."""

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        return [-1.0] * len(completions)

    def token_rewards(
        self, completions: list[str], prefixes: list[list[str]], discount: float, **columns: Any
    ) -> list[list[float] | None]:
        return [
            None if text == "ccc" else [discount * place for place in range(len(known) - 1)]
            for text, known in zip(completions, prefixes, strict=True)
        ]


PREFIXES = [["", "a"], ["", "b", "bb"], ["", "c", "cc", "ccc"], ["", "d"]]


def test_dense_rewards_are_paid_per_token_beside_the_total():
    suite = RewardSuite([length, PerToken()], [1.0, 10.0])
    judgement = score(suite, prefixes=PREFIXES, discount=0.5)
    assert judgement.token_rewards == [[0.0], [0.0, 5.0], [0.0, 0.0, 0.0], [0.0]]
    assert judgement.total.tolist() == [1.0, 2.0, 3.0, 1.0]
    assert judgement.rewards[:, 1].nan_to_num(-9).tolist() == [0.0, 0.5, -9.0, 0.0]
    assert judgement.valid.all()


def test_dense_rewards_alone_are_the_reward():
    judgement = score(RewardSuite([PerToken()]), prefixes=PREFIXES, discount=1.0)
    assert judgement.valid.tolist() == [True, True, False, True]
    assert judgement.total.nan_to_num(-9).tolist() == [0.0, 0.0, -9.0, 0.0]


def test_held_out_samples_have_no_per_token_rewards():
    judgement = score(RewardSuite([length, PerToken()]), training=False)
    assert judgement.token_rewards is None
    assert judgement.components["PerToken"] == [-1.0] * 4
    assert judgement.total.tolist() == [1.0, 2.0, 3.0, 1.0], "and they are no part of the total"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([1.0, 2.0], "returned 2 numbers for the 1 tokens of row"),
        ([math.inf], "returned inf for row"),
        ([None], "returned None for a token of row"),
    ],
)
def test_per_token_rewards_are_held_to_account(numbers: list[Any], message: str):
    class Bad(PerToken):
        def token_rewards(self, completions: list[str], **columns: Any) -> Any:
            return [numbers for _ in completions]

    with pytest.raises(RewardError, match=message):
        score(RewardSuite([Bad()]), prefixes=PREFIXES)


class Fitted:
    """Learns a number from a column of the training rows and keeps it."""

    def __init__(self) -> None:
        self.total: float | None = None

    def prepare(self, column: Any) -> None:
        if self.total is None:
            self.total = sum(column("number"))

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total = state["total"]

    def __call__(self, completions: list[str], **columns: Any) -> list[float | None]:
        return [self.total] * len(completions)


def test_rewards_are_prepared_and_keep_their_state():
    suite = RewardSuite([length, IsolatedReward(Fitted(), time_limit=5.0)])
    suite.prepare({"number": [1.0, 2.0]}.get)
    assert score(suite).components["Fitted"] == [3.0] * 4
    assert suite.state_dict() == {"Fitted": {"total": 3.0}}
    other = RewardSuite([Fitted()])
    other.load_state_dict(suite.state_dict() | {"someone else": {}})
    assert score(other).total.tolist() == [3.0] * 4
