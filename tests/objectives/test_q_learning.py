"""Q-learning against hand numbers, the table update of the books, value iteration and published numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.objectives.q_learning import best_next_values, q_learning_loss, q_learning_targets


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def flags(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.bool)


def random_batch(rows: int = 7, actions: int = 4) -> dict[str, Any]:
    """Two rows are masked; their actions are no actions."""
    mask = torch.arange(rows) % 4 != 1
    chosen = torch.where(mask, torch.arange(rows) % actions, -1)
    q, targets = torch.randn(rows, actions, dtype=torch.float64), torch.randn(rows, dtype=torch.float64)
    return {"q": q, "actions": chosen, "targets": 2 * targets, "mask": mask}


def slow_targets(batch: dict[str, Any]) -> list[float]:
    """Sample by sample and case by case."""
    targets = []
    columns = [column.tolist() for column in batch.values()]
    for reward, next_q, terminated, discount, legal, chooser in zip(*columns, strict=True):
        allowed = [action for action in range(len(next_q)) if legal[action]]
        best = max(allowed, key=chooser.__getitem__, default=None)
        worthless = terminated or best is None
        targets.append(reward if worthless else reward + discount * next_q[best])
    return targets


def slow_loss(batch: dict[str, Any], *, num_samples: float, huber_delta: float = math.inf) -> float:
    """Sample by sample; beyond `huber_delta` the tangent of the square continues it."""
    total = 0.0
    for q, action, target, valid in zip(*(batch[name].tolist() for name in batch), strict=True):
        if not valid:
            continue
        error = abs(target - q[action])
        if error <= huber_delta:
            total += error**2
        else:
            total += huber_delta**2 + 2 * huber_delta * (error - huber_delta)
    return total / num_samples


def test_the_best_next_value_is_the_largest_legal_one():
    next_q = torch.tensor([[1.0, 5.0, 3.0], [-4.0, -2.0, -1.0]])
    legal = torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    assert best_next_values(next_q).tolist() == [5, -1]
    assert best_next_values(next_q, legal=legal).tolist() == [3, -2]


def test_a_chooser_decides_and_the_value_is_the_other_networks():
    # the chooser prefers action 2, then of the legal ones action 0; the values are 3 and 1
    next_q, chooser = row(1, 5, 3), row(20, 10, 30)
    assert best_next_values(next_q, chooser=chooser).tolist() == [3]
    assert best_next_values(next_q, chooser=chooser, legal=flags(1, 1, 0)[None]).tolist() == [1]


def test_of_equal_choices_the_first_counts():
    assert best_next_values(row(1, 2, 3), chooser=row(0, 7, 7)).tolist() == [2]


@pytest.mark.parametrize("filling", [torch.inf, -torch.inf, torch.nan])
def test_an_illegal_next_action_changes_nothing(filling: float):
    next_q, chooser = torch.randn(2, 30, 5, dtype=torch.float64)
    legal = torch.rand(30, 5) < 0.6
    legal[:, 0] = True
    expected = best_next_values(next_q, legal=legal), best_next_values(next_q, legal=legal, chooser=chooser)
    next_q[~legal] = chooser[~legal] = filling
    assert torch.equal(best_next_values(next_q, legal=legal), expected[0])
    assert torch.equal(best_next_values(next_q, legal=legal, chooser=chooser), expected[1])


@pytest.mark.parametrize("filling", [7.0, torch.nan])
def test_a_state_without_a_legal_action_is_worth_zero(filling: float):
    next_q = torch.full((2, 3), filling)
    next_q[0, 1] = 4
    legal = torch.tensor([[0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    assert best_next_values(next_q, legal=legal).tolist() == [4, 0]
    assert best_next_values(next_q, legal=legal, chooser=next_q).tolist() == [4, 0]


def test_next_values_are_float32_at_least_and_carry_no_gradient():
    half = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    values = best_next_values(half, chooser=half)
    assert values.dtype == torch.float32
    assert not values.requires_grad


@pytest.mark.parametrize("culprit", ["legal", "chooser"])
def test_a_wrong_shape_beside_the_next_values_is_named(culprit: str):
    with pytest.raises(ValueError, match=f"`{culprit}` has A=2, but earlier arguments have A=3"):
        best_next_values(row(1, 2, 3), **{culprit: row(1, 2)})


def test_targets_hand_computed():
    # 1 + 0.5 * max(2, 6) = 4;  -1 + 0.5 * max(3, -8) = 0.5;  after a terminated step the reward alone: 2
    targets = q_learning_targets(
        vector(1, -1, 2),
        torch.tensor([[2.0, 6.0], [3.0, -8.0], [9.0, torch.nan]]),
        terminated=flags(0, 0, 1),
        discount=0.5,
    )
    assert targets.tolist() == [4, 0.5, 2]


def test_targets_are_the_loop_over_samples():
    batch = {
        "rewards": torch.randn(40, dtype=torch.float64),
        "next_q": torch.randn(40, 3, dtype=torch.float64),
        "terminated": torch.rand(40) < 0.3,
        "discount": torch.rand(40, dtype=torch.float64),
        "legal": torch.rand(40, 3) < 0.5,
        "chooser": torch.randn(40, 3, dtype=torch.float64),
    }
    torch.testing.assert_close(q_learning_targets(**batch), vector(*slow_targets(batch)))


def test_targets_do_not_depend_on_the_order_of_actions():
    next_q, chooser = torch.randn(2, 20, 5, dtype=torch.float64)
    rewards, legal, order = torch.randn(20).double(), torch.rand(20, 5) < 0.7, torch.randperm(5)
    setting = {"terminated": torch.zeros(20, dtype=torch.bool), "discount": 0.9}
    targets = q_learning_targets(rewards, next_q, legal=legal, chooser=chooser, **setting)
    permuted = q_learning_targets(
        rewards, next_q[:, order], legal=legal[:, order], chooser=chooser[:, order], **setting
    )
    assert torch.equal(permuted, targets)


def test_whole_number_rewards_leave_the_discount_its_precision():
    setting = {"terminated": flags(0), "discount": 0.9}
    assert q_learning_targets(torch.tensor([1]), row(1, 3), **setting).item() == 1 + 0.9 * 3
    half = torch.ones(1, dtype=torch.bfloat16)
    assert q_learning_targets(half, half[None], **setting).dtype == torch.float32


def test_targets_carry_no_gradient():
    next_q = row(1, 2).requires_grad_()
    rewards = vector(1).requires_grad_()
    targets = q_learning_targets(rewards, next_q, terminated=flags(0), discount=0.9, chooser=next_q)
    assert not targets.requires_grad


@pytest.mark.parametrize(
    ("culprit", "value", "message"),
    [
        ("next_q", torch.zeros(3), "`next_q` must have dims BxA; got shape"),
        ("terminated", torch.zeros(2, 1), "`terminated` must have dims B; got shape"),
        ("discount", torch.ones(2, 1), "`discount` must have dims B; got shape"),
        ("discount", torch.ones(1), "`discount` has B=1, but earlier arguments have B=2"),
        ("legal", torch.ones(2, 2), "`legal` has A=2, but earlier arguments have A=3"),
    ],
)
def test_a_wrong_shape_of_the_targets_is_named(culprit: str, value: Tensor, message: str):
    batch: dict[str, Any] = {"rewards": torch.zeros(2), "next_q": torch.zeros(2, 3), "discount": 0.9}
    batch |= {"terminated": torch.zeros(2, dtype=torch.bool), culprit: value}
    with pytest.raises(ValueError, match=message):
        q_learning_targets(**batch)


# From the unit tests of TRFL and rlax (value_learning_test.py at a8ab342), both Apache-2.0: errors are 0
# and 1. Beside the second pair of next values stands the selector of double Q-learning.
PUBLISHED = [
    (torch.tensor([[0.0, 1.0, 0.0], [1.0, 2.0, 0.0]]), None),
    (
        torch.tensor([[99.0, 1.0, 98.0], [91.0, 2.0, 66.0]]),
        torch.tensor([[2.0, 10.0, 1.0], [11.0, 20.0, 1.0]]),
    ),
]


@pytest.mark.parametrize(("next_q", "chooser"), PUBLISHED)
def test_published_errors_of_trfl_and_rlax(next_q: Tensor, chooser: Tensor | None):
    q, actions = torch.tensor([[1.0, 1.0, 0.0], [1.0, 2.0, 0.0]]), torch.tensor([0, 1])
    targets = q_learning_targets(
        torch.ones(2), next_q, terminated=flags(0, 0), discount=torch.tensor([0.0, 1.0]), chooser=chooser
    )
    assert (targets - q.gather(1, actions[:, None]).squeeze(1)).tolist() == [0, 1]
    assert q_learning_loss(q, actions, targets, num_samples=1).item() == 1


def test_q_learning_loss_hand_computed():
    # ((3 - 1)^2 + (0.5 - 1)^2) / 2 = 2.125; the masked third sample is not counted
    q, targets = torch.tensor([[1.0, 9.0], [9.0, 1.0], [0.0, 0.0]]), vector(3, 0.5, 100)
    actions = torch.tensor([0, 1, 0])
    assert q_learning_loss(q, actions, targets, num_samples=2, mask=flags(1, 1, 0)).item() == 2.125


def test_the_huber_loss_hand_computed():
    # k = 1: |delta| = 2 is outside, 1 * (2 * 2 - 1) = 3; |delta| = 0.5 inside, 0.25; |delta| = 1 is both, 1
    q, actions = torch.zeros(3, 2), torch.tensor([0, 1, 0])
    loss = q_learning_loss(q, actions, vector(2, -0.5, -1), num_samples=1, huber_delta=1.0)
    assert loss.item() == 4.25


@pytest.mark.parametrize("huber_delta", [None, 0.3, 1.0, 2.0])
def test_the_loss_is_the_loop_over_samples(huber_delta: float | None):
    batch = random_batch()
    loss = q_learning_loss(**batch, num_samples=5, huber_delta=huber_delta)
    expected = slow_loss(batch, num_samples=5, huber_delta=huber_delta or math.inf)
    torch.testing.assert_close(loss.item(), expected)


@pytest.mark.parametrize("huber_delta", [100.0, math.inf])
def test_small_errors_count_as_in_the_squared_loss(huber_delta: float):
    batch = random_batch()
    q = batch["q"].requires_grad_()
    losses = [q_learning_loss(**batch, num_samples=5, huber_delta=each) for each in (None, huber_delta)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, q) for loss in losses))


def test_the_gradient_of_the_huber_loss_is_bounded():
    # -2 delta within k = 1, -2 k sign(delta) beyond, over N = 2:  delta 0.5, -40, 3 give -0.5, 1, -1
    q = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    actions = torch.zeros(3, dtype=torch.long)
    q_learning_loss(q, actions, vector(0.5, -40, 3), num_samples=2, huber_delta=1.0).backward()
    assert q.grad.flatten().tolist() == [-0.5, 1, -1]


def test_only_the_value_of_the_chosen_action_gets_a_gradient():
    # -2 * (target - Q) / N:  -2 * (3 - 1) / 2 = -2 for action 1 of the first state, -2 * (0 - 2) / 2 = 2
    q = torch.tensor([[5.0, 1.0, 5.0], [2.0, 5.0, 5.0]], requires_grad=True)
    targets = torch.tensor([3.0, 0.0], requires_grad=True)
    q_learning_loss(q, torch.tensor([1, 0]), targets, num_samples=2).backward()
    assert q.grad.tolist() == [[0, -2, 0], [2, 0, 0]]
    assert targets.grad is None


def test_the_value_inside_a_target_gets_no_gradient():
    # both states are rows of one table: target 3 + 0.5 * 2 = 4, so only Q(0, 0) = 1 moves, by -2 * (4 - 1)
    table = torch.tensor([[1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    targets = 3 + 0.5 * table[1:].amax(dim=1)
    q_learning_loss(table[:1], torch.tensor([0]), targets, num_samples=1).backward()
    assert table.grad.tolist() == [[-6, 0], [0, 0]]


@pytest.mark.parametrize("huber_delta", [None, 0.5])
def test_microbatches_add_up(huber_delta: float | None):
    batch = random_batch()
    parts = [{name: x[rows] for name, x in batch.items()} for rows in (slice(2), slice(2, 7))]
    count = torch.tensor(5)
    added = sum(q_learning_loss(**part, num_samples=count, huber_delta=huber_delta) for part in parts)
    torch.testing.assert_close(added, q_learning_loss(**batch, num_samples=5, huber_delta=huber_delta))


@pytest.mark.parametrize("huber_delta", [None, 0.5])
@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_masked_samples_change_neither_loss_nor_gradient(filling: float, huber_delta: float | None):
    batch = random_batch()
    expected, masked = q_learning_loss(**batch, num_samples=5, huber_delta=huber_delta), ~batch["mask"]
    batch["q"][masked] = batch["targets"][masked] = filling
    batch["actions"][masked] = 99
    batch["q"].requires_grad_()
    loss = q_learning_loss(**batch, num_samples=5, huber_delta=huber_delta)
    loss.backward()
    assert torch.equal(loss, expected)
    assert batch["q"].grad[masked].eq(0).all()
    assert batch["q"].grad.isfinite().all()


def test_values_of_other_actions_change_neither_loss_nor_gradient():
    batch = random_batch()
    expected = q_learning_loss(**batch, num_samples=5)
    others = torch.arange(4) != batch["actions"][:, None]
    batch["q"][others] = torch.nan
    batch["q"].requires_grad_()
    loss = q_learning_loss(**batch, num_samples=5)
    loss.backward()
    assert torch.equal(loss, expected)
    assert batch["q"].grad[others].eq(0).all()


def test_without_a_mask_every_sample_counts():
    batch = random_batch()
    batch["actions"] = batch["actions"].clamp(min=0)
    everywhere = q_learning_loss(**batch | {"mask": torch.ones(7)}, num_samples=7)
    assert torch.equal(q_learning_loss(**batch | {"mask": None}, num_samples=7), everywhere)


def test_the_loss_of_half_precision_is_float32():
    half = torch.ones(1, 2, dtype=torch.bfloat16)
    assert q_learning_loss(half, torch.tensor([1]), half[:, 0], num_samples=1).dtype == torch.float32


@pytest.mark.parametrize("culprit", ["actions", "targets", "mask"])
def test_a_wrong_shape_of_the_loss_is_named(culprit: str):
    batch = random_batch()
    batch[culprit] = batch[culprit].unsqueeze(-1)
    with pytest.raises(ValueError, match=rf"`{culprit}` must have dims B; got shape \(7, 1\)"):
        q_learning_loss(**batch, num_samples=5)


@pytest.mark.parametrize("huber_delta", [0.0, -1.0, math.nan])
def test_a_huber_delta_that_is_not_above_zero_is_refused(huber_delta: float):
    with pytest.raises(ValueError, match=rf"`huber_delta` must be > 0; got {huber_delta}. None is"):
        q_learning_loss(**random_batch(), num_samples=5, huber_delta=huber_delta)


def sgd_on_a_table(
    table: Tensor, transitions: list[tuple[int, int, float, int, bool]], *, step_size: float, discount: float
) -> Tensor:
    """Learns transition by transition, as a trainer would: loss, backward, SGD with half the step size."""
    network = torch.nn.Embedding.from_pretrained(table.clone(), freeze=False)
    optimizer = torch.optim.SGD(network.parameters(), lr=step_size / 2)
    for state, action, reward, following, ended in transitions:
        targets = q_learning_targets(
            torch.tensor([reward], dtype=table.dtype),
            network(torch.tensor([following])),
            terminated=flags(ended),
            discount=discount,
        )
        q = network(torch.tensor([state]))
        optimizer.zero_grad()
        q_learning_loss(q, torch.tensor([action]), targets, num_samples=1).backward()
        optimizer.step()
    return network.weight.detach()


def random_transitions(count: int) -> list[tuple[int, int, float, int, bool]]:
    draws = zip(*(torch.randint(size, (count,)).tolist() for size in (6, 3, 6, 5)), strict=True)
    return [
        (state, action, reward, following, end == 0)
        for (state, action, following, end), reward in zip(draws, torch.randn(count).tolist(), strict=True)
    ]


@pytest.mark.parametrize("step_size", [1.0, 0.5, 0.0625])
def test_sgd_on_a_table_is_the_tabular_update_bit_by_bit(step_size: float):
    table, transitions = torch.randn(6, 3, dtype=torch.float64), random_transitions(200)
    learned = sgd_on_a_table(table, transitions, step_size=step_size, discount=0.9)
    expected: list[list[float]] = table.tolist()
    for state, action, reward, following, ended in transitions:
        target = reward if ended else reward + 0.9 * max(expected[following])
        expected[state][action] += step_size * (target - expected[state][action])
    assert torch.equal(learned, torch.tensor(expected, dtype=torch.float64))
    assert not torch.equal(learned, table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sgd_on_a_table_is_the_tabular_update_for_any_step_size(dtype: torch.dtype):
    table, transitions = torch.randn(6, 3, dtype=dtype), random_transitions(200)
    learned = sgd_on_a_table(table, transitions, step_size=0.1, discount=0.9)
    expected = table.clone()
    for state, action, reward, following, ended in transitions:
        change = torch.zeros_like(expected)
        target = reward + (0.0 if ended else 0.9 * expected[following].max())
        change[state, action] = target - expected[state, action]
        # Like the optimizer, torch multiplies and adds in one rounding, where `+=` of a float has two.
        expected.add_(change, alpha=0.1)
    assert torch.equal(learned, expected)


def test_repeated_targets_are_value_iteration_on_a_chain():
    # States 0..3, left and right, reward 1 for leaving 3 to the right, which ends. Going right is best, so
    # Q(s, right) = 0.5^(3 - s): 1/8, 1/4, 1/2, 1. Left costs a step back: Q(s, left) = 0.5 * Q(s - 1, right),
    # and from 0, where it stays, 0.5 * 1/8.
    following = torch.tensor([0, 1, 0, 2, 1, 3, 2, 3])
    rewards = vector(0, 0, 0, 0, 0, 0, 0, 1)
    q = torch.zeros(4, 2, dtype=torch.float64)
    for _ in range(5):
        q = q_learning_targets(rewards, q[following], terminated=rewards.bool(), discount=0.5).view(4, 2)
    assert q.tolist() == [[1 / 16, 1 / 8], [1 / 16, 1 / 4], [1 / 8, 1 / 2], [1 / 4, 1]]


def test_the_value_of_a_bandits_arm_is_its_mean_reward():
    # arm 0 paid 1, 0, 1, 1 and arm 1 paid 2, 4. Steps of 1/n make the running mean: 0.75 and 3.
    arms, rewards = torch.tensor([0, 1, 0, 0, 1, 0]), vector(1, 2, 0, 1, 4, 1)
    table = torch.full((1, 2), 50.0, dtype=torch.float64)
    for pull, (arm, reward) in enumerate(zip(arms.tolist(), rewards.tolist(), strict=True)):
        num_pulls = int((arms[: pull + 1] == arm).sum())
        table = sgd_on_a_table(table, [(0, arm, reward, 0, True)], step_size=1 / num_pulls, discount=0.9)
    torch.testing.assert_close(table, row(0.75, 3))
    # there the loss is flat, and what is left of it varies within the arms: 3 * 0.25^2 + 0.75^2 + 2 * 1^2
    table = row(0.75, 3).requires_grad_()
    q, nothing_follows = table.expand(6, 2), torch.ones(6, dtype=torch.bool)
    targets = q_learning_targets(rewards, q, terminated=nothing_follows, discount=0.9)
    loss = q_learning_loss(q, arms, targets, num_samples=1)
    loss.backward()
    assert loss.item() == 2.75
    assert table.grad.tolist() == [[0, 0]]
