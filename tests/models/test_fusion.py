"""Fusions of one vector per modality: hand numbers, loops over rows; and all fusions by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmft.errors import ConfigError
from mmft.models.fusion import FUSIONS, Fusion, make_fusion, softmax_over_present
from tests.models.fusion_cases import SIZE, WIDTHS, built, complete, given_numbers, set_weights, states

Row = dict[str, Tensor]
"""The mean over the tokens of each modality that a row has."""


def softmax(logits: dict[str, float]) -> dict[str, float]:
    total = sum(math.exp(logit) for logit in logits.values())
    return {each: math.exp(logit) / total for each, logit in logits.items()}


def weighted(fusion: Any, row: Row, weights: dict[str, float]) -> Tensor:
    projected = {
        each: x if len(x) == SIZE else fusion.projections[each].weight @ x for each, x in row.items()
    }
    return sum((weights[each] * projected[each] for each in row), torch.zeros(SIZE).double())


def linear_loop(fusion: Any, row: Row) -> Tensor:
    return sum(
        (fusion.maps[each].weight @ x + fusion.maps[each].bias for each, x in row.items()),
        torch.zeros(SIZE).double(),
    )


def weighted_sum_loop(fusion: Any, row: Row) -> Tensor:
    return weighted(
        fusion, row, softmax({each: fusion.logits[list(WIDTHS).index(each)].item() for each in row})
    )


def attention_pooling_loop(fusion: Any, row: Row) -> Tensor:
    blocks = dict(zip(WIDTHS, fusion.scores.weight.split(list(WIDTHS.values()), dim=1), strict=True))
    logits = {
        each: sum((blocks[other][list(WIDTHS).index(each)] @ x).item() for other, x in row.items())
        for each in row
    }
    return weighted(fusion, row, softmax(logits))


def coupled_loop(fusion: Any, row: Row) -> Tensor:
    state = fusion.joint.bias
    for each, x in row.items():
        z = fusion.encoders[each].weight @ x + fusion.encoders[each].bias
        encoded = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        place = SIZE * list(WIDTHS).index(each)
        state = state + fusion.joint.weight[:, place : place + SIZE] @ encoded
    return state


def vlm_loop(fusion: Any, row: Row) -> Tensor:
    return row["fused"] + (fusion.from_numbers.weight @ row["numbers"] if "numbers" in row else 0)


@pytest.mark.parametrize(
    ("name", "loop"),
    [
        ("linear", linear_loop),
        ("weighted_sum", weighted_sum_loop),
        ("attention_pooling", attention_pooling_loop),
        ("coupled", coupled_loop),
        ("vlm", vlm_loop),
    ],
)
def test_it_is_the_loop_over_rows(name: str, loop: Callable[[Any, Row], Tensor]) -> None:
    fusion, given = built(name), states()
    expected = []
    for index in range(5):
        real = {each: x[index][given.masks[each][index]] for each, x in given.embeddings.items()}
        expected.append(loop(fusion, {each: x.mean(0) for each, x in real.items() if len(x)}))
    torch.testing.assert_close(fusion(given), torch.stack(expected))


def test_linear_hand_computed() -> None:
    # text: 1 + 2 + 10 = 13; image: the mean of 3 and 5 is 4, 2 * 4 + 100 = 108; both 121; without image 13
    fusion = make_fusion("linear", {"text": 2, "image": 1}, 1)
    set_weights(
        fusion, maps__text__weight=[1, 1], maps__text__bias=10, maps__image__weight=2, maps__image__bias=100
    )
    given = given_numbers(text=[[[1, 2]], [[1, 2]]], image=[[[3], [5]], []])
    assert fusion(given).tolist() == [[121], [13]]


def test_weighted_sum_hand_computed() -> None:
    # w = (1, 3) / 4 of 8 and the projected 2 * 2 = 4: 2 + 3 = 5; the text alone has weight 1: 8
    fusion: Any = make_fusion("weighted_sum", {"text": 1, "image": 2}, 1)
    set_weights(fusion, logits=[0, math.log(3)], projections__image__weight=[2, 0])
    given = given_numbers(text=[[[8]], [[8]]], image=[[[2, 7]], []])
    torch.testing.assert_close(fusion(given), torch.tensor([[5.0], [8.0]]))
    torch.testing.assert_close(fusion.modality_weights(given), torch.tensor([[0.25, 0.75], [1, 0]]))
    assert fusion.weights == pytest.approx({"text": 0.25, "image": 0.75})


def test_attention_pooling_hand_computed() -> None:
    # the image's logit is ln 3 * E_text: alpha = (1, 3) / 4 of 1 and 2 is 1.75; without text it has weight 1
    fusion: Any = make_fusion("attention_pooling", {"text": 1, "image": 1}, 1)
    set_weights(fusion, scores__weight=[[0, 0], [math.log(3), 0]])
    given = given_numbers(text=[[[1]], []], image=[[[2]], [[2]]])
    torch.testing.assert_close(fusion(given), torch.tensor([[1.75], [2.0]]))
    torch.testing.assert_close(fusion.modality_weights(given), torch.tensor([[0.25, 0.75], [0, 1]]))


def test_coupled_hand_computed() -> None:
    # GELU(100) = 100, GELU(-100) = 0, GELU(200) = 200: 100 + 2 * 200 + 7 = 507, 0 + 400 + 7 = 407;
    # without image 107, with nothing at all 0
    fusion = make_fusion("coupled", {"text": 1, "image": 1}, 1)
    set_weights(
        fusion,
        encoders__text__weight=100,
        encoders__image__bias=200,
        joint__weight=[1, 2],
        joint__bias=7,
    )
    given = given_numbers(text=[[[1]], [[-1]], [[1]], []], image=[[[5]], [[5]], [], []])
    assert fusion(given).tolist() == [[507], [407], [107], [0]]


def test_vlm_hand_computed() -> None:
    # (1, 2) + 3 * (10, 100) = (31, 302); without numbers (1, 2)
    fusion = make_fusion("vlm", {"fused": 2, "numbers": 1}, 2)
    given = given_numbers(fused=[[[1, 2]], [[1, 2]]], numbers=[[[3]], []])
    assert fusion(given).tolist() == [[1, 2], [1, 2]]  # where training begins
    set_weights(fusion, from_numbers__weight=[10, 100])
    assert fusion(given).tolist() == [[31, 302], [1, 2]]


@pytest.mark.parametrize("name", ["weighted_sum", "attention_pooling"])
def test_weights_add_up_to_one_over_what_is_present(name: str) -> None:
    fusion: Any = built(name)
    given = states()
    weights = fusion.modality_weights(given)
    torch.testing.assert_close(weights.sum(1), torch.ones(5).double())
    present = torch.stack([given.present(each) for each in WIDTHS], dim=1)
    assert torch.equal(weights > 0, present)


@pytest.mark.parametrize("name", ["weighted_sum", "attention_pooling"])
def test_at_the_start_modalities_count_alike(name: str) -> None:
    fusion: Any = make_fusion(name, WIDTHS, SIZE)
    assert fusion.modality_weights(complete()).eq(0.25).all()


def test_the_weights_of_all_modalities_can_be_read_by_name() -> None:
    fusion: Any = built("weighted_sum")
    assert list(fusion.weights) == list(WIDTHS)
    assert list(fusion.weights.values()) == pytest.approx(fusion.modality_weights(complete())[0].tolist())


def test_the_softmax_over_what_is_present_hand_computed() -> None:
    # e^0 and e^(ln 3) of three: 1/4, 3/4; one alone: 1; none: 0
    present = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    logits = torch.tensor([[0, 1e30, math.log(3)]]).expand(3, 3).clone().requires_grad_()
    weights = softmax_over_present(logits, present)
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0, 0.75], [0, 1, 0], [0, 0, 0]]))
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        softmax_over_present(logits, present)[:, 2].sum().backward()
    # w (1 - w) = 3/16 and -w w' = -3/16 in the first row, 0 where nothing can move
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[-3 / 16, 0, 3 / 16], [0, 0, 0], [0, 0, 0]]))


def test_every_fusion_has_a_name() -> None:
    assert set(FUSIONS.values()) == set(Fusion.__subclasses__())
    assert not any(inspect.isabstract(kind) for kind in FUSIONS.values())
    assert inspect.isabstract(Fusion)


def test_an_unknown_fusion_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"`fusion` names 'linaer'.* Did you mean 'linear'\?"):
        make_fusion("linaer", WIDTHS, SIZE)


def test_an_unknown_option_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"fusion 'shared' has no option `heads`; it has num_heads, normalize\."
    ):
        make_fusion("shared", WIDTHS, SIZE, heads=2)


def test_the_vlm_fusion_wants_the_models_own_state_in_its_own_width() -> None:
    with pytest.raises(
        ConfigError, match="reads the modality 'fused', and `widths` has text, image; add the model's hidden"
    ):
        make_fusion("vlm", {"text": 3, "image": 4}, 4)
    with pytest.raises(
        ConfigError, match=r"`size` is 8, but the fusion 'vlm' keeps .* of width 4; set it to that"
    ):
        make_fusion("vlm", WIDTHS, 8)


def test_sizes_that_are_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="`widths` is empty; a fusion needs at least one modality"):
        make_fusion("linear", {}, 4)
    with pytest.raises(ConfigError, match="`size` must be >= 1; got 0"):
        make_fusion("linear", WIDTHS, 0)
    with pytest.raises(ConfigError, match=r"`widths\[text\]` must be >= 1; got 0"):
        make_fusion("linear", {"text": 0}, 4)
