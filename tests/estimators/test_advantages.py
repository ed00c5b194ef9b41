"""Advantages against hand numbers, their definitions, known answers and the published numbers of others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmft._masking import last_valid
from mmft.estimators.advantages import gae, group_advantages, td_errors
from mmft.estimators.returns import lambda_returns, shift_values
from tests.golden.load import golden
from tests.reference import estimators as reference


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def flags(*numbers: int) -> Tensor:
    return torch.tensor([numbers], dtype=torch.bool)


def completions_gae(rewards: Tensor, values: Tensor, mask: Tensor, **settings: float) -> Tensor:
    """One episode per right-padded row, as a PPO trainer asks for it."""
    ends = last_valid(mask)
    next_values = shift_values(values, mask)
    return gae(rewards, values, next_values, terminated=ends, last=ends, mask=mask, **settings)


def random_batch(rows: int = 3, steps: int = 5) -> dict[str, Any]:
    """Rewards, values and next values, every row cut at its last step."""
    rewards, values, next_values = torch.randn(3, rows, steps, dtype=torch.float64)
    last = torch.zeros(rows, steps, dtype=torch.bool)
    last[:, -1] = True
    return {
        "rewards": rewards,
        "values": values,
        "next_values": next_values,
        "terminated": torch.zeros_like(last),
        "last": last,
    }


def test_td_errors_hand_computed():
    # 1 + 0.5 * 4 - 2 = 1;  2 + 0.5 * 8 - 4 = 2;  3 - 8 = -5, for nothing follows
    deltas = td_errors(row(1, 2, 3), row(2, 4, 8), row(4, 8, 6), terminated=flags(0, 0, 1), discount=0.5)
    assert deltas.tolist() == [[1, 2, -5]]


def test_gae_hand_computed():
    # deltas 1, 2, -5 as above; decay 0.5 * 0.5: A_2 = -5; A_1 = 2 - 1.25 = 0.75; A_0 = 1 + 0.1875
    advantages = gae(
        row(1, 2, 3),
        row(2, 4, 8),
        row(4, 8, 6),
        terminated=flags(0, 0, 1),
        last=flags(0, 0, 1),
        discount=0.5,
        lam=0.5,
    )
    assert advantages.tolist() == [[1.1875, 0.75, -5]]


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("beyond", [0.0, 2.5])
def test_gae_is_its_defining_sum(lam: float, beyond: float):
    rewards, values = [0.3, -1.0, 2.0, 0.5], [1.5, -0.7, 0.2, 0.9]
    advantages = gae(
        row(*rewards),
        row(*values),
        row(*values[1:], beyond),
        terminated=flags(0, 0, 0, 0),
        last=flags(0, 0, 0, 1),
        discount=0.9,
        lam=lam,
    )
    torch.testing.assert_close(advantages, row(*reference.gae(rewards, values, beyond, 0.9, lam)))


def test_gae_with_lambda_zero_is_the_td_error():
    batch = random_batch()
    last = batch.pop("last")
    torch.testing.assert_close(
        gae(**batch, last=last, discount=0.9, lam=0.0), td_errors(**batch, discount=0.9)
    )


def test_of_completions_lambda_zero_is_the_td_error_and_lambda_one_monte_carlo():
    rewards, values = torch.randn(2, 2, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    one_step = completions_gae(rewards, values, mask, discount=0.9, lam=0.0)
    all_steps = completions_gae(rewards, values, mask, discount=0.9, lam=1.0)
    for b, length in enumerate((4, 6)):
        earned, worth = rewards[b, :length].tolist(), values[b, :length].tolist()
        expected = reference.td_errors(earned, worth, 0.0, 0.9)
        torch.testing.assert_close(one_step[b, :length].tolist(), expected)
        returns = [g - v for g, v in zip(reference.discounted_sums(earned, 0.9), worth, strict=True)]
        torch.testing.assert_close(all_steps[b, :length].tolist(), returns)


@pytest.mark.parametrize("lam", [0.4, 1.0])
def test_gae_plus_values_is_the_lambda_return(lam: float):
    # holds where V(s_{t+1}) is the value of the next row entry; lam = 1: Monte Carlo minus the critic
    batch = random_batch()
    batch["next_values"][:, :-1] = batch["values"][:, 1:]
    advantages = gae(**batch, discount=0.9, lam=lam)
    values = batch.pop("values")
    torch.testing.assert_close(advantages + values, lambda_returns(**batch, discount=0.9, lam=lam))


def test_constant_reward_and_its_exact_value_leave_no_advantage():
    # reward 1 for ever is worth 1 / (1 - 0.9) = 10, also where the window happens to be cut
    ones, ends = torch.ones(2, 5, dtype=torch.float64), torch.zeros(2, 5, dtype=torch.bool)
    ends[:, -1] = True
    advantages = gae(
        ones, 10 * ones, 10 * ones, terminated=torch.zeros_like(ends), last=ends, discount=0.9, lam=0.95
    )
    torch.testing.assert_close(advantages, 0 * ones)


def test_termination_drops_the_bootstrap_and_truncation_keeps_it():
    end, no = flags(1), flags(0)
    settings = {"discount": 0.5, "lam": 0.9}
    # 1 - 3 = -2 if the episode is over; 1 + 0.5 * 8 - 3 = 2 if only the window is
    assert gae(row(1), row(3), row(8), terminated=end, last=no, **settings).item() == -2
    assert gae(row(1), row(3), row(8), terminated=no, last=end, **settings).item() == 2


@pytest.mark.parametrize("terminated", [False, True])
def test_gae_does_not_leak_across_episodes_in_one_row(terminated: bool):
    batch = random_batch(rows=2, steps=2)
    batch["terminated"] = batch["last"] & terminated
    joined = gae(**{name: x.reshape(1, 4) for name, x in batch.items()}, discount=0.9, lam=0.95)
    torch.testing.assert_close(joined, gae(**batch, discount=0.9, lam=0.95).reshape(1, 4))


def test_a_later_episode_that_is_not_a_number_spoils_no_earlier_one():
    batch = random_batch()
    batch["last"][:, 1] = True
    expected = gae(**batch, discount=0.9, lam=0.95)
    batch["rewards"][:, 4] = torch.nan
    advantages = gae(**batch, discount=0.9, lam=0.95)
    torch.testing.assert_close(advantages[:, :2], expected[:, :2])
    assert advantages[:, 2:].isnan().all()


def test_a_terminated_step_alone_stops_the_recursion():
    batch = random_batch()
    batch["terminated"][:, 2] = True
    alone = gae(**batch, discount=0.9, lam=0.95)
    batch["last"][:, 2] = True
    torch.testing.assert_close(alone, gae(**batch, discount=0.9, lam=0.95))


def test_a_terminated_step_ignores_a_next_value_that_is_not_a_number():
    advantages = gae(
        row(1, 2), row(0, 0), row(0, torch.nan), terminated=flags(0, 1), last=flags(0, 1), discount=1, lam=1
    )
    assert advantages.tolist() == [[3, 2]]


def test_padding_changes_no_advantage():
    rewards, values = torch.randn(2, 2, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    rewards[mask == 0], values[mask == 0] = torch.nan, torch.inf
    padded = completions_gae(rewards, values, mask, discount=0.9, lam=0.8)
    for b, length in enumerate((4, 2)):
        expected = reference.gae(rewards[b, :length].tolist(), values[b, :length].tolist(), 0.0, 0.9, 0.8)
        torch.testing.assert_close(padded[b, :length].tolist(), expected)
    assert padded[mask == 0].eq(0).all()


def test_a_gap_in_the_mask_comes_out_zero_and_ends_the_recursion():
    batch = random_batch()
    mask = torch.tensor([[1, 1, 0, 1, 1]]).expand(3, 5)
    advantages = gae(**batch, mask=mask, discount=0.9, lam=0.8)
    assert advantages[:, 2].eq(0).all()
    batch["last"][:, 1] = True
    apart = gae(**batch, discount=0.9, lam=0.8)
    torch.testing.assert_close(advantages[:, [0, 1, 3, 4]], apart[:, [0, 1, 3, 4]])


def test_padding_stops_the_recursion_where_the_caller_marked_no_end():
    batch = random_batch()
    batch["last"] = torch.zeros_like(batch["last"])
    mask = torch.tensor([[1, 1, 1, 0, 0]]).expand(3, 5)
    cut = gae(**batch, mask=mask, discount=0.9, lam=0.8)
    short = gae(**{name: x[:, :3] for name, x in batch.items()}, discount=0.9, lam=0.8)
    torch.testing.assert_close(cut[:, :3], short)


def test_double_precision_is_kept():
    # 0.9 as a float32 would be off by 2e-8
    advantages = gae(row(0), row(0), row(1), terminated=flags(0), last=flags(1), discount=0.9, lam=1.0)
    assert advantages.item() == 0.9


def test_half_precision_is_raised_to_float32():
    half = torch.ones(1, 2, dtype=torch.bfloat16)
    advantages = gae(half, half, half, terminated=flags(0, 1), last=flags(0, 1), discount=0.9, lam=1.0)
    assert advantages.dtype == torch.float32


@pytest.mark.parametrize("culprit", ["values", "next_values", "terminated", "last", "mask"])
def test_a_wrong_shape_is_named(culprit: str):
    batch = random_batch() | {"mask": torch.ones(3, 5)}
    batch[culprit] = batch[culprit][:, :-1]
    with pytest.raises(ValueError, match=f"`{culprit}` has T=4, but earlier arguments have T=5"):
        gae(**batch, discount=0.9, lam=0.9)


def _published_cases() -> list[Any]:
    return [
        pytest.param(case, float(lam), id=f"{case['source'].split(',')[0]}-{lam}")
        for case in golden("gae")["cases"]
        for lam in case["expected"]
    ]


@pytest.mark.parametrize(("case", "lam"), _published_cases())
def test_published_advantages_of_rlax_and_tf_agents(case: dict[str, Any], lam: float):
    rewards, discount, values = (
        torch.tensor(case[name], dtype=torch.float64) for name in ("r", "discount", "values_T_plus_1")
    )
    no = torch.zeros_like(rewards, dtype=torch.bool)
    expected = torch.tensor(case["expected"][str(lam)], dtype=torch.float64)
    # Both write the end of an episode as a discount of 0; saying `terminated` must come to the same.
    for terminated in (no, discount == 0):
        advantages = gae(
            rewards, values[:, :-1], values[:, 1:], terminated=terminated, last=no, discount=discount, lam=lam
        )
        torch.testing.assert_close(advantages, expected, rtol=0, atol=case["atol"])


@pytest.mark.parametrize("case", ["case_terminated_only", "case_truncation_bootstraps"])
def test_published_truncation_and_termination_of_tianshou(case: str):
    record = golden("gae")["truncation_vs_termination"]
    next_values = row(*record["next_state_values"])
    values = next_values.roll(1, dims=1)
    advantages = gae(
        row(*record["rewards"]),
        values,
        next_values,
        terminated=flags(*record[case]["terminated"]),
        last=flags(*record[case]["truncated"]),
        discount=record["gamma"],
        lam=record["gae_lambda"],
    )
    torch.testing.assert_close(
        advantages + values, row(*record[case]["returns"]), rtol=0, atol=record["atol"]
    )


def random_rewards(size: int = 30) -> tuple[Tensor, Tensor]:
    """Rewards of mixed groups, some unjudged."""
    rewards = torch.randn(size, dtype=torch.float64)
    rewards[torch.rand(size) < 0.2] = torch.nan
    return rewards, torch.randint(6, (size,))


def test_group_advantages_hand_computed():
    # prompt 0: mean 2, std of 1 and 3 = sqrt(2); prompt 1: mean 4, std of 4, 2, 6 = 2
    rewards, groups = torch.tensor([1.0, 3.0, 4.0, 2.0, 6.0]), torch.tensor([0, 0, 1, 1, 1])
    assert group_advantages(rewards, groups, scale=False).tolist() == [-1, 1, 0, -2, 2]
    root = 2**0.5 + 1e-4
    expected = torch.tensor([-1 / root, 1 / root, 0, -2 / 2.0001, 2 / 2.0001])
    torch.testing.assert_close(group_advantages(rewards, groups, scale=True), expected)


@pytest.mark.parametrize("scale", [False, True])
def test_group_advantages_are_the_loop_over_completions(scale: bool):
    rewards, groups = random_rewards()
    expected = reference.group_advantages(rewards.tolist(), groups.tolist(), scale)
    torch.testing.assert_close(group_advantages(rewards, groups, scale=scale).tolist(), expected)


@pytest.mark.parametrize("scale", [False, True])
def test_of_whole_groups_they_are_those_of_the_rows_of_a_table(scale: bool):
    # as GRPO trainers lay them out: one row per prompt
    table = torch.randn(4, 5, dtype=torch.float64)
    expected = table - table.mean(1, keepdim=True)
    if scale:
        expected = expected / (table.std(1, keepdim=True) + 1e-4)
    groups = torch.arange(4).repeat_interleave(5)
    torch.testing.assert_close(group_advantages(table.flatten(), groups, scale=scale), expected.flatten())


@pytest.mark.parametrize("scale", [False, True])
def test_group_advantages_sum_to_zero_in_every_group(scale: bool):
    rewards, groups = random_rewards()
    advantages = group_advantages(rewards, groups, scale=scale)
    sums = torch.zeros(6, dtype=torch.float64).index_add(0, groups, advantages)
    torch.testing.assert_close(sums, torch.zeros(6, dtype=torch.float64))


def test_scaled_group_advantages_forget_the_unit_of_the_reward():
    rewards, groups = random_rewards()
    expected = group_advantages(1000 * rewards, groups, scale=True)
    torch.testing.assert_close(
        group_advantages(2000 * rewards + 7, groups, scale=True), expected, rtol=1e-6, atol=0
    )
    assert not torch.allclose(group_advantages(2 * rewards, groups, scale=False), expected)


@pytest.mark.parametrize("scale", [False, True])
def test_an_unjudged_completion_has_no_advantage_and_moves_no_other(scale: bool):
    rewards, groups = random_rewards()
    judged = ~rewards.isnan()
    advantages = group_advantages(rewards, groups, scale=scale)
    assert advantages[~judged].eq(0).all()
    expected = group_advantages(rewards[judged], groups[judged], scale=scale)
    torch.testing.assert_close(advantages[judged], expected)


@pytest.mark.parametrize("scale", [False, True])
def test_a_group_that_compares_nothing_teaches_nothing(scale: bool):
    # one judged alone; three with the same reward, whose float32 mean is another; none judged at all
    rewards = torch.tensor([5.0, torch.nan, 0.1, 0.1, 0.1, torch.nan])
    groups = torch.tensor([0, 0, 1, 1, 1, 2])
    assert group_advantages(rewards, groups, scale=scale).tolist() == [0] * 6


def test_group_advantages_of_half_precision_are_float32():
    rewards = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    advantages = group_advantages(rewards, torch.zeros(2, dtype=torch.long), scale=True)
    assert advantages.dtype == torch.float32


def test_groups_of_another_batch_are_named():
    with pytest.raises(ValueError, match="`groups` has N=2, but earlier arguments have N=3"):
        group_advantages(torch.zeros(3), torch.zeros(2, dtype=torch.long), scale=False)
