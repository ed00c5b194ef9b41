"""Attention and the fusions made of it: hand numbers, a loop, PyTorch's own module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmft.errors import ConfigError
from mmft.models.fusion import make_fusion
from mmft.models.fusion_attention import attention
from mmft.models.modalities import Modalities
from tests.models.fusion_cases import WIDTHS, built, given_numbers, set_weights, states

LN3 = math.log(3)
ATTENTIONS = ("cross_modal", "all_modality", "shared")


def attention_loop(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """(Q, D), (K, D), (K, D) -> (Q, D), one query, head and key at a time."""
    out, width = torch.zeros_like(queries), queries.shape[1] // num_heads
    for index, query in enumerate(queries):
        for head in range(num_heads):
            part = slice(head * width, (head + 1) * width)
            weights = [math.exp((query[part] @ key[part]).item() / math.sqrt(width)) for key in keys]
            for weight, value in zip(weights, values, strict=True):
                out[index, part] += weight / sum(weights) * value[part]
    return out


def mean(x: Tensor) -> Tensor:
    return x.mean(0) if len(x) else torch.zeros(x.shape[1], dtype=x.dtype)


def test_attention_hand_computed() -> None:
    # d = 4, q.k / 2 = 0 and ln 3: weights 1/4 and 3/4 of the values 4 and 8 make 7; the third key is masked
    queries = torch.tensor([[[2.0, 0, 0, 0]]])
    keys = torch.tensor([[[0.0, 5, 5, 5], [LN3, 5, 5, 5], [9, 9, 9, 9]]])
    values = torch.tensor([[[4.0, 0, 0, 0], [8, 0, 0, 0], [9, 9, 9, 9]]])
    mask = torch.tensor([[True, True, False]])
    torch.testing.assert_close(attention(queries, keys, values, mask), torch.tensor([[[7.0, 0, 0, 0]]]))


@pytest.mark.parametrize("num_heads", [1, 2, 4])
def test_attention_is_the_loop_over_queries_heads_and_keys(num_heads: int) -> None:
    queries = torch.randn(3, 2, 4, dtype=torch.float64)
    keys, values = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = [attention_loop(queries[b], keys[b, mask[b]], values[b, mask[b]], num_heads) for b in range(3)]
    torch.testing.assert_close(
        attention(queries, keys, values, mask, num_heads=num_heads), torch.stack(expected)
    )


def test_masked_keys_get_exactly_zero_gradient_and_a_row_without_keys_is_zero() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    queries = torch.randn(2, 2, 4, requires_grad=True)
    keys, values = (torch.randn(2, 3, 4).masked_fill(~mask.unsqueeze(2), torch.nan) for _ in range(2))
    for leaf in (keys, values):
        leaf.requires_grad_()
    attended = attention(queries, keys, values, mask, num_heads=2)
    assert attended[1].eq(0).all()
    attended.square().sum().backward()
    for leaf in (keys, values):
        assert leaf.grad is not None
        assert leaf.grad[~mask].eq(0).all()
        assert leaf.grad[mask].ne(0).all()
    assert queries.grad is not None
    assert queries.grad[1].eq(0).all()
    assert queries.grad[0].isfinite().all()


def test_no_kernel_is_asked_for_a_softmax_over_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # what a kernel returns for it is its own affair: NaN by the formula, 0 in recent ones
    def by_the_formula(queries: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor) -> Tensor:
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        return scores.masked_fill(~attn_mask, -torch.inf).softmax(3) @ values

    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    expected = attention(x, x, x, mask)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", by_the_formula)
    torch.testing.assert_close(attention(x, x, x, mask), expected)


def test_a_wrong_shape_of_attention_is_named() -> None:
    x, mask = torch.ones(2, 3, 4), torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match="`values` has K=2, but earlier arguments have K=3"):
        attention(x, x, x[:, :2], mask)
    with pytest.raises(ValueError, match="`key_mask` has B=1, but earlier arguments have B=2"):
        attention(x, x, x, mask[:1])


def test_cross_modal_hand_computed() -> None:
    # keys 0 and ln 3 with values 4 and 8; the query 1 weighs them 1/4 and 3/4: 7; the query 0 alike: 6.
    # mean 6.5, W_o = 2: 13. W_r = 10 of the mean 0.5: 5. Together 18; without the image 5, without the text 0
    weights = dict(to_query__weight=1, to_key__weight=[1, 0], to_value__weight=[0, 1], output__weight=2)
    text, image = [[1.0], [0.0]], [[0.0, 4.0], [LN3, 8.0]]
    states = given_numbers(text=[text, text, []], image=[image, [], image])
    fusion = make_fusion("cross_modal", {"text": 1, "image": 2}, 1)
    set_weights(fusion, **weights, from_query__weight=10)
    torch.testing.assert_close(fusion(states), torch.tensor([[18.0], [5.0], [0.0]]))
    fusion = make_fusion("cross_modal", {"text": 1, "image": 2}, 1, residual=False)
    set_weights(fusion, **weights)
    torch.testing.assert_close(fusion(states), torch.tensor([[13.0], [0.0], [0.0]]))


def test_all_modality_hand_computed() -> None:
    # keys: text 0, image ln 3; values: text 4, image 8. The text asks with 1: 4/4 + 3 * 8/4 = 7, times 10;
    # the image asks with 0: (4 + 8) / 2 = 6. Together 76; the text alone sees itself: 4 * 10 = 40
    fusion = make_fusion("all_modality", {"text": 1, "image": 1}, 1)
    set_weights(
        fusion,
        to_query__text__weight=1,
        to_query__image__weight=0,
        to_key__text__weight=0,
        to_key__image__weight=LN3,
        to_value__text__weight=4,
        to_value__image__weight=8,
        output__text__weight=10,
        output__image__weight=1,
    )
    states = given_numbers(text=[[[1.0]], [[1.0]]], image=[[[1.0]], []])
    torch.testing.assert_close(fusion(states), torch.tensor([[76.0], [40.0]]))


def test_shared_hand_computed() -> None:
    # X = [0 + 1; (2 - 2) + 0] = [1; 0], keys [ln 3; 0]: the query 1 gives 3/4 * 1 + 1/4 * 0 = 3/4, the query
    # 0 gives 1/2; mean 5/8, W_o = 8: 5. The text alone: 1 * 8 = 8
    fusion = make_fusion("shared", {"text": 1, "image": 2}, 1)
    set_weights(
        fusion,
        origins__text=1,
        origins__image=0,
        projections__image__weight=[1, 1],
        to_query__weight=1,
        to_key__weight=LN3,
        to_value__weight=1,
        output__weight=8,
    )
    states = given_numbers(text=[[[0.0]], [[0.0]]], image=[[[2.0, -2.0]], []])
    torch.testing.assert_close(fusion(states), torch.tensor([[5.0], [8.0]]))


Rows = dict[str, Tensor]
"""The real tokens of each modality of one row."""


def cross_modal_loop(fusion: Any, row: Rows) -> Tensor:
    asking, asked = row[fusion.query], row[fusion.key]
    attended = attention_loop(
        asking @ fusion.to_query.weight.T,
        asked @ fusion.to_key.weight.T,
        asked @ fusion.to_value.weight.T,
        fusion.num_heads,
    )
    return fusion.output.weight @ mean(attended) + fusion.from_query.weight @ mean(asking)


def all_modality_loop(fusion: Any, row: Rows) -> Tensor:
    keys = torch.cat([x @ fusion.to_key[name].weight.T for name, x in row.items()])
    values = torch.cat([x @ fusion.to_value[name].weight.T for name, x in row.items()])
    state = torch.zeros(fusion.size, dtype=torch.float64)
    for name, x in row.items():
        attended = attention_loop(x @ fusion.to_query[name].weight.T, keys, values, fusion.num_heads)
        state = state + fusion.output[name].weight @ mean(attended)
    return state


def shared_loop(fusion: Any, row: Rows) -> Tensor:
    tokens = []
    for name, x in row.items():
        projected = x if x.shape[1] == fusion.size else x @ fusion.projections[name].weight.T
        tokens.extend(token + fusion.origins[name] for token in projected)
    stacked = torch.stack(tokens)
    attended = attention_loop(
        stacked @ fusion.to_query.weight.T,
        stacked @ fusion.to_key.weight.T,
        stacked @ fusion.to_value.weight.T,
        fusion.num_heads,
    )
    return fusion.output.weight @ mean(attended)


LOOPS = {"cross_modal": cross_modal_loop, "all_modality": all_modality_loop, "shared": shared_loop}


@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_it_is_the_loop_over_rows(name: str, num_heads: int) -> None:
    fusion, given = built(name, num_heads=num_heads), states()
    expected = []
    for index in range(5):
        row = {each: x[index][given.masks[each][index]] for each, x in given.embeddings.items()}
        expected.append(LOOPS[name](fusion, row))
    torch.testing.assert_close(fusion(given), torch.stack(expected))


def torch_attention(fusion: Any, key_width: int | None = None) -> nn.MultiheadAttention:
    """PyTorch's module with the weights of a fusion."""
    theirs = nn.MultiheadAttention(
        4, 2, bias=False, batch_first=True, dtype=torch.float64, kdim=key_width, vdim=key_width
    )
    ours = [fusion.to_query.weight, fusion.to_key.weight, fusion.to_value.weight]
    with torch.no_grad():
        if key_width is None:
            theirs.in_proj_weight.copy_(torch.cat(ours))
        else:
            for weight, own in zip(
                (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight), ours, strict=True
            ):
                weight.copy_(own)
        theirs.out_proj.weight.copy_(fusion.output.weight)
    return theirs


def test_shared_is_torchs_multihead_attention() -> None:
    fusion = built("shared", {"image": 4}, num_heads=2)
    given = states().only(["image"]).take(torch.tensor([0, 1, 3]))
    tokens, mask = given.embeddings["image"] + fusion.origins["image"], given.masks["image"]
    attended, _ = torch_attention(fusion)(tokens, tokens, tokens, key_padding_mask=~mask)
    expected = [each[kept].mean(0) for each, kept in zip(attended, mask, strict=True)]
    torch.testing.assert_close(fusion(given), torch.stack(expected))


def test_cross_modal_is_torchs_multihead_attention() -> None:
    fusion = built(
        "cross_modal", {"image": 4, "text": 3}, num_heads=2, query="image", key="text", residual=False
    )
    given = states().take(torch.tensor([0, 1, 4]))
    image, text = given.embeddings["image"], given.embeddings["text"]
    attended, _ = torch_attention(fusion, 3)(image, text, text, key_padding_mask=~given.masks["text"])
    expected = [each[kept].mean(0) for each, kept in zip(attended, given.masks["image"], strict=True)]
    torch.testing.assert_close(fusion(given), torch.stack(expected))


def test_shared_tells_modalities_apart_only_by_their_origins() -> None:
    fusion = built("shared", {"image": 4, "video": 4})
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    mask = torch.ones(3, 2, dtype=torch.bool)
    one = Modalities({"image": x[0], "video": x[1]}, {"image": mask, "video": mask})
    other = Modalities({"image": x[1], "video": x[0]}, {"image": mask, "video": mask})
    assert not torch.isclose(fusion(one), fusion(other)).any()
    nn.init.zeros_(fusion.origins["image"])
    nn.init.zeros_(fusion.origins["video"])
    torch.testing.assert_close(fusion(one), fusion(other))


def test_cross_modal_reads_its_two_modalities_alone() -> None:
    fusion = built("cross_modal", query="numbers", key="text")
    assert fusion.names == ("numbers", "text")
    assert (fusion.to_query.in_features, fusion.to_key.in_features) == (2, 3)


@pytest.mark.parametrize("option", ["query", "key"])
def test_cross_modal_refuses_a_modality_that_there_is_not(option: str) -> None:
    with pytest.raises(
        ConfigError,
        match=f"`{option}` is 'audio', and the modalities are text, image, numbers, fused; choose",
    ):
        make_fusion("cross_modal", WIDTHS, 4, **{option: "audio"})


@pytest.mark.parametrize("num_heads", [0, 3])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_heads_must_divide_the_size(name: str, num_heads: int) -> None:
    with pytest.raises(ConfigError, match=f"`num_heads` must be >= 1 and divide `size`, 4; got {num_heads}"):
        make_fusion(name, WIDTHS, 4, num_heads=num_heads)
