"""The clipped surrogate and its diagnostics: hand numbers, a loop, gradients, invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.objectives.policy import approximate_kl, clip_fraction, clipped_policy_loss, mean_entropy
from tests.reference import objectives as reference

LOG2 = math.log(2)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def random_batch(rows: int = 6, steps: int = 5) -> dict[str, Any]:
    """Log-probs far enough apart that all four cases of clipping occur, with right padding."""
    old_logps, change, advantages = torch.randn(3, rows, steps, dtype=torch.float64)
    lengths = torch.arange(rows) % steps + 1
    mask = torch.arange(steps) < lengths.unsqueeze(1)
    return {
        "logps": old_logps + 0.5 * change,
        "old_logps": old_logps,
        "advantages": advantages,
        "mask": mask,
    }


def valid_tokens(batch: dict[str, Any]) -> list[tuple[float, ...]]:
    columns = [batch[name][batch["mask"]].tolist() for name in ("logps", "old_logps", "advantages")]
    return list(zip(*columns, strict=True))


def test_clipped_policy_loss_hand_computed():
    # ratios 2 and 0.5: min(2 * 1, 1.2 * 1) = 1.2; min(0.5 * -1, 0.8 * -1) = -0.8; -(1.2 - 0.8) / 2 = -0.2
    loss = clipped_policy_loss(
        row(LOG2, -LOG2), row(0, 0), row(1, -1), torch.ones(1, 2), clip=0.2, num_tokens=2
    )
    torch.testing.assert_close(loss.item(), -0.2)


def test_clipping_is_pessimistic():
    # the other two sides stay as they are: min(0.5 * 1, 0.8 * 1) = 0.5; min(2 * -1, 1.2 * -1) = -2
    loss = clipped_policy_loss(
        row(-LOG2, LOG2), row(0, 0), row(1, -1), torch.ones(1, 2), clip=0.2, num_tokens=2
    )
    torch.testing.assert_close(loss.item(), -(0.5 - 2) / 2)


def test_clipped_policy_loss_is_the_loop_over_tokens():
    batch = random_batch()
    loss = clipped_policy_loss(**batch, clip=0.2, num_tokens=17)
    expected = reference.clipped_policy_loss(valid_tokens(batch), clip=0.2, num_tokens=17)
    torch.testing.assert_close(loss.item(), expected)


def test_a_step_down_the_loss_makes_good_tokens_likelier():
    logps = row(-1, -1).requires_grad_()
    clipped_policy_loss(logps, row(-1, -1), row(1, -1), torch.ones(1, 2), clip=0.2, num_tokens=1).backward()
    # at ratio 1 the gradient is -advantage
    torch.testing.assert_close(logps.grad, row(-1, 1))


def test_clipped_tokens_get_no_gradient():
    logps = row(LOG2, -LOG2, -LOG2, LOG2).requires_grad_()
    old_logps, advantages = row(0, 0, 0, 0), row(1, -1, 1, -1)
    clipped_policy_loss(logps, old_logps, advantages, torch.ones(1, 4), clip=0.2, num_tokens=1).backward()
    # d(-ratio * A) / d logp = -ratio * A where the surrogate is not clipped
    torch.testing.assert_close(logps.grad, row(0, 0, -0.5, 2))


def test_clipped_policy_loss_only_trains_the_current_policy():
    leaves = [torch.zeros(1, 2, requires_grad=True) for _ in range(3)]
    clipped_policy_loss(*leaves, torch.ones(1, 2), clip=0.2, num_tokens=2).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False]


def test_clipped_policy_loss_microbatches_add_up():
    batch = random_batch()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, 6))]
    whole = clipped_policy_loss(**batch, clip=0.2, num_tokens=17)
    added = sum(clipped_policy_loss(**part, clip=0.2, num_tokens=17) for part in parts)
    torch.testing.assert_close(added, whole)


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
def test_padding_changes_neither_loss_nor_gradient(filling: float):
    batch = random_batch()
    expected = clipped_policy_loss(**batch, clip=0.2, num_tokens=17)
    for name in ("logps", "old_logps", "advantages"):
        batch[name][~batch["mask"]] = filling
    batch["logps"].requires_grad_()
    loss = clipped_policy_loss(**batch, clip=0.2, num_tokens=17)
    loss.backward()
    assert torch.equal(loss, expected)
    assert batch["logps"].grad[~batch["mask"]].eq(0).all()
    assert batch["logps"].grad.isfinite().all()


def test_the_loss_of_half_precision_logps_is_float32():
    half = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert clipped_policy_loss(half, half, half, half, clip=0.2, num_tokens=2).dtype == torch.float32


def test_the_count_may_be_a_tensor():
    batch = random_batch()
    torch.testing.assert_close(
        clipped_policy_loss(**batch, clip=0.2, num_tokens=torch.tensor(17)),
        clipped_policy_loss(**batch, clip=0.2, num_tokens=17),
    )


@pytest.mark.parametrize("culprit", ["old_logps", "advantages", "mask"])
@pytest.mark.parametrize("function", [clipped_policy_loss, clip_fraction])
def test_a_wrong_shape_is_named(function: Any, culprit: str):
    batch = random_batch()
    batch[culprit] = batch[culprit].unsqueeze(-1)
    with pytest.raises(ValueError, match=rf"`{culprit}` must have dims BxT; got shape \(6, 5, 1\)"):
        function(**batch, clip=0.2, num_tokens=17)


def test_clip_fraction_counts_the_side_the_advantage_points_to():
    # ratios 2, 0.5, 0.5, 2 with advantages 1, -1, 1, -1: two of four are clipped, padding is not counted
    fraction = clip_fraction(
        row(LOG2, -LOG2, -LOG2, LOG2, LOG2),
        row(0, 0, 0, 0, 0),
        row(1, -1, 1, -1, 1),
        row(1, 1, 1, 1, 0),
        clip=0.2,
        num_tokens=4,
    )
    assert fraction == 0.5


def test_clip_fraction_is_the_share_of_tokens_without_gradient():
    batch = random_batch()
    batch["logps"].requires_grad_()
    num_tokens = batch["mask"].sum()
    clipped_policy_loss(**batch, clip=0.2, num_tokens=num_tokens).backward()
    stopped = (batch["logps"].grad == 0) & batch["mask"]
    fraction = clip_fraction(**batch, clip=0.2, num_tokens=num_tokens)
    torch.testing.assert_close(fraction, stopped.sum() / num_tokens)
    assert 0 < fraction < 1


def test_approximate_kl_hand_computed():
    # ratios 2 and 1: (2 - 1 - log 2 + 0) / 2, the padded token not counted
    kl = approximate_kl(row(LOG2, 0, 9), row(0, 0, 0), row(1, 1, 0), num_tokens=2)
    torch.testing.assert_close(kl.item(), (1 - LOG2) / 2)


def test_approximate_kl_expected_under_the_old_policy_is_the_divergence():
    old, new = row(0.7, 0.2, 0.1), row(0.1, 0.3, 0.6)
    # each token as often as the old policy draws it: 7, 2 and 1 times of 10
    draws = torch.tensor([0] * 7 + [1] * 2 + [2])
    kl = approximate_kl(new.log()[:, draws], old.log()[:, draws], torch.ones(1, 10), num_tokens=10)
    torch.testing.assert_close(kl, (old * (old / new).log()).sum())


def test_diagnostics_hold_no_graph():
    batch = random_batch()
    batch["logps"].requires_grad_()
    assert not clip_fraction(**batch, clip=0.2, num_tokens=1).requires_grad
    assert not approximate_kl(batch["logps"], batch["old_logps"], batch["mask"], num_tokens=1).requires_grad


def test_mean_entropy_hand_computed_with_gradient():
    entropies = row(1, 3, 100).requires_grad_()
    mean = mean_entropy(entropies, row(1, 1, 0), num_tokens=2)
    mean.backward()
    assert mean.item() == 2
    assert entropies.grad.tolist() == [[0.5, 0.5, 0]]
