"""The KL estimators against hand numbers and against the true divergence."""

from __future__ import annotations

import math

import pytest
import torch

from mmft.objectives.kl import kl_penalty


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
