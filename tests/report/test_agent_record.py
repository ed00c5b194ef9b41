"""Numbers of evaluations: means and intervals over episodes, differences by episode, and warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from mmft.engine.environment_pool import Episode
from mmft.evaluation.bootstrap import Resampling
from mmft.report.agent_record import (
    AFTER,
    BLANKED,
    RANDOM,
    AgentOutcome,
    PlayedEpisodes,
    blanking_warnings,
    difference,
    result_table,
    training_warnings,
)
from mmft.trainers.held_out_episodes import episode_means

QUICK = Resampling(num_resamples=300)
BEST = [1.0, 1.0, 0.5, 0.5]


def played(
    returns: Sequence[float], name: str = AFTER, *, best: Sequence[float | None] | None = None
) -> PlayedEpisodes:
    """Episode i of two environments in turn, of length i + 1, a success where anything was earned."""
    best = best or [None] * len(returns)
    return PlayedEpisodes(
        name,
        [
            Episode(earned, number + 1, earned > 0, most, number % 2, number // 2)
            for number, (earned, most) in enumerate(zip(returns, best, strict=True))
        ],
    )


def test_means_are_over_episodes_and_the_share_of_the_best_is_of_means():
    estimates = played([1.0, 0.0, 0.5, 0.0], best=BEST).estimates(QUICK)
    # 1.5 / 4; lengths 1 to 4; two of four earned something; 1.5 of 1 + 1 + 0.5 + 0.5
    assert {name: each.value for name, each in estimates.items()} == pytest.approx(
        {"return": 0.375, "episode_length": 2.5, "success": 0.5, "optimal_share": 0.5}
    )
    assert {each.count for each in estimates.values()} == {4}


def test_the_means_are_those_that_the_trainer_logs():
    numbers = np.random.default_rng(0).uniform(-0.5, 1.0, 20).tolist()
    some = played(numbers, best=[1.0, 0.5] * 10)
    found = {name: each.value for name, each in some.estimates(QUICK).items()}
    assert found == pytest.approx(episode_means(some.episodes))
    assert all(each.low < each.value < each.high for each in some.estimates(QUICK).values())


def test_a_share_is_resampled_together_with_what_was_possible():
    best = [0.1, 0.9, 0.4, 2.0, 0.7, 0.3]
    share = played([number / 2 for number in best], best=best).estimates(QUICK)["optimal_share"]
    # Whichever episodes are drawn, half of the possible was earned in them.
    assert (share.value, share.low, share.high) == pytest.approx((0.5, 0.5, 0.5))


def test_one_episode_has_no_interval_and_an_unknown_best_no_share():
    (single,) = [played([1.0], best=[2.0]).estimates(QUICK)]
    assert single["optimal_share"].value == 0.5
    assert all(math.isnan(each.low) for each in single.values())
    assert "optimal_share" not in played([1.0, 0.5], best=[1.0, None]).estimates(QUICK)


def test_records_name_the_evaluation_and_the_episode():
    assert played([0.25, -1.0], "random", best=[1.0, None]).records() == [
        {
            "evaluation": "random", "environment": 0, "episode": 0, "return": 0.25, "length": 1,
            "success": True, "optimal_return": 1.0,
        },
        {
            "evaluation": "random", "environment": 1, "episode": 0, "return": -1.0, "length": 2,
            "success": False, "optimal_return": None,
        },
    ]  # fmt: skip


def test_differences_are_taken_episode_by_episode():
    first, second = played([0.0, 1.0, 0.2, 0.4]), played([0.5, 1.5, 0.7, 0.9])
    found = difference(first, second, QUICK)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5)), "each earned 0.5 more"
    shuffled = PlayedEpisodes(AFTER, second.episodes[::-1])
    assert difference(first, shuffled, QUICK) == found
    # An episode that only one of them played, since an environment failed, compares with nothing.
    fewer = PlayedEpisodes(AFTER, second.episodes[1:])
    assert difference(first, fewer, QUICK).count == 3
    assert difference(first, fewer, QUICK).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("before", "after", "warning"),
    [
        ([0.0, 0.1] * 8, [0.9, 1.0] * 8, None),
        ([0.9, 1.0] * 8, [0.0, 0.1] * 8, "Training lowered the return: 0.950 random, 0.050 after training"),
        (
            [0.5] * 16,
            [0.0, 1.0] * 8,
            "Training did not raise the return beyond chance: 0.500 random, 0.500 a",
        ),
        ([0.5] * 16, [0.5] * 16, "difference +0.000 [+0.000, +0.000]"),
    ],
)
def test_training_that_does_not_help_is_warned_of(
    before: list[float], after: list[float], warning: str | None
):
    told = training_warnings(AgentOutcome(played(before, RANDOM), played(after)), QUICK)
    assert len(told) == (warning is not None)
    assert all(str(warning) in text for text in told)


def test_nothing_is_to_be_gained_where_the_best_was_reached_before_or_one_episode_was_played():
    best = played([1.0, 0.5] * 4, best=[1.0, 0.5] * 4)
    assert training_warnings(AgentOutcome(best, best), QUICK) == []
    assert training_warnings(AgentOutcome(played([0.5], RANDOM), played([0.1])), QUICK) == []


def test_a_modality_that_the_agent_does_as_well_without_is_not_used():
    after, worse, better = played([0.9, 1.0] * 8), played([0.1, 0.2] * 8), played([1.0, 1.0] * 8)
    blanked = {"image": after, "text": worse}
    (told,) = blanking_warnings(after, blanked, QUICK)
    assert told.startswith("The picture is not used, as far as 16 episodes tell: the return is 0.950 with it")
    (told,) = blanking_warnings(after, {"image": worse, "text": better}, QUICK)
    assert "The text is not used" in told
    assert "0.950 with it and 1.000 without it (difference -0.050" in told
    assert blanking_warnings(played([1.0]), {"image": played([1.0])}, QUICK) == []


def test_the_table_has_a_row_for_each_evaluation_and_a_column_for_what_is_known():
    bare = PlayedEpisodes(RANDOM, [Episode(0.5, 3, None, None, 0, 0)])
    outcome = AgentOutcome(
        bare, played([1.0] * 4, best=[1.0] * 4), {"text": played([0.0] * 4, BLANKED["text"])}
    )
    header, rows = result_table(outcome.evaluations, QUICK)
    assert header == ["4 episodes", "return", "share of best", "success", "length"]
    assert rows == [
        ["random", "0.500", "-", "-", "3.0"],
        ["after", "1.000 [1.000, 1.000]", "1.000 [1.000, 1.000]", "1.000 [1.000, 1.000]", "2.5 [1.5, 3.5]"],
        ["without the text", "0.000 [0.000, 0.000]", "-", "0.000 [0.000, 0.000]", "2.5 [1.5, 3.5]"],
    ]
