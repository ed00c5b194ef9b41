"""From two evaluations to intervals and comparisons; what is a corpus score is drawn as one."""

from __future__ import annotations

import dataclasses
import math

import pytest

from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.metrics import corpus_metrics
from mmft.report.record import Evaluation
from mmft.report.statistics import answers, compare_evaluations, distinct_measures, estimates

QUICK = Resampling(num_resamples=200)
REFERENCES = [["a red circle on a white ground"], ["two blue stars in the sky"], ["a green square"]] * 4


def evaluation(captions: list[str], rewards: list[float]) -> Evaluation:
    samples = [
        {
            "row": row,
            "completion": text,
            "tokens": len(text.split()),
            "ended": True,
            "reward": reward,
            "rewards": {"total": reward, "nothing": math.nan},
        }
        for row, (text, reward) in enumerate(zip(captions, rewards, strict=True))
    ]
    return Evaluation({"reward": sum(rewards) / len(rewards)}, samples)


def scored(captions: list[str]) -> Evaluation:
    plain = evaluation(captions, [0.1 * place for place in range(12)])
    return plain.with_corpus(corpus_metrics(["bleu", "rouge_l"], captions, REFERENCES))


RIGHT = scored([texts[0] for texts in REFERENCES])
HALF = scored([texts[0] if row % 2 else "a red circle" for row, texts in enumerate(REFERENCES)])


def test_measures_are_columns_of_rewards_and_metrics_and_those_without_a_number_go():
    assert list(RIGHT.measures()) == [
        "reward", "rewards/total", "completions/mean_length", "completions/no_eos_share", "metrics/bleu_1",
        "metrics/bleu_2", "metrics/bleu_3", "metrics/bleu_4", "metrics/rouge_l",
    ]  # fmt: skip
    assert RIGHT.means["metrics/bleu_4"] == pytest.approx(1.0)


def test_a_reward_that_is_the_total_is_one_measure():
    assert "rewards/total" not in distinct_measures(RIGHT)
    other = [sample | {"rewards": {"total": sample["reward"] + 0.1}} for sample in RIGHT.samples]
    assert "rewards/total" in distinct_measures(dataclasses.replace(RIGHT, samples=other))


def test_corpus_bleu_keeps_its_own_value_and_is_drawn_as_a_corpus():
    found = estimates(HALF, QUICK)
    assert HALF.corpus is not None
    assert found["metrics/bleu_4"].value == pytest.approx(HALF.corpus.scores["bleu_4"])
    mean = sum(HALF.corpus.per_sample["bleu_4"]) / 12
    assert found["metrics/bleu_4"].value != pytest.approx(mean, abs=0.01)
    assert found["metrics/bleu_4"].low < found["metrics/bleu_4"].value < found["metrics/bleu_4"].high
    assert found["metrics/rouge_l"].value == pytest.approx(HALF.corpus.scores["rouge_l"])


def test_two_evaluations_are_compared_by_every_measure_that_both_have():
    found = compare_evaluations(HALF, RIGHT, QUICK)
    bleu, rouge = found["metrics/bleu_4"], found["metrics/rouge_l"]
    assert HALF.corpus is not None
    assert (bleu.first, bleu.second) == pytest.approx((HALF.corpus.scores["bleu_4"], 1.0))
    assert bleu.difference.is_above_zero
    assert bleu.p_value is None
    # Sentence scores tell who wins a row; every second one, and the two circles, say something else.
    assert bleu.losses == 0.0
    assert bleu.wins == rouge.wins == pytest.approx(0.5)
    assert rouge.difference.is_above_zero
    assert found["reward"].ties == 1.0
    without = dataclasses.replace(RIGHT, corpus=None)
    assert "metrics/bleu_4" not in compare_evaluations(HALF, without, QUICK)


def test_health_reads_completions_lengths_and_ends():
    found = answers(RIGHT)
    assert found.completions[2] == "a green square"
    assert found.tokens is not None
    assert found.tokens[2] == 3
    unjudged = evaluation(["a", "b"], [math.nan, math.nan])
    assert answers(unjudged).measures["reward"] == [None, None]
