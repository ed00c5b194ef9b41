"""What holds for every fusion, whatever its equation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from mmft.models.fusion import FUSIONS, Fusion, make_fusion
from mmft.models.modalities import Modalities
from tests.models.fusion_cases import SIZE, WIDTHS, built, complete, states, without

every_fusion = pytest.mark.parametrize("name", list(FUSIONS))


def filled(given: Modalities, filling: float) -> Modalities:
    """Two more tokens of padding everywhere, and all padding set to `filling`."""
    longer = Modalities(
        {n: nn.functional.pad(x, (0, 0, 0, 2)) for n, x in given.embeddings.items()},
        {n: nn.functional.pad(mask, (0, 2)) for n, mask in given.masks.items()},
    )
    embeddings = {
        n: x.masked_fill(~longer.masks[n].unsqueeze(2), filling) for n, x in longer.embeddings.items()
    }
    return Modalities(embeddings, longer.masks)


def restricted(name: str, fusion: Fusion, kept: Sequence[str]) -> Fusion:
    """The fusion of the modalities `kept` alone, with the weights that the other has for them."""
    small = built(name, {each: WIDTHS[each] for each in kept})
    places = [list(WIDTHS).index(each) for each in kept]
    ends = torch.tensor(list(WIDTHS.values())).cumsum(0).tolist()
    columns = [c for p in places for c in range(ends[p] - list(WIDTHS.values())[p], ends[p])]
    weights = fusion.state_dict()
    chosen = {key: weights[key] for key in small.state_dict()}
    if name == "weighted_sum":
        chosen["logits"] = chosen["logits"][places]
    if name == "attention_pooling":
        chosen["scores.weight"] = chosen["scores.weight"][places][:, columns]
    if name == "coupled":
        chosen["joint.weight"] = chosen["joint.weight"].unflatten(1, (-1, SIZE))[:, places].flatten(1)
    small.load_state_dict(chosen)
    return small


@every_fusion
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_padding_changes_nothing(name: str, normalize: bool, filling: float) -> None:
    fusion, given = built(name, normalize=normalize), states()
    fused = fusion(given)
    assert fused.shape == (5, SIZE)
    torch.testing.assert_close(fusion(filled(given, filling)), fused)


@every_fusion
@pytest.mark.parametrize("normalize", [False, True])
def test_padding_gets_exactly_zero_gradient_and_every_weight_a_gradient(name: str, normalize: bool) -> None:
    fusion, given = built(name, normalize=normalize), filled(states(), torch.nan)
    nothing = Modalities(given.embeddings, {n: torch.zeros_like(mask) for n, mask in given.masks.items()})
    for x in given.embeddings.values():
        x.requires_grad_()
    (fusion(given).square().sum() + fusion(nothing).sum()).backward()
    for each in fusion.names:
        gradient, mask = given.embeddings[each].grad, given.masks[each]
        assert gradient is not None
        assert gradient[~mask].eq(0).all()
        assert gradient.isfinite().all()
        assert gradient[mask].ne(0).any()
    for label, weight in fusion.named_parameters():
        assert weight.grad is not None, label
        assert weight.grad.isfinite().all(), label
        assert weight.grad.ne(0).any(), label


@every_fusion
def test_a_batch_is_its_rows(name: str) -> None:
    fusion, given = built(name), states()
    rows = [fusion(given.take(slice(row, row + 1))) for row in range(5)]
    torch.testing.assert_close(fusion(given), torch.cat(rows))


@every_fusion
def test_the_order_of_tokens_changes_nothing(name: str) -> None:
    fusion, given = built(name), states()
    orders = {each: torch.randperm(mask.shape[1]) for each, mask in given.masks.items()}
    orders["text"] = torch.tensor([2, 0, 1])
    shuffled = Modalities(
        {each: x[:, orders[each]] for each, x in given.embeddings.items()},
        {each: mask[:, orders[each]] for each, mask in given.masks.items()},
    )
    torch.testing.assert_close(fusion(shuffled), fusion(given))


@pytest.mark.parametrize("missing", ["text", "image", "numbers"])
@pytest.mark.parametrize("name", [name for name in FUSIONS if name not in ("cross_modal", "vlm")])
def test_a_missing_modality_changes_nothing_of_the_others(name: str, missing: str) -> None:
    fusion, given = built(name), complete()
    kept = [each for each in WIDTHS if each != missing]
    alone = restricted(name, fusion, kept)(given.only(kept))
    torch.testing.assert_close(fusion(without(given, missing)), alone)
    assert not torch.isclose(fusion(given), alone).any()


def test_without_numbers_the_models_own_state_stays() -> None:
    fusion, given = built("vlm"), complete()
    own = given.embeddings["fused"].squeeze(1)
    assert torch.equal(fusion(without(given, "numbers")), own)
    assert torch.equal(built("vlm", {"fused": 4})(given), own)
    torch.testing.assert_close(
        fusion(without(given, "fused")), given.embeddings["numbers"].squeeze(1) @ fusion.from_numbers.weight.T
    )


@every_fusion
def test_a_modality_that_is_not_held_is_missing_in_every_row(name: str) -> None:
    fusion, given = built(name), states()
    for missing in ("image", "numbers"):
        kept = [each for each in WIDTHS if each != missing]
        torch.testing.assert_close(fusion(given.only(kept)), fusion(without(given, missing)))
    empty = Modalities(
        given.embeddings | {"image": torch.randn(5, 0, 4)}, given.masks | {"image": torch.ones(5, 0).bool()}
    )
    torch.testing.assert_close(fusion(empty), fusion(without(given, "image")))


@every_fusion
def test_a_row_without_anything_is_zero(name: str) -> None:
    fusion, given = built(name), filled(states(), torch.nan)
    for each in WIDTHS:
        given.masks[each][1] = False
    fused = fusion(given)
    assert fused[1].eq(0).all()
    assert fused[0].ne(0).all()


@every_fusion
def test_modalities_that_it_was_not_built_for_are_not_read(name: str) -> None:
    fusion, given = built(name), states()
    more = Modalities(
        given.embeddings | {"audio": torch.full((5, 1, 9), torch.nan)},
        given.masks | {"audio": torch.ones(5, 1).bool()},
    )
    assert torch.equal(fusion(more), fusion(given))


@every_fusion
def test_the_order_in_which_modalities_are_held_changes_nothing(name: str) -> None:
    fusion, given = built(name), states()
    assert torch.equal(fusion(given.only(list(WIDTHS)[::-1])), fusion(given))


@every_fusion
def test_normalizing_is_a_layer_norm_of_every_token(name: str) -> None:
    fusion, given = built(name, normalize=True), states()
    plain = built(name)
    plain.load_state_dict({k: w for k, w in fusion.state_dict().items() if not k.startswith("norms")})
    normalized = {}
    for each, x in given.embeddings.items():
        centred = x - x.mean(2, keepdim=True)
        scaled = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
        norm: Any = fusion.norms[each] if each in fusion.names else nn.Identity()
        normalized[each] = scaled * norm.weight + norm.bias if each in fusion.names else x
    torch.testing.assert_close(fusion(given), plain(Modalities(normalized, given.masks)))
    assert len(make_fusion(name, WIDTHS, SIZE).norms) == 0


@every_fusion
def test_half_precision_is_fused_in_float32(name: str) -> None:
    fusion, given = built(name).float(), states().to(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = fusion(given)
    assert fused.dtype == torch.float32
    assert torch.equal(fused, fusion(given.to(dtype=torch.float32)))


def test_a_fusion_without_weights_returns_float32_too() -> None:
    fusion, given = built("vlm", {"fused": 4}), states().to(dtype=torch.bfloat16)
    assert list(fusion.parameters()) == []
    assert fusion(given).dtype == torch.float32


@every_fusion
def test_weights_are_float32_whatever_the_default_is(name: str) -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        fusion = make_fusion(name, WIDTHS, SIZE, normalize=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {weight.dtype for weight in fusion.parameters()} == {torch.float32}


@every_fusion
def test_it_survives_saving_and_loading(name: str) -> None:
    fusion, other, given = built(name, normalize=True), built(name, normalize=True), states()
    assert not torch.equal(fusion(given), other(given))
    other.load_state_dict(fusion.state_dict())
    assert torch.equal(fusion(given), other(given))


@every_fusion
def test_embeddings_of_another_width_are_named(name: str) -> None:
    fusion = built(name)
    wide = Modalities(
        {each: torch.ones(1, 1, 9) for each in WIDTHS}, {each: torch.ones(1, 1).bool() for each in WIDTHS}
    )
    first = fusion.names[0]
    message = (
        f"`states` has '{first}' of width 9, but the fusion was built for {WIDTHS[first]}; build it with"
    )
    with pytest.raises(ValueError, match=message):
        fusion(wide)
