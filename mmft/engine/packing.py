"""One row per prompt: `[prompt | completion 1 | ... | completion G]`, so that the prompt is computed once.

A completion token sees its prompt and the earlier tokens of its own branch. Every branch starts at the next
position of the prompt, whose last hidden state predicts the first token of every branch. The last token of a
branch is only ever predicted, so it is not fed at all.

Shapes: B prompts, P prompt columns (left-padded), N completions, R completion tokens, S suffix columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmft.models.prompts import PromptBatch, Visibility


@dataclass(frozen=True, slots=True)
class Completions:
    """N completions of B prompts, right-padded."""

    ids: Tensor
    """(N, R) token ids."""
    mask: Tensor
    """(N, R) True at completion tokens, the end token included."""
    prompt_index: Tensor
    """(N,) which prompt each completion answers; not decreasing."""

    @property
    def lengths(self) -> Tensor:
        """(N,)"""
        return self.mask.sum(1)

    def to(self, device: torch.device) -> Completions:
        return Completions(self.ids.to(device), self.mask.to(device), self.prompt_index.to(device))


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Where every completion token sits in the packed rows."""

    ids: Tensor
    """(B, S) token ids fed behind the prompt."""
    branch: Tensor
    """(B, S) which completion a suffix column belongs to; -1 is padding."""
    step: Tensor
    """(B, S) the column's position within its completion."""
    predictor: Tensor
    """(N, R) the packed column whose hidden state predicts each completion token."""


def pack(completions: Completions, num_prompts: int, prompt_width: int, pad_id: int) -> PackedLayout:
    """Lays the branches of each prompt one after another, without padding between them."""
    ids, index = completions.ids, completions.prompt_index
    device, (count, width) = ids.device, ids.shape
    fed = (completions.lengths - 1).clamp(min=0)
    row_totals = torch.zeros(num_prompts, dtype=torch.long, device=device).index_add(0, index, fed)
    row_begin = row_totals.cumsum(0) - row_totals
    offset = fed.cumsum(0) - fed - row_begin[index]
    steps = torch.arange(width, device=device)

    used = steps < fed[:, None]
    rows = index[:, None].expand(count, width)[used]
    columns = (offset[:, None] + steps)[used]
    shape = (num_prompts, int(row_totals.max()))
    packed_ids = torch.full(shape, pad_id, dtype=ids.dtype, device=device)
    branch = torch.full(shape, -1, dtype=torch.long, device=device)
    step = torch.zeros(shape, dtype=torch.long, device=device)
    packed_ids[rows, columns] = ids[used]
    branch[rows, columns] = torch.arange(count, device=device)[:, None].expand(count, width)[used]
    step[rows, columns] = steps.expand(count, width)[used]

    # Token t is predicted by token t - 1 of its branch, and token 0 by the prompt's last column.
    predictor = prompt_width - 1 + offset[:, None] + steps
    predictor[:, 0] = prompt_width - 1
    return PackedLayout(packed_ids, branch, step, torch.where(completions.mask, predictor, prompt_width - 1))


def prompt_visibility(batch: PromptBatch, kinds: Sequence[str], window: int | None) -> Visibility:
    """(B, P, P) per attention kind: the model's own mask where it made one, else causal and in the window."""
    index = _linear_index(batch)
    visible = {}
    for kind in kinds:
        if batch.visible is not None:
            mask = batch.visible[kind]
        else:
            mask = _within(kind, index, index, window) & (index[:, :, None] >= index[:, None, :])
        visible[kind] = _see_self(mask & batch.valid[:, None, :])
    return visible


def packed_visibility(
    batch: PromptBatch, layout: PackedLayout, kinds: Sequence[str], window: int | None
) -> Visibility:
    """(B, P + S, P + S) per attention kind, for prompt and branches together."""
    width = batch.valid.shape[1]
    prompt_index = _linear_index(batch)
    suffix_index = batch.lengths[:, None] + layout.step
    every_index = torch.cat([prompt_index, suffix_index], 1)
    columns = torch.arange(layout.branch.shape[1], device=layout.branch.device)
    same = (layout.branch[:, :, None] == layout.branch[:, None, :]) & (columns[:, None] >= columns)
    real = layout.branch >= 0
    to_prompt = real[:, :, None] & batch.valid[:, None, :]
    suffix_rows = torch.cat([to_prompt, same & real[:, :, None]], 2)
    visible = {}
    for kind, prompt_rows in prompt_visibility(batch, kinds, window).items():
        bottom = suffix_rows & _within(kind, suffix_index, every_index, window)
        top = torch.nn.functional.pad(prompt_rows, (0, bottom.shape[2] - width))
        visible[kind] = _see_self(torch.cat([top, bottom], 1))
    return visible


def packed_positions(batch: PromptBatch, layout: PackedLayout) -> Tensor:
    """(A, B, P + S): every branch restarts at the prompt's next position, the same on all rotary axes."""
    suffix = batch.next_position[:, None] + layout.step
    return torch.cat([batch.positions, suffix.expand(batch.positions.shape[0], -1, -1)], 2)


def decode_visibility(
    batch: PromptBatch, num_generated: int, kinds: Sequence[str], window: int | None
) -> Visibility:
    """(N, 1, P + num_generated) per attention kind, for the newest token of each of N streams."""
    prompt_index = _linear_index(batch)
    steps = torch.arange(num_generated, device=batch.valid.device)
    every_index = torch.cat([prompt_index, batch.lengths[:, None] + steps], 1)
    reachable = torch.nn.functional.pad(batch.valid, (0, num_generated), value=True)[:, None]
    return {kind: reachable & _within(kind, every_index[:, -1:], every_index, window) for kind in kinds}


def _linear_index(batch: PromptBatch) -> Tensor:
    """(B, P) token count before each prompt token; sliding windows count tokens, not rotary positions."""
    return batch.valid.cumsum(1) - 1


def _within(kind: str, queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    distance = queries[:, :, None] - keys[:, None, :]
    if kind == "sliding_attention" and window is not None:
        return distance < window
    return torch.ones_like(distance, dtype=torch.bool)


def _see_self(visible: Tensor) -> Tensor:
    """Padding attends to itself: a row that sees nothing is NaN in softmax, and NaN spreads in gradients."""
    return visible | torch.eye(visible.shape[-1], dtype=torch.bool, device=visible.device)
