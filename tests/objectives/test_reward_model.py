"""Losses of reward models: hand numbers, plain loops, gradients, invariances, limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.objectives.reward_model import (
    bradley_terry_loss,
    centering_loss,
    heteroscedastic_loss,
    rating_loss,
)


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_numbers(count: int, rows: int = 6) -> list[Tensor]:
    return list(torch.randn(count, rows, dtype=torch.float64))


def test_bradley_terry_hand_computed():
    # r_c - r_r = log 3: sigmoid = 3/4; = 0: 1/2.  -(log 3/4 + log 1/2) / 2 = log(8/3) / 2
    loss = bradley_terry_loss(numbers(math.log(3), 1), numbers(0, 1), num_pairs=2)
    assert loss.item() == pytest.approx(math.log(8 / 3) / 2, abs=1e-12)


def test_a_margin_is_taken_off_the_distance():
    # 2 log 3 with a margin of log 3 is log 3 again: -log 3/4
    loss = bradley_terry_loss(numbers(2 * math.log(3)), numbers(0), numbers(math.log(3)), num_pairs=1)
    assert loss.item() == pytest.approx(math.log(4 / 3), abs=1e-12)


def test_bradley_terry_is_the_loop_over_pairs():
    chosen, rejected, margin = random_numbers(3)
    pairs = zip(chosen.tolist(), rejected.tolist(), margin.tolist(), strict=True)
    expected = sum(math.log(1 + math.exp(-(c - r - m))) for c, r, m in pairs) / 9
    assert bradley_terry_loss(chosen, rejected, margin, num_pairs=9).item() == pytest.approx(expected)


def test_bradley_terry_sees_differences_only():
    chosen, rejected, _ = random_numbers(3)
    torch.testing.assert_close(
        bradley_terry_loss(chosen + 7, rejected + 7, num_pairs=6),
        bradley_terry_loss(chosen, rejected, num_pairs=6),
    )


def test_bradley_terry_pushes_both_sides_by_the_probability_of_an_error():
    chosen, rejected = numbers(math.log(3)).requires_grad_(), numbers(0).requires_grad_()
    bradley_terry_loss(chosen, rejected, num_pairs=1).backward()
    # d/dx -log sigmoid(x) = -sigmoid(-x) = -1/4
    torch.testing.assert_close(chosen.grad, numbers(-0.25))
    torch.testing.assert_close(rejected.grad, numbers(0.25))


@pytest.mark.parametrize(("difference", "expected"), [(1e4, 0.0), (-1e4, 1e4)])
def test_bradley_terry_far_away_is_neither_infinite_nor_rounded(difference: float, expected: float):
    chosen = torch.tensor([difference], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(1), num_pairs=1)
    loss.backward()
    assert loss.item() == expected
    assert chosen.grad.isfinite().all()


def test_centering_hand_computed():
    # (1 + 2)^2 + (3 - 3)^2 = 9, by 2 pairs
    assert centering_loss(numbers(1, 3), numbers(2, -3), num_pairs=2).item() == 4.5


def test_rating_loss_hand_computed():
    # (3 - 1)^2 + (0 - 1)^2 = 5, by 2 samples
    predictions = numbers(1, 1).requires_grad_()
    loss = rating_loss(predictions, numbers(3, 0), num_samples=2)
    loss.backward()
    assert loss.item() == 2.5
    torch.testing.assert_close(predictions.grad, numbers(-2, 1))  # 2 (y_hat - y) / N


def test_heteroscedastic_hand_computed():
    # error 2, sigma^2 = 4: 4 / 8 + log(4) / 2;   error 1, sigma^2 = 1: 1/2 + 0
    loss = heteroscedastic_loss(numbers(1, 0), numbers(math.log(4), 0), numbers(3, 1), num_samples=2)
    assert loss.item() == pytest.approx((0.5 + math.log(2) + 0.5) / 2, abs=1e-12)


def test_heteroscedastic_is_the_loop_over_samples():
    means, log_variances, ratings = random_numbers(3)
    rows = zip(means.tolist(), log_variances.tolist(), ratings.tolist(), strict=True)
    expected = sum((y - m) ** 2 / (2 * math.exp(s)) + math.log(math.exp(s)) / 2 for m, s, y in rows) / 4
    loss = heteroscedastic_loss(means, log_variances, ratings, num_samples=4)
    assert loss.item() == pytest.approx(expected)


def test_with_variance_one_the_error_counts_half():
    means, _, ratings = random_numbers(3)
    torch.testing.assert_close(
        heteroscedastic_loss(means, torch.zeros_like(means), ratings, num_samples=6),
        0.5 * rating_loss(means, ratings, num_samples=6),
    )


def test_the_best_variance_is_the_squared_error():
    error = numbers(0.1, 1, 7)
    log_variances = (2 * torch.log(error)).requires_grad_()
    heteroscedastic_loss(torch.zeros_like(error), log_variances, error, num_samples=1).backward()
    torch.testing.assert_close(log_variances.grad, torch.zeros_like(error))


def test_a_noisy_sample_pulls_less():
    means = numbers(0, 0).requires_grad_()
    heteroscedastic_loss(means, numbers(0, math.log(10)), numbers(1, 1), num_samples=1).backward()
    torch.testing.assert_close(means.grad, numbers(-1, -0.1))  # (y_hat - y) / sigma^2


LOSSES: dict[str, tuple[Callable[..., Tensor], str, int]] = {
    "bradley_terry": (bradley_terry_loss, "num_pairs", 3),
    "centering": (centering_loss, "num_pairs", 2),
    "rating": (rating_loss, "num_samples", 2),
    "heteroscedastic": (heteroscedastic_loss, "num_samples", 3),
}
TARGETS = {"bradley_terry": [2], "centering": [], "rating": [1], "heteroscedastic": [2]}


@pytest.mark.parametrize("name", LOSSES)
def test_microbatches_add_up(name: str):
    loss, count, arity = LOSSES[name]
    columns = random_numbers(arity)
    parts = [[column[rows] for column in columns] for rows in (slice(2), slice(2, 6))]
    added = sum(loss(*part, **{count: 6}) for part in parts)
    torch.testing.assert_close(added, loss(*columns, **{count: 6}))


@pytest.mark.parametrize("name", LOSSES)
def test_only_predictions_get_gradients(name: str):
    loss, count, arity = LOSSES[name]
    leaves = [column.requires_grad_() for column in random_numbers(arity)]
    loss(*leaves, **{count: 6}).backward()
    assert [i for i, leaf in enumerate(leaves) if leaf.grad is None] == TARGETS[name]


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_added_up_in_float32(name: str):
    loss, count, arity = LOSSES[name]
    columns = [column.to(torch.bfloat16) for column in random_numbers(arity)]
    result = loss(*columns, **{count: 6})
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, loss(*[c.float() for c in columns], **{count: 6}))


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda x, wrong: bradley_terry_loss(x, wrong, num_pairs=1), "rejected"),
        (lambda x, wrong: bradley_terry_loss(x, x, wrong, num_pairs=1), "margin"),
        (lambda x, wrong: centering_loss(x, wrong, num_pairs=1), "rejected"),
        (lambda x, wrong: rating_loss(x, wrong, num_samples=1), "ratings"),
        (lambda x, wrong: heteroscedastic_loss(x, wrong, x, num_samples=1), "log_variances"),
        (lambda x, wrong: heteroscedastic_loss(x, x, wrong, num_samples=1), "ratings"),
    ],
)
def test_a_column_is_not_broadcast_to_a_square(call: Any, culprit: str):
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=f"`{culprit}` must have dims B; got shape"):
        call(x, x[:, None])
    with pytest.raises(ValueError, match=f"`{culprit}` has B=2"):
        call(x, x[:2])
