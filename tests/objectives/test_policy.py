"""Losses of the policy and their diagnostics: hand numbers, a loop, gradients, invariances."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.objectives.policy import (
    approximate_kl,
    clip_fraction,
    clipped_policy_loss,
    mean_entropy,
    policy_gradient_loss,
    reward_weighted_loss,
)
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


def gradient_batch() -> dict[str, Any]:
    batch = random_batch()
    return {name: batch[name] for name in ("logps", "advantages", "mask")}


def weighted_batch() -> dict[str, Any]:
    batch = random_batch()
    return {"logps": batch["logps"], "weights": torch.rand(6, dtype=torch.float64), "mask": batch["mask"]}


PLAIN_LOSSES = pytest.mark.parametrize(
    ("loss_of", "make_batch"),
    [(policy_gradient_loss, gradient_batch), (reward_weighted_loss, weighted_batch)],
    ids=["policy gradient", "reward-weighted"],
)


def test_policy_gradient_loss_hand_computed():
    # -(2 * -1 + -3 * -0.5) / 2 = 0.25, the padded token not counted
    loss = policy_gradient_loss(row(-1, -0.5, 7), row(2, -3, 7), row(1, 1, 0), num_tokens=2)
    assert loss.item() == 0.25


def test_reward_weighted_loss_hand_computed():
    # weight 2 on log-probs -1 and -3, weight 0.5 on -4: -(2 * -4 + 0.5 * -4) / 3 = 10 / 3
    logps, mask = torch.tensor([[-1.0, -3.0], [-4.0, 9.0]]), torch.tensor([[1, 1], [1, 0]])
    loss = reward_weighted_loss(logps, torch.tensor([2.0, 0.5]), mask, num_tokens=3)
    torch.testing.assert_close(loss.item(), 10 / 3)


def test_policy_gradient_loss_is_the_loop_over_tokens():
    batch = gradient_batch()
    tokens = zip(*(batch[name][batch["mask"]].tolist() for name in ("logps", "advantages")), strict=True)
    expected = reference.policy_gradient_loss(tokens, num_tokens=17)
    torch.testing.assert_close(policy_gradient_loss(**batch, num_tokens=17).item(), expected)


def test_reward_weighted_loss_is_the_loop_over_samples():
    batch = weighted_batch()
    logps = [line[valid].tolist() for line, valid in zip(batch["logps"], batch["mask"], strict=True)]
    samples = zip(batch["weights"].tolist(), logps, strict=True)
    expected = reference.reward_weighted_loss(samples, num_tokens=17)
    torch.testing.assert_close(reward_weighted_loss(**batch, num_tokens=17).item(), expected)


def test_the_gradient_of_a_log_prob_is_minus_its_advantage():
    logps = row(-1, -2, -3).requires_grad_()
    policy_gradient_loss(logps, row(2, -3, 7), row(1, 1, 0), num_tokens=4).backward()
    assert logps.grad.tolist() == [[-0.5, 0.75, 0]]


def test_expected_over_actions_it_is_the_gradient_of_the_expected_reward():
    # grad_z sum_a pi(a) R(a), and that of the loss with every action weighted by its probability
    logits, rewards = torch.randn(4).double().requires_grad_(), torch.randn(4).double()
    (expected,) = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)
    probs = logits.softmax(0).detach()
    loss = policy_gradient_loss(
        logits.log_softmax(0)[None], (probs * (rewards - 3))[None], torch.ones(1, 4), num_tokens=1
    )
    (actual,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(-actual, expected)  # whatever the baseline: 3 here


def test_at_ratio_one_the_clipped_loss_has_the_same_gradient():
    batch = gradient_batch()
    logps = batch.pop("logps").requires_grad_()
    (expected,) = torch.autograd.grad(policy_gradient_loss(logps, **batch, num_tokens=17), logps)
    clipped = clipped_policy_loss(logps, logps.detach(), **batch, clip=0.2, num_tokens=17)
    torch.testing.assert_close(torch.autograd.grad(clipped, logps)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_all_weights_one_it_is_supervised_likelihood(dtype: torch.dtype):
    logits = torch.randn(6, 5, 11, dtype=dtype, requires_grad=True)
    ids, mask = torch.randint(11, (6, 5)), random_batch()["mask"]
    labels = ids.masked_fill(~mask, -100)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    logps = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    loss = reward_weighted_loss(logps, torch.ones(6, dtype=dtype), mask, num_tokens=mask.sum())
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], atol=1e-6, rtol=0)


def test_a_sample_of_weight_zero_changes_nothing():
    batch = weighted_batch()
    batch["weights"][2:] = 0
    few = {name: x[:2] for name, x in batch.items()}
    torch.testing.assert_close(
        reward_weighted_loss(**batch, num_tokens=17), reward_weighted_loss(**few, num_tokens=17)
    )


@PLAIN_LOSSES
def test_plain_losses_only_train_the_policy(loss_of: Any, make_batch: Any):
    leaves = [x.clone().requires_grad_(x.is_floating_point()) for x in make_batch().values()]
    loss_of(*leaves, num_tokens=2).backward()
    assert [leaf.grad is not None for leaf in leaves] == [True, False, False]


@PLAIN_LOSSES
def test_microbatches_of_plain_losses_add_up(loss_of: Any, make_batch: Any):
    batch = make_batch()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, 6))]
    added = sum(loss_of(**part, num_tokens=torch.tensor(17)) for part in parts)
    torch.testing.assert_close(added, loss_of(**batch, num_tokens=17))


@PLAIN_LOSSES
@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
def test_padding_changes_no_plain_loss_and_no_gradient(loss_of: Any, make_batch: Any, filling: float):
    batch = make_batch()
    expected = loss_of(**batch, num_tokens=17)
    padded = ~batch["mask"]
    for name in {"logps", "advantages"} & batch.keys():
        batch[name][padded] = filling
    batch["logps"].requires_grad_()
    loss = loss_of(**batch, num_tokens=17)
    loss.backward()
    assert torch.equal(loss, expected)
    assert batch["logps"].grad[padded].eq(0).all()
    assert batch["logps"].grad.isfinite().all()


def test_a_masked_sample_may_have_any_weight():
    batch = weighted_batch()
    batch["mask"][3] = False
    expected = reward_weighted_loss(**batch, num_tokens=17)
    batch["weights"][3] = torch.nan
    assert torch.equal(reward_weighted_loss(**batch, num_tokens=17), expected)


@PLAIN_LOSSES
def test_plain_losses_of_half_precision_are_float32(loss_of: Any, make_batch: Any):
    half = {name: x.bfloat16() for name, x in make_batch().items()}
    assert loss_of(**half, num_tokens=2).dtype == torch.float32


def test_weights_are_one_per_sample():
    batch = weighted_batch()
    with pytest.raises(ValueError, match=r"`weights` must have dims B; got shape \(6, 1\)"):
        reward_weighted_loss(batch["logps"], batch["weights"][:, None], batch["mask"], num_tokens=17)
    with pytest.raises(ValueError, match="`weights` has B=5, but earlier arguments have B=6"):
        reward_weighted_loss(batch["logps"], batch["weights"][:5], batch["mask"], num_tokens=17)


@pytest.mark.parametrize("culprit", ["advantages", "mask"])
def test_a_wrong_shape_of_the_policy_gradient_is_named(culprit: str):
    batch = gradient_batch()
    batch[culprit] = batch[culprit][:, :1]
    with pytest.raises(ValueError, match=f"`{culprit}` has T=1, but earlier arguments have T=5"):
        policy_gradient_loss(**batch, num_tokens=17)
