"""The loss of actor-critic against its two halves, and its special cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.objectives.a2c import a2c_loss
from mmft.objectives.policy import policy_gradient_loss
from mmft.objectives.value import td_loss
from tests.reference import objectives as reference

NAMES = ("logps", "advantages", "values", "targets")


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def random_batch(rows: int = 6, steps: int = 5) -> dict[str, Any]:
    batch: dict[str, Any] = dict(zip(NAMES, torch.randn(4, rows, steps, dtype=torch.float64), strict=True))
    return batch | {"mask": torch.arange(steps) < (torch.arange(rows) % steps + 1).unsqueeze(1)}


def test_a2c_loss_hand_computed():
    # actor -(2 * -1 + -3 * -0.5) / 2 = 0.25; critic ((3 - 2)^2 + (1 - -2)^2) / 2 = 5; 0.25 + 0.1 * 5 = 0.75
    loss = a2c_loss(row(-1, -0.5), row(2, -3), row(2, -2), row(3, 1), row(1, 1), alpha=0.1, num_tokens=2)
    torch.testing.assert_close(loss.item(), 0.75)


def test_a2c_loss_is_the_loop_over_tokens():
    batch = random_batch()
    columns = {name: batch[name][batch["mask"]].tolist() for name in NAMES}
    actor = zip(columns["logps"], columns["advantages"], strict=True)
    critic = zip(columns["values"], columns["targets"], strict=True)
    expected = reference.policy_gradient_loss(actor, num_tokens=17)
    expected += 0.3 * reference.td_loss(critic, num_tokens=17)
    torch.testing.assert_close(a2c_loss(**batch, alpha=0.3, num_tokens=17).item(), expected)


def test_alpha_zero_is_the_policy_gradient():
    batch = random_batch()
    expected = policy_gradient_loss(batch["logps"], batch["advantages"], batch["mask"], num_tokens=17)
    assert torch.equal(a2c_loss(**batch, alpha=0, num_tokens=17), expected)


def test_at_alpha_zero_a_critic_is_reached_and_stays():
    # a gradient of 0 rather than none, as distributed training asks of every trainable weight
    batch = random_batch()
    a2c_loss(**batch | {"values": batch["values"].requires_grad_()}, alpha=0, num_tokens=17).backward()
    assert batch["values"].grad.eq(0).all()


def test_without_a_critic_it_is_the_policy_gradient():
    batch = random_batch() | {"values": None, "targets": None}
    expected = policy_gradient_loss(batch["logps"], batch["advantages"], batch["mask"], num_tokens=17)
    assert torch.equal(a2c_loss(**batch, alpha=0, num_tokens=17), expected)


def test_without_advantages_it_is_the_td_loss():
    batch = random_batch()
    batch["advantages"] = torch.zeros_like(batch["advantages"])
    expected = td_loss(batch["values"], batch["targets"], batch["mask"], num_tokens=17)
    torch.testing.assert_close(a2c_loss(**batch, alpha=0.5, num_tokens=17), 0.5 * expected)


def test_a2c_loss_trains_the_policy_and_the_critic_alone():
    leaves = [torch.full((1, 2), float(i), requires_grad=True) for i in range(4)]
    a2c_loss(*leaves, torch.ones(1, 2), alpha=0.5, num_tokens=2).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, True, False]


def test_advantages_and_targets_made_of_values_pass_no_gradient_to_them():
    # A = target - V and target = R + V(s'), all of one critic: each value moves by -2 alpha A / N alone
    values, logps = row(1, 2, 4).requires_grad_(), row(-1, -1, -1).requires_grad_()
    targets = 3 + torch.cat([values[:, 1:], values[:, :1] * 0], 1)
    a2c_loss(logps, targets - values, values, targets, torch.ones(1, 3), alpha=0.5, num_tokens=2).backward()
    advantages = row(4, 5, -1)
    torch.testing.assert_close(values.grad, -advantages / 2)
    torch.testing.assert_close(logps.grad, -advantages / 2)


def test_a2c_loss_microbatches_add_up():
    batch = random_batch()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, 6))]
    added = sum(a2c_loss(**part, alpha=0.3, num_tokens=17) for part in parts)
    torch.testing.assert_close(added, a2c_loss(**batch, alpha=0.3, num_tokens=17))


def test_padding_changes_neither_loss_nor_gradient():
    batch = random_batch()
    expected, padded = a2c_loss(**batch, alpha=0.3, num_tokens=17), ~batch["mask"]
    for name in NAMES:
        batch[name][padded] = torch.nan
    leaves = [batch[name].requires_grad_() for name in ("logps", "values")]
    loss = a2c_loss(**batch, alpha=0.3, num_tokens=17)
    loss.backward()
    assert torch.equal(loss, expected)
    for leaf in leaves:
        assert leaf.grad[padded].eq(0).all()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("missing", ["values", "targets"])
def test_a_price_on_a_critic_that_is_not_there_is_refused(missing: str):
    batch = random_batch() | {missing: None}
    with pytest.raises(
        ValueError, match=f"`{missing}` is None, but `alpha` is 0.5. Without a critic it must"
    ):
        a2c_loss(**batch, alpha=0.5, num_tokens=17)
