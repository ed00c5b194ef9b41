"""Rewards per token: where the score lands, what the KL costs, and what happens to the unjudged."""

from __future__ import annotations

import pytest
import torch

from mmft.estimators.rewards import judged_mask, penalize_missing_eos, per_token_rewards

MASK = torch.tensor([[1, 1, 1], [1, 1, 0]])


def test_per_token_rewards_hand_computed():
    # -0.5 * kl everywhere, plus the score at the last valid token: 10 - 0.5 * 4 = 8 and 20 - 0.5 * 8 = 16
    kl = torch.tensor([[1.0, -2.0, 4.0], [6.0, 8.0, torch.nan]])
    rewards = per_token_rewards(torch.tensor([10.0, 20.0]), kl, MASK, kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, 1.0, 8.0], [-3.0, 16.0, 0.0]]


def test_per_token_rewards_sum_to_score_minus_kl():
    kl, scores = torch.rand(2, 3, dtype=torch.float64), torch.rand(2, dtype=torch.float64)
    rewards = per_token_rewards(scores, kl, MASK, kl_coef=0.3)
    torch.testing.assert_close(rewards.sum(1), scores - 0.3 * (kl * MASK).sum(1))


def test_an_unjudged_completion_earns_nothing_and_changes_no_other():
    kl = torch.rand(2, 3)
    rewards = per_token_rewards(torch.tensor([torch.nan, 5.0]), kl, MASK, kl_coef=0.5)
    assert rewards[0].tolist() == [0, 0, 0]
    torch.testing.assert_close(
        rewards[1:], per_token_rewards(torch.tensor([5.0]), kl[1:], MASK[1:], kl_coef=0.5)
    )


def test_judged_mask_drops_the_tokens_of_unjudged_completions():
    scores = torch.tensor([torch.nan, 0.0])
    assert judged_mask(scores, MASK).tolist() == [[False, False, False], [True, True, False]]


def test_a_completion_without_tokens_earns_nothing():
    rewards = per_token_rewards(torch.tensor([5.0]), torch.zeros(1, 3), torch.zeros(1, 3), kl_coef=0.5)
    assert rewards.tolist() == [[0, 0, 0]]


def test_missing_eos_costs_the_penalty():
    scores = penalize_missing_eos(torch.tensor([2.0, 2.0]), torch.tensor([True, False]), penalty=1.5)
    assert scores.tolist() == [2.0, 0.5]


def test_scores_of_another_batch_are_named():
    with pytest.raises(ValueError, match="`kl` has B=2, but earlier arguments have B=3"):
        per_token_rewards(torch.zeros(3), torch.zeros(2, 3), MASK, kl_coef=0.5)
