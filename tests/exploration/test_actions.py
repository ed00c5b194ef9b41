"""Probabilities of actions against hand numbers and a loop, and draws against counts on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmft.exploration.actions import boltzmann_probs, draw, epsilon_greedy_probs, greedy_probs, uniform_probs

Strategy = Callable[[Tensor, Tensor | None], Tensor]

STRATEGIES: dict[str, Strategy] = {
    "greedy": lambda q, legal=None: greedy_probs(q, legal),
    "epsilon_greedy": lambda q, legal=None: epsilon_greedy_probs(q, 0.3, legal),
    "boltzmann": lambda q, legal=None: boltzmann_probs(q, 0.7, legal),
}

each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def random_legal(rows: int, actions: int) -> Tensor:
    """Some actions of each row, at least one."""
    legal = torch.rand(rows, actions) < 0.5
    legal[torch.arange(rows), torch.randint(actions, (rows,))] = True
    return legal


def slow_probs(
    q: list[float], legal: list[bool], *, epsilon: float = 0.0, temperature: float | None = None
) -> list[float]:
    """The probabilities of one state, action by action."""
    allowed = [action for action, yes in enumerate(legal) if yes]
    if temperature is None:
        best = [action for action in allowed if all(q[action] >= q[other] for other in allowed)]
        weights = {a: epsilon / len(allowed) + (a in best) * (1 - epsilon) / len(best) for a in allowed}
    else:
        total = sum(math.exp(q[action] / temperature) for action in allowed)
        weights = {a: math.exp(q[a] / temperature) / total for a in allowed}
    return [weights.get(action, 0.0) for action in range(len(q))]


# --- probabilities


def test_greedy_probs_hand_computed():
    q = torch.tensor([[1.0, 3.0, 2.0], [3.0, 3.0, 2.0]])
    assert greedy_probs(q).tolist() == [[0, 1, 0], [0.5, 0.5, 0]]
    legal = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert greedy_probs(q, legal).tolist() == [[0, 0, 1], [0, 1, 0]]


def test_legal_actions_that_are_all_worth_minus_infinity_are_equal():
    q, legal = torch.full((1, 3), -torch.inf), torch.tensor([[1, 0, 1]])
    assert greedy_probs(q, legal).tolist() == [[0.5, 0, 0.5]]


def test_epsilon_greedy_probs_hand_computed():
    # epsilon 0.25 over four actions is 0.0625 each, and 0.75 more for the best;
    # over the two legal ones of the second row 0.125 each: 0.125 and 0.875
    q = torch.tensor([[1.0, 3.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]])
    legal = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0]])
    expected = [[0.0625, 0.8125, 0.0625, 0.0625], [0.125, 0, 0.875, 0]]
    assert epsilon_greedy_probs(q, 0.25, legal).tolist() == expected


def test_boltzmann_probs_hand_computed():
    # exp(Q / 2) = 1, 2, 3: probabilities 1/6, 2/6, 3/6; without the third 1/3, 2/3
    q = 2 * row(1, 2, 3).log()
    torch.testing.assert_close(boltzmann_probs(q, 2.0), row(1, 2, 3) / 6)
    legal = torch.tensor([[1, 1, 0]])
    torch.testing.assert_close(boltzmann_probs(q, 2.0, legal), row(1, 2, 0) / 3)


def test_uniform_probs_hand_computed():
    assert uniform_probs(torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1]])).tolist() == [
        [0.25] * 4,
        [0, 0.5, 0, 0.5],
    ]


def test_probs_are_the_loop_over_actions():
    q, legal = torch.randint(-3, 3, (40, 5)).double(), random_legal(40, 5)
    for probs, setting in (
        (greedy_probs(q, legal), {}),
        (epsilon_greedy_probs(q, 0.3, legal), {"epsilon": 0.3}),
        (boltzmann_probs(q, 0.7, legal), {"temperature": 0.7}),
        (uniform_probs(legal).double(), {"epsilon": 1.0}),
    ):
        expected = [slow_probs(*each, **setting) for each in zip(q.tolist(), legal.tolist(), strict=True)]
        torch.testing.assert_close(probs, torch.tensor(expected).double())


@each_strategy
def test_without_a_mask_every_action_is_legal(strategy: Strategy):
    q = torch.randn(9, 4)
    assert torch.equal(strategy(q), strategy(q, torch.ones(9, 4, dtype=torch.bool)))


@each_strategy
@pytest.mark.parametrize("filling", [torch.inf, -torch.inf, torch.nan, 1e30])
def test_an_illegal_action_changes_nothing_and_has_no_probability(strategy: Strategy, filling: float):
    q, legal = torch.randn(30, 5), random_legal(30, 5)
    expected = strategy(q, legal)
    q[~legal] = filling
    assert torch.equal(strategy(q, legal), expected)
    assert expected[~legal].eq(0).all()
    torch.testing.assert_close(expected.sum(dim=1), torch.ones(30))


@each_strategy
def test_the_order_of_actions_does_not_matter(strategy: Strategy):
    q, legal, order = torch.randn(30, 5).double(), random_legal(30, 5), torch.randperm(5)
    torch.testing.assert_close(strategy(q[:, order], legal[:, order]), strategy(q, legal)[:, order])


@each_strategy
def test_a_constant_added_to_all_values_does_not_matter(strategy: Strategy):
    q = torch.randint(-3, 3, (20, 4)).double()
    torch.testing.assert_close(strategy(q + 1024), strategy(q))


def test_epsilon_leads_from_greedy_to_uniform():
    q, legal = torch.randn(30, 5), random_legal(30, 5)
    assert torch.equal(epsilon_greedy_probs(q, 0.0, legal), greedy_probs(q, legal))
    assert torch.equal(epsilon_greedy_probs(q, 1.0, legal), uniform_probs(legal))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperature_leads_from_greedy_to_uniform(dtype: torch.dtype):
    q, legal = torch.randint(-3, 3, (30, 5)).to(dtype), random_legal(30, 5)
    # 1e-300 is 0 in float32, and 5e-324 has an infinite inverse; 1e300 is infinite in float32
    for temperature in (1e-2, 1e-30, 1e-300, 5e-324):
        torch.testing.assert_close(boltzmann_probs(q, temperature, legal), greedy_probs(q, legal))
    for temperature in (1e9, 1e300):
        torch.testing.assert_close(boltzmann_probs(q, temperature, legal), uniform_probs(legal).to(dtype))


@pytest.mark.parametrize("size", [1e3, 1e30, 3e38])
def test_boltzmann_probs_are_finite_for_values_of_any_size(size: float):
    q = torch.tensor([[size, -size, size], [-size, -size, -size]])
    torch.testing.assert_close(boltzmann_probs(q, 1.0), torch.tensor([[0.5, 0, 0.5], [1 / 3, 1 / 3, 1 / 3]]))


@each_strategy
def test_probs_carry_no_gradient_and_are_float32_at_least(strategy: Strategy):
    assert not strategy(torch.randn(2, 3, requires_grad=True)).requires_grad
    dtypes = [strategy(torch.ones(1, 2, dtype=each)).dtype for each in (torch.bfloat16, torch.float64)]
    assert dtypes == [torch.float32, torch.float64]


@each_strategy
def test_a_state_without_a_legal_action_is_named(strategy: Strategy):
    legal = torch.tensor([[1, 0], [0, 0], [0, 0]])
    message = r"`legal\[1\]` allows no action. A state without one ends its episode: reset it"
    with pytest.raises(ValueError, match=message):
        strategy(torch.zeros(3, 2), legal)
    with pytest.raises(ValueError, match=message):
        uniform_probs(legal)


@each_strategy
def test_a_mask_of_another_shape_is_named(strategy: Strategy):
    with pytest.raises(ValueError, match="`legal` has B=1, but earlier arguments have B=3"):
        strategy(torch.zeros(3, 2), torch.ones(1, 2))


def test_a_mask_without_rows_is_refused():
    with pytest.raises(ValueError, match="`legal` must have dims BxA; got shape"):
        uniform_probs(torch.ones(3))


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, math.nan])
def test_an_epsilon_that_is_no_share_is_refused(epsilon: float):
    with pytest.raises(ValueError, match=rf"`epsilon` must be in \[0, 1\]; got {epsilon}. It is the share"):
        epsilon_greedy_probs(torch.zeros(1, 2), epsilon)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float):
    with pytest.raises(
        ValueError, match=rf"`temperature` must be a number > 0; got {temperature}. Use `greedy"
    ):
        boltzmann_probs(torch.zeros(1, 2), temperature)


# --- draws


def test_draws_hand_computed():
    # the intervals are [0, 0.25), [0.25, 0.75), [0.75, 1)
    uniforms = torch.tensor([0.0, 0.24, 0.25, 0.5, 0.74, 0.75, 0.99])
    probs = torch.tensor([[0.25, 0.5, 0.25]]).expand(7, 3)
    assert draw(probs, uniforms).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_draws_on_a_grid_match_the_probabilities_exactly():
    # 2^12 numbers, the starts of equal intervals; each probability is a whole number of 1/64
    uniforms = torch.arange(4096, dtype=torch.float64) / 4096
    counts = torch.tensor([5, 0, 17, 1, 30, 0, 11])
    actions = draw((counts / 64).expand(4096, 7), uniforms)
    assert actions.bincount(minlength=7).tolist() == (64 * counts).tolist()


@each_strategy
def test_draws_on_a_grid_match_the_probabilities_of_a_strategy(strategy: Strategy):
    # an interval of length p holds p * n of the n midpoints, to within one
    uniforms = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for probs in strategy(torch.randn(5, 6), random_legal(5, 6)):
        counts = draw(probs.expand(2000, 6), uniforms).bincount(minlength=6)
        assert (counts - 2000 * probs.double()).abs().max() <= 1
        assert counts[probs == 0].eq(0).all()


def test_draws_are_those_of_the_cumulative_loop():
    probs, uniforms = torch.rand(300, 5).double().pow(3), torch.rand(300, dtype=torch.float64)
    probs /= probs.sum(dim=1, keepdim=True)
    expected = []
    for each, uniform in zip(probs.tolist(), uniforms.tolist(), strict=True):
        left = uniform
        action = 0
        while left >= each[action]:
            left -= each[action]
            action += 1
        expected.append(action)
    assert draw(probs, uniforms).tolist() == expected


@pytest.mark.parametrize("uniform", [0.0, 0.99999994, 1 - 2**-53])
def test_an_impossible_action_is_never_drawn(uniform: float):
    # Zeros at both ends and between; sums of float32 that fall short of 1 or exceed it.
    weights = torch.rand(500, 12) * random_legal(500, 12)
    weights[:, [0, -1]] = 0
    weights[:, 5] += 0.1
    probs = weights / weights.sum(dim=1, keepdim=True)
    sums = probs.double().sum(dim=1)
    assert (sums < 1).any()
    assert (sums > 1).any()
    actions = draw(probs, torch.full((500,), uniform, dtype=torch.float64))
    possible = [[a for a in range(12) if each[a] > 0] for each in probs.tolist()]
    assert actions.tolist() == [each[0 if uniform == 0 else -1] for each in possible]


def test_a_draw_does_not_depend_on_the_batch_it_is_in():
    q, legal, uniforms = torch.randn(64, 5), random_legal(64, 5), torch.rand(64)
    for strategy in STRATEGIES.values():
        together = draw(strategy(q, legal), uniforms)
        alone = [draw(strategy(q[[b]], legal[[b]]), uniforms[[b]]) for b in range(64)]
        assert torch.equal(together, torch.cat(alone))


def test_draws_are_whole_numbers_that_index():
    assert draw(torch.tensor([[0.5, 0.5]]), torch.tensor([0.7])).dtype == torch.int64


def test_many_actions_in_half_precision_are_still_told_apart():
    # summed in bfloat16, 1/1024 and 1/1024 and ... would stand still at 1/4
    probs = torch.full((2, 1024), 1 / 1024, dtype=torch.bfloat16)
    assert draw(probs, torch.tensor([0.5, 1023 / 1024])).tolist() == [512, 1023]


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (
            [0.5, math.nan],
            r"`probs\[1, 1\]` is nan. Probabilities must be >= 0; NaN comes from action values",
        ),
        ([-0.5, 1.5], r"`probs\[1, 0\]` is -0.5. Probabilities must be >= 0"),
        (
            [0.0, 0.0],
            r"`probs\[1\]` sums to 0, not 1. Divide weights by their sum, and leave out states without",
        ),
        ([1.0, 2.0], r"`probs\[1\]` sums to 3, not 1"),
        ([math.inf, 0.0], r"`probs\[1\]` sums to inf, not 1"),
    ],
)
def test_a_row_that_is_no_distribution_is_named(probs: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        draw(torch.tensor([[0.5, 0.5], probs]), torch.tensor([0.1, 0.2]))


@each_strategy
@pytest.mark.parametrize("legal", [None, torch.tensor([[1, 1, 1], [1, 0, 1]])])
def test_a_value_that_is_not_a_number_is_found_by_the_draw(strategy: Strategy, legal: Tensor | None):
    q = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, torch.nan]])
    with pytest.raises(ValueError, match=r"`probs\[1, \d\]` is nan"):
        draw(strategy(q, legal), torch.rand(2))


@pytest.mark.parametrize("uniform", [1.0, -0.25, math.nan])
def test_a_number_outside_the_unit_interval_is_named(uniform: float):
    message = rf"`uniforms\[1\]` is {uniform:g}, outside \[0, 1\). Draw it with `torch.rand`"
    with pytest.raises(ValueError, match=message):
        draw(torch.full((2, 2), 0.5), torch.tensor([0.5, uniform]))


def test_numbers_for_another_batch_are_refused():
    with pytest.raises(ValueError, match="`uniforms` has B=3, but earlier arguments have B=2"):
        draw(torch.full((2, 2), 0.5), torch.rand(3))
