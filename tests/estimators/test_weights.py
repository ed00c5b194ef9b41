"""Weights of samples: every kind against hand numbers and a slow definition, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.errors import ConfigError, RewardError
from mmft.estimators.weights import BASELINES, WEIGHTINGS, check_weights, reward_weights
from tests.reference import estimators as reference

KINDS = [
    pytest.param({"weighting": weighting, "baseline": baseline}, id=f"{weighting}-{baseline}")
    for weighting in WEIGHTINGS
    for baseline in BASELINES
    if (weighting, baseline) != ("baseline", "none")
]


def weights_of(rewards: list[float], groups: list[int] | None = None, **settings: Any) -> list[float]:
    chosen = torch.tensor(groups or [0] * len(rewards))
    return reward_weights(torch.tensor(rewards, dtype=torch.float64), chosen, **settings).tolist()


def random_rewards(size: int = 30) -> tuple[Tensor, Tensor]:
    """Rewards from 0 to 1 with ties, some unjudged, in mixed groups."""
    rewards = torch.randint(9, (size,)).double() / 8
    rewards[torch.rand(size) < 0.2] = torch.nan
    return rewards, torch.randint(6, (size,))


def test_raw_rewards_hand_computed():
    assert weights_of([0.0, 2.0, torch.nan, 0.5]) == [0, 2, 0, 0.5]


def test_rewards_minus_baseline_hand_computed():
    # all four: mean 3; by prompt: means 2 and 4
    rewards, groups = [1.0, 3.0, 6.0, 2.0], [0, 0, 1, 1]
    assert weights_of(rewards, groups, weighting="baseline", baseline="batch") == [-2, 0, 3, -1]
    assert weights_of(rewards, groups, weighting="baseline", baseline="group") == [-1, 1, 2, -2]


def test_exponential_weights_hand_computed():
    # exp(0), exp(log 2 / 0.5) = 4, unjudged: mean 2.5
    weights = weights_of([0.0, 0.6931471805599453, torch.nan], weighting="exponential", tau=0.5)
    assert weights == pytest.approx([0.4, 1.6, 0])


def test_exponential_weights_compare_within_a_prompt_where_asked():
    # over their prompt's mean all differ by 1 or -1, so that 10 and 0 of a hard prompt weigh as much
    rewards, groups = [0.0, 2.0, 10.0, 12.0], [0, 0, 1, 1]
    weights = weights_of(rewards, groups, weighting="exponential", baseline="group")
    assert weights[:2] == weights[2:]
    assert weights[1] / weights[0] == pytest.approx(torch.e**2)


def test_the_top_fraction_hand_computed():
    # 5 judged, a fraction of 0.5: ceil(2.5) = 3 of them; of the three equal the first two
    rewards = [1.0, 9.0, torch.nan, 1.0, 0.0, 1.0]
    assert weights_of(rewards, weighting="top_fraction", top_fraction=0.5) == [1, 1, 0, 1, 0, 0]


def test_the_top_fraction_above_a_baseline_is_the_best_surprises():
    # 6 is a little below the mean of its easy prompt, 2 well above that of its hard one
    rewards, groups = [2.0, 0.0, 6.0, 7.0], [0, 0, 1, 1]
    assert weights_of(rewards, groups, weighting="top_fraction", top_fraction=0.25) == [0, 0, 0, 1]
    by_prompt = weights_of(rewards, groups, weighting="top_fraction", top_fraction=0.25, baseline="group")
    assert by_prompt == [1, 0, 0, 0]


@pytest.mark.parametrize("settings", KINDS)
def test_every_kind_is_its_definition_sample_by_sample(settings: dict[str, Any]):
    rewards, groups = random_rewards()
    weights = reward_weights(rewards, groups, **settings, tau=0.3, top_fraction=0.3)
    expected = reference.reward_weights(
        rewards.tolist(), groups.tolist(), **settings, tau=0.3, top_fraction=Fraction(3, 10)
    )
    torch.testing.assert_close(weights.tolist(), expected)


@pytest.mark.parametrize("settings", KINDS)
def test_an_unjudged_sample_has_no_weight_and_moves_no_other(settings: dict[str, Any]):
    rewards, groups = random_rewards()
    judged = ~rewards.isnan()
    weights = reward_weights(rewards, groups, **settings)
    assert weights[~judged].eq(0).all()
    torch.testing.assert_close(weights[judged], reward_weights(rewards[judged], groups[judged], **settings))


@pytest.mark.parametrize("settings", KINDS)
def test_weights_pass_no_gradient_to_rewards(settings: dict[str, Any]):
    rewards, groups = random_rewards()
    assert not reward_weights(rewards.requires_grad_(), groups, **settings).requires_grad


@pytest.mark.parametrize("settings", KINDS)
def test_nobody_judged_and_nobody_there_have_no_weight(settings: dict[str, Any]):
    unjudged, groups = torch.full((3,), torch.nan), torch.tensor([0, 0, 1])
    assert reward_weights(unjudged, groups, **settings).tolist() == [0, 0, 0]
    assert reward_weights(unjudged[:0], groups[:0], **settings).shape == (0,)


@pytest.mark.parametrize("baseline", BASELINES)
def test_exponential_weights_have_mean_one_over_the_judged(baseline: str):
    rewards, groups = random_rewards()
    weights = reward_weights(rewards, groups, weighting="exponential", baseline=baseline, tau=0.1)
    assert float(weights[~rewards.isnan()].mean()) == pytest.approx(1)


def test_exponential_weights_do_not_feel_an_offset_of_all_rewards():
    rewards, groups = random_rewards()
    expected = reward_weights(rewards, groups, weighting="exponential", tau=0.2)
    torch.testing.assert_close(
        reward_weights(rewards + 5, groups, weighting="exponential", tau=0.2), expected
    )
    batch = reward_weights(rewards, groups, weighting="exponential", tau=0.2, baseline="batch")
    torch.testing.assert_close(batch, expected)


@pytest.mark.parametrize("tau", [1e-3, 1e-30, 1e-300])
def test_a_tiny_tau_keeps_the_best_and_overflows_nothing(tau: float):
    rewards = torch.tensor([-500.0, 100.0, 500.0, 500.0])
    weights = reward_weights(rewards, torch.zeros(4, dtype=torch.long), weighting="exponential", tau=tau)
    assert weights.tolist() == [0, 0, 2, 2]


def test_the_best_is_found_among_the_judged_alone():
    # all far below 0, where an unjudged sample stands
    weights = weights_of([-900.0, torch.nan, -800.0], weighting="exponential", tau=0.5)
    assert weights == pytest.approx([0, 0, 2])


def test_a_huge_tau_is_supervised_likelihood():
    rewards, groups = random_rewards()
    weights = reward_weights(rewards, groups, weighting="exponential", tau=1e12)
    torch.testing.assert_close(weights, (~rewards.isnan()).double())


@pytest.mark.parametrize(
    ("size", "fraction", "kept"),
    [(30, 0.1, 3), (30, 0.11, 4), (10, 1.0, 10), (3, 1e-12, 1), (1, 0.5, 1), (100, 0.07, 7)],
)
def test_exactly_the_asked_share_is_kept_whatever_the_rounding(size: int, fraction: float, kept: int):
    # 0.1 * 30 is 3.0000000000000004 in binary
    rewards, groups = torch.ones(size), torch.zeros(size, dtype=torch.long)
    weights = reward_weights(rewards, groups, weighting="top_fraction", top_fraction=fraction)
    assert weights.tolist() == [1] * kept + [0] * (size - kept)


@pytest.mark.parametrize("baseline", ["batch", "group"])
def test_equal_rewards_minus_their_baseline_are_exactly_nothing(baseline: str):
    rewards, groups = torch.full((6,), 0.1), torch.tensor([0, 0, 0, 1, 1, 1])
    weights = reward_weights(rewards, groups, weighting="baseline", baseline=baseline)
    assert weights.tolist() == [0] * 6


def test_a_negative_raw_reward_is_refused_unless_asked_for():
    message = r"`rewards\[2\]` is -0.5, but `weighting: reward` .* `allow_negative: true`"
    with pytest.raises(ConfigError, match=message):
        weights_of([1.0, torch.nan, -0.5, -3.0])
    assert weights_of([1.0, -0.5], allow_negative=True) == [1, -0.5]


@pytest.mark.parametrize("settings", [kind for kind in KINDS if "reward-" not in (kind.id or "")])
def test_other_kinds_take_negative_rewards(settings: dict[str, Any]):
    rewards, groups = random_rewards()
    expected = reward_weights(rewards, groups, **settings, tau=0.3)
    torch.testing.assert_close(reward_weights(rewards - 1, groups, **settings, tau=0.3), expected)


@pytest.mark.parametrize("settings", KINDS)
@pytest.mark.parametrize("infinite", [torch.inf, -torch.inf])
def test_an_infinite_reward_is_refused(settings: dict[str, Any], infinite: float):
    with pytest.raises(
        RewardError, match=rf"`rewards\[1\]` is {infinite}. Rewards must be finite; NaN stands"
    ):
        weights_of([0.0, infinite], **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "rank"}, "`weighting` must be one of reward, baseline, .*; got 'rank'"),
        ({"baseline": "mean"}, "`baseline` must be one of none, batch, group; got 'mean'"),
        ({"weighting": "baseline"}, "`baseline` is 'none'. Set it to 'batch' or 'group'"),
        ({"tau": 0.0}, "`tau` must be a number > 0; got 0.0"),
        ({"tau": -1.0}, "`tau` must be a number > 0; got -1.0"),
        ({"tau": torch.inf}, "`tau` must be a number > 0; got inf"),
        ({"tau": torch.nan}, "`tau` must be a number > 0; got nan"),
        ({"top_fraction": 0.0}, "`top_fraction` must be above 0 and at most 1; got 0.0"),
        ({"top_fraction": 1.5}, "`top_fraction` must be above 0 and at most 1; got 1.5"),
        ({"top_fraction": torch.nan}, "`top_fraction` must be above 0 and at most 1; got nan"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        weights_of([1.0, 2.0], **settings)


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (
            "reward",
            "The weights sum to 0: `weighting` is 'reward' and every reward is 0 or missing.*exponential",
        ),
        ("baseline", "'baseline' and every reward equals its baseline"),
        ("exponential", "'exponential' and every reward is missing"),
        ("top_fraction", "'top_fraction' and every reward is missing"),
    ],
)
def test_weights_that_teach_nothing_are_refused(weighting: str, message: str):
    with pytest.raises(RewardError, match=message):
        check_weights(torch.zeros(3), weighting=weighting)


def test_weights_that_cancel_still_teach():
    check_weights(torch.tensor([-1.0, 1.0]), weighting="baseline")
    check_weights(torch.tensor([0.0, 0.0, 1e-9]), weighting="reward")


def test_half_precision_rewards_give_float32_weights():
    rewards = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    assert reward_weights(rewards, torch.zeros(2, dtype=torch.long)).dtype == torch.float32


def test_one_group_number_per_reward():
    with pytest.raises(ValueError, match="`groups` has N=2, but earlier arguments have N=3"):
        reward_weights(torch.zeros(3), torch.zeros(2, dtype=torch.long))
