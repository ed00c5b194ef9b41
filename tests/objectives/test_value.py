"""Losses of the critic and what it explains: hand numbers, a loop, gradients, invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft._masking import last_valid
from mmft.estimators.advantages import td_errors
from mmft.estimators.returns import shift_values
from mmft.objectives.value import clipped_value_loss, explained_variance, td_loss, value_clip_fraction
from tests.reference import objectives as reference
from tests.reference.processes import on_two_processes


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def random_batch(rows: int = 6, steps: int = 5) -> dict[str, Any]:
    """Values moved by about 0.5 from the old ones, with right padding."""
    old_values, change, returns = torch.randn(3, rows, steps, dtype=torch.float64)
    mask = torch.arange(steps) < (torch.arange(rows) % steps + 1).unsqueeze(1)
    return {"values": old_values + 0.5 * change, "old_values": old_values, "returns": returns, "mask": mask}


def td_batch() -> dict[str, Any]:
    batch = random_batch()
    return {"values": batch["values"], "targets": batch["returns"], "mask": batch["mask"]}


def test_td_loss_hand_computed():
    # ((3 - 2)^2 + (1 - -2)^2) / 2 = 5, the padded token not counted
    assert td_loss(row(2, -2, 9), row(3, 1, 0), row(1, 1, 0), num_tokens=2).item() == 5


def test_td_loss_is_the_loop_over_tokens():
    batch = td_batch()
    tokens = zip(*(batch[name][batch["mask"]].tolist() for name in ("values", "targets")), strict=True)
    expected = reference.td_loss(tokens, num_tokens=17)
    torch.testing.assert_close(td_loss(**batch, num_tokens=17).item(), expected)


def test_td_loss_is_twice_the_clipped_value_loss_without_a_clip():
    batch = td_batch()
    unclipped = clipped_value_loss(
        batch["values"], batch["values"], batch["targets"], batch["mask"], clip=math.inf, num_tokens=17
    )
    torch.testing.assert_close(td_loss(**batch, num_tokens=17), 2 * unclipped)


def test_of_one_step_targets_it_is_the_mean_squared_td_error():
    rewards, values = torch.randn(2, 3, 4, dtype=torch.float64)
    mask, ends = torch.ones(3, 4, dtype=torch.bool), last_valid(torch.ones(3, 4))
    following = shift_values(values, mask)
    deltas = td_errors(rewards, values, following, terminated=ends, discount=0.9)
    loss = td_loss(values, rewards + 0.9 * following, mask, num_tokens=12)
    torch.testing.assert_close(loss, deltas.square().mean())


def test_the_value_inside_a_target_gets_no_gradient():
    # V(s) = 1, V(s') = 2, target = 3 + 0.5 * 2 = 4: only V(s) moves, by -2 * (4 - 1), up towards the target
    values = row(1, 2).requires_grad_()
    td_loss(values[:, :1], 3 + 0.5 * values[:, 1:], torch.ones(1, 1), num_tokens=1).backward()
    assert values.grad.tolist() == [[-6, 0]]


def test_td_loss_only_trains_the_critic():
    leaves = [torch.full((1, 2), float(i), requires_grad=True) for i in range(2)]
    td_loss(*leaves, torch.ones(1, 2), num_tokens=2).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False]


def test_td_loss_microbatches_add_up():
    batch = td_batch()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, 6))]
    added = sum(td_loss(**part, num_tokens=torch.tensor(17)) for part in parts)
    torch.testing.assert_close(added, td_loss(**batch, num_tokens=17))


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_padding_changes_neither_td_loss_nor_gradient(filling: float):
    batch = td_batch()
    expected, padded = td_loss(**batch, num_tokens=17), ~batch["mask"]
    batch["values"][padded] = batch["targets"][padded] = filling
    batch["values"].requires_grad_()
    loss = td_loss(**batch, num_tokens=17)
    loss.backward()
    assert torch.equal(loss, expected)
    assert batch["values"].grad[padded].eq(0).all()
    assert batch["values"].grad.isfinite().all()


def test_the_td_loss_of_half_precision_is_float32():
    half = torch.ones(1, 2, dtype=torch.bfloat16)
    assert td_loss(half, half, half, num_tokens=2).dtype == torch.float32


@pytest.mark.parametrize("culprit", ["targets", "mask"])
def test_a_wrong_shape_of_the_td_loss_is_named(culprit: str):
    batch = td_batch()
    batch[culprit] = batch[culprit].unsqueeze(-1)
    with pytest.raises(ValueError, match=rf"`{culprit}` must have dims BxT; got shape \(6, 5, 1\)"):
        td_loss(**batch, num_tokens=17)


def test_clipped_value_loss_hand_computed():
    # V 2 from 0 towards R 3, clipped to 0.5: max((2 - 3)^2, (0.5 - 3)^2) = 6.25
    # V -2 from 0 away from R 3, clipped to -0.5: max((-2 - 3)^2, (-0.5 - 3)^2) = 25; 0.5 * 31.25 / 2 = 7.8125
    loss = clipped_value_loss(row(2, -2), row(0, 0), row(3, 3), torch.ones(1, 2), clip=0.5, num_tokens=2)
    assert loss.item() == 7.8125


def test_clipped_value_loss_is_the_loop_over_tokens():
    batch = random_batch()
    columns = [batch[name][batch["mask"]].tolist() for name in ("values", "old_values", "returns")]
    expected = reference.clipped_value_loss(zip(*columns, strict=True), clip=0.2, num_tokens=17)
    torch.testing.assert_close(clipped_value_loss(**batch, clip=0.2, num_tokens=17).item(), expected)


def test_without_a_clip_it_is_half_the_squared_error():
    batch = random_batch()
    mask = batch["mask"]
    expected = 0.5 * (batch["values"] - batch["returns"])[mask].square().mean()
    torch.testing.assert_close(clipped_value_loss(**batch, clip=math.inf, num_tokens=mask.sum()), expected)


def test_a_value_that_went_far_enough_gets_no_gradient():
    values = row(2, -2, 0.1).requires_grad_()
    clipped_value_loss(
        values, row(0, 0, 0), row(3, 3, 3), torch.ones(1, 3), clip=0.5, num_tokens=1
    ).backward()
    # 0 where the clipped error is larger; else V - R: -2 - 3 and 0.1 - 3
    torch.testing.assert_close(values.grad, row(0, -5, -2.9))


def test_clipped_value_loss_only_trains_the_current_critic():
    leaves = [torch.full((1, 2), float(i), requires_grad=True) for i in range(3)]
    clipped_value_loss(*leaves, torch.ones(1, 2), clip=9, num_tokens=2).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False]


def test_clipped_value_loss_microbatches_add_up():
    batch = random_batch()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, 6))]
    added = sum(clipped_value_loss(**part, clip=0.2, num_tokens=17) for part in parts)
    torch.testing.assert_close(added, clipped_value_loss(**batch, clip=0.2, num_tokens=17))


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_padding_changes_neither_loss_nor_gradient(filling: float):
    batch = random_batch()
    expected = clipped_value_loss(**batch, clip=0.2, num_tokens=17)
    for name in ("values", "old_values", "returns"):
        batch[name][~batch["mask"]] = filling
    batch["values"].requires_grad_()
    loss = clipped_value_loss(**batch, clip=0.2, num_tokens=17)
    loss.backward()
    assert torch.equal(loss, expected)
    assert batch["values"].grad[~batch["mask"]].eq(0).all()
    assert batch["values"].grad.isfinite().all()


@pytest.mark.parametrize("culprit", ["old_values", "returns", "mask"])
@pytest.mark.parametrize("function", [clipped_value_loss, value_clip_fraction])
def test_a_wrong_shape_is_named(function: Any, culprit: str):
    batch = random_batch()
    batch[culprit] = batch[culprit][:1]
    with pytest.raises(ValueError, match=f"`{culprit}` has B=1, but earlier arguments have B=6"):
        function(**batch, clip=0.2, num_tokens=17)


def test_value_clip_fraction_hand_computed():
    # of the three hand-computed tokens above the first is held, the padded fourth is not counted: 1 of 3
    fraction = value_clip_fraction(
        row(2, -2, 0.1, 2), row(0, 0, 0, 0), row(3, 3, 3, 3), row(1, 1, 1, 0), clip=0.5, num_tokens=3
    )
    torch.testing.assert_close(fraction.item(), 1 / 3)


def test_explained_variance_hand_computed():
    # R 0, 2: variance 2.  R - V = 0, 1: variance 0.5.  1 - 0.5 / 2 = 0.75
    assert explained_variance(row(0, 1, 9), row(0, 2, -9), row(1, 1, 0)) == 0.75


def test_explained_variance_of_known_critics():
    returns, mask = torch.randn(3, 4, dtype=torch.float64), torch.ones(3, 4)
    assert explained_variance(returns, returns, mask) == 1
    # a constant offset is not variance
    torch.testing.assert_close(explained_variance(returns + 5, returns, mask).item(), 1.0)
    torch.testing.assert_close(explained_variance(torch.zeros_like(returns), returns, mask).item(), 0.0)
    torch.testing.assert_close(explained_variance(-returns, returns, mask).item(), -3.0)


def test_explained_variance_of_constant_returns_is_not_a_number():
    assert explained_variance(row(1, 2), row(3, 3), torch.ones(1, 2)).isnan()


def test_explained_variance_sees_all_processes():
    values, returns = torch.randn(2, 5, 4, dtype=torch.float64)
    mask, parts = torch.ones(5, 4), (slice(2), slice(2, 5))
    on_each = on_two_processes(
        lambda rank, reduce: explained_variance(
            values[parts[rank]], returns[parts[rank]], mask[parts[rank]], reduce=reduce
        )
    )
    whole = explained_variance(values, returns, mask)
    torch.testing.assert_close(on_each, [whole, whole])
