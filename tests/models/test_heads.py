"""The heads: what may be said, and what a state is worth."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmft.models.heads import FEW_ROWS, FORBIDDEN, LanguageHead, ValueHead


def frozen_linear(bias: bool = False) -> nn.Linear:
    return nn.Linear(3, 5, bias=bias).requires_grad_(False)


def test_forbidden_tokens_have_probability_zero_and_others_their_logits() -> None:
    projection, hidden = frozen_linear(bias=True), torch.randn(4, 3)
    logits = LanguageHead(projection, None, frozenset({1, 4}))(hidden)
    assert (logits.softmax(-1)[:, [1, 4]] == 0).all()
    torch.testing.assert_close(logits[:, [0, 2, 3]], projection(hidden)[:, [0, 2, 3]])
    torch.testing.assert_close(LanguageHead(projection, None, frozenset())(hidden), projection(hidden))


def test_the_soft_cap_bounds_the_logits() -> None:
    projection, hidden = frozen_linear(), 100 * torch.randn(4, 3)
    logits = LanguageHead(projection, 2.0, frozenset())(hidden)
    torch.testing.assert_close(logits, 2 * torch.tanh(projection(hidden) / 2))
    assert logits.abs().max() <= 2


def test_logits_are_float32_whatever_the_weights_are() -> None:
    head = LanguageHead(frozen_linear().to(torch.bfloat16), None, frozenset({0}))
    assert head(torch.randn(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


class SubclassedLinear(nn.Linear):
    """What quantisation and PEFT put in the place of a plain layer."""


@pytest.mark.parametrize(
    ("projection", "softcap"),
    [
        (nn.Linear(3, 5, bias=False), None),
        (frozen_linear(bias=True), None),
        (frozen_linear(), 2.0),
        (SubclassedLinear(3, 5, bias=False).requires_grad_(False), None),
        (nn.Sequential(frozen_linear()), None),
    ],
    ids=["trains", "bias", "soft cap", "subclass", "no linear"],
)
def test_only_one_frozen_matrix_is_handed_out(projection: nn.Module, softcap: float | None) -> None:
    assert LanguageHead(projection, softcap, frozenset()).weight is None


def test_a_frozen_matrix_is_handed_out_unless_it_is_sharded() -> None:
    projection = frozen_linear()
    assert LanguageHead(projection, None, frozenset()).weight is projection.weight
    projection.weight.ds_id = 0  # a ZeRO-3 weight is empty outside its module
    assert LanguageHead(projection, None, frozenset()).weight is None


def test_values_are_float32_and_not_rounded_by_mixed_precision() -> None:
    head, hidden = ValueHead(64), torch.randn(7, 2, 64)
    nn.init.normal_(head.weight)
    expected = hidden @ head.weight[0] + head.bias
    assert expected.shape == (7, 2)
    torch.testing.assert_close(head(hidden), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hidden), head(hidden.float()))
        torch.testing.assert_close(head(hidden), expected, atol=1e-5, rtol=0)
    assert head(hidden.to(torch.bfloat16)).dtype == torch.float32


def test_decoding_gets_the_logits_of_the_projection() -> None:
    projection = nn.Linear(8, 50, bias=False).requires_grad_(False)
    head = LanguageHead(projection, None, frozenset({3}))
    hidden = torch.randn(FEW_ROWS + 1, 8)
    with torch.no_grad():
        whole, few = head(hidden), head.for_decoding(hidden[:FEW_ROWS])
        assert torch.equal(head.for_decoding(hidden), whole)
    assert few.is_contiguous()
    torch.testing.assert_close(few, whole[:FEW_ROWS])
    assert (few[:, 3] == FORBIDDEN).all()
