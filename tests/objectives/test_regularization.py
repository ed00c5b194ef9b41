"""Distances to pretrained weights: hand numbers, the formed product, autograd, cuts that change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmft.objectives import regularization
from mmft.objectives.regularization import (
    add_distance_gradient_,
    lora_gradients,
    lora_squared_norm,
    squared_distance,
    squared_norm,
)


def random_numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_a_squared_distance_hand_computed():
    weights = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    pretrained = [torch.tensor([1.0, 0.0]), torch.tensor([[0.5]])]
    # 0 + 4 + 6.25
    assert squared_distance(weights, pretrained).item() == 10.25


def test_a_squared_norm_hand_computed():
    # 1 + 4 + 9
    assert squared_norm([torch.tensor([1.0, -2.0]), torch.tensor(3.0)]).item() == 14


def test_the_gradient_of_a_squared_distance_is_twice_the_difference_and_pretrained_weights_get_none():
    weight, start = random_numbers(3, 2).requires_grad_(), random_numbers(3, 2, seed=1).requires_grad_()
    squared_distance([weight], [start]).backward()
    torch.testing.assert_close(weight.grad, 2 * (weight - start).detach())
    assert start.grad is None


def test_distances_agree_with_numerical_gradients():
    weights, start = random_numbers(2, 3).requires_grad_(), random_numbers(2, 3, seed=1)
    assert torch.autograd.gradcheck(lambda w: squared_distance([w, w], [start, 2 * start]), (weights,))
    assert torch.autograd.gradcheck(lambda w: squared_norm([w, 2 * w]), (weights,))


def test_half_precision_is_summed_in_single():
    # 2^16 squares of 2^-4 are 256; added one by one in bfloat16 they would stop at 1 or so.
    weights = [torch.full((2**16,), 2.0**-4, dtype=torch.bfloat16)]
    zeros = [torch.zeros_like(weights[0])]
    assert squared_norm(weights).item() == 256
    assert squared_distance(weights, zeros).item() == 256
    assert add_distance_gradient_([torch.zeros_like(weights[0])], weights, zeros, 1.0).item() == 256


@pytest.mark.parametrize("chunk", [1, 7, 64, 10_000])
def test_the_gradient_in_place_is_that_of_autograd_whatever_the_chunk(
    chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(regularization, "CHUNK", chunk)
    shapes = [(5, 4), (3,), (), (1, 30), (0, 2), (2, 3, 2, 2)]
    weights = [random_numbers(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    starts = [random_numbers(*shape, seed=10 + i) for i, shape in enumerate(shapes)]
    (0.3 * squared_distance(weights, starts)).backward()
    before = [random_numbers(*shape, seed=20 + i) for i, shape in enumerate(shapes)]
    gradients = [each.clone() for each in before]
    value = add_distance_gradient_(gradients, weights, starts, 0.3)
    torch.testing.assert_close(value, squared_distance(weights, starts).detach())
    for gradient, old, weight in zip(gradients, before, weights, strict=True):
        torch.testing.assert_close(gradient, old + weight.grad)


def test_starting_values_may_be_numbers():
    gradient = torch.zeros(3)
    value = add_distance_gradient_([gradient], [torch.tensor([1.0, 2.0, 0.0])], [1.0], 0.5)
    assert value.item() == pytest.approx(2)  # 0 + 1 + 1
    assert gradient.tolist() == [0.0, 1.0, -1.0]


def test_nothing_is_held_at_no_cost():
    assert add_distance_gradient_([], [], [], 1.0).item() == 0


def test_weights_that_did_not_move_get_no_gradient_however_small_the_rest_is():
    # Adam divides by the size of the gradient: the noise of a rounded difference would become a full step.
    weight = random_numbers(100, dtype=torch.float32)
    gradient = torch.full((100,), 1e-20)
    assert add_distance_gradient_([gradient], [weight], [weight.clone()], 10.0).item() == 0
    assert torch.equal(gradient, torch.full((100,), 1e-20))


def test_a_distance_in_chunks_keeps_its_digits():
    weight = random_numbers(2**20, dtype=torch.float32)
    start = weight + 1e-3 * random_numbers(2**20, seed=1, dtype=torch.float32)
    expected = (weight.double() - start.double()).square().sum().item()
    actual = add_distance_gradient_([torch.zeros_like(weight)], [weight], [start], 1.0)
    assert actual.item() == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("which", ["gradient", "start"])
def test_shapes_that_do_not_match_are_an_error(which: str):
    weight, other = torch.zeros(2, 1), torch.zeros(2)
    pair = (other, weight) if which == "gradient" else (weight.clone(), other)
    with pytest.raises(ValueError, match=r"weight of shape \(2, 1\) is paired with a tensor of shape \(2,\)"):
        add_distance_gradient_([pair[0]], [weight], [pair[1]], 1.0)
    with pytest.raises(ValueError, match=r"of shape \(2, 1\) is paired with a tensor of shape \(2,\)"):
        squared_distance([weight], [other])


def test_the_norm_of_a_lora_product_hand_computed():
    down, up = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [0.0], [1.0]])
    # B A = [[3, 6], [0, 0], [1, 2]]: 9 + 36 + 1 + 4 = 50, and s^2 = 4
    assert lora_squared_norm(down, up, 2.0).item() == 200
    # dA = 2 s^2 B'B A = 8 * 10 * [1, 2];  dB = 2 s^2 B A A' = 8 * 5 * [3, 0, 1]
    of_down, of_up = lora_gradients(down, up, 2.0)
    assert of_down.tolist() == [[80.0, 160.0]]
    assert of_up.tolist() == [[120.0], [0.0], [40.0]]


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_the_norm_of_a_lora_product_is_that_of_the_formed_product_and_so_are_its_gradients(rank: int):
    down = random_numbers(rank, 5).requires_grad_()
    up = random_numbers(7, rank, seed=1).requires_grad_()
    formed = squared_norm([1.7 * up @ down])
    formed.backward()
    torch.testing.assert_close(lora_squared_norm(down, up, 1.7), formed)
    of_down, of_up = lora_gradients(down, up, 1.7)
    torch.testing.assert_close(of_down, down.grad)
    torch.testing.assert_close(of_up, up.grad)


def test_the_closed_form_agrees_with_numerical_gradients():
    down, up = random_numbers(2, 3).requires_grad_(), random_numbers(4, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: lora_squared_norm(a, b, 0.5), (down, up))


def test_a_lora_that_changes_nothing_is_at_no_distance_and_stays_there():
    down, up = random_numbers(2, 5), torch.zeros(7, 2, dtype=torch.float64)
    assert lora_squared_norm(down, up, 4.0).item() == 0
    assert all(not gradient.any() for gradient in lora_gradients(down, up, 4.0))


def test_the_norm_of_a_lora_product_does_not_see_how_it_is_factored():
    down, up, mix = random_numbers(2, 5), random_numbers(7, 2, seed=1), random_numbers(2, 2, seed=2)
    torch.testing.assert_close(
        lora_squared_norm(mix @ down, up @ torch.linalg.inv(mix), 2.0), lora_squared_norm(down, up, 2.0)
    )


def test_factors_of_different_rank_are_an_error():
    with pytest.raises(ValueError, match="`up` has R=3, but earlier arguments have R=2"):
        lora_squared_norm(torch.zeros(2, 5), torch.zeros(7, 3), 1.0)
