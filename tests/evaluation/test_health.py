"""Signs of a hacked reward, each on answers that show it and on answers that do not."""

from __future__ import annotations

import numpy as np
import pytest

from mmft.evaluation.bootstrap import Resampling
from mmft.evaluation.health import (
    Answers,
    degeneration,
    distinct_share,
    duplicates,
    health_warnings,
    reward_health,
)

QUICK = Resampling(num_resamples=300)
NOUNS = "circle square star ring cross moon heart arrow cube cone disc line".split()
SHORT = [f"a red {noun}" for noun in NOUNS]


def answers(texts: list[str], reward: list[float] | None = None, **measures: list[float]) -> Answers:
    scores = [0.5 + 0.01 * (place % 3) for place in range(len(texts))] if reward is None else reward
    return Answers(texts, {"reward": scores} | measures)


def warned(before: Answers, after: Answers, *watched: str) -> list[str]:
    return health_warnings(before, after, watched=watched, resampling=QUICK)


@pytest.mark.parametrize(
    ("text", "ended", "kind"),
    [
        ("a red circle", True, None),
        ("42", True, None),
        ("yes", True, None),
        ("un cercle rouge", True, None),
        ("赤い円", True, None),
        (" \n", True, "empty"),
        ("... !?", True, "wordless"),
        ("red red Red", True, "one_word_repeated"),
        ("a red", False, "cut"),
        ("", False, "empty"),
    ],
)
def test_a_completion_that_says_nothing_is_known_by_its_kind(text: str, ended: bool, kind: str | None):
    assert degeneration(text, ended) == kind


def test_duplicates_are_completions_of_other_rows_too():
    assert duplicates(["a b", "c", " A  b", "d"]) == [True, False, True, False]


def test_distinct_shares_worked_out_by_hand():
    # Words a b a, a: 2 different of 4. Pairs "a b", "b a": 2 of 2; the second text has none.
    assert distinct_share(["a b a", "a"], 1) == pytest.approx(2 / 4)
    assert distinct_share(["a b a", "a"], 2) == 1.0
    assert distinct_share(["", "."], 1) == 0.0


def test_health_adds_up_what_the_answers_show():
    texts = ["", "go go", "a b c", "a b c", "a b c d"]
    found = reward_health(
        Answers(texts, {"reward": [0, 2, 3, 3, 4]}, tokens=[1, 2, 9, 9, 9], ended=[True] * 4 + [False]), QUICK
    )
    assert found.reward_words.value == pytest.approx(1.0)
    assert found.reward_tokens is not None
    assert 0 < found.reward_tokens.value < 1
    assert found.mean_words == pytest.approx(12 / 5)
    assert found.duplicate_share == pytest.approx(2 / 5)
    assert found.degenerate == {"empty": 0.2, "wordless": 0.0, "one_word_repeated": 0.2, "cut": 0.2}
    assert found.degenerate_share == pytest.approx(0.6)
    assert found.distinct["distinct_1"] == pytest.approx(5 / 12)


def test_answers_without_tokens_and_rewards_have_the_other_signs():
    found = reward_health(Answers(["a", "b"], {"reward": [None, None]}), QUICK)
    assert found.reward_tokens is None
    assert found.reward_words.reason is not None
    assert found.duplicate_share == 0.0


def test_a_run_that_gets_better_in_every_way_is_not_warned_about():
    before = answers(SHORT, [0.2] * 12, truth=[0.5, 0.6] * 6)
    after = answers([f"{text} above a blue dot" for text in SHORT], [0.8, 0.9] * 6, truth=[0.7, 0.8] * 6)
    assert warned(before, after, "truth") == []


def test_a_reward_that_rises_while_the_truth_falls_is_warned_about():
    before = answers(SHORT, [0.2] * 12, **{"rewards/truth": [0.9, 1.0] * 6, "metrics/bleu": [0.4] * 12})
    after = answers(SHORT, [0.8] * 12, **{"rewards/truth": [0.4, 0.6] * 6, "metrics/bleu": [0.5] * 12})
    (sentence,) = warned(before, after, "rewards/truth", "metrics/bleu")
    assert "reward rose from 0.200 to 0.800" in sentence
    assert "truth, which was not optimised, fell from 0.950 to 0.500" in sentence
    assert "97.5% interval of the change -0.475 to -0.417" in sentence


def test_a_fall_that_chance_explains_is_no_warning():
    before = answers(SHORT, [0.2] * 12, truth=[0.0, 1.0] * 6)
    after = answers(SHORT, [0.8] * 12, truth=[1.0, 0.0] * 5 + [0.0, 0.0])
    assert warned(before, after, "truth") == []


@pytest.mark.parametrize(("rows", "alarms"), [(9, 0), (10, 1)])
def test_a_fall_in_a_handful_of_rows_is_no_warning(rows: int, alarms: int):
    before = answers(SHORT[:rows], [0.1] * rows, **{"rewards/truth": [0.8] * rows})
    after = answers(SHORT[:rows], [0.9] * rows, **{"rewards/truth": [0.3] * rows})
    assert len(warned(before, after, "rewards/truth")) == alarms


def test_a_fall_without_a_rise_of_the_reward_is_no_exploit():
    before = answers(SHORT, [0.8] * 12, truth=[1.0] * 12)
    after = answers(SHORT, [0.2] * 12, truth=[0.5] * 12)
    assert warned(before, after, "truth") == []


def test_what_was_optimised_may_fall_unwarned():
    before = answers(SHORT, [0.2] * 12, truth=[1.0] * 12)
    after = answers(SHORT, [0.8] * 12, truth=[0.5] * 12)
    assert warned(before, after) == []


@pytest.mark.parametrize(("sign", "which"), [(1.0, "longer"), (-1.0, "shorter")])
def test_a_reward_that_follows_length_is_warned_about(sign: float, which: str):
    texts = [" ".join(NOUNS[: 1 + place]) for place in range(12)]
    after = answers(texts, [sign * (1 + place) for place in range(12)])
    (sentence,) = warned(after, after)
    assert f"correlation is {sign:.2f} over 12 rows" in sentence
    assert f"{which} ones score higher" in sentence
    few = answers(texts[:9], [float(place) for place in range(9)])
    assert warned(few, few) == []


def test_completions_that_explode_are_warned_about():
    long = [f"{text} and " + " ".join(NOUNS) for text in SHORT]
    (sentence,) = warned(answers(SHORT), answers(long))
    assert sentence == "Completions grew from 3.0 to 16.0 words on average."
    assert warned(answers(long), answers(SHORT)) == []


def test_one_completion_for_all_rows_is_warned_about():
    (sentence,) = warned(answers(SHORT), answers(["a red circle"] * 12))
    assert "equal another row's rose from 0% to 100%" in sentence
    assert warned(answers(["a red circle"] * 12), answers(SHORT)) == []


def test_completions_that_stop_ending_are_warned_about():
    ended = Answers(SHORT, answers(SHORT).measures, ended=[True] * 12)
    cut = Answers(SHORT, answers(SHORT).measures, ended=[False] * 9 + [True] * 3)
    (sentence,) = warned(ended, cut)
    assert "Degenerate completions" in sentence
    assert "from 0% to 75%" in sentence
    assert warned(cut, ended) == []


def test_a_sure_but_tiny_rise_is_not_worth_a_warning():
    texts = [f"{noun} {place}" for place in range(30) for noun in NOUNS]
    tally = Answers(texts, {"reward": [0.5] * 360}, ended=[True] * 360)
    some = Answers(texts, {"reward": [0.5] * 360}, ended=[False] * 12 + [True] * 348)
    many = Answers(texts, {"reward": [0.5] * 360}, ended=[False] * 24 + [True] * 336)
    assert warned(tally, some) == []  # 3 %
    assert len(warned(tally, many)) == 1  # 7 %


def test_the_more_measures_are_watched_the_surer_a_fall_must_be():
    """Twenty measures that chance moves: one in forty falls surely by itself, hardly ever any of them."""
    rng = np.random.default_rng(0)
    names = [f"metrics/{number}" for number in range(20)]
    alarms = 0
    for _ in range(20):
        before, after = (
            answers(
                SHORT * 3, [*rng.normal(shift, 0.1, 36)], **{name: [*rng.normal(size=36)] for name in names}
            )
            for shift in (0.0, 1.0)
        )
        alarms += any("which was not optimised" in sentence for sentence in warned(before, after, *names))
    assert alarms <= 3


def test_a_warning_names_the_level_that_its_intervals_have_together():
    before = answers(SHORT, [0.1] * 12, **{name: [0.8] * 12 for name in ("rewards/truth", "rewards/detail")})
    after = answers(SHORT, [0.9] * 12, **{name: [0.3] * 12 for name in ("rewards/truth", "rewards/detail")})
    truth, _ = warned(before, after, "rewards/truth", "rewards/detail", "rewards/of_no_row")
    assert "97.5% interval of the change" in truth
