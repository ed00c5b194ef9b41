"""Statistics over valid tokens, on one process and on two."""

from __future__ import annotations

import math

import pytest
import torch

from mmft._masking import (
    last_valid,
    masked_mean,
    masked_sum,
    masked_var,
    masked_whiten,
    zero_outside,
)
from tests.reference.processes import on_two_processes

NAN = math.nan
X = torch.tensor([[1.0, 2.0, NAN], [6.0, NAN, NAN]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def test_sum_mean_and_variance_hand_computed():
    # 1 + 2 + 6 = 9; 9 / 3 = 3; squares around 3: 4 + 1 + 9 = 14; 14 / 2 = 7; 14 / 3 for all there is
    assert masked_sum(X, MASK) == 9
    assert masked_mean(X, MASK) == 3
    assert masked_var(X, MASK) == 7
    assert masked_var(X, MASK, unbiased=False).item() == pytest.approx(14 / 3)


def test_whitening_hand_computed():
    # mean 3, variance 7: (1 - 3) / sqrt 7, (2 - 3) / sqrt 7, (6 - 3) / sqrt 7
    expected = torch.tensor([[-2.0, -1.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64) / math.sqrt(7)
    torch.testing.assert_close(masked_whiten(X, MASK), expected)


def test_whitening_can_keep_the_mean():
    whitened = masked_whiten(X, MASK, shift_mean=False)
    torch.testing.assert_close(masked_mean(whitened, MASK).item(), 3.0)
    torch.testing.assert_close(whitened, zero_outside(masked_whiten(X, MASK) + 3, MASK))


def test_nothing_valid_gives_zeros():
    nothing = torch.zeros_like(MASK)
    assert masked_mean(X, nothing) == 0
    assert masked_var(X, nothing) == 0
    assert torch.equal(masked_whiten(X, nothing), torch.zeros_like(X))


def test_one_valid_token_whitens_to_zero():
    one = torch.tensor([[0, 1, 0], [0, 0, 0]])
    assert torch.equal(masked_whiten(X, one), torch.zeros_like(X))


def test_invalid_positions_get_exactly_zero_gradient():
    x = X.clone().requires_grad_()
    masked_mean(x, MASK).backward()
    # d mean / dx = 1/3 at each of the three valid positions
    torch.testing.assert_close(x.grad, MASK.double() / 3)


def test_half_precision_is_summed_in_float32():
    many = torch.full((1, 1000), 1.01, dtype=torch.bfloat16)
    total = masked_sum(many, torch.ones_like(many))
    assert total.dtype == torch.float32
    # bfloat16 has 1.0078125 for 1.01, and no 1007.8125 at all
    assert total.item() == 1007.8125


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"`mask` must have the shape of the tensor, \(2, 3\); got \(2, 1\)\."
    ):
        masked_mean(X, MASK[:, :1])


def test_last_valid_marks_one_position_per_row():
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    assert last_valid(mask).tolist() == [[False, False, True], [True, False, False], [False, False, False]]


def test_last_valid_looks_past_holes():
    assert last_valid(torch.tensor([[1, 0, 1, 0]])).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("rows_of_first", [1, 3], ids=["uneven", "second rank has none"])
def test_two_processes_whiten_like_one(shift_mean: bool, rows_of_first: int):
    x = torch.randn(3, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    parts = [(x[:rows_of_first], mask[:rows_of_first]), (x[rows_of_first:], mask[rows_of_first:])]
    whole = masked_whiten(x, mask, shift_mean=shift_mean)
    halves = on_two_processes(
        lambda rank, reduce: masked_whiten(*parts[rank], shift_mean=shift_mean, reduce=reduce)
    )
    torch.testing.assert_close(torch.cat(halves), whole)
