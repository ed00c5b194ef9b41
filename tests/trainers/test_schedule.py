"""Which rows a rollout uses and which micro-batch follows which: arithmetic, checked by counting."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice

import pytest

from mmft.trainers.schedule import RolloutClock, RolloutPlan, TicketDataset, ticket_loader

PLAN = RolloutPlan(
    num_rows=12,
    groups_per_micro_batch=2,
    num_micro_batches=1,
    num_mini_batches=2,
    num_epochs=3,
    num_processes=1,
    seed=0,
)


def first_rows(plan: RolloutPlan, num_rollouts: int) -> list[int]:
    """Rows in the order of rollouts, those of all processes together."""
    return [
        row
        for rollout in range(num_rollouts)
        for process in range(plan.num_processes)
        for row in plan.rows(rollout, process)
    ]


def test_sizes_follow_from_the_batch_sizes():
    plan = dataclasses.replace(PLAN, num_micro_batches=3, num_processes=4, num_rows=100)
    assert plan.local_groups == 2 * 3 * 2
    assert plan.global_groups == 48
    assert plan.steps_per_rollout == 2 * 3
    assert plan.rollouts_per_epoch == 2


@pytest.mark.parametrize("num_rows", [12, 10, 4, 3, 1])
def test_every_pass_uses_every_row_once(num_rows: int):
    plan = dataclasses.replace(PLAN, num_rows=num_rows)  # 4 rows per rollout: 10, 3 and 1 do not divide
    rows = first_rows(plan, 15)
    for start in range(0, 60 - num_rows + 1, num_rows):
        assert sorted(rows[start : start + num_rows]) == list(range(num_rows))


def test_passes_are_shuffled_and_differ():
    rows = first_rows(PLAN, 9)
    passes = [rows[:12], rows[12:24], rows[24:]]
    assert list(range(12)) not in passes
    assert passes[0] != passes[1] != passes[2]
    assert rows != first_rows(dataclasses.replace(PLAN, seed=1), 9)
    assert rows == first_rows(PLAN, 9)


@pytest.mark.parametrize("num_processes", [2, 4])
def test_shares_of_processes_together_are_the_rollout_of_one(num_processes: int):
    alone = dataclasses.replace(PLAN, num_rows=50, groups_per_micro_batch=4)
    shared = dataclasses.replace(
        alone, groups_per_micro_batch=4 // num_processes, num_processes=num_processes
    )
    for rollout in range(8):
        shares = [shared.rows(rollout, process) for process in range(num_processes)]
        assert [row for share in shares for row in share] == alone.rows(rollout, 0)


def test_shares_of_one_pass_are_disjoint():
    plan = dataclasses.replace(PLAN, num_rows=16, num_processes=2)
    rows = Counter(first_rows(plan, 2))
    assert set(rows.values()) == {1}


def test_samples_are_numbered_through_the_processes():
    plan = dataclasses.replace(PLAN, num_processes=3)  # 4 prompts per process
    assert [plan.first_sample(process, num_generations=5) for process in range(3)] == [0, 20, 40]


def test_mini_batches_partition_the_groups_of_a_process():
    plan = dataclasses.replace(PLAN, num_micro_batches=3)
    for epoch in range(3):
        batches = plan.mini_batches(7, epoch, 0)
        assert [len(batch) for batch in batches] == [6, 6]
        assert sorted(group for batch in batches for group in batch) == list(range(12))


def test_mini_batches_are_shuffled_by_rollout_pass_and_process():
    plan = dataclasses.replace(PLAN, groups_per_micro_batch=8, num_processes=2)
    orders = [
        str(plan.mini_batches(rollout, epoch, process))
        for rollout in range(3)
        for epoch in range(3)
        for process in range(2)
    ]
    assert len(set(orders)) == len(orders)
    assert plan.mini_batches(1, 2, 1) == plan.mini_batches(1, 2, 1)


def test_a_seed_of_32_bits_is_fine():
    plan = dataclasses.replace(PLAN, seed=2**32 - 1)
    assert sorted(plan.rows(0, 0) + plan.rows(1, 0) + plan.rows(2, 0)) == list(range(12))
    assert len(plan.mini_batches(10**6, 2, 500)) == 2


def test_tickets_count_the_micro_batches_of_each_step():
    plan = dataclasses.replace(PLAN, num_micro_batches=3, num_rows=24)  # 2 rollouts of 6 steps
    loader = ticket_loader(plan)
    tickets = [ticket["micro_batch"] for ticket in loader]
    assert tickets == [0, 1, 2] * 12
    assert len(loader) == 36


def test_an_epoch_holds_at_least_one_rollout():
    plan = dataclasses.replace(PLAN, num_rows=1)
    assert len(TicketDataset(plan)) == plan.steps_per_rollout


def test_tickets_end():
    tickets = TicketDataset(PLAN)
    assert [*islice(tickets, 100)] == [{"micro_batch": 0}] * len(tickets)
    with pytest.raises(IndexError):
        tickets[-1]


@pytest.mark.parametrize("change", [{"num_processes": 2}, {"groups_per_micro_batch": 1}, {"seed": 1}])
def test_fingerprints_differ_where_a_saved_rollout_would_not_fit(change: dict[str, int]):
    assert dataclasses.replace(PLAN, **change).fingerprint() != PLAN.fingerprint()


def test_fingerprints_agree_where_only_the_cut_into_micro_batches_differs():
    other = dataclasses.replace(PLAN, groups_per_micro_batch=1, num_micro_batches=2)
    assert other.fingerprint() == PLAN.fingerprint()


def test_the_clock_counts_the_steps_of_each_rollout():
    clock, seen = RolloutClock(), []
    for _ in range(7):
        seen.append((clock.rollout, clock.step))
        clock.tick(steps_per_rollout=3)
    assert seen == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)]


def test_a_rollout_may_end_before_its_last_step():
    clock = RolloutClock()
    clock.tick(steps_per_rollout=3)
    clock.end_rollout()
    assert clock == RolloutClock(rollout=1, step=0)
