"""The KL estimators against hand numbers and the true divergence, and what moves the price of KL."""

from __future__ import annotations

import math

import pytest
import torch

from mmft.errors import ConfigError, NonFiniteError
from mmft.objectives.kl import adapted_kl_coef, kl_penalty
from tests.reference import objectives as reference


def row(*numbers: float) -> torch.Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


def test_k1_and_k3_hand_computed():
    # pi = 0.5, ref = 0.25: k1 = log 2; k3 = 0.5 - 1 + log 2
    logps, ref_logps = row(math.log(0.5)), row(math.log(0.25))
    torch.testing.assert_close(kl_penalty(logps, ref_logps, "k1"), row(math.log(2)))
    torch.testing.assert_close(kl_penalty(logps, ref_logps, "k3"), row(math.log(2) - 0.5))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expected_under_the_policy_it_is_the_divergence(estimator: str):
    policy, ref = torch.tensor([[0.7, 0.2, 0.1]]).double(), torch.tensor([[0.1, 0.3, 0.6]]).double()
    expected = (policy * (policy / ref).log()).sum()
    torch.testing.assert_close((policy * kl_penalty(policy.log(), ref.log(), estimator)).sum(), expected)


def test_k3_is_never_negative_and_k1_is_where_the_reference_likes_a_token_more():
    logps, ref_logps = torch.randn(4, 50), torch.randn(4, 50)
    assert (kl_penalty(logps, ref_logps, "k3") >= 0).all()
    assert torch.equal(kl_penalty(logps, ref_logps, "k1") < 0, logps < ref_logps)


def test_k3_keeps_its_digits_near_the_reference():
    # x^2 / 2 for x = 1e-4: 5e-9, which exp(x) - 1 - x in float32 rounds to 0 or 1e-7
    k3 = kl_penalty(torch.tensor([[0.0]]), torch.tensor([[1e-4]]), "k3")
    assert k3.item() == pytest.approx(5e-9, rel=1e-3)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_reference_gets_no_gradient(estimator: str):
    logps, ref_logps = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    kl_penalty(logps, ref_logps, estimator).sum().backward()
    assert (logps.grad is not None, ref_logps.grad is not None) == (True, False)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="`estimator` must be 'k1' or 'k3'; got 'k2'"):
        kl_penalty(row(0), row(0), "k2")


def test_a_wrong_shape_is_named():
    with pytest.raises(ValueError, match="`ref_logps` has T=1, but earlier arguments have T=2"):
        kl_penalty(row(0, 0), row(0))


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (6.6, 0.105),  # e = 0.1: 0.1 * (1 + 0.1 * 64 / 128)
        (6.0, 0.1),
        (5.4, 0.095),
        (60.0, 0.11),  # e = 9, held at 0.2
        (-60.0, 0.09),
    ],
)
def test_the_price_of_kl_hand_computed(kl: float, expected: float):
    price = adapted_kl_coef(0.1, kl, target=6.0, horizon=128, num_samples=64)
    assert price == pytest.approx(expected, rel=1e-12)
    assert price == pytest.approx(reference.adapted_kl_coef(0.1, kl, 6.0, 128, 64), rel=1e-12)


def test_two_rollouts_of_half_the_size_come_to_nearly_the_same_price():
    half = {"target": 6.0, "horizon": 10_000, "num_samples": 32}
    twice = adapted_kl_coef(adapted_kl_coef(0.1, 8.0, **half), 8.0, **half)
    assert twice == pytest.approx(adapted_kl_coef(0.1, 8.0, **half | {"num_samples": 64}), rel=1e-6)


def test_a_policy_that_answers_to_the_price_settles_at_the_target():
    price = 0.01
    for _ in range(400):  # a policy whose KL is 1 / price
        price = adapted_kl_coef(price, 1 / price, target=5.0, horizon=100, num_samples=20)
    assert 1 / price == pytest.approx(5.0, rel=1e-3)


def test_a_price_of_nothing_stays_nothing():
    assert adapted_kl_coef(0.0, 100.0, target=1.0, horizon=10, num_samples=4) == 0


@pytest.mark.parametrize("target", [0.0, -1.0])
def test_a_target_of_no_kl_is_refused(target: float):
    with pytest.raises(ConfigError, match=f"`target` of the KL must be > 0; got {target}"):
        adapted_kl_coef(0.1, 1.0, target=target, horizon=100, num_samples=4)


def test_a_horizon_that_could_turn_the_price_into_a_bonus_is_refused():
    # 0.2 * 50 / 10 = 1: a KL far below the target would make the price 0
    with pytest.raises(
        ConfigError, match=r"`horizon` .* 0.2 of a rollout's 50 samples.*got 10. Choose at least 50"
    ):
        adapted_kl_coef(0.1, 9.0, target=6.0, horizon=10, num_samples=50)
    assert adapted_kl_coef(0.1, 0.0, target=6.0, horizon=11, num_samples=50) > 0


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_kl_that_is_no_number_moves_no_price(kl: float):
    with pytest.raises(NonFiniteError, match=f"The KL to the reference is {kl}"):
        adapted_kl_coef(0.1, kl, target=6.0, horizon=100, num_samples=4)
