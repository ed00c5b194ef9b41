"""Distances from a group's mean, and its deviation: hand numbers, a loop, and what may not change them."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch import Tensor

from mmft.estimators.groups import group_centered, group_std


def random_groups(size: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers in five mixed groups, one of them without a valid element."""
    x, groups = torch.randn(size, dtype=torch.float64), torch.randint(5, (size,))
    return x, groups, (torch.rand(size) < 0.7) & (groups != 3)


def test_distances_and_deviations_hand_computed():
    # group 7: 1 and 3, mean 2, std sqrt(2); group -1: 5 alone; group 0: none valid
    x, groups = torch.tensor([1.0, 5.0, 3.0, 9.0, 8.0]), torch.tensor([7, -1, 7, 7, 0])
    valid = torch.tensor([True, True, True, False, False])
    assert group_centered(x, groups, valid).tolist() == [-1, 0, 1, 0, 0]
    torch.testing.assert_close(group_std(x, groups, valid), torch.tensor([2.0, 0, 2, 2, 0]).sqrt())


def test_they_are_the_loop_over_groups():
    x, groups, valid = random_groups()
    for group in groups.unique():
        members = x[valid & (groups == group)].tolist()
        mean = statistics.fmean(members) if members else 0.0
        std = statistics.stdev(members) if members else 0.0
        rows = groups == group
        expected = torch.where(valid, x - mean, 0)[rows]
        torch.testing.assert_close(group_centered(x, groups, valid)[rows], expected)
        torch.testing.assert_close(group_std(x, groups, valid)[rows], torch.full_like(expected, std))


@pytest.mark.parametrize("statistic", [group_centered, group_std])
def test_the_order_of_samples_and_the_names_of_groups_do_not_matter(statistic):
    x, groups, valid = random_groups()
    order = torch.randperm(len(x))
    expected = statistic(x, groups, valid)[order]
    torch.testing.assert_close(statistic(x[order], 1000 - 7 * groups[order], valid[order]), expected)


@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("statistic", [group_centered, group_std])
def test_invalid_elements_change_nothing(statistic, filling: float):
    x, groups, valid = random_groups()
    expected = statistic(x, groups, valid)
    x[~valid] = filling
    assert torch.equal(statistic(x, groups, valid), expected)


def test_equal_elements_are_exactly_at_their_mean():
    # the sum of three 0.1 in float32 is 0.3, and a third of it 0.1 and a bit
    x, groups = torch.full((3,), 0.1), torch.zeros(3, dtype=torch.long)
    valid = torch.ones(3, dtype=torch.bool)
    assert group_centered(x, groups, valid).eq(0).all()
    assert group_std(x, groups, valid).eq(0).all()


def test_a_large_offset_costs_no_digits():
    x, groups = torch.tensor([0.0, 1.0, 2.0]) + 2**20, torch.zeros(3, dtype=torch.long)
    valid = torch.ones(3, dtype=torch.bool)
    assert group_centered(x, groups, valid).tolist() == [-1, 0, 1]
    assert group_std(x, groups, valid).eq(1).all()


def test_no_samples_have_no_statistics():
    empty = torch.zeros(0)
    assert group_centered(empty, empty.long(), empty.bool()).shape == (0,)
    assert group_std(empty, empty.long(), empty.bool()).shape == (0,)


@pytest.mark.parametrize("statistic", [group_centered, group_std])
def test_one_group_number_per_sample(statistic):
    with pytest.raises(ValueError, match="`groups` has N=2, but earlier arguments have N=3"):
        statistic(torch.zeros(3), torch.zeros(2, dtype=torch.long), torch.ones(3))
