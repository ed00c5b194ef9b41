"""The container of embeddings: what is real, what is missing, and that rows survive every move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmft.models.modalities import MODALITIES, Modalities, mean_over_tokens


def flags(*rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=torch.bool)


def example() -> Modalities:
    """Three rows: text of 2, 1 and no tokens; numbers in the first and the last."""
    return Modalities(
        {"text": torch.randn(3, 2, 4), "numbers": torch.randn(3, 1, 5)},
        {"text": flags([1, 1], [1, 0], [0, 0]), "numbers": flags([1], [0], [1])},
    )


def assert_same(one: Modalities, other: Modalities) -> None:
    assert one.names == other.names
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name])
        assert tensor.dtype == other.tensors()[name].dtype


def test_what_it_holds_can_be_asked_for() -> None:
    states = example()
    assert len(states) == 3
    assert states.names == ("text", "numbers")
    assert states.widths == {"text": 4, "numbers": 5}
    assert states.device == torch.device("cpu")
    # 3 * 2 * 4 + 3 * 1 * 5 floats of 4 bytes, 3 * 2 + 3 * 1 flags of 1
    assert states.num_bytes == 4 * (24 + 15) + 9
    assert set(states.names) < set(MODALITIES)


def test_a_row_has_what_its_mask_shows() -> None:
    states = example()
    assert states.present("text").tolist() == [True, True, False]
    assert states.present("numbers").tolist() == [True, False, True]
    assert states.present("audio").tolist() == [False, False, False]


def test_the_mean_over_tokens_hand_computed() -> None:
    # (1 + 3) / 2 = 2 and (2 + 8) / 2 = 5; one token alone; no token at all: 0
    x = torch.tensor([[[1.0, 2], [3, 8], [9, 9]], [[9, 9], [6, 7], [9, 9]], [[9, 9], [9, 9], [9, 9]]])
    mask = flags([1, 1, 0], [0, 1, 0], [0, 0, 0])
    assert mean_over_tokens(x, mask).tolist() == [[2, 5], [6, 7], [0, 0]]


def test_the_mean_over_tokens_is_the_loop_over_rows() -> None:
    x, mask = torch.randn(6, 5, 3, dtype=torch.float64), torch.rand(6, 5) < 0.6
    mask[0] = True
    expected = [
        tokens[kept].mean(0) if kept.any() else torch.zeros(3).double()
        for tokens, kept in zip(x, mask, strict=True)
    ]
    torch.testing.assert_close(mean_over_tokens(x, mask), torch.stack(expected))


@pytest.mark.parametrize("filling", [torch.nan, torch.inf])
def test_padding_changes_neither_mean_nor_gradient(filling: float) -> None:
    x, mask = torch.randn(2, 3, 4), flags([1, 1, 0], [0, 0, 0])
    expected = mean_over_tokens(x, mask)
    x[~mask] = filling
    x.requires_grad_()
    mean = mean_over_tokens(x, mask)
    mean.sum().backward()
    assert torch.equal(mean, expected)
    assert x.grad is not None
    # each of two real tokens counts a half
    assert torch.equal(x.grad, torch.where(mask.unsqueeze(2), 0.5, 0.0).expand(2, 3, 4))


def test_the_mean_of_half_precision_is_summed_in_float32() -> None:
    # bf16 has 8 bits: the sum of 257 ones would be 256
    ones = torch.ones(1, 257, 1, dtype=torch.bfloat16)
    mean = mean_over_tokens(ones, torch.ones(1, 257, dtype=torch.bool))
    assert mean.dtype == torch.bfloat16
    assert mean.item() == 1


def test_pooled_has_one_token_per_modality_and_missing_ones_stay_missing() -> None:
    states = example()
    states.embeddings["text"][2] = torch.nan
    pooled = states.pooled()
    text = states.embeddings["text"]
    expected = torch.stack([text[0].mean(0), text[1, 0], torch.zeros(4)])
    torch.testing.assert_close(pooled.embeddings["text"], expected.unsqueeze(1))
    assert pooled.masks["text"].tolist() == [[True], [True], [False]]
    assert torch.equal(pooled.embeddings["numbers"][0], states.embeddings["numbers"][0])
    assert pooled.embeddings["numbers"][1].eq(0).all()
    assert_same(pooled.pooled(), pooled)


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([1, 2]), flags([0, 1, 1])[0]])
def test_rows_are_taken_of_every_modality(rows: Any) -> None:
    states = example()
    taken = states.take(rows)
    assert len(taken) == 2
    for name, tensor in states.tensors().items():
        assert torch.equal(taken.tensors()[name], tensor[1:3])


def test_some_modalities_can_be_kept_in_another_order() -> None:
    states = example()
    assert states.only(["numbers"]).names == ("numbers",)
    assert states.only(["numbers", "text"]).names == ("numbers", "text")
    assert states.only(["text"]).masks["text"] is states.masks["text"]


def test_only_the_embeddings_change_their_dtype() -> None:
    states = example()
    moved = states.to("cpu", torch.bfloat16)
    assert {x.dtype for x in moved.embeddings.values()} == {torch.bfloat16}
    assert {mask.dtype for mask in moved.masks.values()} == {torch.bool}
    assert_same(states.to("cpu"), states)
    assert moved.to(dtype=torch.float64).embeddings["text"].dtype == torch.float64
    assert states.to("meta").masks["text"].device == states.to("meta").device == torch.device("meta")


def test_detached_states_are_outside_the_graph() -> None:
    states = Modalities({"text": torch.randn(1, 1, 2, requires_grad=True)}, {"text": flags([1])})
    assert not states.detach().embeddings["text"].requires_grad
    assert_same(states.detach(), states)


def test_joined_rows_come_back_when_they_are_taken_apart() -> None:
    first, second = example(), example().take(slice(2))
    joined = first.joined(second)
    assert len(joined) == 5
    assert_same(joined.take(slice(3)), first)
    assert_same(joined.take(slice(3, 5)), second)
    assert_same(Modalities.cat([first]), first)


def test_joining_pads_short_sequences_and_marks_what_a_part_does_not_hold() -> None:
    first = Modalities({"text": torch.ones(1, 1, 2)}, {"text": flags([1])})
    second = Modalities(
        {"text": torch.full((2, 3, 2), 2.0), "image": torch.full((2, 2, 3), 3.0)},
        {"text": flags([1, 1, 1], [1, 0, 0]), "image": flags([1, 1], [0, 1])},
    )
    joined = Modalities.cat([first, second])
    assert joined.names == ("text", "image")
    assert joined.masks["text"].int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 0, 0]]
    assert joined.masks["image"].int().tolist() == [[0, 0], [1, 1], [0, 1]]
    assert joined.embeddings["text"][0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert torch.equal(joined.embeddings["image"][1:], second.embeddings["image"])
    assert joined.present("image").tolist() == [False, True, True]


def test_tensors_survive_a_safetensors_file(tmp_path: Any) -> None:
    states = example()
    states.embeddings["text"][2] = torch.nan  # padding, kept as it is
    assert sorted(states.tensors()) == ["numbers", "numbers_mask", "text", "text_mask"]
    save_file(states.tensors(), tmp_path / "states.safetensors")
    loaded = Modalities.from_tensors(load_file(tmp_path / "states.safetensors"))
    for name, tensor in states.tensors().items():
        torch.testing.assert_close(loaded.tensors()[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("embeddings", "masks", "message"),
    [
        ({}, {}, "`embeddings` is empty; give at least one modality"),
        ({"text": torch.ones(1, 1, 2)}, {}, "modality 'text' has no mask; give its embedding and its mask"),
        ({}, {"text": flags([1])}, "modality 'text' has no embedding"),
        (
            {"text_mask": torch.ones(1, 1, 2)},
            {"text_mask": flags([1])},
            "modality 'text_mask' reads like the mask of another; rename it",
        ),
        (
            {"text": torch.ones(1, 2)},
            {"text": flags([1])},
            r"embedding of 'text' must be B x T x D in floating point; got \(1, 2\) of torch.float32",
        ),
        (
            {"text": torch.ones(1, 1, 2, dtype=torch.long)},
            {"text": flags([1])},
            r"embedding of 'text' must .* in floating point; got \(1, 1, 2\) of torch.int64",
        ),
        (
            {"text": torch.ones(1, 1, 2)},
            {"text": flags([1, 1])},
            r"mask of 'text' must be \(1, 1\), one torch.bool per token; got \(1, 2\) of torch.bool",
        ),
        (
            {"text": torch.ones(1, 1, 2)},
            {"text": torch.ones(1, 1)},
            r"mask of 'text' must be \(1, 1\), .*; got \(1, 1\) of torch.float32",
        ),
        (
            {"text": torch.ones(1, 1, 2), "image": torch.ones(2, 1, 2)},
            {"text": flags([1]), "image": flags([1], [1])},
            "modality 'image' has 2 rows, but 'text' has 1; a row that lacks a modality keeps its place",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(embeddings: Any, masks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Modalities(embeddings, masks)


def test_parts_that_cannot_be_joined_are_named() -> None:
    with pytest.raises(ValueError, match="`parts` is empty; give at least one"):
        Modalities.cat([])
    wider = Modalities({"text": torch.ones(1, 1, 9)}, {"text": flags([1])})
    with pytest.raises(ValueError, match="modality 'text' is 4 wide in one part and 9 in another; only"):
        example().joined(wider)


def test_a_modality_that_is_not_held_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="`names` has 'audio', which is not one of text, numbers"):
        example().only(["text", "audio"])
