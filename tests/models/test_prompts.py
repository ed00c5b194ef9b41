"""Both sides of the seam: what is read from the captured call, and how prompts become a left-padded batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmft.errors import UnsupportedModelError
from mmft.models.prompts import (
    PromptEncoding,
    PromptInputs,
    collate_prompts,
    encoding_from_call,
    repeat_groups,
)
from mmft.models.seam import capture_text_inputs, find_text_model
from tests import zoo
from tests.engine.support import frozen_actor_critic, ragged_case

KINDS = ("full_attention", "sliding_attention")


def call(tokens: int = 3, **arguments: Any) -> PromptEncoding:
    return encoding_from_call({"inputs_embeds": torch.randn(1, tokens, 2)} | arguments, KINDS)


def test_two_dimensional_masks_and_missing_positions_mean_plain_causal() -> None:
    encoding = call(attention_mask=torch.ones(1, 3), position_ids=None, past_key_values=None, use_cache=False)
    assert encoding.visible is None
    assert encoding.positions.tolist() == [[0, 1, 2]]
    assert encoding.next_position == 3
    assert encoding.num_tokens == 3


def test_positions_keep_their_axes_without_the_text_axis() -> None:
    assert call(position_ids=torch.tensor([[1, 2, 3]])).positions.tolist() == [[1, 2, 3]]
    axes = torch.arange(12).view(4, 1, 3)
    assert call(position_ids=axes[1:]).positions.tolist() == axes[1:, 0].tolist()
    assert call(position_ids=axes).positions.tolist() == axes[1:, 0].tolist()
    assert call(position_ids=torch.tensor([[[0, 1, 2]], [[0, 7, 2]], [[0, 1, 2]]])).next_position == 8


def test_finished_masks_are_kept_as_truth_values() -> None:
    causal = torch.ones(3, 3, dtype=torch.bool).tril()
    additive = torch.zeros(1, 1, 3, 3).masked_fill(~causal, torch.finfo(torch.float32).min)
    for mask in (causal[None, None], additive, additive.clamp(min=-1e38 * 3).to(torch.bfloat16)):
        encoding = call(attention_mask=mask)
        assert all(torch.equal(encoding.visible[kind], causal) for kind in KINDS)
    own = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    by_kind = call(attention_mask={"full_attention": own, "sliding_attention": None}).visible
    assert by_kind["full_attention"].all()
    assert torch.equal(by_kind["sliding_attention"], causal)


@pytest.mark.parametrize("value", [torch.zeros(1), [torch.zeros(1)], (1,), {"a": 1}])
def test_unknown_tensors_in_the_call_are_refused(value: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="text-model argument `per_layer_inputs` is unknown"):
        call(per_layer_inputs=value)
    assert call(per_layer_inputs=None, output_attentions=False).num_tokens == 3


def test_left_padding_ends_every_prompt_in_the_last_column() -> None:
    short, long = call(1), call(3)
    batch = collate_prompts([short, long])
    assert batch.valid.tolist() == [[False, False, True], [True, True, True]]
    assert batch.lengths.tolist() == [1, 3]
    assert batch.next_position.tolist() == [1, 3]
    assert torch.equal(batch.embeds[0, 2], short.embeds[0])
    assert not batch.embeds[0, :2].any()
    assert batch.positions.tolist() == [[[0, 0, 0], [0, 1, 2]]]
    assert batch.visible is None
    assert batch.visual_mask is None
    assert batch.deepstack == ()


def test_deepstack_features_are_joined_in_row_order_and_text_rows_have_none() -> None:
    def visual(where: list[int], value: float) -> PromptEncoding:
        mask = torch.tensor([where], dtype=torch.bool)
        features = [torch.full((int(mask.sum()), 2), value + layer) for layer in range(2)]
        return call(len(where), visual_pos_masks=mask, deepstack_visual_embeds=features)

    batch = collate_prompts([visual([1, 0], 10), call(3), visual([0, 1, 1], 20)])
    assert batch.visual_mask.tolist() == [[False, True, False], [False] * 3, [False, True, True]]
    assert [layer[:, 0].tolist() for layer in batch.deepstack] == [[10, 20, 20], [11, 21, 21]]


def test_repeated_groups_lie_next_to_each_other() -> None:
    batch = repeat_groups(collate_prompts([call(1), call(3)]), 2)
    assert batch.lengths.tolist() == [1, 1, 3, 3]
    assert batch.positions.shape == (1, 4, 3)
    assert batch.next_position.tolist() == [1, 1, 3, 3]
    assert batch.embeds.shape == (4, 0, 2)


def test_detached_encodings_leave_the_graph() -> None:
    leaf = torch.randn(2, 2, requires_grad=True)
    encoding = PromptEncoding(leaf * 2, torch.zeros(1, 2, dtype=torch.long), None, None, (leaf * 3,))
    detached = encoding.detach()
    assert not detached.embeds.requires_grad
    assert not detached.deepstack[0].requires_grad
    assert torch.equal(detached.embeds, encoding.embeds)


def test_inputs_move_pixels_to_the_models_dtype_and_leave_ids_alone() -> None:
    row = zoo.build_row("qwen2_5_vl")
    moved = PromptInputs(row).to(torch.device("cpu"), torch.bfloat16)
    assert moved.tensors["pixel_values"].dtype == torch.bfloat16
    assert moved.input_ids.dtype == torch.long
    assert torch.equal(moved.input_ids, row["input_ids"])


def test_capturing_stops_at_the_seam_and_leaves_no_hook() -> None:
    model = frozen_actor_critic("llava").backbone.base
    text_model = find_text_model(model)
    calls: list[int] = []
    handle = text_model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    hooks = len(text_model._forward_pre_hooks)
    arguments = capture_text_inputs(model, text_model, ragged_case("llava").rows[0])
    assert arguments["inputs_embeds"].shape[0] == 1
    assert calls == []
    assert len(text_model._forward_pre_hooks) == hooks
    handle.remove()


def test_an_error_before_the_seam_is_not_swallowed() -> None:
    backbone = frozen_actor_critic("llava").backbone
    row = dict(zoo.build_row("llava"))
    row["input_ids"] = row["input_ids"][:, :-8]
    row["attention_mask"] = row["attention_mask"][:, :-8]
    row["pixel_values"] = row["pixel_values"].repeat(2, 1, 1, 1)
    with pytest.raises(ValueError, match=r"[Ii]mage features and image tokens do not match"):
        backbone.encode(PromptInputs(row))
    assert len(backbone.text_model._forward_pre_hooks) == 0


def test_positional_arguments_at_the_seam_are_refused() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = torch.nn.Identity()

        def forward(self, x: torch.Tensor, use_cache: bool) -> torch.Tensor:
            return self.text(x)

    wrapper = Wrapper()
    with pytest.raises(UnsupportedModelError, match="Wrapper passes positional arguments to its text model"):
        capture_text_inputs(wrapper, wrapper.text, {"x": torch.zeros(1)})
