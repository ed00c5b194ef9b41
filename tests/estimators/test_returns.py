"""Returns against hand numbers, defining sums and the published numbers of others."""

from __future__ import annotations

import pytest
import torch

from mmft.estimators.returns import discounted_return, lambda_returns, n_step_returns, shift_values
from tests.golden.load import golden
from tests.reference import estimators as reference

NO = torch.zeros(1, 3, dtype=torch.bool)


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def flags(*numbers: int) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.bool)


def test_discounted_return_hand_computed():
    # 1 + 0.5 * 2 + 0.25 * 4 = 3; the second row stops after its first reward: 8
    rewards = torch.tensor([[1.0, 2.0, 4.0], [8.0, torch.nan, 1.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert discounted_return(rewards, mask, discount=0.5).tolist() == [3.0, 8.0]


def test_discounted_return_is_the_first_monte_carlo_return():
    rewards, mask = torch.rand(4, 6, dtype=torch.float64), torch.ones(4, 6)
    no = torch.zeros(4, 6, dtype=torch.bool)
    returns = lambda_returns(
        rewards, torch.zeros_like(rewards), terminated=no, last=no, discount=0.9, lam=1.0
    )
    torch.testing.assert_close(discounted_return(rewards, mask, discount=0.9), returns[:, 0])


def test_shifted_values_are_those_of_the_next_step_and_zero_after_the_end():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, torch.nan]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    assert shift_values(values, mask).tolist() == [[2, 3, 4, 0], [6, 0, 0, 0]]


def test_shifted_values_bootstrap_rows_that_were_cut():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, torch.nan]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert shift_values(values, mask, torch.tensor([7.0, 9.0])).tolist() == [[2, 3, 7], [5, 9, 0]]


def test_lambda_returns_hand_computed():
    # backwards from V(s_3) = 4, discount 0.5, lam 0.5:
    # G_2 = 3 + 0.5 * 4 = 5;  G_1 = 2 + 0.5 * (0.5 * 6 + 0.5 * 5) = 4.75;
    # G_0 = 1 + 0.5 * (0.5 * 8 + 0.5 * 4.75) = 4.1875
    returns = lambda_returns(row(1, 2, 3), row(8, 6, 4), terminated=NO, last=NO, discount=0.5, lam=0.5)
    torch.testing.assert_close(returns, row(4.1875, 4.75, 5))


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_lambda_returns_average_the_n_step_returns(lam: float):
    rewards, values = [0.3, -1.0, 2.0, 0.5], [1.5, -0.7, 0.2, 0.9]
    returns = lambda_returns(
        row(*rewards),
        row(*values[1:], 3.0),
        terminated=flags(0, 0, 0, 0),
        last=flags(0, 0, 0, 1),
        discount=0.9,
        lam=lam,
    )
    expected = [reference.lambda_return(rewards, values, 3.0, 0.9, t, lam) for t in range(4)]
    torch.testing.assert_close(returns, row(*expected))


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 9])
def test_n_step_returns_are_their_defining_sum(num_steps: int):
    rewards, values = [0.3, -1.0, 2.0, 0.5], [1.5, -0.7, 0.2, 0.9]
    returns = n_step_returns(
        row(*rewards),
        row(*values[1:], 3.0),
        terminated=flags(0, 0, 0, 0),
        last=flags(0, 0, 0, 1),
        discount=0.9,
        num_steps=num_steps,
    )
    expected = [reference.n_step_return(rewards, values, 3.0, 0.9, t, num_steps) for t in range(4)]
    torch.testing.assert_close(returns, row(*expected))


@pytest.mark.parametrize("terminated", [False, True])
def test_returns_do_not_leak_across_episodes_in_one_row(terminated: bool):
    rewards, next_values = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    ends = torch.tensor([[0, 1], [0, 1]], dtype=torch.bool)
    cut = {"terminated": ends & terminated, "last": ends, "discount": 0.9}

    def flat(x: object) -> object:
        return x.reshape(1, 4) if isinstance(x, torch.Tensor) else x

    for estimate, setting in ((lambda_returns, {"lam": 0.8}), (n_step_returns, {"num_steps": 2})):
        apart = estimate(rewards, next_values, **cut, **setting)
        joined = estimate(flat(rewards), flat(next_values), **{k: flat(v) for k, v in cut.items()}, **setting)
        torch.testing.assert_close(joined, flat(apart))


def test_a_terminated_step_ignores_a_next_value_that_is_not_a_number():
    cut = {"terminated": flags(0, 1), "last": flags(0, 0), "discount": 0.5}
    # G_1 = 2 with nothing after it; G_0 = 1 + 0.5 * 2 with lam = 1, and with two steps
    assert lambda_returns(row(1, 2), row(3, torch.nan), lam=1.0, **cut).tolist() == [[2, 2]]
    assert n_step_returns(row(1, 2), row(3, torch.nan), num_steps=2, **cut).tolist() == [[2, 2]]


def test_zero_steps_are_refused():
    with pytest.raises(ValueError, match="`num_steps` must be >= 1; got 0"):
        n_step_returns(row(1, 2, 3), row(1, 2, 3), terminated=NO, last=NO, discount=1.0, num_steps=0)


def test_a_discount_of_another_shape_is_named():
    with pytest.raises(ValueError, match="`discount` has T=2, but earlier arguments have T=3"):
        lambda_returns(row(1, 2, 3), row(1, 2, 3), terminated=NO, last=NO, discount=row(1, 1), lam=1.0)


def _published() -> dict[str, torch.Tensor]:
    record = golden("returns")
    rewards, discount, next_values = (
        torch.tensor(record[name], dtype=torch.float64) for name in ("r_t", "discount_t", "v_t")
    )
    no = torch.zeros_like(rewards, dtype=torch.bool)
    return dict(rewards=rewards, next_values=next_values, terminated=no, last=no, discount=discount)


def test_published_lambda_returns_of_rlax():
    expected = golden("returns")["lambda_returns"]
    returns = lambda_returns(**_published(), lam=expected["lambda"])
    torch.testing.assert_close(returns, torch.tensor(expected["expected"]).double(), rtol=0, atol=1e-5)


def test_published_discounted_returns_of_rlax():
    expected = torch.tensor(golden("returns")["discounted_returns_bootstrap_last_v"], dtype=torch.float64)
    torch.testing.assert_close(lambda_returns(**_published(), lam=1.0), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_steps", [3, 5, 7])
def test_published_n_step_returns_of_rlax(num_steps: int):
    expected = torch.tensor(golden("returns")["n_step"][str(num_steps)], dtype=torch.float64)
    torch.testing.assert_close(
        n_step_returns(**_published(), num_steps=num_steps), expected, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("case", [0, 1, 2])
def test_published_episodic_returns_of_tianshou(case: int):
    record = golden("returns")["episodic_returns"]
    numbers = record["cases"][case]
    rewards = row(*numbers["rew"])
    returns = lambda_returns(
        rewards,
        torch.zeros_like(rewards),
        terminated=flags(*numbers["terminated"]),
        last=flags(*numbers.get("truncated", [0] * rewards.shape[1])),
        discount=record["gamma"],
        lam=record["gae_lambda"],
    )
    torch.testing.assert_close(returns, row(*numbers["returns"]), rtol=0, atol=1e-6)
