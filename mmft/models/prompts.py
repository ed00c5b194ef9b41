"""What a prompt looks like on both sides of the seam, and how prompts are batched behind it.

Shapes: B prompts, P prompt tokens, D width, A position axes (1, or 3 with M-RoPE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mmft.errors import UnsupportedModelError

Visibility = dict[str, Tensor]
"""Per attention kind (`full_attention`, `sliding_attention`) True where a query (row) sees a key (column)."""

KNOWN_ARGUMENTS = frozenset({
    "inputs_embeds", "attention_mask", "position_ids", "visual_pos_masks", "deepstack_visual_embeds",
    "input_ids", "past_key_values", "use_cache", "cache_position", "return_dict",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class PromptInputs:
    """One prompt before the seam: the processor's output, batch size 1."""

    tensors: dict[str, Tensor]

    @property
    def input_ids(self) -> Tensor:
        return self.tensors["input_ids"]

    def to(self, device: torch.device, dtype: torch.dtype) -> PromptInputs:
        """Moves to `device`; floating-point tensors (pixels) also to the model's `dtype`."""
        return PromptInputs({
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self.tensors.items()
        })  # fmt: skip


@dataclass(frozen=True, slots=True)
class PromptEncoding:
    """One prompt behind the seam, without padding: what the text model is called with."""

    embeds: Tensor
    """(P, D) token and image embeddings."""
    positions: Tensor
    """(A, P) position ids per rotary axis."""
    visible: Visibility | None
    """(P, P) per attention kind where the model makes its own mask (images, prefix-LM); None = causal."""
    visual_mask: Tensor | None = None
    """(P,) True at image tokens, for models that add visual features in later layers (deepstack)."""
    deepstack: tuple[Tensor, ...] = ()
    """Per deepstack layer the (image tokens, D) features to add."""

    @property
    def num_tokens(self) -> int:
        return self.embeds.shape[0]

    @property
    def next_position(self) -> Tensor:
        """() position of the first completion token: max over all axes + 1; M-RoPE does not count tokens."""
        return self.positions.max() + 1

    def detach(self) -> PromptEncoding:
        """The same encoding, outside any graph."""
        deepstack = tuple(features.detach() for features in self.deepstack)
        return replace(self, embeds=self.embeds.detach(), deepstack=deepstack)

    @property
    def num_bytes(self) -> int:
        tensors = [self.embeds, self.positions, *self.deepstack, *(self.visible or {}).values()]
        tensors += [] if self.visual_mask is None else [self.visual_mask]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def encoding_from_call(arguments: dict[str, Any], kinds: Sequence[str]) -> PromptEncoding:
    """Reads the captured keyword arguments of one call into the text model (batch size 1).

    Raises:
        UnsupportedModelError: the call carries tensors the engine does not know how to batch.
    """
    for name, value in arguments.items():
        if name not in KNOWN_ARGUMENTS and isinstance(value, Tensor | list | tuple | dict):
            raise UnsupportedModelError(
                f"text-model argument `{name}` is unknown to the shared-prompt engine"
            )
    embeds = arguments["inputs_embeds"][0]
    num_tokens = embeds.shape[0]
    visual_mask = arguments.get("visual_pos_masks")
    return PromptEncoding(
        embeds=embeds,
        positions=_positions(arguments.get("position_ids"), num_tokens, embeds.device),
        visible=_visibility(arguments.get("attention_mask"), num_tokens, kinds, embeds.device),
        visual_mask=None if visual_mask is None else visual_mask[0],
        deepstack=tuple(arguments.get("deepstack_visual_embeds") or ()),
    )


def _positions(position_ids: Tensor | None, num_tokens: int, device: torch.device) -> Tensor:
    if position_ids is None:
        return torch.arange(num_tokens, device=device)[None]
    if position_ids.ndim == 2:
        return position_ids[:1]
    # (3, 1, P), or (4, 1, P) with a leading text axis that only serves packed flash attention.
    return position_ids[-3:, 0]


def _visibility(mask: Any, num_tokens: int, kinds: Sequence[str], device: torch.device) -> Visibility | None:
    """A model that hands over a finished mask has a reason (image blocks, prefix-LM): keep that very mask."""
    if isinstance(mask, dict):
        return {kind: _as_visible(mask.get(kind), num_tokens, device) for kind in kinds}
    if mask is None or mask.ndim == 2:
        return None
    return {kind: _as_visible(mask, num_tokens, device) for kind in kinds}


def _as_visible(mask: Tensor | None, num_tokens: int, device: torch.device) -> Tensor:
    if mask is None:  # transformers leaves a mask out only where it is plainly causal (no window reached)
        return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).tril()
    mask = mask[0, 0]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Several prompts behind the seam, left-padded so that every prompt ends in column P - 1."""

    embeds: Tensor
    """(B, P, D)"""
    positions: Tensor
    """(A, B, P)"""
    valid: Tensor
    """(B, P) True at real tokens."""
    next_position: Tensor
    """(B,) the position id of the first completion token."""
    visible: Visibility | None
    """(B, P, P) per attention kind, or None = causal."""
    visual_mask: Tensor | None
    """(B, P)"""
    deepstack: tuple[Tensor, ...]
    """Per layer (image tokens of all rows, D), in row order."""

    @property
    def lengths(self) -> Tensor:
        """(B,) real tokens of each prompt."""
        return self.valid.sum(1)


def collate_prompts(encodings: Sequence[PromptEncoding]) -> PromptBatch:
    """Left-pads single prompts into one batch; positions of padding are 0 and never attended."""
    width = max(encoding.num_tokens for encoding in encodings)
    pads = [width - encoding.num_tokens for encoding in encodings]
    has_masks = any(encoding.visible is not None for encoding in encodings)
    has_visual = any(encoding.visual_mask is not None for encoding in encodings)
    return PromptBatch(
        embeds=_stack_left(pads, [encoding.embeds for encoding in encodings]),
        positions=_stack_positions(pads, encodings),
        valid=_stack_left(pads, [e.embeds.new_ones(e.num_tokens, dtype=torch.bool) for e in encodings]),
        next_position=torch.stack([encoding.next_position for encoding in encodings]),
        visible=_stack_masks(encodings, width) if has_masks else None,
        visual_mask=_stack_left(pads, [_visual_mask(e) for e in encodings]) if has_visual else None,
        deepstack=_join_deepstack(encodings),
    )


def _stack_positions(pads: Sequence[int], encodings: Sequence[PromptEncoding]) -> Tensor:
    """(A, B, P); a text-only prompt of an M-RoPE model has one axis, which holds on all of them."""
    axes = max(encoding.positions.shape[0] for encoding in encodings)
    rows = [
        torch.nn.functional.pad(e.positions.expand(axes, -1), (pad, 0))
        for pad, e in zip(pads, encodings, strict=True)
    ]
    return torch.stack(rows, dim=1)


def _stack_left(pads: Sequence[int], tensors: Sequence[Tensor]) -> Tensor:
    """Stacks (P_b, ...) tensors to (B, P, ...), padding in front with zeros."""
    tail = [0, 0] * (tensors[0].ndim - 1)
    return torch.stack(
        [torch.nn.functional.pad(t, (*tail, pad, 0)) for pad, t in zip(pads, tensors, strict=True)]
    )


def _stack_masks(encodings: Sequence[PromptEncoding], width: int) -> Visibility:
    kinds = next(list(e.visible) for e in encodings if e.visible is not None)
    stacked: Visibility = {}
    for kind in kinds:
        rows = []
        for e in encodings:
            # A row without a mask of its own is causal (for instance a prompt without an image).
            mask = (
                e.visible[kind] if e.visible is not None else _as_visible(None, e.num_tokens, e.embeds.device)
            )
            pad = width - e.num_tokens
            rows.append(torch.nn.functional.pad(mask, (pad, 0, pad, 0)))
        stacked[kind] = torch.stack(rows)
    return stacked


def _visual_mask(encoding: PromptEncoding) -> Tensor:
    if encoding.visual_mask is not None:
        return encoding.visual_mask
    return encoding.embeds.new_zeros(encoding.num_tokens, dtype=torch.bool)


def _join_deepstack(encodings: Sequence[PromptEncoding]) -> tuple[Tensor, ...]:
    """Row-major concatenation matches the order in which a boolean mask enumerates image tokens."""
    with_features = [encoding.deepstack for encoding in encodings if encoding.deepstack]
    return tuple(torch.cat(layers) for layers in zip(*with_features, strict=True))


def repeat_groups(batch: PromptBatch, repeats: int) -> PromptBatch:
    """The batch with every prompt repeated `repeats` times in a row, without its deepstack features.

    Used after prefill, where the cache already holds everything the prompt's tokens contributed."""
    values: dict[str, Any] = {field.name: getattr(batch, field.name) for field in fields(batch)}
    values |= {
        "embeds": batch.embeds[:, :0].repeat_interleave(repeats, 0),
        "positions": batch.positions.repeat_interleave(repeats, 1),
        "valid": batch.valid.repeat_interleave(repeats, 0),
        "next_position": batch.next_position.repeat_interleave(repeats, 0),
        "visible": None,
        "visual_mask": None,
        "deepstack": (),
    }
    return PromptBatch(**values)
